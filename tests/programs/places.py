"""What an instruction reads and writes, as sets of rows and tiles: from these follow tokens, fences and races."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from tests.programs.machines import NUMBERS, STEPS, bases, block_rows, dram_rows

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    DramAddress,
    Instruction,
    Load,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    Transfer,
    Vector,
    VectorOp,
)


@dataclass(frozen=True)
class Footprint:
    """Places as bits of integers, see :func:`depths`."""

    reads: int = 0
    writes: int = 0

    def conflicts(self, other: Footprint) -> bool:
        """Whether the two must not change their order."""
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)


def depths(config: MachineConfig) -> dict[str, int]:
    """Places of each memory; they are numbered in this order, one memory after the other."""
    m = config.memory
    return {
        "vector": m.vector_rows,
        "inbox": m.inbox_rows,
        "outbox": m.outbox_rows,
        "mask": m.mask_rows,
        "tile": m.tiles,
        "dram": dram_rows(config),
    }


def bits(config: MachineConfig, memory: str, addresses: np.ndarray) -> int:
    """A set of places of one memory."""
    first = 0
    for name, depth in depths(config).items():
        if name == memory:
            break
        first += depth
    out = 0
    for address in np.unique(addresses):
        out |= 1 << (first + int(address))
    return out


def members(config: MachineConfig, places: int) -> dict[str, np.ndarray]:
    """A set of places as addresses in each memory."""
    out: dict[str, np.ndarray] = {}
    for name, depth in depths(config).items():
        mine = places & ((1 << depth) - 1)
        out[name] = np.array([a for a in range(depth) if mine >> a & 1], np.int64)
        places >>= depth
    return out


def walk(base: int, counts: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """The addresses of a loop nest in order."""
    at = np.indices(counts).reshape(len(counts), -1)
    return base + (np.array(strides)[:, None] * at).sum(0)


def touched(v: Vector, access: RowStream | Target, side: int) -> np.ndarray:
    """The rows that each iteration reads or, if it writes, would write, shape (iterations, rows)."""
    counts = (v.loops.n3, v.loops.n2, v.loops.n1, v.loops.n0)
    at = walk(access.base, counts, (access.s3, access.s2, access.s1, access.s0))
    if isinstance(access, RowStream) and access.transposed:
        return (at - at % side)[:, None] + np.arange(side)
    return at[:, None]


def written(v: Vector, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """The iterations in which a pass writes a row, and the rows."""
    iteration = np.arange(v.loops.count)
    address = touched(v, v.target, 1)[:, 0]
    if v.reduce:
        i0 = iteration % v.loops.n0
        kept = i0 >= v.loops.n0 - ways
        address = (address - (i0 - i0 % ways) * v.target.s0)[kept]
        iteration = iteration[kept]
    return iteration, address


def streams(v: Vector) -> list[RowStream]:
    """The memory streams that a pass reads."""
    used = {v.a, v.b, v.c, v.d}
    return [s for s, source in ((v.p0, Source.P0), (v.p1, Source.P1)) if source in used]


def overtakes(config: MachineConfig, v: Vector) -> bool:
    """Whether a pass reads a row after the iteration that writes it, so that its pipeline would matter."""
    if v.target.space is Space.NONE:
        return False
    first: dict[int, int] = {}
    for iteration, address in zip(*written(v, config.vector.ways), strict=True):
        first.setdefault(int(address), int(iteration))
    for stream in streams(v):
        if stream.space is not v.target.space:
            continue
        for iteration, rows in enumerate(touched(v, stream, config.side)):
            if any(first.get(int(row), iteration) < iteration for row in rows):
                return True
    return False


def tile_walk(v: Vector, side: int) -> np.ndarray:
    """The tiles that a quantising pass writes."""
    inner = -(-v.loops.n1 * v.loops.n0 // side) if v.tile.flow else v.loops.n1
    counts = (v.loops.n3, v.loops.n2, inner)
    return walk(v.tile.base, counts, (v.tile.s3, v.tile.s2, v.tile.s1))


@functools.lru_cache(maxsize=1 << 12)
def footprint(config: MachineConfig, instruction: Instruction) -> Footprint:
    """Everything that an instruction reads or writes, in whichever of ``STEPS`` steps.

    Of several cores, any core's memories on the chip, and what all of them touch in external memory.
    """
    match instruction:
        case Vector():
            return _vector(config, instruction)
        case Matrix():
            m = instruction
            counts = (m.n2, m.n1, m.n0, m.k2, m.k1, m.k0)
            both = [
                walk(s.base, counts, (s.s2, s.s1, s.s0, s.t2, s.t1, s.t0))
                for s in (m.streamed, m.stationary)
            ]
            return Footprint(bits(config, "tile", np.concatenate(both)))
        case Load():
            reads = _dram(config, instruction, instruction.source, instruction.gather)
            if instruction.gather:
                index = -(-instruction.count // config.side)
                reads |= _rows(config, instruction.index, np.arange(index))
            return Footprint(reads, _chip(config, instruction, "inbox", instruction.target))
        case Store():
            return Footprint(
                _chip(config, instruction, "outbox", instruction.source),
                _dram(config, instruction, instruction.target, 0),
            )


def _vector(config: MachineConfig, v: Vector) -> Footprint:
    if v.op is not VectorOp.PASS:
        return Footprint(bits(config, v.p0.space.name.lower(), np.array([v.p0.base])))
    reads = writes = 0
    for stream in streams(v):
        reads |= bits(config, stream.space.name.lower(), touched(v, stream, config.side))
    if v.target.space is not Space.NONE:
        rows = written(v, config.vector.ways)[1]
        writes |= bits(config, v.target.space.name.lower(), rows)
    if v.tile.enable:
        writes |= bits(config, "tile", tile_walk(v, config.side))
    return Footprint(reads, writes)


def _chip(config: MachineConfig, i: Load | Store, rows: str, base: int) -> int:
    inner = i.rows * (4 if i.kind is Transfer.BYTES else 1)
    at = walk(base, (i.count, inner), (i.group_stride, i.row_stride))
    if i.kind is Transfer.MASKS:
        return bits(config, "mask", at[:, None] + np.arange(32))
    return bits(config, "tile" if i.kind is Transfer.TILES else rows, at)


def _dram(config: MachineConfig, i: Load | Store, address: DramAddress, gather: int) -> int:
    if i.kind is Transfer.SUM:
        return 0
    group = block_rows(config.side, i.rows) if i.kind is Transfer.TILES else i.rows
    numbers = np.arange(NUMBERS if gather else i.count)
    return _rows(config, address, numbers[:, None] * i.stride + np.arange(group))


def _rows(config: MachineConfig, address: DramAddress, rows: np.ndarray) -> int:
    first = bases(config)[address.register] + address.offset
    steps = first + np.arange(STEPS) * address.step_stride
    cores = np.arange(config.cores)[:, None] * address.core_stride
    return bits(config, "dram", rows.reshape(-1, 1, 1) + steps + cores)
