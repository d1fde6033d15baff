"""The demonstration: a small network learns scikit-learn's digits on the machine and in Keras.

Both start from the same weights and see the same batches in the same order, so that what differs
is the arithmetic and nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpgrad.errors import InvalidArgumentError, MissingExtraError
from fpgrad.flow import recomputing
from fpgrad.flow.schedules import Wanted
from fpgrad.keras.fpga import FPGA, Backend, machine_of

__all__ = ["Comparison", "digits", "digits_model", "train_digits"]

TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Comparison:
    """What came out of training the same model on the machine and in Keras.

    Accuracies are on the test samples, 0 to 1; losses too. ``cycles_per_step`` is what the
    executor counted, None where it counts none. ``seconds`` and ``keras_seconds`` are the host's
    wall times of the two trainings.
    """

    backend: str
    accuracy: float
    loss: float
    keras_accuracy: float
    keras_loss: float
    steps: int
    cycles_per_step: float | None
    seconds: float
    keras_seconds: float
    summary: str

    def lines(self, clock_hz: float) -> list[str]:
        """Returns the comparison as text: accuracy, cycles and times, one a line."""
        mine, theirs = 100 * self.accuracy, 100 * self.keras_accuracy
        lines = [
            f"test accuracy: {mine:.2f} % on the {self.backend}, {theirs:.2f} % by Keras in fp32",
            f"test loss: {self.loss:.4f} on the {self.backend}, {self.keras_loss:.4f} by Keras",
        ]
        if self.cycles_per_step is not None:
            microseconds = self.cycles_per_step / clock_hz * 1e6
            lines.append(
                f"{self.cycles_per_step:.0f} cycles a training step, everything included: "
                f"{microseconds:.1f} µs at {clock_hz / 1e6:g} MHz"
            )
        lines.append(
            f"{self.steps} steps took {self.seconds:.2f} s on the {self.backend}, "
            f"{self.keras_seconds:.2f} s in Keras on this computer"
        )
        return lines


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (x_train, y_train, x_test, y_test) of the handwritten digits.

    The 8×8 pixels are averaged in pairs of neighbours, which leaves 32 numbers in [0, 1] a sample.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed: pip install 'fpgrad[demo]'"
        ) from None
    images, labels = load_digits(return_X_y=True)
    x = np.asarray(images, np.float32).reshape(-1, 32, 2).mean(axis=2) / 16.0
    y = np.asarray(labels, np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    test = int(TEST_FRACTION * len(x))
    return x[order[test:]], y[order[test:]], x[order[:test]], y[order[:test]]


def digits_model() -> Any:
    """Returns the compiled 32-64-10 classifier of the demonstration."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Input((32,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ],
        name="digits",
    )
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train_digits(
    *,
    epochs: int = 10,
    batch_size: int = 32,
    backend: Backend = "emulator",
    seed: int = 0,
    clock_hz: float = 100e6,
    cores: int = 1,
    schedule: Wanted = "auto",
    recompute: recomputing.Wanted = "auto",
    verbose: int | str = "auto",
) -> Comparison:
    """Trains the demonstration's model on an executor, then the same model in Keras, in fp32.

    Args:
        epochs: passes over the training samples.
        batch_size: samples in a batch; samples that do not fill one are left for a later epoch.
        backend: the executor.
        seed: of the initial weights and the order of the samples.
        clock_hz: the clock for which the summary states times.
        cores: of the machine.
        schedule: how a step goes through a batch, see `FPGA`.
        recompute: whether activations are computed again, see `FPGA`.
        verbose: Keras's progress bar for the machine's training.

    Raises:
        InvalidArgumentError: if epochs or batch_size are out of range.
    """
    import keras

    x_train, y_train, x_test, y_test = digits()
    if epochs < 1:
        raise InvalidArgumentError(f"epochs must be 1 or more, not {epochs}")
    if not 1 <= batch_size <= len(x_train):
        raise InvalidArgumentError(
            f"batch_size must be from 1 to {len(x_train)}, the training samples, not {batch_size}"
        )
    keras.utils.set_random_seed(seed)
    model, twin = digits_model(), digits_model()
    twin.set_weights(model.get_weights())
    steps = len(x_train) // batch_size
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(x_train)) for _ in range(epochs)])
    order = order[: epochs * steps * batch_size]
    common = {
        "batch_size": batch_size,
        "epochs": epochs,
        "steps_per_epoch": steps,
        "shuffle": False,
    }
    fpga = FPGA(model, backend, machine_of(cores), schedule=schedule, recompute=recompute)
    seconds = _timed(lambda: fpga.fit(x_train[order], y_train[order], verbose=verbose, **common))
    counted = fpga.counters
    keras_seconds = _timed(lambda: twin.fit(x_train[order], y_train[order], verbose=0, **common))
    loss, accuracy = fpga.evaluate(x_test, y_test, verbose=0)
    keras_loss, keras_accuracy = twin.evaluate(x_test, y_test, verbose=0)
    cycles = counted.get("cycles", 0)
    return Comparison(
        backend=backend,
        accuracy=float(accuracy),
        loss=float(loss),
        keras_accuracy=float(keras_accuracy),
        keras_loss=float(keras_loss),
        steps=epochs * steps,
        cycles_per_step=cycles / counted["steps"] if cycles else None,
        seconds=seconds,
        keras_seconds=keras_seconds,
        summary=fpga.summary(clock_hz=clock_hz, batch_size=batch_size),
    )


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
