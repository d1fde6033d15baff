"""Arrays as a source of batches: resident in device memory, or sent group by group where it has no room for them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fpgrad.errors import StreamedDataWarning
from fpgrad.frontend.lowered import Normaliser
from fpgrad.keras.adapters import array_batches, class_weights, to_numpy
from fpgrad.keras.data import Layout
from fpgrad.keras.pace import MAX_STEPS
from fpgrad.keras.placing import Group, Machine, Packed, Placed, numbered, packed, sums_by_batch

__all__ = ["ArraySource"]


class ArraySource:
    """Arrays in memory: uploaded once, then only indices move, if the device has room for all samples.

    The arguments are those of :func:`fpgrad.keras.sources.open_source`.
    """

    exact = True

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
        self._streams: tuple[Machine, bool] | None = None
        self._group = Group()
        self.most_steps = MAX_STEPS

    @property
    def identity(self) -> Any:
        """See :class:`fpgrad.keras.sources.Source`."""
        some = [0, self._samples // 2, self._samples - 1]
        # Without names: Keras counts those of inputs up within a process.
        shown = [[a.shape, a[some].astype(float).tolist()] for a in self._encoded.values()]
        return [shown, str(self._batching)]

    @property
    def order(self) -> Any:
        """See :class:`fpgrad.keras.sources.Source`."""
        return None if self._iterator is not None else self._generator.bit_generator.state

    @order.setter
    def order(self, state: Any) -> None:
        if state is not None:
            self._generator.bit_generator.state = state

    @property
    def num_batches(self) -> int | None:
        """See :class:`fpgrad.keras.sources.Source`."""
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
        """See :class:`fpgrad.keras.sources.Source`."""
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
        """See :class:`fpgrad.keras.sources.Source`."""
        if self._iterator is not None:
            self._iterator.reset()

    def epoch(self) -> Iterator[np.ndarray]:
        """See :class:`fpgrad.keras.sources.Source`."""
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
        """See :class:`fpgrad.keras.sources.Source`."""
        # The last batch of an epoch may be short, and must not make a machine of its own.
        if self._iterator is not None:
            return int(self._iterator.data_adapter.batch_size)
        return int(self._batching[0] or 32)

    def fitting(self, machine: Machine, normaliser: Normaliser) -> int:
        """See :class:`fpgrad.keras.sources.Source`."""
        if self.resident(machine, normaliser):
            return MAX_STEPS
        self.most_steps = min(MAX_STEPS, self._group.fitting(machine))
        return self.most_steps

    def stage(
        self, machine: Machine, batches: Sequence[np.ndarray], normaliser: Normaliser
    ) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        if not self.resident(machine, normaliser):
            make = partial(self._packed, machine, batches, normaliser)
            self._group.stage(machine, batches, make)

    def place(
        self, machine: Machine, batches: Sequence[np.ndarray], normaliser: Normaliser
    ) -> Placed:
        """See :class:`fpgrad.keras.sources.Source`."""
        if not self.resident(machine, normaliser):
            make = partial(self._packed, machine, batches, normaliser)
            return self._group.place(machine, batches, make)
        counts, rows, row_weights, sums = self._chosen(batches)
        order = numbered(batches, machine.batch_size)
        targets = None if self._targets is None else self._targets[rows]
        return Placed(self._uploaded(machine), order, counts, sums, targets, row_weights)

    def _packed(
        self, machine: Machine, batches: Sequence[np.ndarray], normaliser: Normaliser
    ) -> Packed:
        counts, rows, row_weights, sums = self._chosen(batches)
        arrays = {name: array[rows] for name, array in self._encoded.items()}
        samples = packed(machine, arrays, counts, sums, normaliser)
        targets = None if self._targets is None else self._targets[rows]
        return Packed(samples, counts, sums, targets, row_weights)

    def _chosen(
        self, batches: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """Of some batches: their counts, their samples, these one's weights, and the weights' sums."""
        counts = np.array([len(indices) for indices in batches])
        rows = np.concatenate(batches)
        weights = self._encoded.get("sample_weight")
        row_weights = None if weights is None else weights[rows, 0]
        return counts, rows, row_weights, sums_by_batch(row_weights, counts)

    def resident(self, machine: Machine, normaliser: Normaliser) -> bool:
        """See :class:`fpgrad.keras.sources.Source`."""
        # A loss with another divisor wants weights scaled batch by batch.
        return normaliser is Normaliser.COUNT and not self._too_many(machine)

    def _too_many(self, machine: Machine) -> bool:
        if self._resident is not None and self._resident[0] is machine:
            return False
        if self._streams is None or self._streams[0] is not machine:
            self._group.close()
            room = machine.room
            self._streams = machine, self._samples > room
            if self._samples > room:
                warnings.warn(
                    f"the data has {self._samples} samples and device memory room for {room}: they are sent again in "
                    "every epoch, group by group. A larger memory.dram_rows keeps them there, and images as uint8 "
                    "take a quarter",
                    StreamedDataWarning,
                    stacklevel=2,
                )
        return self._streams[1]

    def _uploaded(self, machine: Machine) -> Any:
        if self._resident is None or self._resident[0] is not machine:
            self.close()
            self._resident = (machine, machine.upload(self._encoded))
        return self._resident[1]

    def release(self) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._group.release()

    def epoch_steps(self, normaliser: Normaliser) -> int | None:
        """See :class:`fpgrad.keras.sources.Source`."""
        if self._iterator is not None or normaliser is not Normaliser.COUNT:
            return None
        return -(-self._samples // self.largest(()))

    def place_epochs(self, machine: Machine, epochs: int) -> Placed:
        """See :class:`fpgrad.keras.sources.Source`."""
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
        sums = sums_by_batch(None if weights is None else weights[rows[rows >= 0]], counts)
        return Placed(self._uploaded(machine), order, counts, sums, None, None)

    def close(self) -> None:
        """See :class:`fpgrad.keras.sources.Source`."""
        self._group.close()
        if self._resident is not None:
            self._resident[0].release(self._resident[1])
            self._resident = None
