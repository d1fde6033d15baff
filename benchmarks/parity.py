"""Does the machine learn what fp32 learns? The same start and the same batches, on real data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from benchmarks.models import Data, dense_model, digits
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad.keras import FPGA

NETWORKS = ((32, 64, 10), (64, 128, 10))

ACCURACY_BAR, LOSS_BAR = 0.3, 2.0

NOTES = """\
* scikit-learn's digits, 1438 samples to train and 359 to test; 32 inputs are averages of two
  neighbours, 64 are all pixels. Adam with Keras's defaults
* both begin with the same weights and take the same batches: every epoch is one call of `fit`
  with `shuffle=False` on samples in an order drawn from the seed, the last short batch included
* fp32 is Keras on PyTorch, `Model.fit`, one thread; the machine is `FPGA(model).fit` on the
  emulator
* test figures of the machine are its own `evaluate`; with its weights in Keras's fp32 `evaluate`
  they are in the columns 'in Keras'
"""


def run(
    seeds: int = 5,
    epochs: int = 25,
    batch_size: int = 32,
    networks: Sequence[Sequence[int]] = NETWORKS,
) -> Record:
    """Train each network from each seed on the machine and in Keras, and compare on the test set.

    Args:
        seeds: initial weights and orders of samples, 0 and up.
        epochs: passes over the training set, the last short batch of each included.
        batch_size: samples in a step.
        networks: widths of the layers; the first is 32 or 64.
    """
    settings = {"seeds": seeds, "epochs": epochs, "batch_size": batch_size}
    with recording("parity", **settings, networks=[list(n) for n in networks]) as record:
        record.note(NOTES)
        for widths in networks:
            _compare(record, widths, seeds, epochs, batch_size)
    return record


def _compare(
    record: Record, widths: Sequence[int], seeds: int, epochs: int, batch_size: int
) -> None:
    data = digits(widths[0])
    title = "-".join(map(str, widths))
    rows = [_train(widths, data, seed, epochs, batch_size) for seed in range(seeds)]
    for seed, row in enumerate(rows):
        record.row(f"{title}, each seed", seed=seed, **row)
    # Keras keeps accuracies in fp32: 95.5 less 95.5 must be 0.
    accuracy = np.array([round(r["accuracy_%"] - r["fp32_accuracy_%"], 4) for r in rows])
    loss, fp32_loss = (np.array([r[k] for r in rows]) for k in ("test_loss", "fp32_test_loss"))
    relative = 100 * (loss / fp32_loss - 1)
    mean_loss = 100 * (loss.mean() / fp32_loss.mean() - 1)
    train = 100 * np.array([r["training_loss"] / r["fp32_training_loss"] - 1 for r in rows])
    for what, unit, values, mean in (
        ("test accuracy, machine less fp32", "points", accuracy, accuracy.mean()),
        ("test loss, machine against fp32", "%", relative, mean_loss),
        ("training loss, machine against fp32", "%", train, train.mean()),
    ):
        record.row(
            "Differences over the seeds",
            network=title,
            what=what,
            unit=unit,
            mean=float(mean),
            least=float(values.min()),
            greatest=float(values.max()),
            standard_deviation=float(values.std(ddof=1)) if seeds > 1 else None,
        )
    record.bar(
        f"{title}: mean test accuracy away from fp32",
        abs(accuracy.mean()),
        "≤",
        ACCURACY_BAR,
        "points",
    )
    record.bar(f"{title}: mean test loss away from fp32", abs(mean_loss), "≤", LOSS_BAR, "%")


def _train(
    widths: Sequence[int], data: Data, seed: int, epochs: int, batch_size: int
) -> dict[str, float]:
    """One training on both sides."""
    import keras

    x_train, y_train, x_test, y_test = data
    keras.utils.set_random_seed(seed)
    model, twin = dense_model(widths), dense_model(widths)
    twin.set_weights(model.get_weights())
    fpga = FPGA(model)
    rng = np.random.default_rng(seed)
    mine: Any = None
    theirs: Any = None
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    for _ in range(epochs):
        order = rng.permutation(len(x_train))
        mine = fpga.fit(x_train[order], y_train[order], **options).history
        theirs = twin.fit(x_train[order], y_train[order], **options).history
    loss, accuracy = fpga.evaluate(x_test, y_test, verbose=0)
    keras_loss, keras_accuracy = model.evaluate(x_test, y_test, verbose=0)
    fp32_loss, fp32_accuracy = twin.evaluate(x_test, y_test, verbose=0)
    return {
        "accuracy_%": 100 * float(accuracy),
        "fp32_accuracy_%": 100 * float(fp32_accuracy),
        "accuracy_%_in_Keras": 100 * float(keras_accuracy),
        "test_loss": float(loss),
        "fp32_test_loss": float(fp32_loss),
        "test_loss_in_Keras": float(keras_loss),
        "training_loss": float(mine["loss"][-1]),
        "fp32_training_loss": float(theirs["loss"][-1]),
    }


def main(seeds: int = 5, epochs: int = 25, batch_size: int = 32, out: Path = RESULTS) -> None:
    """Compare training on the machine with Keras fp32 on digits."""
    import torch

    torch.set_num_threads(1)
    finish(run(seeds, epochs, batch_size), out)


if __name__ == "__main__":
    typer.run(main)
