"""How many steps the machine runs before the host looks again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, MutableMapping

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
        name: of what the steps do.
        known: the seconds that a step took when last timed, by name: where to begin, if it was.
    """

    def __init__(
        self,
        *,
        single: bool,
        most: int = MAX_STEPS,
        target: float = 0.15,
        name: str = "",
        known: MutableMapping[str, float] | None = None,
    ) -> None:
        #: Whether every step is a group of its own.
        self.single = single
        self._most = 1 if single else min(most, MAX_STEPS)
        self._target = target
        self._name = name
        self._known = {} if known is None else known
        seconds = self._known.get(name)
        wanted = 4 if seconds is None else target / seconds
        self._steps = int(max(1, min(wanted, self._most)))

    @property
    def steps(self) -> int:
        """Steps in the next group."""
        return self._steps

    @contextlib.contextmanager
    def timing(self, steps: int) -> Iterator[None]:
        """Notes how long a group of ``steps`` steps takes."""
        start = time.perf_counter()
        yield
        seconds = max(time.perf_counter() - start, 1e-6) / steps
        self._known[self._name] = seconds
        wanted = self._target / seconds
        # At most eightfold at once: the first groups are dominated by warming up.
        self._steps = int(max(1, min(wanted, 8 * self._steps, self._most)))
