"""Samples per second of the emulator, beside Keras and a plain PyTorch loop, in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.models import dense_model, random_samples
from benchmarks.record import RESULTS, Record, finish, recording, spread
from benchmarks.timing import interleave
from fpgrad.flow.build import open_session
from fpgrad.keras import FPGA

FPGRAD, KERAS, TORCH = "fpgrad fit", "Keras fp32 fit", "PyTorch loop"
FUSED, STEPS = "PyTorch loop, fused optimizer", "emulator alone"

NOTES = """\
* contenders run in turn in one process, after one round that does not count; ratios are taken
  round by round. Figures are median (least to greatest)
* fpgrad fit: `FPGA.fit(x, y, epochs=..., verbose=0)` with shuffling and metrics, the data's
  upload and the weights' return in it; the emulator's own choice of threads
* PyTorch loop: `nn.Sequential`, `torch.optim`, data as tensors, one permutation an epoch, slices
  as batches, no metrics. The fused variant has `fused=True` in the optimizer; the bar is on the
  plain one
* Keras fp32 fit: the same Keras model on the PyTorch backend, with the same metrics
* emulator alone: a session's `train` over data in device memory, without Keras
"""


@dataclass(frozen=True)
class Workload:
    """A training to time.

    Args:
        widths: of the Dense layers.
        optimizer: "adam" or "sgd".
        batch_size: samples in a step.
        samples: in an epoch.
        epochs: in one call of `fit`.
        bar: how many times the PyTorch loop's speed is wanted.
    """

    widths: tuple[int, ...]
    optimizer: str
    batch_size: int
    samples: int
    epochs: int
    bar: float

    @property
    def title(self) -> str:
        """Widths, optimizer and batch size."""
        name = "SGD" if self.optimizer == "sgd" else self.optimizer.title()
        return f"{'-'.join(map(str, self.widths))}, {name}, batch {self.batch_size}"

    @property
    def trained(self) -> int:
        """Samples that one call trains on."""
        return self.samples * self.epochs


WORKLOADS = (
    Workload((32, 64, 10), "adam", 32, 1440, 20, bar=10.0),
    Workload((256, 512, 512, 10), "sgd", 64, 2048, 2, bar=1.0),
)


def run(
    workloads: Sequence[Workload] = WORKLOADS,
    repetitions: int = 7,
    threads: Sequence[int] = (),
) -> Record:
    """Time all contenders in turn.

    Args:
        workloads: what to train.
        repetitions: rounds.
        threads: PyTorch's numbers of threads, each measured beside the emulator; by default one, and
            what PyTorch chooses.
    """
    import torch

    default = torch.get_num_threads()
    counts = sorted(set(threads or (1, default)))
    settings = {"repetitions": repetitions, "threads": counts, "PyTorch's own choice": default}
    with recording("emulator_speed", **settings, workloads=[w.title for w in workloads]) as record:
        record.note(NOTES)
        for workload in workloads:
            _measure(record, workload, counts, repetitions)
        torch.set_num_threads(default)
    return record


def _measure(record: Record, workload: Workload, threads: Sequence[int], repetitions: int) -> None:
    import torch

    ratios = []
    for count in threads:
        torch.set_num_threads(count)
        seconds = interleave(_contenders(workload), repetitions)
        mine = seconds[FPGRAD]
        for name, taken in seconds.items():
            record.row(
                workload.title,
                contender=name,
                PyTorch_threads=count if name in (KERAS, TORCH, FUSED) else None,
                samples_per_second=spread(workload.trained / taken),
                µs_a_step=spread(1e6 * taken / _steps(workload)),
                **{"time, fpgrad fit = 1": spread(taken / mine)},
            )
        ratios.append(float(np.median(seconds[TORCH] / mine)))
    record.bar(
        f"{workload.title}: fit against the PyTorch loop at its better number of threads",
        min(ratios),
        "≥",
        workload.bar,
        "times",
    )


def _steps(workload: Workload) -> int:
    return workload.epochs * -(-workload.samples // workload.batch_size)


def _contenders(workload: Workload) -> dict[str, Callable[[], object]]:
    x, y = random_samples(workload.widths[0], workload.samples, workload.widths[-1])
    fit: dict[str, Any] = {
        "batch_size": workload.batch_size, "epochs": workload.epochs, "verbose": 0,
    }  # fmt: skip
    fpga = FPGA(dense_model(workload.widths, workload.optimizer))
    twin = dense_model(workload.widths, workload.optimizer)
    return {
        FPGRAD: lambda: fpga.fit(x, y, **fit),
        TORCH: torch_loop(workload, x, y, fused=False),
        FUSED: torch_loop(workload, x, y, fused=True),
        KERAS: lambda: twin.fit(x, y, **fit),
        STEPS: emulator_steps(workload),
    }


def torch_loop(
    workload: Workload, x: NDArray[np.float32], y: NDArray[np.int64], *, fused: bool
) -> Callable[[], object]:
    """The training loop that a PyTorch user writes, without anything that costs time."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for inputs, outputs in zip(workload.widths, workload.widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimizers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = optimizers[workload.optimizer](model.parameters(), lr=1e-3, fused=fused)
    loss_of = nn.CrossEntropyLoss()
    samples, targets = torch.from_numpy(x), torch.from_numpy(y)

    def loop() -> None:
        for _ in range(workload.epochs):
            order = torch.randperm(len(samples))
            shuffled, labels = samples[order], targets[order]
            for start in range(0, len(samples), workload.batch_size):
                stop = start + workload.batch_size
                optimizer.zero_grad()
                loss = loss_of(model(shuffled[start:stop]), labels[start:stop])
                loss.backward()
                optimizer.step()

    return loop


def emulator_steps(workload: Workload) -> Callable[[], object]:
    """As many steps as one `fit` takes, in one call of a session."""
    steps = _steps(workload)
    fpga = FPGA(dense_model(workload.widths, workload.optimizer))
    session = open_session(fpga.program(workload.batch_size))
    trial = fpga._device.trial(steps, workload.batch_size, seed=0)
    session.write_states(trial.states)
    data = session.upload(trial.data)
    return lambda: session.train(data, trial.order, trial.scalars, trial.seeds)


def main(
    repetitions: int = 7,
    workload: str = "",
    threads: Annotated[list[int] | None, typer.Option()] = None,
    out: Path = RESULTS,
) -> None:
    """Time fit on the emulator, in Keras and in PyTorch.

    --workload keeps titles with this text; --threads may be given several times.
    """
    chosen = [w for w in WORKLOADS if workload in w.title]
    finish(run(chosen, repetitions, threads or ()), out)


if __name__ == "__main__":
    typer.run(main)
