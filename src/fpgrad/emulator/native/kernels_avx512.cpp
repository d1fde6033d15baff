// Kernels for AVX-512.
#define FPGRAD_LEVEL avx512
#define FPGRAD_LANES 16

#include "kernels_impl.hpp"

namespace fpgrad {

static bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

const Kernels kernels_avx512 = {
    "avx512",         supported,          avx512::pass, avx512::products,
    avx512::drain, avx512::pair, avx512::transpose, avx512::odd,
};

}  // namespace fpgrad
