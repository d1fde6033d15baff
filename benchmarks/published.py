"""Training steps of 1X, 2X and 4X beside published machines: at their lanes, at their DSP blocks, and by bytes moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import typer

from benchmarks.conv_machines import MEMORIES, ROOMS
from benchmarks.models import formats
from benchmarks.networks import cifar_model, useful_macs
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.estimate import dram_bytes, memories
from fpgrad.isa.program import Program

LANES, DSPS, BYTES = "At the same lanes", "At the same DSP blocks", "By bytes an image"

#: Samples of each core.
SAMPLES = 16
SIDE = 16
OURS, NUMBERS = "fpgrad, whole step, cycle model", "8-bit block floating point"


@dataclass(frozen=True)
class Chip:
    """DSP blocks that a multiply-accumulate lane takes at least.

    Args:
        name: of the chip.
        theirs: of the published machine's numbers.
        ours: of 8-bit mantissas, without packing two products into one multiplier.
    """

    name: str
    theirs: float
    ours: float


@dataclass(frozen=True)
class Published:
    """A figure of somebody else's machine: `cycles` of training for each image."""

    network: int
    who: str
    numbers: str
    chip: Chip
    lanes: int
    batch: int | None
    cycles: int


EF_TRAIN, FPL = "EF-Train, convolutions, latency model", "FPL'19, from epoch time"
ZCU102, STRATIX = Chip("ZCU102", 5, 1), Chip("Stratix 10 GX", 0.5, 0.5)

FIGURES = (
    Published(1, EF_TRAIN, "fp32", ZCU102, 256, 128, 207_098),
    Published(1, FPL, "16-bit fixed point", STRATIX, 1024, None, 87_300),
    Published(2, EF_TRAIN, "fp32", ZCU102, 256, 128, 658_269),
    Published(2, FPL, "16-bit fixed point", STRATIX, 2048, None, 199_700),
    Published(4, EF_TRAIN, "fp32", ZCU102, 256, 128, 2_326_080),
    Published(4, FPL, "16-bit fixed point", STRATIX, 4096, None, 461_700),
)

NOTES = """\
* networks as in `benchmarks.conv_cycles`; ours: cycles of the emulator's cycle model over a whole training
  step, 16 samples a core of 256 lanes
* 'published way' counts taps on padding as work, as the published figures do: {counted}. The machine
  skips these taps, so that it can exceed 100 % by that way, which then is no utilisation of an array
  but a speed, in units of one that does not skip them and is always busy
* **numbers differ**: fpgrad's products are of 8-bit mantissas with one exponent for a tile of 16x16,
  sums in 32 bits, all else in 24-bit floating point; EF-Train computes in fp32, FPL'19 in 16-bit
  fixed point, which take more of a chip for each lane. EF-Train's cycles are its authors' latency
  model of the convolutions at batch 128; FPL'19's follow from epoch time and clock. Both are good to
  about 5 %. Neither clock is compared: nothing of fpgrad has been placed and routed
* at the same lanes, and at the same DSP blocks: everything on the chip, which takes a large one, where the
  published machines move feature maps through external memory; times: published cycles over ours
* DSP blocks: by what a lane takes at least. fp32 on a ZCU102: three for a multiplication, two for an
  addition; a Stratix 10 block multiplies 18x19 twice, in 16 bits as in 8. Ours is one lane a block on the
  ZCU102, though two 8-bit products fit where they share an operand: that is not built. As many whole cores
  as the blocks allow
* by bytes: one core, batch 16, external memory and room on the chip as in `benchmarks.conv_machines`. Of the
  published machines no bytes an image are known to us
* sources: EF-Train: Tang et al., TODAES 2022 (arXiv 2202.10935) and its authors' repository; FPL'19:
  Venkataramanaiah et al., FPL 2019 (arXiv 1908.06724), on a Stratix 10 at 240 MHz
"""


def run(networks: tuple[int, ...] = (1, 2, 4)) -> Record:
    """Follow our training steps with the cycle model, on machines of the published ones' size.

    Args:
        networks: k of each kX.
    """
    with recording("published", networks=list(networks)) as record:
        counted = ", ".join(
            f"{useful_macs(cifar_model(k), padding=True) / 1e6:.2f} M for {k}X" for k in networks
        )
        record.note(NOTES.format(counted=f"{counted}, an image"))
        for k in networks:
            figures = [figure for figure in FIGURES if figure.network == k]
            for figure in figures:
                _lanes(record, figure)
            for figure in figures:
                _dsps(record, figure)
            for memory in MEMORIES:
                _bytes(record, k, memory)
        record.count_failures()
    return record


def _lanes(record: Record, figure: Published) -> None:
    mine = _on_chip(record, figure, figure.lanes // SIDE**2)
    if mine is None:
        return
    batch, cycles = mine
    macs = useful_macs(cifar_model(figure.network), padding=True)
    for who, numbers, samples, taken in (
        (figure.who, figure.numbers, figure.batch, figure.cycles),
        (OURS, NUMBERS, batch, cycles),
    ):
        record.row(
            LANES,
            network=f"{figure.network}X",
            who=who,
            numbers=numbers,
            lanes=figure.lanes,
            batch=samples,
            cycles_an_image=round(taken),
            **{"published way %": 100 * macs / (figure.lanes * taken)},
            times=figure.cycles / taken,
        )


def _dsps(record: Record, figure: Published) -> None:
    chip = figure.chip
    blocks = figure.lanes * chip.theirs
    cores = min(16, int(blocks / chip.ours) // SIDE**2)
    mine = _on_chip(record, figure, cores)
    if mine is None:
        return
    batch, cycles = mine
    lanes = cores * SIDE**2
    for who, used, has, samples, taken in (
        (figure.who, blocks, figure.lanes, figure.batch, figure.cycles),
        (OURS, lanes * chip.ours, lanes, batch, cycles),
    ):
        record.row(
            DSPS,
            network=f"{figure.network}X",
            chip=chip.name,
            who=who,
            **{"DSP blocks": round(used)},
            lanes=has,
            batch=samples,
            cycles_an_image=round(taken),
            times=figure.cycles / taken,
        )


def _on_chip(record: Record, figure: Published, cores: int) -> tuple[int, float] | None:
    """Batch and cycles an image of our machine with everything on the chip."""
    batch = cores * SAMPLES
    machine = Machine(replace(formats(SIDE), cores=cores))
    program = _program(record, f"{figure.network}X, {cores} cores", figure.network, machine, batch)
    return program and (batch, cycles_per_step(program, "train") / batch)


def _bytes(record: Record, network: int, memory: str) -> None:
    config, room = formats(SIDE), ROOMS[network]
    config = replace(config, memory=replace(config.memory, dram_bandwidth=MEMORIES[memory]))
    machine = Machine(config, tiles=room.tiles, rows=room.rows, masks=room.masks)
    program = _program(record, f"{network}X, {memory}", network, machine, SAMPLES)
    if program is None:
        return
    cycles, moved = cycles_per_step(program, "train"), dram_bytes(program, "train")
    macs = useful_macs(cifar_model(network), padding=True) * SAMPLES
    record.row(
        BYTES,
        network=f"{network}X",
        memory=memory,
        lanes=program.config.mac_lanes,
        **{"on-chip MB": sum(m.capacity_bits for m in memories(program)) / 8e6},
        cycles_an_image=round(cycles / SAMPLES),
        **{"published way %": 100 * macs / (program.config.mac_lanes * cycles)},
        **{"KB an image": moved / 1e3 / SAMPLES, "bytes a cycle": moved / cycles},
    )


def _program(
    record: Record, title: str, network: int, machine: Machine, batch: int
) -> Program | None:
    try:
        return FPGA(cifar_model(network), config=machine).program(batch)
    except FpgradError as error:
        record.failed(title, error)
        return None


def main(out: Path = RESULTS) -> None:
    """Put cycles and bytes of 1X, 2X and 4X beside published ones."""
    finish(run(), out)


if __name__ == "__main__":
    typer.run(main)
