"""The ladder of equality on whole training runs: reference == emulator (every level) == RTL, zero differing bits."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator import EmulatorExecutor, available_levels
from fpgrad.emulator.timing import run_cycles
from fpgrad.flow.build import compile_model, make_executor
from fpgrad.formats import TileFormat
from fpgrad.host.session import Session
from fpgrad.isa.compare import first_difference
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig

EPOCHS = 3


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, neighbouring pixels averaged: 32 features in [0, 1]."""
    x, y = map(np.asarray, load_digits(return_X_y=True))
    return (x.reshape(-1, 32, 2).mean(-1) / 16).astype(np.float32), y


def readme_model() -> keras.Model:
    """The model of the README, always with the same initial weights."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((32,)),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def run(**options) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    """Weights and history after three epochs on an executor."""
    x, y = digits()
    model = readme_model()
    fpga = FPGA(model, **options)
    history = fpga.fit(
        x[:1500], y[:1500], epochs=EPOCHS, verbose=0, validation_data=(x[1500:], y[1500:])
    )
    return model.get_weights(), history.history


@pytest.fixture(scope="module")
def specification() -> tuple[list[np.ndarray], dict[str, list[float]]]:
    return run(backend="reference")


def assert_same(got, wanted) -> None:
    for a, b in zip(got[0], wanted[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert got[1] == wanted[1]


def test_training_learns(specification):
    accuracy = specification[1]["accuracy"]
    assert accuracy[0] < accuracy[1] < accuracy[2]
    assert accuracy[2] > 0.7


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", available_levels())
def test_emulator_equals_reference(specification, level: str, threads: int):
    def open_session(functions) -> Session:
        program = compile_model(functions)
        return Session(program, EmulatorExecutor(program.config, threads=threads, level=level))

    assert_same(run(open_session=open_session), specification)


def test_rtl_equals_reference(specification):
    assert_same(run(backend="rtl"), specification)


@pytest.mark.parametrize("side", [4, 16])
def test_cycle_model_is_exact(side: int):
    formats = MachineConfig(
        MatrixConfig(TileFormat(side)), memory=MemoryConfig(dram_words_per_cycle=side)
    )
    program = compile_model(
        FPGA(readme_model()).functions(32), None if side == 16 else Machine(formats)
    )
    rtl = make_executor("rtl", program.config)
    rtl.load_program(program)
    for name, entry in program.entries.items():
        for steps in (1, 2, 7, 20):
            # Where data would be there are zeros: cycles do not depend on them.
            bases = [1000 * i for i in range(len(entry.bases))]
            assert run_cycles(program, name, steps) == rtl.run(name, steps, bases).cycles, name


def test_a_flipped_bit_is_found_and_named():
    x, y = digits()
    sessions: list[Session] = []
    executors: list[EmulatorExecutor] = []

    def open_session(functions) -> Session:
        program = compile_model(functions)
        executors.append(EmulatorExecutor(program.config))
        sessions.append(Session(program, executors[-1]))
        return sessions[-1]

    for _ in range(2):
        FPGA(readme_model(), open_session=open_session).fit(
            x[:64], y[:64], epochs=1, shuffle=False, verbose=0
        )
    left, right = executors
    program = sessions[0].program
    assert first_difference(left.dump(), right.dump(), program) is None
    state = program.meta["states"]["hidden/kernel"]
    row = state["base"] + 5
    value = int(left.dump()["vector"][row, 3])
    left.poke("vector", (row, 3), value ^ 1)
    found = first_difference(left.dump(), right.dump(), program)
    assert found is not None
    assert "hidden/kernel" in found
    assert f"row {row}, lane 3" in found
