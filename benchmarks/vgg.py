"""A training step of VGG-16 on images of 224x224x3, too large for any simulation of hardware, by the cycle model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from benchmarks.models import Case, formats
from benchmarks.networks import useful_macs, vgg_case
from benchmarks.record import RESULTS, Record, finish, recording
from benchmarks.timing import timed_both
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.estimate import dram_bytes, memories
from fpgrad.formats import AccumulatorFormat
from fpgrad.isa.instructions import Unit
from fpgrad.isa.program import Program

STEP = "A training step"

UTILISATION_BAR, COMPILE_BAR = 92.0, 30.0

#: EF-Train on a ZCU102: GFLOPS, lanes, MHz.
EF_TRAIN = (46.99, 256, 100)

NOTES = """\
* VGG-16 as EF-Train trains it: 13 convolutions 3x3, batch normalisation after each and no biases before
  it, a mean over the last map's positions, one layer of 1000 classes; SGD with momentum
* cycles: of the emulator's cycle model, a step that has others before and behind it. 'published way'
  counts taps on padding as work, as the published figure does: {published:.1f} % is what EF-Train's
  {gflops} GFLOPS are of {lanes} lanes at {mhz} MHz (Tang et al., TODAES 2022, arXiv 2202.10935). Its numbers are
  fp32, ours 8-bit block floating point with sums in {bits} bits
* external memory as ZCU102's, see `benchmarks.conv_machines`; maps, kernels, optimizer slots and the
  program itself are there. Bytes an image: all that the memory port moves, programs not counted
* compiling: model to program, with evaluation and prediction
"""


def run(
    case: Case | None = None,
    tiles: int = 32768,
    rows: int = 65536,
    masks: int = 131072,
    bits: int = 36,
) -> Record:
    """Compile the network and follow a training step.

    Args:
        case: the network; VGG-16 at batch 16 unless given.
        tiles, rows, masks: on the chip at most.
        bits: of the accumulators: 36 hold the longest sums of these layers.
    """
    case = case or vgg_case(16)
    with recording("vgg", case=case.title, tiles=tiles, rows=rows, masks=masks) as record:
        gflops, lanes, mhz = EF_TRAIN
        published = 100 * gflops * 1e9 / (2 * lanes * mhz * 1e6)
        record.note(
            NOTES.format(published=published, gflops=gflops, lanes=lanes, mhz=mhz, bits=bits)
        )
        config = formats(case.side)
        matrix = replace(config.matrix, accumulator=AccumulatorFormat(bits=bits))
        machine = Machine(replace(config, matrix=matrix), tiles=tiles, rows=rows, masks=masks)
        try:
            _measure(record, case, machine)
        except FpgradError as error:
            record.failed(case.title, error)
        record.count_failures()
    return record


def _measure(record: Record, case: Case, machine: Machine) -> None:
    model = case.build()
    fpga = FPGA(model, config=machine)
    made: list[Program] = []
    wall, processor = timed_both(lambda: made.append(fpga.program(batch_size=case.batch_size)))
    (program,) = made
    cycles = cycles_per_step(program, "train")
    work = program.config.mac_lanes * cycles / case.batch_size
    useful = 100 * useful_macs(model) / work
    published = 100 * useful_macs(model, padding=True) / work
    record.row(
        STEP,
        network=case.name,
        batch=case.batch_size,
        lanes=program.config.mac_lanes,
        cycles_an_image=cycles / case.batch_size,
        **{"utilisation %": useful, "published way %": published},
        **{"MB an image": dram_bytes(program, "train") / 1e6 / case.batch_size},
        **{"on-chip MB": sum(m.capacity_bits for m in memories(program)) / 8e6},
        **{"external GB": _external(program.meta, program.config.side) / 1e9},
    )
    record.row(
        "The program",
        instructions=sum(len(program.units[u]) for u in Unit),
        MB=program.config.control.program_rows * program.config.side * 4 / 1e6,
        **{"seconds to compile": wall, "of one processor": processor},
    )
    title = case.title
    record.bar(
        f"{title}: array utilisation, counted the published way",
        published,
        "≥",
        UTILISATION_BAR,
        "%",
    )
    record.bar(f"{title}: model to program, processor time", processor, "≤", COMPILE_BAR, "s")


def _external(meta: dict, side: int) -> int:
    """Bytes of external memory for what persists and what waits there in a training step."""
    rows = meta["image_rows"] + meta["functions"]["train"]["spill"]
    return rows * side * 4


def main(out: Path = RESULTS) -> None:
    """Count the cycles of VGG-16."""
    finish(run(), out)


if __name__ == "__main__":
    typer.run(main)
