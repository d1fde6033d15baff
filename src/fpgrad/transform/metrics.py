"""Metrics that the device accumulates: each adds a number per sample to a state (N, 1).

The host sums the state's elements and divides by the number (or total weight) of samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fpgrad.errors import GraphError
from fpgrad.graph import Node, Shape
from fpgrad.graph import builder as g
from fpgrad.transform import losses
from fpgrad.transform.gradients import LOG2E


class Metric(Protocol):
    """A metric of one output."""

    def target_shape(self, prediction: Shape) -> Shape:
        """The shape of the target that goes with a prediction (N, K)."""
        ...

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """The metric of each sample, (N, 1)."""
        ...


@dataclass(frozen=True)
class SparseCategoricalAccuracy:
    """1 where the first largest output is that of the target's class index (N, 1)."""

    def target_shape(self, prediction: Shape) -> Shape:
        """One class index a sample."""
        return prediction[0], 1

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions, (N, 1) indices."""
        return g.eq(first_argmax(prediction), target)


@dataclass(frozen=True)
class CategoricalAccuracy:
    """1 where the first largest output and the first largest target (N, K) coincide."""

    def target_shape(self, prediction: Shape) -> Shape:
        """A distribution a sample."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        return g.eq(first_argmax(prediction), first_argmax(target))


@dataclass(frozen=True)
class BinaryAccuracy:
    """Share of outputs on the target's side of the threshold."""

    threshold: float = 0.5

    def target_shape(self, prediction: Shape) -> Shape:
        """One target an output."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        threshold = self.threshold
        if not 0.0 < threshold < 1.0:
            raise GraphError(f"threshold of binary accuracy must be in (0, 1), not {threshold!r}")
        if prediction.op == "sigmoid":
            # Sigmoid increases, so its argument can be compared instead.
            prediction = prediction.inputs[0]
            threshold = math.log(threshold / (1.0 - threshold))
        correct = g.eq(g.gt(prediction, threshold), target)
        return g.mul(g.reduce_sum(correct, axis=1), 1.0 / prediction.shape[1])


@dataclass(frozen=True)
class LossMetric:
    """A loss's per-sample value, reported as a metric (mean squared error, cross-entropies, ...)."""

    loss: losses.Loss

    def target_shape(self, prediction: Shape) -> Shape:
        """That of the loss."""
        return self.loss.target_shape(prediction)

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """That of the loss."""
        return self.loss.per_sample(prediction, target)


def mean_squared_error() -> LossMetric:
    """Keras's MeanSquaredError metric."""
    return LossMetric(losses.MeanSquaredError())


def mean_absolute_error() -> LossMetric:
    """Keras's MeanAbsoluteError metric."""
    return LossMetric(losses.MeanAbsoluteError())


def first_argmax(x: Node) -> Node:
    """Column of the largest element of each row, the first of equals, (N, 1).

    Of a softmax, its argument is searched instead, in the scale in which the decompositions of
    softmax and its cross-entropy have it (and its maximum) already: both increase with it.
    """
    if x.op == "softmax":
        x = g.mul(x.inputs[0], LOG2E)
    cols = x.shape[1]
    smaller = g.mul(g.gt(g.reduce_max(x, axis=1), x), float(cols))
    return g.reduce_min(g.add(smaller, g.iota(cols)), axis=1)
