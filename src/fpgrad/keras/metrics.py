"""Epoch metrics: sums from the device, put into Keras's own metric objects.

Keras's objects name the metrics, order them and compute the means, so that logs, History and
callbacks see what they would see from Keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpgrad.frontend.lowered import Lowered
from fpgrad.keras.sources import Placed
from fpgrad.transform import LOSS_SUM, REGULARISATION_SUM

__all__ = ["EpochMetrics"]


class EpochMetrics:
    """Accumulates one epoch's, or one evaluation's, metrics."""

    def __init__(self, model: Any, lowered: Lowered) -> None:
        assert lowered.training is not None
        self._model = model
        self._training = lowered.training
        self._sums: dict[str, float] = {}
        self._samples = 0
        self._weight = 0.0

    def reset(self) -> None:
        """Begins again from zero, Keras's objects too."""
        self._sums.clear()
        self._samples = 0
        self._weight = 0.0
        self._model.reset_metrics()

    @property
    def wants_outputs(self) -> bool:
        """Whether a metric is computed by the host, from the model's outputs."""
        return bool(self._training.host_metrics)

    def add(self, sums: dict[str, float], placed: Placed) -> None:
        """Adds the device's sums over the steps of ``placed``."""
        for state, value in sums.items():
            self._sums[state] = self._sums.get(state, 0.0) + float(value)
        self._samples += int(placed.counts.sum())
        self._weight += float(placed.weights.sum())

    def add_outputs(self, outputs: np.ndarray, placed: Placed) -> None:
        """Feeds the host's metrics with the outputs for the samples of ``placed``."""
        for host in self._training.host_metrics:
            weights = placed.sample_weights if host.weighted else None
            host.metric.update_state(placed.targets, outputs, sample_weight=weights)

    def logs(self) -> dict[str, Any]:
        """Returns the means so far, by the names that Keras gives them."""
        loss = self._sums.get(LOSS_SUM, 0.0) + self._sums.get(REGULARISATION_SUM, 0.0)
        _assign(self._model._loss_tracker, loss, self._samples)
        for binding in self._training.metrics:
            count = self._weight if binding.weighted else self._samples
            _assign(binding.metric, self._sums.get(f"{binding.name}_sum", 0.0), count)
        return dict(self._model.get_metrics_result())


def _assign(mean: Any, total: float, count: float) -> None:
    """Sets a Keras Mean metric, which is total / count."""
    mean.total.assign(total)
    mean.count.assign(count)
