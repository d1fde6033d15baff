// Vector passes of one level: included by kernels_impl.hpp inside its namespace.
#pragma once

constexpr std::int32_t SIGN = INT32_MIN, ABS = INT32_MAX;
// Results of this magnitude and above go the exact way: rounding could reach the all-ones exponent.
constexpr std::int32_t HIGH = 0x7F7FFF00;
// Non-zero products below 2**-117 too: their errors could be subnormal, and rounding hides which are tiny.
constexpr std::int32_t LOW = 0x05000000;
// Rows of bits that are made into rows of words before a pass goes on: they stay in the first cache.
constexpr int BITS_AT_ONCE = 32;

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

// All passes for tiles of side T, in vectors of N lanes.
template <int T, int N, bool MULTIPLY, int ALU, bool TABLED, bool POST> struct Pass {
    using A = Arithmetic<N>;
    using I = typename A::I;
    using F = typename A::F;
    static constexpr int V = T / N;

    static constexpr int OCTETS = (T + 7) / 8;  // of a row of bits

    // Rows as words: where they are, or in `room` where they are rows of bits.
    struct Stream {
        const std::uint32_t* at;
        std::int64_t stride;
    };
    static Stream stream(const Rows& r, const std::int64_t (&i)[LOOPS], std::int64_t count, std::uint32_t* room) {
        const std::int64_t first = r.offset(i[3], i[2], i[1], i[0]);
        if (!r.bits) return {r.words(first), r.s[0]};
        for (std::int64_t row = 0; row < count; ++row) load_bits(r.octets(first + row * r.s[0]), room + row * T);
        return {room, T};
    }
    static void load_bits(const std::uint8_t* from, std::uint32_t* row) {
        std::uint32_t bits = 0;
        __builtin_memcpy(&bits, from, OCTETS);
        for (int v = 0; v < V; ++v) A::store(row + v * N, A::where(bits >> v * N, (I)A::one()));
    }
    static void store_bits(std::uint8_t* to, const I (&result)[V]) {
        std::uint32_t bits = 0;
        for (int v = 0; v < V; ++v) bits |= A::bits((I)((F)result[v] > 0)) << v * N;
        __builtin_memcpy(to, &bits, OCTETS);
    }

    static bool masked(int loop, std::int64_t (&i)[LOOPS], const PassArgs& p) {
        return loop >= 0 ? i[loop] == p.n[loop] - 1 : loop == MASK_ALWAYS;
    }

    static std::int64_t plain(const PassArgs& p) {
        std::int64_t saturated = 0;
        alignas(64) std::uint32_t tile_rows[T * T];
        const typename A::Constants constants;
        std::int64_t i[LOOPS] = {};
        for (i[3] = 0; i[3] < p.n[3]; ++i[3])
            for (i[2] = 0; i[2] < p.n[2]; ++i[2]) {
                std::int64_t tile = i[3] * p.tile_s[3] + i[2] * p.tile_s[2], filled = 0;
                I largest = {};
                const auto finish = [&] {
                    quantise(p, tile_rows, filled, largest, tile);
                    tile += p.tile_s[1], filled = 0, largest = I{};
                };
                for (i[1] = 0; i[1] < p.n[1]; ++i[1]) {
                    const bool lanes_masked = masked(p.lane_mask_loop, i, p);
                    const std::int64_t live =
                        masked(p.row_mask_loop, i, p) && p.row_limit < p.n[0] ? p.row_limit : p.n[0];
                    for (std::int64_t i0 = 0; i0 < p.n[0];) {
                        const bool dead = i0 >= live;
                        std::int64_t count = (dead ? p.n[0] : live) - i0;
                        if (p.tiled && count > T - filled) count = T - filled;
                        if (p.bits && count > BITS_AT_ONCE) count = BITS_AT_ONCE;
                        std::uint32_t* const keep = tile_rows + filled * T;
                        i[0] = i0;
                        if (dead)
                            zero(p, i, count, keep);
                        else
                            saturated += rows(p, i, count, lanes_masked ? p.lane_limit : T, keep, largest, constants);
                        i0 += count;
                        if (!p.tiled) continue;
                        filled += count;
                        if (filled == T) finish();
                    }
                    if (p.tiled && !p.flow && filled) finish();
                }
                if (p.tiled && filled) finish();
            }
        return saturated;
    }

    // Rows from i on along the innermost loop, lanes from a limit on zero, to the target and, when tiles are written,
    // to `keep`.
    static std::int64_t rows(const PassArgs& p, const std::int64_t (&i)[LOOPS], std::int64_t count,
                             std::int64_t lane_limit, std::uint32_t* keep, I& largest,
                             const typename A::Constants& constants) {
        std::int64_t saturated = 0;
        alignas(64) std::uint32_t nowhere[T];
        const I np = A::splat(static_cast<std::int32_t>(p.negate_product));
        const I nc = A::splat(static_cast<std::int32_t>(p.negate_c));
        const bool relu = p.function == RELU;
        alignas(64) std::uint32_t room[4][BITS_AT_ONCE * T];
        const Stream read[4] = {stream(p.a, i, count, room[0]), stream(p.b, i, count, room[1]),
                                stream(p.c, i, count, room[2]), stream(p.d, i, count, room[3])};
        const std::uint32_t *a = read[0].at, *b = read[1].at, *c = read[2].at, *d = read[3].at;
        const std::int64_t as = read[0].stride, bs = read[1].stride, cs = read[2].stride, ds = read[3].stride;
        const bool tiled = p.tiled, to_mask = p.target.bits;
        const std::int64_t first = p.target.offset(i[3], i[2], i[1], i[0]);
        const bool to_words = p.target.data && !to_mask;
        std::uint32_t* out = to_words ? p.target.words(first) : nowhere;
        std::uint8_t* out_bits = p.target.octets(to_mask ? first : 0);
        const std::int64_t stride = to_words ? p.target.s[0] : 0, bits_stride = to_mask ? p.target.s[0] : 0;
        I kept[V], most = largest;
        for (int v = 0; v < V; ++v) kept[v] = A::splat(-1);
        if (lane_limit < T) {
            alignas(64) std::int32_t mask[T];
            for (int x = 0; x < T; ++x) mask[x] = x < lane_limit ? -1 : 0;
            for (int v = 0; v < V; ++v) kept[v] = A::load(mask + v * N);
        }
        for (std::int64_t row = 0; row < count; ++row) {
            typename A::Range range;
            I result[V];
            for (int v = 0; v < V; ++v) {
                F x = (F)A::load(a + v * N);
                if constexpr (MULTIPLY) x = A::multiply(x, (F)A::load(b + v * N), range, constants);
                x = (F)((I)x ^ np);
                if constexpr (ALU != ALU_PASS)
                    x = A::template combine<ALU>(x, (F)(A::load(c + v * N) ^ nc), range, constants);
                if constexpr (TABLED) {
                    x = A::evaluate(p.function, *p.table, x, range);
                } else if (relu) {
                    x = A::relu(x);
                }
                if constexpr (POST) x = A::multiply(x, (F)A::load(d + v * N), range, constants);
                result[v] = (I)(x + 0.0f) & kept[v];
            }
            if (__builtin_expect(range.bad(constants), 0)) {
                alignas(64) std::uint32_t exact[T];
                saturated += p.slow_row(p.context, a, b, c, d, false, lane_limit, exact);
                for (int v = 0; v < V; ++v) result[v] = A::load(exact + v * N) & kept[v];
            }
            for (int v = 0; v < V; ++v) {
                if (tiled) {
                    A::store(keep + v * N, result[v]);
                    most = A::larger(most, result[v] & ABS);
                }
                A::store(out + v * N, result[v]);
            }
            if (to_mask) store_bits(out_bits, result);
            a += as, b += bs, c += cs, d += ds, out += stride, out_bits += bits_stride, keep += T;
        }
        largest = most;
        return saturated;
    }

    static void zero(const PassArgs& p, const std::int64_t (&i)[LOOPS], std::int64_t count, std::uint32_t* keep) {
        const std::int64_t first = p.target.offset(i[3], i[2], i[1], i[0]);
        for (std::int64_t row = 0; row < count; ++row) {
            const std::int64_t at = first + row * p.target.s[0];
            const I nothing[V] = {};
            if (p.target.bits) store_bits(p.target.octets(at), nothing);
            for (int v = 0; v < V; ++v) {
                if (p.target.data && !p.target.bits) A::store(p.target.words(at) + v * N, I{});
                if (p.tiled) A::store(keep + row * T + v * N, I{});
            }
        }
    }

    // `count` rows, and zeros up to T of them, to a tile.
    static void quantise(const PassArgs& p, const std::uint32_t* in, std::int64_t count, I largest, std::int64_t tile) {
        if (p.narrow)
            quantise_to<typename A::LooseB, typename A::B, std::int8_t>(p, in, count, largest, tile);
        else
            quantise_to<typename A::LooseH, typename A::H, std::int16_t>(p, in, count, largest, tile);
    }
    template <class Loose, class Short, class M>
    static void quantise_to(const PassArgs& p, const std::uint32_t* in, std::int64_t count, I largest,
                            std::int64_t number) {
        M* const tile = static_cast<M*>(p.tiles) + number * T * T;
        std::int32_t* const exponent = p.exponents + number;
        const std::int32_t top = A::largest_lane(largest) >> 23;
        const std::int32_t field = 252 + p.mantissa_bits - top;  // of 2**(mantissa_bits - 2 - (top - 127))
        *exponent = top;
        if (top == 0) {
            __builtin_memset(tile, 0, T * T * sizeof *tile);
            return;
        }
        if (field > 254) {
            p.slow_tile(p.context, in, T, count, tile, exponent);
            return;
        }
        const F scale = (F)A::splat(field << 23), magic = F{} + 12582912.0f;
        const I limit = A::splat((1 << (p.mantissa_bits - 1)) - 1);
        for (std::int64_t x = 0; x < count * T; x += N) {
            // Adding 1.5 * 2**23 rounds to an integer, ties to even.
            I m = (I)((F)A::load(in + x) * scale + magic) - 0x4B400000;
            m = m > limit ? limit : m;
            m = m < -limit ? -limit : m;
            *reinterpret_cast<Loose*>(tile + x) = __builtin_convertvector(m, Short);
        }
        __builtin_memset(tile + count * T, 0, (T - count) * T * sizeof *tile);
    }

    // Reducing passes: no function, no masks, no operand d (the others go the exact way).
    static std::int64_t reduce(const PassArgs& p) {
        constexpr int WAYS = 4;
        std::int64_t saturated = 0;
        const I np = A::splat(static_cast<std::int32_t>(p.negate_product));
        const I nc = A::splat(static_cast<std::int32_t>(p.negate_c));
        alignas(64) std::uint32_t ring[WAYS][T];
        for (std::int64_t i3 = 0; i3 < p.n[3]; ++i3)
            for (std::int64_t i2 = 0; i2 < p.n[2]; ++i2)
                for (std::int64_t i1 = 0; i1 < p.n[1]; ++i1) {
                    const typename A::Constants constants;
                    const std::int64_t first_a = p.a.offset(i3, i2, i1, 0), first_b = p.b.offset(i3, i2, i1, 0);
                    alignas(64) std::uint32_t room[2][T];
                    for (std::int64_t i0 = 0; i0 < p.n[0]; ++i0) {
                        const std::int64_t at_a = first_a + i0 * p.a.s[0], at_b = first_b + i0 * p.b.s[0];
                        const std::uint32_t *a = room[0], *b = room[1];
                        p.a.bits ? load_bits(p.a.octets(at_a), room[0]) : (void)(a = p.a.words(at_a));
                        p.b.bits ? load_bits(p.b.octets(at_b), room[1]) : (void)(b = p.b.words(at_b));
                        std::uint32_t* const way = ring[i0 % WAYS];
                        const bool first = i0 < WAYS;
                        typename A::Range range;
                        I result[V];
                        for (int v = 0; v < V; ++v) {
                            F x = (F)A::load(a + v * N);
                            if constexpr (MULTIPLY) x = A::multiply(x, (F)A::load(b + v * N), range, constants);
                            x = (F)((I)x ^ np);
                            if (!first)
                                x = A::template combine<ALU>(x, (F)(A::load(way + v * N) ^ nc), range, constants);
                            result[v] = (I)(x + 0.0f);
                        }
                        if (__builtin_expect(range.bad(constants), 0)) {
                            alignas(64) std::uint32_t exact[T];
                            saturated += p.slow_row(p.context, a, b, way, nullptr, first, T, exact);
                            for (int v = 0; v < V; ++v) result[v] = A::load(exact + v * N);
                        }
                        for (int v = 0; v < V; ++v) A::store(way + v * N, result[v]);
                    }
                    if (!p.target.data) continue;
                    for (std::int64_t i0 = p.n[0] - WAYS; i0 < p.n[0]; ++i0) {
                        const std::int64_t at = p.target.offset(i3, i2, i1, i0 % WAYS);
                        I result[V];
                        for (int v = 0; v < V; ++v) result[v] = A::load(ring[i0 % WAYS] + v * N);
                        if (p.target.bits) {
                            store_bits(p.target.octets(at), result);
                            continue;
                        }
                        for (int v = 0; v < V; ++v) A::store(p.target.words(at) + v * N, result[v]);
                    }
                }
        return saturated;
    }
};

template <int T, int N, bool MULTIPLY, bool TABLED, bool POST> PassFunction choose_alu(const PassArgs& p) {
    switch (p.alu) {
#define CASE(ALU) \
    case ALU: return Pass<T, N, MULTIPLY, ALU, TABLED, POST>::plain;
        CASE(ALU_PASS) CASE(ALU_ADD) CASE(ALU_MAX) CASE(ALU_MIN) CASE(ALU_GT) CASE(ALU_GE) CASE(ALU_EQ)
#undef CASE
    default: return Pass<T, N, MULTIPLY, ALU_GATE, TABLED, POST>::plain;
    }
}

template <int T, int N, bool MULTIPLY> PassFunction choose_reduce(const PassArgs& p) {
    switch (p.alu) {
#define CASE(ALU) \
    case ALU: return Pass<T, N, MULTIPLY, ALU, false, false>::reduce;
        CASE(ALU_PASS) CASE(ALU_ADD) CASE(ALU_MAX) CASE(ALU_MIN) CASE(ALU_GT) CASE(ALU_GE) CASE(ALU_EQ)
#undef CASE
    default: return Pass<T, N, MULTIPLY, ALU_GATE, false, false>::reduce;
    }
}

template <int T, int N> PassFunction choose(const PassArgs& p) {
    if (p.reduce) return p.multiply ? choose_reduce<T, N, true>(p) : choose_reduce<T, N, false>(p);
    const bool tabled = p.function > RELU;
    switch (p.multiply * 4 + tabled * 2 + p.post_multiply) {
    case 0: return choose_alu<T, N, false, false, false>(p);
    case 1: return choose_alu<T, N, false, false, true>(p);
    case 2: return choose_alu<T, N, false, true, false>(p);
    case 3: return choose_alu<T, N, false, true, true>(p);
    case 4: return choose_alu<T, N, true, false, false>(p);
    case 5: return choose_alu<T, N, true, false, true>(p);
    case 6: return choose_alu<T, N, true, true, false>(p);
    default: return choose_alu<T, N, true, true, true>(p);
    }
}

constexpr int lanes(int side) { return side < FPGRAD_LANES ? side : FPGRAD_LANES; }

inline PassFunction pass(int side, const PassArgs& p) {
    switch (side) {
    case 4: return choose<4, lanes(4)>(p);
    case 8: return choose<8, lanes(8)>(p);
    default: return choose<16, lanes(16)>(p);
    }
}

inline bool odd(const std::uint32_t* words, std::int64_t count) {
    using S = Simd<4>;
    typename S::I bad = {};
    for (std::int64_t i = 0; i < count; i += 4) {
        const S::I x = S::load(words + i), exponent = x & 0x7F800000;
        bad |= (exponent == 0x7F800000) | ((exponent == 0) & (x != 0));
    }
    return S::any(bad);
}
