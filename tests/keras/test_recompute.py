"""Keras models whose backward pass computes activations again: the bits of those that keep them, and which is chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.test_cores import compiled, convolutional, samples, small_tiles

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.errors import InvalidArgumentError, MemoryCapacityError

L = keras.layers


def images(activation: str = "relu", *, normalise: bool = False, rate: float = 0.0, side: int = 8):
    """Two convolutions over maps of side x side."""
    keras.utils.set_random_seed(1)
    layers: list[Any] = [L.Input((side, side, 1), name="x")]
    for i in range(2):
        layers.append(L.Conv2D(5, 3, padding="same", name=f"conv{i}"))
        layers += [L.BatchNormalization(name=f"norm{i}")] if normalise else []
        layers.append(L.Activation(activation, name=f"act{i}"))
        layers += [L.Dropout(rate, seed=i, name=f"drop{i}")] if rate else []
    layers += [L.MaxPooling2D(name="pool"), L.Flatten(name="flat")]
    layers.append(L.Dense(3, activation="softmax", name="dense"))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    return compiled(keras.Sequential(layers, name="images"), optimizer)


def dense(activation: str):
    """A deep perceptron."""
    keras.utils.set_random_seed(1)
    hidden = [L.Dense(9, activation=activation, name=f"dense{i}") for i in range(4)]
    norm = L.LayerNormalization(name="norm")
    layers = [
        L.Input((6,), name="x"),
        *hidden[:2],
        norm,
        *hidden[2:],
        L.Dense(3, "softmax", name="last"),
    ]
    return compiled(keras.Sequential(layers, name="perceptron"), keras.optimizers.SGD(0.1))


MODELS = {
    "relu": images,
    "silu": lambda: images("silu"),
    "gelu": lambda: images("gelu"),
    "normalised": lambda: images(normalise=True),
    "dropout": lambda: images("tanh", rate=0.3),
    "dense": lambda: dense("sigmoid"),
    "elu": lambda: dense("elu"),
}


def trained(build: Any, recompute: str, cores: int = 1, schedule: Any = "layers"):
    """What comes of training a new model: losses, variables and outputs; and the machine."""
    model = build()
    config = small_tiles(cores)
    options: Any = {"schedule": schedule, "recompute": recompute}
    fpga = FPGA(model, config=config, **options)
    x, y = samples(model, 20)
    history = fpga.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    variables = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return [np.asarray(history["loss"]), *variables, fpga.predict(x, verbose=0)], fpga


def chosen(fpga: Any, batch_size: int = 16) -> str:
    """What the summary says of it."""
    text = fpga.summary(batch_size=batch_size).replace("\n", " ")
    found = re.search(r"Recomputed for the backward pass: (.*?) Schedule", text)
    return "" if found is None else re.sub(r" +", " ", found[1])


def same(mine: Any, theirs: Any) -> None:
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_results_are_the_same_bits(build):
    kept, first = trained(build, "never")
    again, second = trained(build, "always")
    same(again, kept)
    assert chosen(first) == "nothing: as asked for"
    assert "as asked for" in chosen(second)
    assert not chosen(second).startswith("nothing")
    assert first.program(16).digest != second.program(16).digest


@pytest.mark.parametrize("build", [MODELS["dense"], lambda: images("silu", rate=0.3, side=4)])
def test_reference_and_emulator_agree(build):
    fpga = FPGA(build(), config=small_tiles(1), recompute="always")
    assert not fpga.verify(backend="reference", against="emulator", steps=1, batch_size=8).differing


@pytest.mark.parametrize("schedule", ["layers", "samples"])
@pytest.mark.parametrize("cores", [1, 2])
def test_with_cores_and_micro_batches_too(cores, schedule):
    kept, _ = trained(MODELS["dropout"], "never", cores=cores, schedule=schedule)
    again, fpga = trained(MODELS["dropout"], "always", cores=cores, schedule=schedule)
    same(again, kept)
    assert "act0" in chosen(fpga)


def test_statistics_of_several_cores_are_summed_once():
    kept, first = trained(convolutional, "never", cores=2)
    again, second = trained(convolutional, "always", cores=2)
    same(again, kept)
    sent = [
        re.search(r"sends the others ([\d,]+) rows", fpga.summary(batch_size=16))
        for fpga in (first, second)
    ]
    assert sent[0]
    assert sent[1]
    assert sent[0][1] == sent[1][1]


def test_nothing_is_recomputed_without_need():
    fpga = FPGA(images("silu"), config=small_tiles(1))
    assert chosen(fpga) == "nothing: everything is on the chip"
    roomy = replace(small_tiles(1), tiles=10**5, rows=10**5, masks=10**5)
    fpga, kept = (FPGA(images("silu"), config=roomy, recompute=r) for r in ("auto", "never"))
    assert chosen(fpga) == "nothing: nothing has to wait in external memory"
    assert fpga.program(16).digest == kept.program(16).digest


def tight(tiles: int, activation: str = "gelu") -> tuple[Any, Machine]:
    """Maps of 32x32 on a chip of so many tiles."""
    keras.utils.set_random_seed(1)
    layers: list[Any] = [L.Input((32, 32, 3))]
    for i in range(3):
        layers.append(L.Conv2D(16, 3, padding="same", name=f"conv{i}"))
        layers.append(L.Activation(activation, name=f"act{i}"))
    layers += [L.AveragePooling2D(4), L.Flatten(), L.Dense(10, activation="softmax")]
    return compiled(keras.Sequential(layers, name="tight")), Machine(tiles=tiles, rows=24000)


def test_what_does_not_fit_otherwise_is_recomputed():
    model, config = tight(1400)
    with pytest.raises(MemoryCapacityError, match='or allow recompute="auto"'):
        FPGA(model, config=config, recompute="never").program(16)
    fpga = FPGA(model, config=config)
    assert re.match(r"(conv|act)0, .*: with all kept it does not fit the chip", chosen(fpga))


def test_an_unknown_way_is_refused():
    with pytest.raises(InvalidArgumentError, match="recompute must be one of auto, never, always"):
        FPGA(images(), recompute="perhaps")
