"""Small training functions, built by hand, for the compiler's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fpgrad.graph import Function, Node, evaluate, verify
from fpgrad.graph import builder as g
from fpgrad.transform import (
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
    losses,
    lower,
    metrics,
    optimizers,
)

Activation = Callable[[Node], Node]


def forward(
    n: int, dims: Sequence[int], hidden: Activation = g.relu, last: Activation = g.softmax
) -> Function:
    """A dense network: ``dims`` are the widths from input to output."""
    x = g.batch_input("x", (n, dims[0]))
    h, states = x, []
    for i, (inputs, outputs) in enumerate(pairwise(dims)):
        w = g.state(f"dense{i}/kernel", (inputs, outputs), trainable=True)
        b = g.state(f"dense{i}/bias", (1, outputs), trainable=True)
        states += [w, b]
        with g.naming(f"dense{i}"):
            h = g.add(g.matmul(h, w), b)
            h = hidden(h) if i < len(dims) - 2 else last(h)
    found = Function("forward", (x,), tuple(states), (("out", h),)).nodes()
    states += [n for n in found if n.op == "state" and n not in states]
    return verify(Function("forward", (x,), tuple(states), (("out", h),)), "forward")


def functions(model: Function, loss=None, optimizer=None, accuracy=None) -> dict[str, Function]:
    """train, evaluate and predict of a forward function."""
    loss = loss or losses.SparseCategoricalCrossentropy(from_logits=False)
    optimizer = optimizer or optimizers.sgd()
    terms = [] if accuracy is None else [MetricTerm("accuracy", accuracy)]
    return {
        "train": lower(build_training(model, loss, optimizer, terms)),
        "evaluate": lower(build_evaluation(model, loss, terms)),
        "predict": lower(build_prediction(model)),
    }


def float_train(
    function: Function,
    states: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    order: np.ndarray,
    scalars: dict,
) -> dict[str, np.ndarray]:
    """The states after training in float64 by the graph's own meaning."""
    states = dict(states)
    for i, batch in enumerate(order):
        real = (batch >= 0)[:, None]
        inputs = {
            k: np.where(real, np.asarray(v, float).reshape(len(v), -1)[batch], 0.0)
            for k, v in data.items()
        }
        inputs |= {k: np.full((1, 1), float(v[i])) for k, v in scalars.items()}
        wanted = {node.name: inputs[node.name] for node in function.inputs}
        _, new = evaluate(
            function, wanted, {node.name: states[node.name] for node in function.states}
        )
        states.update(new)
    return states


__all__ = ["float_train", "forward", "functions", "g", "losses", "metrics", "optimizers"]
