"""Instruction memories for a program: all of it on the chip, or rings into which it streams from external memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fpgrad.codegen.allocate import align_up
from fpgrad.errors import ConfigError, MemoryCapacityError
from fpgrad.isa.area import burst_rows, check_room, rows_needed
from fpgrad.isa.config import BURST, ControlConfig, MachineConfig
from fpgrad.isa.instructions import Unit
from fpgrad.isa.registers import MAX_INSTRUCTIONS

#: Instructions of a ring at most; deeper ones save nothing worth their room, see docs/design/machine.md.
RING = 64


def with_memories(
    config: MachineConfig, counts: Mapping[Unit, int], most: int | None
) -> MachineConfig:
    """The machine with instruction memories for so many instructions.

    Where a unit has more than ``most``, external memory is divided: its last rows are for the program.

    Raises:
        ConfigError: ``most`` is less than a burst. MemoryCapacityError: external memory has no room for the program.
    """
    if most is not None and most < BURST:
        raise ConfigError(
            f"instructions must be at least {BURST}, those of a burst from external memory, not {most}"
        )
    most = MAX_INSTRUCTIONS if most is None else min(most, MAX_INSTRUCTIONS)
    if max(counts.values()) <= most:
        depths = {u.name.lower(): min(max(8, align_up(n, 8)), most) for u, n in counts.items()}
        return replace(config, control=ControlConfig(**depths))
    ring = min(RING, 1 << (most.bit_length() - 1))
    depths = {
        u.name.lower(): min(ring, max(BURST, 1 << (n - 1).bit_length() if n else 0))
        for u, n in counts.items()
    }
    total = config.external_rows
    needed = rows_needed(replace(config, memory=replace(config.memory, dram_rows=0)), counts)
    data = (total - needed) // burst_rows(config) * burst_rows(config)
    if data <= 0:
        raise MemoryCapacityError(
            f"the program takes {needed} rows of external memory, which has {total}; raise memory.dram_rows"
        )
    return replace(
        config,
        memory=replace(config.memory, dram_rows=data),
        control=ControlConfig(**depths, program_rows=total - data),
    )


def check_memories(config: MachineConfig, counts: Mapping[Unit, int]) -> None:
    """Raise unless the program fits the machine's instruction memories, or the rows that it streams from.

    Raises:
        ConfigError: naming every memory that is too small.
    """
    if config.control.streamed:
        check_room(config, counts)
        return
    depths = {u: getattr(config.control, u.name.lower()) for u in counts}
    few = [
        f"control.{u.name.lower()}: {n} needed, {depths[u]} there"
        for u, n in counts.items()
        if n > depths[u]
    ]
    if few:
        raise ConfigError("the program does not fit the instruction memories: " + "; ".join(few))
    many = [f"{u.name.lower()}: {n}" for u, n in counts.items() if n > MAX_INSTRUCTIONS]
    if many:
        raise ConfigError(
            f"the program has more instructions than a unit's memory can have ({MAX_INSTRUCTIONS}): {'; '.join(many)}. "
            "Give the machine control.program_rows, so that programs stream in from external memory"
        )
