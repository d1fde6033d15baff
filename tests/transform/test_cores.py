"""A step divided among cores against the same step on one: sums over samples are sums over the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from tests.graph.models import mlp, random_states
from tests.transform.test_map_training import CLASSES, HEIGHT, WIDTH
from tests.transform.test_map_training import model as cnn

from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, Function, Node, evaluate, evaluate_cores, verify
from fpgrad.graph import builder as g
from fpgrad.transform import (
    L1L2,
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
    losses,
    lower,
    metrics,
    optimizers,
    partial_sums,
)

SAMPLES = 12


def norm_and_dropout(rows: int, rate: float = 0.0) -> Function:
    """Two normalisations of a batch, one of each sample, and dropout."""
    x = g.batch_input("x", (rows, 5))
    states: list[Node] = []

    def state(name: str, shape: tuple[int, int], **kind) -> Node:
        states.append(g.state(name, shape, **(kind or {"trainable": True})))
        return states[-1]

    h: Node = x
    for i in range(2):
        h = g.matmul(h, state(f"dense{i}/kernel", (5, 5)), name=f"dense{i}")
        parameters = [state(f"norm{i}/{p}", (1, 5)) for p in ("gamma", "beta")]
        moving = [state(f"norm{i}/moving_{p}", (1, 5), role="moving") for p in ("mean", "variance")]
        h = g.batch_norm(h, *parameters, *moving, epsilon=1e-3, momentum=0.9, name=f"norm{i}")
        h = g.dropout(g.tanh(h), rate, name=f"dropout{i}")
    h = g.layer_norm(h, state("ln/gamma", (1, 5)), state("ln/beta", (1, 5)), epsilon=1e-3)
    h = g.matmul(h, state("classes/kernel", (5, 3)), name="classes")
    y = g.softmax(h, name="softmax")
    return verify(Function("forward", (x,), tuple(states), (("output", y),)), "forward")


MODELS: dict[str, tuple[Callable[[int], Function], int]] = {
    "dense": (lambda rows: mlp(rows, (5, 7, 3)), 5),
    "normalised": (norm_and_dropout, 5),
    "maps": (cnn, HEIGHT * WIDTH * 2),
}


def steps(model: Function, cores: int) -> dict[str, Function]:
    """A session's functions, of the part that one of so many cores has."""
    loss = losses.SparseCategoricalCrossentropy()
    terms = [MetricTerm("accuracy", metrics.SparseCategoricalAccuracy())]
    penalties = {next(s.name for s in model.states if s.attrs["trainable"]): L1L2(0.01, 0.02)}
    adam = optimizers.adam()
    return {
        "train": lower(build_training(model, loss, adam, terms, penalties), cores=cores),
        "evaluate": lower(build_evaluation(model, loss, terms, penalties), cores=cores),
        "predict": lower(build_prediction(model), cores=cores),
    }


def batch(features: int, step: int) -> dict[str, np.ndarray]:
    """A batch; every other one is short, with padding that must not count."""
    rng = np.random.default_rng(step)
    valid = np.ones((SAMPLES, 1))
    valid[SAMPLES - 5 * (step % 2) :] = 0.0
    return {
        "x": rng.normal(size=(SAMPLES, features)),
        "y": rng.integers(0, CLASSES, (SAMPLES, 1)),
        "valid": valid,
        "sample_weight": valid * rng.uniform(0.5, 1.5, (SAMPLES, 1)),
        "inv_count": np.full((1, 1), 1.0 / valid.sum()),
        **{k: np.full((1, 1), v) for k, v in optimizers.adam().host_scalars(0.01, step).items()},
    }


def per_core(values: dict[str, np.ndarray], core: int, cores: int) -> dict[str, np.ndarray]:
    """What one of the cores has of tensors with a row a sample."""
    return {k: np.split(v, cores)[core] if v.shape[0] == SAMPLES else v for k, v in values.items()}


def inputs_of(function: Function, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {node.name: values[node.name] for node in function.inputs}


def states_of(function: Function, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {node.name: values[node.name] for node in function.states}


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_cores_together_do_what_one_does(name: str, cores: int):
    build, features = MODELS[name]
    alone, parts = steps(build(SAMPLES), 1), steps(build(SAMPLES // cores), cores)
    states = random_states(alone["train"], seed=2) | {
        "regularisation_sum": np.zeros((1, 1)),
        "loss_sum": np.zeros((SAMPLES, 1)),
        "accuracy_sum": np.zeros((SAMPLES, 1)),
    }
    each = [per_core(states, core, cores) for core in range(cores)]
    for step, entry in enumerate(("train", "train", "evaluate", "predict")):
        one, some = alone[entry], parts[entry]
        whole = batch(features, step)
        outputs, new = evaluate(one, inputs_of(one, whole), states_of(one, states))
        results = evaluate_cores(
            some,
            [inputs_of(some, per_core(whole, core, cores)) for core in range(cores)],
            [states_of(some, mine) for mine in each],
        )
        states |= new
        for core, (mine, got) in enumerate(results):
            each[core] |= got
            wanted = per_core(outputs, core, cores)
            assert mine.keys() == wanted.keys()
            for key, value in wanted.items():
                np.testing.assert_allclose(mine[key], value, rtol=1e-9, atol=1e-12)
            for key, value in per_core(states, core, cores).items():
                np.testing.assert_allclose(each[core][key], value, rtol=1e-7, atol=1e-9)


def test_dropout_differs_from_one_core_and_not_from_time_to_time():
    part = steps(norm_and_dropout(SAMPLES // 2, 0.5), 2)["train"]
    states = random_states(part, seed=2)

    def run(seeds: tuple[int, int]) -> dict[str, np.ndarray]:
        whole = batch(5, 0)
        inputs = [
            inputs_of(part, per_core(whole, core, 2) | {"seed": np.full((1, 1), seeds[core])})
            for core in range(2)
        ]
        (_, first), (_, second) = evaluate_cores(part, inputs, [states, states])
        for state in part.states:
            if state.attrs["role"] != "metric":
                np.testing.assert_array_equal(first[state.name], second[state.name])
        return first

    again, other = run((3, 4)), run((3, 5))
    for name, value in run((3, 4)).items():
        np.testing.assert_array_equal(value, again[name])
    assert np.any(again["classes/kernel"] != other["classes/kernel"])


def test_what_is_summed():
    model = norm_and_dropout(4)
    train = steps(model, 2)["train"]
    summed = Counter(node.name for node in train.nodes() if node.op == ALL_SUM)
    kernels = {f"{s.name}:grad": 1 for s in model.states if s.attrs["trainable"]}
    # Mean and variance of each normalisation, their gradients, and the samples that penalties count for.
    norms = {"norm0": 2, "norm0:grad": 2, "norm1": 2, "norm1:grad": 2}
    assert summed == kernels | norms | {"regularisation": 1}
    assert not any(node.op == ALL_SUM for node in steps(model, 2)["predict"].nodes())
    assert partial_sums(train) == []
    assert len(partial_sums(steps(model, 1)["train"])) == sum(
        node.op == ALL_SUM for node in train.nodes()
    )


def function(build: Callable[[Node, Node], Node], rows: int = 4) -> Function:
    x = g.batch_input("x", (rows, 3))
    w = g.state("w", (4, 4), trainable=True)
    out = build(x, w)
    return Function("forward", (x,), (w,), (("out", out),))


GRADED = g.const(np.arange(4.0).reshape(4, 1), "grades")

REFUSED = {
    "largest of the batch": (
        lambda x, _: g.sub(x, g.reduce_max(x, axis=0, name="largest")),
        "reduce_max (1, 3) of 'largest' is taken over samples of different cores",
    ),
    "every pair": (
        lambda x, _: g.matmul(x, x, tb=True, name="pairs"),
        "matmul (4, 4) of 'pairs' multiplies samples with each other",
    ),
    "weights": (
        lambda x, w: g.add(x, g.reduce_sum(g.matmul(w, x, name="mixed"), axis=0)),
        "matmul (4, 3) of 'mixed' weights samples with state (4, 4) of 'w'",
    ),
    "constant": (
        lambda x, _: g.mul(x, GRADED, name="graded"),
        "mul (4, 3) of 'graded' has a constant that differs between samples",
    ),
    "total": (
        lambda x, _: g.reduce_sum(x, axis=0, name="total"),
        "output 'out', reduce_sum (1, 3) of 'total', has no row for each sample",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_named(name: str):
    build, problem = REFUSED[name]
    with pytest.raises(GraphError) as error:
        partial_sums(function(build))
    start = f"function 'forward' cannot be divided among cores:\n  {problem}"
    assert str(error.value).startswith(start)


def test_states_stay_the_same_on_all_cores():
    x = g.batch_input("x", (4, 4))
    w = g.state("w", (4, 4), trainable=True)
    update = g.add(w, x, name="w")
    with pytest.raises(GraphError, match=r"state 'w' would become add \(4, 4\) of 'w' of a core's"):
        partial_sums(Function("train", (x,), (w,), (), ((w, update),)))


def test_one_sample_is_too_few():
    with pytest.raises(GraphError, match="a core's part of the batch must be 2 samples or more"):
        partial_sums(function(lambda x, _: x, rows=1))
