// A few threads that share one piece of work at a time. They spin shortly between pieces, then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
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

    // Calls work(part) for parts 0 to threads-1, part 0 on the caller's thread; returns when all are done.
    void run(const std::function<void(int)>& work) {
        if (workers_.empty())
            for (int part = 1; part < threads_; ++part) workers_.emplace_back([this, part] { serve(part); });
        work_ = &work;
        left_.store(threads_ - 1, std::memory_order_relaxed);
        {
            std::lock_guard lock(mutex_);
            turn_.fetch_add(1, std::memory_order_release);
        }
        if (asleep_.load(std::memory_order_acquire)) wake_.notify_all();
        work(0);
        while (left_.load(std::memory_order_acquire)) pause();
    }

  private:
    static constexpr int SPINS = 2000;

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }
    void serve(int part) {
        std::uint64_t seen = 0;
        for (;;) {
            for (int i = 0; i < SPINS && turn_.load(std::memory_order_acquire) == seen; ++i) pause();
            if (turn_.load(std::memory_order_acquire) == seen) {
                std::unique_lock lock(mutex_);
                ++asleep_;
                wake_.wait(lock, [&] { return stop_ || turn_.load(std::memory_order_acquire) != seen; });
                --asleep_;
            }
            if (stop_) return;
            ++seen;
            (*work_)(part);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<std::uint64_t> turn_{0};
    std::atomic<int> left_{0}, asleep_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace fpgrad
