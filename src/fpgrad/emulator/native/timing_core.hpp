// One core: MATRIX and VECTOR go as far as they can, in turns: an output tile when the queue of finished rows has room, a
// row when it is there. LOAD and STORE are stepped; what they finish lets the others go on, which are never behind.
#pragma once

#include <algorithm>
#include <deque>
#include <vector>

#include "instructions.hpp"
#include "timing.hpp"
#include "timing_dma.hpp"
#include "timing_fetch.hpp"

namespace fpgrad {

// Output tiles whose exponents the scanner may know ahead.
inline constexpr std::size_t SCANNED_AHEAD = 4;
inline constexpr std::int64_t NEVER = -1000000000;

// The last so many of a sequence of cycles.
class Recent {
  public:
    explicit Recent(std::int64_t size) {
        std::int64_t room = 1;
        while (room < size) room *= 2;
        ring_.assign(room, 0);
    }
    std::int64_t count = 0;
    void push(std::int64_t cycle) { ring_[count++ & (ring_.size() - 1)] = cycle; }
    std::int64_t operator[](std::int64_t number) const { return ring_[number & (ring_.size() - 1)]; }

  private:
    std::vector<std::int64_t> ring_;
};

// Cycles in which the vector unit writes a memory; they are asked for in order.
class Writes {
  public:
    explicit Writes(bool wanted) : wanted_(wanted) {}
    void add(std::int64_t from, std::int64_t to) {
        if (!wanted_) return;
        if (!spans_.empty() && spans_.back().to + 1 == from)
            spans_.back().to = to;
        else
            spans_.push_back({from, to});
    }
    bool at(std::int64_t cycle) {
        while (!spans_.empty() && spans_.front().to < cycle) spans_.pop_front();
        return !spans_.empty() && spans_.front().from <= cycle;
    }

  private:
    struct Span {
        std::int64_t from, to;
    };
    const bool wanted_;
    std::deque<Span> spans_;
};

inline std::int64_t up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit; }

template <class I> bool moves(const std::vector<I>& list, std::int64_t kind) {
    return std::any_of(list.begin(), list.end(), [&](const I& i) { return i.kind == kind; });
}

// One core.
class Follower {
  public:
    Follower(const Program& program, const Entry& entry, std::int64_t steps, const std::vector<std::int64_t>& bases,
             const Clockwork& clockwork, std::int64_t core, std::vector<Record>& records)
        : load(clockwork), store(clockwork), program_(program), entry_(entry), steps_(steps), bases_(bases),
          c_(clockwork), core_(core), records_(records), ready_(2 * clockwork.queue + clockwork.side),
          taken_(2 * clockwork.queue + clockwork.side), tiles_(moves(program.load, TILES)),
          exponents_(moves(program.load, TILES)), masks_(moves(program.load, MASKS)),
          vector_latency_(clockwork.vector) {
        for (int u = 0; u < UNITS; ++u) {
            for (int v = 0; v < UNITS; ++v) channels_[u][v].assign(static_cast<std::size_t>(entry.tokens[u][v]), 0);
            units_[u].index = entry.start[u], units_[u].issued = c_.offer - 1;
            if (entry.start[u] == entry.stop[u]) units_[u].step = steps;
        }
    }

    LoadUnit load;
    StoreUnit store;
    Ahead ahead[UNITS];  // of a streamed program

    // Takes MATRIX and VECTOR as far as they get.
    void run_ahead() {
        for (bool progress = true; progress;) {
            progress = false;
            for (int u : {MATRIX, VECTOR})
                while (advance(u)) progress = true;
        }
    }

    // What the port and the exchange do with the core in a cycle.
    struct Port {
        bool read_granted, beat, index, sum;
        bool write_granted, sends, written, row;
    };
    // Steps LOAD and STORE; whether LOAD took a beat, a sum, and whether anything began, ended, or waits for a pass that
    // writes where LOAD does.
    struct Moved {
        bool pop, took_sum, any;
    };
    Moved step(std::int64_t cycle, const Port& port) {
        const Piece& piece = load.writes();
        bool busy = false;
        if (piece.kind == TILES) busy = piece && (piece.exponent ? exponents_ : tiles_).at(cycle);
        if (piece.kind == MASKS) busy = piece && masks_.at(cycle);
        const auto l = load.step({offered(LOAD, program_.load, cycle), place(LOAD), port.read_granted, port.beat,
                                  port.index, port.sum}, busy);
        const auto s = store.step({offered(STORE, program_.store, cycle), place(STORE), port.write_granted,
                                   port.sends, port.written, port.row});
        if (l.took) take(LOAD, cycle);
        if (s.took) take(STORE, cycle);
        if (l.done) finish(LOAD, cycle);
        if (s.done) finish(STORE, cycle);
        if (l.done || s.done) run_ahead();
        return {l.pop, l.took_sum, l.took || s.took || l.done || s.done || busy};
    }
    // The cycle from which a free LOAD or STORE has something to do; -1: it waits for something unknown.
    std::int64_t earliest() const {
        std::int64_t first = -1;
        for (int u : {LOAD, STORE}) {
            const std::int64_t at = u == LOAD ? (load.free() ? tokens_at(u, program_.load) : -1)
                                              : (store.free() ? tokens_at(u, program_.store) : -1);
            if (at >= 0 && (first < 0 || at < first)) first = at;
        }
        return first;
    }
    bool finished() const {
        return std::all_of(units_, units_ + UNITS,
                           [&](const Of& unit) { return unit.step == steps_ && unit.flying.empty(); });
    }

  private:
    struct Of {
        std::int64_t index = 0, step = 0, issued = 0;
        bool begun = false;  // the instruction has its tokens
        std::int64_t start = 0, end = 0;
        std::deque<std::int64_t> ends;
        std::deque<Record> flying;  // of LOAD and STORE: what has begun and not ended
    };

    template <class F> auto with(int unit, std::int64_t index, F f) const {
        const auto at = static_cast<std::size_t>(index);
        switch (unit) {
        case LOAD: return f(program_.load[at]);
        case MATRIX: return f(program_.matrix[at]);
        case VECTOR: return f(program_.vector[at]);
        default: return f(program_.store[at]);
        }
    }

    // LOAD and STORE -------------------------------------------------------------------------------------------------

    template <class I> std::int64_t tokens_at(int u, const std::vector<I>& list) const {
        const Of& unit = units_[u];
        if (unit.step == steps_ || static_cast<std::int64_t>(unit.flying.size()) == c_.outstanding) return -1;
        std::int64_t at = c_.streamed ? ahead[u].offer() : c_.offer;
        if (at < 0) return -1;
        const Tokens& wait = list[static_cast<std::size_t>(unit.index)].wait;
        for (int s = 0; s < UNITS; ++s) {
            const auto n = static_cast<std::size_t>(wait.count[s]);
            if (n == 0) continue;
            if (channels_[s][u].size() < n) return -1;
            at = std::max(at, channels_[s][u][n - 1]);
        }
        return at;
    }
    template <class I> const I* offered(int u, const std::vector<I>& list, std::int64_t cycle) const {
        if (u == LOAD ? !load.free() : !store.free()) return nullptr;
        const std::int64_t at = tokens_at(u, list);
        return at >= 0 && at <= cycle ? &list[static_cast<std::size_t>(units_[u].index)] : nullptr;
    }
    Place place(int u) const { return {bases_, units_[u].step, core_}; }
    void take(int u, std::int64_t cycle) {
        Of& unit = units_[u];
        const Tokens wait = with(u, unit.index, [](const auto& i) { return i.wait; });
        for (int s = 0; s < UNITS; ++s)
            channels_[s][u].erase(channels_[s][u].begin(), channels_[s][u].begin() + wait.count[s]);
        unit.flying.push_back({core_, u, unit.index, unit.step, cycle, 0});
        if (c_.streamed) ahead[u].take(cycle);
        if (++unit.index == entry_.stop[u]) unit.index = entry_.start[u], ++unit.step;
    }
    void finish(int u, std::int64_t cycle) {
        Record record = units_[u].flying.front();
        units_[u].flying.pop_front();
        record.end = cycle;
        give(record);
    }

    // MATRIX and VECTOR ----------------------------------------------------------------------------------------------

    void give(const Record& record) {
        records_.push_back(record);
        const auto u = static_cast<int>(record.unit);
        const Tokens signal = with(u, record.index, [](const auto& i) { return i.signal; });
        for (int d = 0; d < UNITS; ++d)
            for (Leaf n = 0; n < signal.count[d]; ++n) channels_[u][d].push_back(record.end + 1);
    }

    // Takes a unit one piece further; false when it waits for another or is at its end.
    bool advance(int u) {
        Of& unit = units_[u];
        if (unit.step == steps_) return false;
        if (!unit.begun) {
            std::int64_t earliest = c_.streamed ? ahead[u].offer() : unit.issued + 1;
            if (earliest < 0) return false;
            if (static_cast<std::int64_t>(unit.ends.size()) == c_.outstanding)
                earliest = std::max(earliest, unit.ends.front() + 1);
            const Tokens wait = with(u, unit.index, [](const auto& i) { return i.wait; });
            for (int s = 0; s < UNITS; ++s)
                if (static_cast<Leaf>(channels_[s][u].size()) < wait.count[s]) return false;
            for (int s = 0; s < UNITS; ++s)
                for (Leaf n = 0; n < wait.count[s]; ++n) {
                    earliest = std::max(earliest, channels_[s][u].front());
                    channels_[s][u].pop_front();
                }
            unit.begun = true;
            const auto at = static_cast<std::size_t>(unit.index);
            u == MATRIX ? begin(program_.matrix[at], earliest, unit) : begin(program_.vector[at], earliest, unit);
            if (c_.streamed) ahead[u].take(unit.start);
        }
        bool moved = false;
        const auto at = static_cast<std::size_t>(unit.index);
        if (!(u == MATRIX ? finish(program_.matrix[at], unit, moved) : finish(program_.vector[at], unit, moved)))
            return moved;
        unit.begun = false;
        unit.issued = unit.start;
        if (static_cast<std::int64_t>(unit.ends.size()) == c_.outstanding) unit.ends.pop_front();
        unit.ends.push_back(unit.end);
        give({core_, u, unit.index, unit.step, unit.start, unit.end});
        if (++unit.index == entry_.stop[u]) unit.index = entry_.start[u], ++unit.step;
        return true;
    }

    // MATRIX: products go every T cycles while the queue of finished rows has room --------------------------------

    void begin(const Matrix&, std::int64_t earliest, Of& unit) {
        // The unit takes an instruction when the one before is in the loader, and its last exponents are read.
        unit.start = std::max({earliest, matrix_scan_, matrix_start_ + 1});
        matrix_start_ = std::max(unit.start, matrix_last_);
        matrix_load_ = matrix_start_ + 1;
        matrix_scan_ = unit.start;
        matrix_tile_ = 0;
    }
    bool finish(const Matrix& i, Of& unit, bool& moved) {
        const std::int64_t t = c_.side, terms = i.terms(), tiles = i.outputs();
        for (; matrix_tile_ < tiles; ++matrix_tile_) {
            const std::int64_t needed = ready_.count + i.rows - c_.queue;
            if (needed > taken_.count) return false;
            fetches_.push_back(matrix_load_);
            scan(terms);
            const std::int64_t first = std::max({matrix_load_ + t - 1, matrix_free_, matrix_scan_});
            std::int64_t go = first;
            for (std::int64_t k = 1; k < terms; ++k, go += t) fetches_.push_back(go + 1);
            if (needed > 0) go = std::max(go, taken_[needed - 1] + 1);
            matrix_begun_.push_back(terms == 1 ? go : first);
            matrix_last_ = go, matrix_load_ = go + 1, matrix_free_ = go + i.rows;
            for (std::int64_t r = 0; r < i.rows; ++r) ready_.push(go + 1 + c_.drain + r);
            moved = true;
        }
        unit.end = matrix_last_ + i.rows + 1;
        return true;
    }
    // The scanner reads an output tile's exponents, a pair a cycle, but not when the loader fetches a product's own, and
    // so many output tiles ahead of the array.
    void scan(std::int64_t terms) {
        for (std::int64_t pair = 0; pair < terms; ++pair) {
            ++matrix_scan_;
            if (pair == terms - 1 && matrix_begun_.size() == SCANNED_AHEAD) {
                matrix_scan_ = std::max(matrix_scan_, matrix_begun_.front() + 5);
                matrix_begun_.pop_front();
            }
            while (!fetches_.empty() && fetches_.front() <= matrix_scan_) {
                matrix_scan_ += fetches_.front() == matrix_scan_;
                fetches_.pop_front();
            }
        }
    }

    // VECTOR: a row a cycle; the first waits for fences and for slower passes before it -----------------------------

    void begin(const Vector& v, std::int64_t earliest, Of& unit) {
        unit.start = std::max(earliest, vector_issue_);
        const bool special = v.op != OP_PASS;
        pass_latency_ = c_.vector;
        if (!special) pass_latency_ += c_.function * (v.function > RELU) + c_.multiply * (v.d != ONE);
        pass_next_ = std::max({unit.start + 1, vector_issue_ + 1 + vector_latency_ - pass_latency_, vector_settled_});
        if (v.fence || special) pass_next_ = std::max(pass_next_, vector_issue_ + vector_latency_ + c_.visible);
        pass_row_ = 0;
    }
    bool finish(const Vector& v, Of& unit, bool& moved) {
        const std::int64_t t = c_.side, latency = pass_latency_, n0 = v.loops.n0;
        const bool special = v.op != OP_PASS, tile = v.tile.enable && !special;
        const bool mask = v.target.space == SPACE_MASK;
        const std::int64_t length = v.tile.flow ? v.loops.n1 * n0 : n0, tiles = tile ? up(length, t) : 1;
        const std::int64_t to_tile = latency + c_.quantise;  // from a tile's last row to its last write
        std::int64_t last;
        if (special) {
            last = pass_next_;
            vector_settled_ = last + c_.settle;
        } else if (v.uses(ACC)) {
            const std::int64_t rows = v.rows();
            std::int64_t inner = pass_row_ % length;
            for (; pass_row_ < rows; ++pass_row_) {
                if (taken_.count == ready_.count) return false;
                const bool begins = tile && inner % t == 0;
                std::int64_t at = std::max(pass_next_, ready_[taken_.count]);
                if (begins) at = std::max(at, vector_tile_ - latency), vector_tile_ = at + latency + t;
                // Partial sums come round every few cycles; a late row meets its own.
                if (v.reduce && inner) at = pass_next_ + up(at - pass_next_, c_.ways) * c_.ways;
                taken_.push(at);
                pass_next_ = at + 1;
                if (mask && (!v.reduce || inner >= length - c_.ways)) masks_.add(at + latency, at + latency);
                if (++inner == length) inner = 0;
                if (tile && inner % t == 0) write_tile(at + to_tile);
                moved = true;
            }
            last = pass_next_ - 1;
        } else if (!tile) {
            last = pass_next_ + v.rows() - 1;
            const std::int64_t written = v.reduce ? c_.ways : length;
            for (std::int64_t end = pass_next_ + length - 1; mask && end <= last; end += length)
                masks_.add(end - written + 1 + latency, end + latency);
        } else {
            // Tiles begin T cycles after each other, full or not.
            std::int64_t begins = std::max(pass_next_, vector_tile_ - latency);
            last = begins;
            for (std::int64_t n = 0; n < v.rows() / length * tiles; ++n, begins += t) {
                last = begins + ((n + 1) % tiles ? t : length - (tiles - 1) * t) - 1;
                if (mask) masks_.add(begins + latency, last + latency);
                write_tile(last + to_tile);
            }
            vector_tile_ = begins + latency;
        }
        vector_issue_ = last, vector_latency_ = latency;
        const std::int64_t done = (tile ? vector_written_ : last + latency) + c_.done;
        unit.end = vector_done_ = std::max(done, vector_done_ + 1);
        return true;
    }
    // A tile's last row is written in this cycle, or later if the tile before it is still being written.
    void write_tile(std::int64_t cycle) {
        vector_written_ = std::max(cycle, vector_written_ + c_.side);
        tiles_.add(vector_written_ - c_.side + 1, vector_written_);
        exponents_.add(vector_written_, vector_written_);
    }

    const Program& program_;
    const Entry& entry_;
    const std::int64_t steps_;
    const std::vector<std::int64_t>& bases_;
    const Clockwork& c_;
    const std::int64_t core_;
    std::vector<Record>& records_;
    std::deque<std::int64_t> channels_[UNITS][UNITS];  // cycles from which tokens may be taken
    Of units_[UNITS];
    Recent ready_, taken_;  // rows of the queue between the matrix and the vector unit
    Writes tiles_, exponents_, masks_;
    std::deque<std::int64_t> matrix_begun_;  // when the last output tiles' first products began
    std::deque<std::int64_t> fetches_;       // when products' exponents are fetched
    // When the last instruction came into the loader, the last pair was read, the last product's go was, the next
    // product's first row can be loaded, and its rows streamed.
    std::int64_t matrix_start_ = NEVER, matrix_scan_ = NEVER, matrix_last_ = NEVER, matrix_load_ = 0,
                 matrix_free_ = NEVER, matrix_tile_ = 0;
    // The last row's issue and its pass's latency; when a tile's first row may leave again, when the last was written.
    std::int64_t vector_issue_ = NEVER, vector_latency_, vector_settled_ = 0, vector_tile_ = NEVER,
                 vector_written_ = NEVER, vector_done_ = 0;
    std::int64_t pass_latency_ = 0, pass_next_ = 0, pass_row_ = 0;
};

}  // namespace fpgrad
