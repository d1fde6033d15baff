// The load and store units, cycle by cycle and without data: the rules at the top of gateware/load.py and
// gateware/store.py. Members are registers: what they say holds in the cycle that is to be stepped.
#pragma once

#include <cstdint>

#include "instructions.hpp"
#include "timing.hpp"
#include "timing_port.hpp"

namespace fpgrad {

// What a group of a transfer is made of.
struct Group {
    std::int64_t rows = 0;                     // of external memory
    std::int64_t exponents = 0, units = 0;     // a row of T words, T bytes or T bits is a unit
    std::int16_t unit_beats = 0, beat_units = 0;  // beats a unit, or units a beat: one of them is 1

    Group() = default;
    template <class I> Group(const Clockwork& c, const I& i) : rows(i.rows), exponents(0), units(i.rows) {
        const std::int64_t t = c.side, beat = 32 * c.words;
        std::int64_t bits = 32 * t;
        if (i.kind == BYTES) bits = 8 * t, units = 4 * i.rows;
        if (i.kind == MASKS) bits = t, units = 32 * i.rows;
        if (i.kind == TILES) {
            bits = 8 * t, units = i.rows * t, exponents = i.rows;
            rows = (i.rows + 4 * t - 1) / (4 * t) + i.rows * t / 4;
        }
        unit_beats = static_cast<std::int16_t>(std::max<std::int64_t>(1, bits / beat));
        beat_units = static_cast<std::int16_t>(std::max<std::int64_t>(1, beat / bits));
    }
};

// A unit on its way, if there is one: how many beats it is, or how many of it are a beat.
struct Piece {
    std::int16_t beats = 0, units = 0;
    std::uint8_t kind = 0;
    bool exponent = false, pads = false, last = false;
    explicit operator bool() const { return beats; }
};

// Walks the pieces of transfers without a pause between them.
class Places {
  public:
    explicit Places(const Clockwork& c) : c_(c) {}

    bool ready() const { return static_cast<std::int64_t>(queue_.size()) < c_.flight; }
    bool quiet() const { return !place && queue_.empty(); }
    Piece place;
    template <class I> void step(bool taken, const I* pushed) {
        const bool load = !place || (taken && place.last);
        if (load) {
            place = {};
            if (!queue_.empty()) {
                walk_ = queue_.front(), queue_.pop();
                next();
            }
        } else if (taken) {
            next();
        }
        if (pushed) queue_.push({Group(c_, *pushed), static_cast<std::uint8_t>(pushed->kind), pushed->count, 0});
    }

  private:
    struct Walk {
        Group group;
        std::uint8_t kind;
        std::int64_t groups, at;  // left, units of this one
    };
    void next() {
        const Group& g = walk_.group;
        if (walk_.at < g.exponents) {
            const auto octets = static_cast<std::int16_t>(4 * c_.words);
            place = {1, octets, walk_.kind, true, ++walk_.at == g.exponents, false};
            return;
        }
        const bool ends = ++walk_.at == g.exponents + g.units;
        place = {g.unit_beats, g.beat_units, walk_.kind, false, false, ends && walk_.groups == 1};
        if (ends) walk_.at = 0, --walk_.groups;
    }
    const Clockwork& c_;
    Ring<Walk, QUEUES> queue_;
    Walk walk_;
};

// Where an address of a step is.
struct Place {
    const std::vector<std::int64_t>& bases;
    std::int64_t step, core;
    std::int64_t operator()(const DramAddress& a) const {
        return bases[a.reg] + a.offset + step * a.step_stride + core * a.core_stride;
    }
};

class LoadUnit {
  public:
    struct In {
        const Load* offered;  // an instruction that it may take, if it is free
        Place place;
        bool granted;      // the port takes the request
        bool beat, index;  // a beat is there, and it is of an index row
        bool sum;          // a sum is there
    };
    struct Out {
        bool done, took, pop, took_sum;
    };

    explicit LoadUnit(const Clockwork& c) : c_(c), row_beats_(c.side / c.words), places_(c) {}

    bool free() const { return state_ == IDLE && places_.ready(); }
    const Request& request() const { return pipe_[2]; }
    // What it writes in this cycle, if nothing is in its way.
    const Piece& writes() const { return full_; }
    bool quiet() const {
        return state_ == IDLE && places_.quiet() && !pipe_[0] && !pipe_[1] && !pipe_[2] && !full_ && !done_ &&
               !row_ends_;
    }
    // Busy: another writes there.
    Out step(const In& in, bool busy) {
        Out out{done_, false, false, false};
        done_ = full_ && !busy && full_.last;
        const bool index_write = in.beat && in.index;
        const bool taken = unpack(in, busy, out);
        if (index_write) out.pop = true;
        const Load* pushed = nullptr;
        ask(in, index_write, taken, pushed);
        out.took = pushed != nullptr;
        places_.step(taken, pushed);
        return out;
    }

  private:
    // Beats and sums become units.
    bool unpack(const In& in, bool busy, Out& out) {
        const Piece place = places_.place;
        const bool data = in.beat && !in.index, room = place && !busy;
        bool taken = false;
        if (drop_ && data) {
            out.pop = true;
            dropped_ = (dropped_ + 1) & (row_beats_ - 1), drop_ = dropped_ != 0;
        } else if (!drop_ && room && place.kind == SUM) {
            taken = out.took_sum = in.sum;
        } else if (!drop_ && room && data) {
            const bool ends = piece_ == std::max(place.beats, place.units) - 1;
            taken = place.beats > 1 ? ends : true;
            out.pop = place.pads || (place.units > 1 ? ends : true);
            piece_ = taken && out.pop ? 0 : piece_ + 1;
            if (out.pop && place.exponent)
                dropped_ = (dropped_ + 1) & (row_beats_ - 1), drop_ = place.pads && dropped_ != 0;
        }
        if (taken)
            full_ = place;
        else if (!busy)
            full_ = {};
        return taken;
    }

    // Instructions become requests.
    void ask(const In& in, bool index_write, bool taken, const Load*& pushed) {
        const std::int64_t t = c_.side, asked = asked_, got = got_index_;
        const bool move = !pipe_[2] || in.granted;
        Request request;
        got_index_ += row_ends_;
        row_ends_ = index_write && index_beat_ == row_beats_ - 1;
        index_beat_ = (index_beat_ + index_write) & (row_beats_ - 1);
        if (state_ == IDLE) {
            if (in.offered) {
                pushed = in.offered, i_ = *in.offered, place_source_ = in.place(i_.source);
                place_index_ = in.place(i_.index), asked_ = asked_index_ = got_index_ = 0;
                rows_ = static_cast<std::int32_t>(Group(c_, i_).rows);
                state_ = i_.kind == SUM ? TAKE : SOURCE;
            }
        } else if (state_ == TAKE) {
            if (taken && full_.last && full_.kind == SUM) state_ = IDLE;
        } else if (move && state_ == SOURCE) {
            state_ = i_.gather ? INDEX : RUN;
        } else if (move && state_ == INDEX) {
            state_ = RUN;
        } else if (move) {
            const std::int64_t blocks = i_.gather ? (i_.count + t - 1) / t : 0;
            if (asked_index_ < blocks && asked_index_ <= asked / t + 1) {
                request = Request{place_index_ + asked_index_++, 1, true};
            } else if (!i_.gather || got > asked / t) {
                // Which groups are gathered is not known; where they are matters little.
                request = Request{place_source_ + asked * i_.stride, rows_, false};
                if (++asked_ == i_.count) state_ = IDLE;
            }
        }
        if (move) pipe_[2] = pipe_[1], pipe_[1] = pipe_[0], pipe_[0] = request;
    }

    enum State { IDLE, SOURCE, INDEX, RUN, TAKE };
    const Clockwork& c_;
    const std::int64_t row_beats_;  // a power of two
    Places places_;
    State state_ = IDLE;
    Load i_;
    std::int64_t place_source_ = 0, place_index_ = 0;
    std::int32_t rows_ = 0;
    std::int64_t asked_ = 0, asked_index_ = 0, got_index_ = 0, index_beat_ = 0;
    bool row_ends_ = false;
    Request pipe_[3];
    std::int64_t piece_ = 0, dropped_ = 0;
    bool drop_ = false, done_ = false;
    Piece full_;  // the unit that is written
};

class StoreUnit {
  public:
    struct In {
        const Store* offered;
        Place place;
        bool granted;  // the port takes the request
        bool sends;    // and the beat
        bool written;  // an instruction's last beat is in external memory
        bool row;      // the exchange takes a row
    };
    struct Out {
        bool done, took;
    };

    explicit StoreUnit(const Clockwork& c)
        : c_(c), row_beats_(c.side / c.words), places_(c), room_(c.store_queue) {}

    bool free() const { return state_ == IDLE && places_.ready(); }
    Request request() const { return state_ == REQUEST ? Request{row_, rows_, left_ == 0} : Request{}; }
    bool beat() const { return full_; }
    bool row() const { return !queue_.empty() && queue_.front().kind == SUM; }
    bool quiet() const {
        return state_ == IDLE && places_.quiet() && !pipe_[0] && !pipe_[1] && queue_.empty() && !full_ && !pad_;
    }
    Out step(const In& in) {
        Out out{in.written, false};
        bool leave = false;
        const bool summed = pack(in, leave);
        const Store* pushed = nullptr;
        ask(in, summed, out, pushed);
        out.took = pushed != nullptr;

        const bool reads = places_.place && room_;
        room_ += leave - reads;
        if (leave) queue_.pop();
        if (pipe_[1]) queue_.push(pipe_[1]);
        pipe_[1] = pipe_[0], pipe_[0] = reads ? places_.place : Piece{};
        places_.step(reads, pushed);
        return out;
    }

  private:
    void ask(const In& in, bool summed, Out& out, const Store*& pushed) {
        const bool answered = writes_ == 0;
        writes_ -= in.written;
        switch (state_) {
        case IDLE:
            if (!in.offered) break;
            pushed = in.offered, i_ = *in.offered, row_ = in.place(i_.target);
            rows_ = static_cast<std::int32_t>(Group(c_, i_).rows), left_ = i_.count - 1;
            state_ = i_.kind == SUM ? SEND : PRODUCT;
            writes_ += i_.kind != SUM;
            break;
        case PRODUCT: state_ = ADDRESS; break;
        case ADDRESS: state_ = REQUEST; break;
        case REQUEST:
            if (!in.granted) break;
            row_ += i_.stride;
            if (left_-- == 0) state_ = IDLE;
            break;
        case SEND:
            if (summed) state_ = SENT;
            break;
        case SENT:
            if (answered) out.done = true, state_ = IDLE;
        }
    }

    // Units become beats, or leave for the exchange; whether the last of a SUM did.
    bool pack(const In& in, bool& leave) {
        const bool free = !full_ || in.sends;
        bool made = false, summed = false;
        if (free && pad_) {
            made = true;
            made_ = (made_ + 1) & (row_beats_ - 1), pad_ = made_ != 0;
        } else if (free && !queue_.empty() && queue_.front().kind != SUM) {
            const Piece& unit = queue_.front();
            const bool ends = piece_ == std::max(unit.beats, unit.units) - 1;
            leave = unit.beats > 1 ? ends : true;
            made = unit.pads || (unit.units > 1 ? ends : true);
            piece_ = leave && made ? 0 : piece_ + 1;
            if (made && unit.exponent) made_ = (made_ + 1) & (row_beats_ - 1), pad_ = unit.pads && made_ != 0;
        }
        if (row() && in.row) leave = true, summed = queue_.front().last;
        full_ = made || (full_ && !in.sends);
        return summed;
    }

    enum State { IDLE, PRODUCT, ADDRESS, REQUEST, SEND, SENT };
    const Clockwork& c_;
    const std::int64_t row_beats_;  // a power of two
    Places places_;
    State state_ = IDLE;
    Store i_;
    std::int64_t row_ = 0, left_ = 0, writes_ = 0;  // writes_: instructions that are not written
    std::int32_t rows_ = 0;
    std::int64_t room_;
    Piece pipe_[2];
    Ring<Piece, QUEUES> queue_;
    std::int64_t piece_ = 0, made_ = 0;
    bool pad_ = false, full_ = false;
};

}  // namespace fpgrad
