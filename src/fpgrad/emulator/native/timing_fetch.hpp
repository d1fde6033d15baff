// Of a streamed program, cycle by cycle and without data: the fetch unit of a core, as gateware/fetch.py has it, and what
// stands between a ring and its unit, as gateware/sequencer.py has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>

#include "instructions.hpp"
#include "timing.hpp"
#include "timing_port.hpp"

namespace fpgrad {

// The two registers between a ring and its unit. Instruction k leaves the ring in cycle R(k) and the first register in
// M(k); the unit can take it from the next cycle on, which it does in T(k):
//     R(k) = max(the cycle from which it is in the ring, M(k - 1)),  M(k) = max(R(k) + 1, T(k - 1)),  T(k) > M(k).
class Ahead {
  public:
    // The next instruction is in the ring from this cycle on.
    void arrive(std::int64_t cycle) { arrived_.push_back(cycle), advance(); }
    // The unit took the oldest.
    void take(std::int64_t cycle) { taken_at_[taken_++ & 1] = cycle, advance(); }
    // The cycle from which the unit can take the next; -1: that is not known yet.
    std::int64_t offer() const {
        if (left_ == taken_) return -1;
        return std::max(left_at_[taken_ & 1] + 1, taken_ ? taken_at_[(taken_ - 1) & 1] : 0) + 1;
    }
    // Cycles in which instructions left the ring that the fetch unit does not know of, which may be yet to come.
    std::deque<std::int64_t> left;

  private:
    void advance() {
        while (!arrived_.empty() && left_ <= taken_ + 1) {
            std::int64_t free = 1;
            if (left_) free = left_at_[(left_ - 1) & 1] + 1;
            if (left_ > 1) free = std::max(free, taken_at_[left_ & 1]);
            const std::int64_t at = std::max(arrived_.front(), free);
            arrived_.pop_front();
            left_at_[left_++ & 1] = at;
            left.push_back(at);
        }
    }
    std::deque<std::int64_t> arrived_;
    std::int64_t left_ = 0, taken_ = 0;               // how many instructions have
    std::int64_t left_at_[2] = {}, taken_at_[2] = {};  // of the last two
};

// Fills the rings.
class FetchUnit {
  public:
    FetchUnit(const Clockwork& c, const Entry& entry, std::int64_t steps) : c_(c) {
        for (int u = 0; u < UNITS; ++u) {
            Walk& walk = walks_[u];
            walk.length = walk.to_go = entry.stop[u] - entry.start[u];
            walk.at = c.phase[u], walk.room = c.ring[u];
            walk.steps = c.streamed && walk.length ? steps : 0;
        }
    }

    Burst burst() const { return second_; }
    bool quiet() const {
        return !first_ && !second_ && !beat_ && order_.empty() &&
               std::none_of(walks_, walks_ + UNITS, [&](const Walk& w) { return wants(w); });
    }
    // The next cycle in which a ring has more room; -1: that is not known.
    std::int64_t earliest(const Ahead* ahead) const {
        std::int64_t at = -1;
        for (int u = 0; u < UNITS; ++u)
            if (walks_[u].steps && !ahead[u].left.empty())
                if (const std::int64_t front = ahead[u].left.front() + ROOM; at < 0 || front < at) at = front;
        return at;
    }
    // One cycle: whether the port takes the burst, and whether a beat comes. Returns whether anything moved, and lets
    // the units know what is in their rings.
    bool step(std::int64_t cycle, bool taken, bool came, Ahead* ahead) {
        bool any = taken || came || beat_;
        for (int u = 0; u < UNITS; ++u)
            for (auto& left = ahead[u].left; !left.empty() && left.front() + ROOM <= cycle; left.pop_front())
                ++walks_[u].room;
        const bool move = !second_ || taken, room = static_cast<std::int64_t>(order_.size()) < c_.fetch_bursts;
        if (beat_) {
            Chosen& burst = order_.front();
            const std::int64_t slot = c_.slot[burst.unit];
            if (++beats_ % slot == 0) ahead[burst.unit].arrive(cycle + 1);
            if (beats_ == burst.count * slot) beats_ = 0, order_.pop_front();
        }
        beat_ = came;
        if (!move) return any;
        second_ = first_, first_ = {};
        for (int distance = 1; room && distance <= UNITS; ++distance) {
            const int u = (last_ + distance) % UNITS;
            if (!wants(walks_[u])) continue;
            const std::int64_t count = choose(walks_[u]);
            order_.push_back({u, count});
            first_ = {count * c_.slot[u], true, FETCHED};
            last_ = u;
            return true;
        }
        return any;
    }

  private:
    // Cycles after which what left a ring is room.
    static constexpr std::int64_t ROOM = 2;
    struct Walk {
        std::int64_t at = 0, to_go = 0, length = 0, room = 0, steps = 0;  // steps: left
    };
    struct Chosen {
        int unit;
        std::int64_t count;
    };
    bool wants(const Walk& w) const { return w.steps && w.room >= c_.fetch_burst; }
    // How many instructions of a walk are next.
    std::int64_t choose(Walk& w) {
        const std::int64_t count = std::min(c_.fetch_burst - w.at % c_.fetch_burst, w.to_go);
        w.at += count, w.to_go -= count, w.room -= count;
        if (!w.to_go) w.at -= w.length, w.to_go = w.length, --w.steps;
        return count;
    }
    const Clockwork& c_;
    Walk walks_[UNITS];
    int last_ = UNITS - 1;
    Burst first_, second_;
    std::deque<Chosen> order_;
    std::int64_t beats_ = 0;  // of the oldest
    bool beat_ = false;
};

}  // namespace fpgrad
