// The four units in the form of the reference: one function an instruction, any format.
#pragma once

#include <initializer_list>

#include "instructions.hpp"
#include "machine.hpp"
#include "smallfloat.hpp"

namespace fpgrad {

// The load and store units. LOAD returns how many numbers were clamped in the sums that it took.
std::int64_t run_load(Machine& m, const Load& i, const std::int64_t* bases, std::int64_t step);
void run_store(Machine& m, const Store& i, const std::int64_t* bases, std::int64_t step);

// The matrix and vector units, by integer arithmetic on codes; `saturated` gets the instruction's count.
void run_matrix(Machine& m, const Matrix& i);
void run_vector(Machine& m, const Vector& i, std::int64_t& saturated);

// The alu: `p` is the product, `c` the third operand.
Rounded combine(const Float& f, std::int64_t alu, Code p, Code c);

// Quantises n0 rows of words, `stride` words apart, to one tile's mantissas as tile memory has them; returns its
// exponent.
std::int32_t quantise_tile(const Config& config, const Word* in, std::int64_t stride, std::int64_t n0, void* out);

// One loop of an affine nest: how often it runs, and how far it steps.
struct Loop {
    std::int64_t n, s;
};

// Smallest and largest address of a nest.
struct Extent {
    std::int64_t low, high;
    Extent(std::int64_t base, std::initializer_list<Loop> loops) : low(base), high(base) {
        for (const auto& [n, s] : loops) (s < 0 ? low : high) += (n - 1) * s;
    }
    std::int64_t size() const { return high - low + 1; }
    bool inside(std::int64_t depth) const { return low >= 0 && high < depth; }
    bool meets(const Extent& other) const { return low <= other.high && other.low <= high; }
    void check(const char* what, std::int64_t depth) const {
        if (!inside(depth)) outside(what, low, high, depth);
    }
};

template <class S> Extent rows_extent(const Loops& n, const S& s) {
    return {s.base, {{n.n3, s.s3}, {n.n2, s.s2}, {n.n1, s.s1}, {n.n0, s.s0}}};
}

inline Extent tiles_extent(const Vector& v, std::int64_t side) {
    const Loops& n = v.loops;
    return {v.tile.base, {{n.n3, v.tile.s3}, {n.n2, v.tile.s2}, {v.inner_tiles(side), v.tile.s1}}};
}

inline Extent tiles_extent(const Matrix& i, const TileStream& s) {
    return {s.base, {{i.n2, s.s2}, {i.n1, s.s1}, {i.n0, s.s0}, {i.k2, s.t2}, {i.k1, s.t1}, {i.k0, s.t0}}};
}

}  // namespace fpgrad
