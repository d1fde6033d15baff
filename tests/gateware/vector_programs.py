"""Random lists of vector instructions that any order of pipelining must execute as written.

Legal means: every address is in range, no pass reads what it writes (but the row that it replaces),
and a pass that reads what an earlier one wrote has a fence, unless one stands between.
"""

import numpy as np
from tests.gateware.pipeline import random_codes

from fpgrad.formats import Function
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    Alu,
    Immediate,
    Loops,
    Mask,
    RowStream,
    Source,
    Space,
    Target,
    TileTarget,
    Vector,
    VectorOp,
)


def _addresses(loops, stream, i0=None):
    i2, i1, j = np.indices((loops.n2, loops.n1, loops.n0)).reshape(3, -1)
    j = j if i0 is None else i0
    return stream.base + i2 * stream.s2 + i1 * stream.s1 + j * getattr(stream, "s0", 0)


class Programs:
    """Makes instructions one after the other, and remembers what was written since the last fence."""

    def __init__(self, config: MachineConfig, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.dirty: set[int] = set()

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _walk(self, cls, loops, depth, n0, **fields):
        """A stream of ``cls`` within ``depth`` rows."""
        while True:
            strides = {s: int(self.rng.integers(-5, 6)) for s in ("s2", "s1")}
            if cls is not TileTarget:
                strides["s0"] = int(self.rng.choice([0, 1, 1, 1, 2, -1, 3]))
            reach = [(loops.n2 - 1) * strides["s2"], (loops.n1 - 1) * strides["s1"]]
            reach.append((n0 - 1) * strides.get("s0", 0))
            low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach)
            if high - low < depth:
                base = int(self.rng.integers(-low, depth - high))
                return cls(base=base, **strides, **fields)

    def _stream(self, loops):
        inbox = self._chance(0.3)
        depth = self.config.memory.inbox_rows if inbox else self.config.memory.vector_rows
        space = Space.INBOX if inbox else Space.VECTOR
        return self._walk(
            RowStream, loops, depth, loops.n0, space=space, transposed=int(self._chance(0.3))
        )

    def _immediate(self):
        if self._chance(0.3):
            return Immediate(1, int(self.rng.integers(0, self.config.side)))
        return Immediate(0, int(random_codes(self.config.vector.number, self.rng, 1)[0]))

    def _mask(self, limit):
        loop = int(self.rng.choice([0, 0, 1, 2]))
        return Mask(loop, int(self.rng.integers(0, limit + 1)))

    def _reads(self, loops, stream):
        rows = _addresses(loops, stream)
        if stream.transposed:
            t = self.config.side
            rows = (rows - rows % t)[:, None] + np.arange(t)
        return set(np.unique(rows).tolist())

    def special(self):
        """SCALARS or SEED."""
        self.dirty.clear()
        op = VectorOp.SEED if self._chance(0.5) and self.config.vector.random else VectorOp.SCALARS
        space = Space.INBOX if self._chance(0.5) else Space.VECTOR
        return Vector(op=op, p0=RowStream(space=space, base=int(self.rng.integers(0, 8))))

    def one(self) -> Vector:
        """The next instruction."""
        config, rng, t = self.config, self.rng, self.config.side
        if self._chance(0.06):
            return self.special()
        sources = [s for s in Source if s is not Source.RANDOM or config.vector.random]
        functions = [Function.NONE, Function.RELU, *config.vector.functions]
        while True:
            reduce, tile = self._chance(0.25), self._chance(0.4)
            tile = tile and not reduce
            low, high = (4, 14) if reduce else (1, t + 1) if tile else (1, 9)
            n2, n1, n0 = (
                int(rng.integers(1, 4)),
                int(rng.integers(1, 4)),
                int(rng.integers(low, high)),
            )
            loops = Loops(n2, n1, n0)
            a, b, c = (Source(rng.choice(sources)) for _ in range(3))
            if self._chance(0.2):
                a = Source.ACC
            d = Source.ONE
            if config.vector.post_multiply and self._chance(0.35):
                d = Source(rng.choice(sources))
            p0, p1 = self._stream(loops), self._stream(loops)
            space = Space(rng.choice([Space.NONE, Space.VECTOR, Space.VECTOR, Space.OUTBOX]))
            depth = (
                config.memory.outbox_rows if space is Space.OUTBOX else config.memory.vector_rows
            )
            target = self._walk(Target, loops, depth, 4 if reduce else n0, space=space)
            in_place = not reduce and Source.P0 in (a, b, c, d) and self._chance(0.2)
            in_place = in_place and p0.space is Space.VECTOR and not p0.transposed
            if in_place:
                space = Space.VECTOR
                target = Target(space, p0.base, p0.s2, p0.s1, p0.s0)
            written: set[int] = set()
            if space is Space.VECTOR:
                i0 = np.indices((n2, n1, n0)).reshape(3, -1)[2] % 4 if reduce else None
                rows = _addresses(loops, target, i0)
                written = set(rows.tolist())
                if in_place and len(written) < len(rows):
                    continue
            used = {a, b, c, d}
            reads: set[int] = set()
            for source, stream in ((Source.P0, p0), (Source.P1, p1)):
                if source in used and stream.space is Space.VECTOR:
                    rows = self._reads(loops, stream)
                    reads |= rows
                    if not (in_place and source is Source.P0) and rows & written:
                        break
            else:
                break
        fence = self._chance(0.15) or bool(reads & self.dirty)
        if fence:
            self.dirty.clear()
        self.dirty |= written
        return Vector(
            loops=loops,
            p0=p0,
            p1=p1,
            a=a,
            b=b,
            c=c,
            d=d,
            negate_product=int(self._chance(0.3)),
            negate_c=int(self._chance(0.3)),
            alu=Alu(rng.integers(0, 8)),
            function=Function(rng.choice(functions)),
            reduce=int(reduce),
            i0=self._immediate(),
            i1=self._immediate(),
            row_mask=self._mask(n0),
            lane_mask=self._mask(t),
            target=target,
            tile=self._walk(TileTarget, loops, config.memory.tiles, n0, enable=1)
            if tile
            else TileTarget(),
            fence=int(fence),
        )
