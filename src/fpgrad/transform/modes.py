"""Resolving what differs between training and inference: dropout and batch normalisation.

It comes before differentiation, so that the training form is what gets differentiated. Layer
normalisation is expanded here too, because its pieces have gradient rules and it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fpgrad.graph import Function, Node
from fpgrad.graph import builder as g
from fpgrad.graph.window import all_positions, transposed
from fpgrad.transform.gradients import moments
from fpgrad.transform.rewrite import rewrite
from fpgrad.transform.step_inputs import StepInputs


@dataclass(frozen=True)
class InferenceMode:
    """Dropout becomes the identity, batch_norm uses the moving statistics."""

    name: str = field(default="inference-mode", init=False)
    stages: tuple[str, str] = field(default=("forward", "training"), init=False)

    def run(self, function: Function) -> Function:
        """The function at inference; it has no updates."""
        return rewrite(function, _expand_inference)


@dataclass(frozen=True)
class TrainingMode:
    """Dropout gets its mask, batch_norm the statistics of the valid rows and the moving updates.

    inputs: the step's inputs. They are declared in the result, used or not.
    """

    inputs: StepInputs
    name: str = field(default="training-mode", init=False)
    stages: tuple[str, str] = field(default=("forward", "training"), init=False)

    def run(self, function: Function) -> Function:
        """The function in training, with updates of the moving statistics."""
        updates: list[tuple[Node, Node]] = []
        streams = 0

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            nonlocal streams
            if node.op in ("dropout", "spatial_dropout"):
                streams += 1
                return _dropout(node, operands[0], self.inputs.seed, streams - 1)
            if node.op == "batch_norm" and node.attrs["trainable"]:
                return _batch_norm(node, operands, self.inputs, updates)
            return _expand_inference(node, operands)

        expanded = rewrite(function, rule)
        return replace(
            expanded,
            inputs=(*expanded.inputs, *self.inputs.nodes),
            updates=(*expanded.updates, *updates),
        )


def _dropout(node: Node, x: Node, seed: Node, stream: int) -> Node:
    rate: float = node.attrs["rate"]
    if rate == 0.0:
        return x
    rows, cols = node.shape
    positions: int = node.attrs.get("positions", 1)
    kept = g.ge(g.uniform(seed, (rows // positions, cols), stream), 1.0 + rate)
    mask = g.mul(kept, 1.0 / (1.0 - rate))
    if positions > 1:
        mask = g.pool(mask, transposed(all_positions(positions)), "sum")
    return g.mul(x, mask)


def _batch_norm(
    node: Node,
    operands: tuple[Node, ...],
    inputs: StepInputs,
    updates: list[tuple[Node, Node]],
) -> Node:
    x, gamma, beta, moving_mean, moving_variance = operands
    epsilon, momentum = node.attrs["epsilon"], node.attrs["momentum"]
    weights = g.mul(inputs.valid, inputs.inv_count)
    positions = x.shape[0] // inputs.valid.shape[0]
    if positions > 1:
        # Of a map, all positions of the valid samples count.
        weights = g.mul(weights, 1.0 / positions)
    # The same expressions as in the decomposition of standardise, which merges with them.
    mean, _, variance, _ = moments(x, weights, 0, epsilon)
    for state, value in ((moving_mean, mean), (moving_variance, variance)):
        with g.naming(state.name):
            new = g.add(g.mul(state, momentum), g.mul(value, 1.0 - momentum))
        updates.append((state, new))
    return _affine(g.make("standardise", (x, weights), axis=0, epsilon=epsilon), gamma, beta)


def _layer_norm(node: Node, operands: tuple[Node, ...]) -> Node:
    x, gamma, beta = operands
    weights = g.const(1.0 / x.shape[1])
    normalised = g.make("standardise", (x, weights), axis=1, epsilon=node.attrs["epsilon"])
    return _affine(normalised, gamma, beta)


def _affine(x: Node, gamma: Node, beta: Node) -> Node:
    return g.add(g.mul(x, gamma), beta)


def _batch_norm_inference(node: Node, operands: tuple[Node, ...]) -> Node:
    # One multiply-add on the batch; the rest is work on (1, F) rows.
    x, gamma, beta, mean, variance = operands
    scale = g.mul(g.rsqrt(g.add(variance, node.attrs["epsilon"])), gamma)
    return g.add(g.mul(x, scale), g.sub(beta, g.mul(mean, scale)))


_INFERENCE: dict[str, Callable[[Node, tuple[Node, ...]], Node]] = {
    "dropout": lambda _node, operands: operands[0],
    "spatial_dropout": lambda _node, operands: operands[0],
    "batch_norm": _batch_norm_inference,
    "layer_norm": _layer_norm,
}


def _expand_inference(node: Node, operands: tuple[Node, ...]) -> Node | None:
    expand = _INFERENCE.get(node.op)
    return None if expand is None else expand(node, operands)
