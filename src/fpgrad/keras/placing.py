"""Groups of batches on their way to the device: numbered, weighed, packed while the group before them trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fpgrad.frontend.lowered import Normaliser

__all__ = ["Group", "Machine", "Packed", "Placed", "numbered", "packed", "sums_by_batch"]


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

    @property
    def room(self) -> int:
        """Samples that device memory has room for now."""
        ...

    def pack(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """Makes of samples what `upload` sends, and touches nothing of the device."""
        ...

    def upload(self, arrays: Any) -> Any:
        """Puts samples, packed or not, into device memory."""
        ...

    def release(self, dataset: Any) -> None:
        """Gives the memory of samples back."""
        ...


@dataclass(frozen=True)
class Packed:
    """The samples of a group in the order of its batches, as `Machine.upload` takes them.

    Attributes:
        samples: packed.
        counts, weights, targets, sample_weights: as in `Placed`.
    """

    samples: Any
    counts: np.ndarray
    weights: np.ndarray
    targets: np.ndarray | None
    sample_weights: np.ndarray | None


class Group:
    """The samples of the present group of batches on the device, and of the next one in this computer's memory."""

    def __init__(self) -> None:
        self._held: tuple[Machine, Any] | None = None
        self._next: tuple[Machine, Sequence[Any], Future[Packed]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def stage(self, machine: Machine, batches: Sequence[Any], make: Callable[[], Packed]) -> None:
        """Begins to pack the batches that will be placed next, in another thread."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "fpgrad-samples")
        self._next = machine, batches, self._thread.submit(make)

    def place(self, machine: Machine, batches: Sequence[Any], make: Callable[[], Packed]) -> Placed:
        """Puts batches in the place of those before them.

        Args:
            machine: where to.
            batches: of the group.
            make: packs them, unless `stage` has had them.
        """
        staged, self._next = self._next, None
        # What was packed for another machine is of no use.
        if staged is not None and staged[0] is machine and staged[1] is batches:
            packed = staged[2].result()
        else:
            packed = make()
        self.release()
        self._held = (machine, machine.upload(packed.samples))
        counts = packed.counts
        order = numbered(
            np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1]), machine.batch_size
        )
        return Placed(
            self._held[1],
            order,
            counts,
            packed.weights,
            packed.targets,
            packed.sample_weights,
        )

    def fitting(self, machine: Machine) -> int:
        """How many steps of batches may be placed together, one at least."""
        return max(1, machine.room // machine.batch_size)

    def release(self) -> None:
        """Releases the samples of the present group."""
        if self._held is not None:
            self._held[0].release(self._held[1])
            self._held = None

    def close(self) -> None:
        """Releases the samples held, and ends what is being packed."""
        self._next = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        self.release()


def packed(
    machine: Machine,
    arrays: dict[str, np.ndarray],
    counts: np.ndarray,
    sums: np.ndarray,
    normaliser: Normaliser,
) -> Any:
    """Packs rows of consecutive batches.

    The step divides the weighted losses by the batch's count. A loss with another divisor is
    the same with weights times count / divisor, and so is its reported mean over samples.
    """
    if normaliser is not Normaliser.COUNT:
        divisors = sums if normaliser is Normaliser.WEIGHT else np.ones(len(counts))
        # Keras divides by zero to zero.
        factors = np.divide(counts, divisors, out=np.zeros(len(counts)), where=divisors != 0)
        scaled = arrays["sample_weight"][:, 0] * np.repeat(factors, counts)
        arrays = {**arrays, "sample_weight": scaled[:, None].astype(np.float32)}
    return machine.pack(arrays)


def sums_by_batch(row_weights: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """Sums rows' weights by batch; without weights, returns the counts."""
    if row_weights is None:
        return counts.astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(row_weights.astype(np.float64), starts)


def numbered(batches: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The sample indices of batches, shape (batches, size), -1 where a batch has no more."""
    counts = np.array([len(indices) for indices in batches])
    order = np.full((len(batches), size), -1, dtype=np.int64)
    order[np.arange(size) < counts[:, None]] = np.concatenate(batches)
    return order
