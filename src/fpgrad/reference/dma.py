"""The load and store units: rows between external memory and the buffers. Specification of their instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpgrad.isa.instructions import DramAddress, Load, Store
from fpgrad.reference.machine import Machine, check_range


def dram_row(address: DramAddress, bases: Sequence[int], step: int) -> int:
    """The row that a DRAM address means in step ``step`` of a run."""
    return bases[address.register] + address.offset + step * address.step_stride


def load(machine: Machine, instruction: Load, bases: Sequence[int], step: int) -> None:
    """Words lose their low bits to become codes: a code is the upper end of its word."""
    t, shift = machine.config.side, 32 - machine.config.vector.number.width
    count, rows = instruction.count, instruction.rows
    check_range(
        "inbox",
        np.array([instruction.inbox, instruction.inbox + count * rows - 1]),
        len(machine.inbox),
    )
    numbers = np.arange(count)
    if instruction.gather:
        first = dram_row(instruction.index, bases, step)
        numbers = machine.dram_rows(first, -(-count // t)).reshape(-1)[:count].astype(np.int64)
    source = dram_row(instruction.source, bases, step)
    for i, number in enumerate(numbers):
        words = machine.dram_rows(source + int(number) * instruction.stride, rows)
        at = instruction.inbox + i * rows
        machine.inbox[at : at + rows] = words.astype(np.int64) >> shift


def store(machine: Machine, instruction: Store, bases: Sequence[int], step: int) -> None:
    """Codes become words with zeros below."""
    shift = 32 - machine.config.vector.number.width
    first, rows = instruction.outbox, instruction.rows
    check_range("outbox", np.array([first, first + rows - 1]), len(machine.outbox))
    words = machine.outbox[first : first + rows] << shift
    machine.dram_rows(dram_row(instruction.target, bases, step), rows)[:] = words.astype(np.uint32)
