// Sums of tile products in bytes, for AVX-512 with VNNI: mantissas of at most 8 bits, tiles of side 16.
//
// The instruction multiplies unsigned by signed bytes, so the left tile has 128 added to each mantissa, and the sum that
// a row of nothing but 128 gives is taken off in the end.
#include <cstdint>
#include <immintrin.h>

#include "kernels.hpp"

namespace fpgrad::avx512vnni {

namespace {

constexpr int T = 16;
using Octets = std::uint8_t;
typedef std::int32_t Words __attribute__((vector_size(64)));

// Calls f(from + bit) for every bit.
template <class F> void each(__mmask16 which, std::int64_t from, F f) {
    for (std::uint32_t left = which; left; left &= left - 1) f(from + __builtin_ctz(left));
}

__m512i load_exponents(const Terms& t, std::int64_t k) {
    const std::int64_t left = t.to - k;
    return _mm512_maskz_loadu_epi32(left >= 16 ? 0xFFFF : static_cast<__mmask16>((1 << left) - 1), t.exponents + k);
}

// R rows of an output tile. All sums stay in registers.
template <int R> struct Sums {
    __m512i sum[R], extra;  // extra: of a row of 128

    void clear() {
        for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_si512();
        extra = _mm512_setzero_si512();
    }
    void shift_left(int by) {
        for (int r = 0; r < R; ++r) sum[r] = (__m512i)((Words)sum[r] << by);
        extra = (__m512i)((Words)extra << by);
    }
    void add(const Terms& t, std::int64_t k, std::int64_t row) {
        const Octets* left = static_cast<const Octets*>(t.left.forms) + t.left.place(k) * T * T + row * T;
        const Octets* right = static_cast<const Octets*>(t.right.forms) + t.right.place(k) * T * T;
        const __m512i all128 = _mm512_set1_epi8(-128);
#pragma GCC unroll 4
        for (int j = 0; j < T / 4; ++j) {
            const __m512i groups = _mm512_loadu_si512(right + j * 4 * T);
            extra = _mm512_dpbusd_epi32(extra, all128, groups);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                std::int32_t four;
                __builtin_memcpy(&four, left + r * T + 4 * j, 4);
                sum[r] = _mm512_dpbusd_epi32(sum[r], _mm512_set1_epi32(four), groups);
            }
        }
    }
};

template <int R> void sum_rows(const Terms& t, std::int64_t row, std::int32_t* sums) {
    Sums<R> s;
    s.clear();
    int last = 0;
    const std::int32_t furthest = t.guard < t.top - 1 ? t.guard : t.top - 1;
    for (std::int32_t distance = 0; distance <= furthest; ++distance) {
        const __m512i wanted = _mm512_set1_epi32(t.top - distance);
        for (std::int64_t k = t.from; k < t.to; k += 16) {
            const __mmask16 which = _mm512_cmpeq_epi32_mask(load_exponents(t, k), wanted);
            if (which && distance > last) s.shift_left(distance - last), last = distance;
            each(which, k, [&](std::int64_t term) { s.add(t, term, row); });
        }
    }
    s.shift_left(t.guard - last);
    for (int r = 0; r < R; ++r) _mm512_storeu_si512(sums + (row + r) * T, _mm512_sub_epi32(s.sum[r], s.extra));
    for (std::int64_t k = t.from; k < t.to; k += 16) {
        const __m512i exponents = load_exponents(t, k);
        const __mmask16 there = _mm512_test_epi32_mask(exponents, exponents);
        const __mmask16 which = _mm512_mask_cmplt_epi32_mask(there, exponents, _mm512_set1_epi32(t.top - t.guard));
        each(which, k, [&](std::int64_t term) {
            s.clear();
            s.add(t, term, row);
            const std::int32_t far = t.top - t.exponents[term] - t.guard;
            const int shift = far < 31 ? far : 31;
            for (int r = 0; r < R; ++r) {
                std::int32_t* const at = sums + (row + r) * T;
                const __m512i one = (__m512i)((Words)_mm512_sub_epi32(s.sum[r], s.extra) >> shift);
                _mm512_storeu_si512(at, _mm512_add_epi32(_mm512_loadu_si512(at), one));
            }
        });
    }
}

using Block = __m128i;

// Four rows of 16 bytes to 16 columns of four.
void columns_of_four(const Block* rows, Block* out) {
    const Block a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpackhi_epi8(rows[0], rows[1]);
    const Block c = _mm_unpacklo_epi8(rows[2], rows[3]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
    out[0] = _mm_unpacklo_epi16(a, c), out[1] = _mm_unpackhi_epi16(a, c);
    out[2] = _mm_unpacklo_epi16(b, d), out[3] = _mm_unpackhi_epi16(b, d);
}

// A 4x4 matrix of 32-bit words, a row each `stride` blocks.
void transpose4(const Block* in, int stride, Block* out, int out_stride) {
    const Block a = in[0], b = in[stride], c = in[2 * stride], d = in[3 * stride];
    const Block ab = _mm_unpacklo_epi32(a, b), ab2 = _mm_unpackhi_epi32(a, b);
    const Block cd = _mm_unpacklo_epi32(c, d), cd2 = _mm_unpackhi_epi32(c, d);
    out[0] = _mm_unpacklo_epi64(ab, cd), out[out_stride] = _mm_unpackhi_epi64(ab, cd);
    out[2 * out_stride] = _mm_unpacklo_epi64(ab2, cd2), out[3 * out_stride] = _mm_unpackhi_epi64(ab2, cd2);
}

}  // namespace

std::int32_t exponents(const std::int32_t* left, const std::int32_t* left_offset, const std::int32_t* right,
                       const std::int32_t* right_offset, std::int64_t count, std::int32_t* out) {
    __m512i top = _mm512_setzero_si512();
    for (std::int64_t k = 0; k < count; k += 16) {
        const __mmask16 some = count - k >= 16 ? 0xFFFF : static_cast<__mmask16>((1 << (count - k)) - 1);
        const __m512i zero = _mm512_setzero_si512();
        const __m512i l = _mm512_mask_i32gather_epi32(zero, some, _mm512_maskz_loadu_epi32(some, left_offset + k), left, 4);
        const __m512i r = _mm512_mask_i32gather_epi32(zero, some, _mm512_maskz_loadu_epi32(some, right_offset + k), right, 4);
        const __mmask16 both = _mm512_mask_test_epi32_mask(_mm512_test_epi32_mask(l, l), r, r);
        const __m512i e = _mm512_maskz_add_epi32(both, l, r);
        _mm512_mask_storeu_epi32(out + k, some, e);
        top = _mm512_maskz_max_epi32(0xFFFF, top, e);
    }
    std::int32_t largest = 0;
    for (int lane = 0; lane < 16; ++lane) {
        const std::int32_t e = ((Words)top)[lane];
        largest = e > largest ? e : largest;
    }
    return largest;
}

void sum_bytes(const Terms& terms, std::int32_t* sums) {
    if (terms.rows > 8) return sum_rows<16>(terms, 0, sums);
    if (terms.rows > 4) return sum_rows<8>(terms, 0, sums);
    sum_rows<4>(terms, 0, sums);
}

void form_bytes(int form, const void* in, void* out) {
    alignas(64) Block work[T];
    const Block* const rows = static_cast<const Block*>(in);
    Block* const to = static_cast<Block*>(out);
    const Block turn = _mm_set1_epi8(-128);
    switch (form) {
    case LEFT:
        for (int r = 0; r < T; ++r) to[r] = _mm_xor_si128(rows[r], turn);
        return;
    case RIGHT:
        for (int j = 0; j < 4; ++j) columns_of_four(rows + 4 * j, to + 4 * j);
        return;
    case RIGHT_TRANSPOSED:
        for (int j = 0; j < 4; ++j) transpose4(rows + 4 * j, 1, to + j, 4);
        return;
    default:
        for (int j = 0; j < 4; ++j) columns_of_four(rows + 4 * j, work + 4 * j);
        for (int j = 0; j < 4; ++j) transpose4(work + j, 4, to + 4 * j, 1);
        for (int r = 0; r < T; ++r) to[r] = _mm_xor_si128(to[r], turn);
    }
}

}  // namespace fpgrad::avx512vnni
