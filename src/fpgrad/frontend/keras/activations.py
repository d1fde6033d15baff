"""Keras's activation functions, keyed by qualified name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fpgrad.frontend.keras.context import Context, Value, function_key
from fpgrad.frontend.keras.maps import channel_format, to_map, to_vector
from fpgrad.graph import Node
from fpgrad.graph import builder as g

_MODULE = "keras.src.activations.activations"


def _hard_sigmoid(x: Node) -> Node:
    return g.minimum(g.maximum(g.add(g.mul(x, 1.0 / 6.0), 0.5), 0.0), 1.0)


ELEMENTWISE: dict[str, Callable[[Node], Node]] = {
    f"{_MODULE}.linear": lambda x: x,
    f"{_MODULE}.relu": g.relu,
    f"{_MODULE}.relu6": lambda x: g.minimum(g.relu(x), 6.0),
    # 0.2 is the default slope of keras.activations.leaky_relu, what the string stands for.
    f"{_MODULE}.leaky_relu": lambda x: g.leaky_relu(x, 0.2),
    f"{_MODULE}.sigmoid": g.sigmoid,
    f"{_MODULE}.tanh": g.tanh,
    f"{_MODULE}.gelu": lambda x: g.gelu(x, approximate=False),
    f"{_MODULE}.silu": lambda x: g.unary("silu", x),
    f"{_MODULE}.elu": lambda x: g.elu(x, 1.0),
    f"{_MODULE}.softplus": lambda x: g.unary("softplus", x),
    f"{_MODULE}.exponential": lambda x: g.unary("exp", x),
    f"{_MODULE}.hard_sigmoid": _hard_sigmoid,
    f"{_MODULE}.hard_silu": lambda x: g.mul(x, _hard_sigmoid(x)),
}
"""Activations that work number by number."""

SUPPORTED = (
    *sorted(key.removeprefix(f"{_MODULE}.") for key in ELEMENTWISE),
    "softmax",
)


def activate(context: Context, where: str, activation: Any, x: Value) -> Value:
    """Returns ``activation`` of ``x``; reports an activation that has no handler."""
    if activation is None:
        return x
    key = function_key(activation)
    if key == f"{_MODULE}.softmax":
        return softmax(context, where, x)
    if key not in ELEMENTWISE:
        name = getattr(activation, "__name__", None) or type(activation).__name__
        context.report(
            where,
            f"activation {name!r} is not supported",
            f"use one of {', '.join(SUPPORTED)}",
        )
        return x
    return x.like(ELEMENTWISE[key](x.node))


def softmax(context: Context, where: str, x: Value, axis: Any = -1) -> Value:
    """Softmax over the classes of a vector, or over the channels at each position of a map."""
    if len(x.shape) == 1 and axis in (-1, 1):
        x = to_vector(x)
    else:
        first = channel_format(len(x.shape), axis) if isinstance(axis, int) else None
        if first is None:
            context.report(
                where,
                f"softmax of a tensor of shape {(None, *x.shape)} along axis {axis} is not supported",
                "use axis=-1 on vectors or maps with channels_last",
            )
            return x
        x = to_map(context, where, x, first)
    if x.node.shape[1] == 1:
        context.report(
            where,
            "softmax of a single number is the constant 1 and cannot be trained",
            "use sigmoid for one output, or one output per class",
        )
    return x.like(g.softmax(x.node))
