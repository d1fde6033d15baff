"""Training on an exact session is what Keras does: same start, same batch order, many models."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.keras.exact import ExactSession

from fpgrad.keras import FPGA, functions

L = keras.layers
SAMPLES, FEATURES, CLASSES = 50, 7, 4


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Float64 in Keras, and Adam's epsilon where Keras has it: nothing is left to tolerate."""
    monkeypatch.setattr(functions, "_LARGE_EPSILON", 0.0)
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def data(target: str = "sparse"):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((SAMPLES, FEATURES))
    labels = rng.integers(0, CLASSES, SAMPLES)
    y = {
        "sparse": labels,
        "onehot": np.eye(CLASSES)[labels],
        "binary": (rng.random((SAMPLES, CLASSES)) > 0.5).astype(float),
        "values": rng.standard_normal((SAMPLES, CLASSES)),
    }[target]
    return x.astype(np.float32), y.astype(np.float32) if target != "sparse" else y


def mlp(last: str | None = "softmax", hidden: str = "tanh", **options):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            L.Input((FEATURES,)),
            L.Dense(9, activation=hidden, **options),
            L.Dense(CLASSES, activation=last),
        ]
    )


def check(build, x, y, *, epochs=3, batch_size=8, tolerance=1e-5, **fit):
    """Fits two models from ``build``, by Keras and by an exact session; compares everything."""
    twin, model = build(), build()
    twin.set_weights(model.get_weights())
    expected = twin.fit(
        x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **fit
    ).history
    fpga = FPGA(model, open_session=ExactSession)
    history = fpga.fit(
        x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **fit
    ).history
    assert set(history) == set(expected)
    for name in expected:
        np.testing.assert_allclose(
            history[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name
        )
    for mine, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(mine),
            keras.ops.convert_to_numpy(theirs),
            rtol=tolerance,
            atol=tolerance,
            err_msg=mine.path,
        )
    for mine, theirs in zip(model.optimizer.variables, twin.optimizer.variables, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(mine),
            keras.ops.convert_to_numpy(theirs),
            rtol=1e-4,
            atol=1e-5,
            err_msg=mine.path,
        )
    np.testing.assert_allclose(
        fpga.predict(x, verbose=0), twin.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )
    return fpga


LOSSES = [
    ("sparse", "softmax", lambda: "sparse_categorical_crossentropy", ["accuracy"]),
    ("sparse", None, lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["acc"]),
    ("onehot", "softmax", lambda: "categorical_crossentropy", ["accuracy"]),
    (
        "onehot",
        None,
        lambda: keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        ["accuracy", "categorical_crossentropy"],
    ),
    ("onehot", "sigmoid", lambda: "categorical_crossentropy", ["mse"]),
    ("binary", "sigmoid", lambda: "binary_crossentropy", ["binary_accuracy"]),
    (
        "binary",
        None,
        lambda: keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2),
        [keras.metrics.BinaryAccuracy(threshold=0.3)],
    ),
    ("binary", "hard_sigmoid", lambda: "binary_crossentropy", []),
    ("values", None, lambda: "mse", ["mae"]),
    ("values", None, lambda: "mean_absolute_error", ["mse"]),
    ("values", None, lambda: keras.losses.Huber(delta=0.6), []),
    ("values", None, lambda: keras.losses.MeanSquaredError(reduction="sum"), ["mae"]),
    (
        "sparse",
        "softmax",
        lambda: keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"),
        ["accuracy"],
    ),
]


@pytest.mark.parametrize(("target", "last", "loss", "metrics"), LOSSES)
def test_losses_and_metrics(target, last, loss, metrics):
    x, y = data(target)

    def build():
        model = mlp(last)
        model.compile(keras.optimizers.SGD(0.05), loss=loss(), metrics=metrics)
        return model

    check(build, x, y)


OPTIMIZERS = [
    lambda: keras.optimizers.SGD(0.1),
    lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda: keras.optimizers.SGD(0.5, clipvalue=0.02),
    lambda: keras.optimizers.RMSprop(0.01),
    lambda: keras.optimizers.RMSprop(0.01, rho=0.8, momentum=0.5, centered=True, epsilon=1e-4),
    lambda: keras.optimizers.Adam(0.01),
    lambda: keras.optimizers.Adam(0.01, beta_1=0.8, beta_2=0.99, epsilon=1e-3, amsgrad=True),
    lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
    lambda: keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.8)),
    lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.1, 0.01])
    ),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(optimizer):
    x, y = data()

    def build():
        model = mlp()
        model.compile(optimizer(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(build, x, y)


ACTIVATIONS = [
    "linear",
    "relu",
    "relu6",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "softmax",
    "gelu",
    "silu",
    "elu",
    "softplus",
    "exponential",
    "hard_sigmoid",
    "hard_silu",
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x, y = data("values")

    def build():
        model = mlp(None, hidden=activation)
        model.compile(keras.optimizers.SGD(0.05), loss="mse")
        return model

    check(build, x, y, epochs=2)


LAYERS = {
    "activation": lambda: [L.Dense(6), L.Activation("relu")],
    "relu": lambda: [L.Dense(6), L.ReLU(max_value=1.0, negative_slope=0.1)],
    "leaky_relu": lambda: [L.Dense(6), L.LeakyReLU(0.3)],
    "elu": lambda: [L.Dense(6), L.ELU(0.7)],
    "no bias": lambda: [L.Dense(6, use_bias=False, activation="relu")],
    "batch norm": lambda: [L.Dense(6), L.BatchNormalization(momentum=0.8), L.ReLU()],
    "batch norm, bare": lambda: [L.Dense(6), L.BatchNormalization(scale=False, center=False)],
    "layer norm": lambda: [L.Dense(6), L.LayerNormalization(), L.ReLU()],
    "layer norm, bare": lambda: [L.Dense(6), L.LayerNormalization(scale=False, center=False)],
    "reshape": lambda: [L.Dense(6), L.Reshape((2, 3)), L.Flatten(), L.Dense(5, "tanh")],
    "identity": lambda: [L.Dense(6), L.Identity(), L.Dropout(0.0)],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    x, y = data()

    def build():
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [L.Input((FEATURES,)), *LAYERS[name](), L.Dense(CLASSES), L.Softmax()]
        )
        model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
        return model

    # Not 8: batch statistics of the 2 samples left over amplify Keras's own rounding.
    check(build, x, y, batch_size=9)


def test_functional_nested_and_shared():
    x, y = data()

    def build():
        keras.utils.set_random_seed(2)
        block = keras.Sequential([L.Input((FEATURES,)), L.Dense(FEATURES, "relu")], name="block")
        inner = L.Input((FEATURES,))
        branch = keras.Model(inner, L.Multiply()([L.Dense(FEATURES)(inner), inner]), name="branch")
        inputs = L.Input((FEATURES,))
        a = block(inputs)
        b = branch(block(a))
        c = L.Concatenate()([L.Add()([a, b]), L.Average()([a, inputs]), L.Subtract()([b, inputs])])
        d = L.Maximum()([c, L.Minimum()([c * c, c])])
        model = keras.Model(inputs, L.Dense(CLASSES, "softmax")(d))
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(build, x, y)


def test_frozen_layers_keep_their_weights():
    x, y = data()
    built = []

    def build():
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                L.Input((FEATURES,)),
                L.Dense(6, trainable=False),
                L.BatchNormalization(trainable=False),
                L.Dense(CLASSES, "softmax"),
            ]
        )
        model.compile("adam", loss="sparse_categorical_crossentropy")
        built.append((model, model.layers[0].get_weights()[0]))
        return model

    check(build, x, y)
    for model, before in built:
        np.testing.assert_array_equal(model.layers[0].get_weights()[0], before)


def test_regularizers():
    x, y = data()

    def build():
        model = mlp(kernel_regularizer=keras.regularizers.L1L2(0.01, 0.02), bias_regularizer="l1")
        model.compile("sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(build, x, y, validation_split=0.2)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_sample_weights_and_weighted_metrics(reduction):
    x, y = data()
    weights = np.random.default_rng(1).random(SAMPLES).astype(np.float32)

    def build():
        model = mlp()
        model.compile(
            "adam",
            loss=keras.losses.SparseCategoricalCrossentropy(reduction=reduction),
            metrics=["accuracy"],
            weighted_metrics=["sparse_categorical_crossentropy"],
        )
        return model

    check(build, x, y, sample_weight=weights)


def test_class_weights():
    x, y = data()

    def build():
        model = mlp()
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(build, x, y, class_weight={0: 2.0, 1: 0.5})


def test_metrics_on_the_host():
    x, y = data("binary")

    def build():
        model = mlp("sigmoid")
        model.compile(
            "adam", loss="binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")]
        )
        return model

    check(build, x, y, validation_data=data("binary"))


def test_callbacks_that_act():
    x, y = data()

    def build():
        model = mlp()
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(
        build,
        x,
        y,
        epochs=4,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, _: 0.02 * 0.5**epoch)],
        validation_split=0.3,
    )
