// Kernels compiled for avx512; see kernels.hpp.
