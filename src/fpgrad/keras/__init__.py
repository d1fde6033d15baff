"""What a Keras user imports: `FPGA`, a model's own methods on the machine. Thin over `flow`."""

from fpgrad.keras.files import load_model
from fpgrad.keras.fpga import BACKENDS, FPGA, machine_of

__all__ = ["BACKENDS", "FPGA", "load_model", "machine_of"]
