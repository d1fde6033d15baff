"""Programs on a machine behind a link: the executor that simulations and boards share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import ExecutionError, ProgramError
from fpgrad.isa.area import image
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import RunResult
from fpgrad.isa.instructions import Unit
from fpgrad.isa.program import Entry, Program
from fpgrad.isa.ranges import check_entry
from fpgrad.isa.registers import (
    BASE_REGISTERS,
    MAGIC,
    VERSION,
    WORD_BITS,
    Control,
    Register,
    Status,
    UnitStatus,
    instruction_address,
    instruction_words,
)
from fpgrad.link.base import Link


class LinkExecutor:
    """An :class:`fpgrad.isa.executor.Executor` on the machine behind ``link``.

    Args:
        link: the connection.
        config: what the machine was made from.
        timeout: seconds that a run may take.

    Raises:
        ExecutionError: what answers is not a machine of this configuration.
    """

    def __init__(self, link: Link, config: MachineConfig, *, timeout: float = 3600.0) -> None:
        self.link, self.config, self.timeout = link, config, timeout
        self._program: Program | None = None
        self._check_machine()

    def load_program(self, program: Program) -> None:
        """See :class:`fpgrad.isa.executor.Executor`."""
        program.check_machine(self.config)
        self.link.clear()
        if self.config.control.streamed:
            firsts, words = image(self.config, {unit: program.words(unit) for unit in Unit})
            self.link.write_memory(firsts[0], words)
            self.link.write_registers(Register.PROGRAM, firsts)
            self._program = program
            return
        for unit in Unit:
            used = instruction_words(unit)
            for index, packed in enumerate(program.words(unit)):
                words = [(packed >> (WORD_BITS * n)) & 0xFFFFFFFF for n in range(used)]
                self.link.write_registers(instruction_address(unit, index), words)
        self._program = program

    def write(self, row: int, words: NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.isa.executor.Executor`.

        Raises:
            ExecutionError: outside external memory.
        """
        values = np.ascontiguousarray(words, dtype=np.uint32)
        self._check_rows(row, len(values))
        self.link.write_memory(row, values)

    def read(self, row: int, rows: int) -> NDArray[np.uint32]:
        """See :class:`fpgrad.isa.executor.Executor`.

        Raises:
            ExecutionError: outside external memory.
        """
        self._check_rows(row, rows)
        return self.link.read_memory(row, rows)

    def run(self, entry: str, steps: int, bases: Sequence[int]) -> RunResult:
        """See :class:`fpgrad.isa.executor.Executor`.

        After a run that did not end the program has to be loaded again, and where it streams in from external memory
        after one that left the data's rows there.
        """
        if self._program is None:
            raise ExecutionError("no program is loaded")
        if entry not in self._program.entries:
            raise ProgramError(
                f"entry must be one of {sorted(self._program.entries)}, not {entry!r}"
            )
        check_entry(self._program, self._program.entries[entry])
        self._start(self._program.entries[entry], steps, bases)
        status = self.link.wait(self.timeout)
        if status & Status.RUNNING:
            self._give_up(status)
        if status & Status.ADDRESS_ERROR:
            if self.config.control.streamed:
                # A store may have been to the program, which is behind the data.
                self._program = None
            rows = self.config.memory.dram_rows
            raise ExecutionError(f"a load or store was outside the {rows} rows of external memory")
        if status & Status.TOKEN_OVERFLOW:
            raise ExecutionError("a token channel held more than 255 tokens")
        if status & Status.ROWS_LEFT:
            raise ExecutionError("accumulator rows were never taken")
        if status & Status.SUMS_LEFT:
            raise ExecutionError("rows were sent to the exchange and never taken")
        return RunResult(
            self._counter(Register.CYCLES),
            self._counter(Register.SATURATED_VECTOR),
            self._counter(Register.SATURATED_ACCUMULATOR),
        )

    def counters(self) -> dict[str, int]:
        """Cycles of the last run, and of each unit those in which it had an instruction."""
        busy = {u.name.lower(): self._counter(Register.BUSY + 2 * u) for u in Unit}
        return {"cycles": self._counter(Register.CYCLES), **busy}

    def _start(self, entry: Entry, steps: int, bases: Sequence[int]) -> None:
        if not 0 <= steps < 1 << WORD_BITS:
            raise ExecutionError(f"steps must be 0 to {(1 << WORD_BITS) - 1}, not {steps}")
        if len(bases) > BASE_REGISTERS:
            raise ExecutionError(f"a machine has {BASE_REGISTERS} base registers, not {len(bases)}")
        link = self.link
        link.write_registers(Register.STEPS, [steps])
        link.write_registers(Register.BASE, [*bases, *[0] * (BASE_REGISTERS - len(bases))])
        link.write_registers(Register.START, entry.start)
        link.write_registers(Register.STOP, entry.stop)
        tokens = [sum(n << (8 * d) for d, n in enumerate(row)) for row in entry.tokens]
        link.write_registers(Register.TOKENS, tokens)
        link.write_registers(Register.CONTROL, [Control.START])

    def _give_up(self, status: Status) -> None:
        at = self.link.read_registers(Register.AT, len(Unit))
        step = self.link.read_registers(Register.STEP, len(Unit))
        state = [UnitStatus(s) for s in self.link.read_registers(Register.UNIT, len(Unit))]
        cycles = self._counter(Register.CYCLES)
        self.link.write_registers(Register.CONTROL, [Control.STOP])
        # What stays in the middle of an instruction would disturb another run.
        self._program = None
        stuck = [u for u in Unit if not state[u] & UnitStatus.FINISHED]
        where = ", ".join(
            f"{u.name.lower()} {_doing(state[u])} instruction {at[u]} of step {step[u]}"
            for u in stuck
        )
        reason = (
            "the units wait for each other"
            if status & Status.QUIET
            else f"the run did not end within {cycles} cycles"
        )
        raise ExecutionError(f"{reason}: {where}")

    def _counter(self, register: int) -> int:
        low, high = self.link.read_registers(register, 2)
        return (high << WORD_BITS) | low

    def _check_rows(self, row: int, rows: int) -> None:
        limit = self.config.memory.dram_rows
        if row < 0 or row + rows > limit:
            raise ExecutionError(
                f"DRAM rows {row} to {row + rows - 1} are outside the {limit} rows of the machine"
            )

    def _check_machine(self) -> None:
        magic, version = self.link.read_registers(Register.MAGIC, 2)
        if magic != MAGIC:
            raise ExecutionError(
                f"what answers is not an fpgrad machine: {magic:#x} instead of {MAGIC:#x}"
            )
        if version != VERSION:
            raise ExecutionError(
                f"the machine speaks version {version} of the register map, not {VERSION}"
            )
        words = self.link.read_registers(Register.DIGEST, 8)
        digest = b"".join(w.to_bytes(4, "big") for w in words).hex()
        if digest != self.config.digest:
            raise ExecutionError(
                f"the machine was made from configuration {digest[:12]}, "
                f"not from {self.config.digest[:12]}; build it again"
            )


def _doing(state: UnitStatus) -> str:
    """AT is the instruction that comes next, or the last one when there is no other."""
    return "waits at" if state & UnitStatus.WAITING else "works up to"
