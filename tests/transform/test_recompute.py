"""Recomputation of a step's activations: what is copied, what never is, and that the meaning stays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.models import random_states
from tests.transform.test_cores import MODELS, SAMPLES, batch, norm_and_dropout

from fpgrad.graph import ALL_SUM, Function, Node, evaluate, verify
from fpgrad.graph import builder as g
from fpgrad.transform import (
    Recompute,
    build_evaluation,
    build_training,
    losses,
    lower,
    optimizers,
    recomputed,
)

SIDE = 4


def network(activations: list[str], rate: float = 0.0) -> Function:
    """Dense layers of 5 features with these activations, in turn."""
    h = x = g.batch_input("x", (SAMPLES, 5))
    states: list[Node] = []
    for i, name in enumerate(activations):
        states.append(g.state(f"dense{i}/kernel", (5, 5), trainable=True))
        h = g.unary(name, g.matmul(h, states[-1], name=f"dense{i}"), name=f"act{i}")
        h = g.dropout(h, rate, name=f"drop{i}") if rate else h
    y = g.softmax(h, name="softmax")
    return verify(Function("forward", (x,), tuple(states), (("output", y),)), "forward")


def step(model: Function, how: Recompute | None, cores: int = 1, parts: int = 1) -> Function:
    """A training step with recomputation."""
    loss = losses.SparseCategoricalCrossentropy()
    train = build_training(model, loss, optimizers.adam())
    return lower(train, recompute=how, cores=cores, parts=parts)


def copies(function: Function) -> list[Node]:
    """The nodes that are there a second time."""
    return [node for node in function.nodes() if node.name.endswith(":again")]


def equal(model: Function, how: Recompute, features: int) -> Function:
    """Hold a step with recomputation against that without, in every bit of float64; returns it."""
    kept, again = step(model, None), step(model, how)
    states, data = random_states(kept, 0), batch(features, 1)
    inputs = {n.name: data.get(n.name, np.full((1, 1), 7.0)) for n in kept.inputs}
    first, second = evaluate(kept, inputs, states), evaluate(again, inputs, states)
    for mine, theirs in zip(second, first, strict=True):
        for name, value in theirs.items():
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
    return again


@pytest.mark.parametrize("name", MODELS)
def test_the_meaning_stays(name):
    model, features = MODELS[name]
    assert copies(equal(model(SAMPLES), Recompute(SIDE), features))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(["relu", "tanh", "sigmoid", "silu", "softplus"]), min_size=1, max_size=5
    ),
    st.sampled_from([0.01, 0.25, 1.0, 16.0, None]),
)
def test_the_meaning_of_any_network_stays(activations, words):
    equal(network(activations), Recompute(SIDE, words), 5)


def test_random_numbers_and_sums_are_not_made_again():
    model = norm_and_dropout(SAMPLES, 0.5)
    kept, again = step(model, None, cores=2), step(model, Recompute(SIDE), cores=2)
    counts = [Counter(node.op for node in f.nodes()) for f in (kept, again)]
    assert copies(again)
    for op in ("uniform", ALL_SUM, "ge"):
        assert counts[0][op] == counts[1][op] > 0
    assert not {node.op for node in copies(again)} & {"uniform", ALL_SUM, "reduce_sum", "ge"}


def test_nothing_is_copied_where_moving_is_cheap():
    function = step(network(["relu", "relu"]), Recompute(SIDE, 1e6))
    assert not copies(function)
    assert recomputed(function) == []


def test_layers_are_named():
    function = step(network(["silu", "relu", "silu"]), Recompute(SIDE))
    assert "act0" in recomputed(function)


def test_what_has_no_backward_pass_stays_as_it_is():
    evaluation = build_evaluation(network(["silu"]), losses.SparseCategoricalCrossentropy())
    assert not copies(lower(evaluation, recompute=Recompute(SIDE)))


def test_each_micro_batch_has_copies_of_its_own():
    model = network(["silu", "tanh"], 0.5)
    one, two = (copies(step(model, Recompute(SIDE), parts=parts)) for parts in (1, 2))
    assert len(two) == 2 * len(one) > 0
