"""Data sets and generators as a source of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fpgrad.errors import DataShapeError
from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import numpy_batches, to_numpy, unpack
from fpgrad.keras.data import Layout
from fpgrad.keras.placing import Group, Machine, Packed, Placed, packed, sums_by_batch

__all__ = ["StreamSource"]

#: Steps in the largest group of batches.
MOST_STEPS = 64


class StreamSource:
    """Batches as a data set or a generator yields them, checked as they come.

    The arguments are those of :func:`fpgrad.keras.sources.open_source`.
    """

    exact = False

    def __init__(
        self,
        x: Any,
        *,
        steps: int | None,
        shuffle: bool | str,
        class_weight: dict[int, float] | None,
        with_target: bool,
    ) -> None:
        self._iterator = numpy_batches(
            x, steps=steps, shuffle=bool(shuffle), class_weight=class_weight
        )
        self._with_target = with_target
        self._layout: Layout | None = None
        self._group = Group()
        self.most_steps = MOST_STEPS
        #: The user's code alone knows.
        self.order = None
        self._limit: int | None = self._iterator.data_adapter.batch_size

    @property
    def identity(self) -> Any:
        """See :class:`fpgrad.keras.sources.Source`."""
        return "stream"

    @property
    def num_batches(self) -> int | None:
        """See :class:`fpgrad.keras.sources.Source`."""
        return self._iterator.num_batches

    def prepare(self, layout: Layout) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._layout = layout

    def reset(self) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._iterator.reset()

    def epoch(self) -> Iterator[tuple[Any, Any, Any]]:
        """See :class:`fpgrad.keras.sources.Source`."""
        for _, _, (batch,) in self._iterator:
            yield unpack(batch)

    def largest(self, batches: Sequence[tuple[Any, Any, Any]]) -> int:
        """See :class:`fpgrad.keras.sources.Source`."""
        sizes = [_length(x) for x, _, _ in batches]
        return max(sizes + ([int(self._limit)] if self._limit else []))

    def resident(self, machine: Machine, normaliser: Normaliser) -> bool:  # noqa: ARG002
        """See :class:`fpgrad.keras.sources.Source`."""
        return False

    def fitting(self, machine: Machine, normaliser: Normaliser) -> int:  # noqa: ARG002
        """See :class:`fpgrad.keras.sources.Source`."""
        self.most_steps = min(MOST_STEPS, self._group.fitting(machine))
        return self.most_steps

    def stage(
        self,
        machine: Machine,
        batches: Sequence[tuple[Any, Any, Any]],
        normaliser: Normaliser,
    ) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        make = partial(self._packed, machine, batches, normaliser)
        self._group.stage(machine, batches, make)

    def place(
        self, machine: Machine, batches: Sequence[tuple[Any, Any, Any]], normaliser: Normaliser
    ) -> Placed:
        """See :class:`fpgrad.keras.sources.Source`."""
        make = partial(self._packed, machine, batches, normaliser)
        return self._group.place(machine, batches, make)

    def _packed(
        self, machine: Machine, batches: Sequence[tuple[Any, Any, Any]], normaliser: Normaliser
    ) -> Packed:
        assert self._layout is not None, "prepare comes first"
        encoded = [
            self._layout.encode(x, y, weight, with_target=self._with_target)
            for x, y, weight in batches
        ]
        counts = np.array([len(next(iter(arrays.values()))) for arrays in encoded])
        merged = {name: np.concatenate([arrays[name] for arrays in encoded]) for name in encoded[0]}
        row_weights = merged["sample_weight"][:, 0] if self._with_target else None
        sums = sums_by_batch(row_weights, counts)
        samples = packed(machine, merged, counts, sums, normaliser)
        targets = None
        if self._with_target:
            targets = np.concatenate([to_numpy(y) for _, y, _ in batches])
        return Packed(samples, counts, sums, targets, row_weights)

    def release(self) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._group.release()

    def epoch_steps(self, normaliser: Normaliser) -> int | None:  # noqa: ARG002
        """See :class:`fpgrad.keras.sources.Source`."""
        return None

    def place_epochs(self, machine: Machine, epochs: int) -> Placed:
        """See :class:`fpgrad.keras.sources.Source`."""
        raise AssertionError(f"{epochs} epochs for {machine}: a stream's batches come one by one")

    def close(self) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._group.close()


def _length(x: Any) -> int:
    while isinstance(x, dict | list | tuple):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    if np.ndim(x) == 0:
        raise DataShapeError(f"a batch of x must be an array with samples first, not {x!r}")
    return len(x)
