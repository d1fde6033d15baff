"""Dividing: rows of a map that no pass uses together become buffers of their own.

Selection gives each tensor one buffer. In a schedule that goes through maps band by band, a band's rows are often dead
long before the next band's are written; as buffers of their own they share a place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fpgrad.codegen.steps import (
    Access,
    Buffer,
    Region,
    StepList,
    VectorStep,
    changed,
    region,
)

#: Places whose buffers are divided: a tile's other half may be read in any order of taps.
DIVIDED = ("vector", "mask")


@dataclass(frozen=True)
class Pieces:
    """A buffer's pieces: where each begins, ascending, and the buffers that hold them."""

    first: list[int]
    buffers: list[Buffer]

    def at(self, row: int) -> tuple[Buffer, int]:
        """The piece that holds a row, and the row's place in it."""
        i = bisect_right(self.first, row) - 1
        return self.buffers[i], row - self.first[i]

    @property
    def each(self) -> list[tuple[int, Buffer]]:
        """The first row of each piece, and its buffer."""
        return list(zip(self.first, self.buffers, strict=True))

    def within(self, smaller: Mapping[Buffer, Pieces]) -> Pieces:
        """The pieces, where some of them are in pieces again."""
        first: list[int] = []
        buffers: list[Buffer] = []
        for low, buffer in self.each:
            parts = smaller.get(buffer, Pieces([0], [buffer]))
            first += [low + x for x in parts.first]
            buffers += parts.buffers
        return Pieces(first, buffers)


def divide(steps: StepList, side: int) -> dict[Buffer, Pieces]:
    """Divide the buffers of a step list, whose accesses are replaced.

    Returns:
        the pieces of each buffer that has more than one.
    """
    touched: dict[Buffer, list[Region]] = {}
    for step in steps.steps:
        for r in (*step.rows_read(side), *step.rows_written(side)):
            if r.buffer.place in DIVIDED and not r.buffer.persistent:
                touched.setdefault(r.buffer, []).append(r)
    pieces = {b: p for b, regions in touched.items() if (p := components(b, regions)) is not None}
    steps.steps = [moved(step, pieces, side) for step in steps.steps]
    return pieces


def components(buffer: Buffer, regions: Iterable[Region]) -> Pieces | None:
    """Runs of rows that regions connect; None when there is only one."""
    first: list[int] = []
    end = -1
    for r in sorted(regions, key=lambda r: r.low):
        if r.low - r.low % buffer.align > end:
            first.append(r.low - r.low % buffer.align)
        end = max(end, r.high)
    if len(first) < 2:
        return None
    ends = [*first[1:], end + 1]
    names = (f"{buffer.name}, rows from {low}" for low in first)
    buffers = [
        Buffer(name, buffer.place, high - low, buffer.align)
        for name, low, high in zip(names, first, ends, strict=True)
    ]
    return Pieces(first, buffers)


def moved(step: VectorStep, pieces: dict[Buffer, Pieces], side: int) -> VectorStep:
    """A step with its rows in the pieces."""

    def at(a: Access, loops: tuple[int, ...]) -> Access:
        if a.buffer not in pieces:
            return a
        first = region(a, loops, side).low
        piece, low = pieces[a.buffer].at(first)
        return changed(a, buffer=piece, offset=a.offset - first + low)

    if not any(b in pieces for b in step.rows_touched()):
        return step
    a, b, c, d = (at(v, step.loops) if isinstance(v, Access) else v for v in step.operands)
    target = step.target
    if target is not None:
        target = at(target, (*step.loops[:3], 1) if step.reduce else step.loops)
    return step.changed(a=a, b=b, c=c, d=d, target=target)
