"""Runs cases on the reference and on emulators from the same random memories, and compares everything."""

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
        """Run a case; memories, counters and external memory must be the same."""
        expected = [
            (r.saturated_vector, r.saturated_accumulator) for r in run(self.reference, case)
        ]
        dump = self.reference.dump()
        for emulator in self.emulators:
            results = run(emulator, case)
            where = f"{emulator.level}, {emulator.threads} threads"
            found = emulator.dump()
            assert found.keys() == dump.keys()
            difference = first_difference(dump, found, case.program)
            assert difference is None, f"{where}: {difference}"
            counters = [(r.saturated_vector, r.saturated_accumulator) for r in results]
            assert counters == expected, where
            by_instruction = emulator.saturation_by_instruction()
            assert sum(by_instruction.values()) == sum(sum(c) for c in counters), where
