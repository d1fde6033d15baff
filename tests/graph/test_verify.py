"""The verifier names every breach of a stage's rules."""

from __future__ import annotations

import dataclasses

import pytest
from tests.graph.models import mlp

from fpgrad.errors import GraphError, GraphVerifyError
from fpgrad.graph import Function, Node, Window, verify
from fpgrad.graph import builder as g
from fpgrad.graph.window import pointwise


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


PAIR = (Window(2, 2, 3, pad=1), Window(2, 1, 2))
MAP = g.batch_input("image", (2, 12))
KERNEL = g.state("kernel", (18, 4), trainable=True, blocks=6)


def test_maps_unfold_from_batch_inputs_only():
    again = g.unfold(g.relu(MAP, name="r"), pointwise(2, 2), 3, name="map")
    column = g.unfold(g.column_input("c", 2), pointwise(1, 1), 1, name="column")
    function = Function("f", (MAP, column.inputs[0]), (), (("y", again), ("z", column)))
    for stage in ("forward", "training", "machine"):
        assert problems(function, stage) == [
            "unfold (8, 3) of 'map': only batch inputs unfold, not relu (2, 12) of 'r'",
            "unfold (2, 1) of 'column': only batch inputs unfold, not input (2, 1) of 'c'",
        ]


def test_samples_are_taken_of_what_has_a_row_for_each_and_joined_at_the_end():
    x, metric = g.batch_input("x", (4, 3)), g.state("loss_sum", (4, 1), role="metric")
    halves = [g.take_samples(x, first, 2) for first in (0, 2)]
    kept = [g.take_samples(metric, first, 2) for first in (0, 2)]
    whole = g.join_samples([g.relu(half) for half in halves], name="out")
    good = Function("f", (x,), (metric,), (("y", whole),), ((metric, g.join_samples(kept)),))
    assert verify(good, "quantised") is good
    again = g.take_samples(g.relu(x, name="r"), 0, 2, name="half")
    later = g.relu(whole, name="later")
    assert problems(Function("f", (x,), (), (("y", again), ("z", later))), "forward") == [
        "take_samples (2, 3) of 'half': samples are taken of inputs and metrics, not of relu (4, 3) of 'r'",
        "relu (4, 3) of 'later': join_samples (4, 3) of 'out' is an output or a state's new value, no operand",
    ]
    with pytest.raises(GraphError, match=r"samples 3 to 5 must be among the operand's 4"):
        g.take_samples(x, 3, 2)
    with pytest.raises(GraphError, match=r"operands of join_samples must have one shape"):
        g.join_samples([x, halves[0]])


def test_kernels_have_a_block_for_each_tap():
    x = g.unfold(MAP, pointwise(2, 2), 3, name="map")
    bare = g.state("bare", (18, 4))
    columns = g.unfold(MAP, PAIR, 3, name="columns")
    outputs = (
        ("good", g.conv(x, KERNEL, PAIR, name="conv")),
        ("bare", g.conv(x, bare, PAIR, name="conv")),
        ("dense", g.matmul(columns, KERNEL, name="dense")),
        ("1x1", g.conv(x, g.slice_cols(W, 0, 2), pointwise(2, 2), name="made")),
    )
    function = Function("f", (MAP,), (KERNEL, bare, W), outputs)
    assert problems(function, "forward") == [
        "conv (4, 4) of 'conv': blocks of state (18, 4) of 'bare' must be 6, not 1",
        "matmul (4, 4) of 'dense': blocks of state (18, 4) of 'kernel' must be 1, not 6",
    ]
    quantised = g.conv(g.quantise(x, "x"), g.quantise(bare, "bare"), PAIR, name="conv")
    assert problems(Function("f", (MAP,), (bare,), (("y", quantised),)), "quantised") == [
        "conv (4, 4) of 'conv': blocks of state (18, 4) of 'bare' must be 6, not 1",
    ]


def test_blocks_are_equal():
    attrs = {"role": "parameter", "trainable": True, "blocks": 4}
    odd = Node("state", (), attrs, (18, 4), "odd")
    assert problems(Function("f", (), (odd,)), "forward") == [
        "state (18, 4) of 'odd' must have rows of equal blocks, not 4"
    ]


def test_operands_of_convolutions_are_quantised():
    x = g.unfold(MAP, pointwise(2, 2), 3, name="map")
    y = g.conv(x, KERNEL, PAIR, name="conv")
    dw = g.conv_weight(x, y, PAIR, name="dw")
    function = Function("f", (MAP,), (KERNEL,), (("y", y), ("dw", dw)))
    assert verify(function, "machine") is function
    rule = "operands of products, and only those, are quantised, not"
    assert problems(function, "quantised") == [
        f"conv (4, 4) of 'conv': {rule} unfold (8, 3) of 'map'",
        f"conv (4, 4) of 'conv': {rule} state (18, 4) of 'kernel'",
        f"conv_weight (18, 4) of 'dw': {rule} unfold (8, 3) of 'map'",
        f"conv_weight (18, 4) of 'dw': {rule} conv (4, 4) of 'conv'",
    ]
    qx, qw = g.quantise(x, name="map"), g.quantise(KERNEL, name="kernel")
    good = g.conv(qx, qw, PAIR, name="conv")
    leak = g.pool(qx, PAIR, "sum", name="pool")
    function = Function("f", (MAP,), (KERNEL,), (("y", good), ("z", leak)))
    assert problems(function, "quantised") == [
        f"pool (4, 3) of 'pool': {rule} quantise (8, 3) of 'map'"
    ]


def test_windows_of_hand_made_nodes_are_checked():
    x = g.unfold(MAP, pointwise(2, 2), 3, name="map")
    bad = Node("pool", (x,), {"windows": PAIR, "kind": "max"}, (8, 3), "p")
    assert problems(identity(bad, MAP), "machine") == [
        "pool (8, 3) of 'p' must have the shape (4, 3)"
    ]
    bad = Node("pool", (x,), {"windows": [*PAIR], "kind": "max"}, (4, 3), "p")
    assert problems(identity(bad, MAP), "machine")[0].startswith(
        "pool (4, 3) of 'p': windows must be two, of height and width, not [Window("
    )
