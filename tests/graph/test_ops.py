"""Each op's float64 meaning against independent arithmetic, and its shape rule against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from tests.graph.test_maps import MAP_OPS

from fpgrad.errors import GraphError
from fpgrad.graph import OPS, Function, Node, evaluate
from fpgrad.graph import builder as g

RNG = np.random.default_rng(1)
X = RNG.normal(size=(4, 3)) * 2.0
ROW = RNG.normal(size=(1, 3))
COLUMN = RNG.normal(size=(4, 1))
POSITIVE = np.abs(X) + 0.1
TARGET = np.eye(3)[[0, 2, 1, 1]]

UNARY = {
    "relu": (X, lambda x: x * (x > 0)),
    "exp2": (X, lambda x: 2.0**x),
    "log2": (POSITIVE, lambda x: np.log(x) / np.log(2)),
    "reciprocal": (X, lambda x: x**-1),
    "rsqrt": (POSITIVE, lambda x: x**-0.5),
    "tanh": (X, lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1)),
    "sigmoid": (X, scipy.special.expit),
    "phi": (X, scipy.stats.norm.cdf),
    "quantise": (X, lambda x: x),
    "all_sum": (X, lambda x: x),
    "exp": (X, np.exp),
    "log": (POSITIVE, np.log),
    "sqrt": (POSITIVE, lambda x: x**0.5),
    "square": (X, lambda x: x**2),
    "abs": (X, lambda x: np.maximum(x, -x)),
    "neg": (X, lambda x: 0 - x),
    "sign": (X, lambda x: x / np.abs(x)),
    "silu": (X, lambda x: x / (1 + np.exp(-x))),
    "softplus": (X, lambda x: np.log(1 + np.exp(x))),
    "softmax": (X, lambda x: scipy.special.softmax(x, axis=1)),
    "log_softmax": (X, lambda x: scipy.special.log_softmax(x, axis=1)),
}
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": lambda a, b: (a + b + np.abs(a - b)) / 2,
    "min": lambda a, b: (a + b - np.abs(a - b)) / 2,
    "gt": lambda a, b: 1.0 * (a > b),
    "ge": lambda a, b: 1.0 * (a >= b),
    "eq": lambda a, b: 1.0 * (a == b),
    "gate": lambda a, b: a * (b > 0),
    "sigmoid_cross_entropy": lambda z, t: (
        -t * np.log(scipy.special.expit(z)) - (1 - t) * np.log(scipy.special.expit(-z))
    ),
}


def value_of(node: Node) -> np.ndarray:
    return evaluate(Function("f", outputs=(("y", node),)), {}, {})[0]["y"]


def with_attrs() -> dict[str, tuple[Node, np.ndarray]]:
    """A node of each remaining op with the value it must have."""
    x = g.const(X)
    a, b = RNG.normal(size=(4, 2)), RNG.normal(size=(2, 3))
    huber = np.where(np.abs(X) <= 0.7, X**2 / 2, 0.7 * np.abs(X) - 0.7**2 / 2)
    mean, var = X.mean(1, keepdims=True), X.var(1, keepdims=True)
    cubic = np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)
    cross_entropy = -(TARGET * scipy.special.log_softmax(X, axis=1)).sum(1, keepdims=True)
    quarter = g.const(np.full((4, 1), 0.25))
    return {
        "matmul": (g.matmul(g.const(a), g.const(b)), a @ b),
        "reduce_sum": (g.reduce_sum(x, 0), X.sum(0, keepdims=True)),
        "reduce_max": (g.reduce_max(x, 1), X.max(1, keepdims=True)),
        "reduce_min": (g.reduce_min(x, 1), X.min(1, keepdims=True)),
        "concat": (g.concat(x, COLUMN_NODE), np.hstack([X, COLUMN])),
        "slice": (g.slice_cols(x, 1, 3), X[:, 1:3]),
        "take_samples": (g.take_samples(x, 1, 2), X[1:3]),
        "join_samples": (g.join_samples([x, x]), np.vstack([X, X])),
        "spread": (g.spread(x, (0, 2), (1, 3)), np.vstack([X[1:3], 0 * X[1:3]])),
        "pick": (g.pick(x, (0, 2), 1), X[2:]),
        "stack": (g.stack([x, x]), np.vstack([X, X])),
        "leaky_relu": (g.leaky_relu(x, 0.3), np.where(X > 0, X, 0.3 * X)),
        "elu": (g.elu(x, 1.5), np.where(X > 0, X, 1.5 * (np.exp(X) - 1))),
        "gelu": (g.gelu(x, approximate=True), X * (1 + np.tanh(cubic)) / 2),
        "huber": (g.make("huber", (x,), delta=0.7), huber),
        "softmax_cross_entropy": (
            g.make("softmax_cross_entropy", (x, g.const(TARGET)), normalised=True),
            cross_entropy,
        ),
        "standardise": (
            g.make("standardise", (x, quarter), axis=0, epsilon=1e-3),
            (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-3),
        ),
        "layer_norm": (
            g.layer_norm(x, g.const(ROW), 0.5, epsilon=1e-3),
            (X - mean) / np.sqrt(var + 1e-3) * ROW + 0.5,
        ),
        "batch_norm": (
            g.batch_norm(x, 2.0, g.const(ROW), g.const(ROW), g.const(ROW**2), 1e-3, 0.9),
            (X - ROW) / np.sqrt(ROW**2 + 1e-3) * 2.0 + ROW,
        ),
        "dropout": (g.dropout(x, 0.5), X),
        "spatial_dropout": (g.spatial_dropout(x, 0.5, 2), X),
    }


COLUMN_NODE = g.const(COLUMN)
OTHERS = with_attrs()


@pytest.mark.parametrize("op", UNARY)
def test_unary(op):
    x, expected = UNARY[op]
    node = g.make(op, (g.const(x),))
    assert node.shape == (4, 3)
    np.testing.assert_allclose(value_of(node), expected(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("b", [X[::-1].copy(), X, ROW, COLUMN], ids=["full", "same", "row", "col"])
def test_binary_with_broadcasting(op, b):
    node = g.make(op, (g.const(X), g.const(b)))
    assert node.shape == (4, 3)
    np.testing.assert_allclose(value_of(node), BINARY[op](X, b), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("op", OTHERS)
def test_others(op):
    node, expected = OTHERS[op]
    assert node.op == op
    assert node.shape == expected.shape
    np.testing.assert_allclose(value_of(node), expected, rtol=1e-12, atol=1e-14)


def test_exact_gelu_is_x_times_normal_cdf():
    np.testing.assert_allclose(value_of(g.gelu(g.const(X))), X * scipy.stats.norm.cdf(X))


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_matmul_transposes(ta, tb):
    a, b = RNG.normal(size=(4, 2)), RNG.normal(size=(2, 3))
    node = g.matmul(g.const(a.T if ta else a), g.const(b.T if tb else b), ta=ta, tb=tb)
    assert node.shape == (4, 3)
    np.testing.assert_array_equal(value_of(node), a @ b)


def test_every_op_is_tested():
    assert set(UNARY) | set(BINARY) | set(OTHERS) | MAP_OPS | {"uniform"} == set(OPS)


def test_uniform_is_in_one_to_two_and_depends_on_seed_and_stream():
    seed = g.seed_input()
    shape = (50, 4)
    outputs = tuple((f"u{i}", g.uniform(seed, shape, stream=i)) for i in (0, 1))
    function = Function("f", inputs=(seed,), outputs=outputs)
    first = evaluate(function, {"seed": 2**63 + 1}, {})[0]
    again = evaluate(function, {"seed": 2**63 + 1}, {})[0]
    other = evaluate(function, {"seed": 2**63 + 2}, {})[0]
    assert np.all((first["u0"] >= 1.0) & (first["u0"] < 2.0))
    np.testing.assert_array_equal(first["u0"], again["u0"])
    assert np.all(first["u0"] != first["u1"])
    assert np.all(first["u0"] != other["u0"])


def test_singular_points_are_finite():
    zero = g.const(0.0)
    assert value_of(g.reciprocal(zero)) == (2.0 - 2.0**-15) * 2.0**127
    assert value_of(g.rsqrt(zero)) == (2.0 - 2.0**-15) * 2.0**127
    assert value_of(g.log2(zero)) == -127.0


def test_extreme_arguments_do_not_overflow():
    x = g.const([-800.0, 800.0])
    np.testing.assert_array_equal(value_of(g.sigmoid(x)), [[0.0, 1.0]])
    np.testing.assert_array_equal(value_of(g.softmax(x)), [[0.0, 1.0]])


def message(make, *args, **kwargs) -> str:
    with pytest.raises(GraphError) as caught:
        make(*args, **kwargs)
    return str(caught.value)


def test_errors_name_op_node_and_reason():
    a, b = g.batch_input("a", (4, 3)), g.batch_input("b", (4, 2))
    with g.naming("dense_1"):
        assert message(g.matmul, a, b) == (
            "matmul 'dense_1': inner sizes of matmul must be equal, not 3 and 4"
            " (operands (4, 3), (4, 2), ta=False, tb=False)"
        )
        assert (
            message(g.add, a, b)
            == "add 'dense_1': shapes (4, 3) and (4, 2) do not broadcast together"
        )
        assert message(g.slice_cols, a, 2, 5) == (
            "slice 'dense_1': slice [2:5] must lie in the 3 columns of its operand"
        )
        assert message(g.reduce_sum, a, 2) == "reduce_sum 'dense_1': axis must be 0 or 1, not 2"
        assert message(g.make, "relu", (a, b)) == "relu 'dense_1' takes 1 operands, not 2"
        assert message(g.make, "elu", (a,)) == "elu 'dense_1' has the attributes ['alpha'], not []"
        assert message(g.make, "fold", (a,)).startswith("op of 'dense_1' must be one of matmul,")
        assert message(g.dropout, a, 1.0) == "rate of dropout '' must be in [0, 1), not 1.0"
    assert message(g.const, [[np.nan]]) == "constant '' must be a finite array of rank 2 or less"
    assert message(g.state, "w", (0, 3)) == (
        "shape of state 'w' must be two positive sizes, not (0, 3)"
    )
    assert message(g.input_, "s", (2, 1), "scalar") == "shape of scalar input 's' cannot be (2, 1)"
    assert message(g.input_, "s", (2, 1), "label").startswith("kind of input 's' must be one of")
