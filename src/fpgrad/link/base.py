"""What every way to a machine offers: its registers, its external memory, and waiting for a run to end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fpgrad.isa.registers import Register, Status


class Link(ABC):
    """A connection to one machine: a simulation in this process, or a board behind a cable.

    Only the four accesses are a link's own; waiting has a default that asks again and again.
    """

    @abstractmethod
    def write_registers(self, address: int, values: Sequence[int] | NDArray[np.uint32]) -> None:
        """Write words of 32 bits to consecutive register addresses."""

    @abstractmethod
    def read_registers(self, address: int, count: int = 1) -> list[int]:
        """Read words of 32 bits from consecutive register addresses."""

    @abstractmethod
    def write_memory(self, row: int, words: NDArray[np.uint32]) -> None:
        """Write rows of external memory; ``words`` has shape (rows, T)."""

    @abstractmethod
    def read_memory(self, row: int, rows: int) -> NDArray[np.uint32]:
        """Read rows of external memory, shape (rows, T)."""

    @abstractmethod
    def clear(self) -> None:
        """Bring the machine to its first state: all memories zero, nothing running."""

    def wait(self, timeout: float) -> Status:
        """Wait until the run ends, until no unit can go on, or for ``timeout`` seconds.

        Returns:
            the status that was read last; RUNNING without QUIET means that the time was over.
        """
        end = time.monotonic() + timeout
        pause = 1e-4
        while True:
            status = Status(self.read_registers(Register.STATUS)[0])
            if not status & Status.RUNNING or status & Status.QUIET or time.monotonic() > end:
                return status
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    @abstractmethod
    def close(self) -> None:
        """Give the connection up; a closed link is not used again."""
