"""Two machines side by side: run the same case on the reference and on another, and say where they differ."""

from __future__ import annotations

from tests.programs.cases import Case, run

from fpgrad.isa.compare import first_difference
from fpgrad.isa.executor import Inspectable, RunResult
from fpgrad.reference import ReferenceExecutor


def difference(case: Case, other: Inspectable) -> str | None:
    """What differs after a case was run: the first word of a memory, or a run's counters."""
    reference = ReferenceExecutor(case.program.config)
    wanted, got = run(reference, case), run(other, case)
    left, right = reference.dump(), other.dump()
    assert left.keys() == right.keys()
    found = first_difference(left, right, case.program)
    if found is None and counters(wanted) != counters(got):
        found = f"saturated {counters(wanted)} and {counters(got)}"
    return found


def counters(results: list[RunResult]) -> list[tuple[int, int]]:
    """What does not depend on the executor."""
    return [(r.saturated_vector, r.saturated_accumulator) for r in results]
