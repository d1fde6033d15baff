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

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeAlias

from fpgrad.codegen.allocate import lifetimes
from fpgrad.codegen.exchange import announced, in_order
from fpgrad.codegen.schedule import transposed
from fpgrad.codegen.steps import (
    MASK_ROWS,
    Access,
    Buffer,
    Exchange,
    Limit,
    MatrixStep,
    Move,
    Region,
    Scalar,
    StepList,
    StoreStep,
    TileWalk,
    Value,
    VectorStep,
    region,
)
from fpgrad.errors import GraphError, MemoryCapacityError
from fpgrad.formats import FloatFormat, from_float
from fpgrad.isa.instructions import (
    TOKEN_BITS,
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
    Transfer,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Note

#: Rows between a pass and one that reads what it wrote, from which on no fence is needed: at least the cycles from
#: reading a row to its result being readable. `tests/ladder/test_contracts.py` compares it with the gateware.
HAZARD_ROWS = 20

TRANSFERS = {"tile": "tiles", "mask": "masks", "inbox": "rows", "outbox": "rows"}

#: Tokens by unit name, for each vector instruction.
Counts: TypeAlias = list[dict[str, int]]

SPACE = {
    "vector": Space.VECTOR, "inbox": Space.INBOX, "outbox": Space.OUTBOX, "mask": Space.MASK,
}  # fmt: skip
#: Memories that the vector unit both writes and reads.
READ_BACK = ("vector", "mask")
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
        registers: dict[str, int] = {}

        def register(name: str) -> int:
            return registers.setdefault(name, len(registers))

        vector = [self.vector(step, scalar_index) for step in steps.steps]
        fences = hazards(steps.steps, self.side)
        vector = [replace(v, fence=int(f)) for v, f in zip(vector, fences, strict=True)]
        waits: Counts = [{} for _ in vector]
        signals: Counts = [{} for _ in vector]

        tokens = [[0] * 4 for _ in range(4)]
        tokens[Unit.VECTOR][Unit.LOAD] = self.loads(steps, waits, signals, register)
        self.matrices(steps, signals)
        tokens[Unit.STORE][Unit.VECTOR] = self.stores(steps, waits, signals, register)

        for step, v, w, s in zip(steps.steps, vector, waits, signals, strict=True):
            self.add(
                Unit.VECTOR,
                replace(v, wait=Tokens(**w), signal=Tokens(**s)),
                step.layer,
                step.phase,
                step.text,
            )
        if len(registers) > 16:
            raise GraphError(
                f"{steps.name}: {len(registers)} arrays in external memory, a program can name 16"
            )
        return Entry(start, self.position(), tuple(tuple(r) for r in tokens), tuple(registers))  # type: ignore[arg-type]

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

    def loads(
        self,
        steps: StepList,
        waits: Counts,
        signals: Counts,
        register: Callable[[str], int],
    ) -> int:
        """Inputs in the order of their first use, each when the step before has read its buffer; then what comes back
        from external memory, each when its place is free, and sums over the cores, which need no token (see
        `exchange`).

        Returns:
            tokens from VECTOR to LOAD at the start.
        """
        loads = sorted(steps.loads, key=lambda x: uses(steps.steps, x.buffer))
        moves = back(steps)
        spans = [uses(steps.steps, load.buffer) for load in loads]
        done = list(accumulate((last for _, last in spans), max))
        late = range(len(loads), len(loads) + len(moves))
        channel = Channel([*done, *(m.at - 1 for m in moves)], late)
        needed = [first for first, _ in spans]
        life = lifetimes(steps.steps) if steps.exchanges else {}
        sums = in_order(steps, life)
        told = set(announced(sums, life))
        for i, load in enumerate(loads):
            index = DramAddress()
            if load.index is not None:
                stride = load.index_stride or -(-load.groups // self.side)
                first, core_stride = load.first // self.side, load.index_core_stride
                index = DramAddress(register(load.index), first, stride, core_stride)
            instruction = Load(
                kind=Transfer.BYTES if load.octets else Transfer.ROWS,
                count=load.groups,
                rows=load.rows,
                source=DramAddress(
                    register(load.base), load.offset, load.step_stride, load.core_stride
                ),
                stride=load.rows,
                gather=int(load.index is not None),
                index=index,
                target=base(load.buffer) + load.place,
                group_stride=load.group_stride or load.rows,
                row_stride=load.row_stride,
                wait=Tokens(vector=channel.wait(i)),
                signal=Tokens(vector=1),
            )
            self.add(Unit.LOAD, instruction, load.buffer.name, "load", load.base)
        awaited = {store: i + 1 for i, store in enumerate(awaited_stores(steps))}
        gone, i = 0, len(loads) - 1
        later: list[tuple[int, int, Move | Exchange]] = [(m.at - 1, m.until, m) for m in moves]
        later += [(life[e.out][1], 0, e) for e in sums]
        for _, _, move in sorted(later, key=lambda x: x[:2]):
            if isinstance(move, Exchange):
                if move in told:
                    needed.append(life[move.into][0])
                self.add(Unit.LOAD, sum_load(move, move in told), move.into.name, "load", "sum")
                continue
            i += 1
            stored = max((awaited[store] for store in move.after), default=0)
            wait = Tokens(vector=channel.wait(i), store=tokens_of(max(0, stored - gone)))
            gone = max(gone, stored)
            tiles = move.buffer.place == "tile"
            if not tiles:
                needed.append(move.until)
            instruction = Load(
                source=self.outside(move, steps, register),
                stride=move.block,
                target=base(move.buffer) + move.inside,
                wait=wait,
                signal=Tokens(matrix=1) if tiles else Tokens(vector=1),
                **transfer(move),
            )
            self.add(Unit.LOAD, instruction, move.buffer.name, "load", TRANSFERS[move.buffer.place])
        take(waits, "load", needed)
        for step in channel.steps:
            signals[step]["load"] = signals[step].get("load", 0) + 1
        return channel.initial

    def matrices(self, steps: StepList, signals: Counts) -> None:
        """Products in the order of the passes that take them, each after the pass that wrote its tiles, or the load
        that brought them back."""
        written: list[tuple[Region, int]] = []
        tiles = [move for move in back(steps) if move.buffer.place == "tile"]
        loaded = {move.buffer: i + 1 for i, move in enumerate(tiles)}
        seen, taken = -1, 0
        for i, step in enumerate(steps.steps):
            m = step.matrix
            if m is not None:
                read = step.tiles_read(self.side)
                needed = max(
                    (w for region, w in written if any(region.meets(r) for r in read)), default=-1
                )
                tokens = {}
                if needed > seen:
                    signals[needed]["matrix"] = signals[needed].get("matrix", 0) + 1
                    tokens["vector"], seen = 1, needed
                here = max((loaded.get(r.buffer, 0) for r in read), default=0)
                if here > taken:
                    tokens["load"], taken = tokens_of(here - taken), here
                self.add(
                    Unit.MATRIX,
                    matrix(m, Tokens(**tokens)),
                    m.layer,
                    m.phase,
                    m.text,
                    m.useful_macs,
                )
            written.extend((region, i) for region in step.tiles_written(self.side))

    def stores(
        self,
        steps: StepList,
        waits: Counts,
        signals: Counts,
        register: Callable[[str], int],
    ) -> int:
        """Each store after the last step that writes its buffer. A buffer of the outbox is written again when the
        store of the step before is done, tiles' places when their own is.

        Returns:
            tokens from STORE to VECTOR at the start.
        """
        out: list[tuple[int, int, StoreStep | Move | Exchange]] = []
        for store in steps.stores:
            first, last = uses(steps.steps, store.buffer)
            out.append((last, first, store))
        out += [(m.at, m.until, m) for m in steps.moves if m.kind == "store"]
        out.sort(key=lambda x: x[:2])
        end = len(steps.steps)
        awaited = set(awaited_stores(steps))
        life = lifetimes(steps.steps) if steps.exchanges else {}
        parts = [(life[e.out][1], 0, e) for e in in_order(steps, life)]
        late = [i for i, (_, until, x) in enumerate(out) if isinstance(x, Move) and until < end]
        channel = Channel([last for last, _, _ in out], late)
        for last, _, item in sorted([*out, *parts], key=lambda x: x[:2]):
            signals[last]["store"] = signals[last].get("store", 0) + 1
            if isinstance(item, Exchange):
                self.add(Unit.STORE, sum_store(item), item.out.name, "store", "sum")
            elif isinstance(item, StoreStep):
                address = DramAddress(
                    register(item.base), item.offset, item.step_stride, item.core_stride
                )
                instruction = Store(
                    rows=item.rows,
                    source=base(item.buffer),
                    target=address,
                    wait=Tokens(vector=1),
                    signal=Tokens(vector=1),
                )
                self.add(Unit.STORE, instruction, item.base, "store", item.base)
            else:
                instruction = Store(
                    source=base(item.buffer) + item.inside,
                    target=self.outside(item, steps, register),
                    stride=item.block,
                    wait=Tokens(vector=1),
                    signal=Tokens(vector=1, load=int(item in awaited)),
                    **transfer(item),
                )
                note = TRANSFERS[item.buffer.place]
                self.add(Unit.STORE, instruction, item.buffer.name, "store", note)
        for i in sorted(range(len(out)), key=lambda i: out[i][1] % end):
            step = out[i][1] % end
            count = channel.wait(i)
            if count:
                waits[step]["store"] = waits[step].get("store", 0) + count
        return channel.initial

    def outside(self, move: Move, steps: StepList, register: Callable[[str], int]) -> DramAddress:
        """Where in external memory a move begins; every core has an area of its own."""
        size = steps.spill_rows if move.area == "spill" else self.outside_rows
        return DramAddress(register(move.area), move.row, 0, size if self.cores > 1 else 0)

    # Single instructions ------------------------------------------------------------------------

    def vector(self, step: VectorStep, scalar_index: dict[str, int]) -> Vector:
        """One vector instruction, without tokens."""
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


class Channel:
    """The tokens of a channel that repeats every step: a waiting instruction takes all that were promised before the
    one it needs.

    Args:
        steps: when each token comes, by the pass that sends it.
        late: tokens that are waited for in the step in which they come; the others come for the next step.
    """

    def __init__(self, steps: list[int], late: Collection[int] = ()) -> None:
        self.steps = steps
        order = sorted(range(len(steps)), key=lambda i: (steps[i], i))
        self._position = {i: at + 1 for at, i in enumerate(order)}
        self._late = late
        # What a step leaves over is the same for each, the one before the first included.
        self._taken = max((self._position[i] for i in late), default=0)
        self.initial = len(steps) - self._taken

    def wait(self, i: int) -> int:
        """How many tokens to take to have the ``i``-th; to be asked in the order of waiting."""
        needed = self._position[i] + (len(self.steps) if i in self._late else 0)
        count = tokens_of(max(0, needed - self._taken))
        self._taken += count
        return count


def tokens_of(count: int) -> int:
    """A number of tokens that one instruction waits for.

    Raises:
        GraphError: more than its field holds.
    """
    if count >= 1 << TOKEN_BITS:
        raise GraphError(f"an instruction would wait for {count} tokens at once")
    return count


def take(waits: Counts, unit: str, uses: list[int]) -> None:
    """Tokens that come one by one, and the steps that need them: each takes all up to its own."""
    taken = 0
    for step, i in sorted((step, i) for i, step in enumerate(uses)):
        if i >= taken:
            waits[step][unit] = waits[step].get(unit, 0) + i + 1 - taken
            taken = i + 1


def sum_load(e: Exchange, told: bool) -> Load:
    """The sums' way to the inbox; ``told``: VECTOR waits for this one."""
    rows, target = e.rows, base(e.into)
    return Load(kind=Transfer.SUM, rows=rows, target=target, signal=Tokens(vector=int(told)))


def sum_store(e: Exchange) -> Store:
    """A core's part, sent to the others."""
    return Store(kind=Transfer.SUM, rows=e.rows, source=base(e.out), wait=Tokens(vector=1))


def back(steps: StepList) -> list[Move]:
    """Moves that bring something back, in the order in which they begin."""
    return sorted((m for m in steps.moves if m.kind == "load"), key=lambda m: (m.at, m.until))


def awaited_stores(steps: StepList) -> list[Move]:
    """Stores that a load waits for, in the order in which they begin."""
    stores = {store for move in steps.moves for store in move.after}
    return sorted(stores, key=lambda m: (m.at, m.until))


def transfer(move: Move) -> dict[str, Any]:
    """What LOAD and STORE have in common."""
    if move.buffer.place == "mask":
        rows, step = move.size // MASK_ROWS, MASK_ROWS
        kind = Transfer.MASKS
    else:
        rows, step = move.size, 1
        kind = Transfer.TILES if move.buffer.place == "tile" else Transfer.ROWS
    return {
        "kind": kind,
        "count": move.count,
        "rows": rows,
        "group_stride": move.size,
        "row_stride": step,
    }


def base(buffer: Buffer) -> int:
    """The buffer's place.

    Raises:
        MemoryCapacityError: it was never placed (a fault of the compiler).
    """
    if buffer.base is None:
        raise MemoryCapacityError(f"{buffer.name} has no place in {buffer.place} memory")
    return buffer.base


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


def uses(steps: list[VectorStep], buffer: Buffer) -> tuple[int, int]:
    """First and last step that touches a buffer."""
    touching = [i for i, s in enumerate(steps) if buffer in s.reads() | s.writes()]
    if not touching:
        raise GraphError(f"{buffer.name} is never used")
    return touching[0], touching[-1]


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
