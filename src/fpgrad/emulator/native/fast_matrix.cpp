// Tile products by kernels: exponents are scanned first, so that sums stay exact integers in registers.
//
// A product whose exponent lies d below the largest counts floor(p * 2**(guard - d)). Up to d = guard that is
// an exact shift, so products are sorted by d and the sum is shifted between groups; beyond, each product
// loses bits and is added on its own. With at most `safe_terms` products no sum can saturate, and then their
// order does not matter.
#include <algorithm>

#include "fast.hpp"
#include "smallfloat.hpp"

namespace fpgrad {

namespace {

// Fewer tile products than this are not worth waking another thread.
constexpr std::int64_t PRODUCTS_WORTH_A_THREAD = 256;

bool inside(const Matrix& i, const TileStream& s, std::int64_t tiles) {
    std::int64_t low = s.base, high = s.base;
    for (const auto& [n, step] : {std::pair{i.n1, s.s1}, std::pair{i.n0, s.s0}, std::pair{i.k, s.sk}})
        (step < 0 ? low : high) += (n - 1) * step;
    return low >= 0 && high < tiles;
}

}  // namespace

bool FastPath::plan_matrix(const Matrix& i) const {
    const Config& c = m_.config;
    return c.accumulator_bits <= 32 && i.k <= c.safe_terms() && i.rows >= 1 && i.rows <= c.side &&
           inside(i, i.streamed, c.tiles) && inside(i, i.stationary, c.tiles);
}

const std::int16_t* FastPath::form(int which, std::int64_t tile) {
    const int t = m_.config.side;
    const std::int64_t size = t * t;
    if (forms_[which].empty()) forms_[which].resize(m_.config.tiles * size);
    std::int16_t* const out = forms_[which].data() + tile * size;
    if (made_[which][tile]) return out;
    made_[which][tile] = 1;
    const std::int16_t* const in = m_.mantissas.data() + tile * size;
    if (which == RIGHT)
        kernels_.pair(t, in, out);
    else if (which == RIGHT_TRANSPOSED)  // pairs of the transposed are words of the tile
        kernels_.transpose(t, t / 2, reinterpret_cast<const Word*>(in), t / 2, reinterpret_cast<Word*>(out));
    else  // rows of the transposed are columns of pairs
        kernels_.transpose(t / 2, t, reinterpret_cast<const Word*>(form(RIGHT, tile)), t,
                           reinterpret_cast<Word*>(out));
    return out;
}

void FastPath::build_forms(const Matrix& i) {
    for (std::int64_t i1 = 0; i1 < i.n1; ++i1)
        for (std::int64_t i0 = 0; i0 < i.n0; ++i0) {
            const auto each = [&](const TileStream& s, int which) {
                if ((s.s1 == 0 && i1) || (s.s0 == 0 && i0)) return;
                for (std::int64_t k = 0; k < i.k; ++k) form(which, s.base + i1 * s.s1 + i0 * s.s0 + k * s.sk);
            };
            if (i.streamed.transposed) each(i.streamed, LEFT_TRANSPOSED);
            each(i.stationary, i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT);
        }
}

void FastPath::output_tile(const Matrix& i, std::int64_t i1, std::int64_t i0, Word* words, std::uint8_t* over,
                           std::vector<Product>& order) const {
    const Config& c = m_.config;
    const std::int64_t t = c.side, size = t * t;
    const std::int32_t guard = c.guard_bits;
    const std::int64_t left0 = i.streamed.base + i1 * i.streamed.s1 + i0 * i.streamed.s0;
    const std::int64_t right0 = i.stationary.base + i1 * i.stationary.s1 + i0 * i.stationary.s0;
    const std::int16_t* const left =
        (i.streamed.transposed ? forms_[LEFT_TRANSPOSED] : m_.mantissas).data() + left0 * size;
    const std::int16_t* const right =
        forms_[i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT].data() + right0 * size;
    const auto exponent = [&](std::int64_t k) {
        const std::int32_t l = m_.exponents[left0 + k * i.streamed.sk], r = m_.exponents[right0 + k * i.stationary.sk];
        return l == 0 || r == 0 ? 0 : l + r;
    };
    std::int32_t top = 0, low = INT32_MAX;
    for (std::int64_t k = 0; k < i.k; ++k) {
        const std::int32_t e = exponent(k);
        top = std::max(top, e);
        if (e) low = std::min(low, e);
    }
    alignas(64) std::int32_t sums[16 * 16];
    if (top == 0) {
        std::fill_n(words, i.rows * t, 0);
        std::fill_n(over, i.rows, 0);
        return;
    }
    order.clear();
    const auto product = [&](std::int64_t k, std::int32_t shift) {
        return Product{left + k * i.streamed.sk * size, right + k * i.stationary.sk * size, shift};
    };
    std::int32_t last = 0;
    for (std::int32_t distance = 0; distance <= std::min(top - low, guard); ++distance) {
        bool first = true;
        for (std::int64_t k = 0; k < i.k; ++k) {
            if (exponent(k) != top - distance) continue;
            order.push_back(product(k, first ? distance - last : 0));
            if (first) last = distance, first = false;
        }
    }
    kernels_.products(static_cast<int>(t), order.data(), static_cast<std::int64_t>(order.size()), i.rows, guard - last,
                      sums);
    if (top - low > guard)
        for (std::int64_t k = 0; k < i.k; ++k) {
            const std::int32_t e = exponent(k);
            if (e == 0 || top - e <= guard) continue;
            alignas(64) std::int32_t one[16 * 16];
            const Product p = product(k, 0);
            kernels_.products(static_cast<int>(t), &p, 1, i.rows, 0, one);
            const int shift = std::min(top - e - guard, 31);
            for (std::int64_t x = 0; x < i.rows * t; ++x) sums[x] += one[x] >> shift;
        }
    const std::int32_t power = top - 2 * 127 - 2 * (c.mantissa_bits - 2) - guard;
    std::fill_n(over, i.rows, 0);
    if (power >= -126 && power <= 96) {
        kernels_.drain(sums, i.rows * t, power, words);
        return;
    }
    const Float f(c);
    for (std::int64_t x = 0; x < i.rows * t; ++x) {
        const Code v = sums[x];
        const Rounded y = f.compose(v < 0, v < 0 ? -v : v, power + f.bias() + f.m);
        words[x] = static_cast<Word>(y.code << c.word_shift());
        over[x / t] = static_cast<std::uint8_t>(over[x / t] + y.over);
    }
}

bool FastPath::matrix(std::size_t index) {
    const Matrix& i = program_->matrix[index];
    if (!matrices_[index]) return false;
    build_forms(i);
    Word* words;
    std::uint8_t* over;
    m_.accumulated.push(i.n1 * i.n0 * i.rows, words, over);
    orders_.resize(pool_.threads());
    const auto columns = [&](std::int64_t from, std::int64_t to, std::vector<Product>& order) {
        // i1 innermost: the stationary tiles of one i0 stay in the first cache.
        for (std::int64_t i0 = from; i0 < to; ++i0)
            for (std::int64_t i1 = 0; i1 < i.n1; ++i1) {
                const std::int64_t row = (i1 * i.n0 + i0) * i.rows;
                output_tile(i, i1, i0, words + row * m_.config.side, over + row, order);
            }
    };
    const std::int64_t parts = pool_.chunks(i.n0);
    if (pool_.threads() > 1 && parts > 1 && i.n1 * i.n0 * i.k >= PRODUCTS_WORTH_A_THREAD)
        pool_.run(static_cast<int>(parts), [&](int thread, int part) {
            columns(i.n0 * part / parts, i.n0 * (part + 1) / parts, orders_[thread]);
        });
    else
        columns(0, i.n0, orders_[0]);
    return true;
}

}  // namespace fpgrad
