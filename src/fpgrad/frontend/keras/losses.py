"""Keras's losses and regularisers, as descriptions that autodiff and the metrics share."""

from __future__ import annotations

from typing import Any

from fpgrad.errors import Problem
from fpgrad.frontend.keras.context import class_key, function_key
from fpgrad.frontend.lowered import LossSpec, Normaliser, TargetBinding, TargetKind
from fpgrad.frontend.weights import ChannelsFirst

_LOSSES = "keras.src.losses.losses."

_KINDS = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "mean_squared_error": "MeanSquaredError",
    "mean_absolute_error": "MeanAbsoluteError",
    "huber": "Huber",
}

KINDS = {
    **{_LOSSES + name: kind for kind, name in _KINDS.items()},
    **{_LOSSES + kind: kind for kind in _KINDS},
}
"""Loss kinds by qualified name of Keras's class or function."""

SUPPORTED = tuple(_KINDS)

_NORMALISERS = {
    "sum_over_batch_size": Normaliser.COUNT,
    "mean": Normaliser.COUNT,
    "mean_with_sample_weight": Normaliser.WEIGHT,
    "sum": Normaliser.ONE,
}


def loss_kind(loss: Any) -> str | None:
    """The kind of a Keras loss object or function, None if it is not supported."""
    kind = KINDS.get(class_key(loss)) or KINDS.get(function_key(loss))
    if kind is None and class_key(loss) == f"{_LOSSES}LossFunctionWrapper":
        kind = KINDS.get(function_key(loss.fn))
    return kind


def lower_loss(
    loss: Any, output_shape: tuple[int, ...]
) -> tuple[LossSpec | None, Normaliser, list[Problem]]:
    """Returns a Keras loss object's description, how it is averaged, and what is not supported."""
    kind = loss_kind(loss)
    where = f"loss {getattr(loss, 'name', None) or type(loss).__name__}"
    if kind is None:
        return (
            None,
            Normaliser.COUNT,
            [Problem(where, "is not supported", f"use one of {', '.join(SUPPORTED)}")],
        )
    problems: list[Problem] = []
    arguments = dict(getattr(loss, "_fn_kwargs", {}))
    axis = arguments.pop("axis", -1)
    if axis not in (-1, len(output_shape)):
        problems.append(Problem(where, f"axis={axis} is not supported", "use axis=-1"))
    if arguments.pop("ignore_class", None) is not None:
        problems.append(
            Problem(
                where,
                "ignore_class is not supported",
                "give the samples of that class the sample_weight 0",
            )
        )
    normaliser = _NORMALISERS.get(loss.reduction)
    if normaliser is None:
        problems.append(
            Problem(
                where,
                f"reduction={loss.reduction!r} is not supported",
                f"use one of {', '.join(_NORMALISERS)}",
            )
        )
    if normaliser is Normaliser.ONE and len(output_shape) > 1:
        problems.append(
            Problem(
                where,
                f"reduction='sum' of an output of shape {(None, *output_shape)} is not supported",
                "use 'sum_over_batch_size', or put a Flatten at the end of the model",
            )
        )
    if kind in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        if len(output_shape) != 1:
            problems.append(
                Problem(
                    where,
                    f"of an output of shape {(None, *output_shape)} is not supported",
                    "end the model in one vector of classes",
                )
            )
        elif output_shape == (1,):
            problems.append(
                Problem(
                    where,
                    "of a single output is the constant 0 and cannot be trained",
                    "use binary_crossentropy for one output, or one output per class",
                )
            )
    spec = LossSpec(
        kind,
        from_logits=bool(arguments.pop("from_logits", False)),
        label_smoothing=float(arguments.pop("label_smoothing", 0.0)),
        delta=float(arguments.pop("delta", 1.0)),
    )
    problems.extend(
        Problem(where, f"argument {name}={value!r} is not supported")
        for name, value in arguments.items()
    )
    return spec, normaliser or Normaliser.COUNT, problems


def target_of(
    kind: str, output_shape: tuple[int, ...], order: ChannelsFirst | None = None
) -> TargetBinding:
    """What the loss compares the output with, in the output's order."""
    if kind == "sparse_categorical_crossentropy":
        return TargetBinding(TargetKind.CLASS_INDEX, (), classes=output_shape[-1])
    bounds = (0.0, 1.0) if kind.endswith("crossentropy") else None
    return TargetBinding(TargetKind.VALUES, output_shape, bounds=bounds, order=order)


def lower_regularizer(regularizer: Any) -> tuple[float, float] | None:
    """Returns (l1, l2) of a Keras regulariser ``l1·Σ|w| + l2·Σw²``, None if it is another."""
    if class_key(regularizer) not in {
        f"keras.src.regularizers.regularizers.{name}" for name in ("L1", "L2", "L1L2")
    }:
        return None
    return float(getattr(regularizer, "l1", 0.0)), float(getattr(regularizer, "l2", 0.0))
