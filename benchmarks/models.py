"""The models and data that the benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.formats import TileFormat
from fpgrad.isa.config import ControlConfig, MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.program import Program
from fpgrad.keras import FPGA

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]

TEST_FRACTION = 0.2


def dense_model(
    widths: Sequence[int],
    optimizer: str = "adam",
    *,
    normalise: bool = False,
    dropout: float = 0.0,
) -> Any:
    """A compiled Keras classifier of Dense layers.

    Args:
        widths: of the layers from input to output.
        optimizer: by Keras's name, with its defaults.
        normalise: whether BatchNormalization follows each hidden layer.
        dropout: rate of a Dropout after each hidden layer.
    """
    import keras

    layers: list[Any] = [keras.layers.Input((widths[0],))]
    for width in widths[1:-1]:
        layers.append(keras.layers.Dense(width, activation="relu"))
        if normalise:
            layers.append(keras.layers.BatchNormalization())
        if dropout:
            layers.append(keras.layers.Dropout(dropout))
    layers.append(keras.layers.Dense(widths[-1], activation="softmax"))
    model = keras.Sequential(layers)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@dataclass(frozen=True)
class Case:
    """A model, its batch size, and the machine that it is compiled for.

    Args:
        name: for tables.
        build: makes the compiled Keras model.
        batch_size: samples in a training step.
        side: of the machine's tiles; the machine has ``side**2`` MAC lanes.
    """

    name: str
    build: Callable[[], Any]
    batch_size: int
    side: int = 16

    @property
    def title(self) -> str:
        """Name, batch size and lanes."""
        return f"{self.name}, batch {self.batch_size}, {self.side**2} lanes"


def dense_case(
    widths: Sequence[int],
    batch_size: int,
    optimizer: str = "adam",
    *,
    side: int = 16,
    normalise: bool = False,
    dropout: float = 0.0,
) -> Case:
    """A case of :func:`dense_model`."""
    name = f"{'-'.join(map(str, widths))}, {'SGD' if optimizer == 'sgd' else optimizer.title()}"
    name += ", batch normalisation" * normalise + ", dropout" * bool(dropout)
    return Case(
        name,
        lambda: dense_model(widths, optimizer, normalise=normalise, dropout=dropout),
        batch_size,
        side,
    )


SMALL = dense_case((32, 64, 10), 32)
MIDDLE = dense_case((64, 128, 10), 32)
LARGE = dense_case((256, 512, 512, 10), 64, "sgd")


def formats(side: int) -> MachineConfig:
    """The default machine with tiles of another side; the compiler chooses its memories."""
    if side == 16:
        return MachineConfig()
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=side)),
        memory=MemoryConfig(dram_words_per_cycle=side),
    )


def compile_case(case: Case, machine: MachineConfig | None = None) -> tuple[FPGA, Program]:
    """The case's model, and its program for a machine, or for the smallest of its kind.

    Raises:
        FpgradError: the model cannot be compiled, or ``machine`` is too small for it.
    """
    fpga = FPGA(case.build())
    wanted = Machine(formats(case.side)) if machine is None else Machine(machine, fixed=True)
    return fpga, compile_functions(fpga.functions(case.batch_size), wanted)


def joined(configs: Sequence[MachineConfig]) -> MachineConfig:
    """The smallest machine that runs the programs of all ``configs``, which have the same formats."""
    vector = replace(
        configs[0].vector,
        functions=tuple(sorted({f for c in configs for f in c.vector.functions})),
        post_multiply=any(c.vector.post_multiply for c in configs),
        random=any(c.vector.random for c in configs),
    )
    return replace(
        configs[0],
        vector=vector,
        memory=_largest([c.memory for c in configs]),
        control=_largest([c.control for c in configs]),
    )


Sizes = TypeVar("Sizes", MemoryConfig, ControlConfig)


def _largest(sizes: Sequence[Sizes]) -> Sizes:
    """Field by field, the largest number."""
    return replace(
        sizes[0], **{f.name: max(getattr(s, f.name) for s in sizes) for f in fields(sizes[0])}
    )


def digits(features: int) -> Data:
    """(x_train, y_train, x_test, y_test) of scikit-learn's digits, pixels in [0, 1].

    Args:
        features: 64 for all pixels, 32 for averages of pairs of neighbours in a row.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = np.asarray(images, np.float32).reshape(-1, features, 64 // features).mean(axis=2) / 16.0
    y = np.asarray(labels, np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    test = int(TEST_FRACTION * len(x))
    return x[order[test:]], y[order[test:]], x[order[:test]], y[order[:test]]


def random_samples(
    features: int, samples: int, classes: int = 10, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Samples in [0, 1) with random labels: for speeds, which do not depend on the numbers."""
    rng = np.random.default_rng(seed)
    return rng.random((samples, features), np.float32), rng.integers(0, classes, samples)
