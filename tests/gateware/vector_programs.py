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
    i3, i2, i1, j = np.indices((loops.n3, loops.n2, loops.n1, loops.n0)).reshape(4, -1)
    j = j if i0 is None else i0
    return stream.base + i3 * stream.s3 + i2 * stream.s2 + i1 * stream.s1 + j * stream.s0


class Programs:
    """Makes instructions one after the other, and remembers what was written since the last fence."""

    def __init__(self, config: MachineConfig, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.masks = [Space.MASK] if config.memory.mask_rows else []
        # Places are (memory, row); nothing that is written to the outbox can be read.
        self.dirty: set[tuple[Space, int]] = set()

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _depth(self, space):
        return getattr(self.config.memory, f"{space.name.lower()}_rows")

    def _walk(self, cls, depth, counts, **fields):
        """A stream of ``cls`` within ``depth`` rows; ``counts`` of its loops, the outermost first."""
        while True:
            strides = self.rng.integers(-5, 6, len(counts))
            if len(counts) == 4:
                strides[3] = self.rng.choice([0, 1, 1, 1, 2, -1, 3])
            reach = (np.array(counts) - 1) * strides
            low, high = int(reach[reach < 0].sum()), int(reach[reach > 0].sum())
            if high - low < depth:
                base = int(self.rng.integers(-low, depth - high))
                names = ("s3", "s2", "s1", "s0")[: len(counts)]
                return cls(base=base, **dict(zip(names, strides.tolist(), strict=True)), **fields)

    def _stream(self, loops):
        space = Space(self.rng.choice([Space.VECTOR, Space.VECTOR, Space.INBOX, *self.masks]))
        counts = (loops.n3, loops.n2, loops.n1, loops.n0)
        transposed = int(self._chance(0.3))
        return self._walk(RowStream, self._depth(space), counts, space=space, transposed=transposed)

    def _tile(self, loops, flow):
        inner = -(-loops.n1 * loops.n0 // self.config.side) if flow else loops.n1
        counts = (loops.n3, loops.n2, inner)
        return self._walk(TileTarget, self.config.memory.tiles, counts, enable=1, flow=int(flow))

    def _immediate(self):
        if self._chance(0.3):
            return Immediate(1, int(self.rng.integers(0, self.config.side)))
        return Immediate(0, int(random_codes(self.config.vector.number, self.rng, 1)[0]))

    def _mask(self, limit):
        loop = int(self.rng.choice([0, 0, 1, 2, 3]))
        return Mask(loop, int(self.rng.integers(0, limit + 1)))

    def _reads(self, loops, stream):
        rows = _addresses(loops, stream)
        if stream.transposed:
            t = self.config.side
            rows = (rows - rows % t)[:, None] + np.arange(t)
        return {(stream.space, row) for row in np.unique(rows).tolist()}

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
        spaces = [Space.NONE, Space.VECTOR, Space.VECTOR, Space.OUTBOX]
        while True:
            reduce, tile = self._chance(0.25), self._chance(0.4)
            tile = tile and not reduce
            flow = tile and self._chance(0.5)
            low, high = (4, 14) if reduce else (1, t + 1) if tile and not flow else (1, 9)
            n3, n2, n1 = rng.choice([1, 1, 2, 3], 3).tolist()
            n0 = int(rng.integers(low, high))
            loops = Loops(n3, n2, n1, n0)
            a, b, c = (Source(rng.choice(sources)) for _ in range(3))
            if self._chance(0.2):
                a = Source.ACC
            d = Source.ONE
            if config.vector.post_multiply and self._chance(0.35):
                d = Source(rng.choice(sources))
            p0, p1 = self._stream(loops), self._stream(loops)
            space = Space(rng.choice([*spaces, *self.masks]))
            written_counts = (n3, n2, n1, 4 if reduce else n0)
            target = Target()
            if space is not Space.NONE:
                target = self._walk(Target, self._depth(space), written_counts, space=space)
            in_place = not reduce and Source.P0 in (a, b, c, d) and self._chance(0.2)
            in_place = in_place and p0.space is not Space.INBOX and not p0.transposed
            if in_place:
                space = p0.space
                target = Target(space, p0.base, p0.s3, p0.s2, p0.s1, p0.s0)
            written: set[tuple[Space, int]] = set()
            if space in (Space.VECTOR, Space.MASK):
                i0 = np.indices((n3, n2, n1, n0)).reshape(4, -1)[3] % 4 if reduce else None
                rows = _addresses(loops, target, i0)
                written = {(space, row) for row in rows.tolist()}
                if in_place and len(written) < len(rows):
                    continue
            used = {a, b, c, d}
            reads: set[tuple[Space, int]] = set()
            for source, stream in ((Source.P0, p0), (Source.P1, p1)):
                if source in used and stream.space is not Space.INBOX:
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
            tile=self._tile(loops, flow) if tile else TileTarget(),
            fence=int(fence),
        )
