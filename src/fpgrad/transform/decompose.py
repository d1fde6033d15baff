"""Rewriting composite ops into those of the machine: one small function per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fpgrad.graph import Function, Node
from fpgrad.graph import builder as g
from fpgrad.graph.ops import SQRT_2_OVER_PI
from fpgrad.transform.gradients import LN2, LOG2E, moments
from fpgrad.transform.rewrite import rewrite

SMALLEST = 2.0**-126
"""The smallest normal number with 8 exponent bits."""

Decomposition = Callable[[Node, tuple[Node, ...]], Node]


def _exp(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.exp2(g.mul(x[0], LOG2E))


def _log(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.mul(g.log2(x[0]), LN2)


def _sqrt(_node: Node, x: tuple[Node, ...]) -> Node:
    # The root of 0 is 0, without the saturation of rsqrt, which the machine would count.
    return g.mul(g.rsqrt(g.maximum(x[0], SMALLEST)), x[0])


def _abs(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.maximum(g.mul(x[0], -1.0), x[0])


def _sign(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.sub(g.gt(x[0], 0.0), g.gt(0.0, x[0]))


def _silu(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.mul(g.sigmoid(x[0]), x[0])


def _softplus_of_minus_abs(x: Node) -> Node:
    """log(1 + exp(-|x|)); the argument of exp2 is -|x|*log2(e) = min(x*L, -x*L)."""
    scaled = g.mul(x, LOG2E)
    e = g.exp2(g.minimum(g.mul(scaled, -1.0), scaled))
    return g.mul(g.log2(g.add(e, 1.0)), LN2)


def _softplus(_node: Node, x: tuple[Node, ...]) -> Node:
    return g.add(g.relu(x[0]), _softplus_of_minus_abs(x[0]))


def _sigmoid_cross_entropy(_node: Node, x: tuple[Node, ...]) -> Node:
    z, target = x
    return g.add(g.sub(g.relu(z), g.mul(z, target)), _softplus_of_minus_abs(z))


def _leaky_relu(node: Node, x: tuple[Node, ...]) -> Node:
    alpha: float = node.attrs["alpha"]
    pick = g.maximum if alpha <= 1.0 else g.minimum
    return pick(g.mul(x[0], alpha), x[0])


def _elu(node: Node, x: tuple[Node, ...]) -> Node:
    alpha: float = node.attrs["alpha"]
    e = g.exp2(g.mul(g.minimum(x[0], 0.0), LOG2E))
    return g.add(g.sub(g.mul(e, alpha), alpha), g.relu(x[0]))


def _gelu(node: Node, x: tuple[Node, ...]) -> Node:
    if not node.attrs["approximate"]:
        return g.mul(g.phi(x[0]), x[0])
    cubic = g.add(g.mul(g.mul(x[0], x[0]), 0.044715 * SQRT_2_OVER_PI), SQRT_2_OVER_PI)
    t = g.tanh(g.mul(cubic, x[0]))
    return g.mul(g.add(g.mul(t, 0.5), 0.5), x[0])


def _huber(node: Node, x: tuple[Node, ...]) -> Node:
    size = _abs(node, x)
    clipped = g.minimum(size, node.attrs["delta"])
    return g.mul(g.sub(size, g.mul(clipped, 0.5)), clipped)


def _exponentials(x: Node) -> tuple[Node, Node, Node, Node]:
    """x*log2(e), its row maximum, exp(x - max x), and the row sums of the latter.

    All in units of log2, so that the scaling is the last step of the pass that makes x.
    """
    scaled = g.mul(x, LOG2E)
    largest = g.reduce_max(scaled, axis=1)
    e = g.exp2(g.sub(scaled, largest))
    return scaled, largest, e, g.reduce_sum(e, axis=1)


def _softmax(_node: Node, x: tuple[Node, ...]) -> Node:
    _, _, e, total = _exponentials(x[0])
    return g.mul(e, g.reciprocal(total))


def _log_softmax(_node: Node, x: tuple[Node, ...]) -> Node:
    scaled, largest, _, total = _exponentials(x[0])
    return g.mul(g.sub(g.sub(scaled, largest), g.log2(total)), LN2)


def _softmax_cross_entropy(node: Node, x: tuple[Node, ...]) -> Node:
    # ((max - sum t*z) + log2 sum 2^(z - max)) * ln 2, for targets t of sum 1 and z = logits*log2(e).
    # The difference comes first: it is exactly 0 for a correct one-hot prediction, so nothing small
    # is lost beside large logits.
    scaled, largest, _, total = _exponentials(x[0])
    chosen = g.reduce_sum(g.mul(scaled, x[1]), axis=1)
    if node.attrs["normalised"]:
        return g.mul(g.add(g.sub(largest, chosen), g.log2(total)), LN2)
    weight = g.reduce_sum(x[1], axis=1)
    shifted = g.sub(g.mul(largest, weight), chosen)
    return g.mul(g.add(g.mul(g.log2(total), weight), shifted), LN2)


def _standardise(node: Node, x: tuple[Node, ...]) -> Node:
    _, centred, _, inverse = moments(x[0], x[1], node.attrs["axis"], node.attrs["epsilon"])
    return g.mul(centred, inverse)


DECOMPOSITIONS: Mapping[str, Decomposition] = {
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "square": lambda _node, x: g.mul(x[0], x[0]),
    "abs": _abs,
    "neg": lambda _node, x: g.mul(x[0], -1.0),
    "sign": _sign,
    "silu": _silu,
    "softplus": _softplus,
    "div": lambda _node, x: g.mul(g.reciprocal(x[1]), x[0]),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "huber": _huber,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sigmoid_cross_entropy": _sigmoid_cross_entropy,
    "standardise": _standardise,
}
"""Every composite op of stage `training`, in ops of stage `machine`."""


@dataclass(frozen=True)
class Decompose:
    """Replaces every composite op by ops of the machine."""

    name: str = field(default="decompose", init=False)
    stages: tuple[str, str] = field(default=("training", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function in ops of the machine, not yet simplified."""
        return rewrite(function, _decompose)


def _decompose(node: Node, operands: tuple[Node, ...]) -> Node | None:
    decomposition = DECOMPOSITIONS.get(node.op)
    return None if decomposition is None else decomposition(node, operands)
