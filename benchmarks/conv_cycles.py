"""Cycles of a training step of the convolutional networks 1X, 2X and 4X, in the generated hardware too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from benchmarks.cycles import MODEL_BAR, run_on_both
from benchmarks.models import Case, compile_case, formats
from benchmarks.networks import cifar_case, cifar_model, useful_macs
from benchmarks.record import RESULTS, Record, finish, recording, spread
from benchmarks.timing import timed_both
from fpgrad import FPGA
from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.estimate import dram_bytes, layer_rows, memories
from fpgrad.isa.instructions import Unit
from fpgrad.isa.program import Program

UTILISATION_BAR, COMPILE_BAR = 90.0, 3.0

CASES = (cifar_case(1, 16), cifar_case(1, 32), cifar_case(2, 16), cifar_case(4, 16))

#: Tiles on the chip in the machines whose other tiles wait in external memory.
TILES = (6144, 5120)

CYCLES, MEMORY = "Cycles of a training step of 1X, 2X and 4X", "Their programs and machines"
FEWER = "1X with fewer tiles on the chip"
#: Per cent of a step's cycles below which a layer is not listed.
LEAST_SHARE = 0.3

RTL, UNITS = "A whole training step in RTL", "Where the cycles of 1X go"


NOTES = """\
* 1X: `16 C3 - 16 C3 - MP2 - 32 C3 - 32 C3 - MP2 - 64 C3 - 64 C3 - MP2 - FC10` on 32x32x3, each C3
  a 3x3 convolution with padding and ReLU; 2X and 4X are twice and four times as wide. Softmax
  cross-entropy, SGD with momentum; Keras models through `FPGA`, loss and accuracy summed on the
  machine
* **cycles are those of the emulator's cycle model**, from one step to the next in a long run: forward,
  backward, gradients, optimizer and metrics. `python -m benchmarks.conv_cycles --rtl` measures a
  whole step of 1X in the generated hardware as well
* utilisation: multiply-accumulates that the mathematics asks for, **without products with
  padding**, divided by lanes times cycles of the whole step. They are counted from the Keras model,
  not from the program
* 'published way' counts taps on padding as work, as the published figures do:
  {counted}. The machine skips
  these taps, so that it can exceed 100 % by that way, which then is no utilisation of an array but
  a speed, in units of one that does not skip them and is always busy
* vector unit: share of the step's cycles in which it makes rows; it works beside the matrix unit.
  Where both wait for each other is in neither share
* seconds to compile: from a Keras model to the program with its training, evaluation and prediction
  steps; median (least to greatest). The compiler has one thread: on a computer without other work
  processor time is the wall's. The bar is on the slowest
* on-chip MB: all memories of the machine with what second read ports cost, in millions of bytes;
  external KB: data, indices and, with fewer tiles, tiles that come and go; the port is {words} words
  of 32 bits wide, latency {latency} cycles, no refresh
* a step in RTL: of 1X on one core and on four, at 256 and 1024 lanes, 16 samples a core, everything on
  the chip; all words of all memories are compared with the emulator's, and the sums of metrics
* published figures: `benchmarks.published`
"""


def run(
    cases: Sequence[Case] = CASES,
    repetitions: int = 3,
    tiles: Sequence[int] = TILES,
    *,
    rtl: Sequence[int] = (),
    cache: Path | None = None,
) -> Record:
    """Compile each network and follow its training step with the cycle model.

    Args:
        cases: of the networks; the first is taken apart, given fewer tiles, and run in RTL.
        repetitions: times that each is compiled.
        tiles: on the chip in the machines that have fewer than the first case wants.
        rtl: on how many cores to build and run the first case's hardware, one after the other.
        cache: where simulations are kept; the user's cache unless given.
    """
    with recording("conv_cycles", cases=[c.title for c in cases], rtl=list(rtl)) as record:
        counted = ", ".join(
            f"{useful_macs(cifar_model(k), padding=True) / 1e6:.2f} M for {k}X" for k in (1, 2, 4)
        )
        memory = formats(16).memory
        record.note(
            NOTES.format(
                counted=f"{counted}, an image",
                words=memory.dram_words_per_cycle,
                latency=memory.dram_latency,
            )
        )
        programs: dict[str, Program] = {}
        for case in cases:
            try:
                programs[case.title] = _measure(record, case, repetitions)
            except FpgradError as error:
                record.failed(case.title, error)
        for limit in tiles:
            _fewer(record, cases[0], limit)
        if cases[0].title in programs:
            _take_apart(record, programs[cases[0].title])
            for cores in rtl:
                _run_rtl(record, cases[0], cores, cache)
        record.count_failures()
    return record


def _measure(record: Record, case: Case, repetitions: int) -> Program:
    taken = []
    for _ in range(repetitions):
        model = case.build()
        fresh = replace(case, build=lambda model=model: model)
        taken.append(timed_both(lambda fresh=fresh: compile_case(fresh)))
    wall, processor = zip(*taken, strict=True)
    fpga, program = compile_case(case)
    cycles = cycles_per_step(program, "train")
    rows = layer_rows(program, "train")
    share = {
        "utilisation %": _utilisation(case, program, useful_macs(fpga.model)),
        "published way %": _utilisation(case, program, useful_macs(fpga.model, padding=True)),
        "matrix unit %": 100 * sum(r.matrix_cycles for r in rows) / cycles,
        "vector unit %": 100 * sum(r.vector_cycles for r in rows) / cycles,
    }
    record.row(
        CYCLES,
        network=case.name,
        batch=case.batch_size,
        lanes=program.config.mac_lanes,
        cycles_a_step=cycles,
        cycles_an_image=cycles / case.batch_size,
        **share,
    )
    memory = program.config.memory
    record.row(
        MEMORY,
        network=case.name,
        batch=case.batch_size,
        seconds_to_compile=spread(wall),
        processor_seconds=spread(processor),
        instructions=sum(len(program.units[u]) for u in Unit),
        tiles=memory.tiles,
        vector_rows=memory.vector_rows,
        mask_rows=memory.mask_rows,
        inbox_rows=memory.inbox_rows,
        **_moved(case, program),
    )
    what = f"{case.title}: array utilisation of a training step, padding not counted"
    record.bar(what, share["utilisation %"], "≥", UTILISATION_BAR, "%")
    if case.name == "1X":
        what = f"{case.title}: model to program, processor time"
        record.bar(what, max(processor), "≤", COMPILE_BAR, "s")
    return program


def _utilisation(case: Case, program: Program, macs: int) -> float:
    possible = program.config.mac_lanes * cycles_per_step(program, "train")
    return 100 * macs * case.batch_size / possible


def _moved(case: Case, program: Program) -> dict[str, float]:
    """Memory on the chip, and traffic with external memory."""
    return {
        "on-chip MB": sum(m.capacity_bits for m in memories(program)) / 8e6,
        "external KB an image": dram_bytes(program, "train") / 1e3 / case.batch_size,
    }


def _fewer(record: Record, case: Case, limit: int) -> None:
    """The same step where tiles wait in external memory."""
    fpga = compile_case(case)[0]
    machine = Machine(formats(case.side), tiles=limit)
    try:
        program = compile_functions(fpga.functions(case.batch_size), machine)
    except FpgradError as error:
        record.failed(f"{case.title}, {limit} tiles", error)
        return
    cycles = cycles_per_step(program, "train")
    record.row(
        FEWER,
        network=case.name,
        batch=case.batch_size,
        tiles=program.config.memory.tiles,
        cycles_an_image=cycles / case.batch_size,
        **{"utilisation %": _utilisation(case, program, useful_macs(fpga.model))},
        **_moved(case, program),
        **{"bytes a cycle": dram_bytes(program, "train") / cycles},
    )


def _take_apart(record: Record, program: Program) -> None:
    """Busy cycles of both units by layer, as shares of the step."""
    cycles = cycles_per_step(program, "train")
    layers: dict[str, Counter[str]] = {}
    for row in layer_rows(program, "train"):
        count = layers.setdefault(row.name, Counter())
        count[row.phase] += row.matrix_cycles
        count["vector"] += row.vector_cycles
    for name, count in layers.items():
        shares = {what: 100 * busy / cycles for what, busy in count.items()}
        if max(shares.values()) >= LEAST_SHARE:
            record.row(
                UNITS,
                layer=name,
                **{
                    f"matrix, {p} %": shares.get(p, 0.0)
                    for p in ("forward", "backward", "gradient")
                },
                **{"vector unit %": shares["vector"]},
            )


def _run_rtl(record: Record, case: Case, cores: int, cache: Path | None) -> None:
    """One whole step on RTL and emulator, every word of every memory compared."""
    machine = Machine(replace(formats(case.side), cores=cores))
    batch = cores * case.batch_size
    fpga = FPGA(case.build(), config=machine)
    title = f"{case.name}, {cores * case.side**2} lanes, batch {batch}: a step in RTL"
    try:
        program = fpga.program(batch)
        both = run_on_both(program, fpga._device.trial(1, batch, seed=0), cache)
    except FpgradError as error:
        record.failed(title, error)
        return
    difference = 100 * (both.emulator / both.rtl - 1)
    macs = useful_macs(fpga.model) * batch
    record.row(
        RTL,
        network=case.name,
        cores=cores,
        lanes=program.config.mac_lanes,
        batch=batch,
        RTL=both.rtl,
        emulator=both.emulator,
        **{"difference %": difference},
        **{"utilisation %": 100 * macs / (program.config.mac_lanes * both.rtl)},
        words_compared=both.words,
        differing=both.differing,
        simulation_seconds=both.seconds,
    )
    record.bar(f"{title}: words that differ from the emulator's", both.differing, "≤", 0, "")
    record.bar(f"{title}: emulator's cycles away", abs(difference), "≤", MODEL_BAR, "%")


def main(
    repetitions: int = 3, rtl: bool = False, cache: Path | None = None, out: Path = RESULTS
) -> None:
    """Count cycles of 1X, 2X and 4X; --rtl also simulates a step of 1X on one and four cores, which takes minutes."""
    finish(run(repetitions=repetitions, rtl=(1, 4) if rtl else (), cache=cache), out)


if __name__ == "__main__":
    typer.run(main)
