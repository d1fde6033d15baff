"""Sums and maxima over the windows of a map, and the gradient of maxima, on the vector unit.

A pool is element-wise between shifted views of its map: one pass for each tap after the first. A window with very
many taps, such as the whole map, is one reducing pass instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpgrad.codegen.geometry import Region, band_of, by_tile_rows, columns, regions, restricted
from fpgrad.codegen.steps import WAYS, Access, Buffer, Place, Value, VectorStep, changed
from fpgrad.codegen.storage import Walk, ceil_div
from fpgrad.graph import Node
from fpgrad.graph.window import transposed
from fpgrad.isa.instructions import Alu, Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector

ALU = {"sum": Alu.ADD, "max": Alu.MAX}

#: From so many taps on a single reducing pass is shorter than a pass for each tap.
MANY = 16


def pool(selector: Selector, node: Node) -> None:
    """Emit a pool."""
    (x,) = node.inputs
    walk = walk_of(selector, x)
    alu = ALU[node.attrs["kind"]]
    grid = selector.keep.grid(node)

    def passes(step: VectorStep) -> list[VectorStep]:
        whole = selector.access(x, grid, walk)
        if grid.kind != "tiles":
            step, whole = by_tile_rows(step), columns(whole)
        scratch = scratch_of(selector, node)
        found: list[VectorStep] = []
        for region in regions(
            node.attrs["windows"], grid.m, grid.j, selector.keep.band, taps_matter=False
        ):
            here = restricted(step, region)
            if region.taps >= MANY and region.h.count * region.w.count == 1 and row_of_taps(region):
                found += reduce(node, here, region, whole, alu)
            else:
                views = [
                    region.read(whole, r, s)
                    for r in range(region.h.taps)
                    for s in range(region.w.taps)
                ]
                found += fold(here, region.written(scratch), views, alu)
        return found

    selector.finish(node, VectorStep(selector.loops(grid), Source.ZERO), None, walk, passes)


def walk_of(selector: Selector, x: Node) -> Walk:
    """Maps are walked as they lie."""
    return Walk.TRANSPOSED if selector.place(x).transposed else Walk.NORMAL


def scratch_of(selector: Selector, node: Node) -> Access:
    """Rows for what is not the result yet: the result's own are written once, and may go out then."""
    grid, t = selector.keep.grid(node), selector.t
    buffer = Buffer(f"{node.name} so far", "vector", grid.row_count, t)
    if grid.kind != "tiles":
        return Access(buffer, s2=1)
    return Access(buffer, s2=grid.j * t, s1=t, s0=1)


def dense(step: VectorStep, name: str, place: Place, align: int) -> Access:
    """A place of their own for the rows of a pass, one after the other."""
    _, n2, n1, n0 = step.loops
    buffer = Buffer(name, place, step.rows, align)
    return Access(buffer, s3=n2 * n1 * n0, s2=n1 * n0, s1=n0, s0=1)


def fold(last: VectorStep, scratch: Access, views: list[Access], alu: Alu) -> list[VectorStep]:
    """Combine views one by one; ``last`` is the pass that writes the result."""
    if len(views) < 2:
        value: Value = views[0] if views else Source.ZERO
        return [last.changed(a=value)]
    so_far: Value = views[0]
    found: list[VectorStep] = []
    for view in views[1:-1]:
        found.append(
            last.changed(a=so_far, c=view, alu=alu, target=scratch, tile=None, text="pool")
        )
        so_far = scratch
    return [*found, last.changed(a=so_far, c=views[-1], alu=alu)]


def row_of_taps(region: Region) -> bool:
    """Whether all taps of a position are evenly spaced in memory."""
    h, w = region.h, region.w
    return h.taps == 1 or w.taps == 1 or h.tap_move * region.source.width == w.taps * w.tap_move


def reduce(
    node: Node, last: VectorStep, region: Region, whole: Access, alu: Alu
) -> list[VectorStep]:
    """All taps in one reducing pass, which leaves ``WAYS`` rows for each row of the result."""
    _, columns, across, rows = last.loops
    w, source = region.w, region.source
    move = source.walk(0, w.tap_move) if w.taps > 1 else source.walk(region.h.tap_move, 0)
    view = region.read(whole)
    count = columns * across * rows
    pieces = ceil_div(
        region.taps, max(MANY, band_of(region.taps * columns * across) // columns // across)
    )
    partial = Buffer(f"{node.name} partial", "vector", count * pieces * WAYS)
    half = Buffer(f"{node.name} halves", "vector", count * 2)
    steps: list[VectorStep] = []
    each = pieces * WAYS
    for piece in range(pieces):
        start, end = (region.taps * (piece + i) // pieces for i in (0, 1))
        read = Access(
            whole.buffer,
            s3=view.s2,
            s2=view.s1,
            s1=view.s0,
            s0=whole.s2 * move,
            offset=view.offset + start * whole.s2 * move,
            transposed=whole.transposed,
        )
        write = Access(
            partial, s3=across * rows * each, s2=rows * each, s1=each, s0=1, offset=piece * WAYS
        )
        loops = (columns, across, rows, end - start)
        steps.append(VectorStep(loops, read, alu=alu, reduce=True, target=write))
    if pieces > 1:
        fewer = Buffer(f"{node.name} partial sums", "vector", count * WAYS)
        read, write = Access(partial, s1=each, s0=1), Access(fewer, s1=WAYS, s0=1)
        steps.append(VectorStep((1, count, each), read, alu=alu, reduce=True, target=write))
        partial = fewer
    pairs = Access(partial, s1=WAYS, s0=1)
    second = VectorStep(
        (1, count, 2), pairs, c=changed(pairs, offset=2), alu=alu, target=Access(half, s1=2, s0=1)
    )
    halves = Access(half, s2=across * rows * 2, s1=rows * 2, s0=2)
    third = last.changed(a=halves, c=changed(halves, offset=1), alu=alu)
    for step in (*steps, second):
        step.layer, step.phase, step.text = last.layer, last.phase, "pool"
    return [*steps, second, third]


def max_gradient(selector: Selector, node: Node) -> None:
    """Where a position holds the maximum of a window, it receives that window's cotangent."""
    x, y, dy = node.inputs
    windows = transposed(node.attrs["windows"])
    grid, pooled = selector.keep.grid(node), selector.keep.grid(y)
    walk = walk_of(selector, x)
    again = not selector.fold.again.isdisjoint((x, y))  # they do not wait for the cotangent either

    def passes(step: VectorStep) -> list[VectorStep]:
        at_x = selector.access(x, grid, walk)
        at_y, at_dy = selector.access(y, pooled, walk), selector.access(dy, pooled, walk)
        if grid.kind != "tiles":
            step = by_tile_rows(step)
            at_x, at_y, at_dy = columns(at_x), columns(at_y), columns(at_dy)
        scratch = scratch_of(selector, node)
        found: list[VectorStep] = []
        for region in regions(windows, grid.m, grid.j, selector.keep.band, taps_matter=False):
            here = restricted(step, region)
            taps = [(r, s) for r in range(region.h.taps) for s in range(region.w.taps)]
            if not taps:
                found.append(here.changed(a=Source.ZERO))
            for i, tap in enumerate(taps):
                marked = dense(here, f"{node.name} mask", selector.keep.bits, selector.t)
                found.append(
                    here.changed(
                        a=region.written(at_x),
                        c=region.read(at_y, *tap),
                        alu=Alu.EQ,
                        target=marked,
                        tile=None,
                        text="maximum",
                        again=again,
                    )
                )
                whole = len(taps) == 1
                end = i == len(taps) - 1
                piece = dense(here, f"{node.name} part", "vector", selector.t)
                gated = here.changed(a=region.read(at_dy, *tap), c=marked, alu=Alu.GATE)
                if not whole:
                    # The first piece begins the sum, the others are added to it.
                    gated.target = piece if i else region.written(scratch)
                    gated.tile = None
                found.append(gated)
                if i:
                    so_far = region.written(scratch)
                    total = here.changed(a=so_far, c=piece, alu=Alu.ADD)
                    if not end:
                        total.target, total.tile = so_far, None
                    found.append(total)
        return found

    selector.finish(node, VectorStep(selector.loops(grid), Source.ZERO), None, walk, passes)
