"""Ops between cores that share maps: what each core has of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.graph.test_ops import message

from fpgrad.graph import Function, Node, Window, evaluate_cores, parse_function, print_function
from fpgrad.graph import builder as g
from fpgrad.graph.window import pointwise

ROWS = np.arange(1.0, 13.0).reshape(6, 2)


def on_each(node: Node, cores: int, **inputs: np.ndarray) -> list[np.ndarray]:
    """A node of every core, of the same inputs."""
    names = {n.name: n for n in (X,)}
    function = Function("f", tuple(names[k] for k in inputs), outputs=(("y", node),))
    return [outputs["y"] for outputs, _ in evaluate_cores(function, [inputs] * cores, [{}] * cores)]


X = g.batch_input("x", (6, 2))


def test_rows_are_spread_to_the_place_of_their_core():
    first, second, third = on_each(g.spread(X, (0, 2), (1, 3)), 3, x=ROWS)
    np.testing.assert_array_equal(first, np.vstack([ROWS[1:3], np.zeros((2, 2))]))
    np.testing.assert_array_equal(second, np.vstack([np.zeros((2, 2)), ROWS[1:3]]))
    np.testing.assert_array_equal(third, np.zeros((4, 2)))


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_the_place_of_a_core_is_picked(shift: int):
    """Places are those of cores 1 to 3."""
    found = on_each(g.pick(X, (1, 4), shift), 4, x=ROWS)
    for core, rows in enumerate(found):
        place = core + shift - 1
        wanted = ROWS[2 * place : 2 * place + 2] if 0 <= place < 3 else np.zeros((2, 2))
        np.testing.assert_array_equal(rows, wanted)


def test_windows_of_an_image_are_divided_by_rows():
    image = g.batch_input("x", (2, 4 * 3 * 2))
    values = np.random.default_rng(1).normal(size=(2, 24))
    windows = Window(4, 4, 3, pad=1), Window(3, 3, 3, pad=1)
    whole = g.unfold(image, windows, 2)
    parts = g.unfold(image, windows, 2, cores=2)
    function = Function("f", (image,), outputs=(("whole", whole), ("part", parts)))
    found = [outputs for outputs, _ in evaluate_cores(function, [{"x": values}] * 2, [{}] * 2)]
    np.testing.assert_array_equal(np.vstack([f["part"] for f in found]), found[0]["whole"])


def test_they_are_printed_and_read_again():
    image = g.batch_input("x", (2, 8))
    rows = g.unfold(image, pointwise(4, 2), 1, name="image", cores=2)
    places = g.spread(rows, (0, 1), (6, 8), name="last")
    node = g.stack([g.pick(g.all_sum(places), (0, 1), -1), rows], name="halo")
    function = Function("f", (image,), outputs=(("y", node),))
    text = print_function(function)
    assert '{"places": [0, 1], "rows": [6, 8]}' in text
    assert '"channels": 1, "cores": 2}' in text
    assert print_function(parse_function(text)) == text
    assert parse_function(text).outputs[0][1].attrs == node.attrs


def test_errors():
    with g.naming("m"):
        assert message(g.spread, X, (0, 2), (4, 8)) == (
            "spread 'm': rows 4 to 8 must be among the operand's 6"
        )
        assert message(g.spread, X, (2, 2), (0, 2)) == (
            "spread 'm': places must be those of some cores, not (2, 2)"
        )
        assert message(g.pick, X, (0, 4), 0) == "pick 'm': rows must be those of 4 places, not 6"
        assert message(g.stack, [X, g.const(np.ones((2, 3)))]) == (
            "stack 'm': operands of stack must have equal columns, not [2, 3]"
        )
        image = g.batch_input("x", (2, 6))
        assert message(g.unfold, image, pointwise(3, 2), 1, cores=2) == (
            "unfold 'm': 3 rows of windows are no 2 equal bands"
        )
