// A few threads that share one piece of work at a time, in chunks that each takes when it is free.
//
// Between pieces they spin shortly, then sleep. A thread that the system has taken off its core holds up at
// most the chunk it has begun: the caller works through the rest on its own.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fpgrad {

class Pool {
  public:
    explicit Pool(int threads) : threads_(threads) {}
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& w : workers_) w.join();
    }
    Pool(const Pool&) = delete;
    int threads() const { return threads_; }
    // How many chunks to cut a piece of work of `units` into.
    int chunks(std::int64_t units) const {
        return static_cast<int>(units < 4 * threads_ ? units : 4 * threads_);
    }

    // Calls work(thread, chunk) for every chunk below `count`; returns when all are done.
    void run(int count, const std::function<void(int, int)>& work) {
        if (workers_.empty())
            for (int thread = 1; thread < threads_; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
        work_ = &work;
        done_.store(0, std::memory_order_relaxed);
        ++turn_;
        {
            std::lock_guard lock(mutex_);
            ticket_.store(turn_ << 32 | static_cast<std::uint64_t>(count) << 16, std::memory_order_release);
        }
        if (asleep_.load(std::memory_order_acquire)) wake_.notify_all();
        take(0);
        while (done_.load(std::memory_order_acquire) != count) pause();
    }

  private:
    static constexpr int SPINS = 2000;

    // A ticket holds the turn (32 bits), the number of chunks (16) and the next chunk (16): a chunk is taken by
    // an exchange of the whole, so that nobody takes one of a turn that is over.
    static std::uint64_t next(std::uint64_t ticket) { return ticket & 0xFFFF; }
    static bool left(std::uint64_t ticket) { return next(ticket) < (ticket >> 16 & 0xFFFF); }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }
    void take(int thread) {
        std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (left(ticket)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            (*work_)(thread, static_cast<int>(next(ticket)));
            done_.fetch_add(1, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }
    void serve(int thread) {
        while (!stop_) {
            for (int i = 0; i < SPINS && !left(ticket_.load(std::memory_order_acquire)); ++i) pause();
            if (!left(ticket_.load(std::memory_order_acquire))) {
                std::unique_lock lock(mutex_);
                ++asleep_;
                wake_.wait(lock, [&] { return stop_ || left(ticket_.load(std::memory_order_acquire)); });
                --asleep_;
            }
            take(thread);
        }
    }

    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int, int)>* work_ = nullptr;
    std::uint64_t turn_ = 0;
    std::atomic<std::uint64_t> ticket_{0};
    std::atomic<int> done_{0}, asleep_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace fpgrad
