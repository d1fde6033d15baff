"""Small training functions, built by hand, for the compiler's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fpgrad.graph import Function, Node, evaluate_cores, verify
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


def functions(
    model: Function, loss=None, optimizer=None, accuracy=None, cores: int = 1
) -> dict[str, Function]:
    """train, evaluate and predict of a forward function for the samples of one core."""
    loss = loss or losses.SparseCategoricalCrossentropy(from_logits=False)
    optimizer = optimizer or optimizers.sgd()
    terms = [] if accuracy is None else [MetricTerm("accuracy", accuracy)]
    return {
        "train": lower(build_training(model, loss, optimizer, terms), cores=cores),
        "evaluate": lower(build_evaluation(model, loss, terms), cores=cores),
        "predict": lower(build_prediction(model), cores=cores),
    }


def float_train(
    function: Function,
    states: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    order: np.ndarray,
    scalars: dict,
    cores: int = 1,
) -> dict[str, np.ndarray]:
    """The states after training in float64 by the graph's own meaning. Metrics are the sums of what the cores have."""
    each = [dict(states) for _ in range(cores)]
    for i, batch in enumerate(order):
        wanted = []
        for samples in np.split(batch, cores):
            real = (samples >= 0)[:, None]
            inputs = {
                k: np.where(real, np.asarray(v, float).reshape(len(v), -1)[samples], 0.0)
                for k, v in data.items()
            }
            inputs |= {k: np.full((1, 1), float(v[i])) for k, v in scalars.items()}
            wanted.append({node.name: inputs[node.name] for node in function.inputs})
        before = [{node.name: mine[node.name] for node in function.states} for mine in each]
        for mine, (_, new) in zip(each, evaluate_cores(function, wanted, before), strict=True):
            mine.update(new)
    per_sample = len(np.split(order[0], cores)[0])
    return {
        name: np.sum([mine[name] for mine in each], axis=0)
        if value.shape[0] == per_sample and "_sum" in name
        else value
        for name, value in each[0].items()
    }


__all__ = ["float_train", "forward", "functions", "g", "losses", "metrics", "optimizers"]
