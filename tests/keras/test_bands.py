"""Keras models with fewer tiles of samples than the machine has cores, which then share maps by their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.test_cores import compiled, samples, small_tiles
from tests.keras.test_split import divided, fit, sgd
from tests.ladder.test_streaming_cycles import gather_in_order

from fpgrad import FPGA
from fpgrad.emulator.timing import run_cycles
from fpgrad.errors import MemoryCapacityError
from fpgrad.flow.build import make_executor
from fpgrad.flow.estimate import useful_macs
from fpgrad.isa.config import ControlConfig
from fpgrad.keras import schedules

L = keras.layers


def narrow(size: int = 8, **options: Any) -> Any:
    """Four channels, a tile of them: nothing is gained by dividing these."""
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((size, size, 1)),
        L.Conv2D(4, 3, padding="same", name="first"),
        L.BatchNormalization(name="norm"),
        L.ReLU(),
        L.Conv2D(4, 3, padding="same", activation="relu", name="second"),
        L.MaxPooling2D(),
        L.Conv2D(4, 3, padding="same", activation="relu", name="third"),
        L.Flatten(),
        L.Dense(3, activation="softmax", name="classes"),
    ]
    return compiled(keras.Sequential(layers, name="narrow"), **options)


def residual(**options: Any) -> Any:
    keras.utils.set_random_seed(1)
    images = L.Input((8, 8, 2))
    trunk = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(images)
    x = L.Conv2D(4, 3, strides=2, padding="same", name="inner")(trunk)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.Dropout(0.2, seed=3)(x)
    x = L.Conv2D(4, 3, padding="same", name="outer")(x)
    trunk = L.Conv2D(4, 1, strides=2, name="beside")(trunk)
    x = L.ReLU()(L.Add()([trunk, L.BatchNormalization()(x)]))
    x = L.Dense(3, "softmax", name="classes")(L.GlobalAveragePooling2D()(x))
    return compiled(keras.Model(images, x, name="residual"), **options)


def mapped(**options: Any) -> Any:
    """Its outputs are a map, put together of all cores' bands."""
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((8, 8, 1)),
        L.Conv2D(4, 3, padding="same", activation="relu", name="first"),
        L.Conv2D(4, 3, padding="same", activation="relu", name="second"),
        L.Conv2D(1, 3, padding="same", name="image"),
    ]
    model = keras.Sequential(layers, name="mapped")
    model.compile(options.get("optimizer", "sgd"), "mean_squared_error")
    return model


@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("build", [narrow, residual])
def test_training_is_that_of_one_core_but_for_rounding(build, cores):
    options = sgd() if build is narrow else {}
    steps = {"optimizer": keras.optimizers.SGD(0.0)} if build is residual else options
    one = fit(build, 1, **steps)
    steps = {"optimizer": keras.optimizers.SGD(0.0)} if build is residual else sgd()
    history, variables, outputs, fpga = fit(build, cores, **steps)
    assert "positions" in divided(fpga).values()
    for name, values in history.items():
        if build is narrow:
            np.testing.assert_allclose(values, one[0][name], rtol=0.02, err_msg=name)
    for mine, theirs in zip(variables, one[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(outputs, one[2], atol=0.03)


@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("build", [narrow, residual])
def test_reference_and_emulator_train_to_the_same_bits(build, cores):
    history, variables, outputs, fpga = fit(build, cores)
    assert "positions" in divided(fpga).values()
    again = fit(build, cores, "reference")
    assert history == again[0]
    for mine, theirs in zip(variables, again[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(outputs, again[2])


def test_outputs_that_are_maps():
    found = []
    for cores in (1, 2):
        model = mapped()
        fpga = FPGA(model, config=small_tiles(cores))
        x = np.random.default_rng(1).standard_normal((8, 8, 8, 1)).astype(np.float32)
        fpga.fit(x, x, batch_size=4, epochs=2, shuffle=False, verbose=0)
        scores = np.ravel(fpga.evaluate(x, x, batch_size=4, verbose=0))
        found.append((scores, fpga.predict(x, batch_size=4, verbose=0)))
    assert set(divided(fpga).values()) == {"positions"}
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0.02)
    np.testing.assert_allclose(found[1][1], found[0][1], atol=0.05)


@pytest.mark.slow
def test_the_rtl_trains_to_the_same_bits_in_as_many_cycles():
    outcome = FPGA(residual(), config=small_tiles(2)).verify(backend="rtl", steps=2, batch_size=4)
    assert outcome.differing == 0, outcome
    program = FPGA(residual(), config=small_tiles(2)).program(4)
    assert "positions" in program.meta["layers"].values()
    rtl = make_executor("rtl", program.config)
    rtl.load_program(program)
    for name, entry in program.entries.items():
        for steps in (1, 3):
            bases = [1024 * i for i in range(len(entry.bases))]
            gather_in_order(program, rtl, steps, bases, name)
            assert run_cycles(program, name, steps) == rtl.run(name, steps, bases).cycles, name


@pytest.mark.parametrize(("size", "how"), [(8, "positions"), (7, "whole")])
def test_what_cannot_be_divided_is_whole(size, how):
    """Seven rows are no equal bands, and four channels no two tiles."""
    fpga = FPGA(narrow(size), config=small_tiles(2))
    model = narrow(size)
    x, y = samples(model, 8)
    fpga.fit(x, y, batch_size=4, verbose=0)
    layers = fpga._device.sessions[0].session.meta["layers"]
    assert layers.get("second", "whole") == how


def test_summary():
    fpga = FPGA(narrow(), config=small_tiles(2))
    text = " ".join(fpga.summary(batch_size=3).split())
    assert (
        "All cores compute all samples and share layers: by rows of their maps first, second"
        in text
    )
    one = FPGA(narrow(), config=small_tiles(1)).program(4)
    assert useful_macs(fpga.program(4), "train") == pytest.approx(
        useful_macs(one, "train"), rel=0.01
    )


def test_a_machine_that_exists(monkeypatch: pytest.MonkeyPatch):
    """One that has room for bands runs them; one that has not divides otherwise, here samples."""
    made = FPGA(narrow(), config=small_tiles(1)).program(4).config
    memory = replace(made.memory, vector_rows=4096, inbox_rows=1024, outbox_rows=1024)
    control = ControlConfig(load=512, matrix=512, vector=2048, store=512)
    made = replace(made, cores=2, memory=memory, control=control)

    def how() -> str | None:
        return FPGA(narrow(), config=made).program(4).meta["layers"].get("second")

    def without_room(functions: Any, config: Any) -> Any:
        if any(n.attrs.get("cores", 1) > 1 for f in functions.values() for n in f.nodes()):
            return MemoryCapacityError("no room for bands")
        return attempt(functions, config)

    assert how() == "positions"
    attempt = schedules.attempt
    monkeypatch.setattr(schedules, "attempt", without_room)
    assert how() is None
