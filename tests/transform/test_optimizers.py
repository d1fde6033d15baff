"""Optimizers against Keras's own, in float64, over steps with a changing learning rate."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fpgrad.errors import InvalidArgumentError
from fpgrad.graph import Function, evaluate
from fpgrad.graph import builder as g
from fpgrad.transform import optimizers, slot_state
from fpgrad.transform.optimizers import Optimizer

KO = keras.optimizers
# Powers of two: Keras keeps the learning rate in float32, which then holds it exactly.
RATES = [2.0**-6, 2.0**-6, 2.0**-8, 2.0**-3, 0.0, 2.0**-5] * 4

CASES: dict[str, tuple[Optimizer, keras.optimizers.Optimizer]] = {
    "sgd": (optimizers.sgd(), KO.SGD()),
    "sgd-momentum": (optimizers.sgd(0.9), KO.SGD(momentum=0.9)),
    "sgd-nesterov": (optimizers.sgd(0.9, True), KO.SGD(momentum=0.9, nesterov=True)),
    "sgd-decay-clip": (
        optimizers.sgd(0.5, weight_decay=0.125, clipvalue=0.5),
        KO.SGD(momentum=0.5, weight_decay=0.125, clipvalue=0.5),
    ),
    "rmsprop": (optimizers.rmsprop(), KO.RMSprop()),
    "rmsprop-epsilon": (optimizers.rmsprop(epsilon=0.3), KO.RMSprop(epsilon=0.3)),
    "rmsprop-momentum": (optimizers.rmsprop(0.8, 0.7), KO.RMSprop(rho=0.8, momentum=0.7)),
    "rmsprop-centered": (
        optimizers.rmsprop(0.8, 0.7, 1e-3, True),
        KO.RMSprop(rho=0.8, momentum=0.7, epsilon=1e-3, centered=True),
    ),
    "adam": (optimizers.adam(epsilon_inside=False), KO.Adam()),
    "adam-epsilon": (
        optimizers.adam(0.8, 0.9, 0.1, epsilon_inside=False),
        KO.Adam(beta_1=0.8, beta_2=0.9, epsilon=0.1),
    ),
    "adam-amsgrad": (
        optimizers.adam(beta_2=0.5, amsgrad=True, epsilon_inside=False),
        KO.Adam(beta_2=0.5, amsgrad=True),
    ),
    "adam-zero-betas": (
        optimizers.adam(0.0, 0.0, epsilon_inside=False),
        KO.Adam(beta_1=0.0, beta_2=0.0),
    ),
    "adamw": (
        optimizers.adamw(weight_decay=0.25, clipvalue=1.0, epsilon_inside=False),
        KO.AdamW(weight_decay=0.25, clipvalue=1.0),
    ),
    "adam-epsilon-inside": (optimizers.adam(), KO.Adam()),
}


def compiled(optimizer: Optimizer) -> Function:
    """One update of a parameter w by a gradient that is an input."""
    w, gradient = g.state("w", (3, 4), trainable=True), g.batch_input("g", (3, 4))
    slots, scalars = optimizer.states(w), optimizer.scalar_inputs()
    value, new = optimizer.update(w, gradient, slots, scalars)
    updates = ((w, value), *((slots[k], new[k]) for k in slots))
    inputs = (gradient, *scalars.values())
    return Function("step", inputs, (w, *slots.values()), (), updates)


@pytest.mark.parametrize("case", CASES)
def test_equals_keras(case):
    ours, theirs = CASES[case]
    # The inside form differs from Keras's by epsilon/sqrt(v), relatively; |g| is 0.1 or more here.
    tolerance = 1e-4 if case == "adam-epsilon-inside" else 1e-11
    generator = np.random.default_rng(7)
    start = generator.normal(size=(3, 4))
    variable = keras.Variable(start, dtype="float64")
    theirs.build([variable])
    function = compiled(ours)
    states = {s.name: np.zeros(s.shape) for s in function.states} | {"w": start}
    for iteration, rate in enumerate(RATES):
        size = generator.uniform(0.1, 1.0, size=(3, 4)) * 10.0 ** generator.integers(0, 3)
        gradient = size * generator.choice([-1.0, 1.0], size=(3, 4))
        theirs.learning_rate = rate
        theirs.apply([keras.ops.convert_to_tensor(gradient, dtype="float64")])
        inputs = {"g": gradient, **ours.host_scalars(rate, iteration)}
        _, states = evaluate(function, inputs, states)
        np.testing.assert_allclose(
            states["w"], variable.numpy(), rtol=tolerance, atol=tolerance * 1e-2
        )
    # Slots hold Keras's variables up to their scale, in both directions.
    for slot in ours.slots:
        stored = states[slot_state("w", slot.name)]
        kept = next(v for v in theirs.variables if v.path.endswith(f"_{slot.name}")).numpy()
        np.testing.assert_allclose(ours.to_keras(slot.name, stored), kept, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(ours.from_keras(slot.name, kept), stored, rtol=1e-10, atol=1e-12)


def test_scalars_are_named_after_the_optimizer():
    names = set(optimizers.adamw(name="opt").host_scalars(0.5, 0))
    assert names == {"opt/step_size", "opt/decay"}
    assert set(optimizers.sgd().scalar_inputs()) == {"step_size"}
    assert optimizers.sgd().scalar_inputs()["step_size"].name == "sgd/step_size"


def test_host_scalars_are_pure():
    optimizer = optimizers.adam()
    first = optimizer.host_scalars(0.1, 3)
    optimizer.host_scalars(0.1, 9)
    assert optimizer.host_scalars(0.1, 3) == first


def test_undecayed_parameters():
    optimizer = optimizers.sgd(weight_decay=0.5, undecayed=frozenset({"w"}))
    states = {"w": np.ones((3, 4))}
    inputs = {"g": np.zeros((3, 4)), **optimizer.host_scalars(0.5, 0)}
    del inputs["sgd/decay"]
    function = compiled(optimizer)
    used = Function("f", function.inputs[:2], function.states, (), function.updates)
    np.testing.assert_array_equal(evaluate(used, inputs, states)[1]["w"], 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.adam(beta_1=1.0), r"^beta_1 must be in \[0, 1\), not 1.0$"),
        (lambda: optimizers.adam(beta_2=-0.1), r"^beta_2 must be in \[0, 1\), not -0.1$"),
        (lambda: optimizers.rmsprop(rho=1.0), r"^rho must be in \[0, 1\), not 1.0$"),
        (lambda: optimizers.sgd(momentum=1.5), r"^momentum must be in \[0, 1\], not 1.5$"),
        (lambda: optimizers.sgd(clipvalue=-1.0), r"^clipvalue must be positive, not -1.0$"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_unknown_slot():
    with pytest.raises(InvalidArgumentError, match=r"^slot of 'sgd' must be one of \[\], not 'm'$"):
        optimizers.sgd().to_keras("m", np.zeros(1))


def count(optimizer: Optimizer) -> int:
    function = compiled(optimizer)
    return sum(not n.is_leaf for n in function.nodes())


def test_optimizers_are_as_short_as_documented():
    # Passes of (a*b + c)*d: b1*M+g; (g*g+V)*b2; rsqrt(V+e)*M; U*s+W.
    assert count(optimizers.adam()) == 10
    # (g*s+S)*mu; S/mu+W.
    assert count(optimizers.sgd(0.9)) == 5
