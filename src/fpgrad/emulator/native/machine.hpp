// The state of a core. Row memories hold 32-bit words of which a code is the upper end, as external
// memory does; for formats with 8 exponent bits a word is therefore the pattern of the same float32.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "buffer.hpp"
#include "config.hpp"
#include "dram.hpp"
#include "exchange.hpp"

namespace fpgrad {

// Rows that the matrix unit finished and the vector unit has not taken, oldest first.
class AccumulatedRows {
  public:
    explicit AccumulatedRows(int side) : side_(side) {}
    std::int64_t size() const { return static_cast<std::int64_t>(over_.size()) - head_; }
    // Room for `rows` more rows; the pointers hold until the next call.
    void push(std::int64_t rows, Word*& words, std::uint8_t*& over) {
        if (head_ == static_cast<std::int64_t>(over_.size())) head_ = 0, over_.clear();
        if (head_ > 4096 && 2 * head_ > static_cast<std::int64_t>(over_.size())) {
            std::memmove(words_.data(), words_.data() + head_ * side_, size() * side_ * sizeof(Word));
            over_.erase(over_.begin(), over_.begin() + head_);
            head_ = 0;
        }
        const std::size_t end = over_.size();
        if (words_.size() < (end + rows) * side_) words_.resize(std::max(2 * words_.size(), (end + rows) * side_));
        over_.resize(end + rows);
        words = words_.data() + end * side_;
        over = over_.data() + end;
    }
    // Takes `rows` rows; the pointers hold until the next push.
    void pop(std::int64_t rows, const Word*& words, const std::uint8_t*& over) {
        words = words_.data() + head_ * side_;
        over = over_.data() + head_;
        head_ += rows;
    }

  private:
    std::int64_t side_, head_ = 0;
    Buffer<Word> words_;
    std::vector<std::uint8_t> over_;  // saturated elements of each row
};

struct Machine {
    Config config;
    int core;
    std::int64_t depth[SPACES];
    Buffer<Word> rows[SPACES];
    Buffer<std::int16_t> mantissas;  // tiles x T x T
    std::vector<std::int32_t> exponents;
    Buffer<Word> scalars, random;
    AccumulatedRows accumulated;
    Dram& dram;          // of all cores
    Exchange& exchange;  // likewise
    std::int64_t saturated_vector = 0, saturated_accumulator = 0;

    Machine(const Config& c, int core_, Dram& dram_, Exchange& exchange_)
        : config(c), core(core_), depth{0, c.vector_rows, c.inbox_rows, c.outbox_rows, c.mask_rows},
          mantissas(static_cast<std::size_t>(c.tiles * c.side * c.side)),
          exponents(static_cast<std::size_t>(c.tiles)), scalars(c.side), random(c.side, 1), accumulated(c.side),
          dram(dram_), exchange(exchange_) {
        for (int s = 1; s < SPACES; ++s) rows[s].resize(static_cast<std::size_t>(depth[s] * c.side));
    }
    Word* row(std::int64_t space, std::int64_t address) { return rows[space].data() + address * config.side; }
};

inline const char* space_name(std::int64_t space) {
    constexpr const char* names[] = {"none", "vector", "inbox", "outbox", "mask"};
    return names[space];
}

}  // namespace fpgrad
