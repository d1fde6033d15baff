// Tile products of one level: included by kernels_impl.hpp inside its namespace.
#pragma once

struct Product {
    const std::int16_t *left, *right;
    int shift;  // left shift of the sum before this product
};

// R rows of an output tile of side T, added to `sums`. Sums stay in registers over all products.
template <int T, int N, int R>
void product_rows(const Product* products, int count, std::int64_t row, int last, std::int32_t* sums) {
    using S = Simd<N>;
    using I = typename S::I;
    constexpr int V = T / N;
    I sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = S::load(sums + (row + r) * T + v * N);
    for (int k = 0; k < count; ++k) {
        if (const int shift = products[k].shift)
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < V; ++v) sum[r][v] <<= shift;
        const std::int16_t* left = products[k].left + row * T;
        const std::int16_t* right = products[k].right;
        // Unrolled further, GCC sums the products as a tree, which spills every register.
#pragma GCC unroll 1
        for (int j = 0; j < T / 2; ++j) {
            I pairs[V];
            for (int v = 0; v < V; ++v) pairs[v] = S::load(right + (j * T + v * N) * 2);
            for (int r = 0; r < R; ++r) {
                std::int32_t word;
                __builtin_memcpy(&word, left + r * T + 2 * j, 4);
                const I both = S::splat(word);
                for (int v = 0; v < V; ++v) sum[r][v] += S::madd(both, pairs[v]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) S::store(sums + (row + r) * T + v * N, sum[r][v] << last);
}

template <int T, int N>
void product_tile(const Product* products, int count, std::int64_t rows, int last, std::int32_t* sums) {
    constexpr int R = 4;
    std::int64_t row = 0;
    for (; row + R <= rows; row += R) product_rows<T, N, R>(products, count, row, last, sums);
    for (; row < rows; ++row) product_rows<T, N, 1>(products, count, row, last, sums);
}

// Terms in the order of rising distance to the largest exponent; beyond `guard`, each loses bits for itself.
template <int T, int N> void sum_tile(const Terms& t, std::int32_t* sums) {
    constexpr int ROOM = 256;
    Product order[ROOM];
    int count = 0, last = 0;
    const auto product = [&](std::int64_t k, int shift) {
        return Product{static_cast<const std::int16_t*>(t.left.forms) + t.left.place(k) * T * T,
                       static_cast<const std::int16_t*>(t.right.forms) + t.right.place(k) * T * T, shift};
    };
    std::int32_t high = 0, low = t.top;
    for (std::int64_t k = t.from; k < t.to; ++k)
        if (const std::int32_t e = t.exponents[k]) high = e > high ? e : high, low = e < low ? e : low;
    __builtin_memset(sums, 0, t.rows * T * sizeof *sums);
    if (high == 0) return;
    const std::int32_t furthest = t.top - low < t.guard ? t.top - low : t.guard;
    for (std::int32_t distance = t.top - high; distance <= furthest; ++distance)
        for (std::int64_t k = t.from; k < t.to; ++k) {
            if (t.exponents[k] != t.top - distance) continue;
            if (count == ROOM) product_tile<T, N>(order, count, t.rows, 0, sums), count = 0;
            order[count++] = product(k, distance - last);
            last = distance;
        }
    product_tile<T, N>(order, count, t.rows, t.guard - last, sums);
    if (t.top - low <= t.guard) return;
    for (std::int64_t k = t.from; k < t.to; ++k) {
        const std::int32_t e = t.exponents[k], beyond = t.top - e - t.guard;
        if (e == 0 || beyond <= 0) continue;
        alignas(64) std::int32_t one[T * T];
        __builtin_memset(one, 0, t.rows * T * sizeof *one);
        const Product p = product(k, 0);
        product_tile<T, N>(&p, 1, t.rows, 0, one);
        const int shift = beyond < 31 ? beyond : 31;
        for (std::int64_t x = 0; x < t.rows * T; ++x) sums[x] += one[x] >> shift;
    }
}

inline void sum(int side, const Terms& terms, std::int32_t* sums) {
    switch (side) {
    case 4: return sum_tile<4, lanes(4)>(terms, sums);
    case 8: return sum_tile<8, lanes(8)>(terms, sums);
    default: return sum_tile<16, lanes(16)>(terms, sums);
    }
}

inline std::int32_t exponents(const std::int32_t* left, const std::int32_t* left_offset, const std::int32_t* right,
                              const std::int32_t* right_offset, std::int64_t count, std::int32_t* out) {
    std::int32_t top = 0;
    for (std::int64_t k = 0; k < count; ++k) {
        const std::int32_t l = left[left_offset[k]], r = right[right_offset[k]];
        const std::int32_t e = (l != 0) & (r != 0) ? l + r : 0;
        out[k] = e, top = e > top ? e : top;
    }
    return top;
}

template <int N>
void drain_rows(const std::int32_t* sums, std::int64_t count, std::int32_t power, std::uint32_t* words) {
    using S = Simd<N>;
    using I = typename S::I;
    for (std::int64_t i = 0; i < count; i += N) {
        const I x = S::load(sums + i), size = x < 0 ? -x : x;
        // Beyond 24 bits float32 would round: the lowest seven, far below the 16 that stay, become one sticky bit.
        const I cut = (x & ~0x7F) | ((x & 0x7F) != 0 ? S::splat(0x80) : I{});
        const I wide = size >= (1 << 24);
        const I bits = (I)S::to_float(wide ? cut : x);
        const I rounded = (bits + ((bits >> 8) & 1) + 0x7F) & ~0xFF;
        S::store(words + i, (rounded + (power << 23)) & (x != 0));
    }
}

inline void drain(const std::int32_t* sums, std::int64_t count, std::int32_t power, std::uint32_t* words) {
    if (count % FPGRAD_LANES == 0)
        drain_rows<FPGRAD_LANES>(sums, count, power, words);
    else
        drain_rows<4>(sums, count, power, words);
}

template <int T> void pair_rows(const std::int16_t* in, std::int16_t* __restrict out) {
    for (int j = 0; j < T; j += 2, in += 2 * T)
        for (int c = 0; c < T; ++c) {
            out[j * T + 2 * c] = in[c];
            out[j * T + 2 * c + 1] = in[T + c];
        }
}

inline void transpose(std::int64_t rows, std::int64_t columns, const std::uint32_t* in, std::int64_t stride,
                      std::uint32_t* out) {
    using S = Simd<4>;
    using I = typename S::I;
    if (rows % 4 || columns % 4) {
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < columns; ++c)  // words may be pairs of mantissas
                __builtin_memcpy(out + c * rows + r, in + r * stride + c, sizeof *out);
        return;
    }
    for (std::int64_t r = 0; r < rows; r += 4)
        for (std::int64_t c = 0; c < columns; c += 4) {
            const std::uint32_t* p = in + r * stride + c;
            const I a = S::load(p), b = S::load(p + stride), d = S::load(p + 2 * stride), e = S::load(p + 3 * stride);
            const I low = I{0, 4, 1, 5}, high = I{2, 6, 3, 7}, first = I{0, 1, 4, 5}, second = I{2, 3, 6, 7};
            const I ab = __builtin_shuffle(a, b, low), ab2 = __builtin_shuffle(a, b, high);
            const I de = __builtin_shuffle(d, e, low), de2 = __builtin_shuffle(d, e, high);
            std::uint32_t* o = out + c * rows + r;
            S::store(o, __builtin_shuffle(ab, de, first));
            S::store(o + rows, __builtin_shuffle(ab, de, second));
            S::store(o + 2 * rows, __builtin_shuffle(ab2, de2, first));
            S::store(o + 3 * rows, __builtin_shuffle(ab2, de2, second));
        }
}

template <int T> void make_form(int form, const std::int16_t* in, std::int16_t* out) {
    using Word = std::uint32_t;
    alignas(64) std::int16_t pairs[T * T];
    if (form == LEFT) {
        __builtin_memcpy(out, in, T * T * sizeof *in);
    } else if (form == RIGHT) {
        pair_rows<T>(in, out);
    } else if (form == RIGHT_TRANSPOSED) {  // pairs of the transposed are words of the tile
        transpose(T, T / 2, reinterpret_cast<const Word*>(in), T / 2, reinterpret_cast<Word*>(out));
    } else {  // rows of the transposed are columns of pairs
        pair_rows<T>(in, pairs);
        transpose(T / 2, T, reinterpret_cast<const Word*>(pairs), T, reinterpret_cast<Word*>(out));
    }
}

template <int T> void make_form(int form, bool narrow, const void* in, void* out) {
    std::int16_t* const to = static_cast<std::int16_t*>(out);
    if (!narrow) return make_form<T>(form, static_cast<const std::int16_t*>(in), to);
    alignas(64) std::int16_t wide[T * T];
    std::int16_t* const __restrict widened = form == LEFT ? to : wide;
    const auto* __restrict octets = static_cast<const std::int8_t*>(in);
    for (int x = 0; x < T * T; ++x) widened[x] = octets[x];
    if (form != LEFT) make_form<T>(form, wide, to);
}

inline void form(int side, int form, bool narrow, const void* in, void* out) {
    switch (side) {
    case 4: return make_form<4>(form, narrow, in, out);
    case 8: return make_form<8>(form, narrow, in, out);
    default: return make_form<16>(form, narrow, in, out);
    }
}
