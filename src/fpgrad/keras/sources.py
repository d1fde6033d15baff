"""Where batches come from: arrays, resident in device memory if it has room for them, or a stream of batches.

Both yield Keras's batches and place groups of them on the device; from there on training does not
care. Arrays are uploaded once if they can be. What comes with its batches is packed, group by group, in a
thread of its own while the group before trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fpgrad.errors import InvalidArgumentError
from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import is_arrays
from fpgrad.keras.arrays import ArraySource
from fpgrad.keras.data import Layout
from fpgrad.keras.placing import Machine, Placed
from fpgrad.keras.streams import StreamSource

__all__ = ["Source", "open_source"]


class Source(Protocol):
    """A supply of batches."""

    exact: bool
    """Whether all batches but the last have the size of `largest`."""
    most_steps: int
    """Batches that may be placed together, as far as is known."""

    order: Any
    """What the order of the next epoch's batches follows from, for JSON; None if that is not known here."""

    @property
    def identity(self) -> Any:
        """What two data sets must have in common to be the same for all that a glance can tell, for JSON."""
        ...

    @property
    def num_batches(self) -> int | None:
        """Batches in an epoch, None if unknown before the first one ended."""
        ...

    def epoch(self) -> Iterator[Any]:
        """Yields the batches of the next epoch."""
        ...

    def reset(self) -> None:
        """Starts again from the first batch."""
        ...

    def prepare(self, layout: Layout) -> None:
        """Checks all data that can be checked beforehand."""
        ...

    def largest(self, batches: Sequence[Any]) -> int:
        """The number of samples in the largest of the batches."""
        ...

    def resident(self, machine: Machine, normaliser: Normaliser) -> bool:
        """Whether all samples stay on the device, so that groups of batches are nothing but numbers of samples."""
        ...

    def fitting(self, machine: Machine, normaliser: Normaliser) -> int:
        """How many batches device memory has room for now."""
        ...

    def stage(self, machine: Machine, batches: Sequence[Any], normaliser: Normaliser) -> None:
        """Prepares the group that will be placed next, in another thread."""
        ...

    def place(self, machine: Machine, batches: Sequence[Any], normaliser: Normaliser) -> Placed:
        """Puts a group of batches on the device."""
        ...

    def release(self) -> None:
        """Gives back what the group placed last needed alone; its steps have run."""
        ...

    def epoch_steps(self, normaliser: Normaliser) -> int | None:
        """Steps in an epoch, if `place_epochs` can place several epochs of resident data, which are then alike."""
        ...

    def place_epochs(self, machine: Machine, epochs: int) -> Placed:
        """Puts the next epochs on the device, without the targets that go with their steps."""
        ...

    def close(self) -> None:
        """Releases the device memory that the samples take."""
        ...


def open_source(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: int | None,
    steps: int | None,
    shuffle: bool | str,
    class_weight: dict[int, float] | None,
    with_target: bool,
) -> Source:
    """Returns the source for what the user passed as ``x``, by Keras's own rules."""
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise InvalidArgumentError(
            f"batch_size must be an integer of 1 or more, not {batch_size!r}"
        )
    if class_weight is not None and sample_weight is not None:
        raise InvalidArgumentError(
            "class_weight and sample_weight cannot both be given: multiply them into sample_weight"
        )
    if x is None:
        raise InvalidArgumentError("x must be given: arrays, a data set or a generator, not None")
    if is_arrays(x, y, sample_weight) or _is_nested_lists(x):
        return ArraySource(
            x,
            y,
            sample_weight,
            batch_size=batch_size,
            steps=steps,
            shuffle=shuffle,
            class_weight=class_weight,
            with_target=with_target,
        )
    for name, value in (("y", y), ("sample_weight", sample_weight), ("batch_size", batch_size)):
        if value is not None:
            raise InvalidArgumentError(
                f"{name} cannot be given beside a {type(x).__name__}, which brings its own"
            )
    return StreamSource(
        x, steps=steps, shuffle=shuffle, class_weight=class_weight, with_target=with_target
    )


def _is_nested_lists(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and isinstance(x[0], list | int | float)
