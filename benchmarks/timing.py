"""Times of contenders measured side by side, so that a ratio means something on a busy computer."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray


def interleave(
    contenders: Mapping[str, Callable[[], object]], repetitions: int
) -> dict[str, NDArray[np.float64]]:
    """Run all contenders in turn, ``repetitions`` times, after one round that does not count.

    The order turns by one from round to round: whoever follows a heavy neighbour is another each time.

    Returns:
        wall seconds of each call by contender, one a round.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repetitions + 1):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            elapsed = timed(contenders[name])
            if turn:
                seconds[name].append(elapsed)
    return {name: np.array(values) for name, values in seconds.items()}


def timed(action: Callable[[], object]) -> float:
    """Wall seconds of a call, with the collector of garbage kept out of it."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    finally:
        gc.enable()


def timed_both(action: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds of a call, and the seconds of processor time that it took in all threads."""
    used = 0.0

    def inner() -> None:
        nonlocal used
        before = time.process_time()
        action()
        used = time.process_time() - before

    return timed(inner), used
