"""Seeds of the training steps, from which the device draws dropout masks.

A step's seed depends on a base seed and the step's number, so that a run that is stopped and
resumed draws the same masks. The base comes from the seeds of the model's Dropout layers, or from
Python's generator, which ``keras.utils.set_random_seed`` sets.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

__all__ = ["StepSeeds"]


class StepSeeds:
    """Draws one 64-bit seed for each step."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._base: int | None = None

    def draw(self, first: int, steps: int) -> np.ndarray:
        """Returns the seeds of steps ``first`` to ``first + steps``, shape (steps,), uint64."""
        numbers = np.arange(first, first + steps, dtype=np.uint64)
        return _mix(numbers + np.uint64(self.base))

    @property
    def base(self) -> int:
        """From which the seeds of all steps follow."""
        if self._base is None:
            self._base = self._choose()
        return self._base

    @base.setter
    def base(self, base: int) -> None:
        self._base = base

    def _choose(self) -> int:
        given = [
            int(layer.seed)
            for layer in self._model._flatten_layers(include_self=False)
            if hasattr(layer, "rate") and getattr(layer, "seed", None) is not None
        ]
        if given:
            entropy = [seed & 0xFFFFFFFFFFFFFFFF for seed in given]
        else:
            entropy = [random.getrandbits(64)]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): neighbouring numbers become unrelated seeds."""
    with np.errstate(over="ignore"):
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
