// The scheduler of the units: the same order as reference/executor.py.
#include "executor.hpp"

#include <chrono>

#include "units.hpp"

namespace fpgrad {

namespace {
constexpr const char* UNIT_NAMES[] = {"load", "matrix", "vector", "store"};
// The clock is read after so many instructions: reading it takes as long as a short one.
constexpr int INSTRUCTIONS_A_LOOK = 16;
// The matrix unit waits for the vector unit at so many finished rows: more would leave the cache.
constexpr std::int64_t ROWS_AHEAD = 1024;
}

Executor::Executor(const Config& config, int threads, const Kernels& kernels)
    : config_(config), kernels_(kernels), pool_(threads) {
    load({});
}

void Executor::load(Program program) {
    program_ = std::move(program);
    fast_.reset(), machine_.reset();  // before another takes as much
    machine_ = std::make_unique<Machine>(config_);
    fast_ = std::make_unique<FastPath>(*machine_, kernels_, pool_);
    fast_->plan(program_);
    saturated_vector_.assign(program_.vector.size(), 0);
    saturated_accumulator_.assign(program_.vector.size(), 0);
}

const Tokens& Executor::wait(int unit) const {
    const auto at = static_cast<std::size_t>(at_[unit]);
    switch (unit) {
    case LOAD: return program_.load[at].wait;
    case MATRIX: return program_.matrix[at].wait;
    case VECTOR: return program_.vector[at].wait;
    default: return program_.store[at].wait;
    }
}

const Tokens& Executor::signal(int unit) const {
    const auto at = static_cast<std::size_t>(at_[unit]);
    switch (unit) {
    case LOAD: return program_.load[at].signal;
    case MATRIX: return program_.matrix[at].signal;
    case VECTOR: return program_.vector[at].signal;
    default: return program_.store[at].signal;
    }
}

bool Executor::ready(int unit) const {
    if (entry_.start[unit] == entry_.stop[unit] || step_[unit] == steps_) return false;
    const Tokens& wanted = wait(unit);
    for (int source = 0; source < UNITS; ++source)
        if (entry_.tokens[source][unit] < wanted.count[source]) return false;
    return unit != VECTOR ||
           machine_->accumulated.size() >= program_.vector[static_cast<std::size_t>(at_[VECTOR])].acc_rows();
}

void Executor::execute(int unit) {
    const Tokens& taken = wait(unit);
    for (int source = 0; source < UNITS; ++source) entry_.tokens[source][unit] -= taken.count[source];
    const auto at = static_cast<std::size_t>(at_[unit]);
    Machine& m = *machine_;
    try {
        switch (unit) {
        case LOAD:
            run_load(m, program_.load[at], bases_, step_[unit]);
            fast_->written(program_.load[at]);
            break;
        case MATRIX:
            if (!fast_->matrix(at)) run_matrix(m, program_.matrix[at]);
            break;
        case VECTOR: {
            std::int64_t saturated = 0;
            const std::int64_t before = m.saturated_accumulator;
            if (!fast_->pass(at, saturated)) {
                run_vector(m, program_.vector[at], saturated);
                fast_->written(program_.vector[at]);
            }
            m.saturated_vector += saturated;
            saturated_vector_[at] += saturated;
            saturated_accumulator_[at] += m.saturated_accumulator - before;
            break;
        }
        default: run_store(m, program_.store[at], bases_, step_[unit]);
        }
    } catch (const Fault& fault) {
        throw Stop{fault.what(), unit, at_[unit], step_[unit]};
    }
    const Tokens& given = signal(unit);
    for (int target = 0; target < UNITS; ++target) entry_.tokens[unit][target] += given.count[target];
    if (++at_[unit] == entry_.stop[unit]) at_[unit] = entry_.start[unit], ++step_[unit];
}

bool Executor::run(const Entry& entry, std::int64_t steps, const std::int64_t* bases,
                   const std::function<bool()>& interrupted) {
    using Clock = std::chrono::steady_clock;
    entry_ = entry, steps_ = steps, bases_ = bases;
    for (int u = 0; u < UNITS; ++u) at_[u] = entry.start[u], step_[u] = 0;
    auto asked = Clock::now();
    int unseen = 0;
    for (bool progress = true; progress;) {
        progress = false;
        for (int unit = 0; unit < UNITS; ++unit) {
            while (ready(unit)) {
                execute(unit);
                progress = true, ++unseen;
                if (unit == MATRIX && machine_->accumulated.size() >= ROWS_AHEAD && ready(VECTOR)) break;
            }
            if (unseen < INSTRUCTIONS_A_LOOK) continue;
            unseen = 0;
            if (const auto now = Clock::now(); now - asked > std::chrono::milliseconds(50)) {
                if (interrupted()) return false;
                asked = now;
            }
        }
    }
    std::string stuck;
    for (int u = 0; u < UNITS; ++u)
        if (entry_.start[u] != entry_.stop[u] && step_[u] != steps_)
            stuck += std::string(stuck.empty() ? "" : ", ") + UNIT_NAMES[u] + " at instruction " +
                     std::to_string(at_[u]) + " of step " + std::to_string(step_[u]);
    if (!stuck.empty()) throw Stop{"the units wait for each other: " + stuck};
    if (const std::int64_t left = machine_->accumulated.size())
        throw Stop{std::to_string(left) + " accumulator rows were never taken"};
    return true;
}

}  // namespace fpgrad
