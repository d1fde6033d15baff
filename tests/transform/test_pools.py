"""Exchanging maximum and relu: the values, the gradients, and when it is left."""

from __future__ import annotations

import numpy as np
import pytest
from tests.graph.models import same_window

from fpgrad.graph import Function, Node, Window, Windows, evaluate, verify
from fpgrad.graph import builder as g
from fpgrad.transform import FORWARD, run_pipeline
from fpgrad.transform.autodiff import gradients
from fpgrad.transform.pools import MaxPoolBeforeRelu

PAIR = (same_window(4, 3, 2), same_window(3, 2, 1))
EMPTY = (same_window(4, 3, 2), Window(3, 4, 1, pad=1))
X = g.state("x", (24, 5))
R = g.relu(X, name="relu")
POOLED = g.pool(R, PAIR, "max", name="pool")


def run(*outputs: Node) -> tuple[Node, ...]:
    function = Function("f", states=(X,), outputs=tuple((str(i), n) for i, n in enumerate(outputs)))
    result = verify(MaxPoolBeforeRelu().run(function), "forward")
    values = {"x": np.random.default_rng(0).integers(-3, 3, size=X.shape)}
    before, after = evaluate(function, {}, values)[0], evaluate(result, {}, values)[0]
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    return tuple(node for _, node in result.outputs)


def ops(node: Node) -> list[str]:
    """Op names from the node to its first leaf."""
    return [node.op, *ops(node.inputs[0])] if node.inputs else [node.op]


def test_relu_moves_behind_the_maximum():
    (y,) = run(POOLED)
    assert ops(y) == ["relu", "pool", "state"]
    assert (y.name, y.inputs[0].name) == ("relu", "pool")
    assert y.shape == POOLED.shape


def test_through_two_pools():
    second = g.pool(POOLED, (same_window(2, 2), same_window(3, 2)), "max")
    assert ops(run(second)[0]) == ["relu", "pool", "pool", "state"]


def test_a_position_without_taps_is_zero_on_both_sides():
    assert ops(run(g.pool(R, EMPTY, "max"))[0]) == ["relu", "pool", "state"]


def test_left_alone():
    assert ops(run(g.pool(R, PAIR, "sum"))[0]) == ["pool", "relu", "state"]
    assert ops(run(g.pool(g.tanh(X), PAIR, "max"))[0]) == ["pool", "tanh", "state"]
    # The relu has another user, or is itself an output.
    assert ops(run(POOLED, g.tanh(R))[0]) == ["pool", "relu", "state"]
    assert ops(run(POOLED, R)[0]) == ["pool", "relu", "state"]


@pytest.mark.parametrize("windows", [PAIR, EMPTY])
def test_gradients_are_equal_even_at_ties(windows: Windows):
    pooled = g.pool(g.relu(X), windows, "max")
    forward = Function("f", states=(X,), outputs=(("y", pooled),))
    moved = run_pipeline(FORWARD, forward).output_named("y")
    assert moved.op == "relu"
    dy = g.const(np.random.default_rng(1).normal(size=pooled.shape))
    found = [gradients({y: dy}, [X])[X] for y in (pooled, moved)]
    outputs = tuple((str(i), node) for i, node in enumerate(found))
    # Few different numbers: ties below, at and above zero.
    values = {"x": np.random.default_rng(2).integers(-2, 3, size=X.shape)}
    result = evaluate(Function("g", states=(X,), outputs=outputs), {}, values)[0]
    assert np.any(result["0"] != 0.0)
    np.testing.assert_array_equal(result["0"], result["1"])
