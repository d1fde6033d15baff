"""Streaming: tiles that the chip has no room for live in external memory and come in pieces when they are needed.

A streamed tensor's tiles go out as they are written, band by band, and each pass that reads some of them later reads a
copy that a load has brought, ahead of its use. Neighbouring passes share a copy: the taps of a kernel's gradient, or
the products that go through the same rows. What is written, stored and loaded when follows from the order of the
passes; the chip keeps no directory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import gcd

from fpgrad.codegen.allocate import place, tile_spans
from fpgrad.codegen.geometry import BAND
from fpgrad.codegen.steps import Access, Buffer, Region, StepList, TileMove, TileWalk, VectorStep
from fpgrad.errors import MemoryCapacityError

#: Cycles that a load is begun ahead of its first use, besides those that it takes.
AHEAD = 2000

#: Steps after which a copy that nothing has read is given up, and loaded again when it is needed.
NEAR = 40

#: Copies of one tensor that are kept at a time.
COPIES = 3


@dataclass
class Uses:
    """A tensor's tiles: which are written and read by which step, in the order of steps."""

    buffer: Buffer
    written: list[tuple[int, Region]] = field(default_factory=list)
    read: list[tuple[int, Region]] = field(default_factory=list)


@dataclass
class Copy:
    """Tiles ``low`` to ``high`` of a streamed tensor on the chip, for steps ``first`` to ``last``."""

    low: int
    high: int
    first: int
    last: int
    buffer: Buffer

    def covers(self, r: Region) -> bool:
        """Whether all of a region is in it."""
        return self.low <= r.low and r.high <= self.high


@dataclass
class Plan:
    """Where each step finds a streamed tensor's tiles, and the moves that see to it."""

    writes: dict[int, Copy]
    reads: dict[int, Copy]
    moves: list[TileMove]


def fit_tiles(steps: StepList, floor: int, capacity: int, side: int) -> None:
    """Stream as many tensors as it takes for the function's tiles to fit between ``floor`` and ``capacity``.

    Raises:
        MemoryCapacityError: what a few passes need at once does not fit.
    """
    uses = tile_uses(steps.steps, side)
    clock = Clock(steps.steps, side)
    plans: dict[Buffer, Plan] = {}
    fixed: set[Buffer] = set()
    while True:
        trial = streamed(steps, plans)
        spans = tile_spans(trial)
        if place(spans, floor) <= capacity:
            steps.steps, steps.moves = trial.steps, trial.moves
            return
        at, alive = busiest(spans)
        some = [b for b in spans if b in uses and spans[b][0] <= at <= spans[b][1]]
        left = sorted((b for b in some if b not in fixed), key=lambda b: -b.size)
        for buffer in left:
            row = max((p.moves[-1].row + p.moves[-1].rows for p in plans.values()), default=0)
            plan = plan_of(uses[buffer], clock, row, side)
            if plan is not None:
                plans[buffer] = plan
                break
            fixed.add(buffer)
        else:
            step = steps.steps[at]
            raise MemoryCapacityError(
                f"{steps.name}: {step.layer} ({step.phase}) needs {alive} tiles of the tile memory's {capacity - floor} "
                "at once, even with external memory. Use a smaller batch, or raise memory.tiles"
            )


class Clock:
    """Estimated cycles at which steps begin."""

    def __init__(self, steps: Sequence[VectorStep], side: int) -> None:
        self.side = side
        self.starts = [0]
        for step in steps:
            products = 0 if step.matrix is None else step.matrix.products
            self.starts.append(self.starts[-1] + max(step.rows, products * side))

    def before(self, step: int, cycles: int) -> int:
        """The last step that begins so many cycles before another."""
        return max(0, bisect_left(self.starts, self.starts[step] - cycles) - 1)

    def after(self, step: int, cycles: int) -> int:
        """The first step that begins so many cycles after another has ended."""
        return min(len(self.starts) - 2, bisect_left(self.starts, self.starts[step + 1] + cycles))


def tile_uses(steps: Sequence[VectorStep], side: int) -> dict[Buffer, Uses]:
    """Uses of every tile buffer that does not persist."""
    found: dict[Buffer, Uses] = {}
    for i, step in enumerate(steps):
        for regions, written in ((step.tiles_written(side), True), (step.tiles_read(side), False)):
            for r in regions:
                if not r.buffer.persistent:
                    uses = found.setdefault(r.buffer, Uses(r.buffer))
                    (uses.written if written else uses.read).append((i, r))
    return found


def busiest(spans: dict[Buffer, tuple[int, int]]) -> tuple[int, int]:
    """The step with the most tiles alive, and how many."""
    steps = max(last for _, last in spans.values()) + 2
    change = [0] * (steps + 1)
    for buffer, (first, last) in spans.items():
        change[first] += buffer.size
        change[last + 1] -= buffer.size
    alive = most = at = 0
    for i, by in enumerate(change):
        alive += by
        if alive > most:
            most, at = alive, i
    return at, most


def groups(written: Sequence[tuple[int, Region]]) -> list[Copy]:
    """Tiles that are written together, as the places of a tensor that are stored together."""
    found: list[Copy] = []
    for i, r in sorted(written, key=lambda x: x[1].low):
        last = found[-1] if found else None
        beside = last is not None and r.low == last.high + 1 and r.high - last.low < BAND
        if last is not None and (r.low <= last.high or beside):
            last.high = max(last.high, r.high)
            last.first, last.last = min(last.first, i), max(last.last, i)
        else:
            found.append(Copy(r.low, r.high, i, i, r.buffer))
    for group in found:
        group.buffer = Buffer(group.buffer.name, "tile", group.high - group.low + 1)
    return found


def plan_of(uses: Uses, clock: Clock, row: int, side: int) -> Plan | None:
    """A plan to stream a tensor, whose place in external memory begins at ``row``.

    Tiles that are read so soon after they were written that they cannot have gone out and come back are kept: then
    all of the tensor is, until those who read it first have done so. None if that is everybody.
    """
    reads = sorted(uses.read, key=lambda x: x[0])
    plan = plan_reads(uses, reads, [], clock, row, side)
    if plan is not None or not reads:
        return plan
    written = max(i for i, _ in uses.written)
    n = next(
        (
            n
            for n in range(1, len(reads))
            if reads[n][0] > written and reads[n][0] - reads[n - 1][0] > NEAR
        ),
        None,
    )
    return None if n is None else plan_reads(uses, reads[n:], reads[:n], clock, row, side)


def plan_reads(
    uses: Uses,
    later: Sequence[tuple[int, Region]],
    soon: Sequence[tuple[int, Region]],
    clock: Clock,
    row: int,
    side: int,
) -> Plan | None:
    """A plan in which the ``later`` reads find copies, and the others the tiles where they were written."""
    written = groups(uses.written)
    if not later or len(written) + len(later) < 3:
        return None
    unit = reduce(gcd, (x for g in written for x in (g.low, g.high + 1)), uses.buffer.size)
    each = block_rows(unit, side)
    plan = Plan({}, {}, [])

    def move(kind: str, copy: Copy, at: int, until: int) -> TileMove:
        count = (copy.high + 1 - copy.low) // unit
        where = row + copy.low // unit * each
        return TileMove(copy.buffer, kind, where, at, until, count, unit, each)  # type: ignore[arg-type]

    for group in written:
        reads = [i for i, r in later if r.low <= group.high and group.low <= r.high]
        until = clock.after(group.last, group.buffer.size * side + AHEAD)
        if reads:
            until = min(until, min(reads) - 2)
        if until <= group.last:
            return None
        plan.moves.append(move("store", group, group.last, until))
        group.last = until
    if soon:
        last = max(*(i for i, _ in soon), *(g.last for g in written))
        whole = Copy(
            0,
            uses.buffer.size - 1,
            written[0].first,
            last,
            Buffer(uses.buffer.name, "tile", uses.buffer.size),
        )
        plan.moves = [
            replace(m, buffer=whole.buffer, inside=g.low)
            for m, g in zip(plan.moves, written, strict=True)
        ]
        plan.writes = {i: whole for i, _ in uses.written}
        plan.reads = {i: whole for i, _ in soon}
    else:
        plan.writes = {i: next(g for g in written if g.covers(r)) for i, r in uses.written}
    loads: list[TileMove] = []
    copies: list[Copy] = []
    for n, (i, r) in enumerate(later):
        copy = next((c for c in copies if c.covers(r) and i - c.last <= NEAR), None)
        if copy is None:
            low, high = wanted(later[n:], i, unit)
            ready = max(g.last for g in written if g.low <= high and low <= g.high) + 1
            at = max(ready, clock.before(i, (high + 1 - low) * side + AHEAD), 1)
            copy = Copy(low, high, min(at, i), i, Buffer(uses.buffer.name, "tile", high + 1 - low))
            copies = [copy, *copies[: COPIES - 1]]
            loads.append(move("load", copy, copy.first, i))
        copy.last = i
        plan.reads.setdefault(i, copy)
        if not plan.reads[i].covers(r):
            return None
    # The last in external memory comes last, so that its end is that of the tensor's place.
    plan.moves = [*loads, *sorted(plan.moves, key=lambda m: m.row)]
    return plan


def wanted(reads: Sequence[tuple[int, Region]], now: int, unit: int) -> tuple[int, int]:
    """What to load for a step: its tiles, and those that the next steps read with them, in whole blocks."""
    first = reads[0][1]
    low, high = first.low, first.high
    most = 2 * (high - low + 1)
    for i, r in reads[1:]:
        if i - now > NEAR:
            break
        both = min(low, r.low), max(high, r.high)
        if r.low <= high and low <= r.high and both[1] - both[0] < most:
            low, high = both
    return low - low % unit, high - high % unit + unit - 1


def block_rows(tiles: int, side: int) -> int:
    """Rows of external memory for a block: its exponents, then its tiles."""
    return -(-tiles // (4 * side)) + tiles * side // 4


def streamed(steps: StepList, plans: dict[Buffer, Plan]) -> StepList:
    """The steps with the tiles of some tensors in their copies."""
    out = StepList(steps.name, list(steps.steps), steps.loads, steps.stores)
    for buffer, plan in plans.items():
        out.moves += plan.moves
        for i, copy in plan.writes.items():
            step = out.steps[i]
            if step.tile is not None:
                out.steps[i] = replace(step, tile=within(step.tile, copy))
        for i, copy in plan.reads.items():
            out.steps[i] = reading(out.steps[i], buffer, copy)
    return out


def within(a: Access, copy: Copy) -> Access:
    """A walk over a tensor, over a copy of a part of it."""
    return replace(a, buffer=copy.buffer, offset=a.offset - copy.low)


def reading(step: VectorStep, buffer: Buffer, copy: Copy) -> VectorStep:
    """A step whose product reads a copy of a part of ``buffer``."""
    m = step.matrix
    assert m is not None

    def at(w: TileWalk) -> TileWalk:
        return replace(w, base=within(w.base, copy)) if w.base.buffer is buffer else w

    return replace(step, matrix=replace(m, streamed=at(m.streamed), stationary=at(m.stationary)))
