// All cores, cycle by cycle. The rules are those that the gateware's modules state.
#include "timing.hpp"

#include <memory>

#include "config.hpp"
#include "timing_core.hpp"
#include "timing_port.hpp"
#include "timing_shared.hpp"

namespace fpgrad {

namespace {

// All cores, the port that they share, and what is behind it.
class System {
  public:
    System(const Program& program, const Entry& entry, std::int64_t steps, const std::vector<std::int64_t>& bases,
           const Clockwork& c)
        : c_(c), memory_(c), reads_(c.cores, ReadPort(c)), writes_(c.cores, WritePort(c)),
          fetches_(c.cores, FetchUnit(c, entry, steps)), interconnect_(c, reads_, writes_), exchange_(c),
          told_(c.cores), sends_(c.cores, false), took_(c.cores, false) {
        for (std::int64_t core = 0; core < c.cores; ++core)
            cores_.push_back(std::make_unique<Follower>(program, entry, steps, bases, c, core, records_));
    }

    std::vector<Record> go() {
        for (auto& core : cores_) core->run_ahead();
        // So long nothing may seem to move while something is on its way.
        const std::int64_t patience =
            64 + c_.latency + c_.refresh_cycles + c_.beat_cost / c_.budget_gain + c_.link * c_.cores;
        std::int64_t still = 0;
        for (std::int64_t cycle = 1;;) {
            still = step(cycle) ? 0 : still + 1;
            if (!quiet() && still < patience) {
                ++cycle;
                continue;
            }
            std::int64_t next = -1;
            for (std::size_t n = 0; n < cores_.size(); ++n)
                for (const std::int64_t at : {cores_[n]->earliest(), fetches_[n].earliest(cores_[n]->ahead)})
                    if (at >= 0 && (next < 0 || at < next)) next = at;
            if (next < 0) break;
            next = std::max(cycle + 1, next);
            memory_.skip(next - cycle - 1);
            cycle = next, still = 0;
        }
        for (const auto& core : cores_)
            if (!core->finished()) throw Fault("the units of the program wait for each other");
        return std::move(records_);
    }

  private:
    bool quiet() const {
        if (!memory_.quiet() || !interconnect_.quiet() || !exchange_.quiet()) return false;
        for (std::size_t n = 0; n < cores_.size(); ++n)
            if (!reads_[n].quiet() || !writes_[n].quiet() || !fetches_[n].quiet() || !cores_[n]->load.quiet() ||
                !cores_[n]->store.quiet())
                return false;
        return true;
    }

    // One cycle; whether anything moved.
    bool step(std::int64_t cycle) {
        bool any = interconnect_.step(cycle, memory_, told_);
        for (std::size_t n = 0; n < cores_.size(); ++n) {
            Follower& core = *cores_[n];
            ReadPort& reads = reads_[n];
            WritePort& writes = writes_[n];
            const Told& told = told_[n];
            const Burst fetched = fetches_[n].burst();
            const bool asks = core.load.request() && reads.ready(static_cast<bool>(fetched));
            const bool tells = core.store.request() && writes.ready();
            const Request read = asks ? core.load.request() : Request{};
            const Request write = tells ? core.store.request() : Request{};
            const bool beat = reads.there(), sends = core.store.beat() && writes.takes();
            sends_[n] = core.store.row() && exchange_.takes(n);
            const auto moved =
                core.step(cycle, {asks, beat, beat && reads.index(), exchange_.there(n, cycle), tells, sends,
                                  writes.written(), static_cast<bool>(sends_[n])});
            took_[n] = moved.took_sum;
            const bool fetches =
                fetches_[n].step(cycle, fetched && reads.takes(), told.came && told.flag == FETCHED, core.ahead);
            if (fetches) core.run_ahead();
            reads.step(read, fetched, moved.pop, told.arready, told.came, told.flag);
            writes.step(write, sends, told.awready, told.wready, told.bvalid);
            any |= moved.any || fetches || moved.pop || moved.took_sum || sends_[n] || asks || tells || sends;
        }
        exchange_.step(cycle, sends_, took_);
        return any;
    }

    using Told = Interconnect::Told;
    const Clockwork& c_;
    std::vector<Record> records_;
    std::vector<std::unique_ptr<Follower>> cores_;
    ExternalMemory memory_;
    std::vector<ReadPort> reads_;  // of each core
    std::vector<WritePort> writes_;
    std::vector<FetchUnit> fetches_;
    Interconnect interconnect_;
    ExchangeChain exchange_;
    std::vector<Told> told_;
    std::vector<char> sends_, took_;  // rows to the exchange and sums from it in this cycle
};

}  // namespace

std::vector<Record> follow(const Program& program, const Entry& entry, std::int64_t steps,
                           const std::vector<std::int64_t>& bases, const Clockwork& clockwork) {
    return System(program, entry, steps, bases, clockwork).go();
}

}  // namespace fpgrad
