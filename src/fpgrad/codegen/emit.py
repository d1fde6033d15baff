"""Emission: placed steps become instructions, with the tokens and fences that make their order hold.

Tokens. Each channel's tokens are used in order: the consumer waits for as many as have been promised up to the point
it needs. Channels in use: LOAD→VECTOR (rows are in the inbox), VECTOR→LOAD (the inbox may be overwritten),
VECTOR→MATRIX (tiles are written), VECTOR→STORE and STORE→VECTOR (likewise for the outbox), LOAD→MATRIX (tiles are back)
and STORE→LOAD (what comes back soon has gone out). The matrix unit needs no channel back: taking a product's last row
proves that its tiles have been read.

Fences. A pass that reads rows which an earlier pass may still be computing waits for all earlier writes. It need not
when so many rows lie between the two that the pipeline has passed them on.
"""

from __future__ import annotations

from fpgrad.codegen.schedule import transposed
from fpgrad.codegen.steps import (
    Access,
    Buffer,
    Limit,
    MatrixStep,
    Region,
    Scalar,
    StepList,
    TileWalk,
    Value,
    VectorStep,
    region,
)
from fpgrad.codegen.transfers import Counts, Transfers, base, leading_tiles
from fpgrad.errors import GraphError
from fpgrad.formats import FloatFormat, from_float
from fpgrad.isa.instructions import (
    Immediate,
    Instruction,
    Loops,
    Mask,
    Matrix,
    RowStream,
    Source,
    Space,
    Target,
    TileStream,
    TileTarget,
    Tokens,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Note

#: Rows between a pass and one that reads what it wrote, from which on no fence is needed: at least the cycles from
#: reading a row to its result being readable. `tests/ladder/test_contracts.py` compares it with the gateware.
HAZARD_ROWS = 20

SPACE = {
    "vector": Space.VECTOR, "inbox": Space.INBOX, "outbox": Space.OUTBOX, "mask": Space.MASK,
}  # fmt: skip
#: Memories that the vector unit both writes and reads.
READ_BACK = ("vector", "mask")
NO_TOKENS = Tokens()
OPS = {"pass": VectorOp.PASS, "scalars": VectorOp.SCALARS, "seed": VectorOp.SEED}


class Emitter:
    """Collects the instructions of a program, entry by entry."""

    def __init__(
        self, number: FloatFormat, side: int, cores: int = 1, outside_rows: int = 0
    ) -> None:
        self.number = number
        self.side = side
        self.cores = cores
        self.outside_rows = outside_rows
        self.units: dict[Unit, list[Instruction]] = {u: [] for u in Unit}
        self.notes: dict[Unit, list[Note]] = {u: [] for u in Unit}

    def entry(self, steps: StepList, scalar_index: dict[str, int]) -> Entry:
        """Append one entry's instructions."""
        start = self.position()
        fences = hazards(steps.steps, self.side)
        waits: Counts = [{} for _ in steps.steps]
        signals: Counts = [{} for _ in steps.steps]

        tokens = [[0] * 4 for _ in range(4)]
        sizes = {"spill": steps.spill_rows, "image": self.outside_rows}
        transfers = Transfers(steps, self.side, sizes if self.cores > 1 else {}, waits, signals)
        tokens[Unit.VECTOR][Unit.LOAD] = transfers.load()
        tokens[Unit.STORE][Unit.VECTOR] = transfers.store()
        for load, name, text in transfers.loads:
            self.add(Unit.LOAD, load, name, "load", text)
        for store, name, text in transfers.stores:
            self.add(Unit.STORE, store, name, "store", text)
        self.matrices(steps, signals)

        for step, fence, w, s in zip(steps.steps, fences, waits, signals, strict=True):
            ordered = int(fence), counted(w), counted(s)
            instruction = self.vector(step, scalar_index, ordered)
            self.add(Unit.VECTOR, instruction, step.layer, step.phase, step.text)
        registers = tuple(transfers.registers)
        if len(registers) > 16:
            raise GraphError(
                f"{steps.name}: {len(registers)} arrays in external memory, a program can name 16"
            )
        return Entry(start, self.position(), tuple(tuple(r) for r in tokens), registers)  # type: ignore[arg-type]

    def position(self) -> tuple[int, int, int, int]:
        """The next instruction's number in each unit."""
        load, matrix, vector, store = (len(self.units[u]) for u in Unit)
        return load, matrix, vector, store

    def add(
        self, unit: Unit, instruction: Instruction, layer: str, phase: str, text: str, macs: int = 0
    ) -> None:
        """Append an instruction and its note."""
        self.units[unit].append(instruction)
        self.notes[unit].append(Note(layer, phase, text, macs))

    def matrices(self, steps: StepList, signals: Counts) -> None:
        """Products in the order of the passes that take them, each after the pass that wrote its tiles, or the load
        that brought them back."""
        written: dict[Buffer, list[tuple[Region, int]]] = {}
        loaded = {move.until for move in leading_tiles(steps)}
        seen = -1
        for i, step in enumerate(steps.steps):
            m = step.matrix
            if m is not None:
                read = step.tiles_read(self.side)
                needed = max(
                    (w for r in read for x, w in written.get(r.buffer, ()) if x.meets(r)),
                    default=-1,
                )
                tokens = {}
                if needed > seen:
                    signals[needed]["matrix"] = signals[needed].get("matrix", 0) + 1
                    tokens["vector"], seen = 1, needed
                if i in loaded:
                    tokens["load"] = 1
                self.add(
                    Unit.MATRIX,
                    matrix(m, Tokens(**tokens)),
                    m.layer,
                    m.phase,
                    m.text,
                    m.useful_macs,
                )
            for r in step.tiles_written(self.side):
                written.setdefault(r.buffer, []).append((r, i))

    # Single instructions ------------------------------------------------------------------------

    def vector(
        self,
        step: VectorStep,
        scalar_index: dict[str, int],
        ordered: tuple[int, Tokens, Tokens],
    ) -> Vector:
        """One vector instruction; ``ordered``: its fence, and the tokens that it takes and gives."""
        streams: list[Access] = []
        immediates: list[Immediate] = []

        def source(value: Value) -> Source:
            if isinstance(value, Source):
                return value
            if isinstance(value, Access):
                if value not in streams:
                    streams.append(value)
                return (Source.P0, Source.P1)[streams.index(value)]
            item = (
                self.scalar(value, scalar_index)
                if isinstance(value, Scalar)
                else self.immediate(value, step)
            )
            if item not in immediates:
                immediates.append(item)
            return (Source.I0, Source.I1)[immediates.index(item)]

        a, b, c, d = (source(v) for v in step.operands)
        if step.matrix is not None:
            assert Source.ACC in (a, b, c, d)
        p0, p1 = ([stream(s) for s in streams] + [RowStream(), RowStream()])[:2]
        i0, i1 = ([*immediates, Immediate(), Immediate()])[:2]
        target, tile = Target(), TileTarget()
        if step.target is not None:
            w = step.target
            target = Target(SPACE[w.buffer.place], base(w.buffer) + w.offset, *w.strides)
        if step.tile is not None:
            w = step.tile
            tile = TileTarget(1, int(step.flow), base(w.buffer) + w.offset, w.s3, w.s2, w.s1)
        return Vector(
            OPS[step.op],
            Loops(*step.loops),
            p0,
            p1,
            a,
            b,
            c,
            d,
            int(step.negate_product),
            int(step.negate_c),
            step.alu,
            step.function,
            int(step.reduce),
            i0,
            i1,
            mask(step.row_limit),
            mask(step.lane_limit),
            target,
            tile,
            *ordered,
        )

    def scalar(self, value: Scalar, index: dict[str, int]) -> Immediate:
        """An element of the scalar file."""
        return Immediate(1, index[value.name])

    def immediate(self, value: float, step: VectorStep) -> Immediate:
        """A constant, rounded to the machine's format."""
        code, saturated = from_float(self.number, value)
        if bool(saturated) or (int(code) == 0 and value != 0):
            raise GraphError(
                f"{step.layer}: the constant {value!r} is outside the range of the machine's numbers"
            )
        return Immediate(0, int(code))


def counted(count: dict[str, int]) -> Tokens:
    """Tokens by unit."""
    return Tokens(**count) if count else NO_TOKENS


def stream(a: Access) -> RowStream:
    """A memory stream of the vector unit."""
    return RowStream(
        SPACE[a.buffer.place], int(a.transposed), base(a.buffer) + a.offset, *a.strides
    )


def mask(limit: Limit) -> Mask:
    """A padding mask."""
    return Mask(limit.loop, limit.limit)


def matrix(m: MatrixStep, wait: Tokens) -> Matrix:
    """One matrix instruction."""
    return Matrix(*m.outputs, *m.terms, m.rows, tiles(m.streamed), tiles(m.stationary), wait)


def tiles(w: TileWalk) -> TileStream:
    """A stream of tiles."""
    a = w.base
    place = base(a.buffer) + a.offset
    return TileStream(int(a.transposed), place, a.s2, a.s1, a.s0, *w.terms)


def hazards(steps: list[VectorStep], side: int) -> list[bool]:
    """For each step whether it must wait until all earlier rows are written."""
    fences = [False] * len(steps)
    written: list[tuple[Region, int]] = []
    started = [0]
    for step in steps:
        started.append(started[-1] + step.rows)
    for i, step in enumerate(steps):
        fences[i] = step.op != "pass"
        for value in step.operands:
            if not isinstance(value, Access) or value.buffer.place not in READ_BACK:
                continue
            read = region(value, step.loops, side)
            for wrote, w in written:
                near = started[i] - started[w] - distance(steps[w], step, value) < HAZARD_ROWS
                if near and wrote.meets(read):
                    fences[i] = True
        if fences[i]:
            written.clear()  # a fence has waited for all of them
        # What is too far back for any reader to meet can be forgotten.
        written = [(r, w) for r, w in written if started[i] - started[w + 1] < HAZARD_ROWS]
        written.extend((r, i) for r in step.rows_written(side) if r.buffer.place in READ_BACK)
    return fences


def distance(writer: VectorStep, reader: VectorStep, access: Access) -> int:
    """How many rows after its own start the reader may find a row that the writer wrote, counted from the end of
    a writer: 0 when both walk the buffer alike, else all of the writer's rows."""
    w = writer.target
    alike = (
        w is not None
        and not access.transposed
        and not transposed(reader)
        and not writer.reduce
        and writer.loops == reader.loops
        and (*w.strides, w.offset) == (*access.strides, access.offset)
    )
    return 0 if alike else writer.rows
