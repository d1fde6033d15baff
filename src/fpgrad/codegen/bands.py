"""Rows of maps on their way between the cores that share them: see :mod:`fpgrad.graph.bands`.

All cores run one program, so what a core does with its own rows, or with those of another, is done with the rows of all
cores, times a number that only one core has as 1 and the others as 0. Such products and their sums are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fpgrad.codegen.geometry import banded, moved
from fpgrad.codegen.pooling import walk_of
from fpgrad.codegen.steps import Access, Buffer, VectorStep
from fpgrad.codegen.storage import Grid, Stored, Walk
from fpgrad.graph import PICK, STACK, Node
from fpgrad.isa.instructions import Alu, Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector


def spread(selector: Selector, node: Node) -> None:
    """A copy of some rows for each place, times 1 or 0: to the outbox, if only their sum is wanted."""
    (x,) = node.inputs
    (first, stop), (start, end) = node.attrs["places"], node.attrs["rows"]
    grid, walk = selector.keep.grid(node), walk_of(selector, x)
    each = Grid(end - start, x.shape[1], selector.t)
    place = "outbox" if selector.fold.only_summed(node) else "vector"
    buffer = Buffer(node.name or node.op, place, grid.row_count, selector.t)
    source = selector.access(x, each, walk)
    source = replace(source, offset=source.offset + start * each.row_count // each.rows)
    for i, core in enumerate(range(first, stop)):
        mine = Access(selector.keep.core(core).buffer)
        target = replace(rows_of(buffer, each), offset=i * each.row_count)
        step = VectorStep(selector.loops(each), source, mine, target=target, text="spread")
        for part in banded(step):
            selector.add(node, part)
    flipped = walk is Walk.TRANSPOSED and grid.kind == "tiles"
    selector.stored[node] = Stored(buffer, grid, grid.kind, flipped)
    selector.complete(node)


def pick(selector: Selector, node: Node) -> None:
    """The places one by one, times 1 or 0, and their sum."""
    (x,) = node.inputs
    (first, stop), shift = node.attrs["places"], node.attrs["shift"]
    grid, walk = selector.keep.grid(node), walk_of(selector, x)
    readers = [(i, core - shift) for i, core in enumerate(range(first, stop))]

    def passes(last: VectorStep) -> list[VectorStep]:
        whole = selector.access(x, grid, walk)
        found: list[VectorStep] = []
        terms: list[Access] = []
        for i, reader in readers:
            mine = Access(selector.keep.core(reader).buffer)
            place = replace(whole, offset=whole.offset + i * grid.row_count)
            if len(readers) == 1:
                return banded(replace(last, a=place, b=mine))
            term = rows_of(Buffer(f"{node.name} place", "vector", grid.row_count, selector.t), grid)
            found.append(replace(last, a=place, b=mine, target=term, tile=None, text="pick"))
            terms.append(term)
        so_far = terms[0]
        for term in terms[1:-1]:
            total = replace(last, a=so_far, c=term, alu=Alu.ADD, target=so_far, tile=None)
            found.append(total)
        found.append(replace(last, a=so_far, c=terms[-1], alu=Alu.ADD))
        return [part for step in found for part in banded(step)]

    selector.finish(node, VectorStep(selector.loops(grid), Source.ZERO), None, walk, passes)


def stack(selector: Selector, node: Node) -> None:
    """Copies of the parts, one behind the other; where only products read them, they become tiles in the same pass."""
    largest = max(node.inputs, key=lambda x: x.shape[0])
    walk, whole = walk_of(selector, largest), selector.keep.grid(node)

    def passes(last: VectorStep) -> list[VectorStep]:
        found: list[VectorStep] = []
        at = 0
        for x in node.inputs:
            grid = selector.keep.grid(x)
            source, rows = selector.access(x, grid, walk), at
            tiles = whole.kind == "tiles"

            def shifted(a: Access, tile: bool = False, rows: int = rows) -> Access:
                return replace(
                    a,
                    offset=a.offset
                    + (rows * whole.j if tile else rows * whole.row_count // whole.m),
                )

            part = replace(last, a=source)
            part.target = None if last.target is None else shifted(last.target)
            part.tile = None if last.tile is None else shifted(last.tile, True)
            loops = (1, grid.m, *last.loops[2:]) if tiles else (1, 1, grid.m, 1)
            found += banded(moved(part, loops, lambda a: a))
            at += grid.m
        return found

    selector.finish(node, VectorStep(selector.loops(whole), Source.ZERO), None, walk, passes)


@dataclass(frozen=True)
class Own:
    """Rows ``first`` to before ``stop`` of a map with a halo are a core's own, ``cores`` have such bands."""

    first: int
    stop: int
    cores: int


def own_of(node: Node) -> Own | None:
    """What is no halo of the map that a convolution reads; None if it has none."""
    x = node.inputs[0].inputs[0]
    if x.op != STACK:
        return None
    height = node.attrs["windows"][0]
    line = x.shape[0] // height.size
    before, after = (
        (part.shape[0] // line, part.attrs["places"]) if part.op == PICK else (0, (0, 0))
        for part in (x.inputs[0], x.inputs[-1])
    )
    cores = 1 + max(stop - start for _, (start, stop) in (before, after))
    return Own(before[0], height.size - after[0], cores)


def reads_inside(node: Node) -> float:
    """Of what the windows of a convolution read, on all cores together, the share that is not beyond the map's ends."""
    own = own_of(node)
    if own is None:
        return 1.0
    height = node.attrs["windows"][0]
    rows = [row for o in range(height.out) for _, row in height.reads(o)]
    beyond = sum(not own.first <= row < own.stop for row in rows)
    return 1.0 - beyond / (own.cores * len(rows))


def by_halo(node: Node) -> tuple[int, int]:
    """The first of a convolution's rows that reads nothing of a halo, and the first behind these that does."""
    own, height = own_of(node), node.attrs["windows"][0]
    if own is None:
        return 0, height.out
    alone = [
        o
        for o in range(height.out)
        if all(own.first <= row < own.stop for _, row in height.reads(o))
    ]
    return (alone[0], alone[-1] + 1) if alone else (0, height.out)


def rows_of(buffer: Buffer, grid: Grid) -> Access:
    """A walk over a tensor's rows from the buffer's first on, with the loops of a pass over it."""
    t = grid.side
    return (
        Access(buffer, s2=grid.j * t, s1=t, s0=1) if grid.kind == "tiles" else Access(buffer, s1=1)
    )
