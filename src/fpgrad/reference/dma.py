"""The load and store units: what moves between external memory, or the other cores, and the chip. Specification of
their instructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpgrad.formats import smallfloat
from fpgrad.formats.smallfloat import Codes
from fpgrad.isa.instructions import DramAddress, Load, Store, Transfer
from fpgrad.reference.machine import Machine, check_range


def dram_row(machine: Machine, address: DramAddress, bases: Sequence[int], step: int) -> int:
    """The row that a DRAM address means to a core in step ``step`` of a run."""
    first = bases[address.register] + address.offset
    return first + step * address.step_stride + machine.core * address.core_stride


def load(machine: Machine, i: Load, bases: Sequence[int], step: int) -> None:
    """Groups one after the other, numbered or gathered."""
    t, external = machine.config.side, machine.external
    if i.kind is Transfer.SUM:
        for n in range(i.count):
            memory, address = places(machine, i, i.target + n * i.group_stride)
            memory[address] = machine.exchange.take(machine.core, i.rows)
        return
    numbers = np.arange(i.count)
    if i.gather:
        first = dram_row(machine, i.index, bases, step)
        numbers = external.rows(first, -(-i.count // t)).reshape(-1)[: i.count].astype(np.int64)
    source = dram_row(machine, i.source, bases, step)
    for n, number in enumerate(numbers):
        words = external.rows(source + int(number) * i.stride, dram_rows(i, t))
        put(machine, i, i.target + n * i.group_stride, words)


def ready(machine: Machine, i: Load) -> bool:
    """Whether the sums are there that a LOAD takes."""
    return i.kind is not Transfer.SUM or machine.exchange.ready(machine.core, i.count * i.rows)


def store(machine: Machine, i: Store, bases: Sequence[int], step: int) -> None:
    """Groups one after the other."""
    rows = dram_rows(i, machine.config.side)
    target = dram_row(machine, i.target, bases, step)
    for n in range(i.count):
        place = i.source + n * i.group_stride
        if i.kind is Transfer.SUM:
            memory, address = places(machine, i, place)
            machine.exchange.send(machine.core, memory[address])
        else:
            machine.external.rows(target + n * i.stride, rows)[:] = take(machine, i, place)


def dram_rows(i: Load | Store, t: int) -> int:
    """DRAM rows of one group: a block of tiles begins with their exponents, 4*T in a row."""
    if i.kind is Transfer.TILES:
        return -(-i.rows // (4 * t)) + i.rows * t // 4
    return i.rows


def places(machine: Machine, i: Load | Store, base: int) -> tuple[np.ndarray, Codes]:
    """The memory on chip of a transfer, and where the rows or tiles of a group go in it."""
    count = {Transfer.BYTES: 4 * i.rows, Transfer.MASKS: 32 * i.rows}.get(i.kind, i.rows)
    r = np.arange(count)
    if i.kind is Transfer.MASKS:
        address, memory = base + r // 32 * i.row_stride + r % 32, machine.mask
    else:
        address = base + r * i.row_stride
        rows = machine.inbox if isinstance(i, Load) else machine.outbox
        memory = machine.mantissas if i.kind is Transfer.TILES else rows
    check_range(i.kind.name.lower(), address, len(memory))
    return memory, address


def put(machine: Machine, i: Load, base: int, words: np.ndarray) -> None:
    """One group's words to its place. Of ROWS, words lose their low bits to become codes."""
    fmt, t = machine.config.vector.number, machine.config.side
    memory, address = places(machine, i, base)
    if i.kind is Transfer.ROWS:
        memory[address] = words.astype(np.int64) >> (32 - fmt.width)
        return
    octets = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
    if i.kind is Transfer.BYTES:
        memory[address] = smallfloat.from_float(fmt, octets.reshape(-1, t).astype(np.float64))[0]
    elif i.kind is Transfer.MASKS:
        memory[address] = np.unpackbits(octets, bitorder="little").reshape(-1, t)
    else:
        head = -(-i.rows // (4 * t))
        machine.exponents[address] = octets[:head].reshape(-1)[: i.rows]
        memory[address] = octets[head:].reshape(-1).view(np.int8).reshape(-1, t, t)


def take(machine: Machine, i: Store, base: int) -> np.ndarray:
    """One group's words from its place. Of ROWS, codes become words with zeros below."""
    fmt, t = machine.config.vector.number, machine.config.side
    memory, address = places(machine, i, base)
    if i.kind is Transfer.ROWS:
        return (memory[address] << (32 - fmt.width)).astype(np.uint32)
    if i.kind is Transfer.MASKS:
        octets = np.packbits(memory[address].astype(np.uint8), bitorder="little")
    else:
        head = np.zeros(-(-i.rows // (4 * t)) * 4 * t, np.uint8)
        head[: i.rows] = machine.exponents[address]
        octets = np.concatenate([head, memory[address].astype(np.int8).view(np.uint8).reshape(-1)])
    return octets.view("<u4").reshape(-1, t)
