"""Cycles of a training step: counted by the generated hardware, and by the emulator's model of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from benchmarks.models import LARGE, MIDDLE, SMALL, Case, compile_case, dense_case, joined
from benchmarks.record import RESULTS, Record, finish, recording, say
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import FpgradError
from fpgrad.flow.build import make_executor
from fpgrad.flow.estimate import useful_macs
from fpgrad.host.session import Session
from fpgrad.isa.compare import count_differences
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.program import Program
from fpgrad.keras.device import Trial

TABLE = "Cycles of a training step"

STEP_BAR, UTILISATION_BAR, MODEL_BAR = 2500, 85.0, 1.0

NOTES = """\
* one run of the steps stated, from start to the end of the last unit, divided by the steps: what
  begins before the first step and ends after the last is in it
* utilisation: multiply-accumulates that the model asks for (padding left out), divided by lanes
  times cycles of the whole step: forward, backward, gradients, optimizer and metrics
* steady: the emulator's cycles from one step to the next in a long run
* cases with the same tiles share one machine, the smallest for all of them, unless it is said to
  be its own: the smallest for this case alone. 'steady, own machine' is for that one
* same bits: every word of every memory after the run, weights among them, and the metrics are equal
  on RTL and emulator, to the bit
"""


@dataclass(frozen=True)
class Count:
    """A case, how many steps of it run in one go, and whether it has a machine of its own."""

    case: Case
    steps: int
    own: bool = False


CASES = (
    Count(SMALL, 45, own=True),
    Count(LARGE, 4),
    Count(MIDDLE, 45),
    Count(dense_case((32, 64, 10), 1), 45),
    Count(dense_case((32, 64, 10), 33), 45),
    Count(dense_case((32, 64, 10), 32, normalise=True), 45),
    Count(dense_case((32, 64, 10), 32, dropout=0.2), 45),
    Count(dense_case((32, 64, 10), 32, "sgd"), 45),
    Count(dense_case((32, 64, 10), 32, side=8), 45),
)


def run(cases: Sequence[Count] = CASES, cache: Path | None = None) -> Record:
    """Run the same steps on the RTL and on the emulator, and compare cycles and results.

    Args:
        cases: what to run.
        cache: where simulations are kept; the user's cache unless given.
    """
    with recording("cycles", cases={c.case.title: c.steps for c in cases}) as record:
        record.note(NOTES)
        programs = _compile(record, cases)
        differences = [0.0]
        for count, smallest, machine in programs:
            try:
                differences.append(_count(record, count, smallest, machine, cache))
            except FpgradError as error:
                record.failed(count.case.title, error)
        what = "emulator's cycles away from the RTL's, largest of all cases"
        record.bar(what, max(differences), "≤", MODEL_BAR, "%")
        different = sum(not row["same bits"] for row in record.tables.get(TABLE, ()))
        record.bar("cases whose bits differ on RTL and emulator", different, "≤", 0, "")
        record.count_failures()
    return record


def _compile(record: Record, cases: Sequence[Count]) -> list[tuple[Count, Program, MachineConfig]]:
    """The cases that compile, each with its program for its own machine, and the machine to use."""
    found: list[tuple[Count, Program]] = []
    for count in cases:
        try:
            found.append((count, compile_case(count.case)[1]))
        except FpgradError as error:
            record.failed(count.case.title, error)
    shared = {
        side: joined([p.config for c, p in found if c.case.side == side and not c.own])
        for side in {c.case.side for c, _ in found if not c.own}
    }
    return [(c, p, p.config if c.own else shared[c.case.side]) for c, p in found]


def _count(
    record: Record, count: Count, smallest: Program, machine: MachineConfig, cache: Path | None
) -> float:
    case, steps = count.case, count.steps
    fpga, program = compile_case(case, machine)
    both = run_on_both(program, fpga._device.trial(steps, case.batch_size, seed=0), cache)
    rtl, emulator = both.rtl / steps, both.emulator / steps
    difference = 100 * (emulator / rtl - 1)
    lanes = program.config.mac_lanes
    # A batch of one is compiled for two, of which one is padding.
    real = case.batch_size / program.meta["functions"]["train"]["batch_size"]
    utilisation = 100 * real * useful_macs(program, "train") / lanes / rtl
    record.row(
        TABLE,
        model=case.name,
        batch=case.batch_size,
        lanes=lanes,
        machine="its own" if count.own else "shared",
        steps=steps,
        RTL=rtl,
        emulator=emulator,
        **{"difference %": difference},
        steady=cycles_per_step(program, "train"),
        **{"steady, own machine": cycles_per_step(smallest, "train")},
        **{"utilisation %": utilisation},
        same_bits=both.differing == 0,
    )
    if case == SMALL:
        record.bar(f"{case.title}: cycles a step in RTL", rtl, "≤", STEP_BAR, "cycles")
    if case == LARGE:
        what = f"{case.title}: array utilisation in RTL"
        record.bar(what, utilisation, "≥", UTILISATION_BAR, "%")
    return abs(difference)


@dataclass(frozen=True)
class Both:
    """The same steps on RTL and emulator: cycles, words compared and found different, time of the RTL."""

    rtl: int
    emulator: int
    words: int
    differing: int
    seconds: float


def run_on_both(program: Program, trial: Trial, cache: Path | None) -> Both:
    """Train the same steps in one run on both, and compare metrics and all memories afterwards.

    Args:
        program: for the machine of the RTL.
        trial: data of the steps.
        cache: where simulations are kept; the user's cache unless given.
    """
    cycles, sums, dumps, seconds = {}, {}, {}, {}
    for backend, options in (
        ("emulator", {}),
        ("rtl", {"cache_dir": cache, "progress": _progress}),
    ):
        executor = make_executor(backend, program.config, **options)
        session = Session(program, executor)
        session.write_states(trial.states)
        data = session.upload(trial.data)
        start = time.perf_counter()
        sums[backend] = session.train(data, trial.order, trial.scalars, trial.seeds)
        seconds[backend] = time.perf_counter() - start
        cycles[backend] = session.counters["cycles"]
        dumps[backend] = executor.dump()
    differing, words = count_differences(dumps["rtl"], dumps["emulator"])
    differing += sum(sums["rtl"][name] != value for name, value in sums["emulator"].items())
    return Both(cycles["rtl"], cycles["emulator"], words, differing, seconds["rtl"])


def _progress(what: str, done: int, parts: int) -> None:
    if done in (0, parts):
        say(f"  building the simulation: {what} {done} of {parts}")


def main(case: str = "", cache: Path | None = None, out: Path = RESULTS) -> None:
    """Count cycles on RTL and emulator; --case keeps those whose title has this text."""
    chosen = [c for c in CASES if case in c.case.title]
    finish(run(chosen, cache), out)


if __name__ == "__main__":
    typer.run(main)
