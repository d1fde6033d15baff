// Vectors of N 32-bit lanes in the compiler's own notation, and the few operations that it has no notation for.
//
// Included only by kernels_impl.hpp, inside the namespace of a level.
#pragma once

// The vector types of each width: GCC takes no attribute that depends on a template's parameter.
template <int N> struct Lanes;
#define FPGRAD_VECTORS(N)                                                 \
    template <> struct Lanes<N> {                                         \
        typedef std::int32_t I __attribute__((vector_size(4 * N)));       \
        typedef std::uint32_t U __attribute__((vector_size(4 * N)));      \
        typedef float F __attribute__((vector_size(4 * N)));              \
        typedef std::int16_t H __attribute__((vector_size(2 * N)));       \
        typedef I LooseI __attribute__((aligned(4), may_alias));          \
        typedef H LooseH __attribute__((aligned(2), may_alias));          \
    };
FPGRAD_VECTORS(4)
FPGRAD_VECTORS(8)
FPGRAD_VECTORS(16)
#undef FPGRAD_VECTORS

template <int N> struct Simd : Lanes<N> {
    using I = typename Lanes<N>::I;
    using U = typename Lanes<N>::U;
    using F = typename Lanes<N>::F;
    using H = typename Lanes<N>::H;
    using LooseI = typename Lanes<N>::LooseI;
    using LooseH = typename Lanes<N>::LooseH;

    static I load(const void* p) { return *static_cast<const LooseI*>(p); }
    static void store(void* p, I v) { *static_cast<LooseI*>(p) = v; }
    // The lanes in 16 bits or in bytes, into which they fit.
    static void store_short(std::int16_t* p, I v) { *reinterpret_cast<LooseH*>(p) = __builtin_convertvector(v, H); }
    static void store_short(std::int8_t* p, I v) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) {
            const __m256i x = (__m256i)v;
            const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
        }
#endif
#if defined(__SSE2__)
        if constexpr (N == 4) {
            const __m128i halves = _mm_packs_epi32((__m128i)v, (__m128i)v);
            const std::int32_t four = _mm_cvtsi128_si32(_mm_packs_epi16(halves, halves));
            __builtin_memcpy(p, &four, 4);
            return;
        }
#endif
        for (int i = 0; i < N; ++i) p[i] = static_cast<std::int8_t>(v[i]);
    }
    static I splat(std::int32_t x) { return I{} + x; }
    static F as_float(I v) { return (F)v; }
    static I as_int(F v) { return (I)v; }

    // Whether any lane of a comparison's result is set.
    static bool any(I v) {
#if defined(__AVX512DQ__)
        if constexpr (N == 16) return _mm512_movepi32_mask((__m512i)v) != 0;
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return _mm256_movemask_ps((__m256)v) != 0;
#endif
#if defined(__SSE2__)
        if constexpr (N == 4) return _mm_movemask_ps((__m128)v) != 0;
#endif
        std::int32_t all = 0;
        for (int i = 0; i < N; ++i) all |= v[i];
        return all != 0;
    }

    // A bit for each lane whose comparison holds, the lowest lane first.
    static std::uint32_t bits(I v) {
#if defined(__AVX512DQ__)
        if constexpr (N == 16) return _mm512_movepi32_mask((__m512i)v);
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return static_cast<std::uint32_t>(_mm256_movemask_ps((__m256)v));
#endif
#if defined(__SSE2__)
        if constexpr (N == 4) return static_cast<std::uint32_t>(_mm_movemask_ps((__m128)v));
#endif
        std::uint32_t all = 0;
        for (int i = 0; i < N; ++i) all |= (v[i] & 1u) << i;
        return all;
    }
    // x in the lanes whose bit is set, from the lowest on; elsewhere 0.
    static I where(std::uint32_t bits, I x) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return (I)_mm512_maskz_mov_epi32(static_cast<__mmask16>(bits), (__m512i)x);
#endif
        I lane;
        for (int i = 0; i < N; ++i) lane[i] = 1 << i;
        return x & ((splat(static_cast<std::int32_t>(bits)) & lane) != 0);
    }

    // a*b - f exactly, where f is the rounded product and far from the lower end of the range.
    static F product_error(F a, F b, F f) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return (F)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)f);
#endif
#if defined(__FMA__)
        if constexpr (N == 8) return (F)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)f);
        if constexpr (N == 4) return (F)_mm_fmsub_ps((__m128)a, (__m128)b, (__m128)f);
#elif defined(__aarch64__)
        if constexpr (N == 4) return (F)vfmaq_f32(vnegq_f32((float32x4_t)f), (float32x4_t)a, (float32x4_t)b);
#endif
        // Products of 16-bit significands are exact in double precision, and so are their errors in single.
        F e;
        for (int i = 0; i < N; ++i)
            e[i] = static_cast<float>(static_cast<double>(a[i]) * static_cast<double>(b[i]) - static_cast<double>(f[i]));
        return e;
    }

    // table[index] of a table of `size` entries, which has room for 32.
    static I gather(const std::uint32_t* table, I index, int size) {
#if defined(__AVX2__) && !defined(__AVX512F__)
        if constexpr (N == 8) {
            // Permutations of eight entries each are several times faster than loads by index.
            if (size <= 32) {
                const __m256i at = (__m256i)index;
                const __m256 third = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));
                const auto eight = [&](int first) {
                    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table + first));
                    return _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(part, at));
                };
                const __m256 low = _mm256_blendv_ps(eight(0), eight(8), third);
                if (size <= 16) return (I)low;
                const __m256 high = _mm256_blendv_ps(eight(16), eight(24), third);
                return (I)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(at, 27)));
            }
        }
#endif
#if defined(__AVX512F__)
        if constexpr (N == 16) {
            if (size <= 32) {
                const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 16);
                return (I)_mm512_permutex2var_epi32(low, (__m512i)index, high);
            }
        }
#endif
        (void)size;
#if defined(__AVX512F__)
        if constexpr (N == 16) return (I)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xFFFF, (__m512i)index, table, 4);
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return (I)_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), (__m256i)index, 4);
#endif
        I v;
        for (int i = 0; i < N; ++i) v[i] = static_cast<std::int32_t>(table[index[i]]);
        return v;
    }

    static I larger(I a, I b) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return (I)_mm512_maskz_max_epi32(0xFFFF, (__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return (I)_mm256_max_epi32((__m256i)a, (__m256i)b);
#endif
        return a > b ? a : b;
    }
    static I smaller_unsigned(I a, I b) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return (I)_mm512_maskz_min_epu32(0xFFFF, (__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return (I)_mm256_min_epu32((__m256i)a, (__m256i)b);
#endif
        return (U)a < (U)b ? a : b;
    }

    static I to_int(F v) { return __builtin_convertvector(v, I); }
    static F to_float(I v) { return __builtin_convertvector(v, F); }

    // Sums of neighbouring products of 16-bit halves.
    static I madd(I a, I b) {
#if defined(__AVX512BW__)
        if constexpr (N == 16) return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
        if constexpr (N == 8) return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
#if defined(__SSE2__)
        if constexpr (N == 4) return (I)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
        return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
    }
};
