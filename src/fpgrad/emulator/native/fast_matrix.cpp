// Tile products by kernels: exponents are scanned first, so that sums stay exact integers in registers.
//
// A product whose exponent lies d below the largest counts floor(p * 2**(guard - d)). Up to d = guard that is
// an exact shift, so products are sorted by d and the sum is shifted between groups; beyond, each product
// loses bits and is added on its own. With at most `safe_terms` products no sum can saturate, and then their
// order does not matter; with more, that is looked at after every few terms.
#include <algorithm>
#include <cstdlib>

#include "fast.hpp"
#include "smallfloat.hpp"

namespace fpgrad {

namespace {

// Fewer tile products than this are not worth waking another thread.
constexpr std::int64_t PRODUCTS_WORTH_A_THREAD = 256;
// Fewer tiles than this to bring into another form likewise.
constexpr std::int64_t TILES_WORTH_A_THREAD = 64;

// Terms that are summed before the next look at how far the sums are from saturation.
constexpr std::int64_t TERMS_AT_ONCE = 64;

}  // namespace

MatrixPlan FastPath::plan_matrix(const Matrix& i) const {
    MatrixPlan plan;
    const Config& c = m_.config;
    plan.ok = c.accumulator_bits <= 32 && c.safe_terms() >= 1 && i.rows >= 1 && i.rows <= c.side &&
              tiles_extent(i, i.streamed).inside(c.tiles) && tiles_extent(i, i.stationary).inside(c.tiles);
    if (!plan.ok) return plan;
    plan.may_saturate = i.terms() > c.safe_terms();
    for (std::int64_t k = 0; k < i.terms(); ++k) {
        plan.left.push_back(static_cast<std::int32_t>(i.offset(i.streamed, k)));
        plan.right.push_back(static_cast<std::int32_t>(i.offset(i.stationary, k)));
    }
    return plan;
}

const std::int16_t* FastPath::form(int which, std::int64_t tile) {
    const int t = m_.config.side;
    const std::int64_t size = t * t;
    std::int16_t* const out = forms_[which].data() + tile * size;
    if (made_[tile] >> which & 1) return out;
    made_[tile] |= static_cast<std::uint8_t>(1 << which);
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

void FastPath::build_forms(const Matrix& i, const MatrixPlan& plan) {
    const std::int64_t t = m_.config.side;
    const auto build = [&](const TileStream& s, const std::vector<std::int32_t>& offsets, int which) {
        for (int f : {which, which == LEFT_TRANSPOSED ? +RIGHT : which})
            if (forms_[f].empty()) forms_[f].resize(static_cast<std::size_t>(m_.config.tiles * t * t));
        const Extent all = tiles_extent(i, s);
        const std::int64_t tiles = all.high - all.low + 1;
        if (tiles > 2 * i.outputs() * i.terms()) {  // far between
            for (std::int64_t number = 0; number < i.outputs(); ++number)
                for (const std::int32_t offset : offsets) form(which, i.first(s, number) + offset);
            return;
        }
        const auto range = [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t tile = from; tile < to; ++tile) form(which, tile);
        };
        if (pool_.threads() == 1 || tiles < TILES_WORTH_A_THREAD) return range(all.low, all.high + 1);
        const int parts = pool_.chunks(tiles);
        pool_.run(parts, [&](int, int part) {
            range(all.low + tiles * part / parts, all.low + tiles * (part + 1) / parts);
        });
    };
    if (i.streamed.transposed) build(i.streamed, plan.left, LEFT_TRANSPOSED);
    build(i.stationary, plan.right, i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT);
}

// The sum of terms `from` to `to` in any order: they cannot saturate together.
void FastPath::sum_terms(const MatrixPlan& plan, const std::int16_t* left, const std::int16_t* right,
                         std::int64_t rows, std::int64_t from, std::int64_t to, std::int32_t top, std::int32_t* sums,
                         Scratch& scratch) const {
    const std::int64_t t = m_.config.side, size = t * t;
    const std::int32_t guard = m_.config.guard_bits;
    const std::int32_t* const exponents = scratch.exponents.data();
    const auto product = [&](std::int64_t k, std::int32_t shift) {
        return Product{left + plan.left[k] * size, right + plan.right[k] * size, shift};
    };
    std::int32_t low = INT32_MAX, high = 0;
    for (std::int64_t k = from; k < to; ++k) {
        high = std::max(high, exponents[k]);
        if (exponents[k]) low = std::min(low, exponents[k]);
    }
    std::vector<Product>& order = scratch.order;
    order.clear();
    std::int32_t last = 0;
    if (high > 0)
        for (std::int32_t distance = top - high; distance <= std::min(top - low, guard); ++distance) {
            bool first = true;
            for (std::int64_t k = from; k < to; ++k) {
                if (exponents[k] != top - distance) continue;
                order.push_back(product(k, first && !order.empty() ? distance - last : 0));
                if (first) last = distance, first = false;
            }
        }
    kernels_.products(static_cast<int>(t), order.data(), static_cast<std::int64_t>(order.size()), rows, guard - last,
                      sums);
    if (high == 0 || top - low <= guard) return;
    for (std::int64_t k = from; k < to; ++k) {
        if (exponents[k] == 0 || top - exponents[k] <= guard) continue;
        alignas(64) std::int32_t one[16 * 16];
        const Product p = product(k, 0);
        kernels_.products(static_cast<int>(t), &p, 1, rows, 0, one);
        const int shift = std::min(top - exponents[k] - guard, 31);
        for (std::int64_t x = 0; x < rows * t; ++x) sums[x] += one[x] >> shift;
    }
}

// Adds terms one by one as the machine does, with saturation; says whether there was any.
bool FastPath::sum_in_order(const MatrixPlan& plan, const std::int16_t* left, const std::int16_t* right,
                            std::int64_t rows, std::int64_t from, std::int64_t to, std::int32_t top,
                            std::int32_t* sums, Scratch& scratch) const {
    const std::int64_t t = m_.config.side, size = t * t, limit = m_.config.accumulator_limit();
    bool any = false;
    for (std::int64_t k = from; k < to; ++k) {
        if (scratch.exponents[k] == 0) continue;
        alignas(64) std::int32_t one[16 * 16];
        const Product p{left + plan.left[k] * size, right + plan.right[k] * size, 0};
        kernels_.products(static_cast<int>(t), &p, 1, rows, 0, one);
        const int shift = std::min(top - scratch.exponents[k], 62);
        for (std::int64_t x = 0; x < rows * t; ++x) {
            const std::int64_t sum = sums[x] + ((std::int64_t{one[x]} << m_.config.guard_bits) >> shift);
            const std::int64_t clamped = std::clamp(sum, -limit, limit);
            scratch.clamped[x] |= clamped != sum, any |= clamped != sum;
            sums[x] = static_cast<std::int32_t>(clamped);
        }
    }
    return any;
}

void FastPath::output_tile(const Matrix& i, const MatrixPlan& plan, std::int64_t number, Word* words,
                           std::uint8_t* over, Scratch& scratch) const {
    const Config& c = m_.config;
    const std::int64_t t = c.side, size = t * t, terms = static_cast<std::int64_t>(plan.left.size());
    const std::int32_t guard = c.guard_bits;
    const std::int64_t left0 = i.first(i.streamed, number), right0 = i.first(i.stationary, number);
    const std::int16_t* const left =
        (i.streamed.transposed ? forms_[LEFT_TRANSPOSED] : m_.mantissas).data() + left0 * size;
    const std::int16_t* const right =
        forms_[i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT].data() + right0 * size;
    std::int32_t top = 0;
    scratch.exponents.resize(terms);
    for (std::int64_t k = 0; k < terms; ++k) {
        const std::int32_t l = m_.exponents[left0 + plan.left[k]], r = m_.exponents[right0 + plan.right[k]];
        scratch.exponents[k] = l == 0 || r == 0 ? 0 : l + r;
        top = std::max(top, scratch.exponents[k]);
    }
    std::fill_n(over, i.rows, 0);
    if (top == 0) {
        std::fill_n(words, i.rows * t, 0);
        return;
    }
    alignas(64) std::int32_t sums[16 * 16];
    bool clamped = false;
    if (!plan.may_saturate) {
        sum_terms(plan, left, right, i.rows, 0, terms, top, sums, scratch);
    } else {
        const std::int64_t limit = c.accumulator_limit(), largest = t * c.tile_limit() * c.tile_limit();
        const std::int64_t step = std::min(TERMS_AT_ONCE, c.safe_terms());
        std::fill_n(sums, i.rows * t, 0);
        scratch.clamped.assign(size, 0);
        for (std::int64_t from = 0; from < terms; from += step) {
            const std::int64_t to = std::min(terms, from + step);
            std::int64_t reach = 0;
            for (std::int64_t x = 0; x < i.rows * t; ++x) reach = std::max<std::int64_t>(reach, std::abs(sums[x]));
            for (std::int64_t k = from; k < to; ++k)
                if (scratch.exponents[k])
                    reach += ((largest << guard) >> std::min(top - scratch.exponents[k], 62)) + 1;
            if (reach > limit) {
                clamped |= sum_in_order(plan, left, right, i.rows, from, to, top, sums, scratch);
                continue;
            }
            alignas(64) std::int32_t more[16 * 16];
            sum_terms(plan, left, right, i.rows, from, to, top, more, scratch);
            for (std::int64_t x = 0; x < i.rows * t; ++x) sums[x] += more[x];
        }
    }
    const std::int32_t power = top - 2 * 127 - 2 * (c.mantissa_bits - 2) - guard;
    if (power >= -126 && power <= 96 && !clamped) {
        kernels_.drain(sums, i.rows * t, power, words);
        return;
    }
    const Float f(c);
    for (std::int64_t x = 0; x < i.rows * t; ++x) {
        const Code v = sums[x];
        const Rounded y = f.compose(v < 0, v < 0 ? -v : v, power + f.bias() + f.m);
        words[x] = static_cast<Word>(y.code << c.word_shift());
        over[x / t] = static_cast<std::uint8_t>(over[x / t] + (y.over || (clamped && scratch.clamped[x])));
    }
}

bool FastPath::matrix(std::size_t index) {
    const Matrix& i = program_->matrix[index];
    const MatrixPlan& plan = matrices_[index];
    if (!plan.ok) return false;
    build_forms(i, plan);
    Word* words;
    std::uint8_t* over;
    const std::int64_t outputs = i.outputs();
    m_.accumulated.push(outputs * i.rows, words, over);
    scratches_.resize(pool_.threads());
    const auto some = [&](std::int64_t from, std::int64_t to, Scratch& scratch) {
        // i1 innermost: the stationary tiles of one i0 stay in the first cache.
        for (std::int64_t x = from; x < to; ++x) {
            const std::int64_t i2 = x / (i.n1 * i.n0), i0 = x / i.n1 % i.n0, i1 = x % i.n1;
            const std::int64_t number = (i2 * i.n1 + i1) * i.n0 + i0, row = number * i.rows;
            output_tile(i, plan, number, words + row * m_.config.side, over + row, scratch);
        }
    };
    if (pool_.threads() > 1 && outputs > 1 && outputs * i.terms() >= PRODUCTS_WORTH_A_THREAD) {
        const int parts = pool_.chunks(outputs);
        pool_.run(parts, [&](int thread, int part) {
            some(outputs * part / parts, outputs * (part + 1) / parts, scratches_[thread]);
        });
    } else {
        some(0, outputs, scratches_[0]);
    }
    return true;
}

}  // namespace fpgrad
