"""Computing late: what is made a second time for the backward pass is made piece by piece, just before it is read."""

from __future__ import annotations

from collections.abc import Sequence

from fpgrad.codegen.steps import Region, VectorStep


def computed_late(steps: Sequence[VectorStep], side: int) -> list[VectorStep]:
    """The steps, where each that is made again comes as late as it can: before the first that reads what it writes, or
    writes what it reads."""
    out: list[VectorStep] = []  # from the last to the first
    for step in reversed(steps):
        at = len(out)
        if step.again:
            while at and not conflict(step, out[at - 1], side):
                at -= 1
        out.insert(at, step)
    return out[::-1]


def conflict(step: VectorStep, later: VectorStep, side: int) -> bool:
    """Whether two steps must stay in their order."""
    return meet(written(step, side), [*written(later, side), *read(later, side)]) or meet(
        read(step, side), written(later, side)
    )


def written(step: VectorStep, side: int) -> list[Region]:
    """What a step writes."""
    return step.rows_written(side) + step.tiles_written(side)


def read(step: VectorStep, side: int) -> list[Region]:
    """What a step reads."""
    return step.rows_read(side) + step.tiles_read(side)


def meet(some: Sequence[Region], others: Sequence[Region]) -> bool:
    """Whether any of some regions has rows or tiles of any of the others."""
    return any(
        a.buffer is b.buffer and a.low <= b.high and b.low <= a.high for a in some for b in others
    )
