// Instructions as the emulator holds them: the fields of fpgrad.isa.instructions, in layout order.
//
// `visit` names every field once; decoding and the list of names that Python compares with
// fpgrad.isa.layout both come from it, so that the two definitions cannot drift apart unseen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "instructions_codes.hpp"

namespace fpgrad {


using Leaf = std::int64_t;

struct Tokens {
    Leaf count[UNITS] = {};
    template <class F> void visit(F f) {
        f("load", count[LOAD]), f("matrix", count[MATRIX]), f("vector", count[VECTOR]), f("store", count[STORE]);
    }
};

struct RowStream {
    Leaf space = 0, transposed = 0, base = 0, s3 = 0, s2 = 0, s1 = 0, s0 = 0;
    template <class F> void visit(F f) {
        f("space", space), f("transposed", transposed), f("base", base);
        f("s3", s3), f("s2", s2), f("s1", s1), f("s0", s0);
    }
};

struct Target {
    Leaf space = 0, base = 0, s3 = 0, s2 = 0, s1 = 0, s0 = 0;
    template <class F> void visit(F f) {
        f("space", space), f("base", base), f("s3", s3), f("s2", s2), f("s1", s1), f("s0", s0);
    }
};

struct TileTarget {
    Leaf enable = 0, flow = 0, base = 0, s3 = 0, s2 = 0, s1 = 0;
    template <class F> void visit(F f) {
        f("enable", enable), f("flow", flow), f("base", base), f("s3", s3), f("s2", s2), f("s1", s1);
    }
};

struct Immediate {
    Leaf scalar = 0, value = 0;
    template <class F> void visit(F f) { f("scalar", scalar), f("value", value); }
};

struct Mask {
    Leaf loop = 0, limit = 0;
    template <class F> void visit(F f) { f("loop", loop), f("limit", limit); }
};

struct Loops {
    Leaf n3 = 1, n2 = 1, n1 = 1, n0 = 1;
    template <class F> void visit(F f) { f("n3", n3), f("n2", n2), f("n1", n1), f("n0", n0); }
    Leaf count() const { return n3 * n2 * n1 * n0; }
};

// Calls f with a prefixed name for every field of a group.
template <class G, class F> void visit_group(const char* name, G& group, F f) {
    group.visit([&](const char* leaf, Leaf& value) { f((std::string(name) + "." + leaf).c_str(), value); });
}

struct Vector {
    Leaf op = 0;
    Loops loops;
    RowStream p0, p1;
    Leaf a = 0, b = 0, c = 0, d = 0, negate_product = 0, negate_c = 0, alu = 0, function = 0, reduce = 0;
    Immediate i0, i1;
    Mask row_mask, lane_mask;
    Target target;
    TileTarget tile;
    Leaf fence = 0;
    Tokens wait, signal;

    template <class F> void visit(F f) {
        f("op", op), visit_group("loops", loops, f), visit_group("p0", p0, f), visit_group("p1", p1, f);
        f("a", a), f("b", b), f("c", c), f("d", d), f("negate_product", negate_product), f("negate_c", negate_c);
        f("alu", alu), f("function", function), f("reduce", reduce);
        visit_group("i0", i0, f), visit_group("i1", i1, f);
        visit_group("row_mask", row_mask, f), visit_group("lane_mask", lane_mask, f);
        visit_group("target", target, f), visit_group("tile", tile, f), f("fence", fence);
        visit_group("wait", wait, f), visit_group("signal", signal, f);
    }
    bool uses(int source) const { return a == source || b == source || c == source || d == source; }
    Leaf rows() const { return loops.count(); }
    // Tiles for each (i3, i2).
    Leaf inner_tiles(Leaf side) const {
        return tile.flow ? (loops.n1 * loops.n0 + side - 1) / side : loops.n1;
    }
    Leaf acc_rows() const { return op == OP_PASS && uses(ACC) ? rows() : 0; }
};

struct TileStream {
    Leaf transposed = 0, base = 0, s2 = 0, s1 = 0, s0 = 0, t2 = 0, t1 = 0, t0 = 0;
    template <class F> void visit(F f) {
        f("transposed", transposed), f("base", base), f("s2", s2), f("s1", s1), f("s0", s0);
        f("t2", t2), f("t1", t1), f("t0", t0);
    }
};

struct Matrix {
    Leaf n2 = 1, n1 = 1, n0 = 1, k2 = 1, k1 = 1, k0 = 1, rows = 0;
    TileStream streamed, stationary;
    Tokens wait, signal;
    template <class F> void visit(F f) {
        f("n2", n2), f("n1", n1), f("n0", n0), f("k2", k2), f("k1", k1), f("k0", k0), f("rows", rows);
        visit_group("streamed", streamed, f), visit_group("stationary", stationary, f);
        visit_group("wait", wait, f), visit_group("signal", signal, f);
    }
    Leaf outputs() const { return n2 * n1 * n0; }
    Leaf terms() const { return k2 * k1 * k0; }
    // The first tile of output tile `number`, and how far from it the tiles of term `k` are.
    Leaf first(const TileStream& s, Leaf number) const {
        return s.base + number / (n1 * n0) * s.s2 + number / n0 % n1 * s.s1 + number % n0 * s.s0;
    }
    Leaf offset(const TileStream& s, Leaf k) const {
        return k / (k1 * k0) * s.t2 + k / k0 % k1 * s.t1 + k % k0 * s.t0;
    }
};

struct DramAddress {
    Leaf reg = 0, offset = 0, step_stride = 0, core_stride = 0;
    template <class F> void visit(F f) {
        f("register", reg), f("offset", offset), f("step_stride", step_stride), f("core_stride", core_stride);
    }
};

struct Load {
    Leaf kind = 0, count = 1, rows = 1;
    DramAddress source;
    Leaf stride = 0, gather = 0;
    DramAddress index;
    Leaf target = 0, group_stride = 0, row_stride = 1;
    Tokens wait, signal;
    template <class F> void visit(F f) {
        f("kind", kind), f("count", count), f("rows", rows), visit_group("source", source, f), f("stride", stride);
        f("gather", gather), visit_group("index", index, f), f("target", target);
        f("group_stride", group_stride), f("row_stride", row_stride);
        visit_group("wait", wait, f), visit_group("signal", signal, f);
    }
};

struct Store {
    Leaf kind = 0, count = 1, rows = 1, source = 0, group_stride = 0, row_stride = 1;
    DramAddress target;
    Leaf stride = 0;
    Tokens wait, signal;
    template <class F> void visit(F f) {
        f("kind", kind), f("count", count), f("rows", rows), f("source", source);
        f("group_stride", group_stride), f("row_stride", row_stride), visit_group("target", target, f);
        f("stride", stride), visit_group("wait", wait, f), visit_group("signal", signal, f);
    }
};

template <class I> std::vector<std::string> field_names() {
    std::vector<std::string> names;
    I instruction;
    instruction.visit([&](const char* name, Leaf&) { names.emplace_back(name); });
    return names;
}

// Instructions from rows of leaf values in layout order.
template <class I> std::vector<I> decode(const Leaf* leaves, std::size_t count, std::size_t width) {
    std::vector<I> out(count);
    for (std::size_t i = 0; i < count; ++i) {
        const Leaf* at = leaves + i * width;
        out[i].visit([&](const char*, Leaf& value) { value = *at++; });
    }
    return out;
}

struct Entry {
    Leaf start[UNITS], stop[UNITS], tokens[UNITS][UNITS];
};

struct Program {
    std::vector<Load> load;
    std::vector<Matrix> matrix;
    std::vector<Vector> vector;
    std::vector<Store> store;
    std::size_t octets() const {
        return load.size() * sizeof(Load) + matrix.size() * sizeof(Matrix) + vector.size() * sizeof(Vector) +
               store.size() * sizeof(Store);
    }
};

}  // namespace fpgrad
