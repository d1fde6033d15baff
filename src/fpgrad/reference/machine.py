"""The state of a machine, as plain arrays: what instructions read and write."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from fpgrad.errors import ExecutionError
from fpgrad.formats.smallfloat import Codes, Flags
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Space
from fpgrad.reference.exchange import Exchange

#: DRAM rows are kept in blocks of this many, made when they are first written.
BLOCK = 1 << 12


class External:
    """External memory, which all cores share: rows of T 32-bit words, made when they are first touched."""

    def __init__(self, config: MachineConfig) -> None:
        self.limit, self.side = config.memory.dram_rows, config.side
        self.words = np.zeros((0, self.side), np.uint32)

    def rows(self, row: int, rows: int) -> np.ndarray:
        """A view of rows.

        Raises:
            ExecutionError: outside external memory.
        """
        if row < 0 or row + rows > self.limit:
            raise ExecutionError(
                f"DRAM rows {row} to {row + rows - 1} are outside the {self.limit} rows of the machine"
            )
        if row + rows > len(self.words):
            depth = min(self.limit, -(-(row + rows) // BLOCK) * BLOCK)
            grown = np.zeros((depth, self.side), np.uint32)
            grown[: len(self.words)] = self.words
            self.words = grown
        return self.words[row : row + rows]


@dataclass
class Machine:
    """One core. On-chip memories hold codes (int64), external memory holds 32-bit words."""

    config: MachineConfig
    external: External
    exchange: Exchange
    core: int = 0
    vector: Codes = field(init=False)
    inbox: Codes = field(init=False)
    outbox: Codes = field(init=False)
    mask: Codes = field(init=False)
    mantissas: Codes = field(init=False)
    exponents: Codes = field(init=False)
    scalars: Codes = field(init=False)
    random: Codes = field(init=False)
    accumulated: deque[tuple[Codes, Flags]] = field(init=False)
    saturated_vector: int = 0
    saturated_accumulator: int = 0

    def __post_init__(self) -> None:
        t, m = self.config.side, self.config.memory
        self.vector = np.zeros((m.vector_rows, t), np.int64)
        self.inbox = np.zeros((m.inbox_rows, t), np.int64)
        self.outbox = np.zeros((m.outbox_rows, t), np.int64)
        self.mask = np.zeros((m.mask_rows, t), np.int64)
        self.mantissas = np.zeros((m.tiles, t, t), np.int64)
        self.exponents = np.zeros(m.tiles, np.int64)
        self.scalars = np.zeros(t, np.int64)
        self.random = np.ones(t, np.int64)
        # Rows that the matrix unit finished and the vector unit has not taken: codes and saturation flags.
        self.accumulated = deque()

    def rows(self, space: Space) -> Codes:
        """The row memory of ``space``.

        Raises:
            ExecutionError: ``space`` is NONE.
        """
        if space is Space.VECTOR:
            return self.vector
        if space is Space.INBOX:
            return self.inbox
        if space is Space.OUTBOX:
            return self.outbox
        if space is Space.MASK:
            return self.mask
        raise ExecutionError("an operand reads a memory stream whose space is NONE")


def check_range(what: str, addresses: Codes, depth: int) -> None:
    """Raise when an address is outside its memory.

    Raises:
        ExecutionError: naming the smallest and largest address and the depth.
    """
    low, high = int(addresses.min()), int(addresses.max())
    if low < 0 or high >= depth:
        raise ExecutionError(f"{what} addresses {low} to {high} are outside its {depth} rows")
