"""Decompositions mean the same as the op they replace, in ops of the machine only."""

from __future__ import annotations

import numpy as np
import pytest

from fpgrad.graph import OPS, Function, evaluate, verify
from fpgrad.graph import builder as g
from fpgrad.transform.decompose import DECOMPOSITIONS, Decompose

ATTRS = {
    "leaky_relu": [{"alpha": 0.2}, {"alpha": 1.5}],
    "elu": [{"alpha": 1.0}, {"alpha": 0.3}],
    "gelu": [{"approximate": False}, {"approximate": True}],
    "huber": [{"delta": 0.7}],
    "softmax_cross_entropy": [{"normalised": False}],
    "standardise": [{"axis": 0, "epsilon": 1e-3}],
}
X = np.random.default_rng(2).normal(size=(5, 4)) * 3.0
T = np.random.default_rng(3).uniform(size=(5, 4))


def test_every_composite_op_decomposes():
    resolved_before = {"dropout", "spatial_dropout", "batch_norm", "layer_norm"}
    composite = {op for op, record in OPS.items() if not record.machine}
    assert composite == set(DECOMPOSITIONS) | resolved_before


@pytest.mark.parametrize(
    ("op", "attrs"), [(op, attrs) for op in DECOMPOSITIONS for attrs in ATTRS.get(op, [{}])]
)
def test_same_meaning(op, attrs):
    x, t = g.batch_input("x", (5, 4)), g.batch_input("t", (5, 4))
    other = g.const(np.full((5, 1), 0.2)) if op == "standardise" else t
    operands = (x, other)[: OPS[op].arity]
    node = g.make(op, operands, "layer", **attrs)
    function = Function("f", (x, t), outputs=(("y", node),))
    lowered = verify(Decompose().run(function), "machine")
    data = {"x": np.abs(X) + 0.01 if op in ("log", "sqrt") else X, "t": T}
    np.testing.assert_allclose(
        evaluate(lowered, data, {})[0]["y"],
        evaluate(function, data, {})[0]["y"],
        rtol=1e-12,
        atol=1e-13,
    )
    assert {n.name for n in lowered.nodes() if n.op in OPS} == {"layer"}


def test_normalised_cross_entropy_is_exact_for_confident_predictions():
    x = g.batch_input("x", (1, 3))
    loss = g.make("softmax_cross_entropy", (x, g.const([0.0, 1.0, 0.0])), normalised=True)
    lowered = Decompose().run(Function("f", (x,), outputs=(("y", loss),)))
    assert evaluate(lowered, {"x": [[0.0, 1e5, -1e5]]}, {})[0]["y"] == 0.0


def test_square_root_of_zero():
    x = g.batch_input("x", (1, 1))
    lowered = Decompose().run(Function("f", (x,), outputs=(("y", g.unary("sqrt", x)),)))
    assert evaluate(lowered, {"x": 0.0}, {})[0]["y"] == 0.0
