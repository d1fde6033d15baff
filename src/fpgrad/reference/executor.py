"""The reference executor: runs programs one instruction at a time, in any order that the tokens allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import ExecutionError, InvalidArgumentError, ProgramError
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import RunResult
from fpgrad.isa.instructions import Load, Matrix, Store, Tokens, Unit, Vector
from fpgrad.isa.program import Entry, Program
from fpgrad.reference import dma, matrix, vector
from fpgrad.reference.exchange import Exchange
from fpgrad.reference.machine import External, Machine

#: What :meth:`ReferenceExecutor.dump` and :meth:`ReferenceExecutor.poke` know by name.
MEMORIES = (
    "vector", "inbox", "outbox", "mask", "mantissas", "exponents", "scalars", "random", "dram",
)  # fmt: skip


def counts(tokens: Tokens) -> tuple[int, int, int, int]:
    """Token counts in the order of :class:`Unit`."""
    return tokens.load, tokens.matrix, tokens.vector, tokens.store


class ReferenceExecutor:
    """The specification of the machine, in NumPy. Slow; use the emulator for work."""

    def __init__(self, config: MachineConfig) -> None:
        self._program: Program | None = None
        self._clear(config)

    def _clear(self, config: MachineConfig) -> None:
        self.external = External(config)
        self.exchange = Exchange(config.vector.number, config.cores)
        self.machines = [
            Machine(config, self.external, self.exchange, core) for core in range(config.cores)
        ]

    @property
    def machine(self) -> Machine:
        """The first core."""
        return self.machines[0]

    def load_program(self, program: Program) -> None:
        """See :class:`fpgrad.isa.executor.Executor`."""
        program.check_machine(self.machine.config)
        self._clear(program.config)
        self._program = program

    def write(self, row: int, words: NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.isa.executor.Executor`."""
        self.external.rows(row, len(words))[:] = words

    def read(self, row: int, rows: int) -> NDArray[np.uint32]:
        """See :class:`fpgrad.isa.executor.Executor`."""
        return self.external.rows(row, rows).copy()

    def run(self, entry: str, steps: int, bases: Sequence[int]) -> RunResult:
        """See :class:`fpgrad.isa.executor.Executor`; cycles are not counted."""
        if self._program is None:
            raise ExecutionError("no program is loaded")
        if entry not in self._program.entries:
            raise ProgramError(
                f"entry must be one of {sorted(self._program.entries)}, not {entry!r}"
            )
        before = self._saturated()
        entry_ = self._program.entries[entry]
        runs = [_Run(self._program, entry_, machine, steps, bases) for machine in self.machines]
        while sum(run.go() for run in runs):
            pass
        for run in runs:
            run.check()
        if left := self.exchange.left():
            raise ExecutionError(f"{left} rows were sent to the exchange and never taken")
        vector, accumulator = (
            after - b for after, b in zip(self._saturated(), before, strict=True)
        )
        return RunResult(0, vector, accumulator)

    def _saturated(self) -> tuple[int, int]:
        machines = self.machines
        vector = sum(machine.saturated_vector for machine in machines)
        return vector + self.exchange.saturated, sum(m.saturated_accumulator for m in machines)

    def dump(self) -> dict[str, NDArray[Any]]:
        """A copy of every memory by name: codes as int64, external memory's words written so far as uint32."""
        names = [name for name in MEMORIES if name != "dram"]
        memories = {name: [getattr(machine, name) for machine in self.machines] for name in names}
        one = len(self.machines) == 1
        dump = {name: m[0].copy() if one else np.stack(m) for name, m in memories.items()}
        return {**dump, "dram": self.external.words.copy()}

    def restore(self, memories: Mapping[str, NDArray[Any]]) -> None:
        """Set memories from a dump, or from part of one."""
        for name, values in memories.items():
            if name == "dram":
                self.write(0, values)
                continue
            each = [values] if len(self.machines) == 1 else values
            for machine, value in zip(self.machines, each, strict=True):
                getattr(machine, name)[:] = value

    def poke(self, name: str, index: int | tuple[int, ...], value: int) -> None:
        """Overwrite one element of the memory ``name``, by its index in :meth:`dump`.

        Raises:
            InvalidArgumentError: no such memory, or no such element.
        """
        if name not in MEMORIES:
            raise InvalidArgumentError(f"memory must be one of {', '.join(MEMORIES)}, not {name!r}")
        at = index if isinstance(index, tuple) else (index,)
        try:
            if name == "dram":
                self.external.rows(at[0], 1)
                self.external.words[at] = value
                return
            machine = self.machine
            if len(self.machines) > 1:
                machine, at = self.machines[at[0]], at[1:]
            getattr(machine, name)[at] = value
        except IndexError as error:
            raise InvalidArgumentError(f"index {index} is outside {name}: {error}") from error


class _Run:
    """One core's run of an entry: a program counter and a step for each unit, and the token channels."""

    def __init__(
        self, program: Program, entry: Entry, machine: Machine, steps: int, bases: Sequence[int]
    ) -> None:
        self.program, self.entry, self.machine = program, entry, machine
        self.steps, self.bases = steps, bases
        self.channel = [list(row) for row in entry.tokens]
        self.at = list(entry.start)
        self.step = [0] * 4

    def go(self) -> bool:
        """Execute what is ready until nothing is; whether anything was."""
        any_progress, progress = False, True
        while progress:
            progress = False
            for unit in Unit:
                while self._ready(unit):
                    self._execute(unit)
                    progress = any_progress = True
        return any_progress

    def check(self) -> None:
        """Raise unless the core has come to its end."""
        stuck = [u for u in Unit if not self._finished(u)]
        if stuck:
            where = ", ".join(
                f"{u.name.lower()} at instruction {self.at[u]} of step {self.step[u]}"
                for u in stuck
            )
            core = f" of core {self.machine.core}" if self.machine.config.cores > 1 else ""
            raise ExecutionError(f"the units{core} wait for each other: {where}")
        if self.machine.accumulated:
            raise ExecutionError(
                f"{len(self.machine.accumulated)} accumulator rows were never taken"
            )

    def _finished(self, unit: Unit) -> bool:
        empty = self.entry.start[unit] == self.entry.stop[unit]
        return empty or self.step[unit] == self.steps

    def _ready(self, unit: Unit) -> bool:
        if self._finished(unit):
            return False
        instruction = self.program.units[unit][self.at[unit]]
        wanted = counts(instruction.wait)
        if any(self.channel[source][unit] < n for source, n in enumerate(wanted)):
            return False
        if isinstance(instruction, Load):
            return dma.ready(self.machine, instruction)
        return not isinstance(instruction, Vector) or len(
            self.machine.accumulated
        ) >= vector.acc_rows(instruction)

    def _execute(self, unit: Unit) -> None:
        instruction = self.program.units[unit][self.at[unit]]
        for source, n in enumerate(counts(instruction.wait)):
            self.channel[source][unit] -= n
        step = self.step[unit]
        match instruction:
            case Load():
                dma.load(self.machine, instruction, self.bases, step)
            case Matrix():
                matrix.execute(self.machine, instruction)
            case Vector():
                vector.execute(self.machine, instruction)
            case Store():
                dma.store(self.machine, instruction, self.bases, step)
        for destination, n in enumerate(counts(instruction.signal)):
            self.channel[unit][destination] += n
        self.at[unit] += 1
        if self.at[unit] == self.entry.stop[unit]:
            self.at[unit] = self.entry.start[unit]
            self.step[unit] += 1
