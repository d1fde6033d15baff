"""Runs programs on the reference and on emulators from the same random memories, and compares everything."""

from __future__ import annotations

from collections.abc import Iterator

from tests.strategies import contents

from fpgrad.emulator import EmulatorExecutor, available_levels
from fpgrad.isa.compare import first_difference
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor

BASES = (0, 0)


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

    def check(self, program: Program, seed: int, odd: bool, steps: int = 1) -> None:
        """Run the program's entry "run"; memories, counters and external memory must be the same."""
        memories = contents(program.config, seed, odd).memories
        self.reference.load_program(program)
        self.reference.restore(memories)
        expected = self.reference.run("run", steps, BASES)
        dump = self.reference.dump()
        for emulator in self.emulators:
            emulator.load_program(program)
            emulator.restore(memories)
            result = emulator.run("run", steps, BASES)
            where = f"{emulator.level}, {emulator.threads} threads"
            difference = first_difference(dump, emulator.dump(), program)
            assert difference is None, f"{where}: {difference}"
            counters = result.saturated_vector, result.saturated_accumulator
            assert counters == (expected.saturated_vector, expected.saturated_accumulator), where
            by_instruction = emulator.saturation_by_instruction()
            assert sum(by_instruction.values()) == sum(counters), where
