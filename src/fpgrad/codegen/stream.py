"""Streaming: which tensors live in external memory, so that the others fit the chip."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Literal

import numpy as np

from fpgrad.codegen.allocate import Need
from fpgrad.codegen.divide import Pieces
from fpgrad.codegen.external import Clock, Copy, Mode, Pace, Plan, plan, relocated, uses_of
from fpgrad.codegen.steps import Access, Buffer, Move, Place, StepList, VectorStep
from fpgrad.codegen.timeline import Timeline
from fpgrad.errors import MemoryCapacityError
from fpgrad.isa.instructions import Source

#: What may be outside, from the least traffic to the most.
MODES: tuple[Mode, ...] = ("late", "bands")

#: What is larger than a part of the room like this will hardly stay on the chip.
LARGE = 8

#: Orders that are tried at most; each is made for what was outside in the one before.
ROUNDS = 6

Held = tuple[Buffer, int, int]
"""A buffer on the chip, with the first and the last step for which it is there."""

#: An order of the steps in which the pieces of some tensors are complete, and back, before they are read.
Reorder = Callable[[list[VectorStep], Collection[Buffer]], Timeline]


@dataclass(frozen=True)
class Limits:
    """Tiles, rows of vector memory and of mask memory on the chip at most, those that persist included; rows of inbox and
    outbox."""

    tiles: int | None = None
    rows: int | None = None
    masks: int | None = None
    inbox: int | None = None
    outbox: int | None = None

    def less(self, share: float) -> Limits:
        """Limits that leave a share free for gaps between places."""
        return Limits(*(n if n is None else int(n * (1 - share)) for n in astuple(self)))

    def hold(self, need: Need) -> bool:
        """Whether what is needed besides inbox and outbox is no more than there may be."""
        pairs = (
            (self.tiles, need.tiles), (self.rows, need.vector_rows), (self.masks, need.mask_rows)
        )  # fmt: skip
        return all(n is None or x <= n for n, x in pairs)

    def crowded(self, need: Need) -> list[Literal["inbox", "outbox"]]:
        """Which of inbox and outbox would have to be larger."""
        found: list[Literal["inbox", "outbox"]] = []
        if self.inbox is not None and need.inbox_rows > self.inbox:
            found.append("inbox")
        if self.outbox is not None and need.outbox_rows > self.outbox:
            found.append("outbox")
        return found

    def of(self) -> dict[Place, int]:
        """The limits by place; without those that are None, and without inbox and outbox: they hold what is on its way."""
        limits: dict[Place, int | None] = {
            "tile": self.tiles, "vector": self.rows, "mask": self.masks
        }  # fmt: skip
        return {place: n for place, n in limits.items() if n is not None}


def begin(steps: StepList) -> None:
    """Where something persists outside or comes in pieces, put a pass before all others.

    A load goes behind a pass of its own step, so that it comes after all that the step before has stored.
    """
    if any(b.outside for step in steps.steps for b in step.reads()):
        row = Buffer("start", "vector", 1)
        start = VectorStep((1, 1, 1), Source.ZERO, target=Access(row), first=True)
        start.layer, start.phase, start.text = "step", "forward", "start"
        steps.steps = [start, *steps.steps]


@dataclass(frozen=True)
class Ordered:
    """An order of the steps, and the tensors that it was made to have outside."""

    timeline: Timeline
    modes: Mapping[Buffer, Mode] = field(default_factory=dict)

    @property
    def bands(self) -> list[Buffer]:
        """Tensors that are outside in pieces, for which the order leaves time to come back."""
        return [b for b, mode in self.modes.items() if mode == "bands"]


def fit(
    steps: StepList,
    first: Ordered,
    floors: Mapping[Place, int],
    limits: Limits,
    pace: Pace,
    reorder: Reorder,
) -> tuple[dict[Buffer, Pieces], Ordered]:
    """Order steps, and send as many tensors out as it takes for the others to fit the chip.

    Args:
        steps: in the order of selection.
        first: an order to begin with.
        floors: what persists, by place.
        reorder: orders the steps anew when it is known what is outside.

    Returns:
        the pieces in which the tensors outside are written, and the order.

    Raises:
        MemoryCapacityError: what a few steps need at once does not fit.
    """
    selected = steps.steps
    room: dict[Place, int] = {place: n - floors.get(place, 0) for place, n in limits.of().items()}
    whole = uses_of(selected, pace)
    states: dict[Buffer, Mode] = {b: "state" for b in whole if b.outside}
    able = {b for b, uses in whole.items() if uses.complete and not b.outside}
    order = Ordered(first.timeline, {**states, **first.modes})
    for _ in range(ROUNDS):
        steps.steps = [selected[i] for i in order.timeline.order]
        if not room and not order.modes:
            return {}, order
        search = _Search(steps, order, room, pace, able)
        if search.run() and search.done(order.bands):
            break
        bands = Ordered(order.timeline, search.modes).bands
        order = Ordered(reorder(selected, bands), search.modes)
    else:
        # No order has all that it should: go by the last one, and leave on the chip what it has not.
        steps.steps = [selected[i] for i in order.timeline.order]
        uses = uses_of(steps.steps, pace)
        able = {b for b in able if uses[b].complete}
        modes: dict[Buffer, Mode] = {}
        modes |= {b: m for b, m in order.modes.items() if b in able or b.outside}
        order = Ordered(order.timeline, modes)
        search = _Search(steps, order, room, pace, able)
        if not search.run():
            raise MemoryCapacityError(search.shortage())
    plans = search.plans()
    steps.steps, steps.moves = streamed(steps.steps, plans)
    return {b: pieces(p) for b, p in plans.items()}, Ordered(order.timeline, search.modes)


def large(steps: StepList, floors: Mapping[Place, int], limits: Limits, pace: Pace) -> list[Buffer]:
    """Tensors that will hardly stay on the chip, of those that can be outside."""
    room = {place: n - floors.get(place, 0) for place, n in limits.of().items()}
    return [
        b
        for b, uses in uses_of(steps.steps, pace).items()
        if b.size > room.get(b.place, b.size) // LARGE and uses.complete and not b.outside
    ]


class _Search:
    """The tensors outside, for one order of the steps."""

    def __init__(
        self,
        steps: StepList,
        order: Ordered,
        room: Mapping[Place, int],
        pace: Pace,
        able: Collection[Buffer],
    ) -> None:
        self.steps, self.room = steps, room
        self.modes = dict(order.modes)
        self.uses = uses_of(steps.steps, pace)
        self.clock = Clock(order.timeline, pace)
        self.able = able
        self.whole = {place: self.spans(place) for place in room}
        self.short: Place = "tile"
        self.made: dict[Buffer, Plan] = {}
        self.held: dict[Buffer, list[Held]] = {}
        self.change = {place: np.zeros(len(steps.steps) + 2, np.int64) for place in room}
        for buffer in self.uses:
            mode = self.modes.pop(buffer, None)
            # What could wait in one order may have no time to in another.
            for m in (mode, MODES[-1], None):
                made = self.plan(buffer, m)
                if m is None or made is not None:
                    self.settle(buffer, m, made)
                    break

    def spans(self, place: Place) -> tuple[list[Buffer], np.ndarray, np.ndarray]:
        """What could be outside, with the first and the last step that touches each."""
        buffers = [b for b in self.uses if b.place == place and b in self.able]
        spans = np.array([self.uses[b].span for b in buffers], np.int64).reshape(-1, 2)
        return buffers, spans[:, 0], spans[:, 1]

    def plan(self, buffer: Buffer, mode: Mode | None) -> Plan | None:
        """How a tensor would be outside in this way; None if it cannot, or is not."""
        if mode is None:
            return None
        uses = self.uses[buffer]
        ready = mode == "state" or uses.complete
        return plan(uses if ready else uses.hurried(), mode, self.clock, 0)

    def settle(self, buffer: Buffer, mode: Mode | None, made: Plan | None) -> None:
        """Decide where a tensor is."""
        self.count(self.held.get(buffer, []), -1)
        if made is None or mode is None:
            self.held[buffer] = [(buffer, *self.uses[buffer].span)]
        else:
            self.held[buffer], self.made[buffer] = made.holdings(), made
            self.modes[buffer] = mode
        self.count(self.held[buffer], 1)

    def count(self, held: Sequence[Held], sign: int) -> None:
        """Add what is held to the rows and tiles in use."""
        for buffer, first, last in held:
            if buffer.place in self.change:
                self.change[buffer.place][first] += sign * buffer.size
                self.change[buffer.place][last + 1] -= sign * buffer.size

    def done(self, ordered: Collection[Buffer]) -> bool:
        """Whether all that is outside in pieces is complete before it is read, in an order that was made knowing most of
        it: what it did not know has little time to come back."""
        pieces = [b for b, mode in self.modes.items() if mode == "bands"]
        if pieces and not ordered:
            return False
        return all(self.uses[b].complete for b in pieces)

    def run(self) -> bool:
        """Send out what is largest at the fullest moment, until all fits; whether it does."""
        for place, room in self.room.items():
            alive = self.alive(place)
            while alive.max() > room:
                at = int(alive.argmax())
                if not self.relieve(place, at, int(alive[at]) - room):
                    self.short = place
                    return False
                alive = self.alive(place)
        return True

    def alive(self, place: Place) -> np.ndarray:
        """Rows or tiles in use at each step."""
        return np.cumsum(self.change[place])

    def relieve(self, place: Place, at: int, excess: int) -> bool:
        """Send tensors out, or more of them, that have much on the chip at a step; whether there is one."""
        buffers, first, last = self.whole[place]
        # What is outside in pieces already cannot be outside more.
        there = (buffers[i] for i in np.flatnonzero((first <= at) & (at <= last)))
        some = (b for b in there if self.modes.get(b) != MODES[-1])
        sizes = {b: n for b in some if (n := here(self.held[b], place, at))}
        freed = 0
        for mode in MODES:
            for buffer in sorted(sizes, key=sizes.__getitem__, reverse=True):
                if self.modes.get(buffer) in (mode, MODES[-1]):
                    continue  # it may have gone out in this mode's turn
                made = self.plan(buffer, mode)
                less = 0 if made is None else sizes[buffer] - here(made.holdings(), place, at)
                if less > 0:
                    self.settle(buffer, mode, made)
                    freed += less
                    if freed >= excess:
                        return True
            if freed:
                return True
        return False

    def shortage(self) -> str:
        """What is missing where."""
        alive = self.alive(self.short)
        at = int(alive.argmax())
        step = self.steps.steps[min(at, len(self.steps.steps) - 1)]
        what = {"tile": "tiles", "vector": "rows", "mask": "masks"}[self.short]
        return (
            f"{self.steps.name}: {step.layer} ({step.phase}) needs {alive[at]} {what} on the chip at once besides what "
            f"persists, even with external memory; there is room for {max(0, self.room[self.short])}. Use a smaller "
            f"batch, or raise {what}"
        )

    def plans(self) -> dict[Buffer, Plan]:
        """The plans, each with a place of its own in external memory."""
        row = 0
        found: dict[Buffer, Plan] = {}
        for buffer, mode in self.modes.items():
            uses, made = self.uses[buffer], self.made[buffer]
            if mode != "state" and not uses.complete:
                # It was made as if pieces were finished sooner than they are.
                exact = plan(uses, mode, self.clock, 0)
                assert exact is not None, buffer.name
                made = exact
            found[buffer] = made
        for buffer, made in found.items():
            if buffer.slice is not None:
                continue
            first = (buffer.base or 0) if buffer.outside else row
            for move in made.moves:
                move.row += first
            row = row if buffer.outside else made.rows
        return found


def here(held: Sequence[Held], place: Place, at: int) -> int:
    """Rows or tiles of what is held that are on the chip at a step."""
    return sum(b.size for b, first, last in held if first <= at <= last and b.place == place)


def streamed(
    steps: Sequence[VectorStep], plans: Mapping[Buffer, Plan]
) -> tuple[list[VectorStep], list[Move]]:
    """The steps with some tensors in their copies, and all moves."""
    written: dict[int, dict[Buffer, Copy]] = {}
    read: dict[int, dict[Buffer, Copy]] = {}
    for buffer, p in plans.items():
        for copies, uses in ((written, p.writes), (read, p.reads)):
            for i, copy in uses.items():
                copies.setdefault(i, {})[buffer] = copy
    out = list(steps)
    for i in {*written, *read}:
        out[i] = relocated(out[i], written.get(i, {}), read.get(i, {}))
    return out, [move for p in plans.values() for move in p.moves]


def pieces(p: Plan) -> Pieces:
    """Where the parts of a tensor are written."""
    copies = sorted({id(c): c for c in p.writes.values()}.values(), key=lambda c: c.low)
    return Pieces([c.low for c in copies], [c.buffer for c in copies])
