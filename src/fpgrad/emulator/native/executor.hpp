// Runs programs: a program counter and a step for each unit, and the token channels between them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "fast.hpp"
#include "instructions.hpp"
#include "machine.hpp"

namespace fpgrad {

// Why a run stopped in the middle, and where.
struct Stop {
    std::string message;
    int unit = -1;  // -1: no single instruction is to blame
    std::int64_t index = 0, step = 0;
};

class Executor {
  public:
    Executor(const Config& config, int threads, const Kernels& kernels);

    // Makes a program the current one; all memories are cleared.
    void load(Program program);

    // Runs steps of an entry in the order of the reference. `interrupted` is asked every now and then between
    // instructions; when it says yes, the run stops and false is returned. Throws Stop.
    bool run(const Entry& entry, std::int64_t steps, const std::int64_t* bases,
             const std::function<bool()>& interrupted);

    Machine& machine() { return *machine_; }
    const FastPath& fast() const { return *fast_; }
    const Program& program() const { return program_; }
    // To be called after memories were changed from outside.
    void memories_changed() { fast_->written_by_host(); }
    // Saturated elements of each vector instruction; of each vector instruction's accumulator rows.
    const std::vector<std::int64_t>& saturated_vector() const { return saturated_vector_; }
    const std::vector<std::int64_t>& saturated_accumulator() const { return saturated_accumulator_; }

  private:
    bool ready(int unit) const;
    void execute(int unit);
    std::size_t size(int unit) const;
    const Tokens& wait(int unit) const;
    const Tokens& signal(int unit) const;

    Config config_;
    Program program_;
    const Kernels& kernels_;
    Pool pool_;
    std::unique_ptr<Machine> machine_;
    std::unique_ptr<FastPath> fast_;
    std::vector<std::int64_t> saturated_vector_, saturated_accumulator_;
    // The run in progress.
    Entry entry_{};
    std::int64_t at_[UNITS] = {}, step_[UNITS] = {}, steps_ = 0;
    const std::int64_t* bases_ = nullptr;
};

}  // namespace fpgrad
