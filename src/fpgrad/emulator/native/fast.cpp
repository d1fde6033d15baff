// Planning and running of vector passes by kernels. Tile products are in fast_matrix.cpp.
#include "fast.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "smallfloat.hpp"
#include "units.hpp"

namespace fpgrad {

namespace {

constexpr std::int64_t WAYS = 4;
// Fewer rows than this are not worth waking another thread.
constexpr std::int64_t ROWS_WORTH_A_THREAD = 512;
// A loop of so many iterations is shared as well as one of more.
constexpr std::int64_t ENOUGH_PIECES = 32;

struct Exact {
    const Config* config;
    const Vector* v;
};

int slow_row(const void* context, const std::uint32_t* a, const std::uint32_t* b, const std::uint32_t* c,
             const std::uint32_t* d, bool first, std::int64_t lanes, std::uint32_t* out) {
    const Exact& e = *static_cast<const Exact*>(context);
    const Vector& v = *e.v;
    const Float f(*e.config);
    const Lookup lookup(*e.config, static_cast<int>(v.function));
    const int shift = e.config->word_shift();
    int count = 0;
    for (int lane = 0; lane < e.config->side; ++lane) {
        Rounded y = f.multiply(a[lane] >> shift, b[lane] >> shift);
        bool over = y.over;
        if (v.negate_product) y.code = f.negate(y.code);
        if (!first) {
            Code other = c[lane] >> shift;
            if (v.negate_c) other = f.negate(other);
            y = combine(f, v.alu, y.code, other);
            over |= y.over;
        }
        y = lookup.evaluate(static_cast<int>(v.function), y.code);
        over |= y.over;
        if (v.d != ONE) {
            y = f.multiply(y.code, d[lane] >> shift);
            over |= y.over;
        }
        count += over && lane < lanes;
        out[lane] = static_cast<Word>(y.code << shift);
    }
    return count;
}

void slow_tile(const void* context, const std::uint32_t* rows, std::int64_t stride, std::int64_t n0,
               void* tile, std::int32_t* exponent) {
    *exponent = quantise_tile(*static_cast<const Exact*>(context)->config, rows, stride, n0, tile);
}

bool odd_word(Word w) {
    const Word exponent = w & 0x7F800000;
    return exponent == 0x7F800000 || (exponent == 0 && w != 0);
}

// Loops of a nest, the innermost first.
using Nest = std::array<Loop, LOOPS>;

template <class S> Nest nest(const Loops& n, const S& s) {
    return {Loop{n.n0, s.s0}, Loop{n.n1, s.s1}, Loop{n.n2, s.s2}, Loop{n.n3, s.s3}};
}

// Whether strides alone prove that no address comes twice.
bool distinct(Nest loops) {
    std::sort(loops.begin(), loops.end(), [](const Loop& x, const Loop& y) { return std::abs(x.s) < std::abs(y.s); });
    std::int64_t span = 0;
    for (const auto& [n, s] : loops) {
        if (n == 1) continue;
        if (std::abs(s) <= span) return false;
        span += (n - 1) * std::abs(s);
    }
    return true;
}

bool same(const Nest& x, const Nest& y) {
    for (int i = 0; i < LOOPS; ++i)
        if (x[i].n > 1 && x[i].s != y[i].s) return false;
    return true;
}

// Calls f(address, outer iteration, row) for every row of a nest.
template <class F> void each(std::int64_t base, const Nest& loops, F f) {
    std::int64_t outer = 0, row = 0;
    for (std::int64_t i3 = 0; i3 < loops[3].n; ++i3)
        for (std::int64_t i2 = 0; i2 < loops[2].n; ++i2)
            for (std::int64_t i1 = 0; i1 < loops[1].n; ++i1, ++outer)
                for (std::int64_t i0 = 0; i0 < loops[0].n; ++i0, ++row)
                    f(base + i3 * loops[3].s + i2 * loops[2].s + i1 * loops[1].s + i0 * loops[0].s, outer, row);
}

// The reference reads every operand before it writes anything; a kernel writes row by row. Strides prove most passes
// harmless; for the others, a table has for each address of the target who writes it first.
void find_conflicts(const Vector& v, PassPlan& plan, std::int64_t side) {
    const Loops& n = v.loops;
    if (v.tile.enable) {
        const Nest tiles{Loop{1, 0}, Loop{v.inner_tiles(side), v.tile.s1}, Loop{n.n2, v.tile.s2},
                         Loop{n.n3, v.tile.s3}};
        if (!distinct(tiles)) plan.splittable = plan.independent = false;
    }
    if (v.target.space == SPACE_NONE) return;
    Nest written = nest(n, v.target);
    if (v.reduce) written[0].n = WAYS, plan.independent = false;
    const Extent extent = rows_extent({n.n3, n.n2, n.n1, written[0].n}, v.target);
    const auto meeting = [&](int source, const RowStream& s) {
        return v.uses(source) && s.space == v.target.space && !s.transposed && extent.meets(rows_extent(n, s));
    };
    const auto in_place = [&](const RowStream& s) {
        return !v.reduce && s.base == v.target.base && same(written, nest(n, s));
    };
    bool harmless = distinct(written);
    for (const auto& [source, s] : {std::pair{P0, &v.p0}, std::pair{P1, &v.p1}})
        if (meeting(source, *s) && !in_place(*s)) harmless = false;
    if (harmless) return;

    // The row that writes an address first, one up; 0: none. For a reducing pass, the last of the iteration.
    std::vector<std::int64_t> first(static_cast<std::size_t>(extent.high - extent.low + 1), 0), outer(first);
    each(v.target.base, written, [&](std::int64_t address, std::int64_t iteration, std::int64_t row) {
        const std::int64_t at = address - extent.low;
        if (first[at] == 0) {
            first[at] = v.reduce ? (iteration + 1) * n.n0 : row + 1, outer[at] = iteration;
            return;
        }
        plan.independent = false;
        if (outer[at] != iteration) plan.splittable = false;
    });
    for (const auto& [source, s] : {std::pair{P0, &v.p0}, std::pair{P1, &v.p1}}) {
        if (!meeting(source, *s)) continue;
        each(s->base, nest(n, *s), [&](std::int64_t address, std::int64_t iteration, std::int64_t row) {
            const std::int64_t at = address - extent.low;
            if (address < extent.low || address > extent.high || first[at] == 0) return;
            if (first[at] < row + 1) plan.buffered = true;
            if (first[at] != row + 1) plan.independent = false;
            if (outer[at] != iteration) plan.splittable = false;
        });
    }
}

// Makes the nest of a planned pass as shallow as it gets, and says which loop threads may share.
class Nesting {
  public:
    Nesting(PassPlan& plan, std::int64_t side) : plan_(plan), p_(plan.args), side_(side) {}

    void simplify() {
        if (p_.row_limit >= p_.n[0]) p_.row_mask_loop = MASK_NEVER;
        if (p_.lane_limit >= side_) p_.lane_mask_loop = MASK_NEVER;
        for (int* loop : {&p_.row_mask_loop, &p_.lane_mask_loop})
            if (*loop > 0 && p_.n[*loop] == 1) *loop = MASK_ALWAYS;
        if (p_.flow) {
            if (mergeable(0)) merge(0);
            if (mergeable(2)) merge(2);
            // Rows that fill their tiles need no flow.
            if (p_.n[1] == 1 && p_.n[0] % side_ == 0 && p_.row_mask_loop == MASK_NEVER) {
                p_.flow = false, p_.n[1] = p_.n[0] / side_, p_.n[0] = side_;
                for (Rows* r : rows_) r->s[1] = side_ * r->s[0];
            }
        }
        if (!p_.flow) {
            for (int j = 3; j >= 1; --j)
                if (p_.n[j] == 1) remove(j);
            if (p_.n[0] == 1 && flat() && p_.lane_mask_loop != 1) remove(0);
            for (int j = 2; j >= 0; --j)
                if (mergeable(j)) merge(j), remove(j + 1);
        }
        choose_split();
    }

  private:
    // Whether the innermost loop is like any other.
    bool flat() const { return !p_.tiled && !p_.reduce && p_.row_mask_loop == MASK_NEVER; }

    bool mergeable(int j) const {
        if (p_.n[j + 1] == 1) return false;
        for (int loop : {p_.row_mask_loop, p_.lane_mask_loop})
            if (loop == j || loop == j + 1) return false;
        for (const Rows* r : rows_)
            if (r->s[j + 1] != p_.n[j] * r->s[j]) return false;
        if (j == 0)
            return p_.flow ? p_.row_mask_loop == MASK_NEVER : flat() && (plan_.independent || !plan_.splittable);
        return !p_.tiled || p_.tile_s[j + 1] == p_.n[j] * p_.tile_s[j];
    }

    void merge(int j) {
        p_.n[j] *= p_.n[j + 1], p_.n[j + 1] = 1;
        if (j == 0 && !plan_.independent) plan_.splittable = false;
    }

    void remove(int j) {
        for (int k = j; k < LOOPS; ++k) {
            const bool last = k == LOOPS - 1;
            p_.n[k] = last ? 1 : p_.n[k + 1];
            p_.tile_s[k] = last ? 0 : p_.tile_s[k + 1];
            for (Rows* r : rows_) r->s[k] = last ? 0 : r->s[k + 1];
        }
        for (int* loop : {&p_.row_mask_loop, &p_.lane_mask_loop})
            if (*loop >= j) *loop = *loop == j ? MASK_ALWAYS : *loop - 1;
    }

    void choose_split() {
        std::int64_t most = 1;
        for (int j = LOOPS - 1; j >= 0; --j) {
            std::int64_t unit = 1;
            bool allowed = plan_.splittable && !(p_.flow && j == 1);
            if (j == 0) {
                allowed = plan_.independent && p_.row_mask_loop == MASK_NEVER && !p_.reduce;
                if (p_.flow && p_.n[1] == 1)
                    unit = side_;
                else
                    allowed = allowed && !p_.tiled;
            }
            const std::int64_t pieces = std::min<std::int64_t>(p_.n[j] / unit, ENOUGH_PIECES);
            if (allowed && pieces > most) most = pieces, plan_.split = j, plan_.split_unit = unit;
        }
    }

    PassPlan& plan_;
    PassArgs& p_;
    const std::int64_t side_;
    Rows* const rows_[5] = {&p_.a, &p_.b, &p_.c, &p_.d, &p_.target};
};

}  // namespace

FastPath::FastPath(Machine& machine, const Kernels& kernels, Pool& pool)
    : m_(machine), kernels_(kernels), pool_(pool) {
    const Config& c = m_.config;
    covered_ = c.float_exponent_bits == 8 && c.float_mantissa_bits == 15 &&
               (c.side == 4 || c.side == 8 || c.side == 16) && c.ways == WAYS;
    if (!covered_) return;
    for (int f = EXP2; f < FUNCTIONS; ++f) {
        const Table& from = c.tables[f];
        FastTable& to = tables_[f];
        const int index_bits = std::bit_width(static_cast<unsigned>(c.table_segments)) - 1;
        to.size = static_cast<int>(from.base.size());
        to.segments = c.table_segments, to.index_shift = 15 - index_bits;
        to.base_shift = 15 - c.coefficient_bits, to.slope_shift = c.coefficient_bits - index_bits;
        for (std::size_t i = 0; i < from.base.size(); ++i)
            to.entries[i] = static_cast<Word>(from.base[i] << 16) | (static_cast<Word>(from.slope[i]) & 0xFFFF);
    }
    for (int s = 1; s < SPACE_MASK; ++s) odd_[s].assign(m_.depth[s], 0);
    for (auto& row : constants_) row.assign(c.side, 0);
    std::fill(constants_[ONE].begin(), constants_[ONE].end(), 0x3F800000);
    made_.assign(c.tiles, 0);
    bytes_ = kernels_.sum_bytes && c.side == 16 && c.narrow();
    form_size_ = c.side * c.side * (bytes_ ? 1 : 2);
}

void FastPath::plan(const Program& program) {
    program_ = &program;
    passes_.clear(), matrices_.clear();
    passes_.reserve(program.vector.size()), matrices_.reserve(program.matrix.size());
    for (const Vector& v : program.vector) passes_.push_back(covered_ ? plan_pass(v) : PassPlan{});
    for (const Matrix& i : program.matrix) matrices_.push_back(covered_ ? plan_matrix(i) : MatrixPlan{});
    for (std::size_t n = 0; n < matrices_.size(); ++n) {
        if (!matrices_[n].ok) continue;
        const Matrix& i = program.matrix[n];
        plan_places(i.streamed.transposed ? LEFT_TRANSPOSED : LEFT, tiles_extent(i, i.streamed).size());
        plan_places(i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT, tiles_extent(i, i.stationary).size());
    }
}

PassPlan FastPath::plan_pass(const Vector& v) const {
    PassPlan plan;
    const Loops& n = v.loops;
    const std::int64_t t = m_.config.side;
    if (v.op != OP_PASS) return plan;
    for (const auto& [source, s] : {std::pair{P0, &v.p0}, std::pair{P1, &v.p1}})
        if (v.uses(source) && (s->space == SPACE_NONE || !rows_extent(n, *s).inside(m_.depth[s->space]))) return plan;
    if (v.function > RELU && m_.config.tables[v.function].base.empty()) return plan;
    if (v.reduce && (n.n0 < WAYS || v.function != NONE || v.d != ONE || v.row_mask.loop || v.lane_mask.loop))
        return plan;
    if (v.target.space != SPACE_NONE &&
        !rows_extent({n.n3, n.n2, n.n1, v.reduce ? WAYS : n.n0}, v.target).inside(m_.depth[v.target.space]))
        return plan;
    if (v.tile.enable &&
        (v.reduce || (n.n0 > t && !v.tile.flow) || !tiles_extent(v, t).inside(m_.config.tiles)))
        return plan;

    find_conflicts(v, plan, t);
    if (plan.buffered && v.target.space == SPACE_MASK) return plan;
    PassArgs& p = plan.args;
    p.n[3] = n.n3, p.n[2] = n.n2, p.n[1] = n.n1, p.n[0] = n.n0;
    const Rows by_row{nullptr, {t, n.n0 * t, n.n1 * n.n0 * t, n.n2 * n.n1 * n.n0 * t}};
    Rows streams[SOURCES];
    if (v.uses(P0)) streams[P0] = plan_stream(v, v.p0, plan.transposing[0]);
    if (v.uses(P1)) streams[P1] = plan_stream(v, v.p1, plan.transposing[1]);
    streams[ACC] = streams[RANDOM] = by_row;
    // A factor of one is no product, a factor of zero is zero.
    int a = static_cast<int>(v.a), b = static_cast<int>(v.b);
    if (a == ONE) std::swap(a, b);
    if (a == ZERO || b == ZERO) a = ZERO, b = ONE;
    p.multiply = b != ONE;
    p.post_multiply = v.d != ONE;
    p.reduce = v.reduce;
    plan.sources[0] = a, plan.sources[1] = b, plan.sources[2] = static_cast<int>(v.c);
    plan.sources[3] = static_cast<int>(v.d);
    p.a = streams[a], p.b = streams[b], p.c = streams[v.c], p.d = streams[v.d];
    const std::int64_t size = row_size(v.target.space);
    if (v.target.space != SPACE_NONE)
        p.target = plan.buffered ? by_row
                                 : Rows{nullptr,
                                        {v.target.s0 * size, v.target.s1 * size, v.target.s2 * size, v.target.s3 * size},
                                        v.target.space == SPACE_MASK};
    p.bits = p.a.bits || p.b.bits || p.c.bits || p.d.bits;
    p.negate_product = v.negate_product ? 0x80000000 : 0, p.negate_c = v.negate_c ? 0x80000000 : 0;
    p.alu = static_cast<int>(v.alu), p.function = static_cast<int>(v.function);
    p.table = &tables_[v.function];
    p.row_mask_loop = v.row_mask.loop ? static_cast<int>(v.row_mask.loop) : MASK_NEVER;
    p.lane_mask_loop = v.lane_mask.loop ? static_cast<int>(v.lane_mask.loop) : MASK_NEVER;
    p.row_limit = v.row_mask.limit, p.lane_limit = std::min(v.lane_mask.limit, t);
    p.tiled = v.tile.enable, p.flow = v.tile.enable && v.tile.flow;
    p.tile_s[3] = v.tile.s3, p.tile_s[2] = v.tile.s2, p.tile_s[1] = v.tile.s1;
    p.mantissa_bits = m_.config.mantissa_bits, p.narrow = m_.config.narrow();
    p.slow_row = slow_row, p.slow_tile = slow_tile;
    Nesting(plan, t).simplify();
    plan.run = kernels_.pass(static_cast<int>(t), p);
    plan.ok = true;
    return plan;
}

// The rows of a stream as a kernel finds them.
Rows FastPath::plan_stream(const Vector& v, const RowStream& s, PassPlan::Transposing& transposing) const {
    const std::int64_t t = m_.config.side, size = row_size(s.space);
    const Loops& n = v.loops;
    const bool bits = s.space == SPACE_MASK;
    if (!s.transposed && !(bits && v.reduce))
        return {nullptr, {s.s0 * size, s.s1 * size, s.s2 * size, s.s3 * size}, bits};
    const bool aligned = (n.n3 == 1 || s.s3 % t == 0) && (n.n2 == 1 || s.s2 % t == 0) && (n.n1 == 1 || s.s1 % t == 0);
    const bool by_tile = !bits && n.n0 > 1 && s.s0 == 1 && s.base % t + n.n0 <= t && aligned;
    transposing = by_tile ? PassPlan::BY_TILE : PassPlan::BY_ROW;
    const std::int64_t each = by_tile ? t : n.n0;
    return {nullptr, {t, each * t, n.n1 * each * t, n.n2 * n.n1 * each * t}};
}

void* FastPath::transpose(const Loops& n, const RowStream& s, PassPlan::Transposing how, Buffer<Word>& scratch) const {
    const std::int64_t t = m_.config.side;
    Word* const memory = m_.rows[s.space].data();
    if (how == PassPlan::NOT && s.space == SPACE_MASK) return m_.mask_row(s.base);
    if (how == PassPlan::NOT) return memory + s.base * t;
    const std::int64_t outer = n.n3 * n.n2 * n.n1;
    scratch.resize(static_cast<std::size_t>(outer * (how == PassPlan::BY_TILE ? t : n.n0) * t));
    Word* out = scratch.data();
    const Nest loops = nest(n, s);
    if (how == PassPlan::BY_TILE) {
        Nest tiles = loops;
        tiles[0] = {1, 0};
        each(s.base - s.base % t, tiles, [&](std::int64_t at, std::int64_t, std::int64_t) {
            kernels_.transpose(t, t, memory + at * t, t, out);
            out += t * t;
        });
        return scratch.data() + s.base % t * t;
    }
    each(s.base, loops, [&](std::int64_t at, std::int64_t, std::int64_t) {
        if (s.space == SPACE_MASK && !s.transposed) {
            const std::uint32_t one = m_.config.one_word();
            std::uint32_t bits = 0;
            std::memcpy(&bits, m_.mask_row(at), static_cast<std::size_t>(m_.config.mask_octets()));
            for (std::int64_t lane = 0; lane < t; ++lane) *out++ = (bits >> lane & 1) * one;
            return;
        }
        if (s.space == SPACE_MASK) {
            for (std::int64_t lane = 0; lane < t; ++lane) *out++ = m_.word(SPACE_MASK, at - at % t + lane, at % t);
            return;
        }
        const Word* column = memory + (at - at % t) * t + at % t;
        for (std::int64_t lane = 0; lane < t; ++lane) *out++ = column[lane * t];
    });
    return scratch.data();
}

bool FastPath::pass(std::size_t index, std::int64_t& saturated) {
    PassPlan& plan = passes_[index];
    const Vector& v = program_->vector[index];
    if (!plan.ok || reads_odd(v)) return false;
    const Loops& n = v.loops;
    const std::int64_t t = m_.config.side, rows = v.rows();
    void* data[SOURCES];
    for (const auto& [source, i] : {std::pair{I0, &v.i0}, std::pair{I1, &v.i1}}) {
        if (!v.uses(source)) continue;
        const Word word = i->scalar ? m_.scalars[i->value] : static_cast<Word>(i->value << m_.config.word_shift());
        if (odd_word(word)) return false;
        std::fill(constants_[source].begin(), constants_[source].end(), word);
    }
    for (int source : {ZERO, ONE, I0, I1}) data[source] = constants_[source].data();
    if (v.uses(P0)) data[P0] = transpose(n, v.p0, plan.transposing[0], scratch_[0]);
    if (v.uses(P1)) data[P1] = transpose(n, v.p1, plan.transposing[1], scratch_[1]);
    if (v.uses(ACC)) {
        const Word* words;
        const std::uint8_t* over;
        m_.accumulated.pop(rows, words, over);
        std::int64_t sum = 0;
        for (std::int64_t r = 0; r < rows; ++r) sum += over[r];
        m_.saturated_accumulator += sum;
        data[ACC] = const_cast<Word*>(words);
    }
    if (v.uses(RANDOM)) {
        random_rows_.resize(static_cast<std::size_t>(rows * t));
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t lane = 0; lane < t; ++lane) {
                Word& x = m_.random[lane];
                x ^= x << 13, x ^= x >> 17, x ^= x << 5;
                random_rows_[r * t + lane] = 0x3F800000 | x >> 17 << 8;
            }
        data[RANDOM] = random_rows_.data();
    }
    PassArgs& p = plan.args;
    p.a.data = data[plan.sources[0]], p.b.data = data[plan.sources[1]], p.c.data = data[plan.sources[2]];
    p.d.data = data[plan.sources[3]];
    if (plan.buffered) {
        buffered_rows_.resize(static_cast<std::size_t>(rows * t));
        p.target.data = buffered_rows_.data();
    } else if (v.target.space == SPACE_MASK) {
        p.target.data = m_.mask_row(v.target.base);
    } else if (v.target.space != SPACE_NONE) {
        p.target.data = m_.row(v.target.space, v.target.base);
    }
    p.tiles = m_.mantissas.at(v.tile.base * t * t);
    p.exponents = m_.exponents.data() + v.tile.base;
    const Exact exact{&m_.config, &v};
    p.context = &exact;
    if (plan.split >= 0 && pool_.threads() > 1 && rows >= ROWS_WORTH_A_THREAD)
        split_pass(plan, saturated);
    else
        saturated += plan.run(p);
    if (plan.buffered) write_buffered(v);
    if (v.target.space != SPACE_NONE && odd_count_[v.target.space]) clear_odd(v);
    if (v.tile.enable) forget_forms(v);
    return true;
}

// Rows that lay aside go where they belong.
void FastPath::write_buffered(const Vector& v) {
    const std::int64_t t = m_.config.side;
    Nest written = nest(v.loops, v.target);
    if (v.reduce) written[0].n = WAYS;
    each(v.target.base, written, [&](std::int64_t address, std::int64_t outer, std::int64_t row) {
        // The last of a reducing pass's ways may not be the last in order: each is where its number says.
        const std::int64_t from = v.reduce ? outer * v.loops.n0 + row % WAYS : row;
        std::copy_n(buffered_rows_.data() + from * t, t, m_.row(v.target.space, address));
    });
}

void FastPath::split_pass(const PassPlan& plan, std::int64_t& saturated) {
    const int loop = plan.split;
    const std::int64_t unit = plan.split_unit, n = plan.args.n[loop], units = (n + unit - 1) / unit;
    const int parts = pool_.chunks(units);
    std::atomic<std::int64_t> sum{0};
    pool_.run(parts, [&](int, int part) {
        const std::int64_t from = units * part / parts * unit, to = std::min(n, units * (part + 1) / parts * unit);
        PassArgs mine = plan.args;
        mine.n[loop] = to - from;
        for (Rows* r : {&mine.a, &mine.b, &mine.c, &mine.d, &mine.target})
            if (r->data) r->advance(from * r->s[loop]);
        if (mine.tiled) {
            const std::int64_t tile = loop ? from * mine.tile_s[loop] : from / unit * mine.tile_s[1];
            mine.tiles = static_cast<std::uint8_t*>(mine.tiles) +
                         tile * m_.config.side * m_.config.side * m_.mantissas.octets();
            mine.exponents += tile;
        }
        // Masks hold on the last iteration of the whole loop only.
        for (int* mask : {&mine.row_mask_loop, &mine.lane_mask_loop})
            if (to != n && *mask == loop) *mask = MASK_NEVER;
        sum += plan.run(mine);
    });
    saturated += sum;
}

bool FastPath::stream_odd(const Loops& n, const RowStream& s) const {
    if (odd_count_[s.space] == 0) return false;
    const std::int64_t t = m_.config.side;
    bool odd = false;
    each(s.base, nest(n, s), [&](std::int64_t at, std::int64_t, std::int64_t) {
        const auto* const row = odd_[s.space].data() + (s.transposed ? at - at % t : at);
        for (std::int64_t r = 0; r < (s.transposed ? t : 1); ++r) odd |= row[r];
    });
    return odd;
}

bool FastPath::reads_odd(const Vector& v) const {
    return (v.uses(P0) && stream_odd(v.loops, v.p0)) || (v.uses(P1) && stream_odd(v.loops, v.p1));
}

void FastPath::mark(int space, std::int64_t first, std::int64_t rows) {
    const std::int64_t t = m_.config.side;
    if (odd_count_[space] == 0 && !kernels_.odd(m_.row(space, first), rows * t)) return;
    for (std::int64_t row = first; row < first + rows; ++row) {
        const std::uint8_t odd = kernels_.odd(m_.row(space, row), t);
        odd_count_[space] += odd - odd_[space][row];
        odd_[space][row] = odd;
    }
}

void FastPath::clear_odd(const Vector& v) {
    Nest written = nest(v.loops, v.target);
    if (v.reduce) written[0].n = WAYS;
    each(v.target.base, written, [&](std::int64_t address, std::int64_t, std::int64_t) {
        mark(static_cast<int>(v.target.space), address, 1);
    });
}

void FastPath::forget_forms(const Vector& v) {
    const Loops& n = v.loops;
    const Nest tiles{Loop{v.inner_tiles(m_.config.side), v.tile.s1}, Loop{n.n2, v.tile.s2}, Loop{n.n3, v.tile.s3},
                     Loop{1, 0}};
    each(v.tile.base, tiles, [&](std::int64_t tile, std::int64_t, std::int64_t) { made_[tile] = 0; });
}

void FastPath::written(const Vector& v) {
    if (!covered_ || v.op != OP_PASS) return;
    if (v.target.space != SPACE_NONE && v.target.space != SPACE_MASK) clear_odd(v);
    if (v.tile.enable) forget_forms(v);
}

void FastPath::written(const Load& l) {
    if (!covered_ || l.kind == MASKS) return;
    const std::int64_t rows = l.kind == BYTES ? 4 * l.rows : l.rows;
    for (std::int64_t n = 0; n < l.count; ++n) {
        const std::int64_t base = l.target + n * l.group_stride;
        if (l.kind == TILES) {
            for (std::int64_t r = 0; r < rows; ++r) made_[base + r * l.row_stride] = 0;
        } else if (l.row_stride == 1) {
            mark(SPACE_INBOX, base, rows);
        } else {
            for (std::int64_t r = 0; r < rows; ++r) mark(SPACE_INBOX, base + r * l.row_stride, 1);
        }
    }
}

void FastPath::written_by_host() {
    if (!covered_) return;
    for (int s = 1; s < SPACE_MASK; ++s) mark(s, 0, m_.depth[s]);
    std::fill(made_.begin(), made_.end(), 0);
}

std::int64_t FastPath::plan_octets() const {
    std::int64_t sum = octets(passes_) + octets(matrices_);
    for (const MatrixPlan& plan : matrices_) sum += octets(plan.left) + octets(plan.right);
    return sum;
}

std::int64_t FastPath::scratch_octets() const {
    std::int64_t sum = octets(random_rows_) + octets(buffered_rows_);
    for (const auto& rows : scratch_) sum += octets(rows);
    for (const auto& rows : odd_) sum += octets(rows);
    for (const Scratch& s : scratches_) sum += octets(s.exponents) + octets(s.clamped);
    return sum;
}

}  // namespace fpgrad
