// What cores share, cycle by cycle and without data: external memory, the way to it and the exchange, as rtl/model.cpp,
// gateware/interconnect.py and gateware/exchange.py have them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "timing.hpp"
#include "timing_port.hpp"

namespace fpgrad {

// What external memory does in a cycle: whether a beat is on R, where it is always taken, its core and its flag; whether
// it takes the one on W; whether it answers a core's burst of writes.
struct Answer {
    bool came = false, wready = false, bvalid = false;
    std::uint8_t flag = 0;
    int core = 0, answered = 0;
};

// A burst of a core, if there is one.
struct Owned {
    Burst burst;
    int core = 0;
};

class ExternalMemory {
  public:
    explicit ExternalMemory(const Clockwork& c)
        : c_(c), most_(c.beat_cost + c.budget_gain), latency_(std::max<std::int64_t>(1, c.latency)), budget_(most_) {}

    bool quiet() const { return reads_.empty() && writes_.empty() && answers_.empty(); }
    // So many cycles pass in which it does nothing.
    void skip(std::int64_t cycles) {
        budget_ = cycles > c_.beat_cost / c_.budget_gain ? most_ : std::min(most_, budget_ + cycles * c_.budget_gain);
        if (c_.refresh_interval) phase_ = (phase_ + cycles) % c_.refresh_interval;
    }
    Answer serve(std::int64_t cycle, const Owned& ar, const Owned& aw, bool w) {
        budget_ = std::min(budget_ + c_.budget_gain, most_);
        const bool refreshing = phase_ >= c_.refresh_interval - c_.refresh_cycles && c_.refresh_interval;
        if (++phase_ >= c_.refresh_interval) phase_ = 0;
        bool read = !reads_.empty() && reads_.front().due <= cycle;
        bool write = w && !writes_.empty();
        if (refreshing || budget_ < c_.beat_cost)
            read = write = false;
        else if (read && write && budget_ < 2 * c_.beat_cost)
            (write_next_ ? read : write) = false;
        Answer out;
        if (!answers_.empty()) out.bvalid = true, out.answered = answers_.front(), answers_.pop_front();
        if (read) {
            out.came = true, out.flag = reads_.front().flag, out.core = reads_.front().core;
            if (!--reads_.front().beats) reads_.pop_front();
            write_next_ = true, budget_ -= c_.beat_cost;
        }
        if (write) {
            out.wready = true;
            if (!--writes_.front().burst.beats) answers_.push_back(writes_.front().core), writes_.pop_front();
            write_next_ = false, budget_ -= c_.beat_cost;
        }
        if (ar.burst) reads_.push_back({cycle + latency_, ar.burst.beats, ar.burst.flag, ar.core});
        if (aw.burst) writes_.push_back(aw);
        return out;
    }

  private:
    struct Read {
        std::int64_t due, beats;
        std::uint8_t flag;
        int core;
    };
    const Clockwork& c_;
    const std::int64_t most_, latency_;
    std::int64_t budget_, phase_ = 0;
    bool write_next_ = false;
    std::deque<Read> reads_;
    std::deque<Owned> writes_;
    std::deque<int> answers_;  // whose
};

// Several cores at the chip's port: what gateware/interconnect.py does. With one core, wires.
class Interconnect {
  public:
    Interconnect(const Clockwork& c, std::vector<ReadPort>& reads, std::vector<WritePort>& writes)
        : cores_(static_cast<int>(c.cores)), owned_(static_cast<std::size_t>(c.owners)), reads_(reads), writes_(writes),
          ar_(c.cores), aw_(c.cores), w_(c.cores) {}

    // What the cores' ports are told in a cycle.
    struct Told {
        bool arready, came;
        std::uint8_t flag;
        bool awready, wready, bvalid;
    };
    bool quiet() const {
        const auto empty = [](const auto& ring) { return ring.empty(); };
        return cores_ == 1 || (ar_turns_.empty() && aw_turns_.empty() && owners_.empty() && out_.empty() && r_.core < 0 &&
                               answered_ < 0 && std::all_of(ar_.begin(), ar_.end(), empty) &&
                               std::all_of(aw_.begin(), aw_.end(), empty) && std::all_of(w_.begin(), w_.end(), empty));
    }
    // One cycle of it and of memory; returns whether memory moved anything.
    bool step(std::int64_t cycle, ExternalMemory& memory, std::vector<Told>& told) {
        if (cores_ == 1) {
            const Answer a = memory.serve(cycle, {reads_[0].ar()}, {writes_[0].aw()}, writes_[0].w());
            told[0] = {true, a.came, a.flag, true, a.wready, a.bvalid};
            return a.came || a.wready || a.bvalid;
        }
        const bool owns = !aw_turns_.empty() && owners_.size() < owned_, writes = !out_.empty();
        const Owned read = ar_turns_.empty() ? Owned{} : ar_turns_.front();
        const Owned write = owns ? aw_turns_.front() : Owned{};
        const Answer a = memory.serve(cycle, read, write, writes);
        for (int n = 0; n < cores_; ++n) {
            told[n] = {ar_[n].size() < SPARE, r_.core == n, r_.flag, aw_[n].size() < SPARE, w_[n].size() < SPARE,
                       answered_ == n};
        }
        r_ = {a.flag, a.came ? a.core : -1};
        answered_ = a.bvalid ? a.answered : -1;

        // Data of writes: whole bursts in the order of their addresses.
        const int owner = owners_.empty() ? -1 : owners_.front();
        const bool moves = owner >= 0 && !w_[owner].empty() && out_.size() < SPARE;
        if (writes && a.wready) out_.pop();
        if (moves) {
            const bool last = w_[owner].front();
            out_.push(last), w_[owner].pop();
            if (last) owners_.pop();
        }
        if (owns) owners_.push(write.core);
        turn(ar_, ar_turns_, last_read_, read.burst.beats > 0);
        turn(aw_, aw_turns_, last_write_, owns);
        for (int n = 0; n < cores_; ++n) {
            if (told[n].arready && reads_[n].ar()) ar_[n].push(reads_[n].ar());
            if (told[n].awready && writes_[n].aw()) aw_[n].push(writes_[n].aw());
            if (told[n].wready && writes_[n].w()) w_[n].push(writes_[n].last());
        }
        return a.came || a.wready || a.bvalid;
    }

  private:
    using Bursts = std::vector<Ring<Burst, QUEUES>>;
    // The next core's burst goes before the port.
    void turn(Bursts& waiting, Ring<Owned, QUEUES>& turns, int& last, bool leaves) {
        const bool room = turns.size() < SPARE;
        if (leaves) turns.pop();
        for (int distance = 1; room && distance <= cores_; ++distance) {
            const int core = (last + distance) % cores_;
            if (waiting[core].empty()) continue;
            turns.push({waiting[core].front(), core}), waiting[core].pop();
            last = core;
            return;
        }
    }
    struct Beat {
        std::uint8_t flag = 0;
        int core = -1;
    };
    const int cores_;
    const std::size_t owned_;
    std::vector<ReadPort>& reads_;
    std::vector<WritePort>& writes_;
    Bursts ar_, aw_;
    std::vector<Ring<bool, QUEUES>> w_;  // whether each beat is its burst's last
    Ring<Owned, QUEUES> ar_turns_, aw_turns_;
    Ring<int, QUEUES> owners_;
    Ring<bool, QUEUES> out_;
    Beat r_;
    int last_read_ = 0, last_write_ = 0, answered_ = -1;
};

// A chain of adders, each with a queue: see gateware/exchange.py.
class ExchangeChain {
  public:
    explicit ExchangeChain(const Clockwork& c)
        : c_(c), cores_(static_cast<std::size_t>(c.cores)), buffers_(cores_, 0), links_(cores_ - 1),
          taken_(cores_, false) {}

    // Whether nothing moves before a core sends or takes a row.
    bool quiet() const {
        for (std::size_t core = 1; core < cores_; ++core) {
            const bool partial = core == 1 ? buffers_[0] > 0 : !links_[core - 2].empty();
            if (partial && buffers_[core] && room(core)) return false;
        }
        return true;
    }
    bool takes(std::size_t core) const { return buffers_[core] < 2; }
    bool there(std::size_t core, std::int64_t cycle) const {
        return cores_ == 1 ? buffers_[0] > 0 : !taken_[core] && total(cores_ - 1, cycle);
    }
    // Which cores send a row and take a sum in this cycle.
    void step(std::int64_t cycle, const std::vector<char>& sends, const std::vector<char>& took) {
        if (cores_ == 1) {
            buffers_[0] += sends[0] - took[0];
            return;
        }
        bool all = total(cores_ - 1, cycle);
        for (std::size_t core = 0; core < cores_; ++core) {
            taken_[core] = taken_[core] || took[core];
            all = all && taken_[core];
        }
        std::vector<char> both(cores_, false);
        for (std::size_t core = 1; core < cores_; ++core)
            both[core] = total(core - 1, cycle) && buffers_[core] && room(core);
        for (std::size_t core = 1; core < cores_; ++core) {
            if (!both[core]) continue;
            core == 1 ? (void)--buffers_[0] : links_[core - 2].pop_front();
            --buffers_[core];
            links_[core - 1].push_back(cycle + c_.link);
        }
        if (all) links_.back().pop_front(), std::fill(taken_.begin(), taken_.end(), false);
        for (std::size_t core = 0; core < cores_; ++core) buffers_[core] += sends[core];
    }

  private:
    bool room(std::size_t core) const { return links_[core - 1].size() < static_cast<std::size_t>(c_.link_queue); }
    // Whether the sum of the rows of cores up to this one is there.
    bool total(std::size_t core, std::int64_t cycle) const {
        return core == 0 ? buffers_[0] > 0 : !links_[core - 1].empty() && links_[core - 1].front() <= cycle;
    }
    const Clockwork& c_;
    const std::size_t cores_;
    std::vector<int> buffers_;                      // rows of each core that wait
    std::vector<std::deque<std::int64_t>> links_;   // when sums can leave each adder
    std::vector<char> taken_;                       // which cores have the sum that is there
};

}  // namespace fpgrad
