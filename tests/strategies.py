"""Hypothesis strategies for random machines, instructions, memory contents and small whole programs.

Independent of any executor: the emulator, the RTL and boards are tested against the reference with them.
Every drawn instruction is legal: its addresses lie inside the memories, and what it writes it does not read
in another iteration, so that pipelined executors are bound to the same result as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fpgrad.formats import FP24, AccumulatorFormat, FloatFormat, Function, TableFormat, TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import (
    Alu,
    DramAddress,
    Immediate,
    Instruction,
    Load,
    Loops,
    Mask,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    TileStream,
    TileTarget,
    Tokens,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Program

#: DRAM rows that random programs use: contents to load, index rows for gathers, and stores' targets.
CONTENT_ROWS, INDEX_ROW, INDEX_ROWS, STORE_ROW, DRAM_ROWS = 256, 256, 8, 320, 512


def machine(
    side: int = 4,
    number: FloatFormat = FP24,
    mantissa_bits: int = 8,
    accumulator: AccumulatorFormat | None = None,
    table: TableFormat | None = None,
) -> MachineConfig:
    """A machine with small memories."""
    return MachineConfig(
        MatrixConfig(TileFormat(side, mantissa_bits), accumulator or AccumulatorFormat()),
        VectorConfig(number, table or TableFormat()),
        MemoryConfig(8 * side, 12, 4 * side, 4 * side, DRAM_ROWS, min(side, 4)),
    )


#: Machines by name: the default's formats in every size, and formats that differ in every parameter.
MACHINES: dict[str, MachineConfig] = {
    "T4": machine(4),
    "T8": machine(8),
    "T16": machine(16),
    "T32": machine(32),
    "bf16": machine(4, FloatFormat(8, 7), 8, AccumulatorFormat(24, 1)),
    "fp32": machine(8, FloatFormat(8, 23), 10, AccumulatorFormat(48, 8), TableFormat(64, 15)),
    "E5": machine(4, FloatFormat(5, 10), 6, AccumulatorFormat(20, 0), TableFormat(8, 8)),
    "E8M14": machine(16, FloatFormat(8, 14), 12, AccumulatorFormat(32, 2), TableFormat(32, 12)),
    "narrow": machine(4, FloatFormat(2, 3), 2, AccumulatorFormat(20, 16)),
}


def _bits(
    rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...], spread: int
) -> np.ndarray:
    """Codes with exponents within ``spread`` of a random centre; zeros and short mantissas are frequent."""
    top = (1 << fmt.exponent_bits) - 1
    centre = int(rng.integers(0, top + 1)) if rng.random() < 0.3 else fmt.bias
    exponent = np.clip(centre + rng.integers(-spread, spread + 1, shape), 0, top)
    mantissa = rng.integers(0, 1 << fmt.mantissa_bits, shape)
    short = rng.random(shape) < 0.3
    mantissa = np.where(short, mantissa & ~((1 << (fmt.mantissa_bits * 2 // 3)) - 1), mantissa)
    codes = (
        (rng.integers(0, 2, shape) << (fmt.width - 1)) | (exponent << fmt.mantissa_bits) | mantissa
    )
    return np.where(rng.random(shape) < 0.1, 0, codes)


def codes(
    rng: np.random.Generator, fmt: FloatFormat, shape: tuple[int, ...], odd: bool = True
) -> np.ndarray:
    """Random codes: ordinary numbers, wide exponents, and with ``odd`` any bits (subnormals, -0, all-ones exponents).

    Without ``odd``, only codes that the machine itself produces.
    """
    kind = rng.integers(0, 4 if odd else 3)
    if kind == 3:
        return rng.integers(0, 1 << fmt.width, shape)
    out = _bits(rng, fmt, shape, (1, 4, 1 << fmt.exponent_bits)[kind])
    if not odd:
        exponent = (out >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
        out = np.where((exponent == 0) | (exponent > fmt.max_exponent), 0, out)
    return out


@dataclass(frozen=True)
class Contents:
    """What a test puts into a machine before a run, by name of the memory (see ``dump`` of the executors)."""

    memories: dict[str, np.ndarray]


def contents(config: MachineConfig, seed: int, odd: bool = True) -> Contents:
    """Random contents of every memory of ``config``."""
    rng = np.random.default_rng(seed)
    fmt, tile, m, t = config.vector.number, config.matrix.tile, config.memory, config.side
    limit = tile.limit
    centre = int(rng.integers(0, fmt.max_exponent + 1)) if rng.random() < 0.3 else fmt.bias
    spread = int(rng.choice([0, 1, 4, 40]))
    exponents = np.clip(centre + rng.integers(-spread, spread + 1, m.tiles), 0, fmt.max_exponent)
    words = np.zeros((DRAM_ROWS, t), np.uint32)
    content = codes(rng, fmt, (CONTENT_ROWS, t), odd) << (32 - fmt.width)
    words[:CONTENT_ROWS] = content.astype(np.uint32)
    if odd:
        words[:CONTENT_ROWS] |= rng.integers(0, 1 << (32 - fmt.width), (CONTENT_ROWS, t)).astype(
            np.uint32
        )
    words[INDEX_ROW : INDEX_ROW + INDEX_ROWS] = rng.integers(0, 64, (INDEX_ROWS, t))
    mantissas = rng.integers(-limit, limit + 1, (m.tiles, t, t))
    extreme = rng.random((m.tiles, 1, 1)) < 0.2
    mantissas = np.where(
        extreme, np.sign(mantissas[:, :1, :1] + 0.5).astype(np.int64) * limit, mantissas
    )
    mantissas[exponents == 0] = 0
    return Contents(
        {
            "vector": codes(rng, fmt, (m.vector_rows, t), odd),
            "inbox": codes(rng, fmt, (m.inbox_rows, t), odd),
            "outbox": codes(rng, fmt, (m.outbox_rows, t), odd),
            "mantissas": mantissas,
            "exponents": exponents,
            "scalars": codes(rng, fmt, (t,), odd),
            "random": rng.integers(1, 1 << 32, t),
            "dram": words,
        }
    )


class _Draw:
    """Draws the parts of instructions for one machine."""

    def __init__(self, draw: Any, config: MachineConfig) -> None:
        self.draw, self.config, self.t = draw, config, config.side
        m = config.memory
        self.depth = {
            Space.VECTOR: m.vector_rows,
            Space.INBOX: m.inbox_rows,
            Space.OUTBOX: m.outbox_rows,
        }

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def strides(
        self, counts: tuple[int, ...], depth: int, distinct: bool = False
    ) -> tuple[int, tuple[int, ...]]:
        """A base and strides whose nest stays inside ``depth`` addresses; ``distinct``: no address twice."""
        if distinct:
            strides, step = [], 1
            for n in reversed(counts):
                strides.append(step)
                step *= n
            strides = strides[::-1]
            low, span = 0, step
        else:
            strides, low, high = [], 0, 0
            for n in counts:
                room = (depth - 1 - (high - low)) // max(1, n - 1)
                s = self.int(-min(room, self.t), min(room, self.t))
                s = self.one(s, 0, min(1, room))
                strides.append(s)
                low, high = low + min(0, (n - 1) * s), high + max(0, (n - 1) * s)
            span = high - low + 1
        return self.int(0, depth - span) - low, tuple(strides)

    def immediate(self) -> Immediate:
        fmt = self.config.vector.number
        if self.one(True, False):
            return Immediate(1, self.int(0, self.t - 1))
        common = (0, fmt.one, fmt.one | fmt.sign_bit, fmt.one + 1, fmt.max_code)
        return Immediate(0, self.one(*common, self.int(0, fmt.max_code)))

    def mask(self, limit: int) -> Mask:
        return Mask(self.one(0, 0, 1, 2), self.int(0, min(limit, 63)))

    def stream(self, loops: Loops, transposed: int) -> RowStream:
        space = self.one(Space.VECTOR, Space.VECTOR, Space.INBOX)
        base, (s2, s1, s0) = self.strides((loops.n2, loops.n1, loops.n0), self.depth[space])
        return RowStream(space, transposed, base, s2, s1, s0)


def _touched(stream: RowStream | Target, loops: Loops, side: int) -> np.ndarray:
    """Row addresses of each iteration, (iterations, addresses)."""
    i2, i1, i0 = np.indices((loops.n2, loops.n1, loops.n0)).reshape(3, -1)
    at = stream.base + i2 * stream.s2 + i1 * stream.s1 + i0 * stream.s0
    if getattr(stream, "transposed", 0):
        return (at - at % side)[:, None] + np.arange(side)
    return at[:, None]


def _clashes(v: Vector, side: int) -> bool:
    """Whether a pass writes rows that it reads in another iteration, or any row at all when it reduces."""
    written = v.target
    for source, stream in ((Source.P0, v.p0), (Source.P1, v.p1)):
        if source not in (v.a, v.b, v.c, v.d) or written.space is not stream.space:
            continue
        reads, loops = _touched(stream, v.loops, side), v.loops
        if v.reduce:
            loops = replace(loops, n0=4)
        writes = _touched(written, loops, side)
        if v.reduce or stream.transposed:
            if np.intersect1d(reads, writes).size:
                return True
            continue
        for address in np.intersect1d(reads, writes):
            if set(np.flatnonzero(reads[:, 0] == address)) != set(
                np.flatnonzero(writes[:, 0] == address)
            ):
                return True
    return False


@st.composite
def vectors(draw: Any, config: MachineConfig, acc: bool = False) -> Vector:
    """A vector instruction. Only with ``acc`` may it take accumulator rows."""
    d = _Draw(draw, config)
    t = config.side
    op = d.one(*(VectorOp.PASS,) * 8, VectorOp.SCALARS, VectorOp.SEED)
    if op is not VectorOp.PASS:
        space = d.one(Space.VECTOR, Space.INBOX)
        return Vector(op, p0=RowStream(space, 0, d.int(0, d.depth[space] - 1)))
    reduce = d.one(0, 0, 0, 1)
    tile = 0 if reduce else d.one(0, 0, 1)
    n0 = d.int(4, 2 * t) if reduce else d.int(1, t)
    n1, n2 = d.int(1, 3), d.int(1, 2)
    written = n1 * n2 * (4 if reduce else n0)
    if written > d.depth[Space.OUTBOX]:
        n1 = n2 = 1
    loops = Loops(n2, n1, n0)
    sources = [s for s in Source if acc or s is not Source.ACC]
    a, b, c = d.one(*sources), d.one(*sources), d.one(*sources)
    last = d.one(Source.ONE, Source.ONE, *sources)
    space = (
        d.one(Space.VECTOR, Space.OUTBOX)
        if not tile
        else d.one(Space.NONE, Space.VECTOR, Space.OUTBOX)
    )
    target = Target()
    if space is not Space.NONE:
        counts = (n2, n1, 4 if reduce else n0)
        base, (s2, s1, s0) = d.strides(counts, d.depth[space], distinct=True)
        target = Target(space, base, s2, s1, s0)
    tiles = TileTarget()
    if tile:
        base, (s2, s1) = d.strides((n2, n1), config.memory.tiles, distinct=True)
        tiles = TileTarget(1, base, s2, s1)
    v = Vector(
        op,
        loops,
        d.stream(loops, d.one(0, 0, 1)),
        d.stream(loops, d.one(0, 0, 1)),
        a,
        b,
        c,
        last,
        d.one(0, 1),
        d.one(0, 1),
        d.one(Alu.ADD, *Alu),
        d.one(Function.NONE, Function.NONE, *Function),
        reduce,
        d.immediate(),
        d.immediate(),
        d.mask(n0),
        d.mask(t),
        target,
        tiles,
        fence=1,
    )
    return replace(v, target=replace(v.target, space=Space.OUTBOX, base=0)) if _clashes(v, t) else v


@st.composite
def matrices(draw: Any, config: MachineConfig, max_k: int = 6) -> Matrix:
    """A matrix instruction."""
    d = _Draw(draw, config)
    n1, n0, k = d.int(1, 3), d.int(1, 3), d.int(1, max_k)
    streams = []
    for _ in range(2):
        base, (s1, s0, sk) = d.strides((n1, n0, k), config.memory.tiles)
        streams.append(TileStream(d.one(0, 1), base, s1, s0, sk))
    return Matrix(n1, n0, k, d.one(config.side, d.int(1, config.side)), streams[0], streams[1])


@st.composite
def loads(draw: Any, config: MachineConfig) -> Load:
    """A load from the random part of external memory; base register 0 is to be 0."""
    d = _Draw(draw, config)
    rows = d.int(1, 2)
    count = d.int(1, config.memory.inbox_rows // rows)
    gather = d.one(0, 1)
    stride = d.int(0, 2)
    return Load(
        count,
        rows,
        DramAddress(0, d.int(0, 8), d.int(0, 4)),
        stride,
        gather,
        DramAddress(1, INDEX_ROW, d.int(0, 1)) if gather else DramAddress(),
        d.int(0, config.memory.inbox_rows - count * rows),
    )


@st.composite
def stores(draw: Any, config: MachineConfig) -> Store:
    """A store to the part of external memory that is kept for them."""
    d = _Draw(draw, config)
    rows = d.int(1, config.memory.outbox_rows)
    target = DramAddress(0, STORE_ROW + d.int(0, 8), d.int(0, 4))
    return Store(rows, d.int(0, config.memory.outbox_rows - rows), target)


def taking(config: MachineConfig, matrix: Matrix, into: Vector | None = None) -> Vector:
    """A pass that takes all rows of ``matrix``; in the manner of ``into`` when that takes accumulator rows."""
    total = matrix.n1 * matrix.n0 * matrix.rows
    if (
        into is not None
        and into.op is VectorOp.PASS
        and total == into.loops.n2 * into.loops.n1 * into.loops.n0
    ):
        return replace(into, a=Source.ACC)
    depth = config.memory.outbox_rows
    loops = Loops(1, matrix.n1 * matrix.n0, matrix.rows)
    target = Target(Space.OUTBOX, 0, 0, matrix.rows if total <= depth else 0, 1)
    return Vector(VectorOp.PASS, loops, a=Source.ACC, target=target, fence=1)


_UNIT_OF: dict[type, Unit] = {
    Load: Unit.LOAD,
    Matrix: Unit.MATRIX,
    Vector: Unit.VECTOR,
    Store: Unit.STORE,
}


def single(config: MachineConfig, instruction: Instruction, *more: Instruction) -> Program:
    """A program of these instructions, one unit's after the other's in the order given.

    A chain of tokens makes every instruction wait for the one before; but the pass that takes the rows of a
    matrix instruction runs beside it, because the rows that may wait between the two are few.
    """
    chain = (instruction, *more)
    waits = [[0] * 4 for _ in chain]
    signals = [[0] * 4 for _ in chain]

    def order(before: int, after: int) -> None:
        first, second = _UNIT_OF[type(chain[before])], _UNIT_OF[type(chain[after])]
        if first is not second:
            signals[before][second] += 1
            waits[after][first] += 1

    for i in range(1, len(chain)):
        beside = isinstance(chain[i - 1], Matrix) and isinstance(chain[i], Vector)
        if not beside:
            order(i - 1, i)
        elif i > 1:
            order(i - 2, i)
    units: dict[Unit, list[Instruction]] = {unit: [] for unit in Unit}
    for x, wait, signal in zip(chain, waits, signals, strict=True):
        units[_UNIT_OF[type(x)]].append(replace(x, wait=Tokens(*wait), signal=Tokens(*signal)))
    return Program(
        config,
        {unit: tuple(instructions) for unit, instructions in units.items()},
        {"run": Entry((0, 0, 0, 0), tuple(len(units[u]) for u in Unit), bases=("a", "b"))},
    )


@st.composite
def programs(draw: Any, config: MachineConfig, length: int = 8) -> Program:
    """A small whole program: up to ``length`` groups of instructions of all units, ordered by tokens.

    The last instruction signals the first, so that it may run for several steps.
    """
    chain: list[Instruction] = []
    for _ in range(draw(st.integers(1, length))):
        kind = draw(st.sampled_from(list(Unit)))
        if kind is Unit.LOAD:
            chain.append(draw(loads(config)))
        elif kind is Unit.STORE:
            chain.append(draw(stores(config)))
        elif kind is Unit.MATRIX:
            matrix = draw(matrices(config))
            chain += [matrix, taking(config, matrix)]
        else:
            chain.append(draw(vectors(config)))
    return looped(single(config, *chain), chain)


def looped(program: Program, chain: list[Instruction]) -> Program:
    """The program with tokens from its last instruction to its first, so that steps do not overlap."""
    last = _UNIT_OF[type(chain[-1])]
    firsts = {
        _UNIT_OF[type(x)] for x in (chain[:2] if isinstance(chain[0], Matrix) else chain[:1])
    } - {last}
    units = {unit: list(instructions) for unit, instructions in program.units.items()}
    tokens = [[0] * 4 for _ in range(4)]
    for first in firsts:
        head, tail = units[first][0], units[last][-1]
        name, other = last.name.lower(), first.name.lower()
        units[first][0] = replace(
            head, wait=replace(head.wait, **{name: getattr(head.wait, name) + 1})
        )
        units[last][-1] = replace(
            tail, signal=replace(tail.signal, **{other: getattr(tail.signal, other) + 1})
        )
        tokens[last][first] = 1
    entry = replace(program.entries["run"], tokens=tuple(tuple(row) for row in tokens))
    return Program(program.config, {u: tuple(x) for u, x in units.items()}, {"run": entry})
