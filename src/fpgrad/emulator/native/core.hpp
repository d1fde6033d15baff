// One core of a machine: its state, and how far its four units are in a run.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "fast.hpp"
#include "instructions.hpp"
#include "machine.hpp"

namespace fpgrad {

using Clock = std::chrono::steady_clock;

// Why a run stopped in the middle, and where.
struct Stop {
    std::string message;
    int core = 0, unit = -1;  // unit -1: no single instruction is to blame
    std::int64_t index = 0, step = 0;
};

// Elements that saturated, by the number of an instruction: results of passes, accumulator rows that passes took,
// and sums over the cores that loads took.
struct Saturated {
    std::vector<std::int64_t> vector, accumulator, sums;
};

class Core {
  public:
    Core(const Config& config, int number, const Program& program, const Kernels& kernels, Dram& dram,
         Exchange& exchange, int threads);
    Core(const Core&) = delete;

    void start(const Entry& entry, std::int64_t steps, const std::int64_t* bases);
    // Executes what is ready until nothing is or the time is over; returns whether anything was. Throws Stop.
    bool go(Clock::time_point until);
    // Throws Stop unless the core has come to its end.
    void check() const;

    Machine& machine() { return machine_; }
    const FastPath& fast() const { return fast_; }
    const Saturated& saturated() const { return saturated_; }
    // To be called after memories were changed from outside.
    void memories_changed() { fast_.written_by_host(); }

  private:
    bool ready(int unit) const;
    void execute(int unit);
    const Tokens& wait(int unit) const;
    const Tokens& signal(int unit) const;

    const Program& program_;
    Pool pool_;
    Machine machine_;
    FastPath fast_;
    Saturated saturated_;
    // The run in progress.
    Entry entry_{};
    std::int64_t at_[UNITS] = {}, step_[UNITS] = {}, steps_ = 0;
    const std::int64_t* bases_ = nullptr;
};

}  // namespace fpgrad
