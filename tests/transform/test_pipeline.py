"""The pipeline as a whole (golden text, verification between passes) and its single passes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.models import mlp, random_states

from fpgrad.errors import GraphError, GraphVerifyError
from fpgrad.graph import Function, Node, Window, evaluate, print_function, verify
from fpgrad.graph import builder as g
from fpgrad.graph.window import pointwise, transposed
from fpgrad.transform import LOWERING, build_training, losses, lower, optimizers, run_pipeline
from fpgrad.transform.products import LONGEST_ROW_OF_ONES, QuantiseOperands, RowSumsOnArray
from fpgrad.transform.simplify import FOLD_LIMIT, Simplify

GOLDEN = """\
function "train" {
  %0 = input {"kind": "batch"} (4, 3) "x"
  %1 = input {"kind": "batch"} (4, 2) "y"
  %2 = input {"kind": "column"} (4, 1) "sample_weight"
  %3 = input {"kind": "scalar"} (1, 1) "inv_count"
  %4 = input {"kind": "scalar"} (1, 1) "sgd/step_size"
  %5 = state {"role": "parameter", "trainable": true} (3, 2) "dense_0/kernel"
  %6 = state {"role": "parameter", "trainable": true} (1, 2) "dense_0/bias"
  %7 = state {"role": "metric", "trainable": false} (4, 1) "loss_sum"
  %8 = quantise %0 (4, 3) "x"
  %9 = quantise %5 (3, 2) "dense_0/kernel"
  %10 = matmul %8, %9 {"ta": false, "tb": false} (4, 2) "dense_0"
  %11 = add %10, %6 (4, 2) "dense_0"
  %12 = sub %11, %1 (4, 2) "loss"
  %13 = mul %12, %12 (4, 2) "loss"
  %14 = reduce_sum %13 {"axis": 1} (4, 1) "loss"
  %15 = const {"value": 0.5} (1, 1) "loss"
  %16 = mul %14, %15 (4, 1) "loss"
  %17 = mul %16, %2 (4, 1) "loss"
  %18 = add %7, %17 (4, 1) "loss_sum"
  %19 = mul %2, %3 (4, 1) "loss"
  %20 = mul %12, %19 (4, 2) "loss:grad"
  %21 = quantise %20 (4, 2) "loss:grad"
  %22 = matmul %8, %21 {"ta": true, "tb": false} (3, 2) "dense_0/kernel:grad"
  %23 = mul %22, %4 (3, 2) "dense_0/kernel"
  %24 = add %23, %5 (3, 2) "dense_0/kernel"
  %25 = const {"value": 1.0} (1, 4) "dense_0/bias:grad"
  %26 = quantise %25 (1, 4) "dense_0/bias:grad"
  %27 = matmul %26, %21 {"ta": false, "tb": false} (1, 2) "dense_0/bias:grad"
  %28 = mul %27, %4 (1, 2) "dense_0/bias"
  %29 = add %28, %6 (1, 2) "dense_0/bias"
  update %7 = %18
  update %5 = %24
  update %6 = %29
}
"""


def test_golden():
    forward = mlp(rows=4, sizes=(3, 2), last=None)
    training = build_training(forward, losses.MeanSquaredError(), optimizers.sgd())
    assert print_function(lower(training)) == GOLDEN


def test_lowering_is_deterministic():
    def text() -> str:
        loss = losses.SparseCategoricalCrossentropy()
        return print_function(lower(build_training(mlp(), loss, optimizers.adam())))

    assert text() == text()


def test_lowering_keeps_the_meaning():
    function = build_training(
        mlp(), losses.SparseCategoricalCrossentropy(), optimizers.adam(amsgrad=True)
    )
    states = random_states(function)
    generator = np.random.default_rng(0)
    inputs = {n.name: generator.uniform(0.1, 1, size=n.shape) for n in function.inputs}
    inputs["y"] = generator.integers(0, 3, size=(8, 1)).astype(float)
    seen: list[str] = []
    results: list[dict[str, np.ndarray]] = [evaluate(function, inputs, states)[1]]

    def observe(name: str, current: Function) -> None:
        seen.append(name)
        results.append(evaluate(current, inputs, states)[1])

    lower(function, observe)
    assert seen == [one.name for one in LOWERING]
    for result in results[1:]:
        for name, value in result.items():
            np.testing.assert_allclose(value, results[0][name], rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class Broken:
    """A pass that leaves a composite op behind."""

    name: str = field(default="broken", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        return replace(function, outputs=(("y", g.softmax(function.inputs[0], name="s")),))


def test_passes_are_verified_on_both_sides():
    x = g.batch_input("x", (2, 3))
    with pytest.raises(GraphVerifyError) as caught:
        run_pipeline((Broken(),), Function("f", (x,)))
    assert str(caught.value) == (
        "after pass 'broken': function 'f' is not machine:\n"
        "  softmax (2, 3) of 's' is not an op of the machine and must be decomposed"
    )
    bad = Function("f", (x,), outputs=(("y", g.softmax(x, name="s")),))
    with pytest.raises(GraphVerifyError, match=r"^before pass 'simplify': function 'f' is not"):
        run_pipeline((Simplify(),), bad)
    with pytest.raises(GraphError, match=r"^pass 'simplify' wants stage 'machine', not 'quant"):
        run_pipeline((QuantiseOperands(), Simplify()), Function("f", (x,)))


X = g.batch_input("x", (4, 3))
W = g.state("w", (3, 2))


def simplified(node: Node) -> Node:
    function = Function("f", (X,), (W,), (("y", node),))
    result = verify(Simplify().run(function), "machine")
    data = {"x": np.random.default_rng(0).normal(size=(4, 3))}, {"w": np.ones((3, 2))}
    np.testing.assert_allclose(
        evaluate(result, *data)[0]["y"], evaluate(function, *data)[0]["y"], rtol=1e-14
    )
    return result.output_named("y")


def form(node: Node) -> object:
    """A node as nested tuples."""
    if node.op == "const":
        return float(node.value.flat[0])
    if node.is_leaf:
        return node.name
    return (node.op, *map(form, node.inputs))


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (g.mul(X, 1.0), "x"),
        (g.mul(1.0, X), "x"),
        (g.add(X, 0.0), "x"),
        (g.sub(X, 0.0), "x"),
        (g.sub(0.0, X), ("mul", "x", -1.0)),
        (g.mul(g.mul(X, 2.0), 4.0), ("mul", "x", 8.0)),
        (g.mul(g.mul(X, -1.0), -1.0), "x"),
        (g.mul(2.0, g.mul(4.0, X)), ("mul", "x", 8.0)),
        (g.mul(g.mul(X, 2.0), g.mul(g.relu(X), 0.5)), ("mul", "x", ("relu", "x"))),
        (
            g.mul(g.mul(X, 2.0), g.reduce_sum(X, 1)),
            ("mul", "x", ("mul", ("reduce_sum", "x"), 2.0)),
        ),
        (
            g.mul(g.mul(X, g.reduce_sum(X, 1)), g.reduce_max(X, 1)),
            ("mul", "x", ("mul", ("reduce_sum", "x"), ("reduce_max", "x"))),
        ),
        (
            g.mul(g.mul(X, g.reduce_sum(X, 0)), g.reduce_max(X, 1)),
            ("mul", ("mul", "x", ("reduce_sum", "x")), ("reduce_max", "x")),
        ),
        (g.mul(g.mul(X, 2.0), g.relu(X)), ("mul", ("mul", "x", 2.0), ("relu", "x"))),
        (g.add(X, g.mul(g.relu(X), -1.0)), ("sub", "x", ("relu", "x"))),
        (g.add(g.mul(g.relu(X), -1.0), X), ("sub", "x", ("relu", "x"))),
        (g.sub(X, g.mul(g.relu(X), -1.0)), ("add", "x", ("relu", "x"))),
        (g.add(g.const(1.0), g.add(2.0, g.mul(3.0, 4.0))), 15.0),
        (g.slice_cols(X, 0, 3), "x"),
        (g.concat(X), "x"),
        (g.flatten(X, 1), "x"),
        (g.unflatten(X, 1), "x"),
        (g.unflatten(X, 3), ("unflatten", "x")),
        (g.pool(X, pointwise(2, 2), "max"), "x"),
        (g.pool(X, (Window(2, 2, 1), Window(2, 2, 1, pad=1)), "sum"), ("pool", "x")),
        (g.average_pool(X, pointwise(1, 4)), "x"),
        (g.reduce_sum(g.reduce_sum(X, 1), 1), ("reduce_sum", "x")),
        (g.maximum(X, X), ("max", "x", "x")),
    ],
)
def test_identities(node, expected):
    assert form(simplified(node)) == expected


def test_broadcasting_sums_of_zero_stay():
    zeros = g.const(np.zeros((4, 3)))
    assert form(simplified(g.add(g.reduce_sum(X, 1), zeros))) == (
        "add",
        ("reduce_sum", "x"),
        0.0,
    )


def test_equal_nodes_are_merged():
    a = g.add(g.relu(X, name="a"), g.const(2.0))
    b = g.add(g.const(2.0), g.relu(X, name="b"))
    node = simplified(g.mul(a, b))
    assert node.inputs[0] is node.inputs[1]
    assert node.inputs[0].inputs[0].name == "a"


def test_nodes_made_by_simplification_are_merged_too():
    total = g.reduce_sum(X, 1)
    a, b = g.mul(g.mul(X, 2.0), total), g.mul(g.mul(g.relu(X), 2.0), total)
    node = simplified(g.add(a, b))
    assert node.inputs[0].inputs[1] is node.inputs[1].inputs[1]


def test_shared_products_are_not_regrouped():
    half = g.mul(g.relu(X), 0.5)
    node = simplified(g.add(g.mul(half, 2.0), half))
    assert form(node) == ("add", ("mul", ("mul", ("relu", "x"), 0.5), 2.0), form(half))


def test_momentum_takes_two_passes():
    forward = mlp(rows=4, sizes=(3, 2), last=None)
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd(0.9)))
    new = {state.name: node for state, node in function.updates}
    assert new["dense_0/kernel"].inputs[0].inputs[0] is new["dense_0/kernel:momentum"]


def test_different_nodes_are_not_merged():
    node = simplified(g.mul(g.sub(X, 2.0), g.sub(2.0, X)))
    assert node.inputs[0] is not node.inputs[1]
    seed = g.seed_input()
    u = g.sub(g.uniform(seed, (4, 3), 0), g.uniform(seed, (4, 3), 1))
    result = Simplify().run(Function("f", (seed,), outputs=(("y", u),)))
    assert [n.op for n in result.nodes()].count("uniform") == 2


@st.composite
def expressions(draw: st.DrawFn) -> Function:
    """Sums and products with constants, of full, row, column and scalar operands."""
    leaves = [X, g.state("row", (1, 3)), g.column_input("column", 4), g.scalar_input("scalar")]
    nodes: list[Node] = list(leaves)
    constants = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
    for _ in range(draw(st.integers(2, 14))):
        a = draw(st.sampled_from(nodes))
        b = draw(st.sampled_from(nodes) | constants)
        if draw(st.booleans()):
            a, b = b, a
        op = draw(st.sampled_from(["add", "sub", "mul", "mul", "max", "reduce"]))
        node = g.reduce_sum(a, draw(st.integers(0, 1))) if op == "reduce" else g.make(op, (a, b))
        nodes.append(node)
    outputs = tuple((str(i), n) for i, n in enumerate(nodes[-3:]))
    return Function("f", (X, *leaves[2:]), (leaves[1],), outputs)


@settings(max_examples=200, deadline=None)
@given(expressions())
def test_simplification_keeps_the_meaning_of_any_expression(function):
    result = verify(Simplify().run(function), "machine")
    generator = np.random.default_rng(1)
    data = {n.name: generator.integers(-4, 5, size=n.shape) for n in function.inputs}
    states = {"row": generator.integers(-4, 5, size=(1, 3))}
    used = {n.name for n in result.inputs}
    # Small integers and halves: exact in float64 however they are grouped.
    before = evaluate(function, data, states)[0]
    after = evaluate(result, {k: v for k, v in data.items() if k in used}, states)[0]
    for name, value in before.items():
        assert after[name].shape == value.shape
        np.testing.assert_allclose(after[name], value, rtol=1e-12, atol=1e-9)
    # Simplification never adds work.
    count = [sum(not n.is_leaf for n in f.nodes()) for f in (function, result)]
    assert count[1] <= count[0]


def test_large_constants_are_not_made():
    ones = g.const(np.ones((FOLD_LIMIT, 1)))
    node = g.mul(ones, g.const(np.ones((1, 2))))
    result = Simplify().run(Function("f", outputs=(("y", node),)))
    assert result.output_named("y").op == "mul"


def test_row_sums_move_to_the_array_only_beside_products():
    dy = g.relu(X, name="dy")
    outputs = (
        ("kernel", g.matmul(X, dy, ta=True)),
        ("bias", g.reduce_sum(dy, 0)),
        ("columns", g.reduce_sum(dy, 1)),
        ("alone", g.reduce_sum(g.tanh(X), 0)),
    )
    function = Function("f", (X,), outputs=outputs)
    result = verify(RowSumsOnArray().run(function), "machine")
    assert {name: node.op for name, node in result.outputs} == {
        "kernel": "matmul",
        "bias": "matmul",
        "columns": "reduce_sum",
        "alone": "reduce_sum",
    }
    data = {"x": np.random.default_rng(0).normal(size=(4, 3))}
    before, after = evaluate(function, data, {})[0], evaluate(result, data, {})[0]
    np.testing.assert_allclose(before["bias"], after["bias"], rtol=1e-14)


@pytest.mark.parametrize(("rows", "op"), [(0, "matmul"), (4, "reduce_sum")])
def test_row_sums_of_large_maps_stay_off_the_array(rows, op):
    rows += LONGEST_ROW_OF_ONES
    pair = (Window(2, 2, 2), Window(2, 2, 1))
    x, dy = g.batch_input("x", (rows, 3)), g.batch_input("dy", (rows, 2))
    outputs = (("kernel", g.conv_weight(x, dy, pair)), ("bias", g.reduce_sum(dy, 0)))
    result = RowSumsOnArray().run(Function("f", (x, dy), outputs=outputs))
    assert {name: node.op for name, node in result.outputs} == {"kernel": "conv_weight", "bias": op}


def test_row_sums_of_kernels_in_blocks_stay_off_the_array():
    kernel = g.state("kernel", (6, 2), blocks=2)
    y = g.conv(X, kernel, (Window(2, 2, 2), Window(2, 2, 1)))
    function = Function("f", (X,), (kernel,), (("y", y), ("sum", g.reduce_sum(kernel, 0))))
    result = verify(RowSumsOnArray().run(function), "machine")
    assert result.output_named("sum").op == "reduce_sum"


def test_convolutions_share_their_tiles_with_products():
    pair = (Window(2, 2, 3, pad=1), Window(2, 2, 1))
    kernel = g.state("kernel", (9, 3), blocks=3)
    y = g.conv(X, kernel, pair, name="y")
    dx = g.conv(y, kernel, transposed(pair), transposed_weights=True)
    dw = g.conv_weight(X, y, pair)
    outputs = (("dx", dx), ("dw", dw), ("product", g.matmul(X, y, ta=True)))
    function = Function("f", (X,), (kernel,), outputs)
    result = verify(QuantiseOperands().run(function), "quantised")
    names = [n.name for n in result.nodes() if n.op == "quantise"]
    assert sorted(names) == ["kernel", "x", "y"]


def test_a_tensor_and_its_transpose_share_their_tiles():
    forward = g.matmul(X, W)
    backward = g.matmul(forward, W, tb=True)
    square = g.matmul(X, X, ta=True)
    function = Function("f", (X,), (W,), (("y", backward), ("z", square)))
    result = verify(QuantiseOperands().run(function), "quantised")
    names = [n.name for n in result.nodes() if n.op == "quantise"]
    assert sorted(names) == ["", "w", "x"]
