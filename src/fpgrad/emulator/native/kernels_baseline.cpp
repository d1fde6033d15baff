// Kernels for every processor that the compiler's target has: vectors of four lanes.
#define FPGRAD_LEVEL baseline
#define FPGRAD_LANES 4

#include "kernels_impl.hpp"

namespace fpgrad {

static bool supported() {
    return true;
}

const Kernels kernels_baseline = {
    .name = "baseline",
    .supported = supported,
    .pass = baseline::pass,
    .exponents = baseline::exponents,
    .sum = baseline::sum,
    .form = baseline::form,
    .sum_bytes = nullptr,
    .form_bytes = nullptr,
    .drain = baseline::drain,
    .transpose = baseline::transpose,
    .odd = baseline::odd,
};

}  // namespace fpgrad
