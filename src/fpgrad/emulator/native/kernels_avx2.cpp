// Kernels for AVX2 with FMA.
#define FPGRAD_LEVEL avx2
#define FPGRAD_LANES 8

#include "kernels_impl.hpp"

namespace fpgrad {

static bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const Kernels kernels_avx2 = {
    .name = "avx2",
    .supported = supported,
    .pass = avx2::pass,
    .exponents = avx2::exponents,
    .sum = avx2::sum,
    .form = avx2::form,
    .sum_bytes = nullptr,
    .form_bytes = nullptr,
    .drain = avx2::drain,
    .transpose = avx2::transpose,
    .odd = avx2::odd,
};

}  // namespace fpgrad
