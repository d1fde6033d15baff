"""How fast the generated hardware runs on this computer, and how long it takes to build."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import typer

from benchmarks.models import SMALL, Case, compile_case, digits, formats
from benchmarks.record import RESULTS, Record, finish, recording, say, spread
from benchmarks.timing import timed, timed_both
from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.flow.build import open_session
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.keras import FPGA
from fpgrad.rtl.build import build_model

SPEED_BAR, EPOCH_BAR, BUILD_BAR = 150_000, 15.0, 180.0

NOTES = """\
* the build is from nothing: Verilog from Amaranth, Verilator, C++ on all cores; 'cached' is the
  same call a second time
* simulated cycles are the machine's own count; each is a full cycle of the clock. The simulation
  has one thread. Processor time is this process's, which other work on the computer lengthens
  less
* an epoch is a new `FPGA(model, backend="rtl")` and `fit(x, y, epochs=1)` on the digits:
  lowering, compiling, loading and reading back are in it, the build is not
* figures are median (least to greatest)
"""


def run(
    case: Case = SMALL,
    steps: int = 45,
    repetitions: int = 5,
    samples: int | None = None,
    cache: Path | None = None,
) -> Record:
    """Build the machine, simulate steps, and fit one epoch of digits.

    Args:
        case: the model, with 32 or 64 inputs and 10 classes.
        steps: training steps in one timed run.
        repetitions: timed runs, and timed epochs.
        samples: of the digits' training set; all of them unless given.
        cache: where to build; a folder made for this run unless given.
    """
    settings = {"case": case.title, "steps": steps, "repetitions": repetitions}
    with recording("rtl_speed", **settings, samples=samples) as record:
        record.note(NOTES)
        with tempfile.TemporaryDirectory() as fresh:
            _measure(record, case, steps, repetitions, samples, cache or Path(fresh))
    return record


def _measure(
    record: Record,
    case: Case,
    steps: int,
    repetitions: int,
    samples: int | None,
    cache: Path,
) -> None:
    fpga, program = compile_case(case)
    config = program.config

    def progress(what: str, done: int, parts: int) -> None:
        if done in (0, parts):
            say(f"  building: {what} {done} of {parts}")

    build = timed(lambda: build_model(config, cache=cache, progress=progress))
    cached = [timed(lambda: build_model(config, cache=cache)) for _ in range(repetitions)]
    lanes = f"{config.mac_lanes}-lane core"
    record.row("Building", what=f"{lanes}, from nothing", seconds=build)
    record.row("Building", what=f"{lanes}, cached", seconds=spread(cached))

    session = open_session(program, "rtl", cache_dir=cache)
    trial = fpga._device.trial(steps, case.batch_size, seed=0)
    session.write_states(trial.states)
    data = session.upload(trial.data)
    wall, processor, cycles = [], [], 0
    for turn in range(repetitions + 1):
        before = session.counters["cycles"]
        seconds, used = timed_both(
            lambda: session.train(data, trial.order, trial.scalars, trial.seeds)
        )
        cycles = session.counters["cycles"] - before
        if turn:
            wall.append(cycles / seconds)
            processor.append(cycles / used)
    for clock, speeds in (("wall", wall), ("processor time", processor)):
        record.row(
            "Simulation",
            what=f"{lanes}, {steps} steps",
            cycles=cycles,
            clock=clock,
            simulated_cycles_per_second=spread(speeds),
        )

    x_train, y_train, _, _ = digits(32)
    x, y = x_train[:samples], y_train[:samples]

    def session_for(functions: Mapping[str, Function]) -> Session:
        # What FPGA(model, backend="rtl") does, with the cache of this run.
        program = compile_functions(functions, Machine(formats(case.side)))
        return open_session(program, "rtl", cache_dir=cache)

    def epoch() -> None:
        trainer = FPGA(case.build(), open_session=session_for)
        trainer.fit(x, y, batch_size=case.batch_size, epochs=1, verbose=0)

    epochs = [timed(epoch) for _ in range(repetitions)]
    record.row(
        "One epoch through fit", what=f"{len(x)} digits, {case.title}", seconds=spread(epochs)
    )
    record.bar(f"{lanes}: simulated cycles a second", float(np.median(wall)), "≥", SPEED_BAR, "")
    record.bar(f"{len(x)} digits: one epoch in RTL", float(np.median(epochs)), "≤", EPOCH_BAR, "s")
    record.bar(f"{lanes}: build", build, "≤", BUILD_BAR, "s")


def main(repetitions: int = 5, cache: Path | None = None, out: Path = RESULTS) -> None:
    """Time the RTL backend; with --cache the build is timed only if that folder lacks it."""
    finish(run(repetitions=repetitions, cache=cache), out)


if __name__ == "__main__":
    typer.run(main)
