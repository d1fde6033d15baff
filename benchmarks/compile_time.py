"""How long the compiler takes from a Keras model to a program, and how large the programs are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import typer

from benchmarks.models import LARGE, MIDDLE, SMALL, Case, compile_case, dense_case
from benchmarks.record import RESULTS, Record, finish, recording, spread
from benchmarks.timing import timed
from fpgrad.errors import FpgradError
from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import width
from fpgrad.isa.program import Program

COMPILE_BAR = 1.0

CASES = (
    SMALL,
    MIDDLE,
    LARGE,
    dense_case((32, 64, 10), 1),
    dense_case((32, 64, 10), 33),
    dense_case((32, 64, 10), 32, normalise=True),
    dense_case((32, 64, 10), 32, dropout=0.2),
    dense_case((32, 64, 10), 32, side=8),
)

NOTES = """\
* from a compiled Keras model to the program with its training, evaluation and prediction steps
  and the machine's configuration: lowering, autodiff, passes, scheduling, allocation
* seconds: median (least to greatest), all in one process; the first of all calls, in which
  modules are imported and tables made, is a row of its own. The bar is on the slowest of a model
* bytes: instructions at the width of their layout, rounded up to bytes; the file is compressed
  and holds names, symbols and notes as well
"""


def run(cases: Sequence[Case] = CASES, repetitions: int = 5) -> Record:
    """Compile each case several times from a fresh Keras model.

    Args:
        cases: what to compile.
        repetitions: times.
    """
    settings = {"cases": [c.title for c in cases], "repetitions": repetitions}
    with recording("compile_time", **settings) as record:
        record.note(NOTES)
        record.row("First call in a process", model=cases[0].title, seconds=_seconds(cases[0]))
        for case in cases:
            try:
                compile_case(case)
            except FpgradError as error:
                record.failed(case.title, error)
                continue
            taken = [_seconds(case) for _ in range(repetitions)]
            _, program = compile_case(case)
            counts = {u.name.lower(): len(program.units[u]) for u in Unit}
            record.row(
                "Compile time and program size",
                model=case.name,
                batch=case.batch_size,
                lanes=case.side**2,
                seconds=spread(taken),
                **counts,
                instructions=sum(counts.values()),
                bytes=instruction_bytes(program),
                file_bytes=file_bytes(program),
            )
            record.bar(f"{case.title}: model to program", max(taken), "≤", COMPILE_BAR, "s")
        record.count_failures()
    return record


def _seconds(case: Case) -> float:
    model = case.build()
    fresh = Case(case.name, lambda: model, case.batch_size, case.side)
    return timed(lambda: compile_case(fresh))


def instruction_bytes(program: Program) -> int:
    """Bytes of all instructions."""
    return sum(len(program.units[u]) * -(-width(CLASS_OF[u]) // 8) for u in Unit)


def file_bytes(program: Program) -> int:
    """Size of the program's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.fpg"
        program.save(path)
        return path.stat().st_size


def main(repetitions: int = 5, out: Path = RESULTS) -> None:
    """Time the compiler."""
    finish(run(repetitions=repetitions), out)


if __name__ == "__main__":
    typer.run(main)
