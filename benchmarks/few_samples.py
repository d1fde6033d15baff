"""Training steps of small batches on several cores, which then share the channels of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from benchmarks.models import Case, dense_model, formats
from benchmarks.networks import cifar_case
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.estimate import exchanged_rows, useful_macs

SPEED_BAR = 3.0

STEPS = "Cycles of a training step of 16 samples"

NOTES = """\
* batch 16 on 16x16 tiles: one tile of samples, so that all cores compute all samples, and share layers
  (docs/design/cores.md). Perceptrons train with Adam, convolutional networks as in
  `benchmarks.conv_cycles` with SGD and momentum
* cycles of the emulator's cycle model, everything on the chip; speed-up against one core; lanes are those
  of all cores, useful products are counted once where all cores compute the same
* layers shared and whole: those of which every core has a part of the kernel or of the map, and those that
  every core computes for itself
"""


def perceptron(*widths: int) -> Case:
    """A perceptron by its widths, batch 16."""
    return Case("-".join(map(str, widths)), lambda: dense_model(widths), 16, 16)


def run(cases: Sequence[Case] | None = None, cores: Sequence[int] = (1, 2, 4, 8, 16)) -> Record:
    """Follow training steps with the cycle model.

    Args:
        cases: networks.
        cores: numbers of cores, 1 first.
    """
    if cases is None:
        cases = [
            perceptron(784, 128, 10),
            perceptron(256, 512, 512, 10),
            cifar_case(1, 16),
            cifar_case(4, 16),
        ]
    with recording("few_samples", cases=[c.title for c in cases], cores=list(cores)) as record:
        record.note(NOTES)
        for case in cases:
            _steps(record, case, cores)
        record.count_failures()
    return record


def _steps(record: Record, case: Case, numbers: Sequence[int]) -> None:
    alone = 0
    for cores in numbers:
        machine = Machine(replace(formats(case.side), cores=cores))
        try:
            program: Any = FPGA(case.build(), config=machine).program(batch_size=case.batch_size)
        except FpgradError as error:
            record.failed(f"{case.name}, {cores} cores", error)
            continue
        cycles = cycles_per_step(program, "train")
        alone = alone or cycles
        macs, lanes = useful_macs(program, "train"), program.config.mac_lanes
        layers = program.meta["layers"]
        whole = [name for name, how in layers.items() if how == "whole"]
        record.row(
            STEPS,
            network=case.name,
            cores=cores,
            cycles_a_step=cycles,
            speed_up=alone / cycles,
            **{"utilisation %": 100 * macs / (lanes * cycles)},
            rows_summed=exchanged_rows(program, "train"),
            layers_shared=len(layers) - len(whole),
            layers_whole=len(whole) if layers else None,
        )
        if cores == 4:
            what = f"{case.title}, speed-up of 4 cores"
            record.bar(what, alone / cycles, "≥", SPEED_BAR, "times")


def main(out: Path = RESULTS) -> None:
    """Count cycles of small batches on machines of several cores."""
    finish(run(), out)


if __name__ == "__main__":
    typer.run(main)
