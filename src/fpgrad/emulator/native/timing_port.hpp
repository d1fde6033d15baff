// A core's port to external memory, cycle by cycle and without data: what gateware/axi.py does. Members are registers: what they say holds in the
// cycle that is to be stepped.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "timing.hpp"

namespace fpgrad {

// More than waits in any queue of the port or of its units, and as many beats as can wait in one.
constexpr std::size_t QUEUES = 32, BEATS = 512;
// A register and a spare one behind it.
constexpr std::size_t SPARE = 2;

// A queue with room for N.
template <class T, std::size_t N> class Ring {
  public:
    bool empty() const { return first_ == end_; }
    std::size_t size() const { return end_ - first_; }
    T& front() { return ring_[first_ % N]; }
    const T& front() const { return ring_[first_ % N]; }
    void pop() { ++first_; }
    void push(const T& x) { ring_[end_++ % N] = x; }

  private:
    std::array<T, N> ring_{};
    std::size_t first_ = 0, end_ = 0;
};

// Rows of external memory, if there are any; of reads, the flag says that they are numbers of groups, of writes, that
// they are an instruction's last.
struct Request {
    std::int64_t row = 0;
    std::int32_t rows = 0;
    bool flag = false;
    explicit operator bool() const { return rows; }
};

// The flag of a burst of a streamed program.
constexpr std::uint8_t FETCHED = 2;

// Beats, if there are any; whether they are the request's last, and the request's flag.
struct Burst {
    std::int64_t beats = 0;
    bool last = false;
    std::uint8_t flag = 0;
    explicit operator bool() const { return beats; }
};

// Makes bursts of requests: a burst goes up to the next boundary.
class Splitter {
  public:
    Splitter(const Clockwork& c, std::int64_t largest) : row_beats_(c.side / c.words), largest_(largest) {}

    bool busy() const { return left_; }
    Burst burst() const {
        const std::int64_t beats = std::min(left_, room());
        return {beats, left_ == beats, flag_};
    }
    bool ready(bool leaves) const { return !left_ || (leaves && left_ <= room()); }
    void step(bool leaves, const Request& request) {
        if (ready(leaves))
            beat_ = request.row * row_beats_, left_ = request.rows * row_beats_, flag_ = request.flag;
        else if (leaves)
            left_ -= room(), beat_ += room();
    }

  private:
    // A power of two.
    std::int64_t room() const { return largest_ - (beat_ & (largest_ - 1)); }
    const std::int64_t row_beats_, largest_;
    bool flag_ = false;
    std::int64_t beat_ = 0, left_ = 0;
};

// A core's port: the read half.
class ReadPort {
  public:
    explicit ReadPort(const Clockwork& c) : splitter_(c, c.read_burst), room_(c.read_queue) {}

    bool quiet() const { return ar_.empty() && !splitter_.busy() && beats_.empty(); }
    Burst ar() const { return ar_.empty() ? Burst{} : ar_.front(); }
    // Whether AR has room for a burst; whether it is ready for a request beside a fetched burst, which goes first.
    bool takes() const { return ar_.size() < SPARE; }
    bool ready(bool fetched) const { return splitter_.ready(go() && !fetched); }
    bool there() const { return !beats_.empty(); }
    bool index() const { return beats_.front(); }
    // The unit's request, if the port is ready for it, and a fetched burst; whether the unit's beat goes; whether the
    // burst on AR does; whether a beat comes, and its flag.
    void step(const Request& request, const Burst& fetched, bool pop, bool arready, bool came, std::uint8_t flag) {
        const bool room = takes(), leaves = go() && !fetched;
        if (pop) beats_.pop(), ++room_;
        if (came && flag != FETCHED) beats_.push(flag);
        if (arready && !ar_.empty()) ar_.pop();
        if (room && fetched) ar_.push(fetched);
        if (leaves && splitter_.busy()) ar_.push(splitter_.burst()), room_ -= splitter_.burst().beats;
        splitter_.step(leaves, request);
    }

  private:
    // Whether a request's burst, if there is one, can go: there will be room for its beats.
    bool go() const { return takes() && splitter_.burst().beats <= room_; }
    Splitter splitter_;
    std::int64_t room_;  // for beats that are not asked for
    Ring<Burst, QUEUES> ar_;
    Ring<bool, BEATS> beats_;
};

// The write half. With several cores a burst goes when all its beats wait; with one, its beats follow it.
class WritePort {
  public:
    explicit WritePort(const Clockwork& c)
        : splitter_(c, c.write_burst), room_(static_cast<std::size_t>(c.writes)),
          queue_(c.cores > 1 ? static_cast<std::size_t>(c.write_queue) : 0) {}

    bool quiet() const {
        return aw_.empty() && w_.empty() && !splitter_.busy() && ends_.empty() && beats_.empty() && !answered_;
    }
    Burst aw() const { return aw_.empty() ? Burst{} : aw_.front(); }
    // Whether a beat is on W, and whether it is its burst's last.
    bool w() const { return !w_.empty(); }
    bool last() const { return w_.front(); }
    bool ready() const { return splitter_.ready(go()); }
    // Whether it takes a beat in this cycle.
    bool takes() const { return queue_ ? beats_.size() < queue_ : sends(); }
    // The last beat of a request with its flag is in external memory.
    bool written() const { return answered_ && ends_.front(); }
    void step(const Request& request, bool beat, bool awready, bool wready, bool bvalid) {
        const bool leaves = go(), sent = queue_ ? sends() && !beats_.empty() : beat;
        const Burst burst = splitter_.burst();
        if (awready && !aw_.empty()) aw_.pop();
        if (wready && !w_.empty()) w_.pop();
        if (sent) {
            const bool last = ++sent_ == lengths_.front();
            w_.push(last);
            if (last) lengths_.pop(), sent_ = 0;
        }
        if (queue_ && sent) beats_.pop();
        if (queue_ && beat) beats_.push(true), ++waiting_;
        if (answered_) ends_.pop();
        answered_ = bvalid;
        if (leaves) {
            aw_.push(burst), lengths_.push(burst.beats), ends_.push(burst.last && burst.flag);
            if (queue_) waiting_ -= burst.beats;
        }
        splitter_.step(leaves, request);
    }

  private:
    bool go() const {
        return splitter_.busy() && aw_.size() < SPARE && lengths_.size() < room_ && ends_.size() < room_ &&
               (!queue_ || splitter_.burst().beats <= waiting_);
    }
    // Whether a beat can go to W.
    bool sends() const { return !lengths_.empty() && w_.size() < SPARE; }
    Splitter splitter_;
    const std::size_t room_, queue_;
    bool answered_ = false;
    std::int64_t sent_ = 0, waiting_ = 0;  // waiting_: beats whose bursts have not gone
    Ring<Burst, QUEUES> aw_;
    Ring<bool, QUEUES> w_, ends_;
    Ring<bool, BEATS> beats_;
    Ring<std::int64_t, QUEUES> lengths_;
};

}  // namespace fpgrad
