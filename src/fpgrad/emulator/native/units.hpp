// The four units in the form of the reference: one function an instruction, any format.
#pragma once

#include "instructions.hpp"
#include "machine.hpp"
#include "smallfloat.hpp"

namespace fpgrad {

// The load and store units.
void run_load(Machine& m, const Load& i, const std::int64_t* bases, std::int64_t step);
void run_store(Machine& m, const Store& i, const std::int64_t* bases, std::int64_t step);

// The matrix and vector units, by integer arithmetic on codes; `saturated` gets the instruction's count.
void run_matrix(Machine& m, const Matrix& i);
void run_vector(Machine& m, const Vector& i, std::int64_t& saturated);

// The alu: `p` is the product, `c` the third operand.
Rounded combine(const Float& f, std::int64_t alu, Code p, Code c);

// Quantises n0 rows of words, `stride` words apart, to one tile; returns its exponent.
std::int32_t quantise_tile(const Config& config, const Word* in, std::int64_t stride, std::int64_t n0,
                           std::int16_t* out);

// Smallest and largest address of an affine loop nest, checked against a memory.
void check_nest(const char* what, std::int64_t base, std::int64_t n2, std::int64_t s2, std::int64_t n1,
                std::int64_t s1, std::int64_t n0, std::int64_t s0, std::int64_t depth);

}  // namespace fpgrad
