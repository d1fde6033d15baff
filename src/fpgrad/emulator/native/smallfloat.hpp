// fpgrad.formats.smallfloat and fpgrad.formats.table on single codes, for formats of any width.
//
// A transliteration: names, order and integer widths follow the Python, which is the specification.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "config.hpp"

namespace fpgrad {

using Code = std::int64_t;

struct Rounded {
    Code code;
    bool over;
};

struct Float {
    int e, m;  // exponent and mantissa bits

    explicit Float(const Config& c) : e(c.float_exponent_bits), m(c.float_mantissa_bits) {}
    int width() const { return 1 + e + m; }
    Code bias() const { return (Code{1} << (e - 1)) - 1; }
    Code max_exponent() const { return (Code{1} << e) - 2; }
    Code max_code() const { return (max_exponent() << m) | ((Code{1} << m) - 1); }
    Code one() const { return bias() << m; }
    Code sign_bit() const { return Code{1} << (e + m); }

    Code sign(Code c) const { return (c >> (e + m)) & 1; }
    Code exponent(Code c) const { return (c >> m) & ((Code{1} << e) - 1); }
    Code significand(Code c) const {
        return exponent(c) > 0 ? (c & ((Code{1} << m) - 1)) | (Code{1} << m) : 0;
    }

    static Code round_shift(Code x, Code shift) {
        if (shift == 0) return x;
        const Code down = x >> shift, rest = x - (down << shift), half = Code{1} << (shift - 1);
        return down + (rest > half || (rest == half && (down & 1)));
    }

    Rounded compose(Code sign, Code magnitude, Code exponent) const {
        const Code length = std::bit_width(static_cast<std::uint64_t>(magnitude));
        const Code excess = length - (m + 1), true_exponent = exponent + excess;
        if (magnitude == 0 || true_exponent < 1) return {0, false};
        Code rounded = excess > 0 ? round_shift(magnitude, excess) : magnitude << -excess;
        const Code carry = rounded >> (m + 1), final_exponent = true_exponent + carry;
        if (carry > 0) rounded >>= 1;
        const bool over = final_exponent > max_exponent();
        const Code body = over ? max_code() : (final_exponent << m) | (rounded & ((Code{1} << m) - 1));
        return {body | (sign << (width() - 1)), over};
    }

    Rounded multiply(Code a, Code b) const {
        return compose(sign(a) ^ sign(b), significand(a) * significand(b), exponent(a) + exponent(b) - bias() - m);
    }

    Rounded add(Code a, Code b) const {
        Code s1 = sign(a), e1 = exponent(a), m1 = significand(a), s2 = sign(b), e2 = exponent(b), m2 = significand(b);
        if (e2 > e1 || (e2 == e1 && m2 > m1)) std::swap(s1, s2), std::swap(e1, e2), std::swap(m1, m2);
        const int guard = m + 4;
        const Code distance = std::min<Code>(e1 - e2, 2 * guard);
        const Code small = m2 << guard, shifted = small >> distance, large = m1 << guard;
        const Code sticky = (shifted << distance) != small;
        const Code total = (s1 == s2 ? large + shifted : large - shifted - sticky) | sticky;
        return compose(s1, total, e1 - guard);
    }

    Code order_key(Code c) const {
        const Code body = exponent(c) == 0 ? 0 : c & (sign_bit() - 1);
        return sign(c) ? -body : body;
    }

    Code negate(Code c) const { return exponent(c) == 0 ? 0 : c ^ sign_bit(); }
};

struct Lookup {
    Float f;
    const Table& table;
    int segments, index_bits, coefficient_bits;

    Lookup(const Config& c, int function)
        : f(c), table(c.tables[function]), segments(c.table_segments),
          index_bits(std::bit_width(static_cast<unsigned>(c.table_segments)) - 1),
          coefficient_bits(c.coefficient_bits) {}

    Code lookup(Code set, Code t) const {
        const Code index = set * segments + (t >> (15 - index_bits)), rest = t & ((1 << (15 - index_bits)) - 1);
        const auto i = static_cast<std::size_t>(index);
        return (table.base[i] << (15 - coefficient_bits)) + ((table.slope[i] * rest) >> (coefficient_bits - index_bits));
    }

    Code mantissa15(Code c) const {
        const Code fraction = f.significand(c) & ((Code{1} << f.m) - 1);
        return f.m <= 15 ? fraction << (15 - f.m) : fraction >> (f.m - 15);
    }

    Code fixed(Code c, int point) const {
        const Code shift = f.exponent(c) - f.bias() - f.m + point, significand = f.significand(c);
        if (shift > 24) return Code{1} << 40;
        if (shift >= 0) return std::min(significand << shift, Code{1} << 40);
        return significand >> std::min<Code>(-shift, 62);
    }

    Rounded evaluate(int function, Code c) const {
        const Code sign = f.sign(c), unbiased = f.exponent(c) - f.bias(), offset = f.bias() + f.m - 15;
        const bool zero = f.exponent(c) == 0;
        switch (function) {
        case NONE:
            return {c, false};
        case RELU:
            return {f.order_key(c) > 0 ? c : 0, false};
        case RECIPROCAL:
            if (zero) return {f.max_code() | (sign << (f.width() - 1)), true};
            return f.compose(sign, lookup(0, mantissa15(c)), offset - unbiased);
        case RSQRT:
            if (zero) return {f.max_code(), true};
            return f.compose(0, lookup(unbiased & 1, mantissa15(c)), offset - (unbiased >> 1));
        case LOG2: {
            const Code value = (unbiased << 15) + lookup(0, mantissa15(c));
            return f.compose(value < 0, value < 0 ? -value : value, offset);
        }
        case EXP2: {
            const Code magnitude = std::min(fixed(c, 15), Code{1} << 25), value = sign ? -magnitude : magnitude;
            return f.compose(0, lookup(0, value & 0x7FFF), offset + (value >> 15));
        }
        default: {
            const Code argument = fixed(c, 15 - (function == SIGMOID ? 3 : 2));
            Code y = argument >= 1 << 15 ? 1 << 15 : lookup(0, argument);
            if (function == TANH) return f.compose(sign, y, offset);
            if (sign) y = (1 << 15) - y;
            return f.compose(0, y, offset);
        }
        }
    }
};

}  // namespace fpgrad
