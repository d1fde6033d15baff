"""Whole training steps, fully lowered, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pytest
import torch
from tests.graph.models import dense, mlp, random_states

from fpgrad.errors import GraphError
from fpgrad.graph import OPS, Function, evaluate, verify
from fpgrad.graph import builder as g
from fpgrad.transform import (
    L1L2,
    LossTerm,
    MetricTerm,
    Optimizer,
    build_evaluation,
    build_prediction,
    build_training,
    losses,
    lower,
    metrics,
    optimizers,
)

ROWS, FEATURES, CLASSES = 8, 5, 3
STEPS = 12


class Stepping(Protocol):
    """What is used of a PyTorch optimizer."""

    def zero_grad(self) -> object: ...
    def step(self) -> object: ...


MakeOptimizer = Callable[[list[torch.Tensor]], Stepping]


def torch_sgd(momentum: float = 0.0, nesterov: bool = False) -> MakeOptimizer:
    return lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum, nesterov=nesterov)


# PyTorch's momentum, with a constant learning rate, is Keras's; its RMSprop and Adam place epsilon
# outside the root, so that only epsilon 0 compares to the last digits.
OPTIMIZERS: dict[str, tuple[Optimizer, MakeOptimizer]] = {
    "sgd": (optimizers.sgd(), torch_sgd()),
    "momentum": (optimizers.sgd(0.9), torch_sgd(0.9)),
    "nesterov": (optimizers.sgd(0.9, True), torch_sgd(0.9, True)),
    "rmsprop": (
        optimizers.rmsprop(0.9, 0.5, 0.0, True),
        lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, eps=0.0, momentum=0.5, centered=True),
    ),
    "adam": (
        optimizers.adam(0.8, 0.95, 1e-3, epsilon_inside=False),
        lambda p: KerasAdam(p, 0.1, 0.8, 0.95, 1e-3),
    ),
    "adamw": (
        optimizers.adamw(0.9, 0.99, 0.0, weight_decay=0.02),
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.02),
    ),
}


class KerasAdam:
    """Adam written from Keras's formula: alpha*m/(sqrt(v) + epsilon)."""

    def __init__(
        self, params: list[torch.Tensor], lr: float, b1: float, b2: float, eps: float
    ) -> None:
        self.options = lr, b1, b2, eps
        self.t = 0
        self.moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in params}

    def zero_grad(self) -> None:
        for p in self.moments:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        lr, b1, b2, eps = self.options
        self.t += 1
        alpha = lr * (1 - b2**self.t) ** 0.5 / (1 - b1**self.t)
        for p, (m, v) in self.moments.items():
            assert p.grad is not None
            m += (p.grad - m) * (1 - b1)
            v += (p.grad**2 - v) * (1 - b2)
            p -= alpha * m / (v.sqrt() + eps)


def batches(steps: int = STEPS, seed: int = 4):
    """Batches with class weights; every third is short: its last rows are padding."""
    generator = np.random.default_rng(seed)
    for step in range(steps):
        valid = np.ones((ROWS, 1))
        if step % 3 == 2:
            valid[ROWS - 3 :] = 0.0
        yield {
            "x": generator.normal(size=(ROWS, FEATURES)) * valid,
            "y": generator.integers(0, CLASSES, size=(ROWS, 1)).astype(float) * valid,
            "sample_weight": generator.uniform(0.5, 2.0, size=(ROWS, 1)) * valid,
            "valid": valid,
            "inv_count": np.array([[1.0 / valid.sum()]]),
        }


def fitting(
    function: Function, batch: dict[str, np.ndarray], **more: float
) -> dict[str, np.ndarray]:
    """The part of a batch that the function reads."""
    names = {n.name for n in function.inputs}
    return {k: np.asarray(v) for k, v in {**batch, **more}.items() if k in names}


def initial(function: Function) -> dict[str, np.ndarray]:
    return random_states(function, seed=9)


def train(function: Function, optimizer: Optimizer, steps: int = STEPS) -> dict[str, np.ndarray]:
    states = initial(function)
    for i, batch in enumerate(batches(steps)):
        scalars = optimizer.host_scalars(0.1, i)
        _, states = evaluate(function, fitting(function, batch, **scalars), states)
    return states


def torch_train(
    function: Function,
    model: Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor],
    make: MakeOptimizer,
    penalty: Callable[[dict[str, torch.Tensor]], torch.Tensor] | None = None,
    frozen: tuple[str, ...] = (),
    steps: int = STEPS,
) -> tuple[dict[str, np.ndarray], float, float, float]:
    """Trains on the valid rows only; returns parameters, loss sum, accuracy sum, penalty sum."""
    start = initial(function)
    names = [s.name for s in function.states if s.attrs["role"] == "parameter"]
    p = {n: torch.tensor(start[n], requires_grad=n not in frozen) for n in names}
    optimizer = make([t for t in p.values() if t.requires_grad])
    loss_sum = accuracy_sum = penalty_sum = 0.0
    for batch in batches(steps):
        rows = batch["valid"][:, 0] > 0
        x = torch.tensor(batch["x"][rows])
        y = torch.tensor(batch["y"][rows, 0]).long()
        weight = torch.tensor(batch["sample_weight"][rows, 0])
        logits = model(p, x)
        per_sample = torch.nn.functional.cross_entropy(logits, y, reduction="none") * weight
        loss = per_sample.mean()
        if penalty is not None:
            value = penalty(p)
            loss = loss + value
            penalty_sum += value.item() * rows.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += per_sample.sum().item()
        accuracy_sum += (logits.argmax(1) == y).sum().item()
    return {n: t.detach().numpy() for n, t in p.items()}, loss_sum, accuracy_sum, penalty_sum


def torch_mlp(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    h = torch.tanh(x @ p["dense_0/kernel"] + p["dense_0/bias"])
    return h @ p["dense_1/kernel"] + p["dense_1/bias"]


MODEL = mlp(ROWS, (FEATURES, 7, CLASSES), hidden="tanh")
LOSS = losses.SparseCategoricalCrossentropy()
METRICS = (MetricTerm("accuracy", metrics.SparseCategoricalAccuracy()),)


def compare(states: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(states[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mlp_trains_as_in_pytorch(name):
    ours, theirs = OPTIMIZERS[name]
    function = lower(build_training(MODEL, LOSS, ours, METRICS))
    states = train(function, ours)
    expected, loss, accuracy, _ = torch_train(function, torch_mlp, theirs)
    compare(states, expected)
    assert states["loss_sum"].sum() == pytest.approx(loss, rel=1e-10)
    assert states["accuracy_sum"].sum() == accuracy


def test_regularised_loss():
    penalties = {"dense_0/kernel": L1L2(0.01, 0.02), "dense_1/bias": L1L2(l2=0.1)}
    function = lower(build_training(MODEL, LOSS, optimizers.sgd(), METRICS, penalties))

    def penalty(p: dict[str, torch.Tensor]) -> torch.Tensor:
        w, b = p["dense_0/kernel"], p["dense_1/bias"]
        return 0.01 * w.abs().sum() + 0.02 * (w**2).sum() + 0.1 * (b**2).sum()

    states = train(function, optimizers.sgd())
    expected, loss, _, total = torch_train(function, torch_mlp, torch_sgd(), penalty)
    compare(states, expected)
    assert states["loss_sum"].sum() == pytest.approx(loss, rel=1e-10)
    assert states["regularisation_sum"].sum() == pytest.approx(total, rel=1e-10)


def test_frozen_parameters_cost_nothing():
    frozen = ("dense_0/kernel", "dense_0/bias")
    kept = [s.name for s in MODEL.states if s.name not in frozen]
    # Penalties on frozen parameters do not count.
    training = build_training(
        MODEL, LOSS, optimizers.adamw(epsilon=0.0, weight_decay=0.02),
        METRICS, {"dense_0/kernel": L1L2(l2=1.0)}, trainable=kept,
    )  # fmt: skip
    function = lower(training)
    assert {s.name for s in function.states if s.attrs["role"] == "slot"} == {
        f"dense_1/{p}:{slot}" for p in ("kernel", "bias") for slot in ("momentum", "velocity")
    }
    # Two forward products, the kernel's gradient, and the bias's sum: nothing backwards further.
    assert sum(n.op == "matmul" for n in function.nodes()) == 4
    assert "regularisation_sum" not in {s.name for s in function.states}
    optimizer = optimizers.adamw(epsilon=0.0, weight_decay=0.02)
    states = train(function, optimizer)
    expected, *_ = torch_train(
        function,
        torch_mlp,
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.999), eps=0.0, weight_decay=0.02),
        frozen=frozen,
    )
    compare(states, expected)


def normalised(kind: str, **options: object) -> Function:
    """dense, a normalisation with scale and centre, relu, dense."""
    x = g.batch_input("x", (ROWS, FEATURES))
    h, states = dense(x, 7, "dense_0")
    gamma = g.state("norm/gamma", (1, 7), trainable=True)
    beta = g.state("norm/beta", (1, 7), trainable=True)
    states += [gamma, beta]
    with g.naming("norm"):
        if kind == "layer":
            h = g.layer_norm(h, gamma, beta, epsilon=1e-3)
        else:
            mean = g.state("norm/moving_mean", (1, 7), role="moving")
            variance = g.state("norm/moving_variance", (1, 7), role="moving")
            states += [mean, variance]
            h = g.batch_norm(h, gamma, beta, mean, variance, 1e-3, 0.75, **options)
    h = g.relu(h, name="relu")
    y, last = dense(h, CLASSES, "dense_1", "softmax")
    return verify(Function("m", (x,), tuple(states + last), (("output", y),)), "forward")


def torch_normalised(moving: dict[str, torch.Tensor] | None) -> Callable[..., torch.Tensor]:
    def model(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        h = x @ p["dense_0/kernel"] + p["dense_0/bias"]
        if moving is None:
            h = torch.nn.functional.layer_norm(h, (7,), eps=1e-3)
        else:
            mean, variance = h.mean(0), h.var(0, correction=0)
            h = (h - mean) / torch.sqrt(variance + 1e-3)
            moving["mean"] = 0.75 * moving["mean"] + 0.25 * mean.detach()
            moving["variance"] = 0.75 * moving["variance"] + 0.25 * variance.detach()
        h = torch.relu(h * p["norm/gamma"] + p["norm/beta"])
        return h @ p["dense_1/kernel"] + p["dense_1/bias"]

    return model


def test_layer_norm():
    function = lower(build_training(normalised("layer"), LOSS, optimizers.sgd(0.5)))
    states = train(function, optimizers.sgd(0.5))
    compare(states, torch_train(function, torch_normalised(None), torch_sgd(0.5))[0])


def test_batch_norm_uses_and_averages_statistics_of_valid_rows():
    function = lower(build_training(normalised("batch"), LOSS, optimizers.sgd(0.5)))
    start = initial(function)
    moving = {k: torch.tensor(start[f"norm/moving_{k}"][0]) for k in ("mean", "variance")}
    states = train(function, optimizers.sgd(0.5))
    compare(states, torch_train(function, torch_normalised(moving), torch_sgd(0.5))[0])
    for k, value in moving.items():
        np.testing.assert_allclose(states[f"norm/moving_{k}"][0], value.numpy(), rtol=1e-10)


def test_frozen_batch_norm_stays_at_inference():
    forward = normalised("batch", trainable=False)
    function = lower(build_training(forward, LOSS, optimizers.sgd()))
    updated = {s.name for s, _ in function.updates}
    assert not updated & {"norm/moving_mean", "norm/moving_variance"}
    assert "valid" not in {n.name for n in function.inputs}


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_prediction_and_evaluation_of_normalised_models(kind):
    forward = normalised(kind)
    states, batch = initial(forward), next(batches())
    expected, _ = evaluate(forward, {"x": batch["x"]}, states)
    outputs, after = evaluate(lower(build_prediction(forward)), {"x": batch["x"]}, states)
    np.testing.assert_allclose(outputs["output"], expected["output"], rtol=1e-10)
    assert all(np.array_equal(after[k], v) for k, v in states.items())
    function = lower(build_evaluation(forward, LOSS, METRICS))
    assert {s.name for s, _ in function.updates} == {"loss_sum", "accuracy_sum"}
    _, after = evaluate(function, fitting(function, batch), random_states(function, 9))
    y = batch["y"][:, 0].astype(int)
    p = expected["output"]
    loss = -np.log(p[np.arange(ROWS), y]) * batch["sample_weight"][:, 0]
    np.testing.assert_allclose(after["loss_sum"][:, 0], loss, rtol=1e-9)
    np.testing.assert_array_equal(after["accuracy_sum"][:, 0], p.argmax(1) == y)


def test_dropout_masks_forward_and_backward_alike():
    x = g.batch_input("x", (ROWS, FEATURES))
    h, states = dense(x, 64, "dense_0", "tanh")
    dropped = g.dropout(h, 0.25, name="dropout")
    y, last = dense(dropped, 1, "dense_1")
    forward = Function("m", (x,), tuple(states + last), (("output", y),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    assert [n.op for n in function.nodes()].count("uniform") == 1
    start, batch = initial(function), next(batches())
    batch["y"] = np.zeros((ROWS, 1))
    seeded = fitting(function, batch, **optimizers.sgd().host_scalars(1.0, 0)) | {"seed": 7}
    _, after = evaluate(function, seeded, start)
    generator = np.random.default_rng([7, 0])
    mask = (generator.random((ROWS, 64)) >= 0.25) / 0.75
    p = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    t = torch.tanh(torch.tensor(batch["x"]) @ p["dense_0/kernel"] + p["dense_0/bias"])
    out = (t * torch.tensor(mask)) @ p["dense_1/kernel"] + p["dense_1/bias"]
    loss = (out**2 * torch.tensor(batch["sample_weight"])).mean()
    loss.backward()
    for name in ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias"):
        expected = p[name].detach().numpy() - p[name].grad.numpy()
        np.testing.assert_allclose(after[name], expected, rtol=1e-10, atol=1e-12)
    outputs, _ = evaluate(
        lower(build_prediction(forward)),
        {"x": batch["x"]},
        {k: start[k] for k in p if ":" not in k and k != "loss_sum"},
    )
    plain = t @ p["dense_1/kernel"] + p["dense_1/bias"]
    np.testing.assert_allclose(outputs["output"], plain.detach().numpy(), rtol=1e-10)


def test_two_dropouts_have_two_generators():
    x = g.batch_input("x", (4, 3))
    y = g.mul(g.dropout(x, 0.5, name="a"), g.dropout(x, 0.5, name="b"))
    w = g.state("w", (1, 3), trainable=True)
    forward = Function("m", (x,), (w,), (("output", g.mul(y, w)),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    streams = [n.attrs["stream"] for n in function.nodes() if n.op == "uniform"]
    assert streams == [0, 1]


def test_two_outputs_with_weights():
    x = g.batch_input("x", (ROWS, FEATURES))
    h, states = dense(x, 6, "dense_0", "relu")
    a, new_a = dense(h, CLASSES, "a", "softmax")
    b, new_b = dense(h, 2, "b")
    forward = Function("m", (x,), tuple(states + new_a + new_b), (("a", a), ("b", b)))
    terms = (
        LossTerm(LOSS, "a", "y", weight=0.5, metric="a_loss"),
        LossTerm(losses.Huber(), "b", "y_b", weight=2.0, metric="b_loss"),
    )
    function = lower(build_training(forward, terms, optimizers.sgd()))
    start, batch = initial(function), next(batches())
    batch["y_b"] = np.random.default_rng(0).normal(size=(ROWS, 2))
    scalars = optimizers.sgd().host_scalars(1.0, 0)
    _, after = evaluate(function, fitting(function, batch, **scalars), start)
    p = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    t = torch.relu(torch.tensor(batch["x"]) @ p["dense_0/kernel"] + p["dense_0/bias"])
    logits = t @ p["a/kernel"] + p["a/bias"]
    out = t @ p["b/kernel"] + p["b/bias"]
    w = torch.tensor(batch["sample_weight"][:, 0])
    f = torch.nn.functional
    la = f.cross_entropy(logits, torch.tensor(batch["y"][:, 0]).long(), reduction="none") * w
    lb = f.huber_loss(out, torch.tensor(batch["y_b"]), reduction="none").mean(1) * w
    (0.5 * la + 2.0 * lb).mean().backward()
    for s in forward.states:
        expected = p[s.name].detach().numpy() - p[s.name].grad.numpy()
        np.testing.assert_allclose(after[s.name], expected, rtol=1e-9, atol=1e-12)
    assert after["a_loss_sum"].sum() == pytest.approx(la.sum().item())
    assert after["b_loss_sum"].sum() == pytest.approx(lb.sum().item())
    assert after["loss_sum"].sum() == pytest.approx((0.5 * la + 2.0 * lb).sum().item())


def test_names_of_the_model_survive_lowering():
    function = lower(build_training(MODEL, LOSS, optimizers.adam(), METRICS))
    known = {"x", "y", "loss", "loss:grad", "accuracy", "loss_sum", "accuracy_sum"}
    for layer in ("dense_0", "dense_1"):
        known |= {layer, f"{layer}:grad"}
        known |= {f"{layer}/{p}{g}" for p in ("kernel", "bias") for g in ("", ":grad")}
    assert {n.name for n in function.nodes() if n.op in OPS} == known - {"x", "y"} | {"x"}


def test_bad_references_are_named():
    sgd = optimizers.sgd()
    with pytest.raises(
        GraphError, match=r"^output of a loss or metric must be one of \['output'\], not 'z'$"
    ):
        build_training(MODEL, (LossTerm(LOSS, "z"),), sgd)
    with pytest.raises(GraphError, match=r"^trainable must name states of 'forward', not \['w'\]$"):
        build_training(MODEL, LOSS, sgd, trainable=["w"])
    with pytest.raises(
        GraphError, match=r"^regularisers must name states of 'forward', not \['w'\]$"
    ):
        build_training(MODEL, LOSS, sgd, regularisers={"w": L1L2(l2=1.0)})
    with pytest.raises(
        GraphError, match=r"^target 'y' is \(8, 1\) for one loss or metric and \(8, 3\) for"
    ):
        build_training(MODEL, LOSS, sgd, (MetricTerm("mse", metrics.mean_squared_error()),))
    with pytest.raises(
        GraphError, match=r"^a training or evaluation step needs at least one loss$"
    ):
        build_evaluation(MODEL, ())
