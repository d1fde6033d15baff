// Kernels compiled for avx2; see kernels.hpp.
