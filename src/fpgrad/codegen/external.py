"""External memory: how one tensor lives there, in pieces that are on the chip only while they are written or read.

A tensor's pieces go out as they are written, band by band. A step that reads some of it later reads a copy that a load
has brought, ahead of its use; neighbouring steps share a copy: the taps of a kernel's gradient, or the products that
go through the same rows. What is written, stored and loaded when follows from the order of the steps; the chip keeps
no directory.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from math import ceil, gcd, lcm
from operator import attrgetter
from typing import Literal

from fpgrad.codegen.geometry import BAND, UNLIMITED, band_of
from fpgrad.codegen.steps import (
    MASK_ROWS,
    Access,
    Buffer,
    Move,
    Place,
    Region,
    TileWalk,
    VectorStep,
    block_rows,
    changed,
)
from fpgrad.codegen.timeline import Timeline
from fpgrad.errors import GraphError
from fpgrad.isa.instructions import COUNT_BITS

#: Tiles' worth of cycles that a load is begun ahead of its first use, besides those that it takes.
AHEAD = BAND

#: Steps for which a copy that nothing has read is kept.
NEAR = 40

#: Copies of one tensor that are kept at a time.
COPIES = 3

#: Rows that one group of a transfer has at most.
MOST = (1 << COUNT_BITS) - 1

#: Tiles of a block, at least.
BLOCK = 16

#: Where a tensor's pieces are on the chip when they are written, and when they are read.
PLACES: dict[Place, tuple[Place, Place]] = {
    "tile": ("tile", "tile"),
    "mask": ("mask", "mask"),
    "vector": ("outbox", "inbox"),
    "inbox": ("inbox", "inbox"),
}

LOW, HIGH = attrgetter("low"), attrgetter("high")

Mode = Literal["late", "bands", "state"]
"""What of a tensor is outside. late: it stays on the chip until those who read it first have done so, and comes back
for the others; bands: every piece goes out when it is written, and stays only for readers that need no other piece;
state: it persists outside, what is read is what was there before, and what is written takes its place."""


@dataclass(eq=False)
class Uses:
    """Which pieces of a tensor, of ``band`` tiles at most, are written and read by which step, in the order of steps."""

    buffer: Buffer
    band: int
    written: list[tuple[int, Region]] = field(default_factory=list)
    read: list[tuple[int, Region]] = field(default_factory=list)

    @property
    def span(self) -> tuple[int, int]:
        """First and last step that touches it."""
        steps = [
            i for i, _ in (*self.written[:1], *self.written[-1:], *self.read[:1], *self.read[-1:])
        ]
        return min(steps), max(steps)

    @cached_property
    def pieces(self) -> list[Copy]:
        """What goes out together; to be asked when all uses are known."""
        return groups(self.written, self.band)

    @cached_property
    def complete(self) -> bool:
        """Whether each piece is finished before any of it is read, and never changed afterwards."""
        if not self.read or not self.written:
            return False
        return all(g.last < i for i, r in self.read for g in met(self.pieces, r.low, r.high))

    def hurried(self) -> Uses:
        """As if every piece were finished before it is read, which an order that knows of it will see to."""
        written: list[tuple[int, Region]] = []
        for group in self.pieces:
            limit = min((i for i, r in self.read if group.meets(r.low, r.high)), default=None)
            for i, r in self.written:
                if group.covers(r):
                    written.append((i if limit is None else min(i, limit - 1), r))
        return Uses(self.buffer, self.band, written, self.read)


@dataclass
class Copy:
    """Rows or tiles ``low`` to ``high`` of a tensor on the chip, for steps ``first`` to ``last``."""

    low: int
    high: int
    first: int
    last: int
    buffer: Buffer

    @property
    def size(self) -> int:
        """Rows or tiles."""
        return self.high + 1 - self.low

    def covers(self, r: Region) -> bool:
        """Whether all of a region is in it."""
        return self.low <= r.low and r.high <= self.high

    def meets(self, low: int, high: int) -> bool:
        """Whether it has any of the rows ``low`` to ``high``."""
        return self.low <= high and low <= self.high


@dataclass
class Plan:
    """Where each step finds a tensor's pieces, and the moves that see to it."""

    writes: dict[int, Copy] = field(default_factory=dict)
    reads: dict[int, Copy] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)

    def holdings(self) -> list[tuple[Buffer, int, int]]:
        """Buffers on the chip, with the first and last step of each."""
        spans: dict[Buffer, tuple[int, int]] = {}
        touched = [(c.buffer, i, i) for uses in (self.writes, self.reads) for i, c in uses.items()]
        for buffer, first, last in (*touched, *((m.buffer, m.at, m.until) for m in self.moves)):
            low, high = spans.get(buffer, (first, last))
            spans[buffer] = min(low, first), max(high, last)
        return [(buffer, *span) for buffer, span in spans.items()]

    @property
    def rows(self) -> int:
        """Rows of external memory that it takes."""
        return max(m.row + m.rows for m in self.moves)


@dataclass(frozen=True)
class Pace:
    """How fast things move.

    Args:
        side: T.
        words: 32-bit words a cycle between a core and external memory, which all cores use at the same time.
        band: tiles that go out together, at most.
        early: how early things are loaded, and how long they are kept.
    """

    side: int
    words: float
    band: int = UNLIMITED
    early: float = 1

    @property
    def ahead(self) -> int:
        """Cycles that a move is given besides those that it takes."""
        return int(self.early * AHEAD * self.side)

    @property
    def near(self) -> int:
        """Steps after which a copy that nothing has read is given up, and loaded again when it is needed."""
        return int(self.early * NEAR)

    def band_rows(self, buffer: Buffer) -> int:
        """Rows or tiles of a tensor that go out together, about."""
        return band_rows(buffer, self.band)

    def cycles(self, place: Place, size: int) -> int:
        """Cycles to move rows or tiles, a row a cycle at most."""
        t = self.side
        rows, words = (t, t * t / 4) if place == "tile" else (1, t / 32 if place == "mask" else t)
        return ceil(size * max(rows, words / self.words))


class Clock:
    """When steps are estimated to run."""

    def __init__(self, timeline: Timeline, pace: Pace) -> None:
        self.timeline, self.pace = timeline, pace

    @property
    def steps(self) -> int:
        """How many there are."""
        return len(self.timeline.order)

    def before(self, step: int, cycles: int) -> int:
        """The last step before which all others end so many cycles before a step begins to read."""
        return min(step, bisect_right(self.timeline.ends, self.timeline.needs[step] - cycles))

    def after(self, step: int, cycles: int) -> int:
        """The first step that begins so many cycles after another has ended."""
        starts = self.timeline.starts
        return min(self.steps - 1, bisect_left(starts, self.timeline.ends[step] + cycles))


def uses_of(steps: Sequence[VectorStep], pace: Pace) -> dict[Buffer, Uses]:
    """Uses of every buffer that could be outside."""
    found: dict[Buffer, Uses] = {}
    side = pace.side
    for i, step in enumerate(steps):
        written = step.tiles_written(side) + step.rows_written(side)
        read = step.tiles_read(side) + step.rows_read(side)
        for regions, writes in ((written, True), (joined(read), False)):
            for r in regions:
                mine = r.buffer.place in PLACES and r.buffer.place != "inbox"
                if r.buffer.outside or (mine and not r.buffer.persistent):
                    uses = found.setdefault(r.buffer, Uses(r.buffer, pace.band))
                    (uses.written if writes else uses.read).append((i, r))
    return found


def joined(regions: Sequence[Region]) -> list[Region]:
    """One region for each buffer: a step finds all that it reads of a tensor in one copy."""
    found: dict[Buffer, Region] = {}
    for r in regions:
        other = found.get(r.buffer, r)
        found[r.buffer] = Region(r.buffer, min(r.low, other.low), max(r.high, other.high))
    return list(found.values())


def groups(written: Sequence[tuple[int, Region]], band: int) -> list[Copy]:
    """What is written together, as the pieces that are stored together: the same ones for any order of the steps."""
    found: list[Copy] = []
    for i, r in sorted(written, key=lambda x: x[1].low):
        last = found[-1] if found else None
        if last is not None and (r.low <= last.high or beside(last, r, band)):
            last.high = max(last.high, r.high)
            last.first, last.last = min(last.first, i), max(last.last, i)
        else:
            found.append(Copy(r.low, r.high, i, i, r.buffer))
    for group in found:
        place = PLACES[group.buffer.place][0]
        group.buffer = piece(group.buffer, group.low, group.high, place)
    return found


def met(found: Sequence[Copy], low: int, high: int) -> Sequence[Copy]:
    """Of pieces that lie one behind the other, those that have any of the rows ``low`` to ``high``."""
    return found[which(found, low, high)]


def which(found: Sequence[Copy], low: int, high: int) -> slice:
    """Where those are."""
    first, end = bisect_left(found, low, key=HIGH), len(found)
    if first < end and found[first].high >= high:
        return slice(first, first + (found[first].low <= high))
    return slice(first, bisect_right(found, high, first, key=LOW))


def beside(group: Copy, r: Region, band: int) -> bool:
    """Whether a region follows a piece, and both together are no more than a band."""
    return r.low == group.high + 1 and r.high - group.low < band_rows(r.buffer, band)


def band_rows(buffer: Buffer, band: int) -> int:
    """Rows or tiles of a tensor that go out together, about."""
    tile = 1 if buffer.place == "tile" else buffer.align
    return band_of(buffer.size // tile, band) * tile


def piece(buffer: Buffer, low: int, high: int, place: Place) -> Buffer:
    """A place on the chip for some of a tensor."""
    return Buffer(f"{buffer.name}, from {low}", place, high + 1 - low, buffer.align)


def plan(uses: Uses, mode: Mode, clock: Clock, row: int) -> Plan | None:
    """How a tensor lives outside, from ``row`` of the spill area on; None if it cannot.

    Args:
        mode: which of its pieces are outside.
    """
    written = uses.pieces
    reads = sorted(uses.read, key=lambda x: x[0])
    if uses.buffer.slice is not None:
        everything = Region(uses.buffer, 0, uses.buffer.size - 1)
        reads = [(i, everything) for i, _ in reads]
    unit = block(
        uses.buffer,
        reduce(gcd, (x for g in written for x in (g.low, g.high + 1)), uses.buffer.size),
    )
    if unit is None:
        return None
    planner = _Planner(uses.buffer, written, clock, row, unit)
    if mode == "state":
        return planner.state(uses, reads)
    return planner.late(uses, reads) if mode == "late" else planner.bands(uses, reads)


def block(buffer: Buffer, common: int) -> int | None:
    """Rows or tiles that move together, where all pieces begin and end at a multiple of ``common``; None if less could.

    Tiles move in small blocks, so that little is loaded that nobody wants; but each has its exponents in a row.
    """
    if buffer.place == "tile":
        return min((n for n in range(BLOCK, common + 1) if common % n == 0), default=common)
    grain = lcm(buffer.align, MASK_ROWS) if buffer.place == "mask" else buffer.align
    return None if common % grain else grain


class _Planner:
    """Plans one tensor, whose pieces move in blocks of ``unit`` rows or tiles."""

    def __init__(
        self, buffer: Buffer, written: list[Copy], clock: Clock, row: int, unit: int
    ) -> None:
        self.buffer, self.written, self.clock = buffer, written, clock
        self.row, self.unit = row, unit
        self.block = block_rows(buffer.place, unit, clock.pace.side)
        self.plan = Plan()
        self.stores: list[Move] = []
        self.copies: list[Copy] = []
        self.area = "spill"

    def bands(self, uses: Uses, reads: Sequence[tuple[int, Region]]) -> Plan | None:
        """Every piece goes out as it is written. Who reads soon, and from one piece alone, reads that."""
        self.plan.writes = {i: self.group(r) for i, r in uses.written}
        if not self.store_all():
            return None
        direct = PLACES[self.buffer.place][0] == PLACES[self.buffer.place][1]
        later: list[tuple[int, Region]] = []
        for i, r in reads:
            found = met(self.written, r.low, r.high)
            if (
                direct
                and found
                and found[0].covers(r)
                and i - found[0].last <= self.clock.pace.near
            ):
                self.plan.reads[i] = found[0]
            else:
                later.append((i, r))
        for n in range(len(later)):
            self.read(later[n:])
        self.plan.moves = [*self.plan.moves, *self.stores]
        return self.plan

    def late(self, uses: Uses, reads: Sequence[tuple[int, Region]]) -> Plan | None:
        """The whole tensor stays until the first who read it have done so; the others read copies."""
        finished = max(i for i, _ in uses.written)
        far = (
            n
            for n in range(1, len(reads))
            if reads[n][0] > finished and reads[n][0] - reads[n - 1][0] > self.clock.pace.near
        )
        n = next(far, None)
        if n is None or self.buffer.place == "vector":
            return None
        last = max(reads[n - 1][0], finished)
        first = min(g.first for g in self.written)
        buffer = Buffer(self.buffer.name, self.buffer.place, self.buffer.size, self.buffer.align)
        whole = Copy(0, self.buffer.size - 1, first, last, buffer)
        self.plan.writes = {i: whole for i, _ in uses.written}
        self.plan.reads = {i: whole for i, _ in reads[:n]}
        if not self.store_all():
            return None
        self.stores = [
            replace(m, buffer=buffer, inside=g.low)
            for m, g in zip(self.stores, self.written, strict=True)
        ]
        for k in range(n, len(reads)):
            self.read(reads[k:])
        self.plan.moves = [*self.plan.moves, *self.stores]
        return self.plan

    def state(self, uses: Uses, reads: Sequence[tuple[int, Region]]) -> Plan:
        """What persists: reads find what the last step left, and new pieces go out when they are complete.

        The last of them may take until the next step has begun.
        """
        self.area = "image"
        self.plan.writes = {i: self.group(r) for i, r in uses.written}
        for n, (i, r) in enumerate(reads):
            if any(w < i and other.meets(r) for w, other in uses.written):
                raise GraphError(f"{self.buffer.name} is read after its new value was written")
            self.read(reads[n:])
        for group in self.written:
            until = self.clock.after(group.last, self.cycles(group.size) + self.clock.pace.ahead)
            until = until if until > group.last else self.clock.steps
            self.plan.moves += self.stores_of(group, until)
        return self.plan

    def stores_of(self, group: Copy, until: int) -> list[Move]:
        """The stores of a piece of what persists; of a kernel's tiles, one for each tile row of its."""
        layout = self.buffer.layout
        if layout is None:
            return [self.move("store", group, group.last, until)]
        if group.low % layout.columns or group.size % layout.columns:
            raise GraphError(f"{self.buffer.name} is written in parts of a tile row")
        return [
            Move(
                group.buffer,
                "store",
                self.row + layout.row(m // layout.columns),
                group.last,
                until,
                layout.across,
                layout.group,
                layout.block,
                m - group.low,
                area=self.area,
            )
            for m in range(group.low, group.high + 1, layout.columns)
        ]

    def group(self, r: Region) -> Copy:
        """The piece that a step writes."""
        return met(self.written, r.low, r.high)[0]

    def store_all(self) -> bool:
        """Stores of all pieces; whether the step is long enough for them."""
        for group in self.written:
            until = self.clock.after(group.last, self.cycles(group.size) + self.clock.pace.ahead)
            if until <= group.last:
                return False
            self.stores.append(self.move("store", group, group.last, until))
        return True

    def read(self, later: Sequence[tuple[int, Region]]) -> None:
        """Let the first of these steps find a copy: one that is there, or one that is loaded for it."""
        i, r = later[0]
        copy = next(
            (c for c in self.copies if c.covers(r) and i - c.last <= self.clock.pace.near), None
        )
        if copy is None:
            low, high = self.wanted(later)
            sources = self.sources(low, high)
            ready = max((m.at for m in sources), default=0) + 1
            at = max(
                ready, self.clock.before(i, self.cycles(high + 1 - low) + self.clock.pace.ahead), 1
            )
            at = min(at, i)
            place = PLACES[self.buffer.place][1]
            copy = Copy(low, high, at, i, piece(self.buffer, low, high, place))
            self.copies = [copy, *self.copies[: COPIES - 1]]
            for load in self.loads_of(copy, at, i):
                load.after = [m for m in sources if m.until >= at]
                self.plan.moves.append(load)
        copy.last = i
        self.plan.reads[i] = copy

    def loads_of(self, copy: Copy, at: int, until: int) -> list[Move]:
        """What brings a copy."""
        inputs = self.buffer.loads
        if not inputs:
            return [self.move("load", copy, at, until)]
        found = (load.piece(copy.buffer, copy.low, self.clock.pace.side) for load in inputs)
        return [
            Move(copy.buffer, "load", 0, at, until, 1, x.rows, x.rows, load=x)
            for x in found
            if x is not None
        ]

    def wanted(self, reads: Sequence[tuple[int, Region]]) -> tuple[int, int]:
        """What to load for a step: what it reads, and what the next steps read with it and is there, in whole blocks."""
        now, first = reads[0]
        low, high = first.low, first.high
        most = 2 * (high - low + 1)
        for i, r in reads[1:]:
            if i - now > self.clock.pace.near:
                break
            both = min(low, r.low), max(high, r.high)
            there = all(m.at < now for m in self.sources(*both))
            if there and r.low <= high and low <= r.high and both[1] - both[0] < most:
                low, high = both
        return low - low % self.unit, high - high % self.unit + self.unit - 1

    def sources(self, low: int, high: int) -> list[Move]:
        """The stores of some rows or tiles. A state is stored after it was read: it has none yet."""
        return self.stores[which(self.written, low, high)] if self.stores else []

    def cycles(self, size: int) -> int:
        """Cycles to move so many rows or tiles."""
        return self.clock.pace.cycles(self.buffer.place, size)

    def move(self, kind: Literal["load", "store"], copy: Copy, at: int, until: int) -> Move:
        """A transfer of a copy."""
        part = self.buffer.slice
        if part is not None:
            row = (part.kernel.base or 0) + part.row
            count, size = part.count, part.size
            return Move(copy.buffer, kind, row, at, until, count, size, part.block, area=self.area)
        where = self.row + copy.low // self.unit * self.block
        count = copy.size // self.unit
        if self.buffer.place == "tile":
            return Move(copy.buffer, kind, where, at, until, count, self.unit, self.block)
        # As few parts as instructions can count the rows of.
        rows = count * self.block
        parts = next(n for n in range(-(-rows // MOST), rows + 1) if rows % n == copy.size % n == 0)
        size, block = copy.size // parts, rows // parts
        return Move(copy.buffer, kind, where, at, until, parts, size, block, area=self.area)


def relocated(
    step: VectorStep, written: Mapping[Buffer, Copy], read: Mapping[Buffer, Copy]
) -> VectorStep:
    """A step that finds tensors in copies of parts of them."""

    def at(a: Access, copies: Mapping[Buffer, Copy]) -> Access:
        copy = copies.get(a.buffer)
        return a if copy is None else changed(a, buffer=copy.buffer, offset=a.offset - copy.low)

    def walk(w: TileWalk) -> TileWalk:
        return changed(w, base=at(w.base, read))

    m = step.matrix
    if m is not None and read:
        m = changed(m, streamed=walk(m.streamed), stationary=walk(m.stationary))
    a, b, c, d = (at(v, read) if isinstance(v, Access) else v for v in step.operands)
    target = None if step.target is None else at(step.target, written)
    tile = None if step.tile is None else at(step.tile, written)
    return step.changed(a=a, b=b, c=c, d=d, matrix=m, target=target, tile=tile)
