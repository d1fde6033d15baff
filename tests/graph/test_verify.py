"""The verifier names every breach of a stage's rules."""

from __future__ import annotations

import dataclasses

import pytest
from tests.graph.models import mlp

from fpgrad.errors import GraphError, GraphVerifyError
from fpgrad.graph import Function, Node, verify
from fpgrad.graph import builder as g


def problems(function: Function, stage: str) -> list[str]:
    with pytest.raises(GraphVerifyError) as caught:
        verify(function, stage)
    first, *rest = str(caught.value).split("\n  ")
    assert first == f"function {function.name!r} is not {stage}:"
    return rest


def identity(node: Node, *inputs: Node, **kwargs) -> Function:
    return Function("f", inputs, outputs=(("y", node),), **kwargs)


X = g.batch_input("x", (4, 3))
W = g.state("w", (3, 2))


def test_a_model_is_forward_but_not_machine():
    function = mlp(rows=4, sizes=(3, 2))
    assert verify(function, "forward") is function
    assert problems(function, "machine") == [
        "softmax (4, 2) of 'dense_0' is not an op of the machine and must be decomposed"
    ]


def test_stage_must_exist():
    with pytest.raises(GraphError, match=r"^stage must be one of .*, not 'tiled'$"):
        verify(mlp(), "tiled")


def test_declarations():
    y = g.batch_input("y", (5, 3))
    twice = g.batch_input("x", (4, 3))
    assert problems(identity(g.matmul(X, W), X), "forward") == [
        "state (3, 2) of 'w' is used but not declared"
    ]
    assert problems(identity(X, X, twice), "forward") == [
        "input name 'x' must be unique and not empty"
    ]
    assert problems(identity(X, X, y), "forward") == [
        "batch and column inputs must have equal rows, not [4, 5]"
    ]
    assert problems(identity(X, X, W), "forward") == [
        "state (3, 2) of 'w' is declared as input",
        "state (3, 2) of 'w' is used but not declared",
    ]
    assert problems(Function("f", (X,), outputs=(("y", X), ("y", X))), "forward") == [
        "output names must be unique, not ['y', 'y']"
    ]


def test_updates():
    other = g.state("v", (3, 2))
    function = Function("f", (X,), (W,), updates=((W, X), (W, W), (other, W)))
    assert problems(function, "training") == [
        "new value of state 'w' must be (3, 2), not input (4, 3) of 'x'",
        "state (3, 2) of 'w' is updated twice",
        "update of state (3, 2) of 'v', which is not a declared state",
    ]
    assert problems(Function("f", (), (W,), updates=((W, W),)), "forward") == [
        "a forward function has no updates; those come with the training step"
    ]


def test_hand_made_nodes_are_checked_again():
    assert problems(identity(Node("relu", (X,), {}, (4, 2), "r"), X), "machine") == [
        "relu (4, 2) of 'r' must have the shape (4, 3)"
    ]
    assert problems(identity(Node("fold", (X,), {}, (4, 3), "c"), X), "forward") == [
        "fold (4, 3) of 'c': there is no such op"
    ]
    assert problems(identity(Node("add", (X,), {}, (4, 3), "a"), X), "forward") == [
        "add (4, 3) of 'a' takes 2 operands, not 1"
    ]
    assert problems(identity(Node("reduce_sum", (X,), {}, (1, 3), "s"), X), "forward") == [
        "reduce_sum (1, 3) of 's' must have attributes ('axis',), not ()"
    ]


def test_modes_are_resolved_before_training():
    assert problems(identity(g.dropout(X, 0.5, name="drop"), X), "training") == [
        "dropout (4, 3) of 'drop' must be resolved for training or inference before"
    ]


def test_seeds_feed_uniform_only():
    seed = g.seed_input()
    assert problems(identity(g.add(X, seed, name="a"), X, seed), "training") == [
        "add (4, 3) of 'a': a seed feeds uniform, and nothing else does"
    ]
    assert problems(identity(g.uniform(X, (4, 3), 0, name="u"), X), "training") == [
        "uniform (4, 3) of 'u': a seed feeds uniform, and nothing else does"
    ]


def test_operands_of_products_are_quantised_once():
    product = g.matmul(X, W, name="dense")
    function = Function("f", (X,), (W,), (("y", product),))
    assert problems(function, "quantised") == [
        (
            "matmul (4, 2) of 'dense': operands of products, and only those, are quantised,"
            " not input (4, 3) of 'x'"
        ),
        (
            "matmul (4, 2) of 'dense': operands of products, and only those, are quantised,"
            " not state (3, 2) of 'w'"
        ),
    ]
    qx, qw = g.quantise(X, name="x"), g.quantise(W, name="w")
    good = dataclasses.replace(function, outputs=(("y", g.matmul(qx, qw)),))
    assert verify(good, "quantised") is good
    assert problems(good, "machine") == [
        "quantise (4, 3) of 'x' appears before stage quantised",
        "quantise (3, 2) of 'w' appears before stage quantised",
    ]
    two = (("y", g.matmul(qx, qw)), ("z", g.matmul(g.quantise(X, name="x"), qw)))
    assert problems(dataclasses.replace(function, outputs=two), "quantised") == [
        "quantise (4, 3) of 'x': its operand is quantised twice"
    ]
    leak = (("y", g.relu(qx, name="r")),)
    assert problems(dataclasses.replace(function, outputs=leak), "quantised") == [
        (
            "relu (4, 3) of 'r': operands of products, and only those, are quantised,"
            " not quantise (4, 3) of 'x'"
        )
    ]
