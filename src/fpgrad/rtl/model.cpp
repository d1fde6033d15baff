// The generated machine, external memory as a behavioural model, and the clock: a small C interface for ctypes.
//
// ports.h is written beside the generated sources: TOP (the class with the chip's ports), CORES, SIDE, WORDS (a beat),
// LATENCY, DRAM_ROWS, BUDGET_GAIN, BUDGET_BEAT, REFRESH_INTERVAL and REFRESH_CYCLES. docs/rtl.md says what they do.
// cells.h has the class Cell, which holds a core, and what joins several of them to the hub they share. With one core
// TOP and Cell are the same class.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "cells.h"
#include "ports.h"
#include "verilated.h"
#include "verilated_syms.h"

namespace {

constexpr uint32_t kOkay = 0, kSlaveError = 2, kDecodeError = 3;  // responses

struct Variable {
    std::string name;
    void* data;
    uint64_t bytes;     // of one element, as Verilator stores it
    uint64_t elements;
};

struct Burst {
    uint64_t due;   // cycle of the first beat
    uint64_t word;  // next word of external memory
    uint32_t left;  // beats
    uint32_t id;
};

struct Answer {
    uint32_t response;
    uint32_t id;
};

struct Machine {
    VerilatedContext context;
    std::unique_ptr<TOP> top;
    std::vector<std::unique_ptr<Cell>> cells;  // if there are several
    uint32_t* dram = nullptr;
    uint64_t now = 0;
    uint64_t written = 0;  // words of external memory up to the last that was written
    std::deque<Burst> reads, writes;
    uint64_t refresh = 0;        // cycles since the last refresh
    uint64_t budget = 0;         // for moving beats
    bool write_next = false;     // whose turn it is if the budget is not enough for both
    bool offered = false;        // a beat is on the R channel
    uint32_t answer = kOkay;     // to the burst that is being written
    std::deque<Answer> answers;
    std::vector<Variable> variables;
};

constexpr uint64_t kWords = uint64_t{DRAM_ROWS} * SIDE;
constexpr size_t kBeatBytes = 4 * WORDS;

void list_variables(Machine& m) {
    for (const auto& scope : *m.context.scopeNameMap()) {
        if (!scope.second->varsp()) continue;
        for (auto& entry : *scope.second->varsp()) {
            const VerilatedVar& var = entry.second;
            uint64_t elements = 1;
            for (int d = 0; d < var.udims(); ++d) elements *= var.elements(d + 1);
            uint64_t total = var.totalSize();
            m.variables.push_back({std::string(scope.first) + "." + entry.first, var.datap(),
                                   total / elements, elements});
        }
    }
}

// External memory in this cycle: what it does with what is on the design's ports, which take what it says.
inline void serve(Machine& m) {
    TOP& top = *m.top;
    bool refreshing = false;
    if (top.running) {
        m.budget += BUDGET_GAIN;
        if (m.budget > BUDGET_BEAT + BUDGET_GAIN) m.budget = BUDGET_BEAT + BUDGET_GAIN;
        if (REFRESH_INTERVAL) {
            refreshing = m.refresh >= REFRESH_INTERVAL - REFRESH_CYCLES;
            if (++m.refresh == REFRESH_INTERVAL) m.refresh = 0;
        }
    } else {
        // Equal runs take equally long, whenever they begin.
        m.budget = BUDGET_BEAT + BUDGET_GAIN;
        m.refresh = 0;
        m.write_next = false;
    }

    bool read = !m.offered && !m.reads.empty() && m.reads.front().due <= m.now;
    bool write = top.m_axi_wvalid && !m.writes.empty();
    if (refreshing || m.budget < BUDGET_BEAT) {
        read = write = false;
    } else if (read && write && m.budget < 2 * BUDGET_BEAT) {
        (m.write_next ? read : write) = false;
    }

    top.m_axi_bvalid = !m.answers.empty();
    if (!m.answers.empty()) {
        top.m_axi_bresp = m.answers.front().response;
        top.m_axi_bid = m.answers.front().id;
        m.answers.pop_front();
    }
    if (read) {
        Burst& b = m.reads.front();
        const bool inside = b.word + WORDS <= kWords;
        if (inside)
            std::memcpy(&top.m_axi_rdata, m.dram + b.word, kBeatBytes);
        else
            std::memset(&top.m_axi_rdata, 0, kBeatBytes);
        top.m_axi_rresp = inside ? kOkay : kDecodeError;
        top.m_axi_rid = b.id;
        top.m_axi_rlast = b.left == 1;
        b.word += WORDS;
        if (--b.left == 0) m.reads.pop_front();
        m.offered = true;
        m.write_next = true;
        m.budget -= BUDGET_BEAT;
    }
    top.m_axi_rvalid = m.offered;
    if (top.m_axi_rready) m.offered = false;
    top.m_axi_wready = write;
    if (write) {
        Burst& b = m.writes.front();
        if (b.word + WORDS <= kWords) {
            std::memcpy(m.dram + b.word, &top.m_axi_wdata, kBeatBytes);
            m.written = std::max(m.written, b.word + WORDS);
        } else {
            m.answer = kDecodeError;
        }
        b.word += WORDS;
        if (top.m_axi_wlast != (--b.left == 0)) m.answer = kSlaveError;
        if (b.left == 0) {
            m.answers.push_back({m.answer, b.id});
            m.answer = kOkay;
            m.writes.pop_front();
        }
        m.write_next = false;
        m.budget -= BUDGET_BEAT;
    }
    if (top.m_axi_arvalid)
        m.reads.push_back({m.now + LATENCY, top.m_axi_araddr / 4, top.m_axi_arlen + 1u, top.m_axi_arid});
    if (top.m_axi_awvalid)
        m.writes.push_back({m.now, top.m_axi_awaddr / 4, top.m_axi_awlen + 1u, top.m_axi_awid});
}

inline void clock(Machine& m, bool level) {
    m.top->clk = level;
    m.top->eval();
    for (auto& cell : m.cells) {
        cell->clk = level;
        cell->eval();
    }
}

// One clock cycle. All ports of the design, of the hub and of its cells come from registers, so what is read here is
// settled.
inline void tick(Machine& m) {
    serve(m);
#if CORES > 1
    join(*m.top, m.cells.data());
#endif
    clock(m, true);
    clock(m, false);
    ++m.now;
}

}  // namespace

extern "C" {

void* fpgrad_open() {
    auto m = std::make_unique<Machine>();
    // Zero pages that the system gives only when they are touched.
    m->dram = static_cast<uint32_t*>(std::calloc(kWords, sizeof(uint32_t)));
    if (!m->dram) return nullptr;
    m->top = std::make_unique<TOP>(&m->context, "top");
    m->top->m_axi_arready = 1;
    m->top->m_axi_awready = 1;
#if CORES > 1
    for (int core = 0; core < CORES; ++core) {
        const std::string name = "core" + std::to_string(core);
        m->cells.push_back(std::make_unique<Cell>(&m->context, name.c_str()));
        m->cells.back()->number = core;
    }
#endif
    clock(*m, false);
    list_variables(*m);
    return m.release();
}

void fpgrad_close(void* handle) {
    auto* m = static_cast<Machine*>(handle);
    // Scopes are erased from the thread's context, which may be that of another machine, or of one already closed.
    Verilated::threadContextp(&m->context);
    m->top->final();
    for (auto& cell : m->cells) cell->final();
    std::free(m->dram);
    delete m;
}

uint32_t* fpgrad_dram(void* handle) { return static_cast<Machine*>(handle)->dram; }

uint64_t fpgrad_written(void* handle) { return static_cast<Machine*>(handle)->written; }

void fpgrad_write(void* handle, uint32_t address, uint64_t count, const uint32_t* values) {
    auto& m = *static_cast<Machine*>(handle);
    for (uint64_t n = 0; n < count; ++n) {
        m.top->host_address = address + n;
        m.top->host_data = values[n];
        m.top->host_write = 1;
        tick(m);
    }
    m.top->host_write = 0;
}

void fpgrad_read(void* handle, uint32_t address, uint64_t count, uint32_t* values) {
    auto& m = *static_cast<Machine*>(handle);
    for (uint64_t n = 0; n < count; ++n) {
        m.top->host_address = address + n;
        tick(m);  // into the register before the port
        tick(m);
        values[n] = m.top->host_read_data;
    }
}

// Clocks until the run is over, at most `cycles` times; returns how often.
uint64_t fpgrad_run(void* handle, uint64_t cycles) {
    auto& m = *static_cast<Machine*>(handle);
    const uint64_t start = m.now;
    while (m.now - start < cycles) {
        tick(m);
        if (!m.top->running) break;
    }
    return m.now - start;
}

void fpgrad_tick(void* handle, uint64_t cycles) {
    auto& m = *static_cast<Machine*>(handle);
    for (uint64_t n = 0; n < cycles; ++n) tick(m);
}

uint64_t fpgrad_variables(void* handle) { return static_cast<Machine*>(handle)->variables.size(); }

const char* fpgrad_variable(void* handle, uint64_t n, void** data, uint64_t* bytes, uint64_t* elements) {
    const Variable& v = static_cast<Machine*>(handle)->variables[n];
    *data = v.data;
    *bytes = v.bytes;
    *elements = v.elements;
    return v.name.c_str();
}

// To be called after a variable was written.
void fpgrad_settle(void* handle) {
    auto& m = *static_cast<Machine*>(handle);
#if CORES > 1
    for (auto& cell : m.cells) settle(*cell);
#else
    settle(*m.top);
#endif
}

}  // extern "C"
