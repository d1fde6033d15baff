// The load and store units: what moves between external memory, or the other cores, and the chip.
#include <algorithm>
#include <bit>

#include "units.hpp"

namespace fpgrad {

namespace {

std::int64_t dram_row(const Machine& m, const DramAddress& a, const std::int64_t* bases, std::int64_t step) {
    return bases[a.reg] + a.offset + step * a.step_stride + m.core * a.core_stride;
}

// DRAM rows that the exponents of a block of tiles take: 4*T in a row.
std::int64_t head_rows(std::int64_t tiles, std::int64_t t) { return (tiles + 4 * t - 1) / (4 * t); }

template <class I> std::int64_t dram_rows(const I& i, std::int64_t t) {
    return i.kind == TILES ? head_rows(i.rows, t) + i.rows * t / 4 : i.rows;
}

// Refuses places on chip that are outside their memory.
template <class I> void check_places(const Machine& m, const I& i, std::int64_t base, int space) {
    constexpr const char* names[] = {"rows", "bytes", "tiles", "masks", "sum"};
    const std::int64_t rows = i.kind == BYTES ? 4 * i.rows : i.rows;
    const Extent places(base, {{i.count, i.group_stride}, {rows, i.row_stride}, {i.kind == MASKS ? 32 : 1, 1}});
    places.check(names[i.kind], i.kind == TILES ? m.config.tiles : m.depth[i.kind == MASKS ? SPACE_MASK : space]);
}

// The octets of DRAM rows, lowest first, are those of their words in memory.
static_assert(std::endian::native == std::endian::little);

void put_rows(Machine& m, const Load& i, std::int64_t base, std::int64_t source) {
    const std::int64_t t = m.config.side;
    const int shift = m.config.word_shift();
    const auto read = [&](std::int64_t from, std::int64_t rows, std::int64_t to) {
        Word* const out = m.row(SPACE_INBOX, to);
        m.dram.read(from, rows, out);
        // Words lose their low bits to become codes.
        if (shift)
            for (std::int64_t w = 0; w < rows * t; ++w) out[w] = out[w] >> shift << shift;
    };
    if (i.row_stride == 1) return read(source, i.rows, base);
    for (std::int64_t r = 0; r < i.rows; ++r) read(source + r, 1, base + r * i.row_stride);
}

void put_octets(Machine& m, const Load& i, std::int64_t base, const std::uint8_t* octets, const Word* bytes) {
    const std::int64_t t = m.config.side;
    if (i.kind == BYTES) {
        for (std::int64_t r = 0; r < 4 * i.rows; ++r, octets += t) {
            Word* const out = m.row(SPACE_INBOX, base + r * i.row_stride);
            for (std::int64_t lane = 0; lane < t; ++lane) out[lane] = bytes[octets[lane]];
        }
    } else if (i.kind == MASKS) {
        for (std::int64_t r = 0; r < 32 * i.rows; ++r) {
            const std::int64_t row = base + r / 32 * i.row_stride + r % 32;
            if (t % 8 == 0) std::copy_n(octets + r * t / 8, t / 8, m.mask_row(row));
            for (std::int64_t lane = 0; t % 8 && lane < t; ++lane) {
                const std::int64_t bit = r * t + lane;
                m.set_mask(row, lane, octets[bit / 8] >> bit % 8 & 1);
            }
        }
    } else {
        const std::uint8_t* mantissas = octets + head_rows(i.rows, t) * 4 * t;
        for (std::int64_t r = 0; r < i.rows; ++r, mantissas += t * t) {
            const std::int64_t tile = base + r * i.row_stride;
            m.exponents[tile] = octets[r];
            for (std::int64_t x = 0; x < t * t; ++x)
                m.mantissas.set(tile * t * t + x, static_cast<std::int8_t>(mantissas[x]));
        }
    }
}

void take_octets(Machine& m, const Store& i, std::int64_t base, std::uint8_t* octets) {
    const std::int64_t t = m.config.side;
    if (i.kind == MASKS) {
        for (std::int64_t r = 0; r < 32 * i.rows; ++r) {
            const std::int64_t row = base + r / 32 * i.row_stride + r % 32;
            if (t % 8 == 0) std::copy_n(m.mask_row(row), t / 8, octets + r * t / 8);
            for (std::int64_t lane = 0; t % 8 && lane < t; ++lane) {
                const std::int64_t bit = r * t + lane;
                octets[bit / 8] = static_cast<std::uint8_t>(octets[bit / 8] | m.mask(row, lane) << bit % 8);
            }
        }
    } else {
        std::uint8_t* mantissas = octets + head_rows(i.rows, t) * 4 * t;
        for (std::int64_t r = 0; r < i.rows; ++r, mantissas += t * t) {
            const std::int64_t tile = base + r * i.row_stride;
            octets[r] = static_cast<std::uint8_t>(m.exponents[tile]);
            for (std::int64_t x = 0; x < t * t; ++x)
                mantissas[x] = static_cast<std::uint8_t>(m.mantissas.get(tile * t * t + x));
        }
    }
}

std::int64_t take_sums(Machine& m, const Load& i) {
    std::int64_t clamped = 0;
    for (std::int64_t n = 0; n < i.count; ++n)
        for (std::int64_t r = 0; r < i.rows; ++r)
            clamped += m.exchange.take(m.core, m.row(SPACE_INBOX, i.target + n * i.group_stride + r * i.row_stride));
    return clamped;
}

void send_rows(Machine& m, const Store& i) {
    for (std::int64_t n = 0; n < i.count; ++n)
        for (std::int64_t r = 0; r < i.rows; ++r)
            m.exchange.send(m.core, m.row(SPACE_OUTBOX, i.source + n * i.group_stride + r * i.row_stride));
}

}  // namespace

std::int64_t run_load(Machine& m, const Load& i, const std::int64_t* bases, std::int64_t step) {
    const std::int64_t t = m.config.side;
    check_places(m, i, i.target, SPACE_INBOX);
    if (i.kind == SUM) return take_sums(m, i);
    const std::int64_t source = dram_row(m, i.source, bases, step), rows = dram_rows(i, t);
    // Kept from step to step: making them takes as long as the rows that a small batch loads.
    thread_local Buffer<Word> numbers, words;
    if (i.gather) {
        const std::int64_t index_rows = (i.count + t - 1) / t;
        numbers.resize(static_cast<std::size_t>(index_rows * t));
        m.dram.read(dram_row(m, i.index, bases, step), index_rows, numbers.data());
    }
    Word bytes[256];
    if (i.kind == BYTES) {
        const Float f(m.config);
        for (int x = 0; x < 256; ++x)
            bytes[x] = static_cast<Word>(f.compose(0, x, f.bias() + f.m).code << m.config.word_shift());
    }
    if (i.kind != ROWS) words.resize(static_cast<std::size_t>(rows * t));
    for (std::int64_t n = 0; n < i.count; ++n) {
        const std::int64_t from = source + (i.gather ? std::int64_t{numbers[n]} : n) * i.stride;
        const std::int64_t base = i.target + n * i.group_stride;
        if (i.kind == ROWS) {
            put_rows(m, i, base, from);
        } else {
            m.dram.read(from, rows, words.data());
            put_octets(m, i, base, reinterpret_cast<const std::uint8_t*>(words.data()), bytes);
        }
    }
    return 0;
}

void run_store(Machine& m, const Store& i, const std::int64_t* bases, std::int64_t step) {
    const std::int64_t t = m.config.side;
    if (i.kind == BYTES) throw Fault("STORE does not write bytes");
    check_places(m, i, i.source, SPACE_OUTBOX);
    if (i.kind == SUM) return send_rows(m, i);
    const std::int64_t target = dram_row(m, i.target, bases, step), rows = dram_rows(i, t);
    Buffer<Word> words(static_cast<std::size_t>(i.kind == ROWS ? 0 : rows * t));
    for (std::int64_t n = 0; n < i.count; ++n) {
        const std::int64_t base = i.source + n * i.group_stride, to = target + n * i.stride;
        if (i.kind != ROWS) {
            std::fill(words.begin(), words.end(), 0);
            take_octets(m, i, base, reinterpret_cast<std::uint8_t*>(words.data()));
            m.dram.write(to, rows, words.data());
        } else if (i.row_stride == 1) {
            m.dram.write(to, rows, m.row(SPACE_OUTBOX, base));
        } else {
            for (std::int64_t r = 0; r < rows; ++r) m.dram.write(to + r, 1, m.row(SPACE_OUTBOX, base + r * i.row_stride));
        }
    }
}

}  // namespace fpgrad
