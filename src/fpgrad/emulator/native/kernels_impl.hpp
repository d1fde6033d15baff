// The kernels of one level. The includer defines FPGRAD_LEVEL (namespace) and FPGRAD_LANES (vector width).
//
// Numbers are fp24 as float32: 16-bit significands. An operation is done in float32 with its exact error
// beside it, and rounded once to 16 bits by both. Rows that come near the ends of the range, where errors
// underflow or results saturate, are recomputed by the exact integer path (PassArgs::slow_row), which also
// counts. Operands are numbers that the machine itself makes: +0 or normal (see Kernels::odd).
#include <cstdint>
#if FPGRAD_X86_64
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "instructions_codes.hpp"
#include "kernels.hpp"

namespace fpgrad::FPGRAD_LEVEL {

#include "simd.hpp"

#include "kernels_arithmetic.hpp"

#include "kernels_pass.hpp"

#include "kernels_matrix.hpp"

}  // namespace fpgrad::FPGRAD_LEVEL
