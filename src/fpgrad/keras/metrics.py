"""Epoch metrics: sums from the device, under the names and with the means of Keras's own objects.

Keras's objects are asked once how they call their results. From then on the means are divided out
here, because an epoch of a small network is shorter than a handful of framework calls. The objects
themselves are set when somebody may look at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fpgrad.frontend.lowered import Training
from fpgrad.keras.sources import Placed
from fpgrad.transform import LOSS_SUM, REGULARISATION_SUM

__all__ = ["EpochMetrics", "result_names"]

_LOSS = -1
"""Stands for the loss where other results are numbered by their metric."""


class EpochMetrics:
    """Accumulates one epoch's, or one evaluation's, metrics.

    Args:
        model: the user's compiled model.
        training: what it was compiled for.
        names: results by name, from `result_names`.
    """

    def __init__(self, model: Any, training: Training, names: Mapping[str, int]) -> None:
        self._model = model
        self._training = training
        self._names = names
        self._sums: dict[str, float] = {}
        self._samples = 0
        self._weight = 0.0

    def reset(self) -> None:
        """Begins again from zero."""
        self._sums.clear()
        self._samples = 0
        self._weight = 0.0
        if self.wants_outputs:
            self._model.reset_metrics()

    @property
    def wants_outputs(self) -> bool:
        """Whether a metric is computed by the host, from the model's outputs."""
        return bool(self._training.host_metrics)

    def add(self, sums: Mapping[str, float], samples: int, weight: float) -> None:
        """Adds the device's sums over some steps, with their samples and those samples' weights."""
        for state, value in sums.items():
            self._sums[state] = self._sums.get(state, 0.0) + float(value)
        self._samples += samples
        self._weight += weight

    def add_outputs(self, outputs: np.ndarray, placed: Placed) -> None:
        """Feeds the host's metrics with the outputs for the samples of ``placed``."""
        for host in self._training.host_metrics:
            weights = placed.sample_weights if host.weighted else None
            host.metric.update_state(placed.targets, outputs, sample_weight=weights)

    def logs(self) -> dict[str, Any]:
        """Returns the means so far, by the names that Keras gives them."""
        if self.wants_outputs:
            self.publish()
            return dict(self._model.get_metrics_result())
        logs: dict[str, Any] = {}
        for name, number in self._names.items():
            total, count = self._of(number)
            logs[name] = total / count if count else 0.0
        return logs

    def publish(self) -> None:
        """Sets Keras's objects, each of which is a total and a count."""
        for number, mean in _means(self._model, self._training).items():
            total, count = self._of(number)
            mean.total.assign(total)
            mean.count.assign(count)

    def _of(self, number: int) -> tuple[float, float]:
        if number == _LOSS:
            loss = self._sums.get(LOSS_SUM, 0.0) + self._sums.get(REGULARISATION_SUM, 0.0)
            return loss, self._samples
        binding = self._training.metrics[number]
        count = self._weight if binding.weighted else self._samples
        return self._sums.get(f"{binding.name}_sum", 0.0), count


def result_names(model: Any, training: Training) -> dict[str, int]:
    """Returns how Keras calls each result, by setting every metric to a number of its own."""
    for number, mean in _means(model, training).items():
        mean.total.assign(number + 2)
        mean.count.assign(1)
    results = model.get_metrics_result()
    model.reset_metrics()
    known = set(_means(model, training))
    names = {name: round(float(value)) - 2 for name, value in results.items()}
    return {name: number for name, number in names.items() if number in known}


def _means(model: Any, training: Training) -> dict[int, Any]:
    return {_LOSS: model._loss_tracker} | {
        number: binding.metric for number, binding in enumerate(training.metrics)
    }
