"""From the user's arrays to the graph's inputs, with every check that can be made beforehand.

Data is checked before the machine sees it, because the machine has no NaN and no exception: it
would train on nonsense without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fpgrad.errors import DataShapeError, InvalidArgumentError, LabelError, NonFiniteDataError
from fpgrad.frontend.lowered import InputBinding, Lowered, TargetBinding, TargetKind
from fpgrad.keras.adapters import to_numpy

__all__ = ["Layout", "random_samples"]


_CHECKED = 1 << 20
"""Numbers that are checked at once."""


class Layout:
    """Checks and flattens samples for the graph inputs of one lowered model."""

    def __init__(self, lowered: Lowered) -> None:
        self._inputs = lowered.inputs
        self._target = lowered.training.target if lowered.training is not None else None
        self._model = lowered.model_name

    def encode(
        self, x: Any, y: Any = None, sample_weight: Any = None, *, with_target: bool
    ) -> dict[str, np.ndarray]:
        """Returns the graph inputs for ``n`` samples: name to float32 array of shape (n, F).

        Bytes (uint8) of the model's inputs stay bytes.

        Raises:
            DataShapeError: if an array's shape does not fit the model, or the numbers of samples
                differ.
            NonFiniteDataError: if an array holds NaN or infinity.
            LabelError: if a label is outside what the loss gives a meaning.
        """
        arrays = self._per_input(x)
        encoded = {
            binding.name: _features(binding, array)
            for binding, array in zip(self._inputs, arrays, strict=True)
        }
        samples = _common_length(encoded, self._model)
        if with_target:
            encoded.update(self._with_target(y, sample_weight, samples))
        return encoded

    def _with_target(self, y: Any, sample_weight: Any, samples: int) -> dict[str, np.ndarray]:
        if self._target is None:
            raise InvalidArgumentError(f"{self._model} was compiled without a loss")
        if y is None:
            raise InvalidArgumentError(
                "y must be given: the loss compares the model's output with it, and x alone came"
            )
        target = _target(self._target, to_numpy(_only(y, "y")))
        weights = (
            np.ones((samples, 1), np.float32)
            if sample_weight is None
            else _weights(to_numpy(_only(sample_weight, "sample_weight")))
        )
        for name, array in (("y", target), ("sample_weight", weights)):
            if len(array) != samples:
                raise DataShapeError(
                    f"{name} must have as many samples as x, {samples}, not {len(array)}"
                )
        valid = np.ones((samples, 1), np.float32)
        return {self._target.name: target, "sample_weight": weights, "valid": valid}

    def _per_input(self, x: Any) -> list[np.ndarray]:
        names = [binding.name for binding in self._inputs]
        if isinstance(x, Mapping):
            if set(x) != set(names):
                raise DataShapeError(
                    f"x must be a dict with the keys {sorted(names)}, not {sorted(x)}"
                )
            return [to_numpy(x[name]) for name in names]
        if self._is_list_of_inputs(x):
            if len(x) != len(names):
                raise DataShapeError(
                    f"x must have one array for each of the inputs {names}, not {len(x)}"
                )
            return [to_numpy(array) for array in x]
        if len(names) > 1:
            raise DataShapeError(
                f"x must have one array for each of the inputs {names}, not a single one"
            )
        return [to_numpy(x)]

    def _is_list_of_inputs(self, x: Any) -> bool:
        """Whether ``x`` is a list of arrays, one an input, and not a list of samples."""
        if not isinstance(x, tuple | list) or not x:
            return False
        rank = len(self._inputs[0].shape) + 1
        return len(self._inputs) > 1 or np.ndim(x[0]) == rank


def _only(value: Any, name: str) -> Any:
    """Unwraps a list or dict of one array, as Keras allows for a model with one output."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple) and len(value) == 1 and hasattr(value[0], "shape"):
        return value[0]
    if isinstance(value, list | tuple) and value and np.ndim(value[0]) > 0:
        raise DataShapeError(
            f"{name} must be one array, not {len(value)}: the model has one output"
        )
    return value


def _features(binding: InputBinding, array: np.ndarray) -> np.ndarray:
    wanted = (None, *binding.shape)
    # Keras accepts (n,) where the model wants (n, 1), and (n, 1) where it wants (n,).
    squeezed = [size for size in array.shape[1:] if size != 1]
    fits = array.shape[1:] == binding.shape or (
        array.ndim >= 1
        and abs(array.ndim - len(wanted)) == 1
        and squeezed == [size for size in binding.shape if size != 1]
    )
    if not fits:
        raise DataShapeError(
            f"x for input {binding.name!r} must have shape {_shape_text(wanted)}, "
            f"not {_shape_text(array.shape)}"
        )
    name = f"x for input {binding.name!r}"
    if array.dtype == np.uint8:
        return np.ascontiguousarray(binding.layout.pack(array))
    return _finite(np.ascontiguousarray(binding.layout.pack(_numbers(array, name))), name)


def _target(binding: TargetBinding, array: np.ndarray) -> np.ndarray:
    if binding.kind is TargetKind.CLASS_INDEX:
        return _class_indices(binding, array)
    wanted = (None, *binding.shape)
    if array.shape[1:] != binding.shape and not (
        binding.shape[-1:] == (1,) and array.shape[1:] == binding.shape[:-1]
    ):
        hint = ""
        if binding.bounds and array.ndim <= 2 and array.shape[1:] in {(), (1,)}:
            hint = "; for class indices use the loss 'sparse_categorical_crossentropy'"
        raise DataShapeError(
            f"y must have shape {_shape_text(wanted)}, not {_shape_text(array.shape)}{hint}"
        )
    flat = binding.layout.pack(_numbers(array, "y"))
    _finite(flat, "y")
    if binding.bounds is not None and flat.size:
        low, high = binding.bounds
        wrong = np.argwhere((flat < low) | (flat > high))
        if len(wrong):
            row, column = (int(i) for i in wrong[0])
            raise LabelError(
                f"y must be in [{low:g}, {high:g}] for this loss, not {flat[row, column]:g} "
                f"(sample {row}, {len(wrong)} such numbers)"
            )
    return flat


def _class_indices(binding: TargetBinding, array: np.ndarray) -> np.ndarray:
    if array.shape[1:] not in {(), (1,)}:
        hint = ""
        if array.shape[1:] == (binding.classes,):
            hint = "; for one-hot labels use the loss 'categorical_crossentropy'"
        raise DataShapeError(
            f"y must be class indices of shape (n,), not {_shape_text(array.shape)}{hint}"
        )
    flat = _numbers(array, "y").reshape(len(array), 1)
    _finite(flat, "y")
    wrong = np.flatnonzero((flat < 0) | (flat >= binding.classes) | (flat != np.floor(flat)))
    if len(wrong):
        row = int(wrong[0])
        raise LabelError(
            f"y must be class indices, integers in [0, {binding.classes}), not "
            f"{flat[row, 0]:g} (sample {row}, {len(wrong)} such labels)"
        )
    return flat


def _weights(array: np.ndarray) -> np.ndarray:
    if array.shape[1:] not in {(), (1,)}:
        raise DataShapeError(
            f"sample_weight must have shape (n,): one weight a sample, not "
            f"{_shape_text(array.shape)}"
        )
    return _finite(_numbers(array, "sample_weight").reshape(len(array), 1), "sample_weight")


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise DataShapeError(f"{name} must be an array of real numbers, not of {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    wrong: list[np.ndarray] = []
    # In pieces: the data may be a file larger than this computer's memory.
    some = max(1, _CHECKED // max(1, prod(array.shape[1:])))
    for start in range(0, len(array), some):
        finite = np.isfinite(array[start : start + some])
        if not finite.all():
            wrong.append(start + np.argwhere(~finite)[:, 0])
    if wrong:
        raise NonFiniteDataError(
            f"{name} must be finite numbers, not NaN, infinity or beyond float32 "
            f"(sample {wrong[0][0]}, {sum(map(len, wrong))} such numbers)"
        )
    return array


def _common_length(arrays: Mapping[str, np.ndarray], model: str) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataShapeError(f"all inputs must have the same number of samples, not {lengths}")
    (samples,) = set(lengths.values())
    if samples == 0:
        raise DataShapeError(f"x must have at least one sample for {model}, not 0")
    return samples


def _shape_text(shape: Sequence[int | None]) -> str:
    inside = ", ".join("n" if size is None else str(size) for size in shape)
    return f"({inside},)" if len(shape) == 1 else f"({inside})"


def random_samples(lowered: Lowered, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Returns valid graph inputs for ``samples`` samples, drawn from a generator seeded anew."""
    rng = np.random.default_rng(seed)
    octets = {node.name for node in lowered.forward.inputs if node.attrs["octets"]}
    arrays = {
        binding.name: rng.integers(0, 256, (samples, binding.features)).astype(np.uint8)
        if binding.name in octets
        else rng.standard_normal((samples, binding.features), dtype=np.float32)
        for binding in lowered.inputs
    }
    if lowered.training is None:
        return arrays
    target = lowered.training.target
    if target.kind is TargetKind.CLASS_INDEX:
        y = rng.integers(0, target.classes, (samples, 1)).astype(np.float32)
    elif target.bounds is None:
        y = rng.standard_normal((samples, prod(target.shape)), dtype=np.float32)
    else:
        y = rng.uniform(*target.bounds, (samples, prod(target.shape))).astype(np.float32)
    ones = np.ones((samples, 1), np.float32)
    return {**arrays, target.name: y, "sample_weight": ones, "valid": ones}
