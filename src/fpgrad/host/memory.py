"""Which rows of external memory are in use: first fit, with neighbours joined when rows are given back."""

from __future__ import annotations

from fpgrad.errors import MemoryCapacityError


class RowAllocator:
    """Rows 0 to ``rows - 1`` of T 32-bit words each.

    Args:
        rows: of external memory.
        side: T, for messages.
    """

    def __init__(self, rows: int, side: int) -> None:
        self.rows = rows
        self.side = side
        self._free = [(0, rows)]  # first row and number of rows, ascending
        self._used: dict[int, int] = {}

    @property
    def largest(self) -> int:
        """The rows that one `reserve` can get."""
        return max((size for _, size in self._free), default=0)

    def reserve(self, rows: int) -> int:
        """The first of ``rows`` rows that nothing else uses.

        Raises:
            MemoryCapacityError: there are none left.
        """
        for i, (first, size) in enumerate(self._free):
            if size >= rows:
                rest = [(first + rows, size - rows)] if size > rows else []
                self._free[i : i + 1] = rest
                self._used[first] = rows
                return first
        used = sum(self._used.values())
        wanted, there = (x * self.side * 4 / 2**20 for x in (used + rows, self.rows))
        raise MemoryCapacityError(
            f"device memory holds {there:.3g} MiB; weights and data need {wanted:.3g} MiB. Train with "
            "smaller batches, or raise memory.dram_rows"
        )

    def release(self, first: int) -> None:
        """Give back the rows that :meth:`reserve` returned ``first`` for; twice does nothing."""
        rows = self._used.pop(first, 0)
        if not rows:
            return
        pieces = sorted([*self._free, (first, rows)])
        joined: list[tuple[int, int]] = []
        for start, size in pieces:
            if joined and sum(joined[-1]) == start:
                joined[-1] = joined[-1][0], joined[-1][1] + size
            else:
                joined.append((start, size))
        self._free = joined
