"""What a Keras user imports: `FPGA`, a model's own methods on the machine. Thin over `flow`."""

from fpgrad.keras.fpga import BACKENDS, FPGA

__all__ = ["BACKENDS", "FPGA"]
