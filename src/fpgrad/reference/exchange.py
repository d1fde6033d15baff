"""What cores send each other: rows, of which all cores receive the sum. Specification of the exchange."""

from __future__ import annotations

import numpy as np

from fpgrad.formats import smallfloat
from fpgrad.formats.smallfloat import Codes, FloatFormat


class Exchange:
    """Sums of rows over the cores, in the order of the cores.

    Attributes:
        saturated: numbers that an addition clamped.
    """

    def __init__(self, number: FloatFormat, cores: int) -> None:
        self.number = number
        self.sent: list[list[Codes]] = [[] for _ in range(cores)]
        self.taken = [0] * cores
        self.sums: list[Codes] = []
        self.saturated = 0

    def send(self, core: int, rows: Codes) -> None:
        """A core's next rows, shape (rows, T). Sums are made as soon as every core has sent."""
        self.sent[core].extend(rows)
        while all(self.sent):
            total, *others = (rows.pop(0) for rows in self.sent)
            clamped = np.zeros(total.shape, bool)
            for row in others:
                total, flags = smallfloat.add(self.number, total, row)
                clamped |= flags
            self.saturated += int(clamped.sum())
            self.sums.append(total)

    def ready(self, core: int, rows: int) -> bool:
        """Whether so many sums are there that a core has not taken."""
        return len(self.sums) - self.taken[core] >= rows

    def take(self, core: int, rows: int) -> Codes:
        """A core's next sums, shape (rows, T)."""
        first = self.taken[core]
        found = np.array(self.sums[first : first + rows])
        self.taken[core] += rows
        done = min(self.taken)
        del self.sums[:done]
        self.taken = [n - done for n in self.taken]
        return found

    def left(self) -> int:
        """Rows that were sent and not taken by all."""
        waiting = max((len(rows) for rows in self.sent), default=0)
        return waiting + len(self.sums) - min(self.taken)
