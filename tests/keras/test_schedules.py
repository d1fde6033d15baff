"""Keras models by micro-batches: as layer by layer, within the formats' error; and which way is taken, and why."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.test_cores import (
    SIDE,
    agree,
    compiled,
    convolutional,
    dropped,
    largest,
    normalised,
    perceptron,
    samples,
    small_tiles,
)

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.errors import ConfigError, InvalidArgumentError, MemoryCapacityError
from fpgrad.flow.schedules import listed
from fpgrad.isa.config import MachineConfig
from fpgrad.keras.functions import build_steps

L = keras.layers


def images(channels: int = 1, classes: int = 3, **options):
    """Two convolutions without normalisation."""
    keras.utils.set_random_seed(1)
    last = L.Dense(classes, "sigmoid" if classes == 1 else "softmax")
    layers = [
        L.Input((6, 6, channels)),
        L.Conv2D(4, 3, padding="same", activation="relu"),
        L.MaxPooling2D(),
        L.Conv2D(5, 3, padding="same", activation="relu"),
        L.Flatten(),
        last,
    ]
    model = keras.Sequential(layers, name="images")
    if classes > 1:
        return compiled(model, **options)
    model.compile(options.get("optimizer") or "adam", "binary_crossentropy", metrics=["accuracy"])
    return model


def large(**options):
    """Maps of several bands."""
    keras.utils.set_random_seed(1)
    layers = [
        L.Input((16, 16, 1)),
        L.Conv2D(4, 3, padding="same", activation="relu"),
        L.Conv2D(5, 3, padding="same", activation="relu"),
        L.MaxPooling2D(),
        L.Conv2D(6, 3, padding="same", activation="relu"),
        L.Flatten(),
        L.Dense(3, activation="softmax"),
    ]
    return compiled(keras.Sequential(layers, name="large"), **options)


def fit(build, schedule: str, cores: int = 1, backend="emulator", compiling=None, **options):
    """What comes of training a new model: history, weights, outputs before and after, and the machine."""
    rate = {"optimizer": keras.optimizers.SGD(0.1, momentum=0.9)}
    model = build(**(rate if compiling is None else compiling))
    fpga = FPGA(model, backend=backend, config=small_tiles(cores), schedule=schedule)
    x, y = samples(model)
    if model.output_shape[-1] == 1:
        y = y % 2
    before = fpga.predict(x, batch_size=16, verbose=0)
    how = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0} | options
    history = fpga.fit(x, y, **how).history
    variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return history, variables, before, fpga.predict(x, verbose=0), fpga


def chosen(fpga: Any, batch_size: int = 16) -> str:
    """What the summary says of the schedule."""
    text = fpga.summary(batch_size=batch_size).replace("\n", " ")
    return text.partition("Schedule: ")[2].strip()


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(
    "build", [perceptron, images, lambda **o: images(3, 1, **o)], ids=["dense", "maps", "one class"]
)
def test_training_is_that_of_the_whole_batch_but_for_rounding(build, cores):
    whole = fit(build, "layers", cores, validation_split=0.2)
    history, variables, before, outputs, fpga = fit(build, "samples", cores, validation_split=0.2)
    np.testing.assert_array_equal(before, whole[2])
    for name, values in history.items():
        np.testing.assert_allclose(values, whole[0][name], rtol=0.02, err_msg=name)
    for mine, theirs in zip(variables, whole[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.02)
    np.testing.assert_allclose(outputs, whole[3], atol=0.02)
    if cores > 1:
        agree(fpga)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 13, 50])
@pytest.mark.parametrize("build", [perceptron, images])
def test_batches_of_any_size(build, batch_size):
    how = {"batch_size": batch_size, "epochs": 1}
    whole, parts = fit(build, "layers", **how), fit(build, "samples", **how)
    np.testing.assert_allclose(parts[0]["loss"], whole[0]["loss"], rtol=0.02)
    for mine, theirs in zip(parts[1], whole[1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.05, atol=0.03)
    assert parts[4]._device.sessions[-1].batch_size % SIDE == 0


@pytest.mark.parametrize("build", [dropped, images])
def test_reference_and_emulator_train_to_the_same_bits(build):
    results = [fit(build, "samples", backend=b, epochs=1) for b in ("reference", "emulator")]
    assert results[0][0] == results[1][0]
    for i in (1, 2, 3):
        for mine, theirs in zip(results[0][i], results[1][i], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_metrics_of_the_host_see_the_outputs_of_all_micro_batches():
    found = []
    for schedule in ("layers", "samples"):
        compiling = {"optimizer": keras.optimizers.SGD(0.1), "metrics": [largest()]}
        found.append(fit(perceptron, schedule, compiling=compiling)[0]["largest"])
    np.testing.assert_allclose(found[1], found[0], rtol=0.01)


@pytest.mark.parametrize(
    ("build", "schedule", "batch_size", "words"),
    [
        (images, "auto", 16, "layer by layer: everything is on the chip"),
        (images, "layers", 16, "layer by layer: as asked for"),
        (images, "samples", 16, "4 micro-batches of 4 samples: as asked for"),
        (normalised, "auto", 16, "layer by layer: batch_normalization couples samples"),
        (perceptron, "auto", 7, "layer by layer: the 7 samples of a core are not several whole tiles"),
        (perceptron, "samples", 7, "2 micro-batches of 4 samples: as asked for"),
        (perceptron, "samples", 3, "layer by layer: the 4 samples of a core are not several whole tiles"),
    ],
)  # fmt: skip
def test_the_summary_says_which_and_why(build, schedule, batch_size, words):
    keras.utils.clear_session()
    fpga = FPGA(build(), config=small_tiles(1), schedule=schedule)
    assert chosen(fpga, batch_size) == words


def limited(build, batch_size: int, **shares: float) -> Any:
    """The model on a chip with a part of the memories that it takes layer by layer."""
    free = FPGA(build(), config=small_tiles(1), schedule="layers").program(batch_size).config
    wanted = {"tiles": free.memory.tiles, "rows": free.memory.vector_rows}
    limits = {name: int(wanted[name] * share) for name, share in shares.items()}
    return FPGA(build(), config=Machine(small_tiles(1).formats, **limits))


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.8, r"2 micro-batches of 4 samples: layer by layer it does not fit the chip"),
        (0.9, r"layer by layer: [\d,]+ cycles a step by the cycle model, [\d,]+ by micro-batches"),
        (1.0, r"layer by layer: nothing has to wait in external memory"),
    ],
)
def test_where_something_would_wait_the_faster_way_is_taken(share, words):
    fpga = limited(large, 8, tiles=share)
    said = chosen(fpga, 8)
    assert re.fullmatch(words, said)
    program = fpga.program(8)
    parts = program.meta["functions"]["train"]["micro_batches"]
    assert parts == (2 if said.startswith("2") else 1)
    assert program.config.memory.tiles <= fpga.config.tiles
    numbers = [int(n.replace(",", "")) for n in re.findall(r"\d+,\d+", said)]
    assert numbers == sorted(numbers)
    # The program that was compared is the one that runs.
    x, y = samples(fpga.model, 8)
    fpga.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert fpga._device.sessions[0].session.program is program


def test_a_machine_that_exists_and_is_too_small_for_the_whole_batch():
    def machine(schedule: str) -> MachineConfig:
        fpga = FPGA(images(), config=small_tiles(1), schedule=schedule)
        return fpga.program(32).config

    parts, whole = machine("samples"), machine("layers")
    fpga = FPGA(images(), config=parts)
    assert chosen(fpga, 32).endswith("layer by layer it does not fit the chip")
    assert chosen(FPGA(images(), config=whole), 32).startswith("layer by layer")
    few = replace(parts, memory=replace(parts.memory, tiles=8))
    neither = FPGA(images(), config=few)
    with pytest.raises(MemoryCapacityError) as error:
        neither.program(32)
    said = str(error.value)
    assert "(layer by layer); the model does not fit the machine" in said
    assert said.endswith("(by micro-batches)")


def test_micro_batches_are_larger_where_the_program_would_be_too_long():
    fpga = FPGA(perceptron(), config=small_tiles(1), schedule="samples")
    halves = build_steps(fpga._device.shares.lowered(8, True), 1, 2).functions
    two = compile_functions(halves, small_tiles(1))
    four = fpga.program(16)
    assert two.config.control.vector < four.config.control.vector
    sizes = {"vector_rows": 1024, "inbox_rows": 256, "outbox_rows": 256, "mask_rows": 256}
    memory = replace(two.config.memory, tiles=256, **sizes)
    exists = replace(two.config, memory=memory)
    said = chosen(FPGA(perceptron(), config=exists, schedule="samples"))
    assert said == "2 micro-batches of 8 samples: as asked for"
    short = replace(exists, control=replace(two.config.control, vector=8))
    with pytest.raises(ConfigError, match=r"does not fit the instruction memories: .*vector"):
        FPGA(perceptron(), config=short, schedule="samples").program(16)
    with pytest.raises(ConfigError, match=r"does not fit the instruction memories: .*vector"):
        FPGA(perceptron(), config=short).program(16)


def test_what_is_not_possible_is_refused_with_the_layers_in_its_way():
    keras.utils.clear_session()
    fpga = FPGA(convolutional(), config=small_tiles(1), schedule="samples")
    with pytest.raises(InvalidArgumentError) as error:
        fpga.program(16)
    assert str(error.value) == (
        'schedule="samples" is not possible for this model: batch_normalization couples samples. Use schedule="auto" '
        'or "layers"'
    )
    wrong: Any = "tiles"
    with pytest.raises(InvalidArgumentError) as error:
        FPGA(perceptron(), schedule=wrong)
    assert str(error.value) == "schedule must be one of auto, layers, samples, not 'tiles'"


def test_many_reasons_are_listed_shortly():
    assert listed(["a", "b"]) == "a; b"
    assert listed(list("abcde")) == "a; b; c; and 2 more"


def test_verification():
    outcome = FPGA(images(), config=small_tiles(2), schedule="samples").verify(
        backend="reference", steps=2, batch_size=13
    )
    assert outcome.differing == 0
