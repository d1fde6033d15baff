"""Losses and metrics against Keras, value for value; their gradients against PyTorch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from fpgrad.errors import GraphError
from fpgrad.graph import Function, Node, evaluate
from fpgrad.graph import builder as g
from fpgrad.transform import losses, metrics
from fpgrad.transform.autodiff import gradients

RNG = np.random.default_rng(5)
N, K = 6, 4
LOGITS = RNG.normal(size=(N, K)) * 3.0
INDEX = RNG.integers(0, K, size=(N, 1)).astype(float)
DISTRIBUTION = RNG.dirichlet(np.ones(K), size=N)
UNNORMALISED = RNG.uniform(size=(N, K))
BITS = RNG.integers(0, 2, size=(N, K)).astype(float)
REAL = RNG.normal(size=(N, K)) * 2.0

L, KL = losses, keras.losses
SOFT, SIG = "softmax", "sigmoid"
CASES = {
    "sparse-logits": (L.SparseCategoricalCrossentropy(True), KL.SparseCategoricalCrossentropy(True), None, INDEX),
    "sparse-softmax": (L.SparseCategoricalCrossentropy(), KL.SparseCategoricalCrossentropy(), SOFT, INDEX),
    "sparse-plain": (L.SparseCategoricalCrossentropy(), KL.SparseCategoricalCrossentropy(), SIG, INDEX),
    "categorical-logits": (L.CategoricalCrossentropy(True), KL.CategoricalCrossentropy(True), None, DISTRIBUTION),
    "categorical-unnormalised": (L.CategoricalCrossentropy(True), KL.CategoricalCrossentropy(True), None, UNNORMALISED),
    "categorical-softmax": (L.CategoricalCrossentropy(False, 0.1), KL.CategoricalCrossentropy(False, 0.1), SOFT, DISTRIBUTION),
    "categorical-plain": (L.CategoricalCrossentropy(False, 0.1), KL.CategoricalCrossentropy(False, 0.1), SIG, DISTRIBUTION),
    "binary-logits": (L.BinaryCrossentropy(True, 0.2), KL.BinaryCrossentropy(True, 0.2), None, BITS),
    "binary-sigmoid": (L.BinaryCrossentropy(), KL.BinaryCrossentropy(), SIG, BITS),
    "binary-plain": (L.BinaryCrossentropy(), KL.BinaryCrossentropy(), SOFT, BITS),
    "mse": (L.MeanSquaredError(), KL.MeanSquaredError(), None, REAL),
    "mae": (L.MeanAbsoluteError(), KL.MeanAbsoluteError(), None, REAL),
    "huber": (L.Huber(0.6), KL.Huber(0.6), None, REAL),
}  # fmt: skip


def build(
    term: losses.Loss | metrics.Metric, activation: str | None, target: np.ndarray
) -> tuple[Function, Node, Node]:
    x = g.batch_input("x", (N, K))
    prediction = x if activation is None else g.make(activation, (x,))
    shape = term.target_shape(prediction.shape)
    assert shape == target.shape
    y = g.batch_input("y", shape)
    value = term.per_sample(prediction, y)
    assert value.shape == (N, 1)
    return Function("f", (x, y), outputs=(("value", value),)), x, value


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_keras(case):
    ours, theirs, activation, target = CASES[case]
    function, x, value = build(ours, activation, target)
    dx = gradients({value: g.const(np.ones((N, 1)))}, [x])[x]
    function = Function("f", function.inputs, outputs=(*function.outputs, ("dx", dx)))
    result = evaluate(function, {"x": LOGITS, "y": target}, {})[0]

    tensor = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    prediction = {None: lambda t: t, SOFT: lambda t: t.softmax(1), SIG: torch.sigmoid}[activation](
        tensor
    )
    per_sample = theirs.call(torch.tensor(target), prediction)
    per_sample.sum().backward()
    np.testing.assert_allclose(result["value"][:, 0], per_sample.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(result["dx"], tensor.grad.numpy(), rtol=2e-5, atol=1e-6)


def test_probabilities_of_softmax_and_sigmoid_are_not_computed():
    for case, op in (
        ("sparse-softmax", SOFT),
        ("categorical-softmax", SOFT),
        ("binary-sigmoid", SIG),
    ):
        ours, _, activation, target = CASES[case]
        function, _, _ = build(ours, activation, target)
        assert op not in {n.op for n in function.nodes()}


def test_logits_that_are_probabilities_stay_logits():
    function, _, _ = build(losses.SparseCategoricalCrossentropy(from_logits=True), SOFT, INDEX)
    assert SOFT in {n.op for n in function.nodes()}


def test_label_smoothing_is_checked():
    y = g.batch_input("y", (2, 3))
    with pytest.raises(GraphError, match=r"^label_smoothing must be in \[0, 1\], not 1.5$"):
        losses.CategoricalCrossentropy(label_smoothing=1.5).per_sample(y, y)


TIES = np.array([[1.0, 3.0, 3.0, 2.0]] * N)
METRICS = {
    "sparse": (metrics.SparseCategoricalAccuracy(), keras.metrics.sparse_categorical_accuracy, None, INDEX, LOGITS),
    "sparse-softmax": (metrics.SparseCategoricalAccuracy(), keras.metrics.sparse_categorical_accuracy, SOFT, INDEX, LOGITS),
    "sparse-ties": (metrics.SparseCategoricalAccuracy(), keras.metrics.sparse_categorical_accuracy, None, INDEX, TIES),
    "categorical": (metrics.CategoricalAccuracy(), keras.metrics.categorical_accuracy, None, DISTRIBUTION, LOGITS),
    "categorical-ties": (metrics.CategoricalAccuracy(), keras.metrics.categorical_accuracy, None, TIES, TIES),
    "binary": (metrics.BinaryAccuracy(), keras.metrics.BinaryAccuracy()._fn, SIG, BITS, LOGITS),
    "binary-threshold": (metrics.BinaryAccuracy(0.8), lambda t, p: keras.metrics.BinaryAccuracy(threshold=0.8)._fn(t, p, 0.8), SIG, BITS, LOGITS),
    "binary-logits": (metrics.BinaryAccuracy(), keras.metrics.BinaryAccuracy()._fn, None, BITS, LOGITS),
    "mse": (metrics.mean_squared_error(), keras.losses.mean_squared_error, None, REAL, LOGITS),
    "mae": (metrics.mean_absolute_error(), keras.losses.mean_absolute_error, None, REAL, LOGITS),
}  # fmt: skip


@pytest.mark.parametrize("case", METRICS)
def test_metric_equals_keras(case):
    ours, theirs, activation, target, x = METRICS[case]
    function, _, _ = build(ours, activation, target)
    result = evaluate(function, {"x": x, "y": target}, {})[0]["value"][:, 0]
    tensor = torch.tensor(x)
    prediction = {None: lambda t: t, SOFT: lambda t: t.softmax(1), SIG: torch.sigmoid}[activation](
        tensor
    )
    expected = theirs(torch.tensor(target), prediction).numpy()
    expected = expected.mean(axis=1) if expected.ndim == 2 else expected
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_first_of_equal_outputs_is_the_prediction():
    result = [
        evaluate(
            build(metrics.SparseCategoricalAccuracy(), None, INDEX)[0],
            {"x": TIES, "y": np.full((N, 1), float(k))},
            {},
        )[0]["value"].sum()
        for k in range(K)
    ]
    assert result == [0, N, 0, 0]
