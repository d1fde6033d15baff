// The vector unit by integer arithmetic on codes, for any format: reference/vector.py.
#include <algorithm>

#include "smallfloat.hpp"
#include "units.hpp"

namespace fpgrad {

namespace {

struct Index {
    std::int64_t i3, i2, i1, i0;
};

template <class F> void each(const Loops& n, F f) {
    std::int64_t row = 0;
    for (std::int64_t i3 = 0; i3 < n.n3; ++i3)
        for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
            for (std::int64_t i1 = 0; i1 < n.n1; ++i1)
                for (std::int64_t i0 = 0; i0 < n.n0; ++i0) f(row++, Index{i3, i2, i1, i0});
}

template <class S> std::int64_t address(const S& s, const Index& i) {
    return s.base + i.i3 * s.s3 + i.i2 * s.s2 + i.i1 * s.s1 + i.i0 * s.s0;
}

template <class S> void check_rows(const Machine& m, const Loops& n, const S& s) {
    if (s.space == SPACE_NONE) throw Fault("an operand reads a memory stream whose space is NONE");
    rows_extent(n, s).check(space_name(s.space), m.depth[s.space]);
}

bool masked(const Mask& mask, const Loops& n, std::int64_t index, const Index& i) {
    if (mask.loop == 0) return false;
    const bool last = mask.loop == 1 ? i.i1 == n.n1 - 1 : mask.loop == 2 ? i.i2 == n.n2 - 1 : i.i3 == n.n3 - 1;
    return last && index >= mask.limit;
}

// A whole pass: every operand is read before anything is written, as the reference does.
class Pass {
  public:
    Pass(Machine& m, const Vector& v)
        : m_(m), v_(v), f_(m.config), lookup_(m.config, static_cast<int>(v.function)), t_(m.config.side),
          shift_(m.config.word_shift()) {}

    void run(std::int64_t& saturated) {
        check();
        const std::int64_t rows = v_.rows();
        if (v_.uses(ACC)) {
            const std::uint8_t* over;
            m_.accumulated.pop(rows, acc_, over);
            for (std::int64_t r = 0; r < rows; ++r) m_.saturated_accumulator += over[r];
        }
        constants_[ZERO] = 0, constants_[ONE] = f_.one();
        constants_[I0] = immediate(v_.i0, v_.uses(I0)), constants_[I1] = immediate(v_.i1, v_.uses(I1));
        raw_.resize(static_cast<std::size_t>(v_.reduce ? m_.config.ways * t_ : 0));
        result_.resize(static_cast<std::size_t>(rows * t_));
        each(v_.loops, [&](std::int64_t row, const Index& i) { compute(row, i, saturated); });
        if (v_.target.space != SPACE_NONE) write_rows();
        if (v_.tile.enable) write_tiles();
    }

  private:
    void check() const {
        const Loops& n = v_.loops;
        const int ways = m_.config.ways;
        if (v_.reduce && n.n0 < ways)
            throw Fault("a reducing pass needs n0 of at least " + std::to_string(ways) + ", not " +
                        std::to_string(n.n0));
        if (v_.uses(P0)) check_rows(m_, n, v_.p0);
        if (v_.uses(P1)) check_rows(m_, n, v_.p1);
        if (v_.function > RELU && lookup_.table.base.empty())
            throw Fault("the machine has no table for function " + std::to_string(v_.function));
        if (v_.tile.enable && ((n.n0 > t_ && !v_.tile.flow) || v_.reduce))
            throw Fault("a quantising pass needs n0 of at most " + std::to_string(t_) +
                        " and must not reduce; n0 is " + std::to_string(n.n0));
        if (v_.target.space != SPACE_NONE && !v_.reduce) check_rows(m_, n, v_.target);
        if (v_.target.space != SPACE_NONE && v_.reduce) check_rows(m_, {n.n3, n.n2, n.n1, ways}, v_.target);
        if (v_.tile.enable) tiles_extent(v_, t_).check("tile", m_.config.tiles);
    }

    Code immediate(const Immediate& i, bool used) const {
        if (!used || !i.scalar) return i.value;
        return m_.scalars[static_cast<std::size_t>(i.value)] >> shift_;
    }

    Code memory(const RowStream& s, const Index& i, std::int64_t lane) const {
        std::int64_t at = address(s, i);
        if (s.transposed) {
            const std::int64_t column = at % t_;
            at += lane - column, lane = column;
        }
        return m_.word(s.space, at, lane) >> shift_;
    }

    Code operand(std::int64_t source, std::int64_t row, const Index& i, std::int64_t lane) const {
        switch (source) {
        case P0: return memory(v_.p0, i, lane);
        case P1: return memory(v_.p1, i, lane);
        case ACC: return acc_[row * t_ + lane] >> shift_;
        case RANDOM: return f_.one() | (m_.random[lane] >> (32 - f_.m));
        default: return constants_[source];
        }
    }

    void compute(std::int64_t row, const Index& i, std::int64_t& saturated) {
        if (v_.uses(RANDOM))
            for (Word& x : m_.random) x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        const std::int64_t way = i.i0 % m_.config.ways * t_;
        for (std::int64_t lane = 0; lane < t_; ++lane) {
            Rounded y = f_.multiply(operand(v_.a, row, i, lane), operand(v_.b, row, i, lane));
            bool over = y.over;
            if (v_.negate_product) y.code = f_.negate(y.code);
            const bool first = v_.reduce && i.i0 < m_.config.ways;
            if (!first) {
                Code c = v_.reduce ? raw_[way + lane] : operand(v_.c, row, i, lane);
                if (v_.negate_c) c = f_.negate(c);
                y = combine(f_, v_.alu, y.code, c);
                over |= y.over;
            }
            if (v_.reduce) raw_[way + lane] = y.code;
            y = lookup_.evaluate(static_cast<int>(v_.function), y.code);
            over |= y.over;
            if (v_.d != ONE) {
                y = f_.multiply(y.code, operand(v_.d, row, i, lane));
                over |= y.over;
            }
            const bool dropped = masked(v_.row_mask, v_.loops, i.i0, i) || masked(v_.lane_mask, v_.loops, lane, i);
            saturated += over && !dropped;
            result_[row * t_ + lane] = dropped ? 0 : static_cast<Word>(y.code << shift_);
        }
    }

    void write_rows() {
        const std::int64_t ways = v_.reduce ? m_.config.ways : 0;
        each(v_.loops, [&](std::int64_t row, Index i) {
            if (ways && i.i0 < v_.loops.n0 - ways) return;
            if (ways) i.i0 %= ways;
            const Word* const in = result_.data() + row * t_;
            const std::int64_t at = address(v_.target, i);
            if (v_.target.space != SPACE_MASK) {
                std::copy_n(in, t_, m_.row(v_.target.space, at));
                return;
            }
            for (std::int64_t lane = 0; lane < t_; ++lane)
                m_.set_mask(at, lane, f_.order_key(in[lane] >> shift_) > 0);
        });
    }

    void write_tiles() {
        const Loops& n = v_.loops;
        const std::int64_t tiles = v_.inner_tiles(t_), length = v_.tile.flow ? n.n1 * n.n0 : n.n0;
        const Word* in = result_.data();
        for (std::int64_t i3 = 0; i3 < n.n3; ++i3)
            for (std::int64_t i2 = 0; i2 < n.n2; ++i2)
                for (std::int64_t i1 = 0; i1 < tiles; ++i1) {
                    const std::int64_t tile = v_.tile.base + i3 * v_.tile.s3 + i2 * v_.tile.s2 + i1 * v_.tile.s1;
                    const std::int64_t rows = v_.tile.flow ? std::min(t_, length - i1 * t_) : length;
                    m_.exponents[tile] = quantise_tile(m_.config, in, t_, rows, m_.mantissas.at(tile * t_ * t_));
                    in += rows * t_;
                }
    }

    Machine& m_;
    const Vector& v_;
    const Float f_;
    const Lookup lookup_;
    const std::int64_t t_;
    const int shift_;
    const Word* acc_ = nullptr;
    Code constants_[SOURCES] = {};
    std::vector<Code> raw_;  // a reducing pass's last results
    std::vector<Word> result_;
};

}  // namespace

Rounded combine(const Float& f, std::int64_t alu, Code p, Code c) {
    const Code kp = f.order_key(p), kc = f.order_key(c);
    switch (alu) {
    case ALU_ADD: return f.add(p, c);
    case ALU_MAX: return {kp >= kc ? p : c, false};
    case ALU_MIN: return {kp <= kc ? p : c, false};
    case ALU_GT: return {kp > kc ? f.one() : 0, false};
    case ALU_GE: return {kp >= kc ? f.one() : 0, false};
    case ALU_EQ: return {kp == kc ? f.one() : 0, false};
    case ALU_GATE: return {kc > 0 ? p : 0, false};
    default: return {p, false};
    }
}

std::int32_t quantise_tile(const Config& config, const Word* in, std::int64_t stride, std::int64_t n0, void* out) {
    const Float f(config);
    const std::int64_t t = config.side, limit = config.tile_limit();
    const int word = config.word_shift();
    Code top = 0;
    for (std::int64_t r = 0; r < n0; ++r)
        for (std::int64_t lane = 0; lane < t; ++lane) top = std::max(top, f.exponent(in[r * stride + lane] >> word));
    for (std::int64_t r = 0; r < t; ++r)
        for (std::int64_t lane = 0; lane < t; ++lane) {
            const Code c = r < n0 ? in[r * stride + lane] >> word : 0;
            Code shift = f.m - (config.mantissa_bits - 2) + top - f.exponent(c);
            const Code left = std::max<Code>(-shift, 0);
            shift = std::clamp<Code>(shift, 0, 50);
            const Code magnitude = std::min(Float::round_shift(f.significand(c), shift) << left, limit);
            const Code mantissa = f.sign(c) ? -magnitude : magnitude;
            if (config.narrow())
                static_cast<std::int8_t*>(out)[r * t + lane] = static_cast<std::int8_t>(mantissa);
            else
                static_cast<std::int16_t*>(out)[r * t + lane] = static_cast<std::int16_t>(mantissa);
        }
    return static_cast<std::int32_t>(top);
}

void run_vector(Machine& m, const Vector& v, std::int64_t& saturated) {
    if (v.op == OP_PASS) {
        Pass(m, v).run(saturated);
        return;
    }
    check_rows(m, {1, 1, 1, 1}, v.p0);
    if (v.p0.space == SPACE_MASK) throw Fault("SCALARS and SEED take a row of numbers, not of masks");
    const Word* row = m.row(v.p0.space, v.p0.base);
    for (int lane = 0; lane < m.config.side; ++lane) {
        if (v.op == OP_SCALARS)
            m.scalars[lane] = row[lane];
        else
            m.random[lane] = row[lane] | 1;
    }
}

}  // namespace fpgrad
