"""Where batches come from: arrays resident in device memory, or a stream of batches.

Both yield Keras's batches and place groups of them on the device; from there on training does not
care. Arrays are uploaded once. Of a stream, the batches of one group are uploaded together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fpgrad.errors import DataShapeError, InvalidArgumentError
from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import (
    array_batches,
    class_weights,
    is_arrays,
    numpy_batches,
    to_numpy,
    unpack,
)
from fpgrad.keras.data import Layout
from fpgrad.keras.pace import MAX_STEPS

__all__ = ["Machine", "Placed", "Source", "open_source"]


@dataclass(frozen=True)
class Placed:
    """Some steps' batches on the device.

    Attributes:
        dataset: the session's handle of the samples.
        order: int array (steps, N) of sample indices, -1 for padding rows.
        counts: int array (steps,), samples in each batch.
        weights: float array (steps,), sum of each batch's sample weights.
        targets: the user's own targets of all batches, rows in the order of ``order``, or None.
        sample_weights: the weights of those rows, shape (rows,).
    """

    dataset: Any
    order: np.ndarray
    counts: np.ndarray
    weights: np.ndarray
    targets: np.ndarray | None
    sample_weights: np.ndarray | None

    def totals(self, epochs: int = 1) -> list[tuple[int, float]]:
        """Samples and the sum of their weights in each of ``epochs`` equal parts."""
        counts, weights = (a.reshape(epochs, -1).sum(axis=1) for a in (self.counts, self.weights))
        return list(zip(counts.tolist(), weights.tolist(), strict=True))


class Machine(Protocol):
    """Where samples are placed."""

    @property
    def batch_size(self) -> int:
        """Samples in a compiled batch."""
        ...

    def upload(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Puts samples into device memory."""
        ...

    def release(self, dataset: Any) -> None:
        """Gives the memory of samples back."""
        ...


class Source(Protocol):
    """A supply of batches."""

    exact: bool
    """Whether all batches but the last have the size of `largest`."""
    most_steps: int
    """Batches that may be placed together."""

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

    def place(self, machine: Machine, batches: Sequence[Any], normaliser: Normaliser) -> Placed:
        """Puts a group of batches on the device; what the last group needed alone is released."""
        ...

    def epoch_steps(self, normaliser: Normaliser) -> int | None:
        """Steps in an epoch, if `place_epochs` can place several epochs, which are then alike."""
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
        return _ArraySource(
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
    return _StreamSource(
        x, steps=steps, shuffle=shuffle, class_weight=class_weight, with_target=with_target
    )


def _is_nested_lists(x: Any) -> bool:
    return isinstance(x, list) and bool(x) and isinstance(x[0], list | int | float)


class _ArraySource:
    """Arrays in memory: uploaded once, then only indices move."""

    exact = True
    most_steps = MAX_STEPS

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        *,
        batch_size: int | None,
        steps: int | None,
        shuffle: bool | str,
        class_weight: dict[int, float] | None,
        with_target: bool,
    ) -> None:
        self._x, self._y = x, y
        self._sample_weight = sample_weight
        self._class_weight = class_weight
        self._with_target = with_target
        self._batching = (batch_size, steps, shuffle)
        self._encoded: dict[str, np.ndarray] = {}
        self._targets: np.ndarray | None = None
        # Keras's own where epochs end in the middle of the samples: it knows where to go on.
        self._iterator: Any = None
        self._samples = 0
        # Python's generator is one of those that keras.utils.set_random_seed sets.
        self._generator = np.random.default_rng(random.getrandbits(64))
        self._resident: tuple[Machine, Any] | None = None
        self._group = _Group()

    @property
    def num_batches(self) -> int | None:
        if self._iterator is not None:
            return self._iterator.num_batches
        return -(-self._samples // self.largest(()))

    @property
    def _row_weights(self) -> np.ndarray | None:
        """Weights of all samples; None if the user gave none, so that all are one."""
        if self._sample_weight is None and self._class_weight is None:
            return None
        return self._encoded["sample_weight"][:, 0]

    def prepare(self, layout: Layout) -> None:
        sample_weight = self._sample_weight
        if self._class_weight is not None and self._y is not None:
            sample_weight = class_weights(to_numpy(self._y), self._class_weight)
        self._encoded = layout.encode(
            self._x, self._y, sample_weight, with_target=self._with_target
        )
        if self._with_target:
            self._targets = to_numpy(self._y)
        self._samples = samples = len(next(iter(self._encoded.values())))
        batch_size, steps, shuffle = self._batching
        if self._iterator is None and (steps is not None or shuffle == "batch"):
            self._iterator = array_batches(
                samples, batch_size=batch_size, steps=steps, shuffle=shuffle
            )
        self.close()

    def reset(self) -> None:
        if self._iterator is not None:
            self._iterator.reset()

    def epoch(self) -> Iterator[np.ndarray]:
        if self._iterator is not None:
            for _, _, (indices,) in self._iterator:
                yield np.arange(self._samples)[indices]
            return
        size = self.largest(())
        order = self._permutation()
        for start in range(0, self._samples, size):
            yield order[start : start + size]

    def _permutation(self) -> np.ndarray:
        """The samples in the order of the next epoch."""
        order = np.arange(self._samples)
        if self._batching[2]:
            self._generator.shuffle(order)
        return order

    def largest(self, batches: Sequence[np.ndarray]) -> int:  # noqa: ARG002
        # The last batch of an epoch may be short, and must not make a machine of its own.
        if self._iterator is not None:
            return int(self._iterator.data_adapter.batch_size)
        return int(self._batching[0] or 32)

    def place(
        self, machine: Machine, batches: Sequence[np.ndarray], normaliser: Normaliser
    ) -> Placed:
        counts = np.array([len(indices) for indices in batches])
        rows = np.concatenate(batches)
        weights = self._encoded.get("sample_weight")
        row_weights = None if weights is None else weights[rows, 0]
        sums = _per_batch(row_weights, counts)
        if normaliser is not Normaliser.COUNT:
            chosen = {name: array[rows] for name, array in self._encoded.items()}
            dataset = self._group.upload(machine, chosen, counts, sums, normaliser)
            order = _order(batches=_consecutive(counts), size=machine.batch_size)
        else:
            dataset = self._uploaded(machine)
            order = _order(batches, machine.batch_size)
        targets = None if self._targets is None else self._targets[rows]
        return Placed(dataset, order, counts, sums, targets, row_weights)

    def _uploaded(self, machine: Machine) -> Any:
        if self._resident is None or self._resident[0] is not machine:
            self.close()
            self._resident = (machine, machine.upload(self._encoded))
        return self._resident[1]

    def epoch_steps(self, normaliser: Normaliser) -> int | None:
        if self._iterator is not None or normaliser is not Normaliser.COUNT:
            return None
        return -(-self._samples // self.largest(()))

    def place_epochs(self, machine: Machine, epochs: int) -> Placed:
        size, samples = self.largest(()), self._samples
        steps = -(-samples // size)
        rows = np.full((epochs, steps * size), -1)
        for epoch in rows:
            epoch[:samples] = self._permutation()
        order = rows.reshape(-1, size)
        if size < machine.batch_size:
            padding = np.full((len(order), machine.batch_size - size), -1)
            order = np.concatenate([order, padding], axis=1)
        counts = np.full((epochs, steps), size)
        counts[:, -1] = samples - (steps - 1) * size
        counts = counts.reshape(-1)
        weights = self._row_weights
        sums = _per_batch(None if weights is None else weights[rows[rows >= 0]], counts)
        return Placed(self._uploaded(machine), order, counts, sums, None, None)

    def close(self) -> None:
        self._group.close()
        if self._resident is not None:
            self._resident[0].release(self._resident[1])
            self._resident = None


class _StreamSource:
    """Batches as a data set or a generator yields them, checked as they come."""

    exact = False
    most_steps = 64

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
        self._group = _Group()
        self._limit: int | None = self._iterator.data_adapter.batch_size

    @property
    def num_batches(self) -> int | None:
        return self._iterator.num_batches

    def prepare(self, layout: Layout) -> None:
        self._layout = layout

    def reset(self) -> None:
        self._iterator.reset()

    def epoch(self) -> Iterator[tuple[Any, Any, Any]]:
        for _, _, (batch,) in self._iterator:
            yield unpack(batch)

    def largest(self, batches: Sequence[tuple[Any, Any, Any]]) -> int:
        sizes = [_length(x) for x, _, _ in batches]
        return max(sizes + ([int(self._limit)] if self._limit else []))

    def place(
        self, machine: Machine, batches: Sequence[tuple[Any, Any, Any]], normaliser: Normaliser
    ) -> Placed:
        assert self._layout is not None, "prepare comes first"
        encoded = [
            self._layout.encode(x, y, weight, with_target=self._with_target)
            for x, y, weight in batches
        ]
        counts = np.array([len(next(iter(arrays.values()))) for arrays in encoded])
        merged = {name: np.concatenate([arrays[name] for arrays in encoded]) for name in encoded[0]}
        row_weights = merged["sample_weight"][:, 0] if self._with_target else None
        sums = _per_batch(row_weights, counts)
        dataset = self._group.upload(machine, merged, counts, sums, normaliser)
        targets = None
        if self._with_target:
            targets = np.concatenate([to_numpy(y) for _, y, _ in batches])
        order = _order(_consecutive(counts), machine.batch_size)
        return Placed(dataset, order, counts, sums, targets, row_weights)

    def epoch_steps(self, normaliser: Normaliser) -> int | None:  # noqa: ARG002
        return None

    def place_epochs(self, machine: Machine, epochs: int) -> Placed:
        raise AssertionError(f"{epochs} epochs for {machine}: a stream's batches come one by one")

    def close(self) -> None:
        self._group.close()


def _length(x: Any) -> int:
    while isinstance(x, dict | list | tuple):
        x = next(iter(x.values())) if isinstance(x, dict) else x[0]
    if np.ndim(x) == 0:
        raise DataShapeError(f"a batch of x must be an array with samples first, not {x!r}")
    return len(x)


def _per_batch(row_weights: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """Sums rows' weights by batch; without weights, returns the counts."""
    if row_weights is None:
        return counts.astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(row_weights.astype(np.float64), starts)


def _consecutive(counts: np.ndarray) -> list[np.ndarray]:
    return np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])


def _order(batches: Sequence[np.ndarray], size: int) -> np.ndarray:
    counts = np.array([len(indices) for indices in batches])
    order = np.full((len(batches), size), -1, dtype=np.int64)
    order[np.arange(size) < counts[:, None]] = np.concatenate(batches)
    return order


class _Group:
    """The data set of the present group of batches; that of the last one is released."""

    def __init__(self) -> None:
        self._held: tuple[Machine, Any] | None = None

    def upload(
        self,
        machine: Machine,
        arrays: dict[str, np.ndarray],
        counts: np.ndarray,
        sums: np.ndarray,
        normaliser: Normaliser,
    ) -> Any:
        """Uploads rows of consecutive batches.

        The step divides the weighted losses by the batch's count. A loss with another divisor is
        the same with weights times count / divisor, and so is its reported mean over samples.
        """
        if normaliser is not Normaliser.COUNT:
            divisors = sums if normaliser is Normaliser.WEIGHT else np.ones(len(counts))
            # Keras divides by zero to zero.
            factors = np.divide(counts, divisors, out=np.zeros(len(counts)), where=divisors != 0)
            scaled = arrays["sample_weight"][:, 0] * np.repeat(factors, counts)
            arrays = {**arrays, "sample_weight": scaled[:, None].astype(np.float32)}
        self.close()
        self._held = (machine, machine.upload(arrays))
        return self._held[1]

    def close(self) -> None:
        """Releases the data set held."""
        if self._held is not None:
            self._held[0].release(self._held[1])
            self._held = None
