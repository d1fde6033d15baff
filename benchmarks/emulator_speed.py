"""Samples per second of the emulator, beside Keras and a plain PyTorch loop, in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.footprint import measure
from benchmarks.models import Case, dense_case, random_samples
from benchmarks.networks import cifar_case
from benchmarks.record import RESULTS, Record, finish, recording, spread
from benchmarks.timing import interleave
from fpgrad.flow.build import open_session
from fpgrad.keras import FPGA

FPGRAD, KERAS, TORCH = "fpgrad fit", "Keras fp32 fit", "PyTorch loop"
FUSED, STEPS = "PyTorch loop, fused optimizer", "emulator alone"
LAST = "PyTorch loop, channels last"

MEMORY_BAR = 2.0

NOTES = """\
* contenders run in turn in one process, after one round that does not count; ratios are taken
  round by round. Figures are median (least to greatest)
* fpgrad fit: `FPGA.fit(x, y, epochs=..., verbose=0)` with shuffling and metrics, the data's
  upload and the weights' return in it; the emulator's own choice of threads
* PyTorch loop: `nn.Sequential`, `torch.optim`, data as tensors, one permutation an epoch, slices
  as batches, no metrics. The fused variant has `fused=True` in the optimizer, 'channels last'
  has images and weights in that memory format; the bar is on the plain one
* Keras fp32 fit: the same Keras model on the PyTorch backend, with the same metrics
* emulator alone: a session's `train` over data in device memory, without Keras
* 1X: the convolutional network of `benchmarks.conv_cycles`, on images of 32x32x3
* memory: of a process that has imported NumPy and the emulator and holds the samples, then reads
  the program and trains; the most that it held at once, less what it held before (Linux's VmHWM
  and VmRSS). The machine: all that its memories and instruction memories hold on the chip, at the
  width of hardware and without copies for second read ports, and the part of external memory in use
"""


@dataclass(frozen=True)
class Workload:
    """A training to time.

    Args:
        name: of network and optimizer.
        build: makes the compiled Keras model.
        batch_size: samples in a step.
        samples: in an epoch.
        epochs: in one call of `fit`.
        bar: how many times the PyTorch loop's speed is wanted.
        footprint: whether the emulator's memory is measured too.
    """

    name: str
    build: Callable[[], Any]
    batch_size: int
    samples: int
    epochs: int
    bar: float
    footprint: bool = False

    @property
    def title(self) -> str:
        """Name and batch size."""
        return f"{self.name}, batch {self.batch_size}"

    @property
    def trained(self) -> int:
        """Samples that one call trains on."""
        return self.samples * self.epochs

    @classmethod
    def of(cls, case: Case, samples: int, epochs: int, bar: float, **options: Any) -> Workload:
        """A workload of a case's model and batch size."""
        return cls(case.name, case.build, case.batch_size, samples, epochs, bar, **options)


WORKLOADS = (
    Workload.of(dense_case((32, 64, 10), 32), 1440, 20, bar=10.0),
    Workload.of(dense_case((256, 512, 512, 10), 64, "sgd"), 2048, 2, bar=1.0),
    Workload.of(cifar_case(1, 32), 320, 1, bar=1.0, footprint=True),
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
            if workload.footprint:
                _weigh(record, workload)
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
                PyTorch_threads=count if name not in (FPGRAD, STEPS) else None,
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


def _weigh(record: Record, workload: Workload) -> None:
    """Memory of the emulator beside what the machine holds."""
    steps = _steps(workload)
    fpga = FPGA(workload.build())
    program = fpga.program(workload.batch_size)
    found = measure(program, fpga._device.trial(steps, workload.batch_size, seed=0))
    if found is None:
        return
    record.row(
        "Memory of the emulator",
        workload=workload.title,
        samples=steps * workload.batch_size,
        **{"emulator MB": found.emulator / 1e6},
        **{"machine, on chip MB": found.on_chip / 1e6},
        **{"machine, external MB": found.external / 1e6},
        ratio=found.ratio,
    )
    what = f"{workload.title}: the emulator's memory against what the machine holds"
    record.bar(what, found.ratio, "≤", MEMORY_BAR, "times")


def _contenders(workload: Workload) -> dict[str, Callable[[], object]]:
    fpga, twin = FPGA(workload.build()), workload.build()
    shape = twin.input_shape[1:]
    x, y = random_samples(math.prod(shape), workload.samples, twin.output_shape[-1])
    x = x.reshape(-1, *shape)
    fit: dict[str, Any] = {
        "batch_size": workload.batch_size, "epochs": workload.epochs, "verbose": 0,
    }  # fmt: skip
    loops = {TORCH: {}, FUSED: {"fused": True}}
    if len(shape) > 1:
        loops[LAST] = {"channels_last": True}
    return {
        FPGRAD: lambda: fpga.fit(x, y, **fit),
        **{name: torch_loop(workload, x, y, **options) for name, options in loops.items()},
        KERAS: lambda: twin.fit(x, y, **fit),
        STEPS: emulator_steps(workload),
    }


def torch_loop(
    workload: Workload,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    fused: bool = False,
    channels_last: bool = False,
) -> Callable[[], object]:
    """The training loop that a PyTorch user writes, without anything that costs time.

    Args:
        workload: what to train.
        x: samples; images have channels last, as in Keras.
        y: labels.
        fused: whether the optimizer is PyTorch's fused one.
        channels_last: whether images lie so in memory.
    """
    import torch
    from torch import nn

    keras_model = workload.build()
    model = nn.Sequential(*torch_layers(keras_model))
    kind, options = type(keras_model.optimizer).__name__, {"lr": 1e-3, "fused": fused}
    if kind == "SGD":
        options["momentum"] = keras_model.optimizer.momentum
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    loss_of = nn.CrossEntropyLoss()
    samples, targets = torch.from_numpy(x), torch.from_numpy(y)
    if x.ndim > 2:
        samples = samples.permute(0, 3, 1, 2).contiguous()
    if channels_last:
        samples = samples.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

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


def torch_layers(model: Any) -> list[Any]:
    """PyTorch's layers for those of a Keras classifier; a softmax at the end is part of the loss."""
    from torch import nn

    layers: list[nn.Module] = []
    for layer in model.layers:
        match type(layer).__name__:
            case "Dense":
                layers.append(nn.Linear(layer.input.shape[-1], layer.units))
                if layer.activation.__name__ == "relu":
                    layers.append(nn.ReLU())
            case "Conv2D":
                channels, side = layer.input.shape[-1], layer.kernel_size[0]
                layers.append(nn.Conv2d(channels, layer.filters, side, padding=side // 2))
            case "ReLU":
                layers.append(nn.ReLU())
            case "MaxPooling2D":
                layers.append(nn.MaxPool2d(layer.pool_size[0]))
            case "Flatten":
                layers.append(nn.Flatten())
            case name:
                raise NotImplementedError(f"no PyTorch layer for {name}")
    return layers


def emulator_steps(workload: Workload) -> Callable[[], object]:
    """As many steps as one `fit` takes, in one call of a session."""
    steps = _steps(workload)
    fpga = FPGA(workload.build())
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
