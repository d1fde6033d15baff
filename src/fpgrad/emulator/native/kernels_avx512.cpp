// Kernels for AVX-512, and for processors that have its sums of byte products too.
#define FPGRAD_LEVEL avx512
#define FPGRAD_LANES 16

#include "kernels_impl.hpp"

namespace fpgrad {

// In kernels_avx512vnni.cpp.
namespace avx512vnni {
std::int32_t exponents(const std::int32_t* left, const std::int32_t* left_offset, const std::int32_t* right,
                       const std::int32_t* right_offset, std::int64_t count, std::int32_t* out);
void sum_bytes(const Terms& terms, std::int32_t* sums);
void form_bytes(int form, const void* in, void* out);
}  // namespace avx512vnni

static bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

const Kernels kernels_avx512 = {
    .name = "avx512",
    .supported = supported,
    .pass = avx512::pass,
    .exponents = avx512::exponents,
    .sum = avx512::sum,
    .form = avx512::form,
    .sum_bytes = nullptr,
    .form_bytes = nullptr,
    .drain = avx512::drain,
    .transpose = avx512::transpose,
    .odd = avx512::odd,
};

static bool supported_vnni() { return supported() && __builtin_cpu_supports("avx512vnni"); }

const Kernels kernels_avx512vnni = {
    .name = "avx512vnni",
    .supported = supported_vnni,
    .pass = avx512::pass,
    .exponents = avx512vnni::exponents,
    .sum = avx512::sum,
    .form = avx512::form,
    .sum_bytes = avx512vnni::sum_bytes,
    .form_bytes = avx512vnni::form_bytes,
    .drain = avx512::drain,
    .transpose = avx512::transpose,
    .odd = avx512::odd,
};

}  // namespace fpgrad
