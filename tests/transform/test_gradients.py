"""Every gradient rule against finite differences in random directions, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.graph.models import same_window, valid_window

from fpgrad.errors import GraphError
from fpgrad.graph import OPS, Function, Node, Window, Windows, evaluate
from fpgrad.graph import builder as g
from fpgrad.graph.maps import group_mask
from fpgrad.graph.window import all_positions, pointwise, positions, taps, transposed
from fpgrad.transform.autodiff import gradients, widen
from fpgrad.transform.gradients import GRADIENTS

Make = Callable[..., Node]

STEP = 1e-5


def make(op: str, **attrs) -> Make:
    return lambda *inputs: g.make(op, inputs, **attrs)


def weights(axis: int) -> np.ndarray:
    return np.array([[0.5], [0.3], [0.2], [0.0]]) if axis == 0 else np.array([[0.5, 0.2, 0.3]])


def standardise(axis: int, weight: np.ndarray) -> Make:
    return lambda x: g.make("standardise", (x, g.const(weight)), axis=axis, epsilon=1e-2)


FULL, ROW, COLUMN, SCALAR = (4, 3), (1, 3), (4, 1), (1, 1)

SAMPLES = 2
WINDOWS: dict[str, Windows] = {
    "valid": (valid_window(4, 3), valid_window(3, 2)),
    "same": (same_window(3, 3), same_window(4, 2)),
    "strided": (same_window(5, 3, 2), valid_window(6, 2, 3)),
    "dilated": (Window(5, 3, 2, dilation=2), Window(6, 6, 3, dilation=2, pad=2)),
    "up": (same_window(6, 3, 2).transposed, valid_window(5, 2, 2).transposed),
    "up and dilated": (Window(3, 5, 2, dilation=-2, pad=-2, up=2), Window(2, 7, 3, pad=1, up=3)),
    "cropped": (Window(4, 2, 1, pad=-1), Window(3, 5, 1, pad=1)),
    "1x1": pointwise(3, 2),
    "1x1 strided": (Window(3, 2, 1, stride=2), Window(4, 2, 1, stride=2)),
    "single position": pointwise(1, 1),
    "all positions": all_positions(5),
    "to all positions": transposed(all_positions(5)),
}


def convolution(
    windows: Windows, turned: bool, groups: int
) -> tuple[Make, tuple[tuple[int, int], ...]]:
    """A convolution of 4 channels to 6 whose kernel is masked, as its groups promise."""
    count = taps(windows)
    kernel = (count * 6, 4) if turned else (count * 4, 6)
    mask = g.const(group_mask(kernel, count, groups))

    def build(x: Node, w: Node) -> Node:
        w = g.mul(w, mask) if groups > 1 else w
        return g.conv(x, w, windows, transposed_weights=turned, groups=groups)

    return build, ((positions(windows)[0] * SAMPLES, 4), kernel)


CASES: dict[str, list[tuple[Make, tuple[tuple[int, int], ...]]]] = {
    "matmul": [
        (make("matmul", ta=ta, tb=tb), ((2, 4) if ta else (4, 2), (3, 2) if tb else (2, 3)))
        for ta in (False, True)
        for tb in (False, True)
    ],
    **{
        op: [(make(op), shapes) for shapes in ((FULL, FULL), (FULL, ROW), (COLUMN, FULL), (ROW, COLUMN), (SCALAR, FULL))]
        for op in ("add", "sub", "mul", "div", "max", "min", "gate", "sigmoid_cross_entropy")
    },
    **{
        op: [(make(op), (FULL,))]
        for op in (
            *("relu", "exp2", "log2", "reciprocal", "rsqrt", "tanh", "sigmoid", "phi"),
            *("exp", "log", "sqrt", "square", "abs", "neg", "silu", "softplus"),
            *("softmax", "log_softmax"),
        )
    },
    **{
        op: [(make(op, axis=axis), (FULL,)) for axis in (0, 1)]
        for op in ("reduce_sum", "reduce_max", "reduce_min")
    },
    "concat": [(make("concat"), (FULL, COLUMN, (4, 2)))],
    "slice": [(make("slice", start=a, stop=b), (FULL,)) for a, b in ((0, 2), (1, 2), (1, 3), (0, 3))],
    "leaky_relu": [(make("leaky_relu", alpha=alpha), (FULL,)) for alpha in (0.0, 0.3, 1.7)],
    "elu": [(make("elu", alpha=alpha), (FULL,)) for alpha in (1.0, 0.4)],
    "gelu": [(make("gelu", approximate=approximate), (FULL,)) for approximate in (False, True)],
    "huber": [(make("huber", delta=0.8), (FULL,))],
    "softmax_cross_entropy": [(make("softmax_cross_entropy", normalised=False), (FULL, FULL))],
    # The last is a map of 4 samples and 3 positions, whose weights are those of the samples.
    "standardise": [
        (standardise(0, weights(0)), (FULL,)),
        (standardise(1, weights(1)), (FULL,)),
        (standardise(0, weights(0) / 3.0), ((12, 3),)),
    ],
    "conv": [
        convolution(windows, turned, groups)
        for windows in WINDOWS.values()
        for turned in (False, True)
        for groups in (1, 2)
    ],
    "pool": [
        (make("pool", windows=windows, kind=kind), ((positions(windows)[0] * SAMPLES, 3),))
        for windows in WINDOWS.values()
        for kind in ("sum", "max")
    ],
    "flatten": [(make("flatten", positions=count), ((12, 3),)) for count in (1, 3, 12)],
    "unflatten": [(make("unflatten", positions=count), ((2, 12),)) for count in (1, 3, 12)],
}  # fmt: skip
POSITIVE = {"log2", "rsqrt", "log", "sqrt"}
NO_GRADIENT = {"gt", "ge", "eq", "sign", "uniform", "unfold"}
EXPANDED_BEFORE = {"dropout", "spatial_dropout", "batch_norm", "layer_norm"}
INSERTED_AFTER = {
    "quantise",
    "all_sum",
    "take_samples",
    "join_samples",
    "spread",
    "pick",
    "stack",
}
MADE_BY_RULES = {"conv_weight", "pool_max_grad"}


def check(build: Make, shapes: tuple[tuple[int, int], ...], positive: bool = False) -> None:
    """Compares <gradient, direction> with central differences of <weights, value>."""
    generator = np.random.default_rng(11)
    leaves = [g.state(f"x{i}", shape) for i, shape in enumerate(shapes)]
    node = build(*leaves)
    dy = generator.normal(size=node.shape)
    found = gradients({node: g.const(dy)}, leaves)
    outputs = (("value", node), *((x.name, found[x]) for x in leaves))
    function = Function("f", states=tuple(leaves), outputs=outputs)
    values = {x.name: generator.normal(size=x.shape) for x in leaves}
    if positive:
        values = {name: np.abs(value) + 0.2 for name, value in values.items()}
    result = evaluate(function, {}, values)[0]

    def objective(point: dict[str, np.ndarray]) -> float:
        return float((evaluate(function, {}, point)[0]["value"] * dy).sum())

    for x in leaves:
        assert found[x].shape == x.shape
        for _ in range(4):
            direction = generator.normal(size=x.shape)
            up = objective({**values, x.name: values[x.name] + STEP * direction})
            down = objective({**values, x.name: values[x.name] - STEP * direction})
            expected = (up - down) / (2 * STEP)
            actual = float((result[x.name] * direction).sum())
            assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(
    ("op", "index"), [(op, i) for op, cases in CASES.items() for i in range(len(cases))]
)
def test_rule_against_finite_differences(op, index):
    check(*CASES[op][index], positive=op in POSITIVE)


def test_every_op_has_a_tested_rule():
    assert set(CASES) | NO_GRADIENT == set(GRADIENTS)
    assert set(GRADIENTS) | EXPANDED_BEFORE | INSERTED_AFTER | MADE_BY_RULES == set(OPS)


def test_normalised_targets_need_not_be_summed():
    target = g.const(np.eye(3)[[0, 2, 1, 1]])
    loss = make("softmax_cross_entropy", normalised=True)
    check(lambda x: loss(x, target), (FULL,))


def test_composition_with_sharing_and_broadcasting():
    def network(x: Node, w: Node, b: Node) -> Node:
        h = g.tanh(g.add(g.matmul(x, w), b))
        mean = g.mul(g.reduce_sum(h, 0), 0.25)
        # `mean` is used narrow three times, so its cotangents broadcast and must be summed back.
        centred = g.sub(h, mean)
        joined = g.concat(g.mul(centred, mean), g.sigmoid(g.add(h, mean)))
        return g.reduce_sum(g.unary("square", joined), axis=1)

    check(network, ((4, 2), (2, 3), (1, 3)))


def test_narrow_cotangents_are_widened_for_products():
    check(lambda a, b: g.reduce_sum(g.matmul(a, b), axis=0), ((4, 2), (2, 3)))
    check(lambda a: g.reduce_sum(g.reduce_sum(g.softmax(a), 0), 1), (FULL,))
    check(lambda a, b: g.reduce_sum(g.reduce_sum(g.add(a, b), 1), 0), (FULL, ROW))


def test_independent_parameters_get_zeros():
    x, w = g.state("x", (2, 3)), g.state("w", (3, 3))
    assert np.all(gradients({x: g.const(np.ones((2, 3)))}, [w])[w].value == 0.0)


def test_only_the_wanted_gradients_are_built():
    x, w = g.batch_input("x", (2, 3)), g.state("w", (3, 3))
    found = gradients({g.matmul(x, w): g.const(np.ones((2, 3)))}, [w])
    function = Function("f", (x,), (w,), (("dw", found[w]),))
    assert [n.op for n in function.nodes()] == ["input", "state", "const", "matmul"]
    assert found[w].name == ":grad"


def test_ops_without_a_rule_are_named():
    x = g.state("x", (2, 3))
    with pytest.raises(GraphError) as caught:
        gradients({g.dropout(x, 0.5, name="drop"): x}, [x])
    assert str(caught.value) == "dropout (2, 3) of 'drop' has no gradient rule"


def test_widen_keeps_what_fits():
    x = g.state("x", (2, 3))
    assert widen(x, (2, 3)) is x
    assert widen(g.const(2.0), (2, 3)).shape == (2, 3)
