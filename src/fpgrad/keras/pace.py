"""How many steps the machine runs before the host looks again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

__all__ = ["MAX_STEPS", "Pace"]

MAX_STEPS = 4096
"""Metric accumulators on the device are small floats: after 4096 steps the next addition would
begin to fall below their last bit."""


class Pace:
    """Chooses groups of steps that take about ``target`` seconds, so that a bar moves.

    Args:
        single: whether every step is a group of its own.
        most: steps in the largest group.
        target: seconds.
    """

    def __init__(self, *, single: bool, most: int = MAX_STEPS, target: float = 0.15) -> None:
        self._most = 1 if single else min(most, MAX_STEPS)
        self._target = target
        self._steps = min(4, self._most)

    @property
    def steps(self) -> int:
        """Steps in the next group."""
        return self._steps

    @contextlib.contextmanager
    def timing(self, steps: int) -> Iterator[None]:
        """Notes how long a group of ``steps`` steps takes."""
        start = time.perf_counter()
        yield
        wanted = self._target * steps / max(time.perf_counter() - start, 1e-6)
        # At most eightfold at once: the first groups are dominated by warming up.
        self._steps = int(max(1, min(wanted, 8 * self._steps, self._most)))
