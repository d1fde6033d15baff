"""Keras's own data handling, gathered in the one file that touches Keras's private modules.

Which batches exist, in which order, when an epoch ends, how a generator that runs dry is reported:
all of that is Keras's, so that ``fit`` here sees what ``fit`` there sees. Arrays are the exception
that pays: they are not sliced batch by batch but uploaded once, so the adapter for them yields
*indices* of samples instead of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from keras.src.callbacks import CallbackList
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.trainers.data_adapters.array_data_adapter import (
    ArrayDataAdapter,
    can_convert_arrays,
)
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.utils import tracking

__all__ = [
    "CallbackList",
    "array_batches",
    "class_weights",
    "is_arrays",
    "numpy_batches",
    "split_validation",
    "to_numpy",
    "tracking",
    "unpack",
]


def to_numpy(value: Any) -> np.ndarray:
    """Returns any array-like (NumPy, a framework's tensor, pandas, lists) as a NumPy array."""
    import keras

    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "to_numpy"):
        return value.to_numpy()
    if keras.ops.is_tensor(value):
        return np.asarray(keras.ops.convert_to_numpy(value))
    return np.asarray(value)


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """Splits what a data source yields into (x, y, sample_weight); absent ones are None."""
    return data_adapter_utils.unpack_x_y_sample_weight(data)


def is_arrays(x: Any, y: Any = None, sample_weight: Any = None) -> bool:
    """Says whether Keras would treat the arguments as arrays in memory."""
    if all(a is None or isinstance(a, np.ndarray) for a in (x, y, sample_weight)):
        # What Keras would find out by a walk through its trees.
        return True
    return can_convert_arrays((x, y, sample_weight))


def class_weights(y: np.ndarray, class_weight: dict[int, float]) -> np.ndarray:
    """Returns the weight of each sample by its class, shape (n,); classes not named weigh 1."""
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def split_validation(
    x: Any, y: Any, sample_weight: Any, fraction: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Splits off the last ``fraction`` of the samples, as Keras's ``validation_split`` does."""
    parts: Any = array_slicing.train_validation_split(
        (x, y, sample_weight), validation_split=fraction
    )
    return parts


def array_batches(
    samples: int,
    *,
    batch_size: int | None,
    steps: int | None,
    shuffle: bool | str,
) -> EpochIterator:
    """Returns the batches of ``samples`` resident samples: each is an array of sample indices."""
    how: Any = shuffle
    adapter = ArrayDataAdapter(np.arange(samples), batch_size=batch_size, steps=steps, shuffle=how)
    return _IndexIterator(adapter, steps_per_epoch=steps)


def numpy_batches(
    x: Any, *, steps: int | None, shuffle: bool, class_weight: dict[int, float] | None
) -> EpochIterator:
    """Returns the batches of a data set or generator, converted to NumPy by Keras's adapters."""
    return EpochIterator(x, steps_per_epoch=steps, shuffle=shuffle, class_weight=class_weight)


class _IndexIterator(EpochIterator):
    """Batches of indices; a plain generator is enough, since nothing is converted."""

    def _get_iterator(self) -> Iterator[Any]:
        return self.data_adapter.get_numpy_iterator()
