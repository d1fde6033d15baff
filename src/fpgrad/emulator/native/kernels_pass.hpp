// Vector passes of one level: included by kernels_impl.hpp inside its namespace.
#pragma once

// Rows of bits that are made into rows of words before a pass goes on: they stay in the first cache.
constexpr int BITS_AT_ONCE = 32;

// Rows of an operand: where they are, or where rows of bits were made into rows of words.
struct Stream {
    const std::uint32_t* at;
    std::int64_t stride;
};

template <int T, int N> struct BitRows {
    using A = Arithmetic<N>;
    using I = typename A::I;
    using F = typename A::F;
    static constexpr int V = T / N, OCTETS = (T + 7) / 8;

    static void store(std::uint8_t* to, const I (&result)[V]) {
        std::uint32_t bits = 0;
        for (int v = 0; v < V; ++v) bits |= A::bits((I)((F)result[v] > 0)) << v * N;
        __builtin_memcpy(to, &bits, OCTETS);
    }
    // Not inline: each of the many passes would have its own.
    [[gnu::noinline]] static Stream words(const Rows& r, std::int64_t first, std::int64_t count, std::uint32_t* room) {
        for (std::int64_t row = 0; row < count; ++row) {
            std::uint32_t bits = 0;
            __builtin_memcpy(&bits, r.octets(first + row * r.s[0]), OCTETS);
            for (int v = 0; v < V; ++v) A::store(room + row * T + v * N, A::where(bits >> v * N, (I)A::one()));
        }
        return {room, T};
    }
};

// `count` rows, and zeros up to T of them, to a tile. To mantissas of 16 bits not inline, as above.
template <int T, int N> struct Quantise {
    using A = Arithmetic<N>;
    using I = typename A::I;
    using F = typename A::F;

    static void run(const PassArgs& p, const std::uint32_t* in, std::int64_t count, I largest, std::int64_t tile) {
        if (__builtin_expect(p.narrow, 1))
            to<std::int8_t>(p, in, count, largest, tile);
        else
            wide(p, in, count, largest, tile);
    }
    [[gnu::noinline]] static void wide(const PassArgs& p, const std::uint32_t* in, std::int64_t count, I largest,
                                       std::int64_t tile) {
        to<std::int16_t>(p, in, count, largest, tile);
    }
    template <class M>
    static void to(const PassArgs& p, const std::uint32_t* in, std::int64_t count, I largest, std::int64_t number) {
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
            A::store_short(tile + x, m);
        }
        __builtin_memset(tile + count * T, 0, (T - count) * T * sizeof *tile);
    }
};

// All passes for tiles of side T, in vectors of N lanes.
template <int T, int N, bool MULTIPLY, int ALU, bool TABLED, bool POST> struct Pass {
    using A = Arithmetic<N>;
    using I = typename A::I;
    using F = typename A::F;
    static constexpr int V = T / N;

    using B = BitRows<T, N>;

    static bool masked(int loop, std::int64_t (&i)[LOOPS], const PassArgs& p) {
        return loop >= 0 ? i[loop] == p.n[loop] - 1 : loop == MASK_ALWAYS;
    }

    static std::int64_t plain(const PassArgs& p) {
        std::int64_t saturated = 0;
        alignas(64) std::uint32_t tile_rows[T * T], room[4 * BITS_AT_ONCE * T];
        const typename A::Constants constants;
        std::int64_t i[LOOPS] = {};
        for (i[3] = 0; i[3] < p.n[3]; ++i[3])
            for (i[2] = 0; i[2] < p.n[2]; ++i[2]) {
                std::int64_t tile = i[3] * p.tile_s[3] + i[2] * p.tile_s[2], filled = 0;
                I largest = {};
                const auto finish = [&] {
                    Quantise<T, N>::run(p, tile_rows, filled, largest, tile);
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
                            saturated +=
                                rows(p, i, count, lanes_masked ? p.lane_limit : T, keep, room, largest, constants);
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

    static Stream stream(const Rows& r, const std::int64_t (&i)[LOOPS], std::int64_t count, std::uint32_t* room) {
        const std::int64_t first = r.offset(i[3], i[2], i[1], i[0]);
        if (__builtin_expect(r.bits, 0)) return B::words(r, first, count, room);
        return {r.words(first), r.s[0]};
    }

    // Rows from i on along the innermost loop, lanes from a limit on zero, to the target and, when tiles are written,
    // to `keep`. There is `room` for operands that are rows of bits.
    static std::int64_t rows(const PassArgs& p, const std::int64_t (&i)[LOOPS], std::int64_t count,
                             std::int64_t lane_limit, std::uint32_t* keep, std::uint32_t* room, I& largest,
                             const typename A::Constants& constants) {
        std::int64_t saturated = 0;
        alignas(64) std::uint32_t nowhere[T];
        const I np = A::splat(static_cast<std::int32_t>(p.negate_product));
        const I nc = A::splat(static_cast<std::int32_t>(p.negate_c));
        const bool relu = p.function == RELU;
        auto [a, as] = stream(p.a, i, count, room);
        auto [b, bs] = stream(p.b, i, count, room + BITS_AT_ONCE * T);
        auto [c, cs] = stream(p.c, i, count, room + 2 * BITS_AT_ONCE * T);
        auto [d, ds] = stream(p.d, i, count, room + 3 * BITS_AT_ONCE * T);
        const bool tiled = p.tiled, to_mask = p.target.bits;
        const std::int64_t first = p.target.offset(i[3], i[2], i[1], i[0]);
        const std::int64_t unit = to_mask ? 1 : sizeof(std::uint32_t);
        std::uint8_t* out =
            p.target.data ? p.target.octets(first * unit) : reinterpret_cast<std::uint8_t*>(nowhere);
        const std::int64_t stride = p.target.data ? p.target.s[0] * unit : 0;
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
            }
            if (to_mask)
                B::store(out, result);
            else
                for (int v = 0; v < V; ++v) A::store(out + v * sizeof result[v], result[v]);
            a += as, b += bs, c += cs, d += ds, out += stride, keep += T;
        }
        largest = most;
        return saturated;
    }

    static void zero(const PassArgs& p, const std::int64_t (&i)[LOOPS], std::int64_t count, std::uint32_t* keep) {
        const std::int64_t first = p.target.offset(i[3], i[2], i[1], i[0]);
        for (std::int64_t row = 0; row < count; ++row) {
            const std::int64_t at = first + row * p.target.s[0];
            const I nothing[V] = {};
            if (p.target.bits) B::store(p.target.octets(at), nothing);
            for (int v = 0; v < V; ++v) {
                if (p.target.data && !p.target.bits) A::store(p.target.words(at) + v * N, I{});
                if (p.tiled) A::store(keep + row * T + v * N, I{});
            }
        }
    }

    // Reducing passes: no function, no masks, no operand d (the others go the exact way), no operand of bits.
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
                    const std::uint32_t *a = p.a.words(p.a.offset(i3, i2, i1, 0)),
                                        *b = p.b.words(p.b.offset(i3, i2, i1, 0));
                    for (std::int64_t i0 = 0; i0 < p.n[0]; ++i0, a += p.a.s[0], b += p.b.s[0]) {
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
                            B::store(p.target.octets(at), result);
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
