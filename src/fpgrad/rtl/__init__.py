"""Runs the generated Verilog under Verilator behind the same link as a board."""

from fpgrad.rtl.executor import RtlExecutor

__all__ = ["RtlExecutor"]
