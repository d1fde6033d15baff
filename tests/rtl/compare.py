"""Two machines side by side: run the same case on the reference and on RTL, and say where they differ."""

from __future__ import annotations

from tests.programs.cases import Case, run

from fpgrad.isa.compare import first_difference
from fpgrad.reference import ReferenceExecutor
from fpgrad.rtl.executor import RtlExecutor


def check(rtl: RtlExecutor, case: Case) -> None:
    """Run a case on both; they must not differ in a single bit."""
    reference = ReferenceExecutor(case.program.config)
    wanted, got = run(reference, case), run(rtl, case)
    difference = first_difference(reference.dump(), rtl.dump(), case.program)
    assert difference is None, difference
    for a, b in zip(wanted, got, strict=True):
        assert (a.saturated_vector, a.saturated_accumulator) == (
            b.saturated_vector,
            b.saturated_accumulator,
        )
