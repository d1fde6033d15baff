// The load and store units: rows between external memory and the buffers.
#include "units.hpp"

namespace fpgrad {

static std::int64_t dram_row(const DramAddress& a, const std::int64_t* bases, std::int64_t step) {
    return bases[a.reg] + a.offset + step * a.step_stride;
}

void run_load(Machine& m, const Load& i, const std::int64_t* bases, std::int64_t step) {
    const std::int64_t t = m.config.side;
    if (i.inbox + i.count * i.rows > m.depth[SPACE_INBOX])
        outside("inbox", i.inbox, i.inbox + i.count * i.rows - 1, m.depth[SPACE_INBOX]);
    const std::int64_t source = dram_row(i.source, bases, step);
    Word* out = m.row(SPACE_INBOX, i.inbox);
    if (i.gather) {
        const std::int64_t index_rows = (i.count + t - 1) / t;
        // Kept from step to step: making it takes as long as the rows that a small batch loads.
        thread_local Buffer<Word> numbers;
        numbers.resize(static_cast<std::size_t>(index_rows * t));
        m.dram.read(dram_row(i.index, bases, step), index_rows, numbers.data());
        for (std::int64_t n = 0; n < i.count; ++n)
            m.dram.read(source + std::int64_t{numbers[n]} * i.stride, i.rows, out + n * i.rows * t);
    } else {
        for (std::int64_t n = 0; n < i.count; ++n)
            m.dram.read(source + n * i.stride, i.rows, out + n * i.rows * t);
    }
    // Words lose their low bits to become codes.
    if (const int shift = m.config.word_shift())
        for (std::int64_t w = 0; w < i.count * i.rows * t; ++w) out[w] = out[w] >> shift << shift;
}

void run_store(Machine& m, const Store& i, const std::int64_t* bases, std::int64_t step) {
    if (i.outbox + i.rows > m.depth[SPACE_OUTBOX])
        outside("outbox", i.outbox, i.outbox + i.rows - 1, m.depth[SPACE_OUTBOX]);
    m.dram.write(dram_row(i.target, bases, step), i.rows, m.row(SPACE_OUTBOX, i.outbox));
}

}  // namespace fpgrad
