"""Keras models with fewer tiles of samples than the machine has cores, which then share the layers' channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.test_cores import compiled, samples, small_tiles

from fpgrad import FPGA
from fpgrad.emulator.timing import run_cycles
from fpgrad.flow.build import make_executor
from fpgrad.flow.estimate import useful_macs

L = keras.layers
SAMPLES = 12


def perceptron(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [L.Input((6,)), L.Dense(48, "relu"), L.Dense(48, "tanh"), L.Dense(3, "softmax")]
    return compiled(keras.Sequential(layers, name="perceptron"), **options)


def normalised(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [L.Input((6,)), L.Dense(48), L.BatchNormalization(), L.ReLU(), L.Dense(3, "softmax")]
    return compiled(keras.Sequential(layers, name="normalised"), **options)


def convolutional(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((6, 6, 1)),
        L.Conv2D(24, 3, padding="same", name="first"),
        L.BatchNormalization(),
        L.ReLU(),
        L.MaxPooling2D(),
        L.DepthwiseConv2D(3, padding="same", name="depthwise"),
        L.Conv2D(12, 1, activation="relu", name="pointwise"),
        L.Conv2D(24, 3, padding="same", activation="relu", name="third"),
        L.Flatten(),
        L.Dense(3, activation="softmax", name="classes"),
    ]
    return compiled(keras.Sequential(layers, name="convolutional"), **options)


def residual(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    images = L.Input((4, 4, 2))
    trunk = L.Conv2D(24, 3, padding="same", activation="relu", name="stem")(images)
    x = L.Conv2D(24, 3, padding="same", name="inner")(trunk)
    x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    x = L.Conv2D(24, 3, padding="same", name="outer")(x)
    x = L.ReLU()(L.Add()([trunk, L.BatchNormalization()(x)]))
    x = L.Dense(3, "softmax", name="classes")(L.GlobalAveragePooling2D()(x))
    return compiled(keras.Model(images, x, name="residual"), **options)


def dropped(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((6,)),
        L.Dense(48, "relu"),
        L.Dropout(0.3, seed=5),
        L.Dense(48, "relu"),
        L.Dropout(0.2, seed=6),
        L.Dense(3, "softmax"),
    ]
    return compiled(keras.Sequential(layers, name="dropped"), **options)


def sgd() -> dict[str, Any]:
    return {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9)}


def fit(
    build: Callable[..., Any],
    cores: int,
    backend: Any = "emulator",
    batch_size: int = 4,
    **options: Any,
) -> tuple[Any, list[np.ndarray], np.ndarray, Any]:
    """What comes of training a new model: history, variables, outputs, and the machine."""
    model = build(**options)
    fpga = FPGA(model, backend=backend, config=small_tiles(cores))
    x, y = samples(model, SAMPLES)
    how: dict[str, Any] = {"epochs": 2, "shuffle": False, "verbose": 0, "validation_split": 0.25}
    history = fpga.fit(x, y, batch_size=batch_size, **how).history
    variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return history, variables, fpga.predict(x, batch_size=batch_size, verbose=0), fpga


def divided(fpga: Any) -> dict[str, str]:
    """How the trained session's layers are shared; whole states and metrics are the same on all cores, to the bit."""
    session = fpga._device.sessions[0].session
    dump = session.executor.dump()
    for name, info in session.meta["states"].items():
        if info["split"] is None:
            rows = dump["vector"][:, info["base"] : info["base"] + info["rows"]]
            np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape), name)
    return session.meta["layers"]


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("build", [perceptron, normalised, convolutional, residual])
def test_training_is_that_of_one_core_but_for_rounding(build, cores):
    one = fit(build, 1, **sgd())
    history, variables, outputs, fpga = fit(build, cores, **sgd())
    assert set(divided(fpga).values()) > {"outputs"}
    for name, values in history.items():
        np.testing.assert_allclose(values, one[0][name], rtol=0.02, err_msg=name)
    for mine, theirs in zip(variables, one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(outputs, one[2], atol=0.02)


@pytest.mark.parametrize(
    ("build", "batch_size"), [(perceptron, 1), (perceptron, 3), (convolutional, 3)]
)
def test_single_samples_on_many_cores(build, batch_size):
    one = fit(build, 1, batch_size=batch_size, **sgd())
    history, variables, outputs, fpga = fit(build, 12, batch_size=batch_size, **sgd())
    assert "outputs" in divided(fpga).values()
    np.testing.assert_allclose(history["loss"], one[0]["loss"], rtol=0.02)
    for mine, theirs in zip(variables, one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.03)
    np.testing.assert_allclose(outputs, one[2], atol=0.02)


def test_sixteen_cores():
    one, some = fit(perceptron, 1, **sgd()), fit(perceptron, 16, **sgd())
    assert "outputs" in divided(some[3]).values()
    for mine, theirs in zip(some[1], one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("build", [perceptron, residual, dropped])
def test_reference_and_emulator_train_to_the_same_bits(build, cores):
    history, variables, outputs, fpga = fit(build, cores)
    divided(fpga)
    again = fit(build, cores, "reference")
    assert history == again[0]
    for mine, theirs in zip(variables, again[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(outputs, again[2])


@pytest.mark.slow
def test_the_rtl_trains_to_the_same_bits_in_as_many_cycles():
    outcome = FPGA(dropped(), config=small_tiles(2)).verify(backend="rtl", steps=2, batch_size=4)
    assert outcome.differing == 0, outcome
    program = FPGA(dropped(), config=small_tiles(2)).program(4)
    rtl = make_executor("rtl", program.config)
    rtl.load_program(program)
    for name, entry in program.entries.items():
        for steps in (1, 2, 7):
            # Where data would be there are zeros: cycles do not depend on them, but on where bursts end.
            bases = [1024 * i for i in range(len(entry.bases))]
            assert run_cycles(program, name, steps) == rtl.run(name, steps, bases).cycles, name


def test_what_cores_have_and_what_is_whole():
    found = {build: fit(build, 2)[3] for build in (convolutional, residual)}
    assert divided(found[convolutional]) == {
        "first": "outputs",
        "depthwise": "groups",
        "pointwise": "inputs",
        "third": "outputs",
        "classes": "inputs",
    }
    assert divided(found[residual]) == {
        "stem": "whole",
        "inner": "outputs",
        "outer": "inputs",
        "classes": "whole",
    }


def test_maps_of_as_many_tiles_as_cores_are_divided_by_samples():
    model = convolutional()
    fpga = FPGA(model, config=small_tiles(2))
    x, y = samples(model, 16)
    for batch_size, shares in ((8, 2), (4, 1), (16, 2)):
        fpga._device.compiled(batch_size, training=True, exact=True)
        found = fpga._device.sessions[-1]
        assert found.batch_size == shares * found.lowered.batch_size
    # The same variables go from one to the other.
    for batch_size in (8, 4):
        fpga.fit(x, y, batch_size=batch_size, verbose=0)
    scores = fpga.evaluate(x, y, batch_size=4, verbose=0)
    np.testing.assert_allclose(scores, fpga.evaluate(x, y, batch_size=8, verbose=0), rtol=0.01)


@pytest.mark.parametrize(("cores", "wide", "shares"), [(2, 96, 1), (3, 97, 3), (4, 4, 4)])
def test_wide_layers_are_divided_by_channels_in_large_batches_too(cores, wide, shares):
    """Their optimizer is then divided; 97 channels are no three parts, and 4 channels no work."""
    keras.utils.set_random_seed(1)
    layers = [L.Input((6,)), L.Dense(wide, "relu"), L.Dense(wide, "relu"), L.Dense(3, "softmax")]
    results = []
    for count in (1, cores):
        keras.utils.set_random_seed(1)
        model = compiled(keras.models.clone_model(keras.Sequential(layers)))
        fpga = FPGA(model, config=small_tiles(count))
        x, y = samples(model, 32)
        history = fpga.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0).history
        results.append(history["loss"])
    assert fpga._device.sessions[0].session.shares == shares
    np.testing.assert_allclose(results[1], results[0], rtol=0.02)


def test_a_machine_that_exists_divides_large_batches_by_samples():
    """What all samples take on each core may have no room in it."""
    model = perceptron()
    fpga = FPGA(model, config=FPGA(model, config=small_tiles(2)).program(16).config)
    assert fpga._device.shares.together(16, training=True) is None
    assert FPGA(model, config=small_tiles(2))._device.shares.together(16, training=True) is not None


def test_weights_that_a_callback_changes_reach_all_cores():
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kernel = self.model.layers[0].kernel
            kernel.assign(kernel * 0.5)

    weights = []
    for cores in (1, 2):
        model = perceptron(**sgd())
        x, y = samples(model, SAMPLES)
        fpga = FPGA(model, config=small_tiles(cores))
        how = {"epochs": 2, "shuffle": False, "verbose": 0, "callbacks": [Halve()]}
        fpga.fit(x, y, batch_size=4, **how)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=0.05, atol=0.01)


def test_metrics_and_outputs_count_once():
    found = []
    for cores in (1, 3):
        options = {"weighted_metrics": ["sparse_categorical_accuracy"], **sgd()}
        model = perceptron(metrics=["accuracy", largest()], **options)
        x, y = samples(model, SAMPLES)
        weights = np.random.default_rng(2).uniform(0.2, 2, SAMPLES)
        fpga = FPGA(model, config=small_tiles(cores))
        how = {"sample_weight": weights, "epochs": 1, "shuffle": False, "verbose": 0}
        history = fpga.fit(x, y, batch_size=5, **how).history
        found.append([v[-1] for v in history.values()])
        found[-1] += fpga.evaluate(x, y, sample_weight=weights, batch_size=3, verbose=0)
    np.testing.assert_allclose(found[1], found[0], rtol=0.01)


def largest() -> Any:
    """The mean of the largest outputs: no metric that the machine has."""
    return keras.metrics.MeanMetricWrapper(
        lambda _, y_pred: keras.ops.max(y_pred, axis=-1), name="largest"
    )


def test_summary():
    fpga = FPGA(residual(), config=small_tiles(2))
    text = " ".join(fpga.summary(batch_size=3).split())
    assert (
        "All cores compute all samples and share layers: by output channels inner; by input channels outer; whole on "
        "each core stem, classes" in text
    )
    assert "A batch of 3 is computed as 4: whole tiles of samples" in text
    one = FPGA(residual(), config=small_tiles(1)).program(4)
    assert useful_macs(fpga.program(4), "train") == useful_macs(one, "train")
