// The numbers of fpgrad.isa.config.MachineConfig that decide bits, and the coefficients of its tables.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "instructions.hpp"

namespace fpgrad {

struct Table {
    std::vector<std::int64_t> base, slope;  // empty: the machine does not have the function
};

struct Config {
    int side = 16, mantissa_bits = 8;
    int accumulator_bits = 32, guard_bits = 6;
    int float_exponent_bits = 8, float_mantissa_bits = 15;
    int table_segments = 16, coefficient_bits = 10;
    std::int64_t vector_rows = 0, tiles = 0, inbox_rows = 0, outbox_rows = 0, mask_rows = 0, dram_rows = 0;
    int ways = 4, cores = 1;
    Table tables[FUNCTIONS];

    template <class F> void visit(F f) {
        f("side", side), f("mantissa_bits", mantissa_bits);
        f("accumulator_bits", accumulator_bits), f("guard_bits", guard_bits);
        f("float_exponent_bits", float_exponent_bits), f("float_mantissa_bits", float_mantissa_bits);
        f("table_segments", table_segments), f("coefficient_bits", coefficient_bits);
        f("vector_rows", vector_rows), f("tiles", tiles), f("inbox_rows", inbox_rows);
        f("outbox_rows", outbox_rows), f("mask_rows", mask_rows), f("dram_rows", dram_rows), f("ways", ways), f("cores", cores);
    }
    int width() const { return 1 + float_exponent_bits + float_mantissa_bits; }
    // Memories hold words: a code is the upper end of its word, as in external memory.
    int word_shift() const { return 32 - width(); }
    // Whether mantissas fit into bytes; the emulator keeps wider ones in 16 bits.
    bool narrow() const { return mantissa_bits <= 8; }
    // Octets of a row of mask memory, which has a bit for each lane.
    std::int64_t mask_octets() const { return (side + 7) / 8; }
    std::int64_t tile_limit() const { return (std::int64_t{1} << (mantissa_bits - 1)) - 1; }
    std::int64_t accumulator_limit() const { return (std::int64_t{1} << (accumulator_bits - 1)) - 1; }
    // The word of 1.0, which a set bit of mask memory reads as.
    std::uint32_t one_word() const {
        return static_cast<std::uint32_t>(((1 << (float_exponent_bits - 1)) - 1)) << (float_mantissa_bits + word_shift());
    }
    // Tile products that can be summed whatever their values without saturation.
    std::int64_t safe_terms() const {
        return accumulator_limit() / ((side * tile_limit() * tile_limit()) << guard_bits);
    }
};

// What went wrong in an instruction; the executor adds unit, instruction and step.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] inline void outside(const char* what, std::int64_t low, std::int64_t high, std::int64_t depth) {
    throw Fault(std::string(what) + " addresses " + std::to_string(low) + " to " + std::to_string(high) +
                " are outside its " + std::to_string(depth) + " rows");
}

}  // namespace fpgrad
