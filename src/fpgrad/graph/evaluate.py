"""A function's meaning in float64, op by op: what every lowering is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fpgrad.errors import GraphError
from fpgrad.graph.node import Function, Node
from fpgrad.graph.ops import ALL_SUM, OPS, Array
from fpgrad.graph.record import CORE


def evaluate(
    function: Function, inputs: Mapping[str, ArrayLike], states: Mapping[str, ArrayLike]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Runs one step.

    inputs, states: arrays by name, of the declared shapes (float64; the seed is an integer).
    Returns outputs by name, and every state by name with updates applied. GraphError names what is
    missing, unknown or of the wrong shape.
    """
    return evaluate_cores(function, [inputs], [states])[0]


def evaluate_cores(
    function: Function,
    inputs: Sequence[Mapping[str, ArrayLike]],
    states: Sequence[Mapping[str, ArrayLike]],
) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Runs one step on several cores, node by node; an all_sum adds up what the cores have.

    inputs, states: those of each core. Returns of each core what `evaluate` returns.
    """
    cores: list[dict[Node, Array]] = []
    for some_inputs, some_states in zip(inputs, states, strict=True):
        values: dict[Node, Array] = {}
        _bind("input", function, function.inputs, some_inputs, values)
        _bind("state", function, function.states, some_states, values)
        cores.append(values)
    for node in function.nodes():
        if node in cores[0]:
            continue
        results = [
            evaluate_node(node, [values[x] for x in node.inputs], core)
            for core, values in enumerate(cores)
        ]
        if node.op == ALL_SUM:
            results = [np.sum(results, axis=0)] * len(cores)
        for values, result in zip(cores, results, strict=True):
            values[node] = result
    return [_results(function, values) for values in cores]


def _results(
    function: Function, values: Mapping[Node, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    new_states = {node.name: values[node] for node in function.states}
    new_states.update({target.name: values[value] for target, value in function.updates})
    return {name: values[node] for name, node in function.outputs}, new_states


def evaluate_node(node: Node, operands: list[Array], core: int = 0) -> Array:
    """The float64 value of one node from those of its operands, on one of the cores."""
    if node.op == "const":
        return node.value
    if node.is_leaf:
        raise GraphError(f"{node.op} {node.name!r} is used but not declared in the function")
    return np.asarray(OPS[node.op].evaluate(operands, {**node.attrs, CORE: core}))


def _bind(
    what: str,
    function: Function,
    nodes: tuple[Node, ...],
    given: Mapping[str, ArrayLike],
    values: dict[Node, Array],
) -> None:
    names = {node.name for node in nodes}
    if set(given) != names:
        missing, unknown = sorted(names - set(given)), sorted(set(given) - names)
        raise GraphError(
            f"{what}s of {function.name!r} must be {sorted(names)};"
            f" missing: {missing}, unknown: {unknown}"
        )
    for node in nodes:
        # A seed has 64 bits, more than float64 holds: it stays an integer.
        seed = node.attrs.get("kind") == "seed"
        array: Any = np.asarray(given[node.name], dtype=np.uint64 if seed else np.float64)
        if array.ndim == 0:
            array = array.reshape(1, 1)
        if array.shape != node.shape:
            raise GraphError(
                f"{what} {node.name!r} of {function.name!r} must have the shape {node.shape},"
                f" not {array.shape}"
            )
        values[node] = array
