// The matrix unit by integer arithmetic, for any format: reference/matrix.py over formats/blockfloat.py.
#include <algorithm>

#include "smallfloat.hpp"
#include "units.hpp"

namespace fpgrad {

void run_matrix(Machine& m, const Matrix& i) {
    const Config& c = m.config;
    const Float f(c);
    const std::int64_t t = c.side, limit = c.accumulator_limit();
    if (i.rows < 1 || i.rows > t)
        throw Fault("a matrix instruction streams 1 to " + std::to_string(t) + " rows, not " + std::to_string(i.rows));
    for (const TileStream* s : {&i.streamed, &i.stationary})
        tiles_extent(i, *s).check("tile", c.tiles);
    Word* words;
    std::uint8_t* over;
    m.accumulated.push(i.outputs() * i.rows, words, over);
    std::vector<std::int64_t> lanes(static_cast<std::size_t>(t * t)), left(lanes), right(lanes);
    std::vector<std::uint8_t> clamped(static_cast<std::size_t>(t * t));

    const std::int64_t terms = i.terms();
    for (std::int64_t number = 0; number < i.outputs(); ++number) {
        const auto tile = [&](const TileStream& s, std::int64_t k) {
            return i.first(s, number) + i.offset(s, k);
        };
        const auto exponent = [&](std::int64_t k) -> std::int64_t {
            const int left = m.exponents[tile(i.streamed, k)], right = m.exponents[tile(i.stationary, k)];
            return left == 0 || right == 0 ? 0 : left + right;
        };
        std::int64_t top = 0;
        for (std::int64_t k = 0; k < terms; ++k) top = std::max(top, exponent(k));
        std::fill(lanes.begin(), lanes.end(), 0);
        std::fill(clamped.begin(), clamped.end(), 0);
        for (std::int64_t k = 0; k < terms; ++k) {
            if (exponent(k) == 0) continue;
            const std::int64_t shift = std::min<std::int64_t>(top - exponent(k), 62);
            for (std::int64_t x = 0; x < t * t; ++x) {
                left[x] = m.mantissas.get(tile(i.streamed, k) * t * t + x);
                right[x] = m.mantissas.get(tile(i.stationary, k) * t * t + x);
            }
            const std::int64_t lr = i.streamed.transposed ? 1 : t, lj = i.streamed.transposed ? t : 1;
            const std::int64_t rj = i.stationary.transposed ? 1 : t, rc = i.stationary.transposed ? t : 1;
            for (std::int64_t r = 0; r < i.rows; ++r)
                for (std::int64_t col = 0; col < t; ++col) {
                    std::int64_t sum = 0;
                    for (std::int64_t j = 0; j < t; ++j) sum += left[r * lr + j * lj] * right[j * rj + col * rc];
                    std::int64_t& lane = lanes[r * t + col];
                    lane += (sum << c.guard_bits) >> shift;
                    clamped[r * t + col] |= lane > limit || lane < -limit;
                    lane = std::clamp(lane, -limit, limit);
                }
        }
        const Code field = top - 2 * f.bias() - 2 * (c.mantissa_bits - 2) - c.guard_bits + f.bias() + f.m;
        for (std::int64_t r = 0; r < i.rows; ++r) {
            int count = 0;
            for (std::int64_t col = 0; col < t; ++col) {
                const std::int64_t v = lanes[r * t + col];
                const Rounded y = f.compose(v < 0, v < 0 ? -v : v, field);
                *words++ = static_cast<Word>(y.code << c.word_shift());
                count += y.over || clamped[r * t + col];
            }
            *over++ = static_cast<std::uint8_t>(count);
        }
    }
}

}  // namespace fpgrad
