"""Random programs that are free of races, so that every executor must leave the same bits.

Instructions are drawn one after the other; tokens and fences are then placed only where a later one
touches what an earlier one touched, so that the units overlap as much as they may. A last pass of
each step waits for all units and lets them into the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fpgrad.formats import Function
from fpgrad.isa.config import MachineConfig
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

DRAM_ROWS = 256
INDEX_ROWS = 16
BASE = 3


@dataclass
class Step:
    """An instruction with what it touches: places are (memory, row)."""

    unit: Unit
    instruction: Any
    reads: set[tuple[str, int]] = field(default_factory=set)
    writes: set[tuple[str, int]] = field(default_factory=set)
    wait: list[int] = field(default_factory=lambda: [0] * 4)
    signal: list[int] = field(default_factory=lambda: [0] * 4)


class Generator:
    """Draws instructions for a machine.

    Args:
        kinds: which instructions to draw, a subset of "load", "store", "pass", "reduce", "tile",
            "matrix", "scalars", "seed".
    """

    def __init__(
        self, config: MachineConfig, seed: int, kinds: tuple[str, ...] | None = None
    ) -> None:
        self.config, self.random = config, np.random.default_rng(seed)
        self.t = config.side
        self.steps: list[Step] = []
        drawn: dict[str, tuple[Callable[[], None], float]] = {
            "load": (self.load, 1.5),
            "store": (self.store, 1),
            "pass": (self.vector_pass, 4),
            "reduce": (self.reducing_pass, 1.5),
            "tile": (self.quantising_pass, 3),
            "matrix": (self.matrix, 3),
            "scalars": (self.scalars, 0.5),
            "seed": (self.seed, 0.3),
        }
        if not config.vector.random:
            del drawn["seed"]
        self.kinds = [drawn[k] for k in (kinds or drawn) if k in drawn]

    def draw(self, count: int) -> list[Step]:
        """``count`` draws; a matrix draw is two instructions."""
        weights = np.array([w for _, w in self.kinds])
        for _ in range(count):
            self.kinds[self.random.choice(len(self.kinds), p=weights / weights.sum())][0]()
        return self.steps

    # Small choices -------------------------------------------------------------------------

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.random.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def number(self) -> int:
        """A code: mostly of moderate size, sometimes zero or at the ends of the range."""
        return int(numbers(self.config, self.random, 1)[0])

    def place(
        self, depth: int, counts: list[int], strides: list[int]
    ) -> tuple[int, np.ndarray] | None:
        """A base for an affine walk inside a memory, and the addresses; None if there is none."""
        grid = np.indices(counts).reshape(len(counts), -1)
        offsets = (np.array(strides)[:, None] * grid).sum(0)
        low, high = int(offsets.min()), int(offsets.max())
        if high - low >= depth:
            return None
        base = self.between(-low, depth - 1 - high)
        return base, base + offsets

    def loops(self, n0: int | None = None) -> Loops:
        limit = 2 * self.t
        n0 = n0 or (self.between(1, limit) if self.chance(0.7) else self.t)
        return Loops(self.between(1, 2), self.between(1, 3), n0)

    def stride(self, n0: int) -> list[int]:
        inner = int(self.random.choice([1, 1, 1, 1, 0, 2, -1]))
        return [self.between(-4, 2 * n0), int(self.random.choice([n0, n0, 0, self.t, 1])), inner]

    def read_stream(self, loops: Loops) -> tuple[RowStream, set[tuple[str, int]]]:
        space = Space.INBOX if self.chance(0.35) else Space.VECTOR
        m = self.config.memory
        depth = m.inbox_rows if space is Space.INBOX else m.vector_rows
        while True:
            s = self.stride(loops.n0)
            found = self.place(depth, [loops.n2, loops.n1, loops.n0], s)
            if found:
                break
        transposed = self.chance(0.3)
        rows = {int(r) for r in found[1]}
        if transposed:
            rows = {r - r % self.t + k for r in rows for k in range(self.t)}
        places = {(space.name, r) for r in rows}
        return RowStream(space, int(transposed), found[0], *s), places

    def write_stream(
        self, loops: Loops, reads: set[tuple[str, int]]
    ) -> tuple[Target, set[tuple[str, int]]]:
        space = Space.OUTBOX if self.chance(0.3) else Space.VECTOR
        m = self.config.memory
        depth = m.outbox_rows if space is Space.OUTBOX else m.vector_rows
        for _ in range(40):
            s = self.stride(loops.n0)
            found = self.place(depth, [loops.n2, loops.n1, loops.n0], s)
            if found:
                places = {(space.name, int(r)) for r in found[1]}
                if not places & reads:
                    return Target(space, found[0], *s), places
        return Target(), set()

    # Instructions --------------------------------------------------------------------------

    def add(self, unit: Unit, instruction: Instruction, reads: set, writes: set) -> None:
        self.steps.append(Step(unit, instruction, reads, writes))

    def pass_of(self, loops: Loops, acc: bool, **fixed: Any) -> tuple[Vector, set, set]:
        """A pass with random operands and options; returns what it reads and writes."""
        v = self.config.vector
        p0, reads0 = self.read_stream(loops)
        p1, reads1 = self.read_stream(loops)
        sources = [
            Source.ZERO,
            Source.ONE,
            Source.P0,
            Source.P0,
            Source.P1,
            Source.P1,
            Source.I0,
            Source.I1,
        ]
        if v.random:
            sources.append(Source.RANDOM)

        def source() -> Source:
            return sources[self.between(0, len(sources) - 1)]

        operands = {"a": source(), "b": source(), "c": source(), "d": Source.ONE}
        if v.post_multiply and self.chance(0.4):
            operands["d"] = source()
        if fixed.get("reduce"):
            operands["c"] = Source.ZERO
        if acc:
            names = ["a", "b", "d"] if v.post_multiply else ["a", "b"]
            names += [] if fixed.get("reduce") else ["c"]
            operands[names[self.between(0, len(names) - 1)]] = Source.ACC
        functions = [Function.NONE, Function.NONE, Function.RELU, *v.functions]
        reads = set()
        used = set(operands.values())
        if Source.P0 in used:
            reads |= reads0
        if Source.P1 in used:
            reads |= reads1
        i0, i1 = self.immediate(), self.immediate()
        instruction = Vector(
            loops=loops,
            p0=p0,
            p1=p1,
            **operands,
            negate_product=self.between(0, 1),
            negate_c=self.between(0, 1),
            alu=Alu(self.between(0, 7)),
            function=functions[self.between(0, len(functions) - 1)],
            i0=i0,
            i1=i1,
            row_mask=self.mask(),
            lane_mask=self.mask(),
            **fixed,
        )
        return instruction, reads, set()

    def immediate(self) -> Immediate:
        if self.chance(0.3):
            return Immediate(1, self.between(0, self.t - 1))
        return Immediate(0, self.number())

    def mask(self) -> Mask:
        return Mask(self.between(1, 2), self.between(0, self.t)) if self.chance(0.25) else Mask()

    def vector_pass(self, loops: Loops | None = None, acc: bool = False) -> None:
        loops = loops or self.loops()
        v, reads, _ = self.pass_of(loops, acc)
        target, writes = self.write_stream(loops, reads)
        self.add(Unit.VECTOR, dataclasses.replace(v, target=target), reads, writes)

    def reducing_pass(self) -> None:
        ways = self.config.vector.ways
        loops = dataclasses.replace(self.loops(self.between(ways, 3 * self.t)))
        v, reads, _ = self.pass_of(loops, False, reduce=1)
        target, writes = self.write_stream(dataclasses.replace(loops, n0=ways), reads)
        self.add(Unit.VECTOR, dataclasses.replace(v, target=target), reads, writes)

    def quantising_pass(self, loops: Loops | None = None, acc: bool = False) -> None:
        n0 = self.t if self.chance(0.6) else self.between(1, self.t)
        loops = loops or self.loops(n0)
        v, reads, _ = self.pass_of(loops, acc)
        while True:
            s = [self.between(-2, 4), self.between(-1, 3)]
            found = self.place(self.config.memory.tiles, [loops.n2, loops.n1], s)
            if found:
                break
        writes = {("tile", int(r)) for r in found[1]}
        v = dataclasses.replace(v, tile=TileTarget(1, found[0], *s))
        if self.chance(0.5):
            target, more = self.write_stream(loops, reads)
            v, writes = dataclasses.replace(v, target=target), writes | more
        self.add(Unit.VECTOR, v, reads, writes)

    def matrix(self) -> None:
        n1, n0, k = self.between(1, 2), self.between(1, 2), self.between(1, 5)
        rows = self.t if self.chance(0.5) else self.between(1, self.t)
        streams, reads = [], set()
        for _ in range(2):
            while True:
                s = [self.between(-3, 4), self.between(-2, 3), self.between(-1, 2)]
                found = self.place(self.config.memory.tiles, [n1, n0, k], s)
                if found:
                    break
            streams.append(TileStream(self.between(0, 1), found[0], *s))
            reads |= {("tile", int(r)) for r in found[1]}
        self.add(Unit.MATRIX, Matrix(n1, n0, k, rows, streams[0], streams[1]), reads, set())
        loops = Loops(n1, n0, rows)
        if self.chance(0.5):
            self.vector_pass(loops, acc=True)
        else:
            self.quantising_pass(loops, acc=True)

    def scalars(self) -> None:
        self.row_instruction(VectorOp.SCALARS, "scalars")

    def seed(self) -> None:
        self.row_instruction(VectorOp.SEED, "random")

    def row_instruction(self, op: VectorOp, what: str) -> None:
        space = Space.INBOX if self.chance(0.5) else Space.VECTOR
        m = self.config.memory
        row = self.between(0, (m.inbox_rows if space is Space.INBOX else m.vector_rows) - 1)
        self.add(
            Unit.VECTOR, Vector(op=op, p0=RowStream(space, 0, row)), {(space.name, row)}, set()
        )

    def load(self) -> None:
        depth = self.config.memory.inbox_rows
        rows = self.between(1, 4)
        count = self.between(1, min(3 * self.t, depth // rows))
        at = self.between(0, depth - count * rows)
        gather = self.between(0, 1)
        span = DRAM_ROWS - INDEX_ROWS
        if gather:
            stride = self.between(0, 2)
            source = self.between(0, span - rows - stride * 63)
            numbers_read = range(64)
        else:
            stride = self.between(0, (span - rows) // max(1, count - 1) if count > 1 else 5)
            source = self.between(0, span - rows - stride * (count - 1))
            numbers_read = range(count)
        reads = {("DRAM", source + n * stride + r) for n in numbers_read for r in range(rows)}
        need = -(-count // self.t)
        index = span + self.between(0, INDEX_ROWS - need)
        self.add(
            Unit.LOAD,
            Load(count, rows, DramAddress(0, source), stride, gather, DramAddress(0, index), at),
            reads,
            {("INBOX", at + r) for r in range(count * rows)},
        )

    def store(self) -> None:
        rows = self.between(1, min(self.config.memory.outbox_rows, 2 * self.t))
        at = self.between(0, self.config.memory.outbox_rows - rows)
        # Every step of a run stores elsewhere.
        target = self.between(0, DRAM_ROWS - INDEX_ROWS - rows - 8)
        self.add(
            Unit.STORE,
            Store(rows, at, DramAddress(0, target, self.between(0, 2))),
            {("OUTBOX", at + r) for r in range(rows)},
            {("DRAM", target + r) for r in range(rows + 8)},
        )


def numbers(config: MachineConfig, random: np.random.Generator, count: int) -> np.ndarray:
    """Codes of the machine's floats: mostly moderate, one in eight of any size, some zeros."""
    f = config.vector.number
    spread = min(6, f.bias - 1)
    exponent = random.integers(f.bias - spread, f.bias + spread, count)
    anywhere = random.integers(0, f.max_exponent + 1, count)
    exponent = np.where(random.random(count) < 0.12, anywhere, exponent)
    mantissa = random.integers(0, 1 << f.mantissa_bits, count) & random.choice(
        [-1, -1, 0, ~0xFF], count
    )
    codes = (exponent << f.mantissa_bits) | mantissa | (random.integers(0, 2, count) * f.sign_bit)
    return np.where((exponent == 0) | (random.random(count) < 0.05), 0, codes)


def place_tokens(steps: list[Step]) -> None:
    """Order what touches the same places: tokens between units, fences inside the vector unit."""
    number = [0] * 4
    order: list[int] = []
    for step in steps:
        order.append(number[step.unit])
        number[step.unit] += 1
    synchronised = [[-1] * 4 for _ in range(4)]
    fenced = -1
    for j, step in enumerate(steps):
        needs = [-1] * 4
        for i, earlier in enumerate(steps[:j]):
            if (
                earlier.writes & (step.reads | step.writes) or earlier.reads & step.writes
            ) and not (earlier.unit == step.unit and not earlier.writes & step.reads):
                needs[earlier.unit] = max(needs[earlier.unit], i)
        for unit in Unit:
            i = needs[unit]
            if i < 0:
                continue
            if unit == step.unit:
                if unit == Unit.VECTOR and i > fenced:
                    step.instruction = dataclasses.replace(step.instruction, fence=1)
                    fenced = j - 1
            elif order[i] > synchronised[unit][step.unit]:
                synchronised[unit][step.unit] = order[i]
                steps[i].signal[step.unit] += 1
                step.wait[unit] += 1


def random_program(
    config: MachineConfig, seed: int, count: int = 20, kinds: tuple[str, ...] | None = None
) -> tuple[Program, np.ndarray]:
    """A program with the entry "main", and rows of external memory for base row ``BASE``.

    Its first instructions fill the memories with numbers, its last store some of them.
    """
    g = Generator(config, seed, kinds)
    t, m = config.side, config.memory
    g.add(
        Unit.LOAD,
        Load(1, m.inbox_rows, DramAddress(0, 0)),
        {("DRAM", r) for r in range(m.inbox_rows)},
        {("INBOX", r) for r in range(m.inbox_rows)},
    )
    fill = min(m.vector_rows, m.inbox_rows)
    for at in range(0, m.vector_rows - fill + 1, fill):
        g.add(
            Unit.VECTOR,
            Vector(
                loops=Loops(1, 1, fill),
                p0=RowStream(Space.INBOX, 0, 0, 0, 0, 1),
                a=Source.P0,
                target=Target(Space.VECTOR, at, 0, 0, 1),
            ),
            {("INBOX", r) for r in range(fill)},
            {("VECTOR", at + r) for r in range(fill)},
        )
    tiles = min(m.tiles, fill // t)
    g.add(
        Unit.VECTOR,
        Vector(
            loops=Loops(1, tiles, t),
            p0=RowStream(Space.INBOX, 0, 0, 0, t, 1),
            a=Source.P0,
            tile=TileTarget(1, 0, 0, 1),
        ),
        {("INBOX", r) for r in range(tiles * t)},
        {("tile", r) for r in range(tiles)},
    )
    g.draw(count)
    steps = g.steps
    place_tokens(steps)
    # The last pass of a step: all units before it, all units' next step after it.
    last = Step(Unit.VECTOR, Vector(fence=1))
    for unit in (Unit.LOAD, Unit.MATRIX, Unit.STORE):
        mine = [s for s in steps if s.unit == unit]
        if mine:
            mine[-1].signal[Unit.VECTOR] += 1
            last.wait[unit] += 1
            mine[0].wait[Unit.VECTOR] += 1
            last.signal[unit] += 1
    steps.append(last)
    units: dict[Unit, tuple[Instruction, ...]] = {
        unit: tuple(
            dataclasses.replace(s.instruction, wait=Tokens(*s.wait), signal=Tokens(*s.signal))
            for s in steps
            if s.unit == unit
        )
        for unit in Unit
    }
    initial = [[0] * 4 for _ in range(4)]
    initial[Unit.VECTOR] = [min(1, n) for n in last.signal]
    entry = Entry(
        (0, 0, 0, 0),
        tuple(len(units[u]) for u in Unit),
        tuple(tuple(row) for row in initial),
    )
    filling = np.random.default_rng(seed)
    words = numbers(config, filling, DRAM_ROWS * t).reshape(-1, t) << (
        32 - config.vector.number.width
    )
    words[DRAM_ROWS - INDEX_ROWS :] = filling.integers(0, 64, (INDEX_ROWS, t))
    return Program(config, units, {"main": entry}), words.astype(np.uint32)
