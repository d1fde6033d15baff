// The cycle model: when each instruction starts and ends on the machine, without its data. See timing.py.
#pragma once

#include <cstdint>
#include <vector>

#include "instructions.hpp"

namespace fpgrad {

// What the model has to know of a machine; the pipelines' depths are explained in timing.py.
struct Clockwork {
    std::int64_t side = 16, words = 16, cores = 1;
    // External memory: cycles to a read's first beat, what a beat costs of a budget and what that grows by in a cycle,
    // and when it is refreshed.
    std::int64_t latency = 0, beat_cost = 1, budget_gain = 1, refresh_interval = 0, refresh_cycles = 0;
    std::int64_t offer = 0, outstanding = 0;
    std::int64_t ways = 4, vector = 0, function = 0, multiply = 0, visible = 0, done = 0, settle = 0;
    std::int64_t quantise = 0, drain = 0, queue = 0;
    std::int64_t flight = 0, writes = 0, store_queue = 0, link = 0, link_queue = 0, owners = 0;
    // Beats that a core has room for, and those of its largest bursts.
    std::int64_t read_queue = 0, write_queue = 0, read_burst = 0, write_burst = 0;
    // Of a streamed program: instructions of a burst, bursts on their way, and for each unit the instructions of its
    // ring, the beats of an instruction, and the number of the entry's first, of which only the place in its burst matters.
    std::int64_t streamed = 0, fetch_burst = 1, fetch_bursts = 0, ring[UNITS] = {}, slot[UNITS] = {}, phase[UNITS] = {};

    template <class F> void visit(F f) {
        f("side", side), f("words", words), f("cores", cores), f("latency", latency), f("beat_cost", beat_cost);
        f("budget_gain", budget_gain), f("refresh_interval", refresh_interval), f("refresh_cycles", refresh_cycles);
        f("offer", offer), f("outstanding", outstanding), f("ways", ways), f("vector", vector), f("function", function);
        f("multiply", multiply), f("visible", visible), f("done", done), f("settle", settle);
        f("quantise", quantise), f("drain", drain), f("queue", queue), f("flight", flight), f("writes", writes);
        f("store_queue", store_queue), f("link", link);
        f("read_queue", read_queue), f("write_queue", write_queue);
        f("read_burst", read_burst), f("write_burst", write_burst);
        f("link_queue", link_queue), f("owners", owners), f("streamed", streamed), f("fetch_burst", fetch_burst);
        f("fetch_bursts", fetch_bursts);
        f("ring_load", ring[LOAD]), f("ring_matrix", ring[MATRIX]), f("ring_vector", ring[VECTOR]);
        f("ring_store", ring[STORE]), f("slot_load", slot[LOAD]), f("slot_matrix", slot[MATRIX]);
        f("slot_vector", slot[VECTOR]), f("slot_store", slot[STORE]), f("phase_load", phase[LOAD]);
        f("phase_matrix", phase[MATRIX]), f("phase_vector", phase[VECTOR]), f("phase_store", phase[STORE]);
    }
};

// One instruction of one step on one core: the cycle in which it was issued and the one in which it was complete.
struct Record {
    std::int64_t core, unit, index, step, start, end;
};

// Follows all units to the end of `steps` steps; `bases` are the base registers. Throws Fault when they wait for each
// other.
std::vector<Record> follow(const Program& program, const Entry& entry, std::int64_t steps,
                           const std::vector<std::int64_t>& bases, const Clockwork& clockwork);

}  // namespace fpgrad
