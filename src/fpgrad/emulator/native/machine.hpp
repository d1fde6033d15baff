// The state of a core. Row memories hold 32-bit words of which a code is the upper end, as external
// memory does; for formats with 8 exponent bits a word is therefore the pattern of the same float32. Mask memory
// holds bits, tile memory bytes where mantissas fit into them.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "buffer.hpp"
#include "config.hpp"
#include "dram.hpp"
#include "exchange.hpp"

namespace fpgrad {

// The mantissas of tile memory.
class Mantissas {
  public:
    Mantissas(std::int64_t count, bool narrow)
        : count_(count), octets_(narrow ? 1 : 2), memory_(static_cast<std::size_t>(count * octets_)) {}
    std::int64_t size() const { return count_; }
    std::int64_t octets() const { return octets_; }  // of a mantissa
    std::uint8_t* at(std::int64_t i) { return memory_.data() + i * octets_; }
    std::int64_t get(std::int64_t i) const {
        const std::uint8_t* const p = memory_.data() + i * octets_;
        return octets_ == 1 ? *reinterpret_cast<const std::int8_t*>(p) : *reinterpret_cast<const std::int16_t*>(p);
    }
    void set(std::int64_t i, std::int64_t value) {
        if (octets_ == 1)
            *at(i) = static_cast<std::uint8_t>(value);
        else
            *reinterpret_cast<std::int16_t*>(at(i)) = static_cast<std::int16_t>(value);
    }

  private:
    std::int64_t count_, octets_;
    Buffer<std::uint8_t> memory_;
};

// Rows that the matrix unit finished and the vector unit has not taken, oldest first.
class AccumulatedRows {
  public:
    explicit AccumulatedRows(int side) : side_(side) {}
    std::int64_t size() const { return static_cast<std::int64_t>(over_.size()) - head_; }
    std::int64_t octets() const { return fpgrad::octets(words_) + fpgrad::octets(over_); }
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
    Buffer<Word> rows[SPACES];   // mask memory's has none
    Buffer<std::uint8_t> masks;  // mask_octets() a row, the lowest lane's bit first
    Mantissas mantissas;         // tiles x T x T
    std::vector<std::int32_t> exponents;
    Buffer<Word> scalars, random;
    AccumulatedRows accumulated;
    Dram& dram;          // of all cores
    Exchange& exchange;  // likewise
    std::int64_t saturated_vector = 0, saturated_accumulator = 0;

    Machine(const Config& c, int core_, Dram& dram_, Exchange& exchange_)
        : config(c), core(core_), depth{0, c.vector_rows, c.inbox_rows, c.outbox_rows, c.mask_rows},
          masks(static_cast<std::size_t>(c.mask_rows * c.mask_octets())),
          mantissas(c.tiles * c.side * c.side, c.narrow()),
          exponents(static_cast<std::size_t>(c.tiles)), scalars(c.side), random(c.side, 1), accumulated(c.side),
          dram(dram_), exchange(exchange_) {
        for (int s = 1; s < SPACE_MASK; ++s) rows[s].resize(static_cast<std::size_t>(depth[s] * c.side));
    }
    // Not of mask memory.
    Word* row(std::int64_t space, std::int64_t address) { return rows[space].data() + address * config.side; }
    std::uint8_t* mask_row(std::int64_t address) { return masks.data() + address * config.mask_octets(); }
    bool mask(std::int64_t address, std::int64_t lane) { return mask_row(address)[lane / 8] >> lane % 8 & 1; }
    void set_mask(std::int64_t address, std::int64_t lane, bool value) {
        std::uint8_t& octet = mask_row(address)[lane / 8];
        octet = static_cast<std::uint8_t>((octet & ~(1 << lane % 8)) | value << lane % 8);
    }
    // A word of any row memory.
    Word word(std::int64_t space, std::int64_t address, std::int64_t lane) {
        if (space == SPACE_MASK) return mask(address, lane) ? config.one_word() : 0;
        return row(space, address)[lane];
    }
};

inline const char* space_name(std::int64_t space) {
    constexpr const char* names[] = {"none", "vector", "inbox", "outbox", "mask"};
    return names[space];
}

}  // namespace fpgrad
