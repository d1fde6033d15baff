// Planning and running of vector passes by kernels. Tile products are in fast_matrix.cpp.
#include "fast.hpp"

#include <algorithm>
#include <bit>

#include "smallfloat.hpp"
#include "units.hpp"

namespace fpgrad {

namespace {

constexpr std::int64_t WAYS = 4;
// Fewer rows than this are not worth waking another thread.
constexpr std::int64_t ROWS_WORTH_A_THREAD = 512;

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
               std::int16_t* tile, std::int32_t* exponent) {
    *exponent = quantise_tile(*static_cast<const Exact*>(context)->config, rows, stride, n0, tile);
}

bool odd_word(Word w) {
    const Word exponent = w & 0x7F800000;
    return exponent == 0x7F800000 || (exponent == 0 && w != 0);
}

bool inside(std::int64_t base, const std::int64_t (&n)[3], const std::int64_t (&s)[3], std::int64_t depth) {
    std::int64_t low = base, high = base;
    for (int i = 0; i < 3; ++i) (s[i] < 0 ? low : high) += (n[i] - 1) * s[i];
    return low >= 0 && high < depth;
}

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
    for (int s = 1; s < SPACES; ++s) odd_[s].assign(m_.depth[s], 0);
    for (auto& row : constants_) row.assign(c.side, 0);
    std::fill(constants_[ONE].begin(), constants_[ONE].end(), 0x3F800000);
    for (auto& made : made_) made.assign(c.tiles, 0);
}

void FastPath::plan(const Program& program) {
    program_ = &program;
    passes_.clear(), matrices_.clear();
    for (const Vector& v : program.vector) passes_.push_back(covered_ ? plan_pass(v) : PassPlan{});
    for (const Matrix& i : program.matrix) matrices_.push_back(covered_ && plan_matrix(i));
}

PassPlan FastPath::plan_pass(const Vector& v) const {
    PassPlan plan;
    const Loops& n = v.loops;
    const std::int64_t t = m_.config.side;
    if (v.op != OP_PASS) return plan;
    for (const auto& [source, s] : {std::pair{P0, &v.p0}, std::pair{P1, &v.p1}})
        if (v.uses(source) && (s->space == SPACE_NONE ||
                               !inside(s->base, {n.n2, n.n1, n.n0}, {s->s2, s->s1, s->s0}, m_.depth[s->space])))
            return plan;
    if (v.function > RELU && m_.config.tables[v.function].base.empty()) return plan;
    if (v.reduce && (n.n0 < WAYS || v.function != NONE || v.d != ONE || v.row_mask.loop || v.lane_mask.loop))
        return plan;
    if (v.target.space != SPACE_NONE &&
        !inside(v.target.base, {n.n2, n.n1, v.reduce ? WAYS : n.n0}, {v.target.s2, v.target.s1, v.target.s0},
                m_.depth[v.target.space]))
        return plan;
    if (v.tile.enable && (v.reduce || n.n0 > t ||
                          !inside(v.tile.base, {n.n2, n.n1, 1}, {v.tile.s2, v.tile.s1, 0}, m_.config.tiles)))
        return plan;
    if (v.target.space == SPACE_NONE && n.n0 > t) return plan;  // the kernel's own buffer holds one tile

    PassArgs& p = plan.args;
    p.n2 = n.n2, p.n1 = n.n1, p.n0 = n.n0;
    // A factor of one is no product, a factor of zero is zero.
    int a = static_cast<int>(v.a), b = static_cast<int>(v.b);
    if (a == ONE) std::swap(a, b);
    if (a == ZERO || b == ZERO) a = ZERO, b = ONE;
    p.multiply = b != ONE;
    p.post_multiply = v.d != ONE;
    p.reduce = v.reduce;
    plan.sources[0] = a, plan.sources[1] = b, plan.sources[2] = static_cast<int>(v.c);
    plan.sources[3] = static_cast<int>(v.d);
    p.negate_product = v.negate_product ? 0x80000000 : 0, p.negate_c = v.negate_c ? 0x80000000 : 0;
    p.alu = static_cast<int>(v.alu), p.function = static_cast<int>(v.function);
    p.table = &tables_[v.function];
    p.row_mask_loop = static_cast<int>(v.row_mask.loop), p.lane_mask_loop = static_cast<int>(v.lane_mask.loop);
    p.row_limit = v.row_mask.limit, p.lane_limit = std::min(v.lane_mask.limit, t);
    p.tile_s2 = v.tile.s2, p.tile_s1 = v.tile.s1;
    p.mantissa_bits = m_.config.mantissa_bits;
    p.slow_row = slow_row, p.slow_tile = slow_tile;
    plan.ok = true;
    find_conflicts(v, plan);
    return plan;
}

// The reference reads every operand before it writes anything; a kernel writes row by row.
void FastPath::find_conflicts(const Vector& v, PassPlan& plan) const {
    const Loops& n = v.loops;
    plan.splittable = !v.reduce;
    if (v.tile.enable) {
        std::vector<std::uint8_t> seen(m_.config.tiles, 0);
        for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
                if (seen[v.tile.base + i2 * v.tile.s2 + i1 * v.tile.s1]++) plan.splittable = false;
    }
    if (v.target.space == SPACE_NONE) return;
    if (v.tile.enable && v.target.s0 == 0 && n.n0 > 1) plan.buffered = true;
    // The outer iteration and the row at which each address is first written, one up; 0: never.
    std::vector<std::int64_t> first(m_.depth[v.target.space], 0), outer(m_.depth[v.target.space], 0);
    const auto each = [&](auto f) {
        for (std::int64_t i2 = 0, row = 1; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
                for (std::int64_t i0 = 0; i0 < n.n0; ++i0, ++row) f(i2, i1, i0, row);
    };
    each([&](auto i2, auto i1, auto i0, auto row) {
        if (v.reduce && i0 < n.n0 - WAYS) return;
        const std::int64_t at =
            v.target.base + i2 * v.target.s2 + i1 * v.target.s1 + (v.reduce ? i0 % WAYS : i0) * v.target.s0;
        if (first[at] == 0) first[at] = row, outer[at] = i2 * n.n1 + i1;
        else if (outer[at] != i2 * n.n1 + i1) plan.splittable = false;
    });
    for (const auto& [source, s] : {std::pair{P0, &v.p0}, std::pair{P1, &v.p1}}) {
        if (!v.uses(source) || s->space != v.target.space || s->transposed) continue;
        each([&](auto i2, auto i1, auto i0, auto row) {
            const std::int64_t at = s->base + i2 * s->s2 + i1 * s->s1 + i0 * s->s0;
            if (first[at] == 0) return;
            if (first[at] < row) plan.buffered = true;
            if (outer[at] != i2 * n.n1 + i1) plan.splittable = false;
        });
    }
}

Rows FastPath::stream(const Loops& n, const RowStream& s, Buffer<Word>& scratch) const {
    const std::int64_t t = m_.config.side;
    Word* const memory = m_.rows[s.space].data();
    if (!s.transposed) return {memory + s.base * t, s.s2 * t, s.s1 * t, s.s0 * t};
    const bool aligned = (n.n2 == 1 || s.s2 % t == 0) && (n.n1 == 1 || s.s1 % t == 0);
    if (n.n0 > 1 && s.s0 == 1 && s.base % t + n.n0 <= t && aligned) {
        scratch.resize(n.n2 * n.n1 * t * t);
        Word* out = scratch.data();
        for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1, out += t * t)
                kernels_.transpose(t, t, memory + (s.base - s.base % t + i2 * s.s2 + i1 * s.s1) * t, t, out);
        return {scratch.data() + s.base % t * t, n.n1 * t * t, t * t, t};
    }
    scratch.resize(n.n2 * n.n1 * n.n0 * t);
    Word* out = scratch.data();
    for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
        for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
            for (std::int64_t i0 = 0; i0 < n.n0; ++i0) {
                const std::int64_t at = s.base + i2 * s.s2 + i1 * s.s1 + i0 * s.s0;
                const Word* column = memory + (at - at % t) * t + at % t;
                for (std::int64_t lane = 0; lane < t; ++lane) *out++ = column[lane * t];
            }
    return {scratch.data(), n.n1 * n.n0 * t, n.n0 * t, t};
}

bool FastPath::pass(std::size_t index, std::int64_t& saturated) {
    PassPlan& plan = passes_[index];
    const Vector& v = program_->vector[index];
    if (!plan.ok || reads_odd(v)) return false;
    const Loops& n = v.loops;
    const std::int64_t t = m_.config.side, rows = v.rows();
    const Rows by_row{nullptr, n.n1 * n.n0 * t, n.n0 * t, t};
    Rows streams[SOURCES];
    for (const auto& [source, i] : {std::pair{I0, &v.i0}, std::pair{I1, &v.i1}}) {
        if (!v.uses(source)) continue;
        const Word word = i->scalar ? m_.scalars[i->value] : static_cast<Word>(i->value << m_.config.word_shift());
        if (odd_word(word)) return false;
        std::fill(constants_[source].begin(), constants_[source].end(), word);
    }
    for (int source : {ZERO, ONE, I0, I1}) streams[source] = {constants_[source].data(), 0, 0, 0};
    if (v.uses(P0)) streams[P0] = stream(n, v.p0, scratch_[0]);
    if (v.uses(P1)) streams[P1] = stream(n, v.p1, scratch_[1]);
    if (v.uses(ACC)) {
        const Word* words;
        const std::uint8_t* over;
        m_.accumulated.pop(rows, words, over);
        std::int64_t sum = 0;
        for (std::int64_t r = 0; r < rows; ++r) sum += over[r];
        m_.saturated_accumulator += sum;
        streams[ACC] = by_row, streams[ACC].data = const_cast<Word*>(words);
    }
    if (v.uses(RANDOM)) {
        random_rows_.resize(rows * t);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t lane = 0; lane < t; ++lane) {
                Word& x = m_.random[lane];
                x ^= x << 13, x ^= x >> 17, x ^= x << 5;
                random_rows_[r * t + lane] = 0x3F800000 | x >> 17 << 8;
            }
        streams[RANDOM] = by_row, streams[RANDOM].data = random_rows_.data();
    }
    PassArgs& p = plan.args;
    p.a = streams[plan.sources[0]], p.b = streams[plan.sources[1]], p.c = streams[plan.sources[2]];
    p.d = streams[plan.sources[3]];
    p.target = {};
    if (v.target.space != SPACE_NONE) {
        if (plan.buffered) {
            buffered_rows_.resize(rows * t);
            p.target = by_row, p.target.data = buffered_rows_.data();
        } else {
            p.target = {m_.row(v.target.space, v.target.base), v.target.s2 * t, v.target.s1 * t, v.target.s0 * t};
        }
    }
    p.tiles = v.tile.enable ? m_.mantissas.data() + v.tile.base * t * t : nullptr;
    p.exponents = m_.exponents.data() + v.tile.base;
    const Exact exact{&m_.config, &v};
    p.context = &exact;
    if (plan.splittable && pool_.threads() > 1 && rows >= ROWS_WORTH_A_THREAD && n.n2 * n.n1 > 1)
        split_pass(p, saturated);
    else
        saturated += kernels_.pass(static_cast<int>(t), p);
    if (plan.buffered) {
        const std::int64_t kept = v.reduce ? WAYS : n.n0;
        for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
                for (std::int64_t i0 = n.n0 - kept; i0 < n.n0; ++i0) {
                    const std::int64_t way = v.reduce ? i0 % WAYS : i0;
                    std::copy_n(p.target.at(i2, i1, way), t,
                                m_.row(v.target.space, v.target.base + i2 * v.target.s2 + i1 * v.target.s1 +
                                                           way * v.target.s0));
                }
    }
    if (v.target.space != SPACE_NONE && odd_count_[v.target.space]) clear_odd(v);
    if (v.tile.enable)
        for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
                for (auto& made : made_) made[v.tile.base + i2 * v.tile.s2 + i1 * v.tile.s1] = 0;
    return true;
}

void FastPath::split_pass(const PassArgs& args, std::int64_t& saturated) {
    const bool outer = args.n2 > 1;
    const std::int64_t n = outer ? args.n2 : args.n1;
    const int parts = pool_.chunks(n);
    std::vector<std::int64_t> counts(parts, 0);
    pool_.run(parts, [&](int, int part) {
        const std::int64_t from = n * part / parts, to = n * (part + 1) / parts;
        PassArgs mine = args;
        (outer ? mine.n2 : mine.n1) = to - from;
        for (Rows* r : {&mine.a, &mine.b, &mine.c, &mine.d, &mine.target})
            if (r->data) r->data += from * (outer ? r->s2 : r->s1);
        if (mine.tiles) {
            const std::int64_t tile = from * (outer ? mine.tile_s2 : mine.tile_s1);
            mine.tiles += tile * m_.config.side * m_.config.side, mine.exponents += tile;
        }
        // Masks hold on the last iteration of the whole loop only.
        if (to != n) {
            const int loop = outer ? 2 : 1;
            if (mine.row_mask_loop == loop) mine.row_mask_loop = 0;
            if (mine.lane_mask_loop == loop) mine.lane_mask_loop = 0;
        }
        counts[part] = kernels_.pass(m_.config.side, mine);
    });
    for (std::int64_t count : counts) saturated += count;
}

bool FastPath::stream_odd(const Loops& n, const RowStream& s) const {
    if (odd_count_[s.space] == 0) return false;
    const std::int64_t t = m_.config.side;
    for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
        for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
            for (std::int64_t i0 = 0; i0 < n.n0; ++i0) {
                std::int64_t at = s.base + i2 * s.s2 + i1 * s.s1 + i0 * s.s0;
                if (s.transposed) {
                    at -= at % t;
                    for (std::int64_t row = 0; row < t; ++row)
                        if (odd_[s.space][at + row]) return true;
                } else if (odd_[s.space][at]) {
                    return true;
                }
            }
    return false;
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
    const Loops& n = v.loops;
    for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
        for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
            for (std::int64_t i0 = 0; i0 < (v.reduce ? WAYS : n.n0); ++i0)
                mark(static_cast<int>(v.target.space),
                     v.target.base + i2 * v.target.s2 + i1 * v.target.s1 + i0 * v.target.s0, 1);
}

void FastPath::written(const Vector& v) {
    if (!covered_ || v.op != OP_PASS) return;
    if (v.target.space != SPACE_NONE) clear_odd(v);
    if (v.tile.enable)
        for (auto& made : made_) std::fill(made.begin(), made.end(), 0);
}

void FastPath::written(const Load& l) {
    if (covered_) mark(SPACE_INBOX, l.inbox, l.count * l.rows);
}

void FastPath::written_by_host() {
    if (!covered_) return;
    for (int s = 1; s < SPACES; ++s) mark(s, 0, m_.depth[s]);
    for (auto& made : made_) std::fill(made.begin(), made.end(), 0);
}

}  // namespace fpgrad
