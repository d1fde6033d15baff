"""Small forward functions and random values, shared by the tests of graph and transform."""

from __future__ import annotations

import numpy as np

from fpgrad.graph import Function, Node, Window, verify
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


def to_map(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as the rows of a map, (H*W*N, C)."""
    return images.transpose(2, 3, 0, 1).reshape(-1, images.shape[1])


def from_map(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rows of a map as (N, C, H, W)."""
    return rows.reshape(height, width, -1, rows.shape[1]).transpose(2, 3, 0, 1)


def kernel_rows(kernel: np.ndarray, groups: int = 1) -> np.ndarray:
    """A PyTorch kernel (Cout, Cin/groups, R, S) as rows (R*S*Cin, Cout), zero between groups."""
    outputs, inputs, height, width = kernel.shape
    dense = np.zeros((height, width, groups * inputs, outputs))
    for i in range(groups):
        own = slice(i * outputs // groups, (i + 1) * outputs // groups)
        dense[:, :, i * inputs : (i + 1) * inputs, own] = kernel[own].transpose(2, 3, 1, 0)
    return dense.reshape(-1, outputs)


def valid_window(size: int, taps: int, stride: int = 1) -> Window:
    """Keras's padding "valid"."""
    return Window(size, (size - taps) // stride + 1, taps, stride)


def same_window(size: int, taps: int, stride: int = 1) -> Window:
    """Keras's padding "same": as many positions as strides fit, the odd padding at the end."""
    out = -(-size // stride)
    return Window(size, out, taps, stride, pad=max((out - 1) * stride + taps - size, 0) // 2)
