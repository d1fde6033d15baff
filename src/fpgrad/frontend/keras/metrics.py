"""Keras's metrics: those that are a mean over samples are summed up on the device.

The others (AUC, precision, custom ones) are not refused: Keras's own objects are fed with the
model's outputs, which costs a read-back of them.
"""

from __future__ import annotations

from typing import Any

from fpgrad.frontend.keras.context import class_key, function_key
from fpgrad.frontend.lowered import MetricSpec

_ACCURACY = "keras.src.metrics.accuracy_metrics."
_REGRESSION = "keras.src.metrics.regression_metrics."
_PROBABILISTIC = "keras.src.metrics.probabilistic_metrics."
_WRAPPER = "keras.src.metrics.reduction_metrics.MeanMetricWrapper"

CLASSES = {
    f"{_ACCURACY}SparseCategoricalAccuracy": "sparse_categorical_accuracy",
    f"{_ACCURACY}CategoricalAccuracy": "categorical_accuracy",
    f"{_ACCURACY}BinaryAccuracy": "binary_accuracy",
    f"{_REGRESSION}MeanSquaredError": "mean_squared_error",
    f"{_REGRESSION}MeanAbsoluteError": "mean_absolute_error",
    f"{_PROBABILISTIC}SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    f"{_PROBABILISTIC}CategoricalCrossentropy": "categorical_crossentropy",
    f"{_PROBABILISTIC}BinaryCrossentropy": "binary_crossentropy",
}

FUNCTIONS = {
    f"{_ACCURACY}sparse_categorical_accuracy": "sparse_categorical_accuracy",
    f"{_ACCURACY}categorical_accuracy": "categorical_accuracy",
    f"{_ACCURACY}binary_accuracy": "binary_accuracy",
    "keras.src.losses.losses.mean_squared_error": "mean_squared_error",
    "keras.src.losses.losses.mean_absolute_error": "mean_absolute_error",
    "keras.src.losses.losses.sparse_categorical_crossentropy": "sparse_categorical_crossentropy",
    "keras.src.losses.losses.categorical_crossentropy": "categorical_crossentropy",
    "keras.src.losses.losses.binary_crossentropy": "binary_crossentropy",
}

_SPARSE = ("sparse_categorical_accuracy", "sparse_categorical_crossentropy")
_CATEGORICAL = ("categorical_accuracy", "categorical_crossentropy")


def lower_metric(metric: Any, loss_kind: str, output_shape: tuple[int, ...]) -> MetricSpec | None:
    """Returns the description of a metric that the device can sum up, None for any other."""
    kind = CLASSES.get(class_key(metric))
    if kind is None and class_key(metric) == _WRAPPER:
        kind = FUNCTIONS.get(function_key(metric._fn))
    if kind is None or len(output_shape) != 1:
        return None
    sparse_target = loss_kind == "sparse_categorical_crossentropy"
    if sparse_target != (kind in _SPARSE):
        return None
    if output_shape == (1,) and kind in (*_SPARSE, *_CATEGORICAL):
        return None
    arguments = dict(getattr(metric, "_fn_kwargs", {}))
    if arguments.pop("axis", -1) != -1 or arguments.pop("ignore_class", None) is not None:
        return None
    spec = MetricSpec(
        kind,
        threshold=float(arguments.pop("threshold", 0.5)),
        from_logits=bool(arguments.pop("from_logits", False)),
        label_smoothing=float(arguments.pop("label_smoothing", 0.0)),
    )
    return None if arguments else spec
