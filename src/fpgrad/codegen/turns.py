"""What scheduling has to know of micro-batches: they come one after the other, so that little is alive at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpgrad.codegen.dependencies import Item

#: A micro-batch begins when this part of the work on the one before is left.
OVERLAP = 32


class Turns:
    """Micro-batches, which are computed one after the other: the next begins when little of the last is left to do."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._left: dict[int, int] = {}
        for item in items:
            self._left[item.step.turn] = self._left.get(item.step.turn, 0) + work(item)
        self._enough = {turn: cycles // OVERLAP for turn, cycles in self._left.items()}
        self._now = min(self._left, default=0)

    def allowed(self, ready: list[Item]) -> list[Item]:
        """The items that may go now; all of them, if there are none of the micro-batches whose turn it is."""
        if len(self._left) < 2:
            return ready
        last = self._now + (self._left[self._now] <= self._enough[self._now])
        return [item for item in ready if item.step.turn <= last] or ready

    def note(self, item: Item) -> None:
        """An item has been given its place in the order."""
        turn = item.step.turn
        self._left[turn] -= work(item)
        while not self._left.get(self._now) and self._now < max(self._left):
            self._now += 1


def work(item: Item) -> int:
    """Cycles in which an item keeps one of the units busy."""
    return max(item.rows, item.products)
