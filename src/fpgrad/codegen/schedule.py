"""Scheduling: an order of the steps that keeps both units busy.

A list scheduler over a small model of the machine: the vector unit takes a row a cycle, the matrix unit a tile
product in T, a result can be used some cycles after it was computed. An item's height is the longest way from it to
the end of the step. Two policies say which item goes next; the better result is taken. The model only has to be good
enough to order steps; the emulator counts the cycles.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType

from fpgrad.codegen.dependencies import NO_SUMS, ROW_LATENCY, TILE_LATENCY, Item, depends
from fpgrad.codegen.flight import Flight, Sums
from fpgrad.codegen.geometry import UNLIMITED
from fpgrad.codegen.steps import Access, Buffer, VectorStep
from fpgrad.codegen.timeline import Timeline
from fpgrad.codegen.turns import Turns

#: Cycles from a product's last tile to its first row. An estimate, for ordering alone.
FILL = 30

#: Cycles that the matrix unit may wait for a product of greater height.
PATIENCE = 500


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
"""Which of the items that are ready, given in the order of the program, goes next."""


def schedule(
    steps: list[VectorStep],
    t: int,
    queue_rows: int,
    policy: Policy,
    sums: Sums = NO_SUMS,
    distance: Mapping[Buffer, int] = MappingProxyType({}),
    band: int = UNLIMITED,
) -> Timeline:
    """Order ``steps`` (given in an order that is correct) to keep matrix and vector unit busy.

    Args:
        t: the tile side.
        queue_rows: finished rows that can wait for the vector unit.
        policy: which of the items that are ready goes next.
        sums, distance, band: see :func:`depends`.
    """
    items = depends(steps, t, sums, distance, band)
    flight, turns = Flight(items, sums), Turns(items)
    waiting = {item: len(item.before) for item in items}
    ready: list[Item] = []
    units = Units(t, queue_rows)

    def release(item: Item) -> None:
        item.rows_ready, item.tiles_ready = readiness(item)
        insort(ready, item, key=INDEX)

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
    able = [item for item in ready if item.products]
    if not able:
        best = min(ready, key=urgency)
        return best, timing(best, units)
    soonest = max(units.matrix_free, min(item.tiles_ready for item in able)) + PATIENCE
    able = [item for item in able if item.tiles_ready <= soonest]
    tensor = min(able, key=urgency).tensor
    best = next(item for item in able if item.tensor == tensor)
    slot = timing(best, units)
    passes = list(meanwhile(ready, units, slot))
    return min(passes, key=lambda x: urgency(x[0])) if passes else (best, slot)


def meanwhile(ready: list[Item], units: Units, slot: Slot) -> Iterator[tuple[Item, Slot]]:
    """Passes that end before a product's rows are waited for, whose slot is given."""
    free, deadline = units.vector_free, slot.deadline
    for item in ready:
        if (
            not item.products
            and free + item.rows <= deadline
            and item.rows_ready + item.rows <= deadline
        ):
            yield item, timing(item, units)


def steady(ready: list[Item], units: Units) -> tuple[Item, Slot]:
    """Keep the matrix unit going, in the order of the program: what was begun is finished, so that little is alive."""
    soonest = units.matrix_free + PATIENCE
    best = next((item for item in ready if item.products), ready[0])
    if best.tiles_ready > soonest:
        able = [item for item in ready if item.products]
        soonest = max(soonest, min(item.tiles_ready for item in able) + PATIENCE)
        best = next(item for item in able if item.tiles_ready <= soonest)
    slot = timing(best, units)
    if best.products:
        best, slot = next(meanwhile(ready, units, slot), (best, slot))
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


def urgency(item: Item) -> tuple[int, int]:
    """What comes first is least: the longest way to the end, then the order of the program."""
    return -item.height, item.index


#: The order of the program.
INDEX = attrgetter("index")
