// Every unit goes as far as it can, in turns: an instruction when its tokens are there, an output tile when the
// queue of finished rows has room, a row when it is there. The rules are those that the gateware's modules state.
#include "timing.hpp"

#include <algorithm>
#include <deque>

#include "config.hpp"

namespace fpgrad {

namespace {

// Output tiles whose exponents the scanner may know ahead.
constexpr std::size_t SCANNED_AHEAD = 4;
constexpr std::int64_t NEVER = -1000000000;

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

std::int64_t up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit; }

class Follower {
  public:
    Follower(const Program& program, const Entry& entry, std::int64_t steps, const Clockwork& clockwork)
        : program_(program), entry_(entry), steps_(steps), c_(clockwork), ready_(2 * clockwork.queue + clockwork.side),
          taken_(2 * clockwork.queue + clockwork.side), loads_(clockwork.flight + 2), stores_(clockwork.flight + 2),
          vector_latency_(clockwork.vector) {
        for (int u = 0; u < UNITS; ++u) {
            for (int v = 0; v < UNITS; ++v) channels_[u][v].assign(static_cast<std::size_t>(entry.tokens[u][v]), 0);
            units_[u].index = entry.start[u], units_[u].issued = c_.offer - 1;
            if (entry.start[u] == entry.stop[u]) units_[u].step = steps;
        }
    }

    std::vector<Record> go() {
        for (bool progress = true; progress;) {
            progress = false;
            for (int u = 0; u < UNITS; ++u)
                while (advance(u)) progress = true;
        }
        for (int u = 0; u < UNITS; ++u)
            if (units_[u].step != steps_) throw Fault("the units of the program wait for each other");
        return std::move(records_);
    }

  private:
    struct Of {
        std::int64_t index = 0, step = 0, issued = 0;
        bool begun = false;  // the instruction has its tokens
        std::int64_t start = 0, end = 0;
        std::deque<std::int64_t> ends;
    };

    template <class F> auto with(int unit, F f) {
        const auto at = static_cast<std::size_t>(units_[unit].index);
        switch (unit) {
        case LOAD: return f(program_.load[at]);
        case MATRIX: return f(program_.matrix[at]);
        case VECTOR: return f(program_.vector[at]);
        default: return f(program_.store[at]);
        }
    }

    // Takes a unit one piece further; false when it waits for another or is at its end.
    bool advance(int u) {
        Of& unit = units_[u];
        if (unit.step == steps_) return false;
        if (!unit.begun) {
            std::int64_t earliest = unit.issued + 1;
            if (static_cast<std::int64_t>(unit.ends.size()) == c_.outstanding)
                earliest = std::max(earliest, unit.ends.front() + 1);
            const Tokens wait = with(u, [](const auto& i) { return i.wait; });
            for (int s = 0; s < UNITS; ++s)
                if (static_cast<Leaf>(channels_[s][u].size()) < wait.count[s]) return false;
            for (int s = 0; s < UNITS; ++s)
                for (Leaf n = 0; n < wait.count[s]; ++n) {
                    earliest = std::max(earliest, channels_[s][u].front());
                    channels_[s][u].pop_front();
                }
            unit.begun = true;
            with(u, [&](const auto& i) { begin(i, earliest, unit); });
        }
        bool moved = false;
        if (!with(u, [&](const auto& i) { return finish(i, unit, moved); })) return moved;
        unit.begun = false;
        unit.issued = unit.start;
        if (static_cast<std::int64_t>(unit.ends.size()) == c_.outstanding) unit.ends.pop_front();
        unit.ends.push_back(unit.end);
        records_.push_back({u, unit.index, unit.step, unit.start, unit.end});
        const Tokens signal = with(u, [](const auto& i) { return i.signal; });
        for (int d = 0; d < UNITS; ++d)
            for (Leaf n = 0; n < signal.count[d]; ++n) channels_[u][d].push_back(unit.end + 1);
        if (++unit.index == entry_.stop[u]) unit.index = entry_.start[u], ++unit.step;
        return true;
    }

    // What a group of a transfer is made of.
    struct Group {
        std::int64_t rows, beats, exponents, pads, units;
        std::int64_t unit_beats, beat_units;  // beats a unit, or units a beat: one of them is 1
    };

    template <class I> Group group(const I& i) const {
        const std::int64_t t = c_.side, words = c_.words, octets = 4 * words;
        Group g{i.rows, 0, 0, 0, i.rows, 1, 1};
        const auto size = [&](std::int64_t bits) {
            g.unit_beats = std::max<std::int64_t>(1, bits / (32 * words));
            g.beat_units = std::max<std::int64_t>(1, 32 * words / bits);
        };
        if (i.kind == ROWS || i.kind == SUM) {
            size(32 * t);
        } else if (i.kind == BYTES) {
            size(8 * t), g.units = 4 * i.rows;
        } else if (i.kind == MASKS) {
            size(t), g.units = 32 * i.rows;
        } else {
            const std::int64_t head = up(i.rows, 4 * t);
            size(8 * t), g.units = i.rows * t, g.exponents = i.rows, g.rows = head + i.rows * t / 4;
            g.pads = head * t / words - up(i.rows, octets);
        }
        g.beats = g.rows * t / words;
        return g;
    }

    // Cycles from one beat of external memory to the one `beats` later.
    std::int64_t paced(std::int64_t beats) const { return up(beats * 1000, c_.rate); }

    std::int64_t bursts(std::int64_t beats) const { return up(beats, c_.burst); }

    // LOAD: requests run ahead of what comes back ---------------------------------------------------------------

    void begin(const Load& i, std::int64_t earliest, Of& unit) {
        const std::int64_t t = c_.side, row_beats = t / c_.words;
        const Group g = group(i);
        std::int64_t start = std::max(earliest, load_free_);
        if (loads_.count > c_.flight) start = std::max(start, loads_[loads_.count - c_.flight - 1] + 1);
        std::int64_t ask = start + c_.load_ask + (i.gather ? c_.load_index : 0), last = 0;
        const std::int64_t blocks = i.gather ? up(i.count, t) : 0;
        std::vector<std::int64_t> got;
        // Asks in cycle `ask` or later for so many beats; returns when the first of them is there.
        const auto request = [&](std::int64_t beats) {
            const std::int64_t on = std::max(ask + c_.load_request, load_request_);
            load_request_ = on + bursts(beats);
            last = std::max(ask, on - c_.load_request), ask = last + 1;
            const std::int64_t first = std::max(on + c_.load_arrive + c_.latency, load_port_);
            load_port_ = first + paced(beats);
            return first;
        };
        const auto index_row = [&] { got.push_back(request(row_beats) + paced(row_beats - 1) + c_.load_ready); };
        for (std::int64_t b = 0; b < std::min<std::int64_t>(2, blocks); ++b) index_row();
        for (std::int64_t n = 0; n < i.count; ++n) {
            if (i.gather && n % t == 0) {
                const std::int64_t block = n / t;
                if (block && block + 1 < blocks) index_row();
                ask = std::max(ask, got[block]);
            }
            const std::int64_t first = request(g.beats);
            // Exponents, what fills their row, then rows: with so many cycles each.
            const std::int64_t body = g.beat_units > 1 ? g.units : g.units * g.unit_beats;
            const std::int64_t cycles = g.exponents + g.pads + body;
            const std::int64_t final_beat = first + paced(g.beats - 1);
            load_unpacked_ = std::max({std::max(first, load_unpacked_ + 1) + cycles - 1,
                                       final_beat + (g.beat_units > 1 ? g.beat_units - 1 : 0)});
        }
        load_free_ = last + 1;
        unit.start = start, unit.end = load_unpacked_ + c_.load_end;
        loads_.push(unit.end);
    }
    bool finish(const Load&, Of&, bool&) { return true; }

    // STORE: requests and reads run beside each other -------------------------------------------------------------

    void begin(const Store& i, std::int64_t earliest, Of& unit) {
        const Group g = group(i);
        std::int64_t start = std::max(earliest, store_free_);
        if (stores_.count > c_.flight) start = std::max(start, stores_[stores_.count - c_.flight - 1] + 1);
        std::int64_t request = std::max(start + c_.store_request, store_request_);
        store_read_ = std::max(store_read_, start + c_.store_read - 1);
        for (std::int64_t n = 0; n < i.count; ++n) {
            const std::int64_t beat0 = request + c_.store_bursts;
            if (n + 1 < i.count) request += bursts(g.beats);
            std::int64_t sent = 0;
            const auto make = [&] {  // a beat, in cycle store_made_
                store_sent_ = std::max({store_made_ + 1, store_sent_ + 1, beat0 + sent++ / c_.burst, store_kept_ - 1});
                store_kept_ = std::max(store_sent_ + 1, store_kept_ + paced(1));
            };
            const auto unit_ = [&](bool ends, std::int64_t beats) {
                const std::int64_t room = left_.size() < static_cast<std::size_t>(c_.store_queue)
                                              ? 0
                                              : left_.front() + 1;
                if (room) left_.pop_front();
                store_read_ = std::max(store_read_ + 1, room);
                std::int64_t at = std::max(store_read_ + c_.store_leave, store_made_ + 1);
                for (std::int64_t b = 0; b < beats; ++b, ++at) {
                    at = std::max(at, store_sent_);
                    store_made_ = at;
                    if (ends) make();
                }
                left_.push_back(store_made_);
            };
            for (std::int64_t e = 0; e < g.exponents; ++e)
                unit_((e + 1) % (4 * c_.words) == 0 || e + 1 == g.exponents, 1);
            for (std::int64_t p = 0; p < g.pads; ++p) store_made_ = std::max(store_made_ + 1, store_sent_), make();
            for (std::int64_t u = 0; u < g.units; ++u) unit_((u + 1) % g.beat_units == 0, g.unit_beats);
        }
        store_request_ = request + bursts(g.beats);
        store_free_ = request + 1;
        unit.start = start, unit.end = store_kept_ + c_.store_end;
        stores_.push(unit.end);
    }
    bool finish(const Store&, Of&, bool&) { return true; }

    // MATRIX: products go every T cycles while the queue of finished rows has room --------------------------------

    void begin(const Matrix& i, std::int64_t earliest, Of& unit) {
        // The unit takes an instruction when the one before is in the loader.
        unit.start = std::max({earliest, matrix_loading_, matrix_scanned_});
        matrix_go_ = std::max(unit.start, matrix_last_);  // the cycle before the loader's first row
        matrix_loading_ = matrix_go_ + 1;
        matrix_scan_ = unit.start + i.terms() + 1;
        matrix_scanned_ = unit.start;
        matrix_tile_ = 0;
    }
    bool finish(const Matrix& i, Of& unit, bool& moved) {
        const std::int64_t t = c_.side, terms = i.terms(), tiles = i.outputs();
        for (; matrix_tile_ < tiles; ++matrix_tile_) {
            const std::int64_t needed = ready_.count + i.rows - c_.queue;
            if (needed > taken_.count) return false;
            std::int64_t first = std::max(matrix_go_, matrix_last_) + t;
            if (matrix_tile_ == 0) first = std::max(first, matrix_scan_);
            std::int64_t go = first + (terms - 1) * t;
            if (needed > 0) go = std::max(go, taken_[needed - 1] + 1);
            matrix_go_ = matrix_last_ = go;
            // The scanner reads a pair a cycle, so many output tiles ahead of the array.
            matrix_scanned_ += terms;
            if (matrix_begun_.size() == SCANNED_AHEAD) {
                matrix_scanned_ = std::max(matrix_scanned_, matrix_begun_.front() + 5);
                matrix_begun_.pop_front();
            }
            matrix_begun_.push_back(terms == 1 ? go : first);
            for (std::int64_t r = 0; r < i.rows; ++r) ready_.push(go + 1 + c_.drain + r);
            moved = true;
        }
        unit.end = matrix_go_ + i.rows + 1;
        return true;
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
                if (++inner == length) inner = 0;
                if (tile && inner % t == 0) vector_written_ = std::max(at + to_tile, vector_written_ + t);
                moved = true;
            }
            last = pass_next_ - 1;
        } else if (!tile) {
            last = pass_next_ + v.rows() - 1;
        } else {
            // Tiles begin T cycles after each other, full or not.
            const std::int64_t first = std::max(pass_next_, vector_tile_ - latency), all = v.rows() / length * tiles;
            const std::int64_t begun = first + (all - 1) * t, short_of = tiles * t - length;
            last = begun + t - short_of - 1;
            vector_tile_ = begun + latency + t;
            // One that is not full is written as long after the one before it as if it were.
            vector_written_ = std::max(last + (tiles > 1 ? short_of : 0) + to_tile, vector_written_ + all * t);
        }
        vector_issue_ = last, vector_latency_ = latency;
        const std::int64_t done = (tile ? vector_written_ : last + latency) + c_.done;
        unit.end = vector_done_ = std::max(done, vector_done_ + 1);
        return true;
    }

    const Program& program_;
    const Entry& entry_;
    const std::int64_t steps_;
    const Clockwork& c_;
    std::vector<Record> records_;
    std::deque<std::int64_t> channels_[UNITS][UNITS];  // cycles from which tokens may be taken
    Of units_[UNITS];
    Recent ready_, taken_;  // rows of the queue between the matrix and the vector unit
    Recent loads_, stores_;
    std::int64_t load_free_ = 0, load_request_ = 0, load_port_ = 0, load_unpacked_ = NEVER;
    std::int64_t store_free_ = 0, store_request_ = 0, store_read_ = NEVER, store_made_ = NEVER, store_sent_ = NEVER,
                 store_kept_ = NEVER;
    std::deque<std::int64_t> left_;  // when the last units left the queue of STORE
    std::deque<std::int64_t> matrix_begun_;  // when the last output tiles' first products began
    std::int64_t matrix_loading_ = 0, matrix_scanned_ = 0, matrix_last_ = NEVER, matrix_go_ = 0, matrix_scan_ = 0,
                 matrix_tile_ = 0;
    // The last row's issue and its pass's latency; when a tile's first row may leave again, when the last was written.
    std::int64_t vector_issue_ = NEVER, vector_latency_, vector_settled_ = 0, vector_tile_ = NEVER,
                 vector_written_ = NEVER, vector_done_ = 0;
    std::int64_t pass_latency_ = 0, pass_next_ = 0, pass_row_ = 0;
};

}  // namespace

std::vector<Record> follow(const Program& program, const Entry& entry, std::int64_t steps,
                           const Clockwork& clockwork) {
    return Follower(program, entry, steps, clockwork).go();
}

}  // namespace fpgrad
