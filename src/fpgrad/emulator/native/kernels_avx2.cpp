// Kernels for AVX2 with FMA.
#define FPGRAD_LEVEL avx2
#define FPGRAD_LANES 8

#include "kernels_impl.hpp"

namespace fpgrad {

static bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const Kernels kernels_avx2 = {
    "avx2",         supported,          avx2::pass, avx2::products,
    avx2::drain, avx2::pair, avx2::transpose, avx2::odd,
};

}  // namespace fpgrad
