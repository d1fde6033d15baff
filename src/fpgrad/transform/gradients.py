"""The table of gradient rules: one small function per op.

A rule takes a node and its cotangent dy = dL/dnode and returns dL/doperand for each operand, None
where there is none. Cotangents of elementwise ops may be narrower than their node (they broadcast),
and a rule may return them broadcast to the node's shape: `autodiff` sums them back. Rules whose op
is not elementwise get a dy of the node's full shape unless they are listed in ACCEPTS_NARROW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fpgrad.graph import Node
from fpgrad.graph import builder as g
from fpgrad.graph.maps import group_mask
from fpgrad.graph.ops import SQRT_2_OVER_PI
from fpgrad.graph.window import all_positions, taps, transposed

Cotangents = tuple[Node | None, ...]
GradientRule = Callable[[Node, Node], Cotangents]

LN2 = math.log(2.0)
LOG2E = 1.0 / LN2
INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


def _matmul(node: Node, dy: Node) -> Cotangents:
    a, b = node.inputs
    ta, tb = node.attrs["ta"], node.attrs["tb"]
    da = g.matmul(b, dy, ta=tb, tb=True) if ta else g.matmul(dy, b, tb=not tb)
    db = g.matmul(dy, a, ta=True, tb=ta) if tb else g.matmul(a, dy, ta=not ta)
    return da, db


def _sub(_node: Node, dy: Node) -> Cotangents:
    return dy, g.mul(dy, -1.0)


def _mul(node: Node, dy: Node) -> Cotangents:
    a, b = node.inputs
    return g.mul(dy, b), g.mul(dy, a)


def _max(node: Node, dy: Node) -> Cotangents:
    a, b = node.inputs
    return g.mul(dy, g.ge(a, b)), g.mul(dy, g.gt(b, a))


def _min(node: Node, dy: Node) -> Cotangents:
    a, b = node.inputs
    return g.mul(dy, g.ge(b, a)), g.mul(dy, g.gt(a, b))


def _gate(node: Node, dy: Node) -> Cotangents:
    return g.gate(dy, node.inputs[1]), None


def _relu(node: Node, dy: Node) -> Cotangents:
    return (g.gate(dy, node),)


def _exp2(node: Node, dy: Node) -> Cotangents:
    return (g.mul(g.mul(dy, node), LN2),)


def _log2(node: Node, dy: Node) -> Cotangents:
    return (g.mul(g.mul(dy, g.reciprocal(node.inputs[0])), LOG2E),)


def _reciprocal(node: Node, dy: Node) -> Cotangents:
    return (g.mul(g.mul(dy, g.mul(node, node)), -1.0),)


def _rsqrt(node: Node, dy: Node) -> Cotangents:
    return (g.mul(g.mul(dy, g.mul(node, g.mul(node, node))), -0.5),)


def _tanh(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.sub(1.0, g.mul(node, node))),)


def _sigmoid(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.sub(node, g.mul(node, node))),)


def _normal_density(x: Node) -> Node:
    return g.mul(g.exp2(g.mul(g.mul(x, x), -0.5 * LOG2E)), INV_SQRT_2PI)


def _phi(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, _normal_density(node.inputs[0])),)


def _reduce_sum(_node: Node, dy: Node) -> Cotangents:
    return (dy,)


def _reduce_extreme(node: Node, dy: Node) -> Cotangents:
    # Ties share the cotangent equally, as in PyTorch's amax.
    chosen = g.eq(node.inputs[0], node)
    count = g.reduce_sum(chosen, axis=node.attrs["axis"])
    return (g.mul(chosen, g.mul(dy, g.reciprocal(count))),)


def _concat(node: Node, dy: Node) -> Cotangents:
    parts: list[Node] = []
    start = 0
    for operand in node.inputs:
        parts.append(g.slice_cols(dy, start, start + operand.shape[1]))
        start += operand.shape[1]
    return tuple(parts)


def _slice(node: Node, dy: Node) -> Cotangents:
    rows, cols = node.inputs[0].shape
    start, stop = node.attrs["start"], node.attrs["stop"]
    parts = [dy]
    if start > 0:
        parts.insert(0, zeros((rows, start)))
    if stop < cols:
        parts.append(zeros((rows, cols - stop)))
    return (g.concat(*parts) if len(parts) > 1 else dy,)


def _exp(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, node),)


def _log(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.reciprocal(node.inputs[0])),)


def _sqrt(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.mul(g.rsqrt(node.inputs[0]), 0.5)),)


def _square(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.mul(node.inputs[0], 2.0)),)


def _abs(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.unary("sign", node.inputs[0])),)


def _div(node: Node, dy: Node) -> Cotangents:
    da = g.mul(dy, g.reciprocal(node.inputs[1]))
    return da, g.mul(g.mul(da, node), -1.0)


def _silu(node: Node, dy: Node) -> Cotangents:
    s = g.sigmoid(node.inputs[0])
    return (g.mul(dy, g.add(s, g.mul(node, g.sub(1.0, s)))),)


def _softplus(node: Node, dy: Node) -> Cotangents:
    return (g.mul(dy, g.sigmoid(node.inputs[0])),)


def _leaky_relu(node: Node, dy: Node) -> Cotangents:
    alpha = node.attrs["alpha"]
    positive = g.gt(node.inputs[0], 0.0)
    return (g.mul(dy, g.add(g.mul(positive, 1.0 - alpha), alpha)),)


def _elu(node: Node, dy: Node) -> Cotangents:
    # x > 0: (1 - alpha) + alpha = 1. x <= 0: alpha*exp(x) = y + alpha.
    alpha = node.attrs["alpha"]
    positive = g.gt(node.inputs[0], 0.0)
    slope = g.add(g.mul(positive, 1.0 - alpha), g.add(g.minimum(node, 0.0), alpha))
    return (g.mul(dy, slope),)


def _gelu(node: Node, dy: Node) -> Cotangents:
    x = node.inputs[0]
    if not node.attrs["approximate"]:
        return (g.mul(dy, g.add(g.phi(x), g.mul(x, _normal_density(x)))),)
    square = g.mul(x, x)
    cubic = g.add(g.mul(square, 0.044715 * SQRT_2_OVER_PI), SQRT_2_OVER_PI)
    t = g.tanh(g.mul(x, cubic))
    inner = g.add(g.mul(square, 3.0 * 0.044715 * SQRT_2_OVER_PI), SQRT_2_OVER_PI)
    steep = g.mul(g.mul(x, inner), g.sub(1.0, g.mul(t, t)))
    return (g.mul(dy, g.mul(g.add(g.add(t, 1.0), steep), 0.5)),)


def _huber(node: Node, dy: Node) -> Cotangents:
    delta = node.attrs["delta"]
    return (g.mul(dy, g.maximum(g.minimum(node.inputs[0], delta), -delta)),)


def _softmax(node: Node, dy: Node) -> Cotangents:
    inner = g.reduce_sum(g.mul(dy, node), axis=1)
    return (g.mul(node, g.sub(dy, inner)),)


def _log_softmax(node: Node, dy: Node) -> Cotangents:
    return (g.sub(dy, g.mul(g.softmax(node.inputs[0]), g.reduce_sum(dy, axis=1))),)


def _softmax_cross_entropy(node: Node, dy: Node) -> Cotangents:
    logits, target = node.inputs
    p = g.softmax(logits)
    d_target = g.mul(g.mul(g.make("log_softmax", (logits,)), dy), -1.0)
    if node.attrs["normalised"]:
        # (p - target)*dy, so that target*dy is ready before p, and p*dy joins factors of a column.
        return g.sub(g.mul(p, dy), g.mul(target, dy)), d_target
    p = g.mul(p, g.reduce_sum(target, axis=1))
    return g.mul(g.sub(p, target), dy), d_target


def _sigmoid_cross_entropy(node: Node, dy: Node) -> Cotangents:
    logits, target = node.inputs
    return g.mul(g.sub(g.sigmoid(logits), target), dy), g.mul(g.mul(logits, dy), -1.0)


def _weighted_sum(x: Node, weights: Node, axis: int) -> Node:
    """Sum of x*weights along `axis`; weights (N, 1) count at each position of a map (P*N, C).

    Positions are summed first, so that a map is multiplied by as many numbers as it has samples.
    """
    positions = x.shape[0] // weights.shape[0]
    if axis == 0 and weights.shape[0] > 1 and positions > 1:
        x = g.pool(x, all_positions(positions), "sum")
    return g.reduce_sum(g.mul(x, weights), axis=axis)


def moments(x: Node, weights: Node, axis: int, epsilon: float) -> tuple[Node, Node, Node, Node]:
    """Mean, centred x, variance and 1/sqrt(variance + epsilon) along `axis`, weighted."""
    mean = _weighted_sum(x, weights, axis)
    centred = g.sub(x, mean)
    variance = _weighted_sum(g.mul(centred, centred), weights, axis)
    return mean, centred, variance, g.rsqrt(g.add(variance, epsilon))


def _standardise(node: Node, dy: Node) -> Cotangents:
    # With weights w that sum to 1 along the axis, y = (x - mean)*r:
    # dx = r*(dy - w*(sum dy + y*sum(dy*y))). The weights are not differentiated.
    x, w = node.inputs
    axis = node.attrs["axis"]
    r = moments(x, w, axis, node.attrs["epsilon"])[3]
    total = g.reduce_sum(dy, axis=axis)
    along = g.reduce_sum(g.mul(dy, node), axis=axis)
    positions = x.shape[0] // w.shape[0]
    if axis == 0 and w.shape[0] > 1 and positions > 1:
        w = g.pool(w, transposed(all_positions(positions)), "sum")
    shared = g.mul(g.add(g.mul(node, along), total), w)
    return g.mul(g.sub(dy, shared), r), None


def _conv(node: Node, dy: Node) -> Cotangents:
    x, w = node.inputs
    windows, turned = node.attrs["windows"], node.attrs["transposed_weights"]
    groups = node.attrs["groups"]
    back = transposed(windows)
    dx = g.conv(dy, w, back, transposed_weights=not turned, groups=groups)
    if turned:
        dw = g.conv_weight(dy, x, back, groups=groups)
    else:
        dw = g.conv_weight(x, dy, windows, groups=groups)
    if groups > 1:
        # What the groups leave out must stay zero.
        dw = g.mul(dw, g.const(group_mask(w.shape, taps(windows), groups)))
    return dx, dw


def _pool(node: Node, dy: Node) -> Cotangents:
    x, windows = node.inputs[0], node.attrs["windows"]
    if node.attrs["kind"] == "sum":
        return (g.pool(dy, transposed(windows), "sum"),)
    return (g.pool_max_grad(x, node, dy, windows),)


def _flatten(node: Node, dy: Node) -> Cotangents:
    return (g.unflatten(dy, node.attrs["positions"]),)


def _unflatten(node: Node, dy: Node) -> Cotangents:
    return (g.flatten(dy, node.attrs["positions"]),)


def zeros(shape: tuple[int, int]) -> Node:
    """A constant of zeros."""
    return fill(0.0, shape)


def fill(value: float, shape: tuple[int, int]) -> Node:
    """A constant of one value in every element."""
    return g.const(np.full(shape, value))


def _no_gradient(node: Node, _dy: Node) -> Cotangents:
    return (None,) * len(node.inputs)


GRADIENTS: Mapping[str, GradientRule] = {
    "matmul": _matmul,
    "add": lambda _node, dy: (dy, dy),
    "sub": _sub,
    "mul": _mul,
    "max": _max,
    "min": _min,
    "gt": _no_gradient,
    "ge": _no_gradient,
    "eq": _no_gradient,
    "gate": _gate,
    "relu": _relu,
    "exp2": _exp2,
    "log2": _log2,
    "reciprocal": _reciprocal,
    "rsqrt": _rsqrt,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "phi": _phi,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_extreme,
    "reduce_min": _reduce_extreme,
    "concat": _concat,
    "slice": _slice,
    "uniform": _no_gradient,
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "square": _square,
    "abs": _abs,
    "neg": lambda _node, dy: (g.mul(dy, -1.0),),
    "sign": _no_gradient,
    "silu": _silu,
    "softplus": _softplus,
    "div": _div,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "huber": _huber,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sigmoid_cross_entropy": _sigmoid_cross_entropy,
    "standardise": _standardise,
    "conv": _conv,
    "unfold": _no_gradient,
    "pool": _pool,
    "flatten": _flatten,
    "unflatten": _unflatten,
}
"""Every op that autodiff can pass through. dropout, batch_norm and layer_norm are expanded before,
by `fpgrad.transform.modes`; quantise is inserted after; conv_weight and pool_max_grad are made here
only."""

ACCEPTS_NARROW = frozenset({"reduce_sum", "reduce_max", "reduce_min", "softmax_cross_entropy"})
"""Ops that are not elementwise but whose rules take a dy that is narrower than the node."""
