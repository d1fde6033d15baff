// What cores send each other: rows, of which all cores receive the sum. The bits are those of reference/exchange.py.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.hpp"
#include "config.hpp"
#include "kernels.hpp"

namespace fpgrad {

// While cores run, each in a thread of its own, every one sends and takes its own rows. Sums are made between.
class Exchange {
  public:
    Exchange(const Config& config, const Kernels& kernels);

    // Forgets rows and sums: a run begins.
    void clear();
    void send(int core, const Word* row);
    // Whether so many sums are there that a core has not taken.
    bool ready(int core, std::int64_t rows) const { return made_ - taken_[core] >= rows; }
    // A core's next sum; returns how many of its numbers an addition clamped.
    int take(int core, Word* row);
    // Makes the sums of rows that all cores have sent; whether there were any. Not while a core runs.
    bool sum();
    // Rows that were sent and not taken by all.
    std::int64_t left() const;
    std::int64_t octets() const {
        std::int64_t sum = fpgrad::octets(sums_) + fpgrad::octets(clamped_) + fpgrad::octets(taken_);
        for (const auto& rows : sent_) sum += fpgrad::octets(rows);
        return sum;
    }
    // Numbers that an addition clamped.
    std::int64_t saturated() const { return saturated_; }

  private:
    bool odd(std::int64_t rows) const;
    bool add(std::int64_t rows);
    void add_exactly(std::int64_t rows);
    std::int64_t sent(int core) const { return static_cast<std::int64_t>(sent_[core].size()) / config_.side; }

    const Config config_;
    const Kernels& kernels_;
    bool covered_;  // whether the format is that of the kernels
    std::vector<Buffer<Word>> sent_;  // each core's rows that are in no sum
    Buffer<Word> sums_;               // the last of those made: what not every core has taken is among them
    std::vector<std::uint8_t> clamped_;  // numbers of each of these that an addition clamped
    std::int64_t made_ = 0;              // sums made since the run began
    std::vector<std::int64_t> taken_;    // sums each core has taken since
    std::int64_t saturated_ = 0;
};

}  // namespace fpgrad
