"""A step by micro-batches against the same step of the whole batch, in float64."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tests.graph.models import mlp, random_states
from tests.transform.test_cores import MODELS, SAMPLES, batch, function, inputs_of, states_of

from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, JOIN, TAKE, Function, Node, evaluate, evaluate_cores, verify
from fpgrad.graph import builder as g
from fpgrad.transform import (
    L1L2,
    Accumulate,
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
    coupling,
    losses,
    lower,
    metrics,
    optimizers,
    partial_sums,
    run_pass,
)


def layer_norm_and_dropout(rows: int, rate: float = 0.0) -> Function:
    """What treats samples one by one, and yet is no product."""
    x = g.batch_input("x", (rows, 5))
    states = [
        g.state(f"dense{i}/kernel", s, trainable=True) for i, s in enumerate([(5, 7), (7, 3)])
    ]
    states += [g.state(f"norm/{p}", (1, 7), trainable=True) for p in ("gamma", "beta")]
    h = g.matmul(x, states[0], name="dense0")
    h = g.dropout(g.layer_norm(h, *states[2:], epsilon=1e-3, name="norm"), rate, name="dropout")
    y = g.softmax(g.matmul(h, states[1], name="dense1"), name="softmax")
    return verify(Function("forward", (x,), tuple(states), (("output", y),)), "forward")


DIVISIBLE = {
    "dense": (lambda rows: mlp(rows, (5, 7, 3)), 5),
    "layer norm": (layer_norm_and_dropout, 5),
}


def steps(model: Function, parts: int, cores: int = 1) -> dict[str, Function]:
    """A session's functions, by so many micro-batches of the model's samples."""
    loss = losses.SparseCategoricalCrossentropy()
    terms = [MetricTerm("accuracy", metrics.SparseCategoricalAccuracy())]
    penalties = {next(s.name for s in model.states if s.attrs["trainable"]): L1L2(0.01, 0.02)}
    made = {
        "train": build_training(model, loss, optimizers.adam(), terms, penalties),
        "evaluate": build_evaluation(model, loss, terms, penalties),
        "predict": build_prediction(model),
    }
    return {name: lower(f, cores=cores, parts=parts) for name, f in made.items()}


def start(train: Function) -> dict[str, np.ndarray]:
    """Random weights, and metrics that begin at other numbers for each sample."""
    sums = {s.name: s.shape for s in train.states if s.attrs["role"] == "metric"}
    counted = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in sums.items()}
    return random_states(train, seed=2) | counted


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("name", DIVISIBLE)
def test_micro_batches_together_are_the_batch(name: str, parts: int):
    build, features = DIVISIBLE[name]
    whole, some = steps(build(SAMPLES), 1), steps(build(SAMPLES // parts), parts)
    mine = theirs = start(whole["train"])
    for step, entry in enumerate(("train", "train", "evaluate", "predict")):
        data = batch(features, step)
        outputs, new = evaluate(
            whole[entry], inputs_of(whole[entry], data), states_of(whole[entry], theirs)
        )
        got, mine_new = evaluate(
            some[entry], inputs_of(some[entry], data), states_of(some[entry], mine)
        )
        theirs, mine = theirs | new, mine | mine_new
        assert outputs.keys() == got.keys()
        for key in outputs:
            np.testing.assert_allclose(got[key], outputs[key], rtol=1e-12)
        for key in theirs:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-8, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", DIVISIBLE)
def test_several_cores_each_with_micro_batches(name: str):
    cores = 2
    build, features = DIVISIBLE[name]
    one, some = steps(build(SAMPLES), 1)["train"], steps(build(SAMPLES // 6), 3, cores)["train"]
    states, data = start(one), batch(features, 1)
    _, wanted = evaluate(one, inputs_of(one, data), states)

    def halves(values: dict[str, np.ndarray], core: int) -> dict[str, np.ndarray]:
        return {k: np.split(v, cores)[core] if len(v) == SAMPLES else v for k, v in values.items()}

    inputs = [inputs_of(some, halves(data, core)) for core in range(cores)]
    results = evaluate_cores(some, inputs, [halves(states, core) for core in range(cores)])
    for core, (_, new) in enumerate(results):
        for key, value in halves(wanted, core).items():
            np.testing.assert_allclose(new[key], value, rtol=1e-8, atol=1e-12, err_msg=key)
    # All micro-batches of a core are summed before the cores are: as many exchanges as without them.
    sums = [node.name for node in some.nodes() if node.op == ALL_SUM]
    assert Counter(sums) == Counter(
        n.name for n in steps(build(SAMPLES // 2), 1, cores)["train"].nodes() if n.op == ALL_SUM
    )
    assert partial_sums(some) == []


def test_sums_are_added_in_the_order_of_samples():
    train = steps(mlp(4, (5, 3)), 3)["train"]
    (gradient,) = (
        n for n in train.nodes() if n.op == "add" and n.name == "dense_0/kernel:grad" and
        all(x.op in ("add", "matmul") for x in n.inputs) and n.inputs[0].op == "add"
    )  # fmt: skip
    first, second = gradient.inputs[0].inputs

    def samples(node: Node) -> set[int]:
        found: set[int] = set()
        stack = [node]
        while stack:
            x = stack.pop()
            found |= {x.attrs["first"]} if x.op == TAKE else set()
            stack.extend(x.inputs)
        return found

    assert [samples(x) for x in (first, second, gradient.inputs[1])] == [{0}, {4}, {8}]


def test_tensors_of_weights_are_quantised_once_for_all():
    train = steps(mlp(4, (5, 7, 3)), 3)["train"]
    once = Counter(n.inputs[0].name for n in train.nodes() if n.op == "quantise" and
                   n.inputs[0].op == "state")  # fmt: skip
    assert set(once.values()) == {1}


def test_random_numbers_are_each_micro_batch_s_own():
    train = steps(layer_norm_and_dropout(4, 0.5), 3)["train"]
    streams = [n.attrs["stream"] for n in train.nodes() if n.op == "uniform"]
    assert sorted(streams) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "layers"), [("normalised", ["norm0", "norm1"]), ("maps", ["norm"])]
)
def test_what_couples_samples_is_named(name: str, layers: list[str]):
    build, _ = MODELS[name]
    with pytest.raises(GraphError) as error:
        steps(build(4), 2)
    listed = "".join(f"\n  {layer} couples samples" for layer in layers)
    assert str(error.value) == (f"function 'train' cannot be computed by micro-batches:{listed}")
    # At inference nothing couples samples.
    model = build(4)
    evaluation = build_evaluation(model, losses.SparseCategoricalCrossentropy())
    assert any(node.op == JOIN for node in lower(evaluation, parts=2).nodes())


def test_other_functions_of_several_samples_are_refused():
    largest = function(lambda x, _: g.sub(x, g.reduce_max(x, axis=0, name="largest")))
    assert coupling(largest) == ["reduce_max (1, 3) of 'largest' is taken over samples"]
    centred = function(lambda x, _: g.sub(x, g.reduce_sum(x, axis=0, name="mean")))
    assert coupling(centred) == ["mean couples samples"]
    assert coupling(function(lambda x, w: g.matmul(x, g.slice_cols(w, 0, 3), tb=True))) == []


def test_one_micro_batch_changes_nothing():
    train = lower(build_prediction(mlp(4, (5, 3))))
    assert Accumulate(1).run(train) is train
    plain = Function("f", (x := g.batch_input("x", (2, 3)),), (), (("y", g.relu(x)),))
    assert run_pass(Accumulate(3), plain).inputs[0].shape == (6, 3)
