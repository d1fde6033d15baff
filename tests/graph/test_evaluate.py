"""Evaluation of whole functions: reads see old states, and missing values are named."""

from __future__ import annotations

import numpy as np
import pytest
from tests.graph.models import mlp, random_states

from fpgrad.errors import GraphError
from fpgrad.graph import Function, evaluate, topological
from fpgrad.graph import builder as g


def test_reads_see_old_values():
    a, b = g.state("a", (1, 2)), g.state("b", (1, 2))
    swap = Function("swap", states=(a, b), updates=((a, b), (b, a)))
    _, new = evaluate(swap, {}, {"a": [[1.0, 2.0]], "b": [[3.0, 4.0]]})
    np.testing.assert_array_equal(new["a"], [[3.0, 4.0]])
    np.testing.assert_array_equal(new["b"], [[1.0, 2.0]])


def test_states_without_update_are_returned():
    a = g.state("a", (1, 1))
    _, new = evaluate(Function("f", states=(a,)), {}, {"a": 5.0})
    assert new == {"a": 5.0}


def test_wrong_values_are_named():
    function = mlp(rows=2, sizes=(3, 2))
    states = random_states(function)
    with pytest.raises(GraphError) as caught:
        evaluate(function, {"z": np.zeros((2, 3))}, states)
    assert str(caught.value) == (
        "inputs of 'forward' must be ['x']; missing: ['x'], unknown: ['z']"
    )
    with pytest.raises(GraphError) as caught:
        evaluate(function, {"x": np.zeros((3, 3))}, states)
    assert str(caught.value) == ("input 'x' of 'forward' must have the shape (2, 3), not (3, 3)")


def test_topological_order_is_deep_safe_and_unique():
    x = g.batch_input("x", (1, 1))
    y = x
    for _ in range(20_000):
        y = g.add(y, y)
    order = list(topological([y]))
    assert len(order) == len(set(order)) == 20_001
    assert order[0] is x
    assert order[-1] is y
