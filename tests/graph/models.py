"""Small forward functions and random values, shared by the tests of graph and transform."""

from __future__ import annotations

import numpy as np

from fpgrad.graph import Function, Node, verify
from fpgrad.graph import builder as g


def dense(x: Node, units: int, name: str, activation: str | None = None) -> tuple[Node, list[Node]]:
    """A dense layer and its states."""
    kernel = g.state(f"{name}/kernel", (x.shape[1], units), trainable=True)
    bias = g.state(f"{name}/bias", (1, units), trainable=True)
    with g.naming(name):
        y = g.add(g.matmul(x, kernel), bias)
        if activation is not None:
            y = g.make(activation, (y,))
    return y, [kernel, bias]


def mlp(
    rows: int = 8,
    sizes: tuple[int, ...] = (5, 7, 3),
    hidden: str = "relu",
    last: str | None = "softmax",
) -> Function:
    """A perceptron with one output, called "output"."""
    x = g.batch_input("x", (rows, sizes[0]))
    y, states = x, []
    for i, units in enumerate(sizes[1:]):
        activation = hidden if i < len(sizes) - 2 else last
        y, new = dense(y, units, f"dense_{i}", activation)
        states += new
    return verify(Function("forward", (x,), tuple(states), (("output", y),)), "forward")


def random_states(function: Function, seed: int = 0, scale: float = 0.5) -> dict[str, np.ndarray]:
    """Normal parameters, moving variances above zero, everything else zero."""
    generator = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for state in function.states:
        if state.attrs["role"] == "parameter":
            values[state.name] = generator.normal(size=state.shape) * scale
        elif state.attrs["role"] == "moving":
            values[state.name] = generator.uniform(0.5, 1.5, size=state.shape)
        else:
            values[state.name] = np.zeros(state.shape)
    return values
