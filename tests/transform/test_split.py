"""A step whose channels are divided among cores against the same step on one, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.graph.models import mlp, random_states
from tests.transform.split_models import MODELS, Values, dropped, joined_parts, part, residual

from fpgrad.graph import (
    ALL_SUM,
    Function,
    Node,
    evaluate,
    evaluate_cores,
    parse_function,
    print_function,
    verify,
)
from fpgrad.graph import builder as g
from fpgrad.graph.maps import group_mask
from fpgrad.transform import (
    L1L2,
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
    losses,
    lower,
    lower_split,
    metrics,
    optimizers,
)
from fpgrad.transform.layouts import CannotSplitError, Layout, even
from fpgrad.transform.pipeline import LOWERING, run_pipeline
from fpgrad.transform.rewrite import rewrite
from fpgrad.transform.split import SplitChannels, found_layouts

ADAM = optimizers.adam()


def unlowered(model: Function, penalised: bool = True) -> dict[str, Function]:
    """A session's functions of stage training."""
    loss = losses.SparseCategoricalCrossentropy()
    terms = [MetricTerm("accuracy", metrics.SparseCategoricalAccuracy())]
    penalties = {model.states[0].name: L1L2(0.01, 0.02)} if penalised else {}
    return {
        "train": build_training(model, loss, ADAM, terms, penalties),
        "evaluate": build_evaluation(model, loss, terms, penalties),
        "predict": build_prediction(model),
    }


def divided(model: Function, cores: int, side: int = 2) -> dict[str, Function]:
    found = lower_split(unlowered(model), cores, side)
    assert found is not None
    return found


def batch(function: Function, step: int = 0) -> Values:
    """A batch; every other one is short, with padding that must not count."""
    rng = np.random.default_rng(step)
    x = next(n for n in function.inputs if n.attrs["kind"] == "batch" and n.name == "x")
    valid = np.ones((x.shape[0], 1))
    valid[x.shape[0] - step % 2 :] = 0.0
    values = {
        "x": rng.normal(size=x.shape),
        "y": rng.integers(0, 3, (x.shape[0], 1)),
        "valid": valid,
        "sample_weight": valid * rng.uniform(0.5, 1.5, valid.shape),
        "inv_count": np.full((1, 1), 1.0 / valid.sum()),
        **{k: np.full((1, 1), v) for k, v in ADAM.host_scalars(0.01, step).items()},
    }
    return {n.name: values[n.name] for n in function.inputs if n.name in values}


def start(function: Function) -> Values:
    states = random_states(function, seed=2)
    if "conv2/kernel" in states and states["conv2/kernel"].shape == (108, 24):
        states["conv2/kernel"] *= group_mask((108, 24), 9, 12)
    return states


def on_cores(
    function: Function, inputs: Values, states: Values, cores: int
) -> tuple[Values, Values]:
    """A step on all cores: outputs, which must be the same on all, and the states, joined."""
    mine = [
        {s.name: v for s in function.states for v in [part(function, states, core)[s.name]]}
        for core in range(cores)
    ]
    results = evaluate_cores(
        function, [part(function, inputs, core) for core in range(cores)], mine
    )
    new = joined_parts(function, [states for _, states in results])
    return joined_parts(replace(function, parts={}), [outputs for outputs, _ in results]), new


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_cores_together_do_what_one_does(name: str, cores: int):
    model = MODELS[name]()
    one = {k: lower(f) for k, f in unlowered(model).items()}
    some = divided(model, cores)
    assert some["train"].parts
    states = start(one["train"])
    for step, entry in enumerate(("train", "train", "evaluate", "predict")):
        mine = {s.name: states[s.name] for s in one[entry].states}
        inputs = batch(one[entry], step)
        wanted, new = evaluate(one[entry], inputs, mine)
        got, others = on_cores(some[entry], inputs, mine, cores)
        assert got.keys() == wanted.keys()
        for results, expected in ((got, wanted), (others, new)):
            for key, value in expected.items():
                np.testing.assert_allclose(results[key], value, rtol=1e-7, atol=1e-9, err_msg=key)
        states |= new


FORCED = {
    "a normalisation of each sample": ("normalised", {"dense1/kernel": 24}, "dense2/kernel"),
    "maps side by side": ("joined", {"conv2/kernel": 12, "conv3/kernel": 12}, "conv5/kernel"),
}


@pytest.mark.parametrize("name", FORCED)
def test_other_divisions_are_right_too(name: str):
    model, chosen, behind = FORCED[name]
    one = unlowered(MODELS[model]())
    *before, last = LOWERING
    ready = {k: run_pipeline(before, f) for k, f in one.items()}
    columns = {kernel: Layout(columns=even(size, 2)) for kernel, size in chosen.items()}
    layouts = found_layouts(ready["predict"], columns, 2)
    train = run_pipeline((SplitChannels(layouts, 2), last), ready["train"])
    assert train.parts[behind].rows is not None
    alone = lower(one["train"])
    states, inputs = start(alone), batch(alone)
    _, wanted = evaluate(alone, inputs, states)
    _, got = on_cores(train, inputs, states, 2)
    for key, value in wanted.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_each_sum_over_the_cores_is_needed(name: str):
    """Without any one of them the step goes wrong, or cores come apart."""
    train = divided(MODELS[name](), 2)["train"]
    states, inputs = start(lower(unlowered(MODELS[name]())["train"])), batch(train)
    _, wanted = on_cores(train, inputs, states, 2)
    sums = [node for node in train.nodes() if node.op == ALL_SUM]
    assert sums
    for left_out in sums:

        def rule(node: Node, operands: Sequence[Node], left_out: Node = left_out) -> Node | None:
            return operands[0] if node is left_out else None

        try:
            _, got = on_cores(rewrite(train, rule), inputs, states, 2)
        except AssertionError:
            continue  # apart
        assert any(not np.allclose(got[k], v, rtol=1e-7, atol=1e-9) for k, v in wanted.items())


def kinds(functions: dict[str, Function]) -> dict[str, str]:
    """How kernels are divided."""
    parts = functions["predict"].parts
    return {
        name.split("/")[0]: ("rows" if p.rows else "") + ("columns" if p.columns else "")
        for name, p in parts.items()
        if name.endswith("kernel")
    }


def test_layers_are_divided_by_outputs_and_inputs_in_turn():
    assert kinds(divided(mlp(4, (6, 24, 24, 24, 24, 3)), 2)) == {
        "dense_0": "columns",
        "dense_1": "rows",
        "dense_2": "columns",
        "dense_3": "rows",
    }


def test_the_inside_of_a_residual_block_is_divided_and_its_trunk_is_whole():
    assert kinds(divided(residual(), 2)) == {"conv2": "columns", "conv4": "rows"}


def test_a_depthwise_kernel_is_divided_like_the_map_it_reads():
    found = kinds(divided(MODELS["depthwise"](), 2))
    assert found == {"first1": "columns", "conv2": "rowscolumns", "conv4": "rows"}


def test_slots_and_statistics_are_divided_like_their_layer():
    parts = divided(MODELS["normalised"](), 2)["train"].parts
    for name in ("norm/gamma", "norm/moving_mean", "dense0/kernel:momentum", "dense0/bias"):
        assert parts[name].columns == (((0, 12),), ((12, 24),))
    assert "dense1/bias" not in parts


@pytest.mark.parametrize(
    ("sizes", "cores", "side"), [((6, 9, 3), 2, 2), ((6, 8, 3), 8, 2), ((6, 4, 3), 2, 8)]
)
def test_what_gains_nothing_is_not_divided(sizes: tuple[int, ...], cores: int, side: int):
    """Channels that are no equal parts, one channel a core, and parts that take as many tiles as the whole."""
    assert lower_split(unlowered(mlp(4, sizes)), cores, side) is None


def test_random_numbers_are_the_same_where_tensors_are_whole_and_differ_where_they_are_divided():
    functions = lower_split(unlowered(dropped(), penalised=False), 2, 2)
    assert functions is not None
    train = functions["train"]
    seeds = [n for n in train.inputs if n.attrs["kind"] == "seed"]
    drawn = {n.inputs[0].name: n.shape for n in train.nodes() if n.op == "uniform"}
    assert drawn == {"seed 0": (4, 12), "seed 1": (4, 24)}
    assert [n.name in train.parts for n in seeds] == [True, False]
    assert train.parts["seed 0"].whole == (2, 1)
    assert {n.name for n in functions["predict"].inputs} == {"x"}
    states = random_states(lower(unlowered(dropped(), penalised=False)["train"]), seed=2)
    inputs = batch(train)

    def run(*values: int) -> Values:
        seeds = {"seed 0": np.array([values[:2]]).T, "seed 1": np.array([values[2:]])}
        return on_cores(train, inputs | seeds, states, 2)[1]

    first, again = run(1, 2, 3), run(1, 2, 3)
    for key, value in first.items():
        np.testing.assert_array_equal(again[key], value)
    for other in ((1, 1, 3), (1, 2, 4)):
        assert np.any(run(*other)["dense1/kernel"] != first["dense1/kernel"])


def test_a_divided_function_is_printed_and_read_again():
    train = divided(MODELS["depthwise"](), 2)["train"]
    again = verify(parse_function(print_function(train)), "quantised")
    assert again.parts == train.parts
    assert print_function(again) == print_function(train)


def test_parts_are_checked():
    train = divided(mlp(4, (6, 24, 3)), 2)["train"]
    wrong = {"dense_0/bias": replace(train.parts["dense_0/bias"], columns=(((0, 4),), ((4, 24),)))}
    with pytest.raises(
        Exception, match=r"a part of state \(1, 12\) of 'dense_0/bias' must be \(1, 4\)"
    ):
        verify(replace(train, parts=wrong), "quantised")
    with pytest.raises(Exception, match="parts of 'other', which is no input or state"):
        verify(replace(train, parts={"other": train.parts["dense_0/bias"]}), "quantised")


X = g.batch_input("x", (4, 8))
W = g.state("w", (8, 8), trainable=True)
V = g.state("v", (8, 8), trainable=True)
H = g.matmul(X, W, name="h")
GRADES = g.const(np.arange(8.0), "grades")

REFUSED = {
    "output": (H, "output 'out' is divided"),
    "maximum": (
        g.reduce_max(H, 1, name="largest"),
        "reduce_max (4, 1) of 'largest' is taken over channels of different cores",
    ),
    "two kernels": (
        g.matmul(H, V, name="second"),
        "operands of matmul (4, 8) of 'second' are divided differently",
    ),
    "whole tensor": (
        g.add(H, X, name="sum"),
        "operands of add (4, 8) of 'sum' are divided differently",
    ),
    "constant": (g.mul(H, GRADES), "constant 'grades' differs between its parts"),
    "joined": (
        g.concat(H, X, name="both"),
        "concat (4, 16) of 'both' joins divided tensors and whole ones",
    ),
    "columns": (g.slice_cols(H, 0, 3), "columns 0 to 3 lie otherwise on different cores"),
    "positions": (
        g.unflatten(H, 2),
        "a vector becomes a map whose positions are on different cores",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_named(name: str):
    node, problem = REFUSED[name]
    function = Function("forward", (X,), (W, V), (("out", node),))
    layouts = {state: Layout(columns=even(8, 2)) for state in ("w", "v")}
    with pytest.raises(CannotSplitError) as error:
        found_layouts(function, layouts, 2)
    assert str(error.value) == problem


def test_a_state_and_its_new_value_are_divided_alike():
    w = g.state("w", (8, 8), trainable=True)
    m = g.state("m", (8, 8), role="slot")
    function = Function("train", (), (w, m), (), ((m, g.add(w, 1.0)),))
    with pytest.raises(
        CannotSplitError, match=r"state \(8, 8\) of 'm' and its new value are divided"
    ):
        SplitChannels({"w": Layout(columns=even(8, 2))}, 2).run(function)
