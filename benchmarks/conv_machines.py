"""Training steps of 1X, 2X and 4X on several cores, and on chips and with external memories of usual sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from benchmarks.models import Case, formats
from benchmarks.networks import cifar_case, useful_macs
from benchmarks.record import RESULTS, Record, finish, recording
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.estimate import dram_bytes, memories
from fpgrad.isa.program import Program

UTILISATION_BAR, SCALING_BAR = 90.0, 90.0

CORES, ROOM = "On several cores", "With little memory on the chip"
ROOMS_OF_CORES = "With little memory on several cores"

NOTES = """\
* networks, utilisation and cycles as in `benchmarks.conv_cycles`: of the emulator's cycle model, over a
  whole training step, without products with padding; lanes are those of all cores
* several cores: each has 16 samples of the batch, so that the batch grows with the cores; everything on
  the chip. Sums of gradients, and all that waits for them, are in the step. Linear: cycles an image of
  one core, divided by cores and by those measured
* little memory: one core, batch 16; what finds no room waits in external memory (`Machine(tiles=...,
  rows=..., masks=...)`). On-chip MB as in `benchmarks.conv_cycles`; bytes an image: all that the memory
  port moves, data and weights included
* little memory on several cores: each has as much as the one core, and 16 samples; external memory is
  ZCU102's for all of them together, 85 bytes a cycle of reads and writes, which have 64 each at the port
* external memory: ZCU102's 17 GB/s at 200 MHz are 85 bytes a cycle, of which the port of 16 words takes
  64; Arty A7's 1.17 GB/s at 100 MHz are 11.7 bytes a cycle, ULX3S's 0.29 GB/s 2.9. Latency 20 cycles, no
  refresh
"""


@dataclass(frozen=True)
class Room:
    """What a chip has room for."""

    tiles: int
    rows: int
    masks: int


ROOMS = {1: Room(2600, 24000, 30000), 2: Room(5200, 36000, 45000), 4: Room(10500, 55000, 60000)}

#: What several cores share: 85 bytes a cycle, of the 64 that a port of 16 words has in each direction.
SHARED = 85 / 64

#: 32-bit words that external memory moves in a cycle; 0: as many as the port is wide.
MEMORIES = {"ZCU102": 0.0, "Arty A7": 2.925, "ULX3S": 0.725}


def run(
    cases: Sequence[tuple[Case, Room]] | None = None,
    cores: Sequence[int] = (1, 4, 16),
    boards: Sequence[str] = tuple(MEMORIES),
) -> Record:
    """Follow training steps with the cycle model.

    Args:
        cases: networks with the samples of a core, and the chip that each is given.
        cores: numbers of cores, 1 first.
        boards: whose external memory the machines have.
    """
    if cases is None:
        cases = [(cifar_case(k, 16), room) for k, room in ROOMS.items()]
    with recording("conv_machines", cases=[c.title for c, _ in cases], cores=list(cores)) as record:
        record.note(NOTES)
        for case, _ in cases:
            _cores(record, case, cores)
        for case, room in cases:
            for board in boards:
                _room(record, case, room, board)
        for case, room in cases:
            for number in cores[1:]:
                _rooms(record, case, room, number)
        record.count_failures()
    return record


def _cores(record: Record, case: Case, numbers: Sequence[int]) -> None:
    alone = 0.0
    for cores in numbers:
        machine = Machine(replace(formats(case.side), cores=cores))
        batch = cores * case.batch_size
        title = f"{case.name}, {cores} cores"
        compiled = _compiled(record, title, case, machine, batch)
        if compiled is None:
            continue
        program, macs = compiled
        cycles = cycles_per_step(program, "train")
        alone = alone or cycles * cores / batch
        utilisation = 100 * macs * batch / (program.config.mac_lanes * cycles)
        linear = 100 * alone * batch / (cores * cycles)
        record.row(
            CORES,
            network=case.name,
            cores=cores,
            lanes=program.config.mac_lanes,
            batch=batch,
            cycles_a_step=cycles,
            cycles_an_image=cycles / batch,
            **{"utilisation %": utilisation, "of linear %": linear},
            **{"on-chip MB a core": _megabytes(program)},
        )
        lanes = f"{case.name}, {program.config.mac_lanes} lanes"
        record.bar(f"{lanes}, on chip: array utilisation", utilisation, "≥", UTILISATION_BAR, "%")
        if cores == max(numbers) > 1:
            record.bar(f"{case.name}, 1 to {cores} cores", linear, "≥", SCALING_BAR, "% of linear")


def _room(record: Record, case: Case, room: Room, board: str) -> None:
    config = formats(case.side)
    config = replace(config, memory=replace(config.memory, dram_bandwidth=MEMORIES[board]))
    machine = Machine(config, tiles=room.tiles, rows=room.rows, masks=room.masks)
    compiled = _compiled(record, f"{case.name}, {board}", case, machine, case.batch_size)
    if compiled is None:
        return
    program, macs = compiled
    cycles = cycles_per_step(program, "train")
    utilisation = 100 * macs * case.batch_size / (program.config.mac_lanes * cycles)
    moved = dram_bytes(program, "train")
    record.row(
        ROOM,
        network=case.name,
        memory=board,
        **{"on-chip MB": _megabytes(program)},
        cycles_an_image=cycles / case.batch_size,
        **{"utilisation %": utilisation, "KB an image": moved / 1e3 / case.batch_size},
        **{"bytes a cycle": moved / cycles},
    )
    if not MEMORIES[board]:
        what = f"{case.title}, little memory on the chip, external as {board}'s: array utilisation"
        record.bar(what, utilisation, "≥", UTILISATION_BAR, "%")


def _rooms(record: Record, case: Case, room: Room, cores: int) -> None:
    config = replace(formats(case.side), cores=cores)
    config = replace(
        config,
        memory=replace(config.memory, dram_bandwidth=SHARED * config.memory.dram_words_per_cycle),
    )
    machine = Machine(config, tiles=room.tiles, rows=room.rows, masks=room.masks)
    batch = cores * case.batch_size
    compiled = _compiled(record, f"{case.name}, {cores} cores, little memory", case, machine, batch)
    if compiled is None:
        return
    program, macs = compiled
    cycles = cycles_per_step(program, "train")
    utilisation = 100 * macs * batch / (program.config.mac_lanes * cycles)
    moved = dram_bytes(program, "train")
    record.row(
        ROOMS_OF_CORES,
        network=case.name,
        cores=cores,
        lanes=program.config.mac_lanes,
        batch=batch,
        **{"on-chip MB a core": _megabytes(program)},
        cycles_a_step=cycles,
        **{"utilisation %": utilisation, "KB an image": moved / 1e3 / batch},
        **{"bytes a cycle": moved / cycles},
    )
    what = f"{case.name}, {program.config.mac_lanes} lanes, little memory: array utilisation"
    record.bar(what, utilisation, "≥", UTILISATION_BAR, "%")


def _compiled(
    record: Record, title: str, case: Case, machine: Machine, batch: int
) -> tuple[Program, int] | None:
    """The program, and the multiply-accumulates of an image."""
    model = case.build()
    try:
        return FPGA(model, config=machine).program(batch_size=batch), useful_macs(model)
    except FpgradError as error:
        record.failed(title, error)
        return None


def _megabytes(program: Program) -> float:
    """Memories on the chip, of a core."""
    return sum(m.capacity_bits for m in memories(program)) / 8e6


def main(out: Path = RESULTS) -> None:
    """Count cycles on machines of several cores, and of little memory."""
    finish(run(), out)


if __name__ == "__main__":
    typer.run(main)
