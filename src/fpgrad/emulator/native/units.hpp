// The four units in the form of the reference: one function an instruction, any format.
#pragma once

#include "instructions.hpp"
#include "machine.hpp"

namespace fpgrad {

// The load and store units.
void run_load(Machine& m, const Load& i, const std::int64_t* bases, std::int64_t step);
void run_store(Machine& m, const Store& i, const std::int64_t* bases, std::int64_t step);

// The matrix and vector units, by integer arithmetic on codes; `saturated` gets the instruction's count.
void run_matrix(Machine& m, const Matrix& i);
void run_vector(Machine& m, const Vector& i, std::int64_t& saturated);

// Smallest and largest address of an affine loop nest, checked against a memory.
void check_nest(const char* what, std::int64_t base, std::int64_t n2, std::int64_t s2, std::int64_t n1,
                std::int64_t s1, std::int64_t n0, std::int64_t s0, std::int64_t depth);

}  // namespace fpgrad
