// Tile products by kernels: exponents are scanned first, so that sums stay exact integers in registers.
//
// A product whose exponent lies d below the largest counts floor(p * 2**(guard - d)). Up to d = guard that is
// an exact shift, so products are sorted by d and the sum is shifted between groups; beyond, each product
// loses bits and is added on its own. With at most `safe_terms` products no sum can saturate, and then their
// order does not matter; with more, that is looked at after every few terms.
#include <algorithm>
#include <bit>
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

// Places for tiles in each form, if no instruction needs more: few are made again, and what is made is in the cache.
constexpr std::int64_t PLACES = 1024;

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

// Makes room for an instruction's tiles.
void FastPath::plan_places(int form, std::int64_t tiles) {
    const auto enough = static_cast<std::uint64_t>(std::max(tiles, std::min(m_.config.tiles, PLACES)));
    const std::size_t places = std::bit_ceil(enough);
    FormMemory& memory = forms_[form];
    if (memory.tiles.size() >= places) return;
    memory.tiles.assign(places, -1);
    memory.lines = std::make_unique_for_overwrite<FormMemory::Line[]>((places * form_size_ + 63) / 64);
}

void FastPath::form(int which, std::int64_t tile) {
    FormMemory& memory = forms_[which];
    const std::int64_t place = tile & memory.mask();
    memory.tiles[place] = static_cast<std::int32_t>(tile);
    made_[tile] |= static_cast<std::uint8_t>(1 << which);
    const int t = m_.config.side;
    const void* const in = m_.mantissas.at(tile * t * t);
    void* const out = memory.lines[0].octets + place * form_size_;
    bytes_ ? kernels_.form_bytes(which, in, out) : kernels_.form(t, which, m_.config.narrow(), in, out);
}

Places FastPath::places(int form, std::int64_t first, const std::vector<std::int32_t>& offset) const {
    return {forms_[form].lines.get(), forms_[form].mask(), first, offset.data()};
}

void FastPath::build_forms(const Matrix& i, const MatrixPlan& plan) {
    const auto build = [&](const TileStream& s, const std::vector<std::int32_t>& offsets, int which) {
        const Extent all = tiles_extent(i, s);
        const std::int64_t tiles = all.size();
        if (tiles > 2 * i.outputs() * i.terms()) {  // far between
            for (std::int64_t number = 0; number < i.outputs(); ++number)
                for (const std::int32_t offset : offsets)
                    if (const std::int64_t tile = i.first(s, number) + offset; !made(which, tile)) form(which, tile);
            return;
        }
        const auto range = [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t tile = from; tile < to; ++tile)
                if (!made(which, tile)) form(which, tile);
        };
        if (pool_.threads() == 1 || tiles < TILES_WORTH_A_THREAD) return range(all.low, all.high + 1);
        const int parts = pool_.chunks(tiles);
        pool_.run(parts, [&](int, int part) {
            range(all.low + tiles * part / parts, all.low + tiles * (part + 1) / parts);
        });
    };
    build(i.streamed, plan.left, i.streamed.transposed ? LEFT_TRANSPOSED : LEFT);
    build(i.stationary, plan.right, i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT);
}

std::int64_t FastPath::form_octets() const {
    std::int64_t sum = octets(made_);
    for (const FormMemory& memory : forms_)
        sum += octets(memory.tiles) + static_cast<std::int64_t>(memory.tiles.size()) * form_size_;
    return sum;
}

void FastPath::sum(const Terms& terms, std::int32_t* sums) const {
    bytes_ ? kernels_.sum_bytes(terms, sums) : kernels_.sum(m_.config.side, terms, sums);
}

// Adds terms one by one as the machine does, with saturation; says whether there was any.
bool FastPath::sum_in_order(Terms terms, std::int32_t* sums, std::vector<std::uint8_t>& clamped) const {
    const std::int64_t size = terms.rows * m_.config.side, limit = m_.config.accumulator_limit();
    const std::int32_t top = terms.top, guard = terms.guard;
    bool any = false;
    for (const std::int64_t end = terms.to; terms.from < end; ++terms.from) {
        const std::int32_t exponent = terms.exponents[terms.from];
        if (exponent == 0) continue;
        alignas(64) std::int32_t one[16 * 16];
        terms.to = terms.from + 1, terms.top = exponent, terms.guard = 0;
        sum(terms, one);
        const int shift = std::min(top - exponent, 62);
        for (std::int64_t x = 0; x < size; ++x) {
            const std::int64_t exact = sums[x] + ((std::int64_t{one[x]} << guard) >> shift);
            const std::int64_t kept = std::clamp(exact, -limit, limit);
            clamped[x] |= kept != exact, any |= kept != exact;
            sums[x] = static_cast<std::int32_t>(kept);
        }
    }
    return any;
}

void FastPath::output_tile(const Matrix& i, const MatrixPlan& plan, std::int64_t number, Word* words,
                           std::uint8_t* over, Scratch& scratch) const {
    const Config& c = m_.config;
    const std::int64_t t = c.side, size = t * t, count = static_cast<std::int64_t>(plan.left.size());
    const std::int32_t guard = c.guard_bits;
    const std::int64_t left = i.first(i.streamed, number), right = i.first(i.stationary, number);
    scratch.exponents.resize(count);
    const std::int32_t top =
        kernels_.exponents(m_.exponents.data() + left, plan.left.data(), m_.exponents.data() + right,
                           plan.right.data(), count, scratch.exponents.data());
    Terms terms{places(i.streamed.transposed ? LEFT_TRANSPOSED : LEFT, left, plan.left),
                places(i.stationary.transposed ? RIGHT_TRANSPOSED : RIGHT, right, plan.right),
                scratch.exponents.data(), 0, count, top, guard, i.rows};
    std::fill_n(over, i.rows, 0);
    if (top == 0) {
        std::fill_n(words, i.rows * t, 0);
        return;
    }
    alignas(64) std::int32_t sums[16 * 16];
    bool clamped = false;
    if (!plan.may_saturate) {
        sum(terms, sums);
    } else {
        const std::int64_t limit = c.accumulator_limit(), largest = t * c.tile_limit() * c.tile_limit();
        const std::int64_t step = std::min(TERMS_AT_ONCE, c.safe_terms());
        std::fill_n(sums, i.rows * t, 0);
        scratch.clamped.assign(size, 0);
        for (terms.from = 0; terms.from < count; terms.from += step) {
            terms.to = std::min(count, terms.from + step);
            std::int64_t reach = 0;
            for (std::int64_t x = 0; x < i.rows * t; ++x) reach = std::max<std::int64_t>(reach, std::abs(sums[x]));
            for (std::int64_t k = terms.from; k < terms.to; ++k)
                if (scratch.exponents[k])
                    reach += ((largest << guard) >> std::min(top - scratch.exponents[k], 62)) + 1;
            if (reach > limit) {
                clamped |= sum_in_order(terms, sums, scratch.clamped);
                continue;
            }
            alignas(64) std::int32_t more[16 * 16];
            sum(terms, more);
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
