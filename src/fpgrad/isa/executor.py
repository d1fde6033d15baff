"""What every executor of programs offers; the reference, the emulator, the RTL and boards are interchangeable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fpgrad.isa.program import Program


@dataclass(frozen=True)
class RunResult:
    """What a run reports.

    Args:
        cycles: clock cycles from start to the end of the last unit; 0 where the executor does not count.
        saturated_vector: results of vector passes (after masking), and sums over the cores, in which any stage
            clamped a number; of all cores together.
        saturated_accumulator: accumulator elements that were clamped on the way, of all cores.
    """

    cycles: int
    saturated_vector: int
    saturated_accumulator: int


class Executor(Protocol):
    """A machine that holds a program, state and external memory."""

    def load_program(self, program: Program) -> None:
        """Make ``program`` the current one; on-chip memories and DRAM are cleared to zero.

        Raises:
            ProgramMismatchError: the program is for another machine.
        """
        ...

    def write(self, row: int, words: NDArray[np.uint32]) -> None:
        """Write rows of external memory: ``words`` has shape (rows, T)."""
        ...

    def read(self, row: int, rows: int) -> NDArray[np.uint32]:
        """Read rows of external memory, shape (rows, T)."""
        ...

    def run(self, entry: str, steps: int, bases: Sequence[int]) -> RunResult:
        """Run ``steps`` steps of an entry; ``bases`` are the DRAM rows of its base registers, in its order.

        Raises:
            ExecutionError: the units wait for each other, or an address is outside its memory.
        """
        ...


class Inspectable(Executor, Protocol):
    """An executor whose memories can be looked at and changed, for comparisons."""

    def dump(self) -> dict[str, NDArray[Any]]:
        """Every memory by name: codes of "vector", "inbox", "outbox", "mask" (0 and 1), "mantissas", "exponents",
        "scalars", "random", and the words of "dram".

        With several cores, all but "dram" have one axis more, the first: the core.
        """
        ...

    def restore(self, memories: Mapping[str, NDArray[Any]]) -> None:
        """Set memories from a dump, or from part of one."""
        ...

    def poke(self, name: str, index: int | tuple[int, ...], value: int) -> None:
        """Overwrite one element of the memory ``name``."""
        ...
