"""Where a streamed program lies in external memory: behind the rows of data, unit by unit.

An instruction takes a slot of so many words as make a power of two, and at least a beat; its own words are the first of
them. Bursts of ``BURST`` slots begin at multiples of their size, so that none crosses a boundary that AXI forbids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import ConfigError
from fpgrad.isa.config import BURST, MachineConfig
from fpgrad.isa.instructions import Unit
from fpgrad.isa.registers import STREAMED_BITS, instruction_words


def slot_words(config: MachineConfig, unit: Unit) -> int:
    """Words from one instruction of ``unit`` to the next."""
    return max(1 << (instruction_words(unit) - 1).bit_length(), config.memory.dram_words_per_cycle)


def slot_beats(config: MachineConfig, unit: Unit) -> int:
    """The same in beats of the memory port, a power of two."""
    return slot_words(config, unit) // config.memory.dram_words_per_cycle


def burst_rows(config: MachineConfig) -> int:
    """Rows at multiples of which every unit's bursts may begin."""
    return max(-(-BURST * slot_words(config, unit) // config.side) for unit in Unit)


def first_rows(config: MachineConfig, counts: Mapping[Unit, int]) -> tuple[int, ...]:
    """The row of each unit's instruction 0, and the row behind the last one's last; ``counts`` are instructions."""
    unit_rows = burst_rows(config)
    rows = [_up(config.memory.dram_rows, unit_rows)]
    for unit in Unit:
        size = -(-counts.get(unit, 0) * slot_words(config, unit) // config.side)
        rows.append(rows[-1] + _up(size, unit_rows))
    return tuple(rows)


def rows_needed(config: MachineConfig, counts: Mapping[Unit, int]) -> int:
    """Rows behind those of data that a program of so many instructions takes."""
    return first_rows(config, counts)[-1] - config.memory.dram_rows


def check_room(config: MachineConfig, counts: Mapping[Unit, int]) -> None:
    """Raise unless a streamed program of so many instructions has room.

    Raises:
        ConfigError: it has not, or instructions have no number.
    """
    needed, there = rows_needed(config, counts), config.control.program_rows
    if needed > there:
        raise ConfigError(
            f"the program takes {needed} rows of external memory behind its {config.memory.dram_rows} rows of data, "
            f"the machine has {there}; raise control.program_rows"
        )
    many = [f"{u.name.lower()}: {n}" for u, n in counts.items() if n >= 1 << STREAMED_BITS]
    if many:
        raise ConfigError(
            f"a unit's program can have {(1 << STREAMED_BITS) - 1} instructions, not {'; '.join(many)}"
        )


def image(
    config: MachineConfig, packed: Mapping[Unit, Sequence[int]]
) -> tuple[tuple[int, ...], NDArray[np.uint32]]:
    """The program as it lies in external memory.

    Args:
        packed: the instructions of each unit, as whole numbers.

    Returns:
        the row of each unit's instruction 0, and the words from the first unit's on, (rows, T).
    """
    *firsts, end = first_rows(config, {unit: len(listed) for unit, listed in packed.items()})
    words = np.zeros((end - firsts[0], config.side), np.uint32)
    for unit, first in zip(Unit, firsts, strict=True):
        octets = 4 * slot_words(config, unit)
        values = np.frombuffer(b"".join(i.to_bytes(octets, "little") for i in packed[unit]), "<u4")
        words.reshape(-1)[(first - firsts[0]) * config.side :][: len(values)] = values
    return tuple(firsts), words


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
