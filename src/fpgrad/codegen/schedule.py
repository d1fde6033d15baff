"""Scheduling: an order of the steps that keeps both units busy.

A list scheduler over a small model of the machine: the vector unit takes a row a cycle, the matrix unit a tile
product in T, a result can be used some cycles after it was computed. Among the steps that could start before any of
them could end, the one with the longest way to the end of the step goes first. The model only has to be good enough
to order steps; the emulator counts the cycles.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fpgrad.codegen.steps import Access, Buffer, Region, VectorStep
from fpgrad.isa.instructions import Source

#: Cycles from a pass's last row to its use, as row or as tile. Estimates, for ordering alone.
ROW_LATENCY = 20
TILE_LATENCY = 40
FILL = 30


@dataclass(eq=False)
class Item:
    """A step in the dependency graph. ``before`` maps each predecessor to the latency of what it gives."""

    step: VectorStep
    index: int
    before: dict[Item, int] = field(default_factory=dict)
    after: list[Item] = field(default_factory=list)
    height: int = 0
    start: int = 0
    end: int = 0


class Ledger:
    """Who wrote and who read which rows since they were last written whole."""

    def __init__(self) -> None:
        self.written: dict[Buffer, list[tuple[Region, Item]]] = {}
        self.read: dict[Buffer, list[tuple[Region, Item]]] = {}

    def writers(self, region: Region) -> list[Item]:
        """Items that wrote a part of it."""
        return [i for r, i in self.written.get(region.buffer, ()) if r.meets(region)]

    def readers(self, region: Region) -> list[Item]:
        """Items that read a part of it."""
        return [i for r, i in self.read.get(region.buffer, ()) if r.meets(region)]

    def write(self, region: Region, item: Item) -> None:
        """Note a write; it depends on everything it hides."""
        for notes in (self.written, self.read):
            kept = [
                (r, i) for r, i in notes.get(region.buffer, ()) if not region.covers(r) or i is item
            ]
            notes[region.buffer] = kept
        self.written[region.buffer].append((region, item))


def depends(steps: list[VectorStep], t: int) -> list[Item]:
    """The dependency graph: what is read after it was written, written after it was read, written twice."""
    items = [Item(step, i) for i, step in enumerate(steps)]
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
                for w in ledger.writers(region):
                    item.before[w] = max(item.before.get(w, 0), latency)
        writes = step.rows_written(t) + step.tiles_written(t)
        for region in writes:
            for other in (*ledger.writers(region), *ledger.readers(region)):
                item.before.setdefault(other, 0)
        for region in step.rows_read(t) + step.tiles_read(t):
            ledger.read.setdefault(region.buffer, []).append((region, item))
        for region in writes:
            ledger.write(region, item)
        if step.op != "pass":
            prologue.append(item)
        else:
            for p in prologue:
                item.before.setdefault(p, 0)
        if (
            Source.RANDOM in step.operands
        ):  # the generators are a sequence: keep the order of their users
            if random is not None:
                item.before.setdefault(random, 0)
            random = item
    for item in items:
        item.before.pop(item, None)
        for p in item.before:
            p.after.append(item)
    for item in reversed(items):
        tail = max((n.height + n.before[item] for n in item.after), default=0)
        item.height = tail + duration(item.step, t)
    return items


def products(step: VectorStep, t: int) -> int:
    """Cycles of the matrix unit for a step."""
    m = step.matrix
    return 0 if m is None else m.products * t


def duration(step: VectorStep, t: int) -> int:
    """Cycles of a step on its slower unit."""
    return max(step.rows, products(step, t))


def schedule(steps: list[VectorStep], t: int) -> tuple[list[VectorStep], int]:
    """Order ``steps`` (given in an order that is correct) to keep matrix and vector unit busy.

    Args:
        t: the tile side.

    Returns:
        the order, and an estimate of the step's cycles.
    """
    items = depends(steps, t)
    waiting = {item: len(item.before) for item in items}
    ready = [item for item in items if not item.before]
    vector_free = matrix_free = 0
    order: list[VectorStep] = []
    while ready:
        best = choose(ready, vector_free, matrix_free, t)
        ready.remove(best)
        best.start, best.end, matrix_end = timing(best, vector_free, matrix_free, t)
        vector_free, matrix_free = best.end, max(matrix_free, matrix_end)
        order.append(best.step)
        for n in best.after:
            waiting[n] -= 1
            if not waiting[n]:
                ready.append(n)
    return order, vector_free


def timing(item: Item, vector_free: int, matrix_free: int, t: int) -> tuple[int, int, int]:
    """Start and end on the vector unit, and end on the matrix unit, if the item went next."""
    rows_ready = tiles_ready = 0
    matrix = item.step.matrix
    tiles = set()
    if matrix is not None:
        tiles = {matrix.streamed.base.buffer, matrix.stationary.base.buffer}
    for p, latency in item.before.items():
        if latency == TILE_LATENCY and p.step.tile is not None and p.step.tile.buffer in tiles:
            tiles_ready = max(tiles_ready, p.end + latency)
        else:
            rows_ready = max(rows_ready, streaming_ready(p, item, latency))
    start = max(vector_free, rows_ready)
    if matrix is None:
        return start, start + item.step.rows, 0
    begin = max(matrix_free, tiles_ready)
    done = begin + products(item.step, t)
    first = begin + matrix.length * t + FILL
    start = max(start, first)
    return start, max(start + item.step.rows, done + FILL + t), done


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


def choose(ready: list[Item], vector_free: int, matrix_free: int, t: int) -> Item:
    """The item of greatest height among those that could start before any could end."""
    times = {item: timing(item, vector_free, matrix_free, t) for item in ready}
    soonest = min(end for _, end, _ in times.values())
    able = [item for item in ready if times[item][0] < soonest]
    return max(able, key=lambda item: (item.height, -item.index))
