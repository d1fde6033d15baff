// Cores run by themselves, each as far as it gets, in threads of their own; then the sums are made that they wait for.
#include "executor.hpp"

#include <algorithm>
#include <exception>

namespace fpgrad {

namespace {

// How often a run looks whether it shall stop.
constexpr std::chrono::milliseconds LOOK{50};

void add(std::vector<std::int64_t>& sum, const std::vector<std::int64_t>& more) {
    sum.resize(more.size(), 0);
    std::transform(sum.begin(), sum.end(), more.begin(), sum.begin(), std::plus<>());
}

}  // namespace

Executor::Executor(const Config& config, int threads, const Kernels& kernels)
    : config_(config), threads_(threads), kernels_(kernels), pool_(std::min(threads, config.cores)) {
    load({});
}

void Executor::load(Program program) {
    cores_.clear();
    program_ = std::move(program);
    dram_ = std::make_unique<Dram>(config_.dram_rows, config_.side);
    exchange_ = std::make_unique<Exchange>(config_, kernels_);
    for (int core = 0; core < config_.cores; ++core)
        cores_.push_back(std::make_unique<Core>(config_, core, program_, kernels_, *dram_, *exchange_,
                                                std::max(1, threads_ / config_.cores)));
}

// Lets every core run until it waits for others or the time is over; returns whether any of them did anything.
bool Executor::turn(Clock::time_point until) {
    if (pool_.threads() == 1) {
        bool any = false;
        for (auto& core : cores_) any |= core->go(until);
        return any;
    }
    std::vector<std::exception_ptr> errors(cores_.size());
    std::atomic<bool> any{false};
    pool_.run(config_.cores, [&](int, int core) {
        try {
            if (cores_[core]->go(until)) any = true;
        } catch (...) {
            errors[core] = std::current_exception();
        }
    });
    for (const auto& error : errors)
        if (error) std::rethrow_exception(error);
    return any;
}

bool Executor::run(const Entry& entry, std::int64_t steps, const std::int64_t* bases,
                   const std::function<bool()>& interrupted) {
    exchange_->clear();
    for (auto& core : cores_) core->start(entry, steps, bases);
    auto next = Clock::now() + LOOK;
    for (bool progress = true; progress;) {
        progress = turn(next);
        progress |= exchange_->sum();
        if (Clock::now() < next) continue;
        if (interrupted()) return false;
        next = Clock::now() + LOOK;
    }
    for (const auto& core : cores_) core->check();
    if (const std::int64_t left = exchange_->left())
        throw Stop{std::to_string(left) + " rows were sent to the exchange and never taken"};
    return true;
}

Saturated Executor::saturated() const {
    Saturated sum;
    for (const auto& core : cores_) {
        add(sum.vector, core->saturated().vector);
        add(sum.accumulator, core->saturated().accumulator);
    }
    sum.sums = cores_[0]->saturated().sums;
    return sum;
}

}  // namespace fpgrad
