"""The native executor: the same bits as the reference, fast, with cycles counted."""

from fpgrad.emulator.executor import EmulatorExecutor, available_levels

__all__ = ["EmulatorExecutor", "available_levels"]
