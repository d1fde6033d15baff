// External memory, which all cores share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "config.hpp"

namespace fpgrad {

// External memory in blocks of rows that are made when they are first written. Several threads may use it at once;
// where cores write the same place, they write the same numbers.
class Dram {
  public:
    static constexpr std::int64_t BLOCK = 1 << 12;

    Dram(std::int64_t rows, int side)
        : rows_(rows), side_(side), blocks_(static_cast<std::size_t>((rows + BLOCK - 1) / BLOCK)) {}
    ~Dram() {
        for (auto& block : blocks_) delete[] block.load();
    }
    Dram(const Dram&) = delete;

    void check(std::int64_t row, std::int64_t rows) const {
        if (row < 0 || row + rows > rows_)
            throw Fault("DRAM rows " + std::to_string(row) + " to " + std::to_string(row + rows - 1) +
                        " are outside the " + std::to_string(rows_) + " rows of the machine");
    }
    void read(std::int64_t row, std::int64_t rows, Word* out) const {
        check(row, rows);
        each(row, rows, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
            const auto words = static_cast<std::size_t>(count * side_);
            if (const Word* const made = blocks_[block].load(std::memory_order_acquire))
                std::memcpy(out, made + first * side_, words * sizeof(Word));
            else
                std::memset(out, 0, words * sizeof(Word));
            out += words;
        });
    }
    void write(std::int64_t row, std::int64_t rows, const Word* in) {
        check(row, rows);
        each(row, rows, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
            const auto words = static_cast<std::size_t>(count * side_);
            std::memcpy(made(block) + first * side_, in, words * sizeof(Word));
            in += words;
        });
    }
    std::int64_t octets() const {
        std::int64_t sum = fpgrad::octets(blocks_);
        for (const auto& block : blocks_)
            sum += block.load() ? BLOCK * side_ * static_cast<std::int64_t>(sizeof(Word)) : 0;
        return sum;
    }
    // Rows up to the last block that was made.
    std::int64_t touched() const {
        auto blocks = static_cast<std::int64_t>(blocks_.size());
        while (blocks && !blocks_[blocks - 1].load()) --blocks;
        return std::min(rows_, blocks * BLOCK);
    }

  private:
    template <class F> static void each(std::int64_t row, std::int64_t rows, F f) {
        while (rows > 0) {
            const std::int64_t first = row % BLOCK, count = std::min(rows, BLOCK - first);
            f(row / BLOCK, first, count);
            row += count, rows -= count;
        }
    }
    Word* made(std::int64_t block) {
        Word* there = blocks_[block].load(std::memory_order_acquire);
        if (there) return there;
        auto fresh = std::make_unique<Word[]>(BLOCK * side_);
        // Another thread may have made it meanwhile; then `there` becomes its.
        if (!blocks_[block].compare_exchange_strong(there, fresh.get(), std::memory_order_acq_rel)) return there;
        return fresh.release();
    }
    std::int64_t rows_, side_;
    std::vector<std::atomic<Word*>> blocks_;
};

}  // namespace fpgrad
