// The fast path: passes and tile products for fp24 (1-8-15), compiled once a level of instructions.
//
// A level's file includes kernels_impl.hpp and exports one table of functions. Only plain pointers and
// counts cross this border: a function of the standard library that was compiled for a wide level could
// otherwise be the copy that the linker keeps for everyone.
#pragma once

#include <cstdint>

namespace fpgrad {

constexpr int LOOPS = 4;

// Rows by an affine nest: data + i3*s[3] + i2*s[2] + i1*s[1] + i0*s[0], strides in words. Of mask memory: rows of bits,
// the lowest lane first, strides in octets.
struct Rows {
    void* data = nullptr;
    std::int64_t s[LOOPS] = {};
    bool bits = false;
    std::int64_t offset(std::int64_t i3, std::int64_t i2, std::int64_t i1, std::int64_t i0) const {
        return i3 * s[3] + i2 * s[2] + i1 * s[1] + i0 * s[0];
    }
    void advance(std::int64_t by) { data = bits ? static_cast<void*>(octets(by)) : words(by); }
    std::uint32_t* words(std::int64_t offset) const { return static_cast<std::uint32_t*>(data) + offset; }
    std::uint8_t* octets(std::int64_t offset) const { return static_cast<std::uint8_t*>(data) + offset; }
};

// The last iteration of a loop, 0 to 3; or always, or never.
enum MaskLoop : int { MASK_ALWAYS = -2, MASK_NEVER = -1 };

// A function table in the form of the kernels: base << 16 | slope, and how an argument is cut.
struct FastTable {
    std::uint32_t entries[128];
    int size, segments, index_shift, base_shift, slope_shift;
};

struct PassArgs {
    std::int64_t n[LOOPS];
    Rows a, b, c, d, target;  // target.data is null when only tiles are written
    bool bits;                // whether an operand's rows are of bits
    bool multiply, post_multiply, reduce;
    std::uint32_t negate_product, negate_c;  // the sign bit, or 0
    int alu, function;
    const FastTable* table;
    // On the last iteration of a loop, rows or lanes from a limit on are zero.
    int row_mask_loop, lane_mask_loop;
    std::int64_t row_limit, lane_limit;
    // Tiles, T*T mantissas each: one for each (i3, i2, i1), or with `flow` as many for each (i3, i2) as the rows of
    // both inner loops fill.
    bool tiled, flow;
    void* tiles;
    bool narrow;  // mantissas are bytes, not 16 bits
    std::int32_t* exponents;
    std::int64_t tile_s[LOOPS];  // of loops 3, 2 and 1
    int mantissa_bits;
    // Recomputes one row exactly, for numbers near the ends of the range: returns its saturated elements among
    // the first `lanes` lanes. `first`: the result is the product itself.
    int (*slow_row)(const void* context, const std::uint32_t* a, const std::uint32_t* b, const std::uint32_t* c,
                    const std::uint32_t* d, bool first, std::int64_t lanes, std::uint32_t* out);
    const void* context;
    // Quantises one tile exactly, for exponents near the lower end of the range.
    void (*slow_tile)(const void* context, const std::uint32_t* rows, std::int64_t stride, std::int64_t n0,
                      void* tile, std::int32_t* exponent);
};

// Tiles in the order in which sums of products read them. In 16 bits: rows of T mantissas (LEFT), pairs of
// neighbouring rows, T/2 rows of T pairs (RIGHT). In bytes: rows of T, with the upper bit turned (LEFT), groups of four
// neighbouring rows, T/4 rows of T groups (RIGHT). Transposed: of the transposed tile.
enum Form : int { LEFT, LEFT_TRANSPOSED, RIGHT, RIGHT_TRANSPOSED, FORMS };

// Where the tiles of all terms lie in one form: tile number n in the place n & mask.
struct Places {
    const void* forms;
    std::int64_t mask;
    std::int64_t first;  // tile of the first term
    const std::int32_t* offset;  // from it to each term's
    std::int64_t place(std::int64_t term) const { return (first + offset[term]) & mask; }
};

// The terms of an output tile, and those of them that are to be summed.
struct Terms {
    Places left, right;
    const std::int32_t* exponents;  // of the products; 0: there is a tile of zeros
    std::int64_t from, to;
    std::int32_t top, guard;  // a product counts floor(p * 2**(guard - (top - exponent)))
    std::int64_t rows;
};

// Runs a pass; returns saturated elements.
using PassFunction = std::int64_t (*)(const PassArgs& args);

struct Kernels {
    const char* name;
    bool (*supported)();
    // The function for passes with these options and tiles of side T = 4, 8 or 16.
    PassFunction (*pass)(int side, const PassArgs& args);
    // The exponents of products, from those of the first term's tiles on; returns the largest.
    std::int32_t (*exponents)(const std::int32_t* left, const std::int32_t* left_offset, const std::int32_t* right,
                              const std::int32_t* right_offset, std::int64_t count, std::int32_t* out);
    // sums[r*T + lane] of the terms' rows; there is room for T rows.
    void (*sum)(int side, const Terms& terms, std::int32_t* sums);
    // A tile in the form for `sum`; narrow: its mantissas are bytes.
    void (*form)(int side, int form, bool narrow, const void* in, void* out);
    // The same in bytes, for narrow tiles of side 16; null where that is not faster.
    void (*sum_bytes)(const Terms& terms, std::int32_t* sums);
    void (*form_bytes)(int form, const void* in, void* out);
    // Sums to words, for a power of two that no result leaves the range with.
    void (*drain)(const std::int32_t* sums, std::int64_t count, std::int32_t power, std::uint32_t* words);
    // out = the transposed matrix of 32-bit words.
    void (*transpose)(std::int64_t rows, std::int64_t columns, const std::uint32_t* in, std::int64_t stride,
                      std::uint32_t* out);
    // Whether any of the words is one that the fast path does not take: -0, subnormal, all-ones exponent.
    bool (*odd)(const std::uint32_t* words, std::int64_t count);
};

extern const Kernels kernels_baseline;
#if FPGRAD_X86_64
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512vnni;
#endif

}  // namespace fpgrad
