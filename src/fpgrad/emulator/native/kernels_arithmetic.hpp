// Arithmetic of one level, on vectors of fp24: included by kernels_impl.hpp inside its namespace.
#pragma once

constexpr std::int32_t SIGN = INT32_MIN, ABS = INT32_MAX;
// Results of this magnitude and above go the exact way: rounding could reach the all-ones exponent.
constexpr std::int32_t HIGH = 0x7F7FFF00;
// Non-zero products below 2**-117 too: their errors could be subnormal, and rounding hides which are tiny.
constexpr std::int32_t LOW = 0x05000000;

template <int N> struct Arithmetic : Simd<N> {
    using S = Simd<N>;
    using I = typename S::I;
    using F = typename S::F;

    // What operations need at hand. GCC would make such constants anew in every row.
    struct Constants {
#if defined(__AVX512F__)
        I abs = S::splat(ABS), cut = S::splat(~0xFF), tie = S::splat(0x100), half = S::splat(0x7F);
        I more = S::splat(0x80), unit = S::splat(1), tiny = S::splat(0x007FFFFF), high = S::splat(HIGH);
        I low = S::splat(LOW - 1), all = S::splat(-1);
        Constants() {
            if constexpr (N == 16)
                asm("" : "+v"(abs), "+v"(cut), "+v"(tie), "+v"(half), "+v"(more), "+v"(unit), "+v"(tiny), "+v"(high),
                    "+v"(low), "+v"(all));
        }
#endif
    };

    // The extremes of the magnitudes in a row, from which one comparison tells whether it must go the exact way.
    struct Range {
        I high = {}, low = ~I{};  // largest, and (unsigned) smallest less one, so that zero is the largest
        void add(I magnitude) { high = S::larger(high, magnitude); }
        void add_product(I magnitude, I less) {  // less: the magnitude less one
            add(magnitude);
            low = S::smaller_unsigned(low, less);
        }
        void exclude(I lanes) { high |= lanes & ABS; }
        bool bad(const Constants& c) const {
#if defined(__AVX512F__)
            if constexpr (N == 16)
                return (_mm512_cmpgt_epi32_mask((__m512i)high, (__m512i)c.high) |
                        _mm512_cmplt_epu32_mask((__m512i)low, (__m512i)c.low)) != 0;
#endif
            (void)c;
            return S::any((high > HIGH) | (I)((typename S::U)low < (typename S::U)S::splat(LOW - 1)));
        }
    };

    // f + e rounded to 16 bits, ties to even, where |e| is at most half a unit of f's last of 24 bits.
    static I round(F f, F e) {
        const I x = (I)f, odd = x >> 8, towards = (I)((typename S::U)(x ^ (I)e) >> 31);
        return (x + 0x80 - ((I)(e == 0) ? ~odd & 1 : towards)) & ~0xFF;
    }
#if defined(__AVX512F__)
    // The magnitude rounded towards zero, made odd when that is not exact: what it was is then known after rounding to
    // fewer bits. From the result rounded up and down.
    static I odd(__m512 above, __m512 below, const Constants& c) {
        const __m512i cut = _mm512_maskz_min_epu32(0xFFFF, (__m512i)above, (__m512i)below);
        return (I)_mm512_mask_or_epi32(cut, _mm512_cmp_ps_mask(above, below, _CMP_NEQ_OQ), cut, (__m512i)c.unit);
    }
    // An odd one rounded to 16 bits, ties to even; zero where `keep` is not.
    static F round_odd(I x, __mmask16 keep, const Constants& c) {
        const __mmask16 up = _mm512_test_epi32_mask((__m512i)x, (__m512i)c.tie);
        const __m512i sum = (__m512i)(x + (I)_mm512_mask_blend_epi32(up, (__m512i)c.half, (__m512i)c.more));
        return (F)_mm512_maskz_and_epi32(keep, sum, (__m512i)c.cut);
    }
    static constexpr int UP = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
    static constexpr int DOWN = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
#endif
    static F multiply(F a, F b, Range& range, const Constants& c) {
#if defined(__AVX512F__)
        if constexpr (N == 16) {
            const I x = odd(_mm512_maskz_mul_round_ps(0xFFFF, (__m512)a, (__m512)b, UP),
                            _mm512_maskz_mul_round_ps(0xFFFF, (__m512)a, (__m512)b, DOWN), c);
            const I magnitude = x & c.abs;
            range.add_product(magnitude, magnitude + c.all);
            return round_odd(x, 0xFFFF, c);
        }
#endif
        (void)c;
        const F f = a * b;
        const I magnitude = (I)f & ABS;
        range.add_product(magnitude, magnitude - 1);
        return (F)round(f, S::product_error(a, b, f));
    }
    static F add(F a, F b, Range& range, const Constants& c) {
#if defined(__AVX512F__)
        if constexpr (N == 16) {
            const I x = odd(_mm512_maskz_add_round_ps(0xFFFF, (__m512)a, (__m512)b, UP),
                            _mm512_maskz_add_round_ps(0xFFFF, (__m512)a, (__m512)b, DOWN), c);
            const I magnitude = x & c.abs;
            range.add(magnitude);
            return round_odd(x, _mm512_cmpgt_epi32_mask((__m512i)magnitude, (__m512i)c.tiny), c);
        }
#endif
        (void)c;
        const F f = a + b, z = f - a, e = (a - (f - z)) + (b - z);
        const I magnitude = (I)f & ABS;
        range.add(magnitude);
        return (F)(round(f, e) & (magnitude > 0x007FFFFF));
    }
    static F one() { return F{} + 1.0f; }
    // x where it is positive, else 0.
    static F relu(F x) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return (F)_mm512_maskz_max_ps(0xFFFF, (__m512)x, _mm512_setzero_ps());
#endif
        return (F)((I)x & (I)(x > 0));
    }

    template <int ALU> static F combine(F p, F c, Range& range, const Constants& constants) {
        if constexpr (ALU == ALU_ADD) return add(p, c, range, constants);
        if constexpr (ALU == ALU_MAX) return p >= c ? p : c;
        if constexpr (ALU == ALU_MIN) return p <= c ? p : c;
        if constexpr (ALU == ALU_GT) return (F)((I)one() & (I)(p > c));
        if constexpr (ALU == ALU_GE) return (F)((I)one() & (I)(p >= c));
        if constexpr (ALU == ALU_EQ) return (F)((I)one() & (I)(p == c));
        if constexpr (ALU == ALU_GATE) return (F)((I)p & (I)(c > 0));
        return p;
    }

    static std::int32_t largest_lane(I x) {
        std::int32_t lanes[N];
        S::store(lanes, x);
        std::int32_t largest = lanes[0];
        for (int i = 1; i < N; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
        return largest;
    }

    static I lookup(const FastTable& t, I set, I argument) {
        const I entry = S::gather(t.entries, set * t.segments + (argument >> t.index_shift), t.size);
        const I base = (I)(((typename Simd<N>::U)entry) >> 16), slope = (entry << 16) >> 16;
        return (base << t.base_shift) + ((slope * (argument & ((1 << t.index_shift) - 1))) >> t.slope_shift);
    }
    // y * 2**(power - 15) for integers y of at most 16 bits; flushed to zero, excluded when too large.
    static F scaled(I y, I power, Range& range) {
        const I x = (I)S::to_float(y), exponent = (x >> 23) + power - 15;
        range.exclude((exponent > 254) & (y != 0));
        return (F)((x + ((power - 15) << 23)) & (exponent >= 1) & (y != 0));
    }
    static F evaluate(int function, const FastTable& t, F value, Range& range) {
        const I x = (I)value, unbiased = ((x >> 23) & 0xFF) - 127, fraction = (x >> 8) & 0x7FFF;
        const F magnitude = (F)(x & ABS);
        const I negative = x >> 31, none = {};
        const F limit = F{} + 33554432.0f;
        switch (function) {
        case RECIPROCAL:
            range.exclude((x & ABS) == 0);
            return (F)((I)scaled(lookup(t, none, fraction), -unbiased, range) | 0) * (F)((x & SIGN) | (I)one());
        case RSQRT:
            range.exclude((x & ABS) == 0);
            return scaled(lookup(t, unbiased & 1, fraction), -(unbiased >> 1), range);
        case LOG2: {
            const F fixed = S::to_float((unbiased << 15) + lookup(t, none, fraction));
            return (F)round(fixed, F{}) * (F{} + 0x1p-15f);
        }
        case EXP2: {
            const F scaled_up = magnitude * 32768.0f;
            const I whole = S::to_int(scaled_up < limit ? scaled_up : limit), fixed = (whole ^ negative) - negative;
            return scaled(lookup(t, none, fixed & 0x7FFF), fixed >> 15, range);
        }
        default: {
            const F scaled_up = magnitude * (function == SIGMOID ? 4096.0f : 8192.0f);
            const I argument = S::to_int(scaled_up < limit ? scaled_up : limit);
            const I inside = argument < 0x8000;
            I y = inside ? lookup(t, none, argument & 0x7FFF) : S::splat(0x8000);
            if (function != TANH) y = negative ? 0x8000 - y : y;
            const F result = S::to_float(y) * (F{} + 0x1p-15f);
            return function == TANH ? (F)((I)result | (x & SIGN & (I)(y != 0))) : result;
        }
        }
    }
};
