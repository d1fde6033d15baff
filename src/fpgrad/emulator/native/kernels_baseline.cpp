// Kernels for every processor that the compiler's target has: vectors of four lanes.
#define FPGRAD_LEVEL baseline
#define FPGRAD_LANES 4

#include "kernels_impl.hpp"

namespace fpgrad {

static bool supported() {
    return true;
}

const Kernels kernels_baseline = {
    "baseline",         supported,          baseline::pass, baseline::products,
    baseline::drain, baseline::pair, baseline::transpose, baseline::odd,
};

}  // namespace fpgrad
