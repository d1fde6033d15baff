"""Keras models on machines of several cores: as on one, within the formats' error, and the same bits everywhere."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.keras import machine_of

L = keras.layers
SIDE = 4


def small_tiles(cores: int) -> Machine:
    memory = MemoryConfig(dram_words_per_cycle=SIDE)
    return Machine(MachineConfig(MatrixConfig(TileFormat(SIDE, 8)), memory=memory, cores=cores))


def perceptron(**options):
    keras.utils.set_random_seed(1)
    # Seven channels are no equal parts: these models are divided by samples alone.
    layers = [L.Input((6,)), L.Dense(7, activation="relu"), L.Dense(3, activation="softmax")]
    return compiled(keras.Sequential(layers, name="perceptron"), **options)


def normalised(**options):
    keras.utils.set_random_seed(1)
    layers = [L.Input((6,)), L.Dense(7), L.BatchNormalization(), L.ReLU(), L.Dense(3, "softmax")]
    return compiled(keras.Sequential(layers, name="normalised"), **options)


def convolutional(**options):
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((6, 6, 1)),
        L.Conv2D(4, 3, padding="same"),
        L.BatchNormalization(),
        L.ReLU(),
        L.MaxPooling2D(),
        L.Conv2D(5, 3, padding="same", activation="relu"),
        L.Flatten(),
        L.Dense(3, activation="softmax"),
    ]
    return compiled(keras.Sequential(layers, name="convolutional"), **options)


def dropped(**options):
    keras.utils.set_random_seed(1)
    layers = [L.Input((6,)), L.Dropout(0.3, seed=5), L.Dense(3, activation="softmax")]
    return compiled(keras.Sequential(layers, name="dropped"), **options)


def compiled(model, optimizer=None, **options):
    options = {"metrics": ["accuracy"]} | options
    model.compile(optimizer or "adam", "sparse_categorical_crossentropy", **options)
    return model


def samples(model, count: int = 50):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *model.input_shape[1:])).astype(np.float32)
    return x, rng.integers(0, 3, count)


def fit(build, cores: int, backend="emulator", compiling=None, **options):
    """What comes of training a new model: history, weights, outputs, and the machine."""
    model = build(**(compiling or {}))
    fpga = FPGA(model, backend=backend, config=small_tiles(cores))
    x, y = samples(model)
    how = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0} | options
    history = fpga.fit(x, y, **how).history
    variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return history, variables, fpga.predict(x, verbose=0), fpga


def agree(fpga: Any) -> None:
    """Check that all cores hold the same weights, statistics and moments."""
    for compiled in fpga._device.sessions:
        session = compiled.session
        dump = session.executor.dump()
        for name, info in session.meta["states"].items():
            rows = dump["vector"][:, info["base"] : info["base"] + info["rows"]]
            if info["role"] != "metric":
                np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape), name)


@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("build", [perceptron, normalised, convolutional])
def test_training_is_that_of_one_core_but_for_rounding(build, cores):
    rate = {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}
    one = fit(build, 1, compiling=rate, validation_split=0.2)
    rate = {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}
    history, variables, outputs, fpga = fit(build, cores, compiling=rate, validation_split=0.2)
    agree(fpga)
    for name, values in history.items():
        np.testing.assert_allclose(values, one[0][name], rtol=0.02, err_msg=name)
    for mine, theirs in zip(variables, one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(outputs, one[2], atol=0.02)


@pytest.mark.parametrize("build", [perceptron, dropped])
@pytest.mark.parametrize("cores", [2, 3])
def test_reference_and_emulator_train_to_the_same_bits(build, cores):
    results = [fit(build, cores, backend) for backend in ("reference", "emulator", "emulator")]
    for history, variables, outputs, fpga in results[1:]:
        agree(fpga)
        assert history == results[0][0]
        for mine, theirs in zip(variables, results[0][1], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(outputs, results[0][2])


@pytest.mark.parametrize("batch_size", [1, 5, 13, 50])
@pytest.mark.parametrize("build", [perceptron, convolutional])
def test_batches_of_any_size(build, batch_size):
    how = {"batch_size": batch_size, "epochs": 1}
    rate = {"optimizer": keras.optimizers.SGD(0.05)}
    one = fit(build, 1, compiling=rate, **how)
    rate = {"optimizer": keras.optimizers.SGD(0.05)}
    history, variables, _, fpga = fit(build, 4, compiling=rate, **how)
    agree(fpga)
    np.testing.assert_allclose(history["loss"], one[0]["loss"], rtol=0.02)
    for mine, theirs in zip(variables, one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.03)


def test_weights_and_metrics_count_over_the_whole_batch():
    model = perceptron()
    x, y = samples(model)
    weights = np.random.default_rng(2).uniform(0.2, 2, len(x))
    how = {"sample_weight": weights, "epochs": 1, "shuffle": False, "verbose": 0}
    metrics = {"weighted_metrics": ["sparse_categorical_accuracy"]}
    found = []
    for cores in (1, 3):
        model = perceptron(optimizer=keras.optimizers.SGD(0.1), **metrics)
        fpga = FPGA(model, config=small_tiles(cores))
        history = fpga.fit(x, y, batch_size=20, **how).history
        scores = fpga.evaluate(x, y, sample_weight=weights, batch_size=11, verbose=0)
        found.append(([v[-1] for v in history.values()], scores))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0.01)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=0.01)


def test_metrics_of_the_host_see_the_outputs_of_all_cores():
    found = []
    for cores in (1, 4):
        compiling = {"optimizer": keras.optimizers.SGD(0.1), "metrics": [largest()]}
        found.append(fit(perceptron, cores, compiling=compiling)[0]["largest"])
    np.testing.assert_allclose(found[1], found[0], rtol=0.01)


def largest():
    """The mean of the largest outputs: no metric that the machine has."""
    return keras.metrics.MeanMetricWrapper(
        lambda _, y_pred: keras.ops.max(y_pred, axis=-1), name="largest"
    )


def test_weights_that_a_callback_changes_reach_all_cores():
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.layers[0].kernel
            kernel.assign(kernel * 0.5)

    _, _, _, fpga = fit(perceptron, 2, callbacks=[Halve()])
    agree(fpga)


def test_a_resumed_run_goes_on_where_it_stopped():
    runs = []
    for epochs in ([2], [1, 1]):
        model = perceptron()
        x, y = samples(model)
        fpga = FPGA(model, config=small_tiles(2))
        for some in epochs:
            fpga.fit(x, y, batch_size=16, epochs=some, shuffle=False, verbose=0)
        runs.append(model.get_weights())
    for mine, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_machine_that_exists():
    model = perceptron()
    fpga = FPGA(model, config=MachineConfig(cores=4))
    x, y = samples(model)
    fpga.fit(x, y, verbose=0)
    agree(fpga)
    assert fpga._device.sessions[0].batch_size == 32


def test_summary_and_verification():
    fpga = FPGA(perceptron(), config=small_tiles(2))
    text = fpga.summary(batch_size=16)
    assert "perceptron on 2 cores, 32 MAC lanes: 4x4 tiles" in text
    # Kernels of 6x7 and 7x3, biases of 7 and 3.
    rows = 2 * 2 * 4 + 2 * 1 * 4 + 2 + 1
    assert f"Cores: each sends the others {rows} rows of 4 numbers a step" in text.replace(
        "\n", " "
    )
    assert "A batch of 15 is computed as 16: equal parts" in fpga.summary(batch_size=15)
    outcome = fpga.verify(backend="reference", steps=2, batch_size=7)
    assert outcome.differing == 0


def test_machine_of():
    assert machine_of(3).formats.cores == 3
