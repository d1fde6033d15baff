// Entry point of fpgrad.emulator._native.

#include <nanobind/nanobind.h>

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of the emulator.";
    m.attr("x86_64") = static_cast<bool>(FPGRAD_X86_64);
}
