// The scheduler of a core's units: the same order as reference/executor.py, but that MATRIX does not run far ahead.
#include "core.hpp"

#include "units.hpp"

namespace fpgrad {

namespace {
constexpr const char* UNIT_NAMES[] = {"load", "matrix", "vector", "store"};
// The clock is read after so many instructions: reading it takes as long as a short one.
constexpr int INSTRUCTIONS_A_LOOK = 16;
// The matrix unit waits for the vector unit at so many finished rows: more would leave the cache.
constexpr std::int64_t ROWS_AHEAD = 1024;
}  // namespace

Core::Core(const Config& config, int number, const Program& program, const Kernels& kernels, Dram& dram,
           Exchange& exchange, int threads)
    : program_(program), pool_(threads), machine_(config, number, dram, exchange), fast_(machine_, kernels, pool_) {
    fast_.plan(program_);
    saturated_.vector.assign(program_.vector.size(), 0);
    saturated_.accumulator.assign(program_.vector.size(), 0);
    saturated_.sums.assign(program_.load.size(), 0);
}

void Core::start(const Entry& entry, std::int64_t steps, const std::int64_t* bases) {
    entry_ = entry, steps_ = steps, bases_ = bases;
    for (int u = 0; u < UNITS; ++u) at_[u] = entry.start[u], step_[u] = 0;
}

const Tokens& Core::wait(int unit) const {
    const auto at = static_cast<std::size_t>(at_[unit]);
    switch (unit) {
    case LOAD: return program_.load[at].wait;
    case MATRIX: return program_.matrix[at].wait;
    case VECTOR: return program_.vector[at].wait;
    default: return program_.store[at].wait;
    }
}

const Tokens& Core::signal(int unit) const {
    const auto at = static_cast<std::size_t>(at_[unit]);
    switch (unit) {
    case LOAD: return program_.load[at].signal;
    case MATRIX: return program_.matrix[at].signal;
    case VECTOR: return program_.vector[at].signal;
    default: return program_.store[at].signal;
    }
}

bool Core::ready(int unit) const {
    if (entry_.start[unit] == entry_.stop[unit] || step_[unit] == steps_) return false;
    const Tokens& wanted = wait(unit);
    for (int source = 0; source < UNITS; ++source)
        if (entry_.tokens[source][unit] < wanted.count[source]) return false;
    const auto at = static_cast<std::size_t>(at_[unit]);
    if (unit == LOAD && program_.load[at].kind == SUM)
        return machine_.exchange.ready(machine_.core, program_.load[at].count * program_.load[at].rows);
    return unit != VECTOR || machine_.accumulated.size() >= program_.vector[at].acc_rows();
}

void Core::execute(int unit) {
    const Tokens& taken = wait(unit);
    for (int source = 0; source < UNITS; ++source) entry_.tokens[source][unit] -= taken.count[source];
    const auto at = static_cast<std::size_t>(at_[unit]);
    Machine& m = machine_;
    try {
        switch (unit) {
        case LOAD:
            saturated_.sums[at] += run_load(m, program_.load[at], bases_, step_[unit]);
            fast_.written(program_.load[at]);
            break;
        case MATRIX:
            if (!fast_.matrix(at)) run_matrix(m, program_.matrix[at]);
            break;
        case VECTOR: {
            std::int64_t saturated = 0;
            const std::int64_t before = m.saturated_accumulator;
            if (!fast_.pass(at, saturated)) {
                run_vector(m, program_.vector[at], saturated);
                fast_.written(program_.vector[at]);
            }
            m.saturated_vector += saturated;
            saturated_.vector[at] += saturated;
            saturated_.accumulator[at] += m.saturated_accumulator - before;
            break;
        }
        default: run_store(m, program_.store[at], bases_, step_[unit]);
        }
    } catch (const Fault& fault) {
        throw Stop{fault.what(), m.core, unit, at_[unit], step_[unit]};
    }
    const Tokens& given = signal(unit);
    for (int target = 0; target < UNITS; ++target) entry_.tokens[unit][target] += given.count[target];
    if (++at_[unit] == entry_.stop[unit]) at_[unit] = entry_.start[unit], ++step_[unit];
}

bool Core::go(Clock::time_point until) {
    bool any = false;
    int unseen = 0;
    for (bool progress = true; progress;) {
        progress = false;
        for (int unit = 0; unit < UNITS; ++unit) {
            while (ready(unit)) {
                execute(unit);
                progress = any = true, ++unseen;
                if (unit == MATRIX && machine_.accumulated.size() >= ROWS_AHEAD && ready(VECTOR)) break;
            }
            if (unseen < INSTRUCTIONS_A_LOOK) continue;
            unseen = 0;
            if (Clock::now() >= until) return true;
        }
    }
    return any;
}

void Core::check() const {
    std::string stuck;
    for (int u = 0; u < UNITS; ++u)
        if (entry_.start[u] != entry_.stop[u] && step_[u] != steps_)
            stuck += std::string(stuck.empty() ? "" : ", ") + UNIT_NAMES[u] + " at instruction " +
                     std::to_string(at_[u]) + " of step " + std::to_string(step_[u]);
    const std::string core = machine_.config.cores > 1 ? " of core " + std::to_string(machine_.core) : "";
    if (!stuck.empty()) throw Stop{"the units" + core + " wait for each other: " + stuck};
    if (const std::int64_t left = machine_.accumulated.size())
        throw Stop{std::to_string(left) + " accumulator rows were never taken"};
}

}  // namespace fpgrad
