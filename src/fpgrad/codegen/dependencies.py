"""The dependency graph of steps: who has to come before whom, and how much earlier."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from fpgrad.codegen.external import groups
from fpgrad.codegen.flight import Sums, add_waits
from fpgrad.codegen.geometry import UNLIMITED
from fpgrad.codegen.steps import Buffer, Region, VectorStep
from fpgrad.isa.instructions import Source

#: Cycles from a pass's last row to its use, as row or as tile. Estimates, for ordering alone.
ROW_LATENCY = 20
TILE_LATENCY = 40

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


class Notes:
    """Who touched which rows of a buffer, by first row."""

    def __init__(self) -> None:
        self._lows: list[int] = []
        self._notes: list[tuple[int, Item]] = []  # last row, and who
        self._most = 0

    def _near(self, region: Region) -> range:
        """Where those are that may have touched a part of a region."""
        first = bisect_left(self._lows, region.low - self._most)
        return range(first, bisect_right(self._lows, region.high, first))

    def meeting(self, region: Region) -> list[Item]:
        """Who touched a part of a region."""
        near = self._near(region)
        return [item for last, item in self._notes[near.start : near.stop] if last >= region.low]

    def hide(self, region: Region, by: Item) -> None:
        """Forget all others who touched nothing but a region."""
        near = self._near(region)
        kept = [
            i
            for i in near
            if self._lows[i] < region.low
            or self._notes[i][0] > region.high
            or self._notes[i][1] is by
        ]
        if len(kept) < len(near):
            self._lows[near.start : near.stop] = [self._lows[i] for i in kept]
            self._notes[near.start : near.stop] = [self._notes[i] for i in kept]

    def add(self, region: Region, item: Item) -> None:
        """Note that somebody touched a region."""
        at = bisect_right(self._lows, region.low)
        self._lows.insert(at, region.low)
        self._notes.insert(at, (region.high, item))
        self._most = max(self._most, region.high - region.low)


class Ledger:
    """Who wrote and who read which rows since they were last written whole."""

    def __init__(self) -> None:
        self._written: defaultdict[Buffer, Notes] = defaultdict(Notes)
        self._read: defaultdict[Buffer, Notes] = defaultdict(Notes)

    def writers(self, region: Region) -> list[Item]:
        """Items that wrote a part of it."""
        return self._written[region.buffer].meeting(region)

    def readers(self, region: Region) -> list[Item]:
        """Items that read a part of it."""
        return self._read[region.buffer].meeting(region)

    def note_read(self, region: Region, item: Item) -> None:
        """Note a read."""
        self._read[region.buffer].add(region, item)

    def note_write(self, region: Region, item: Item) -> None:
        """Note a write; it depends on everything it hides."""
        self._written[region.buffer].hide(region, item)
        self._read[region.buffer].hide(region, item)
        self._written[region.buffer].add(region, item)


def depends(
    steps: list[VectorStep],
    t: int,
    sums: Sums = NO_SUMS,
    distance: Mapping[Buffer, int] = MappingProxyType({}),
    band: int = UNLIMITED,
) -> list[Item]:
    """The dependency graph: what is read after it was written, written after it was read, written twice.

    Args:
        sums: over the cores.
        distance: cycles that what is read of a tensor takes to come back, of the tensors that go out in pieces; a
            piece is read when it is complete, and without delay by those who read no other.
        band: tiles of a piece, at most.
    """
    items = [Item(step, i) for i, step in enumerate(steps)]
    for item in items:
        item.products = products(item.step, t)
    bands = bands_of(steps, t, distance, band)
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
    made_again = {item for item in items if item.step.again}
    for item in reversed(items) if made_again else ():
        for copy in [p for p in item.before if p in made_again]:
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
    steps: list[VectorStep], t: int, some: Collection[Buffer], band: int
) -> dict[Buffer, list[Region]]:
    """The pieces of some tensors."""
    written: dict[Buffer, list[tuple[int, Region]]] = {}
    for i, step in enumerate(steps if some else ()):
        for r in step.rows_written(t) + step.tiles_written(t):
            if r.buffer in some:
                written.setdefault(r.buffer, []).append((i, r))
    return {b: [Region(b, g.low, g.high) for g in groups(w, band)] for b, w in written.items()}


def met(pieces: Sequence[Region], region: Region) -> Sequence[Region]:
    """Of pieces that lie one behind the other, those that a region has rows of."""
    first = bisect_left(pieces, region.low, key=lambda r: r.high)
    return pieces[first : bisect_right(pieces, region.high, key=lambda r: r.low)]


def products(step: VectorStep, t: int) -> int:
    """Cycles of the matrix unit for a step."""
    m = step.matrix
    return 0 if m is None else m.products * t
