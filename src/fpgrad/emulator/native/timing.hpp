// The cycle model: when each instruction starts and ends on the machine, without its data. See timing.py.
#pragma once

#include <cstdint>
#include <vector>

#include "instructions.hpp"

namespace fpgrad {

// What the model has to know of a machine; the pipelines' depths are explained in timing.py.
struct Clockwork {
    std::int64_t side = 16, words = 16, latency = 0, ways = 4;
    std::int64_t rate = 1000;  // beats that external memory moves in a thousand cycles
    std::int64_t offer = 0, outstanding = 0, vector = 0, function = 0, multiply = 0, visible = 0, done = 0, settle = 0;
    std::int64_t quantise = 0, drain = 0, queue = 0;
    std::int64_t flight = 0, burst = 0;
    std::int64_t load_ask = 0, load_index = 0, load_request = 0, load_arrive = 0, load_ready = 0, load_end = 0;
    std::int64_t store_request = 0, store_read = 0, store_leave = 0, store_queue = 0, store_bursts = 0, store_end = 0;

    template <class F> void visit(F f) {
        f("side", side), f("words", words), f("latency", latency), f("ways", ways), f("rate", rate);
        f("offer", offer), f("outstanding", outstanding), f("vector", vector), f("function", function);
        f("multiply", multiply), f("visible", visible), f("done", done), f("settle", settle);
        f("quantise", quantise), f("drain", drain), f("queue", queue);
        f("flight", flight), f("burst", burst), f("load_ask", load_ask), f("load_index", load_index);
        f("load_request", load_request), f("load_arrive", load_arrive), f("load_ready", load_ready);
        f("load_end", load_end), f("store_request", store_request), f("store_read", store_read);
        f("store_leave", store_leave), f("store_queue", store_queue), f("store_bursts", store_bursts);
        f("store_end", store_end);
    }
};

// One instruction of one step: the cycle in which it was issued and the one in which it was complete.
struct Record {
    std::int64_t unit, index, step, start, end;
};

// Follows all units to the end of `steps` steps. Throws Fault when they wait for each other.
std::vector<Record> follow(const Program& program, const Entry& entry, std::int64_t steps, const Clockwork& clockwork);

}  // namespace fpgrad
