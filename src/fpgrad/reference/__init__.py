"""The meaning of each instruction in NumPy, one unit a file: the specification that other executors must equal."""

from fpgrad.reference.executor import ReferenceExecutor

__all__ = ["ReferenceExecutor"]
