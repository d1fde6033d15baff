"""Runs programs on the reference and on emulators from the same random memories, and compares everything."""

from __future__ import annotations

from collections.abc import Iterator

from tests.programs.cases import Case, run

from fpgrad.emulator import EmulatorExecutor, available_levels
from fpgrad.isa.compare import first_difference
from fpgrad.isa.config import MachineConfig
from fpgrad.reference import ReferenceExecutor


def emulators(config: MachineConfig) -> Iterator[EmulatorExecutor]:
    """One at each level, and one with two threads."""
    for level in available_levels():
        yield EmulatorExecutor(config, threads=1, level=level)
    yield EmulatorExecutor(config, threads=2)


class Equality:
    """A reference machine and emulators of one configuration, kept between programs."""

    def __init__(self, config: MachineConfig) -> None:
        self.reference = ReferenceExecutor(config)
        self.emulators = list(emulators(config))

    def check(self, case: Case) -> None:
        """Run the case; memories, counters and external memory must be the same."""
        expected = run(self.reference, case)
        dump = self.reference.dump()
        for emulator in self.emulators:
            results = run(emulator, case)
            where = f"{emulator.level}, {emulator.threads} threads"
            difference = first_difference(dump, emulator.dump(), case.program)
            assert difference is None, f"{where}: {difference}"
            for result, wanted in zip(results, expected, strict=True):
                counters = result.saturated_vector, result.saturated_accumulator
                assert counters == (wanted.saturated_vector, wanted.saturated_accumulator), where
            total = sum(r.saturated_vector + r.saturated_accumulator for r in results)
            assert sum(emulator.saturation_by_instruction().values()) == total, where
