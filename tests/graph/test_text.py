"""The text form: golden, and parsed back to the same text and meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.models import mlp, random_states

from fpgrad.errors import GraphTextError
from fpgrad.graph import Function, Node, evaluate, parse_function, print_function, verify
from fpgrad.graph import builder as g
from fpgrad.graph.window import Window, pointwise

GOLDEN = """\
function "forward" {
  %0 = input {"kind": "batch"} (4, 3) "x"
  %1 = state {"role": "parameter", "trainable": true} (3, 2) "dense_0/kernel"
  %2 = state {"role": "parameter", "trainable": true} (1, 2) "dense_0/bias"
  %3 = matmul %0, %1 {"ta": false, "tb": false} (4, 2) "dense_0"
  %4 = add %3, %2 (4, 2) "dense_0"
  %5 = softmax %4 (4, 2) "dense_0"
  output "output" %5
}
"""


def test_golden():
    assert print_function(mlp(rows=4, sizes=(3, 2))) == GOLDEN


MAPS = """\
function "maps" {
  %0 = input {"kind": "batch"} (2, 48) "x"
  %1 = state {"role": "parameter", "trainable": true, "blocks": 6} (24, 2) "conv/kernel"
  %2 = unfold %0 {"windows": ["4->4 taps 1", "3->3 taps 1"], "channels": 4} (24, 4) "image"
  %3 = conv %2, %1 {"windows": ["4->2 taps 3 stride 2 pad 1", "3->3 taps 2 dilation 2 pad 1"],\
 "transposed_weights": false, "groups": 2} (12, 2) "conv"
  %4 = pool %3 {"windows": ["2->1 taps 2", "3->2 taps 2"], "kind": "max"} (4, 2) "pool"
  %5 = flatten %4 {"positions": 2} (2, 4) "flat"
  %6 = unflatten %5 {"positions": 2} (4, 2) "back"
  %7 = pool_max_grad %3, %4, %6 {"windows": ["2->1 taps 2", "3->2 taps 2"]} (12, 2) "pool:grad"
  %8 = conv_weight %2, %7 {"windows": ["4->2 taps 3 stride 2 pad 1", "3->3 taps 2 dilation 2 pad 1"],\
 "groups": 2} (24, 2) "conv:grad"
  output "output" %5
  update %1 = %8
}
"""


def maps() -> Function:
    x = g.batch_input("x", (2, 48))
    kernel = g.state("conv/kernel", (24, 2), trainable=True, blocks=6)
    windows = (Window(4, 2, 3, stride=2, pad=1), Window(3, 3, 2, dilation=2, pad=1))
    pooling = (Window(2, 1, 2), Window(3, 2, 2))
    image = g.unfold(x, pointwise(4, 3), 4, name="image")
    y = g.conv(image, kernel, windows, groups=2, name="conv")
    pooled = g.pool(y, pooling, "max", name="pool")
    flat = g.flatten(pooled, 2, name="flat")
    dy = g.pool_max_grad(y, pooled, g.unflatten(flat, 2, name="back"), pooling, name="pool:grad")
    dw = g.conv_weight(image, dy, windows, groups=2, name="conv:grad")
    return Function("maps", (x,), (kernel,), (("output", flat),), ((kernel, dw),))


def test_maps_are_golden_and_round_trip():
    assert print_function(verify(maps(), "machine")) == MAPS
    again = verify(parse_function(MAPS), "machine")
    assert print_function(again) == MAPS
    assert again.state_named("conv/kernel").attrs["blocks"] == 6
    data = {"x": np.random.default_rng(0).normal(size=(2, 48))}, {"conv/kernel": np.ones((24, 2))}
    before, after = evaluate(maps(), *data)[1], evaluate(again, *data)[1]
    np.testing.assert_array_equal(before["conv/kernel"], after["conv/kernel"])


def test_round_trip_keeps_text_and_meaning():
    function = mlp()
    again = verify(parse_function(print_function(function)), "forward")
    assert print_function(again) == print_function(function)
    states, x = random_states(function), np.random.default_rng(3).normal(size=(8, 5))
    np.testing.assert_array_equal(
        evaluate(function, {"x": x}, states)[0]["output"],
        evaluate(again, {"x": x}, states)[0]["output"],
    )


def test_names_constants_and_updates_survive():
    seed, state = g.seed_input(), g.state('a "quoted"\n name', (2, 3), role="metric")
    u = g.uniform(seed, (2, 3), stream=4)
    odd = g.const([0.1, -0.0, 1e-300])
    value = g.add(g.mul(u, odd), g.const(-0.0))
    function = Function("f", (seed,), (state,), (), ((state, value),))
    text = print_function(function)
    again = parse_function(text)
    assert print_function(again) == text
    assert again.states[0].name == state.name
    constants = [n for n in again.nodes() if n.op == "const"]
    assert [n.value.tobytes() for n in constants] == [
        odd.value.tobytes(),
        g.const(-0.0).value.tobytes(),
    ]
    assert next(n for n in again.nodes() if n.op == "uniform").attrs["shape"] == (2, 3)


@st.composite
def graphs(draw: st.DrawFn) -> Function:
    x, w = g.batch_input("x", (3, 4)), g.state("w", (3, 4))
    nodes: list[Node] = [x, w]
    for i in range(draw(st.integers(1, 12))):
        a, b = draw(st.sampled_from(nodes)), draw(st.sampled_from(nodes))
        op = draw(
            st.sampled_from(["add", "max", "gate", "tanh", "elu", "const", "slice", "matmul"])
        )
        if op == "const":
            node = g.const(draw(st.lists(st.floats(-1e9, 1e9), min_size=4, max_size=4)))
        elif op == "tanh":
            node = g.tanh(a, name=draw(st.text(max_size=5)))
        elif op == "elu":
            node = g.elu(a, draw(st.floats(0, 2)), name=str(i))
        elif op == "slice":
            node = g.concat(g.slice_cols(a, 0, 1), g.slice_cols(a, 1, 4))
        elif op == "matmul":
            node = g.matmul(x, g.matmul(w, x, ta=True))
        else:
            node = g.make(op, (a, b))
        nodes.append(node)
    last = g.add(nodes[-1], w)
    return Function("f", (x,), (w,), (("y", last),), ((w, last),))


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_any_graph_round_trips(function):
    text = print_function(function)
    assert print_function(verify(parse_function(text), "training")) == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('  %9 = relu %8 (4, 2) "r"', "line 3: %8 is not defined before"),
        ('  %0 = relu %0 (4, 2) "r"', "line 3: %0 is defined twice"),
        ("  %9 = relu %0", "line 3: line does not have the form of a node, output, part or update"),
        ("  update %0 = %5", "line 3: %5 is not defined before"),
        (
            '  %1 = pool %0 {"windows": ["4", "4"], "kind": "max"} (4, 2) "p"',
            "line 3: window must be like '28->14 taps 3 stride 2 pad 1', not '4': ",
        ),
        ("} more", "line 3: line does not have the form of a node, output, part or update"),
    ],
)
def test_errors_name_the_line(line, reason):
    text = 'function "f" {\n  %0 = input {"kind": "batch"} (4, 2) "x"\n' + line + "\n}\n"
    with pytest.raises(GraphTextError) as caught:
        parse_function(text)
    assert str(caught.value).startswith(reason)


def test_text_must_be_closed():
    with pytest.raises(GraphTextError, match=r"with its closing brace$"):
        parse_function(GOLDEN.rstrip("}\n"))
