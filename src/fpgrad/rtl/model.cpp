// The generated machine, external memory as a behavioural model, and the clock: a small C interface for ctypes.
//
// ports.h is written beside the generated sources: SIDE, WORDS (a beat), LATENCY, DRAM_ROWS, and
// READ_BEATS/WRITE_BEATS, the lists of the beats' ports.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vfpgrad_core.h"
#include "Vfpgrad_core___024root.h"
#include "ports.h"
#include "verilated.h"
#include "verilated_syms.h"

// Verilator's own: evaluates all logic between registers.
void Vfpgrad_core___024root___eval_settle(Vfpgrad_core___024root* vlSelf);

namespace {

struct Variable {
    std::string name;
    void* data;
    uint64_t bytes;     // of one element, as Verilator stores it
    uint64_t elements;
};

struct Transfer {
    uint64_t due;   // cycle of the first beat
    uint64_t word;  // next word of external memory
    uint64_t end;
};

struct Machine {
    VerilatedContext context;
    std::unique_ptr<Vfpgrad_core> top;
    uint32_t* dram = nullptr;
    uint64_t now = 0;
    uint64_t written = 0;  // words of external memory up to the last that was written
    std::deque<Transfer> reads, writes;
    std::vector<Variable> variables;
};

constexpr uint64_t kWords = uint64_t{DRAM_ROWS} * SIDE;

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

// One clock cycle. All ports of the design come from registers, so what is read here is settled.
inline void tick(Machine& m) {
    Vfpgrad_core& top = *m.top;
    bool take = false;
    if (!m.reads.empty() && m.reads.front().due <= m.now) {
        const uint64_t word = m.reads.front().word;
        IData* const beats[WORDS] = {READ_BEATS};
        for (int n = 0; n < WORDS; ++n) *beats[n] = word + n < kWords ? m.dram[word + n] : 0;
        top.read_beat_valid = 1;
        take = top.read_beat_ready;
    } else {
        top.read_beat_valid = 0;
    }
    if (top.write_beat_valid && !m.writes.empty()) {
        Transfer& t = m.writes.front();
        const IData beats[WORDS] = {WRITE_BEATS};
        for (int n = 0; n < WORDS; ++n)
            if (t.word + n < kWords) m.dram[t.word + n] = beats[n];
        t.word += WORDS;
        if (t.word > m.written) m.written = t.word < kWords ? t.word : kWords;
        if (t.word >= t.end) m.writes.pop_front();
    }
    if (top.read_request_valid) {
        const uint64_t first = uint64_t{top.read_request_row} * SIDE;
        m.reads.push_back({m.now + LATENCY, first, first + uint64_t{top.read_request_rows} * SIDE});
    }
    if (top.write_request_valid) {
        const uint64_t first = uint64_t{top.write_request_row} * SIDE;
        m.writes.push_back({m.now, first, first + uint64_t{top.write_request_rows} * SIDE});
    }
    if (take) {
        Transfer& t = m.reads.front();
        t.word += WORDS;
        if (t.word >= t.end) m.reads.pop_front();
    }
    top.clk = 1;
    top.eval();
    top.clk = 0;
    top.eval();
    ++m.now;
}

}  // namespace

extern "C" {

void* fpgrad_open() {
    auto m = std::make_unique<Machine>();
    // Zero pages that the system gives only when they are touched.
    m->dram = static_cast<uint32_t*>(std::calloc(kWords, sizeof(uint32_t)));
    if (!m->dram) return nullptr;
    m->top = std::make_unique<Vfpgrad_core>(&m->context, "top");
    m->top->clk = 0;
    m->top->read_request_ready = 1;
    m->top->write_request_ready = 1;
    m->top->write_beat_ready = 1;
    m->top->eval();
    list_variables(*m);
    return m.release();
}

void fpgrad_close(void* handle) {
    auto* m = static_cast<Machine*>(handle);
    // Scopes are erased from the thread's context, which may be that of another machine, or of one already closed.
    Verilated::threadContextp(&m->context);
    m->top->final();
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
    Vfpgrad_core___024root___eval_settle(static_cast<Machine*>(handle)->top->rootp);
}

}  // extern "C"
