"""An order of steps, and when each is estimated to run in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fpgrad.codegen.steps import VectorStep


@dataclass
class Timeline:
    """Cycles of steps, in their order.

    Args:
        order: the steps, by their numbers before they were ordered.
        needs: when each begins to read: a product its tiles, a pass without one its rows.
        starts, ends: of each pass.
    """

    order: list[int] = field(default_factory=list)
    needs: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @classmethod
    def in_turn(cls, steps: Sequence[VectorStep], side: int) -> Timeline:
        """Of steps one after the other."""
        timeline = cls()
        for i, step in enumerate(steps):
            products = 0 if step.matrix is None else step.matrix.products
            start = timeline.cycles
            timeline.add(i, start, start, start + max(step.rows, products * side))
        return timeline

    @property
    def cycles(self) -> int:
        """Of all steps."""
        return self.ends[-1] if self.ends else 0

    def add(self, index: int, need: int, start: int, end: int) -> None:
        """The next step."""
        self.order.append(index)
        self.needs.append(need)
        self.starts.append(start)
        self.ends.append(end)
