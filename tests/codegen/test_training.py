"""Compiled steps against the graph's float64 meaning, on a machine with wide formats, so that a wrong pass shows."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.models import float_train, forward, functions, g, losses, metrics, optimizers

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.formats import AccumulatorFormat, FloatFormat, TableFormat, TileFormat
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.reference import ReferenceExecutor
from fpgrad.transform import L1L2, build_training, lower


def wide(side: int = 16, cores: int = 1) -> Machine:
    """A machine whose only coarse parts are the function tables."""
    matrix = MatrixConfig(TileFormat(side, 16), AccumulatorFormat(48, 6))
    vector = VectorConfig(FloatFormat(8, 23), TableFormat(64, 15))
    memory = MemoryConfig(dram_words_per_cycle=min(16, side))
    return Machine(MachineConfig(matrix, vector, memory, cores=cores))


def check(
    fs,
    optimizer,
    n,
    features,
    samples=None,
    steps=3,
    side=16,
    target=None,
    tolerance=4e-3,
    wide_machine=None,
    masks=None,
    cores=1,
):
    """Train on the reference executor and in float64; every state must agree. ``n``: samples of each core."""
    rng = np.random.default_rng(1)
    n = n * cores
    samples = samples or n * 2 + 1
    program = compile_functions(fs, wide_machine or wide(side, cores))
    session = Session(program, ReferenceExecutor(program.config))
    data = {
        "x": rng.normal(size=(samples, features)),
        "y": np.zeros(samples) if target is None else target(rng, samples),
        "sample_weight": rng.uniform(0.5, 1.5, samples),
        "valid": np.ones(samples),
    }
    order = np.full((steps, n), -1)
    for row in order:
        count = n if row is order[0] else rng.integers(1, n + 1)
        row[:count] = rng.integers(0, samples, count)
    scalars = {"inv_count": 1.0 / (order >= 0).sum(1)}
    if optimizer is not None:
        host = [optimizer.host_scalars(0.05, i) for i in range(steps)]
        scalars |= {k: np.array([h[k] for h in host]) for k in host[0]}
    states = {}
    for name, info in program.meta["states"].items():
        parameter = info["role"] == "parameter"
        states[name] = (
            rng.normal(size=info["shape"]) * 0.4 if parameter else np.zeros(info["shape"])
        )
        if "variance" in name:
            states[name] = np.ones(info["shape"])
        if masks and name in masks:
            states[name] = states[name] * masks[name]
    session.write_states({k: v for k, v in states.items() if "_sum" not in k})
    known = {i["name"] for f in program.meta["functions"].values() for i in f["inputs"]}
    known |= {
        c for f in program.meta["functions"].values() for group in f["columns"] for c in group
    }
    uploaded = session.upload({k: v for k, v in data.items() if k in known})
    sums = session.train(uploaded, order, scalars, np.arange(steps, dtype=np.uint64))
    wanted = float_train(fs["train"], states, data, order, scalars, cores)
    got = session.read_states()
    for name, info in program.meta["states"].items():
        if info["role"] == "metric":
            assert sums[name] == pytest.approx(wanted[name].sum(), rel=tolerance, abs=tolerance), (
                name
            )
        else:
            scale = max(1e-3, np.abs(wanted[name]).max())
            assert np.abs(got[name] - wanted[name]).max() < tolerance * scale, name
    return session, uploaded, order


def labels(classes):
    return lambda rng, n: rng.integers(0, classes, n).astype(float)


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize(
    ("n", "dims"), [(2, (1, 3, 2)), (5, (3, 20, 7)), (16, (16, 16, 16)), (33, (20, 5, 20))]
)
def test_shapes(n, dims, side):
    adam = optimizers.adam()
    fs = functions(forward(n, dims), optimizer=adam, accuracy=metrics.SparseCategoricalAccuracy())
    check(fs, adam, n, dims[0], side=side, target=labels(dims[-1]), tolerance=0.02)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.sgd(),
        optimizers.sgd(momentum=0.9),
        optimizers.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
        optimizers.rmsprop(),
        optimizers.rmsprop(momentum=0.5, centered=True),
        optimizers.adam(),
        optimizers.adam(amsgrad=True, epsilon_inside=False, epsilon=1e-3),
        optimizers.adamw(weight_decay=0.1),
        optimizers.sgd(clipvalue=0.01),
    ],
    ids=lambda o: o.name,
)
def test_optimizers(optimizer):
    fs = functions(forward(16, (8, 20, 5)), optimizer=optimizer)
    check(fs, optimizer, 16, 8, target=labels(5), tolerance=0.03)


@pytest.mark.parametrize(
    "activation",
    [
        g.relu, g.tanh, g.sigmoid, g.softmax, g.gelu,
        lambda x: g.gelu(x, approximate=True),
        lambda x: g.leaky_relu(x, 0.2), lambda x: g.elu(x, 0.7), lambda x: g.unary("silu", x),
        lambda x: g.unary("softplus", x), lambda x: x,
    ],
)  # fmt: skip
def test_activations(activation):
    fs = functions(forward(20, (8, 20, 5), hidden=activation))
    check(fs, optimizers.sgd(), 20, 8, target=labels(5), tolerance=0.02)


def one_hot(classes):
    return lambda rng, n: np.eye(classes)[rng.integers(0, classes, n)]


def uniform(width):
    return lambda rng, n: rng.uniform(0, 1, (n, width))


@pytest.mark.parametrize(
    ("loss", "last", "width", "target"),
    [
        (losses.SparseCategoricalCrossentropy(from_logits=True), lambda x: x, 20, labels(20)),
        (losses.CategoricalCrossentropy(from_logits=False), g.softmax, 20, one_hot(20)),
        (
            losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            lambda x: x,
            3,
            one_hot(3),
        ),
        (losses.CategoricalCrossentropy(from_logits=False), g.sigmoid, 3, one_hot(3)),
        (losses.BinaryCrossentropy(from_logits=False), g.sigmoid, 1, labels(2)),
        (losses.BinaryCrossentropy(from_logits=True), lambda x: x, 5, uniform(5)),
        (losses.MeanSquaredError(), lambda x: x, 1, uniform(1)),
        (losses.MeanSquaredError(), g.softmax, 18, uniform(18)),
        (losses.MeanAbsoluteError(), lambda x: x, 2, uniform(2)),
        (losses.Huber(0.3), g.tanh, 3, uniform(3)),
    ],
)
def test_losses(loss, last, width, target):
    fs = functions(forward(18, (8, 12, width), last=last), loss=loss)
    check(fs, optimizers.sgd(), 18, 8, target=target, tolerance=0.02)


@pytest.mark.parametrize("n", [16, 20])
@pytest.mark.parametrize("width", [1, 3, 16, 20])
@pytest.mark.parametrize("layer", ["batch_norm", "layer_norm"])
def test_normalisation(layer, width, n):
    def norm(x):
        f = x.shape[1]
        gamma = g.state("norm/gamma", (1, f), trainable=True)
        beta = g.state("norm/beta", (1, f), trainable=True)
        if layer == "layer_norm":
            return g.layer_norm(x, gamma, beta, 1e-3)
        mean = g.state("norm/moving_mean", (1, f), role="moving")
        variance = g.state("norm/moving_variance", (1, f), role="moving")
        return g.batch_norm(x, gamma, beta, mean, variance, 1e-3, 0.9)

    model = forward(n, (8, width, 4), hidden=norm)
    check(functions(model), optimizers.sgd(), n, 8, target=labels(4), tolerance=0.03)


def test_joins():
    x = g.batch_input("x", (20, 8))
    w = g.state("a/kernel", (8, 5), trainable=True)
    v = g.state("b/kernel", (8, 13), trainable=True)
    u = g.state("c/kernel", (26, 3), trainable=True)
    with g.naming("a"):
        a = g.tanh(g.matmul(x, w))
    with g.naming("b"):
        b = g.relu(g.matmul(x, v))
    with g.naming("c"):
        out = g.softmax(g.matmul(g.concat(a, x, b), u))
    from fpgrad.graph import Function

    model = Function("forward", (x,), (w, v, u), (("out", out),))
    check(functions(model), optimizers.sgd(), 20, 8, target=labels(3), tolerance=0.02)


def test_regularisers():
    model = forward(16, (8, 20, 3))
    train = lower(
        build_training(
            model,
            losses.SparseCategoricalCrossentropy(from_logits=False),
            optimizers.sgd(),
            regularisers={"dense0/kernel": L1L2(0.01, 0.02), "dense1/bias": L1L2(0.0, 0.1)},
        )
    )
    check({"train": train}, optimizers.sgd(), 16, 8, target=labels(3), tolerance=0.02)


def test_predict_and_evaluate():
    fs = functions(forward(18, (8, 20, 18)), accuracy=metrics.SparseCategoricalAccuracy())
    session, data, order = check(fs, optimizers.sgd(), 18, 8, target=labels(18), tolerance=0.02)
    out = session.predict(data, order)["out"]
    assert out.shape == ((order >= 0).sum(), 18)
    np.testing.assert_allclose(out.sum(1), 1.0, atol=2e-3)
    before = session.read_states(["dense0/kernel"])["dense0/kernel"]
    sums = session.evaluate(data, order)
    assert 0 <= sums["accuracy_sum"] <= (order >= 0).sum()
    np.testing.assert_array_equal(session.read_states(["dense0/kernel"])["dense0/kernel"], before)


@pytest.mark.parametrize("layer", ["batch_norm", "layer_norm"])
def test_normalised_inputs(layer: str):
    x = g.batch_input("x", (18, 20))
    gamma = g.state("norm/gamma", (1, 20), trainable=True)
    beta = g.state("norm/beta", (1, 20), trainable=True)
    states = [gamma, beta]
    with g.naming("norm"):
        if layer == "layer_norm":
            h = g.layer_norm(x, gamma, beta, 1e-3)
        else:
            states += [
                g.state(f"norm/moving_{s}", (1, 20), role="moving") for s in ("mean", "variance")
            ]
            h = g.batch_norm(x, gamma, beta, states[2], states[3], 1e-3, 0.9)
    w = g.state("dense/kernel", (20, 3), trainable=True)
    with g.naming("dense"):
        out = g.softmax(g.matmul(h, w))
    model = Function("forward", (x,), (*states, w), (("out", out),))
    check(functions(model), optimizers.sgd(), 18, 20, target=labels(3), tolerance=0.03)
