"""Spilling: tiles that the chip has no room for wait in external memory until they are needed again.

The forward pass leaves tiles that only the gradient of a kernel, much later, reads. Where the tile memory is too
small, those with the farthest next use go out after they are written and come back ahead of it. The first part of a
buffer's life and each later part are buffers of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fpgrad.codegen.allocate import place, tile_spans
from fpgrad.codegen.steps import Buffer, MatrixStep, StepList, TileMove, TileWalk, VectorStep
from fpgrad.errors import MemoryCapacityError

#: Cycles that a load is begun ahead of its first use, besides those that it takes.
AHEAD = 1000


@dataclass
class Uses:
    """When a buffer of tiles is written and read: numbers of steps, ascending."""

    buffer: Buffer
    written: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)

    @property
    def all(self) -> list[int]:
        """Every use."""
        return sorted({*self.written, *self.read})


def fit_tiles(steps: StepList, floor: int, capacity: int, side: int) -> None:
    """Spill until the function's tiles fit between ``floor`` and ``capacity``.

    Raises:
        MemoryCapacityError: what one layer needs at once does not fit.
    """
    room = capacity - floor
    target = room
    for _ in range(8):
        trial = spilled(steps, target, side)
        spans = tile_spans(trial)
        end = place(spans, floor)
        if end <= capacity:
            steps.steps, steps.moves = trial.steps, trial.moves
            return
        # Places do not fit together as well as sizes do.
        target -= max(1, end - capacity)
    raise MemoryCapacityError(
        f"{steps.name}: tile memory of {capacity} tiles is too small, even with external memory: what a layer reads and "
        "writes at once does not fit. Use a smaller batch, or raise memory.tiles"
    )


def spilled(steps: StepList, room: int, side: int) -> StepList:
    """The steps with moves such that the tiles alive at any step are at most ``room``."""
    uses = tile_uses(steps.steps)
    pieces = [Piece(u, u.all[0], u.all[-1]) for u in uses.values()]
    starts = [0]
    for step in steps.steps:
        starts.append(starts[-1] + max(step.rows, products(step) * side))
    while True:
        at, alive = busiest(pieces, len(steps.steps))
        if alive <= room:
            break
        early = [p for p in pieces if p.loaded and p.first <= at < p.use]
        if early:
            max(early, key=lambda p: p.use).first = at + 1
            continue
        candidates = [p for p in pieces if p.gap(at) is not None and not p.uses.written[-1] > at]
        if not candidates:
            raise MemoryCapacityError(
                f"{steps.name}: step {at} ({steps.steps[at].layer}: {steps.steps[at].text}) needs {alive} tiles at once, "
                f"there is room for {room}. Use a smaller batch, or raise memory.tiles"
            )
        piece = max(candidates, key=lambda p: (p.gap(at) or (0, 0))[1])
        before, after = piece.gap(at) or (at, at)
        cycles = piece.uses.buffer.size * side + AHEAD
        back = bisect_left(starts, starts[after] - cycles)
        rest = Piece(
            piece.uses, min(max(back, before + 2), after), piece.last, loaded=True, use=after
        )
        piece.last = before
        pieces.append(rest)
    return rewritten(steps, pieces, side)


@dataclass(eq=False)
class Piece:
    """A stay of a buffer on the chip: from step ``first`` to step ``last``; loaded ones are first used at ``use``."""

    uses: Uses
    first: int
    last: int
    loaded: bool = False
    use: int = 0

    def gap(self, at: int) -> tuple[int, int] | None:
        """The uses before and after step ``at``, if it is a step at which the buffer only waits."""
        inside = [
            u for u in self.uses.all if (self.use if self.loaded else self.first) <= u <= self.last
        ]
        before = [u for u in inside if u < at]
        after = [u for u in inside if u > at]
        if not before or not after or at in inside or after[0] - before[-1] < 3:
            return None
        return before[-1], after[0]


def busiest(pieces: Sequence[Piece], steps: int) -> tuple[int, int]:
    """The step with the most tiles alive, and how many."""
    change = [0] * (steps + 2)
    for p in pieces:
        change[p.first] += p.uses.buffer.size
        change[p.last + 1 + (not p.loaded and p.last < p.uses.all[-1])] -= p.uses.buffer.size
    alive = most = at = 0
    for i in range(steps):
        alive += change[i]
        if alive > most:
            most, at = alive, i
    return at, most


def tile_uses(steps: Sequence[VectorStep]) -> dict[Buffer, Uses]:
    """Uses of every tile buffer that does not persist."""
    found: dict[Buffer, Uses] = {}
    for i, step in enumerate(steps):
        for buffer in step.writes():
            if buffer.place == "tile" and not buffer.persistent:
                found.setdefault(buffer, Uses(buffer)).written.append(i)
        for buffer in step.reads():
            if buffer.place == "tile" and not buffer.persistent:
                found.setdefault(buffer, Uses(buffer)).read.append(i)
    return found


def products(step: VectorStep) -> int:
    """Tile products of a step."""
    return 0 if step.matrix is None else step.matrix.products


def rewritten(steps: StepList, pieces: Sequence[Piece], side: int) -> StepList:
    """Steps that name the piece which is there, and the moves between them."""
    by_buffer: dict[Buffer, list[Piece]] = {}
    for p in pieces:
        by_buffer.setdefault(p.uses.buffer, []).append(p)
    out = StepList(steps.name, list(steps.steps), steps.loads, steps.stores)
    row = 0
    for buffer, stays in by_buffer.items():
        if len(stays) == 1:
            continue
        stays.sort(key=lambda p: p.first)
        first = stays[0]
        written = first.uses.written[-1]
        out.moves.append(TileMove(buffer, "store", row, written, first.last + 1))
        for stay in stays[1:]:
            copy = Buffer(buffer.name, "tile", buffer.size)
            out.moves.append(TileMove(copy, "load", row, stay.first, stay.use))
            for i in range(stay.use, stay.last + 1):
                out.steps[i] = renamed(out.steps[i], buffer, copy)
        row += out.moves[-1].rows(side)
    return out


def renamed(step: VectorStep, old: Buffer, new: Buffer) -> VectorStep:
    """A step whose product reads ``new`` instead of ``old``."""
    m = step.matrix
    if m is None or old not in (m.streamed.base.buffer, m.stationary.base.buffer):
        return step

    def at(w: TileWalk) -> TileWalk:
        return replace(w, base=replace(w.base, buffer=new)) if w.base.buffer is old else w

    matrix: MatrixStep = replace(m, streamed=at(m.streamed), stationary=at(m.stationary))
    return replace(step, matrix=matrix)
