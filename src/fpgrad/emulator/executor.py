"""The emulator as an executor: hands programs to the native machine and translates what comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.emulator import _native
from fpgrad.emulator.leaves import leaves
from fpgrad.emulator.timing import CycleModel
from fpgrad.errors import ExecutionError, InvalidArgumentError, ProgramError
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import RunResult
from fpgrad.isa.instructions import Unit, Vector
from fpgrad.isa.program import Program

#: What :meth:`EmulatorExecutor.dump` and :meth:`EmulatorExecutor.poke` know by name.
MEMORIES = (
    "vector", "inbox", "outbox", "mask", "mantissas", "exponents", "scalars", "random", "dram",
)  # fmt: skip


def _numbers(config: MachineConfig) -> dict[str, int]:
    """The parameters that decide bits, by the names of the native Config."""
    number, tile, table = config.vector.number, config.matrix.tile, config.vector.table
    accumulator, memory = config.matrix.accumulator, config.memory
    return {
        "side": tile.side,
        "mantissa_bits": tile.mantissa_bits,
        "accumulator_bits": accumulator.bits,
        "guard_bits": accumulator.guard_bits,
        "float_exponent_bits": number.exponent_bits,
        "float_mantissa_bits": number.mantissa_bits,
        "table_segments": table.segments,
        "coefficient_bits": table.coefficient_bits,
        "vector_rows": memory.vector_rows,
        "tiles": memory.tiles,
        "inbox_rows": memory.inbox_rows,
        "outbox_rows": memory.outbox_rows,
        "mask_rows": memory.mask_rows,
        "dram_rows": memory.dram_rows,
        "ways": config.vector.ways,
        "cores": config.cores,
    }


def _check(program: Program) -> None:
    """Refuse what the layout can say but no machine can do."""
    width, side = program.config.vector.number.width, program.config.side
    for unit in Unit:
        for index, instruction in enumerate(program.units.get(unit, ())):
            where = f"{unit.name.lower()} instruction {index}"
            counts = instruction.loops if isinstance(instruction, Vector) else instruction
            names = ("n3", "n2", "n1", "n0", "k2", "k1", "k0", "count")
            for name in names if unit in (Unit.MATRIX, Unit.VECTOR) else (*names, "rows"):
                if getattr(counts, name, 1) < 1:
                    raise ProgramError(f"{where}: {name} must be at least 1, not 0")
            if not isinstance(instruction, Vector):
                continue
            for name in ("i0", "i1"):
                operand = getattr(instruction, name)
                limit = side if operand.scalar else 1 << width
                if operand.value >= limit:
                    kind = "a scalar's number" if operand.scalar else f"a code of {width} bits"
                    raise ProgramError(
                        f"{where}: {name} must be {kind}, below {limit}, not {operand.value}"
                    )


def available_levels() -> tuple[str, ...]:
    """The kernels that this processor can run, slowest first, of "baseline", "avx2", "avx512" and "avx512vnni"."""
    return tuple(_native.available_levels())


class EmulatorExecutor:
    """Runs programs in native code, with the bits of the reference.

    Args:
        config: the machine.
        threads: how many threads may work at once, for a core each or, where they are more, for parts of what cores
            do; None: as many as pay. The bits do not depend on it.
        level: which kernels to use, one of :func:`available_levels`; None: the last of them.

    Raises:
        InvalidArgumentError: a level that this processor does not have, or less than one thread.
    """

    def __init__(
        self, config: MachineConfig, threads: int | None = None, level: str | None = None
    ) -> None:
        levels = available_levels()
        if level is not None and level not in levels:
            raise InvalidArgumentError(f"level must be one of {', '.join(levels)}, not {level!r}")
        if threads is not None and threads < 1:
            raise InvalidArgumentError(f"threads must be at least 1, not {threads}")
        self.config = config
        self.level = levels[-1] if level is None else level
        self.threads = min(2, os.cpu_count() or 1) if threads is None else threads
        self._program: Program | None = None
        self._entries: dict[str, tuple[list[int], list[int], list[list[int]]]] = {}
        self._model: CycleModel | None = None
        self._native = self._make()

    def _make(self) -> _native.Native:
        tables = {int(t.function): (list(t.base), list(t.slope)) for t in self.config.tables}
        return _native.Native(_numbers(self.config), tables, self.threads, self.level)

    def load_program(self, program: Program) -> None:
        """See :class:`fpgrad.isa.executor.Executor`.

        Raises:
            ProgramError: an instruction that no machine can execute.
        """
        program.check_machine(self.config)
        _check(program)
        self._native.load_program(*(leaves(program, unit) for unit in Unit))
        self._program = program
        self._entries = {
            name: (list(e.start), list(e.stop), [list(row) for row in e.tokens])
            for name, e in program.entries.items()
        }
        self._model = CycleModel(program)

    def write(self, row: int, words: NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.isa.executor.Executor`."""
        try:
            self._native.write(row, np.ascontiguousarray(words, np.uint32))
        except _native.Fault as fault:
            raise ExecutionError(str(fault)) from None

    def read(self, row: int, rows: int) -> NDArray[np.uint32]:
        """See :class:`fpgrad.isa.executor.Executor`."""
        try:
            return self._native.read(row, rows)
        except _native.Fault as fault:
            raise ExecutionError(str(fault)) from None

    def run(self, entry: str, steps: int, bases: Sequence[int]) -> RunResult:
        """See :class:`fpgrad.isa.executor.Executor`. Ctrl-C stops between instructions.

        The machine's memories are as they were when an error or an interrupt stopped the run.
        """
        program = self._program
        if program is None:
            raise ExecutionError("no program is loaded")
        if entry not in program.entries:
            raise ProgramError(f"entry must be one of {sorted(program.entries)}, not {entry!r}")
        before = self._saturated()
        registers = [int(b) for b in bases] + [0] * (16 - len(bases))
        stopped = self._native.run(*self._entries[entry], steps, registers)
        if stopped is not None:
            raise ExecutionError(self._where(*stopped))
        after = self._saturated()
        return RunResult(self._cycles(entry, steps), after[0] - before[0], after[1] - before[1])

    def _cycles(self, entry: str, steps: int) -> int:
        """Clock cycles of a run, by the cycle model."""
        assert self._model is not None
        return self._model.run(entry, steps)

    def _saturated(self) -> tuple[int, int]:
        """Elements since the program was loaded: of the vector unit and of sums over the cores, of accumulators."""
        vector, accumulator, sums = (sum(counts) for counts in self._native.saturated())
        return vector + sums, accumulator

    def _where(self, message: str, core: int, unit: int, index: int, step: int) -> str:
        if unit < 0 or self._program is None:
            return message
        notes = self._program.notes.get(Unit(unit), ())
        layer = notes[index].layer if index < len(notes) else ""
        place = f" of core {core}" if self.config.cores > 1 else ""
        place += f" (layer {layer})" if layer else ""
        return f"{Unit(unit).name.lower()} instruction {index}{place}, step {step}: {message}"

    def saturation_by_instruction(self) -> dict[tuple[Unit, int], int]:
        """Elements that saturated since the program was loaded, by instruction; those with none are left out.

        An accumulator's are counted for the vector instruction that took its row, as in :class:`RunResult`; those of a
        sum over the cores once, for the LOAD that took it.
        """
        vector, accumulator, sums = self._native.saturated()
        both = [v + a for v, a in zip(vector, accumulator, strict=True)]
        counts = {Unit.LOAD: sums, Unit.VECTOR: both}
        return {(unit, i): n for unit, listed in counts.items() for i, n in enumerate(listed) if n}

    def dump(self) -> dict[str, NDArray[Any]]:
        """A copy of every memory by name: codes as int64, external memory's words written so far as uint32."""
        dumps: dict[str, NDArray[Any]] = {}
        for name in MEMORIES:
            if name == "dram":
                dumps[name] = self.read(0, self._native.touched())
                continue
            each = [self._native.dump(name, core) for core in range(self.config.cores)]
            dumps[name] = each[0] if len(each) == 1 else np.stack(each)
        return dumps

    def sizes(self) -> dict[str, int]:
        """Bytes that the native executor holds.

        Returns:
            of all cores together, for each memory by name; for finished rows that wait ("accumulated"), rows that
            cores send each other ("exchange"), instructions ("program"), what is known of them before they run
            ("plans"), tiles in other orders ("forms"), and "scratch".
        """
        return self._native.sizes()

    def restore(self, memories: Mapping[str, NDArray[Any]]) -> None:
        """Set memories from a dump, or from part of one."""
        for name, contents in memories.items():
            if name == "dram":
                self.write(0, contents)
                continue
            each = np.ascontiguousarray(contents, np.int64).reshape(self.config.cores, 1, -1)
            for core, values in enumerate(each):
                self._native.restore(name, core, 0, values)

    def poke(self, name: str, index: int | tuple[int, ...], value: int) -> None:
        """Overwrite one element of the memory ``name`` (see :meth:`dump`).

        Raises:
            InvalidArgumentError: no such memory, or no such element.
        """
        if name not in MEMORIES:
            raise InvalidArgumentError(f"memory must be one of {', '.join(MEMORIES)}, not {name!r}")
        t, m, cores = self.config.side, self.config.memory, self.config.cores
        shape = {
            "vector": (m.vector_rows, t), "inbox": (m.inbox_rows, t), "outbox": (m.outbox_rows, t),
            "mask": (m.mask_rows, t), "mantissas": (m.tiles, t, t), "exponents": (m.tiles,), "dram": (m.dram_rows, t),
        }.get(name, (t,))  # fmt: skip
        if cores > 1 and name != "dram":
            shape = (cores, *shape)
        at = index if isinstance(index, tuple) else (index,)
        try:
            flat = int(np.ravel_multi_index(at, shape))
        except ValueError as error:
            raise InvalidArgumentError(
                f"index {index} is outside {name} of shape {shape}"
            ) from error
        if name == "dram":
            row, lane = divmod(flat, t)
            words = self.read(row, 1)
            words[0, lane] = value
            self.write(row, words)
            return
        core, first = divmod(flat, int(np.prod(shape)) // cores)
        self._native.restore(name, core, first, np.array([[value]], np.int64))


__all__ = ["MEMORIES", "EmulatorExecutor", "available_levels"]
