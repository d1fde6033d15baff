"""Losses, each a function from a prediction and its target to a loss per sample, as Keras 3 has it.

A cross-entropy of probabilities that come straight out of softmax or sigmoid is computed from the
logits instead: the same mathematics, without the clipping, and a gradient of one subtraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fpgrad.errors import GraphError
from fpgrad.graph import Node, Shape
from fpgrad.graph import builder as g

KERAS_EPSILON = 1e-7
"""keras.config.epsilon() by default: probabilities are clipped to [1e-7, 1 - 1e-7]."""


class Loss(Protocol):
    """A loss of one output."""

    def target_shape(self, prediction: Shape) -> Shape:
        """The shape of the target that goes with a prediction (N, K)."""
        ...

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """The loss of each sample, (N, 1)."""
        ...


@dataclass(frozen=True)
class SparseCategoricalCrossentropy:
    """-log p[target], target (N, 1) a class index."""

    from_logits: bool = False

    def target_shape(self, prediction: Shape) -> Shape:
        """One class index a sample."""
        return prediction[0], 1

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions, (N, 1) indices."""
        chosen = g.eq(g.iota(prediction.shape[1]), target)
        return _categorical(prediction, chosen, self.from_logits, normalised=True)


@dataclass(frozen=True)
class CategoricalCrossentropy:
    """-sum(target * log p), target (N, K) a distribution, smoothed towards the uniform one."""

    from_logits: bool = False
    label_smoothing: float = 0.0

    def target_shape(self, prediction: Shape) -> Shape:
        """A distribution a sample."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        smoothing = _checked_smoothing(self.label_smoothing)
        if smoothing:
            classes = prediction.shape[1]
            target = g.add(g.mul(target, 1.0 - smoothing), smoothing / classes)
        return _categorical(prediction, target, self.from_logits, normalised=False)


@dataclass(frozen=True)
class BinaryCrossentropy:
    """Mean over outputs of -t*log p - (1-t)*log(1-p), targets smoothed towards 1/2."""

    from_logits: bool = False
    label_smoothing: float = 0.0

    def target_shape(self, prediction: Shape) -> Shape:
        """One target an output."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        smoothing = _checked_smoothing(self.label_smoothing)
        if smoothing:
            target = g.add(g.mul(target, 1.0 - smoothing), 0.5 * smoothing)
        if self.from_logits or prediction.op == "sigmoid":
            logits = prediction if self.from_logits else prediction.inputs[0]
            return _row_mean(g.make("sigmoid_cross_entropy", (logits, target)))
        p = _clip_probability(prediction)
        likely = g.mul(g.unary("log", p), target)
        # 1 - 1e-7 is 1 in the machine's floats: the complement needs a lower bound of its own.
        complement = g.maximum(g.sub(1.0, p), KERAS_EPSILON)
        unlikely = g.mul(g.unary("log", complement), g.sub(1.0, target))
        return g.mul(_row_mean(g.add(likely, unlikely)), -1.0)


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean over outputs of (prediction - target)²."""

    def target_shape(self, prediction: Shape) -> Shape:
        """One target an output."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        return _row_mean(g.unary("square", g.sub(prediction, target)))


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean over outputs of |prediction - target|."""

    def target_shape(self, prediction: Shape) -> Shape:
        """One target an output."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        return _row_mean(g.unary("abs", g.sub(prediction, target)))


@dataclass(frozen=True)
class Huber:
    """Mean over outputs of e²/2 where |e| <= delta, else delta*|e| - delta²/2."""

    delta: float = 1.0

    def target_shape(self, prediction: Shape) -> Shape:
        """One target an output."""
        return prediction

    def per_sample(self, prediction: Node, target: Node) -> Node:
        """(N, K) predictions and targets."""
        error = g.sub(prediction, target)
        return _row_mean(g.make("huber", (error,), delta=float(self.delta)))


def _checked_smoothing(smoothing: float) -> float:
    if not 0.0 <= smoothing <= 1.0:
        raise GraphError(f"label_smoothing must be in [0, 1], not {smoothing!r}")
    return smoothing


def _row_mean(x: Node) -> Node:
    return g.mul(g.reduce_sum(x, axis=1), 1.0 / x.shape[1])


def _clip_probability(p: Node) -> Node:
    return g.minimum(g.maximum(p, KERAS_EPSILON), 1.0 - KERAS_EPSILON)


def _categorical(prediction: Node, target: Node, from_logits: bool, normalised: bool) -> Node:
    if from_logits or prediction.op == "softmax":
        logits = prediction if from_logits else prediction.inputs[0]
        return g.make("softmax_cross_entropy", (logits, target), normalised=normalised)
    p = _clip_probability(g.div(prediction, g.reduce_sum(prediction, axis=1)))
    return g.mul(g.reduce_sum(g.mul(g.unary("log", p), target), axis=1), -1.0)
