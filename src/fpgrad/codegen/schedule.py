"""Scheduling: an order of the steps that keeps both units busy.

A list scheduler over a small model of the machine: the vector unit takes a row a cycle, the matrix unit a tile
product in T, a result can be used some cycles after it was computed. An item's height is the longest way from it to
the end of the step. Two policies say which item goes next; the better result is taken. The model only has to be good
enough to order steps; the emulator counts the cycles.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from fpgrad.codegen.external import groups
from fpgrad.codegen.flight import Flight, Sums, add_waits
from fpgrad.codegen.steps import Access, Buffer, Region, VectorStep
from fpgrad.codegen.timeline import Timeline
from fpgrad.codegen.turns import Turns
from fpgrad.isa.instructions import Source

#: Cycles from a pass's last row to its use, as row or as tile. Estimates, for ordering alone.
ROW_LATENCY = 20
TILE_LATENCY = 40
FILL = 30

#: Cycles that the matrix unit may wait for a product of greater height.
PATIENCE = 500

NO_SUMS = Sums()


@dataclass(eq=False)
class Item:
    """A step in the dependency graph. ``before`` maps each predecessor to the latency of what it gives; ``tail`` is what
    follows at least, besides those in ``after``."""

    step: VectorStep
    index: int
    before: dict[Item, int] = field(default_factory=dict)
    after: list[Item] = field(default_factory=list)
    tail: int = 0
    height: int = 0
    start: int = 0
    end: int = 0
    rows_ready: int = 0
    tiles_ready: int = 0
    rows: int = field(init=False)
    products: int = field(init=False)
    tensor: tuple[str, str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.step.rows
        self.products = 0
        self.tensor = (self.step.layer, self.step.phase, self.step.text)


Note = tuple[int, int, Item]
"""First and last row, and who touches them."""


class Ledger:
    """Who wrote and who read which rows since they were last written whole."""

    def __init__(self) -> None:
        self.written: dict[Buffer, list[Note]] = {}
        self.read: dict[Buffer, list[Note]] = {}

    def writers(self, region: Region) -> list[Item]:
        """Items that wrote a part of it."""
        low, high = region.low, region.high
        notes = self.written.get(region.buffer, ())
        return [item for first, last, item in notes if first <= high and low <= last]

    def readers(self, region: Region) -> list[Item]:
        """Items that read a part of it."""
        low, high = region.low, region.high
        notes = self.read.get(region.buffer, ())
        return [item for first, last, item in notes if first <= high and low <= last]

    def note_read(self, region: Region, item: Item) -> None:
        """Note a read."""
        self.read.setdefault(region.buffer, []).append((region.low, region.high, item))

    def note_write(self, region: Region, item: Item) -> None:
        """Note a write; it depends on everything it hides."""
        low, high = region.low, region.high
        for notes in (self.written, self.read):
            if region.buffer in notes:
                notes[region.buffer] = [
                    n for n in notes[region.buffer] if n[0] < low or high < n[1] or n[2] is item
                ]
        self.written.setdefault(region.buffer, []).append((low, high, item))


def depends(
    steps: list[VectorStep],
    t: int,
    sums: Sums = NO_SUMS,
    distance: Mapping[Buffer, int] = MappingProxyType({}),
) -> list[Item]:
    """The dependency graph: what is read after it was written, written after it was read, written twice.

    Args:
        sums: over the cores.
        distance: cycles that what is read of a tensor takes to come back, of the tensors that go out in pieces; a
            piece is read when it is complete, and without delay by those who read no other.
    """
    items = [Item(step, i) for i, step in enumerate(steps)]
    for item in items:
        item.products = products(item.step, t)
    bands = bands_of(steps, t, distance)
    ledger = Ledger()
    prologue: list[Item] = []
    random: Item | None = None
    for item in items:
        step = item.step
        for regions, latency in (
            (step.rows_read(t), ROW_LATENCY),
            (step.tiles_read(t), TILE_LATENCY),
        ):
            for region in regions:
                pieces = met(bands.get(region.buffer, []), region) or [region]
                away = distance.get(region.buffer, 0) if len(pieces) > 1 else 0
                for w in (w for piece in pieces for w in ledger.writers(piece)):
                    item.before[w] = max(item.before.get(w, 0), latency + away)
        writes = step.rows_written(t) + step.tiles_written(t)
        for region in writes:
            for other in (*ledger.writers(region), *ledger.readers(region)):
                item.before.setdefault(other, 0)
        for region in step.rows_read(t) + step.tiles_read(t):
            ledger.note_read(region, item)
            if region.buffer.slice is not None:
                kernel = region.buffer.slice.kernel
                ledger.note_read(Region(kernel, 0, kernel.size - 1), item)
        for region in writes:
            ledger.note_write(region, item)
        if step.first or step.op == "scalars" or (step.op == "seed" and random is None):
            prologue.append(item)
        else:
            for p in prologue:
                item.before.setdefault(p, 0)
        if (
            Source.RANDOM in step.operands or step.op == "seed"
        ):  # the generators are a sequence: keep the order of their users
            if random is not None:
                item.before.setdefault(random, 0)
            random = item
    add_waits(items, sums)
    for item in reversed(items):
        for copy in [p for p in item.before if p.step.again]:
            for p in item.before:
                if p.index < copy.index and not p.step.again:
                    copy.before.setdefault(p, 0)
    for item in items:
        item.before.pop(item, None)
        for p in item.before:
            p.after.append(item)
    for item in reversed(items):
        tail = max((n.height + n.before[item] for n in item.after), default=0)
        item.height = max(tail, item.tail) + max(item.rows, item.products)
    return items


def bands_of(
    steps: list[VectorStep], t: int, some: Collection[Buffer]
) -> dict[Buffer, list[Region]]:
    """The pieces of some tensors."""
    written: dict[Buffer, list[tuple[int, Region]]] = {}
    for i, step in enumerate(steps if some else ()):
        for r in step.rows_written(t) + step.tiles_written(t):
            if r.buffer in some:
                written.setdefault(r.buffer, []).append((i, r))
    return {b: [Region(b, g.low, g.high) for g in groups(w)] for b, w in written.items()}


def met(pieces: Sequence[Region], region: Region) -> Sequence[Region]:
    """Of pieces that lie one behind the other, those that a region has rows of."""
    first = bisect_left(pieces, region.low, key=lambda r: r.high)
    return pieces[first : bisect_right(pieces, region.high, key=lambda r: r.low)]


def products(step: VectorStep, t: int) -> int:
    """Cycles of the matrix unit for a step."""
    m = step.matrix
    return 0 if m is None else m.products * t


@dataclass
class Units:
    """When the units are free in the model, and what the queue of finished rows between them holds."""

    side: int
    queue_rows: int
    vector_free: int = 0
    matrix_free: int = 0


@dataclass(frozen=True)
class Slot:
    """When an item would run if it went next.

    Args:
        start, end: on the vector unit.
        matrix_end: on the matrix unit; 0 without products.
        deadline: the latest start that delays neither its end nor, by a full queue, the matrix unit.
    """

    start: int
    end: int
    matrix_end: int = 0
    deadline: int = 0


Policy = Callable[[list[Item], Units], tuple[Item, Slot]]


def schedule(
    steps: list[VectorStep],
    t: int,
    queue_rows: int,
    policy: Policy,
    sums: Sums = NO_SUMS,
    distance: Mapping[Buffer, int] = MappingProxyType({}),
) -> Timeline:
    """Order ``steps`` (given in an order that is correct) to keep matrix and vector unit busy.

    Args:
        t: the tile side.
        queue_rows: finished rows that can wait for the vector unit.
        policy: which of the items that are ready goes next.
        sums, distance: see :func:`depends`.
    """
    items = depends(steps, t, sums, distance)
    flight, turns = Flight(items, sums), Turns(items)
    waiting = {item: len(item.before) for item in items}
    ready: list[Item] = []
    units = Units(t, queue_rows)

    def release(item: Item) -> None:
        item.rows_ready, item.tiles_ready = readiness(item)
        ready.append(item)

    for item in items:
        if not item.before:
            release(item)
    timeline = Timeline()
    while ready:
        # If nothing may go, sums need each other: then they all may.
        able = turns.allowed(ready)
        able = [item for item in able if flight.allows(item)] if sums.exchanges else able
        best, slot = policy(able or ready, units)
        ready.remove(best)
        flight.note(best)
        turns.note(best)
        best.start, best.end = slot.start, slot.end
        units.vector_free = slot.end
        units.matrix_free = max(units.matrix_free, slot.matrix_end)
        need = slot.matrix_end - best.products if best.products else slot.start
        timeline.add(best.index, need, slot.start, slot.end)
        for n in best.after:
            waiting[n] -= 1
            if not waiting[n]:
                release(n)
    return timeline


def readiness(item: Item) -> tuple[int, int]:
    """When the rows and the tiles are there that an item reads; all that it follows has its time already."""
    rows_ready = tiles_ready = 0
    matrix = item.step.matrix
    tiles = set()
    if matrix is not None:
        tiles = {matrix.streamed.base.buffer, matrix.stationary.base.buffer}
    for p, latency in item.before.items():
        if latency >= TILE_LATENCY and p.step.tile is not None and p.step.tile.buffer in tiles:
            tiles_ready = max(tiles_ready, p.end + latency)
        else:
            rows_ready = max(rows_ready, streaming_ready(p, item, latency))
    return rows_ready, tiles_ready


def timing(item: Item, units: Units) -> Slot:
    """When the item would run if it went next."""
    t = units.side
    start = max(units.vector_free, item.rows_ready)
    matrix = item.step.matrix
    if matrix is None:
        return Slot(start, start + item.rows)
    begin = max(units.matrix_free, item.tiles_ready)
    done = begin + item.products
    first = begin + matrix.length * t + FILL
    start = max(start, first)
    end = max(start + item.rows, done + FILL + t)
    deadline = min(end - item.rows, first + units.queue_rows * matrix.length)
    return Slot(start, end, done, deadline)


def streaming_ready(before: Item, item: Item, latency: int) -> int:
    """When ``item`` may start after ``before``: a long pass may be followed row by row."""
    if (
        latency == ROW_LATENCY
        and before.step.loops == item.step.loops
        and not transposed(item.step)
    ):
        return before.start + max(before.step.rows, latency)
    return before.end + latency


def transposed(step: VectorStep) -> bool:
    """Whether a step reads columns."""
    return any(isinstance(v, Access) and v.transposed for v in step.operands)


def soonest_first(ready: list[Item], units: Units) -> tuple[Item, Slot]:
    """The item of greatest height among those that could start before any could end."""
    slots = {item: timing(item, units) for item in ready}
    soonest = min(slot.end for slot in slots.values())
    best = min((item for item in ready if slots[item].start < soonest), key=urgency)
    return best, slots[best]


def products_first(ready: list[Item], units: Units) -> tuple[Item, Slot]:
    """Keep the matrix unit going: the product of greatest height, parts of one tensor in their order.

    A pass that takes its rows waits for them most of the time: what can be done meanwhile goes before it.
    """
    return _products(ready, units, urgency)


def steady(ready: list[Item], units: Units) -> tuple[Item, Slot]:
    """Keep the matrix unit going, in the order of the program: what was begun is finished, so that little is alive."""
    best, slot = _products(ready, units, INDEX)
    # A long pass fits between no two products: those of the next micro-batch must not hold it up for good.
    held = best.step.turn and [
        item
        for item in ready
        if item.step.turn < best.step.turn and not item.products and item.rows_ready <= slot.start
    ]
    if held:
        best = min(held, key=INDEX)
        slot = timing(best, units)
    return best, slot


def _products(ready: list[Item], units: Units, rank: Callable[[Item], Any]) -> tuple[Item, Slot]:
    able = [item for item in ready if item.products]
    if not able:
        best = min(ready, key=rank)
        return best, timing(best, units)
    soonest = max(units.matrix_free, min(item.tiles_ready for item in able)) + PATIENCE
    able = [item for item in able if item.tiles_ready <= soonest]
    best = min(able, key=rank)
    if rank is not INDEX:
        best = min((item for item in able if item.tensor == best.tensor), key=INDEX)
    slot = timing(best, units)
    free, deadline = units.vector_free, slot.deadline
    meanwhile = [
        item
        for item in ready
        if not item.products
        and free + item.rows <= deadline
        and item.rows_ready + item.rows <= deadline
    ]
    if meanwhile:
        best = min(meanwhile, key=rank)
        slot = timing(best, units)
    return best, slot


def urgency(item: Item) -> tuple[int, int]:
    """What comes first is least: the longest way to the end, then the order of the program."""
    return -item.height, item.index


#: The order of the program.
INDEX = attrgetter("index")
