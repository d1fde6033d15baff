"""The whole path on real executors: the same bits everywhere, and close to Keras in fp32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from fpgrad import FPGA
from fpgrad.keras.demo import digits, digits_model, train_digits

EXAMPLES = Path(__file__).parents[2] / "examples"
L = keras.layers


def small(optimizer="adam"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            L.Input((5,), name="x"),
            L.Dense(6, activation="relu", name="hidden"),
            L.Dropout(0.25, seed=3),
            L.Dense(3, activation="softmax", name="classes"),
        ],
        name="small",
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 5)).astype(np.float32), rng.integers(0, 3, 50)


def test_reference_and_emulator_train_to_the_same_bits(data):
    x, y = data
    results = []
    for backend in ("reference", "emulator"):
        model = small()
        fpga = FPGA(model, backend=backend)
        history = fpga.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
        results.append((history, model.get_weights(), fpga.predict(x, verbose=0)))
    (history, weights, outputs), (others, other_weights, other_outputs) = results
    assert history == others
    for mine, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(outputs, other_outputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_epochs_that_nobody_watches_train_to_the_same_bits(data, weighted, batch_size):
    x, y = data
    weights = np.random.default_rng(1).uniform(0.5, 2, len(x)) if weighted else None
    results = []
    for callbacks in (None, [keras.callbacks.Callback()]):
        model = small()
        model.compile(
            "adam",
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            weighted_metrics=["sparse_categorical_accuracy"],
        )
        fpga = FPGA(model)
        keras.utils.set_random_seed(5)
        how = {"batch_size": batch_size, "sample_weight": weights, "verbose": 0}
        fpga.fit(x, y, **how)
        history = fpga.fit(x, y, epochs=7, callbacks=callbacks, **how)
        assert history.epoch == list(range(7))
        assert int(model.optimizer.iterations) == 8 * -(-50 // batch_size)
        variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
        results.append((history.history, variables))
    (history, variables), (others, other_variables) = results
    assert history == others
    for mine, theirs in zip(variables, other_variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_how_steps_are_grouped_does_not_change_a_bit(data):
    x, y = data

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

    weights = []
    for callbacks in ([], [Watch()]):
        model = small()
        FPGA(model).fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
        weights.append(model.get_weights())
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_streams_and_arrays_train_to_the_same_bits(data):
    x, y = data
    as_arrays, as_stream = small(), small()
    FPGA(as_arrays).fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)

    def batches():
        while True:
            for start in range(0, 50, 8):
                yield x[start : start + 8], y[start : start + 8]

    FPGA(as_stream).fit(batches(), steps_per_epoch=7, epochs=2, shuffle=False, verbose=0)
    for mine, theirs in zip(as_arrays.get_weights(), as_stream.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_verify_finds_no_difference_and_leaves_the_model_alone():
    model = small()
    before = model.get_weights()
    outcome = FPGA(model, backend="reference").verify(against="emulator", steps=2, batch_size=8)
    assert str(outcome).startswith("reference against emulator, 2 training steps: 0 of ")
    for mine, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_summary_names_the_users_layers():
    text = FPGA(small()).summary(clock_hz=50e6, batch_size=16)
    assert text.startswith("small on 256 MAC lanes")
    for words in ("hidden", "classes", "cycles by the cycle model for 16 samples", "at 50 MHz"):
        assert words in text


def test_demonstration_learns_as_keras_does():
    result = train_digits(epochs=4, verbose=0)
    assert result.accuracy == pytest.approx(result.keras_accuracy, abs=0.02)
    assert result.loss == pytest.approx(result.keras_loss, rel=0.02)
    assert result.cycles_per_step is not None
    assert result.cycles_per_step < 2500
    assert result.steps == 4 * 44


def test_digits_are_32_numbers_from_0_to_1():
    x_train, y_train, x_test, y_test = digits()
    assert x_train.shape == (1438, 32)
    assert x_test.shape == (359, 32)
    assert 0.0 <= x_train.min() <= x_train.max() <= 1.0
    assert set(y_train) == set(y_test) == set(range(10))
    assert digits_model().count_params() == 32 * 64 + 64 + 64 * 10 + 10


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_run(name):
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name], check=False, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("backend", ["emulator", "reference"])
def test_batches_of_one(backend):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4, activation="softmax")]
    )
    model.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    x = np.random.default_rng(0).random((8, 3), dtype=np.float32)
    y = np.arange(8) % 4
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy")
    FPGA(model, backend=backend).fit(x, y, batch_size=1, shuffle=False, verbose=0)
    twin.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)
