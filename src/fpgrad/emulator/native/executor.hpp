// Runs programs on all cores of a machine.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core.hpp"

namespace fpgrad {

class Executor {
  public:
    // Threads: as many as the cores share. Where there are more of them than cores, each core has some for itself.
    Executor(const Config& config, int threads, const Kernels& kernels);

    // Makes a program the current one; all memories are cleared.
    void load(Program program);

    // Runs steps of an entry, a core's instructions in the order of core.cpp. `interrupted` is asked every now and
    // then; when it says yes, the run stops and false is returned. Throws Stop.
    bool run(const Entry& entry, std::int64_t steps, const std::int64_t* bases,
             const std::function<bool()>& interrupted);

    const Config& config() const { return config_; }
    Machine& machine(int core) { return cores_.at(static_cast<std::size_t>(core))->machine(); }
    const FastPath& fast(int core) const { return cores_.at(static_cast<std::size_t>(core))->fast(); }
    Dram& dram() { return *dram_; }
    const Exchange& exchange() const { return *exchange_; }
    const Program& program() const { return program_; }
    // To be called after memories were changed from outside.
    void memories_changed(int core) { cores_.at(static_cast<std::size_t>(core))->memories_changed(); }
    // Since the program was loaded: elements that saturated on all cores, each sum counted once.
    Saturated saturated() const;

  private:
    bool turn(Clock::time_point until);

    const Config config_;
    const int threads_;
    const Kernels& kernels_;
    Pool pool_;
    Program program_;
    std::unique_ptr<Dram> dram_;
    std::unique_ptr<Exchange> exchange_;
    std::vector<std::unique_ptr<Core>> cores_;
};

}  // namespace fpgrad
