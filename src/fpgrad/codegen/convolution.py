"""Convolutions as sums of tile products: ``Y[q] = Σ X[source(q, t)] · W[t]``, and the gradient of their kernels.

Where a tap has no source there is no product: each region of positions that read the same taps has its own
instruction. Tiles outside a group's channels are skipped likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from itertools import product as product_of
from typing import TYPE_CHECKING

from fpgrad.codegen.bands import by_halo, reads_inside
from fpgrad.codegen.geometry import (
    BAND,
    Region,
    across,
    banded,
    by_tile_rows,
    maps,
    regions,
    restricted,
    tap_segments,
)
from fpgrad.codegen.kernels import Part, whole
from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.products import product
from fpgrad.codegen.steps import Access, Buffer, MatrixStep, TileWalk, VectorStep, changed
from fpgrad.codegen.storage import Quantised, Stored, ceil_div
from fpgrad.errors import GraphError
from fpgrad.graph import Node
from fpgrad.isa.instructions import Alu, Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector


#: Tiles that a turn of a kernel's gradient reads at most, about: they are on the chip at once.
TURN = 4096

#: Pieces of long sums are a multiple of this.
EVEN = 32


@dataclass(frozen=True)
class Band:
    """Output tiles ``j + a`` (a < count) that depend on input tiles ``i + a*step`` to ``i + a*step + length - 1``."""

    j: int
    count: int
    i: int
    length: int
    step: int = 0

    def part(self, first: int, count: int) -> Band:
        """Some of the output tiles of a band in which all depend on the same input tiles."""
        assert not self.step
        assert self.j <= first <= first + count <= self.j + self.count
        return replace(self, j=first, count=count)

    def pieces(self, most: int) -> Iterator[Band]:
        """The band in parts of at most so many of its input tiles, if all outputs depend on the same."""
        most = self.length if self.step else most
        for first in range(0, self.length, most):
            yield replace(self, i=self.i + first, length=min(most, self.length - first))

    def macs(self, channels_in: int, channels_out: int, groups: int, side: int) -> int:
        """Multiplications that the model asks for, of one sample, position and tap."""
        out = min(channels_out, (self.j + self.count) * side) - self.j * side
        if groups > 1:
            return out * (channels_in // groups)
        return out * (min(channels_in, (self.i + self.length) * side) - self.i * side)


def bands(channels_in: int, channels_out: int, groups: int, side: int) -> list[Band]:
    """Which input tiles each output tile needs, as few affine bands as groups allow."""
    per_in, per_out = channels_in // groups, channels_out // groups
    needs: list[tuple[int, int]] = []
    for j in range(ceil_div(channels_out, side)):
        last = min(channels_out, (j + 1) * side) - 1
        low = j * side // per_out * per_in // side
        high = ((last // per_out + 1) * per_in - 1) // side
        needs.append((low, high - low + 1))
    found: list[Band] = []
    j = 0
    while j < len(needs):
        count = 1
        step = needs[j + 1][0] - needs[j][0] if j + 1 < len(needs) else 0
        while j + count < len(needs) and needs[j + count] == (
            needs[j][0] + count * step,
            needs[j][1],
        ):
            count += 1
        found.append(Band(j, count, *needs[j], step if count > 1 else 0))
        j += count
    return found


def terms(node: Node, side: int) -> int:
    """Products in the longest sum of a conv."""
    h, w = node.attrs["windows"]
    channels = (node.inputs[0].shape[1], node.shape[1])
    longest = max(b.length for b in bands(*channels, node.attrs["groups"], side))
    return h.taps * w.taps * longest


def conv_passes(selector: Selector, node: Node, step: VectorStep) -> list[VectorStep]:
    """A pass over the result of a conv, whose rows it takes, as one for each region with its products. Where the kernel
    comes in slices, all regions of a band of rows take their turn with each."""
    x, _ = node.inputs
    qx, qw = (selector.tiles_of(n) for n in node.inputs)
    grid, t = selector.keep.grid(node), selector.t
    sliced = selector.slices(node, qw)
    kernels = sliced or [whole(qw, node, grid.j)]
    passes: list[VectorStep] = []
    if grid.kind != "tiles":
        step = by_tile_rows(step)
    channels = (x.shape[1], node.shape[1], node.attrs["groups"])
    inside, across_all = reads_inside(node), bands(*channels, t)
    some_rows = regions(
        node.attrs["windows"], grid.m, grid.j, selector.keep.band, first=by_halo(node)
    )
    for _, high in groupby(some_rows, lambda r: r.h):
        some = list(high)
        for kernel, region in product_of(kernels, some):
            here = restricted(step, region)
            if not region.taps:
                passes.append(without_product(across(here, kernel.first, kernel.count)))
                continue
            for band in across_all:
                mine = band.part(kernel.first, kernel.count) if sliced else band
                part = across(here, mine.j, mine.count)
                part.matrix = conv_product(node, region, mine, kernel, qx)
                if grid.kind != "tiles":
                    part.matrix = as_row(part.matrix)
                reads = t * region.h.count * region.columns * region.taps
                part.matrix.useful_macs = round(inside * reads * mine.macs(*channels, t))
                passes.append(part)
    return passes


def conv_product(node: Node, region: Region, band: Band, kernel: Part, qx: Quantised) -> MatrixStep:
    """The products of one region and one band of channels."""
    h, w, source = region.h, region.w, region.source
    tiles = Access(qx.buffer, s2=qx.grid.j, s1=band.step, offset=band.i, transposed=qx.transposed)
    read = region.read(tiles)
    streamed = changed(read, s3=0, s2=read.s3, s1=read.s2, s0=band.step)
    across_taps = kernel.taps_across
    first = (h.tap * across_taps + w.tap) * kernel.tap
    stationary = changed(
        kernel.walk,
        s0=kernel.j + band.step * kernel.i,
        offset=kernel.walk.offset + first + band.j * kernel.j + band.i * kernel.i,
    )
    columns = qx.grid.j
    return MatrixStep(
        (h.count, region.columns, band.count),
        (h.taps, w.taps, band.length),
        qx.grid.side,
        TileWalk(
            streamed,
            (source.walk(h.tap_move, 0) * columns, source.walk(0, w.tap_move) * columns, 1),
        ),
        TileWalk(
            stationary,
            (h.tap_step * across_taps * kernel.tap, w.tap_step * kernel.tap, kernel.i),
        ),
        layer_of(node),
        phase_of(node),
        node.name or "conv",
        0,
    )


def as_row(m: MatrixStep) -> MatrixStep:
    """A product with one column, as the row that is its transpose: T samples of one channel."""

    def flipped(w: TileWalk) -> TileWalk:
        return changed(w, base=changed(w.base, transposed=not w.base.transposed))

    return changed(m, rows=1, streamed=flipped(m.stationary), stationary=flipped(m.streamed))


def without_product(step: VectorStep) -> VectorStep:
    """A pass whose products are all padding: their sum is zero."""
    a, b, c, d = (Source.ZERO if v is Source.ACC else v for v in step.operands)
    return step.changed(a=a, b=b, c=c, d=d, matrix=None)


# Sums that are too long for one instruction ------------------------------------------------------


Turns = list[VectorStep]
"""Passes of the same rows, with ACC as operand a and a target, but without tiles: the first writes them, the others add
to them."""


def accumulate(
    selector: Selector, node: Node, groups: list[list[Turns]], begun: bool = False
) -> None:
    """Passes of one tensor in turns.

    Args:
        groups: of rows that are read together. All take their first turns, then their second: what products read is
            needed once. Where the rows would fill the chip, one group is finished before the next begins: few rows are
            there at a time, and what products read is loaded for every group.
        begun: the tensor's rows are there, and every turn adds to them.
    """
    rows = selector.keep.grid(node).row_count
    so_far = Buffer(f"{node.name} so far", "vector", rows, selector.t)
    if rows <= selector.keep.few_rows:
        groups = [[turns for group in groups for turns in group]]
    for group in groups:
        for turn, steps in enumerate(zip_longest(*group)):
            step: VectorStep | None
            for turns, step in zip(group, steps, strict=True):
                if step is None or (begun and step.matrix is None):
                    continue
                assert step.target is not None
                # Otherwise the tensor's own rows are written once, and may go out then.
                partial = step.target if begun else changed(step.target, buffer=so_far)
                if turn or begun:
                    step.c, step.alu = partial, Alu.ADD
                if turn + 1 < len(turns):
                    step.target = partial
                step.layer, step.phase = layer_of(node), phase_of(node)
                step.text = node.name or node.op
                selector.out.steps.append(step)
    selector.complete(node)


def rows_of(selector: Selector, node: Node, placed: bool = False) -> tuple[Stored, VectorStep]:
    """The tensor's place, made unless it is ``placed``, and a pass that writes the matrix unit's rows to all of it."""
    grid = selector.keep.grid(node)
    t = selector.t
    stored = selector.stored[node] if placed else selector.new_rows(node)
    tiles = grid.kind == "tiles"
    target = (
        Access(stored.buffer, s2=grid.j * t, s1=t, s0=1) if tiles else Access(stored.buffer, s1=1)
    )
    return stored, VectorStep(selector.loops(grid), Source.ACC, target=target)


def turn_of(selector: Selector, tiles: int) -> int:
    """Products of a turn that reads so many tiles for each: the same on every chip, so that the order of additions does
    not depend on its memory."""
    return min(selector.keep.terms, max(EVEN, TURN // tiles))


def long_product(selector: Selector, node: Node) -> None:
    """A matmul or conv whose sums have more products than the accumulators take."""
    _, whole = rows_of(selector, node)
    if node.op == "conv":
        passes = conv_passes(selector, node, whole)
        most = selector.keep.terms
    else:
        whole.matrix = product(selector, node)
        _, m, j = whole.matrix.outputs
        passes, most = banded(whole, selector.keep.band), turn_of(selector, m + j)
    turns = [[s] if s.matrix is None else list(shorter(s, most)) for s in passes]
    accumulate(selector, node, [[some] for some in turns])


def shorter(step: VectorStep, most: int) -> Iterator[VectorStep]:
    """A pass's products in pieces of at most ``most`` a sum, cut in the outermost loop that is long enough."""
    m = step.matrix
    assert m is not None
    if m.length <= most:
        yield step
        return
    loop = next(i for i in range(3) if (m.terms[i] > 1 and _inner(m, i) <= most) or i == 2)
    inner = _inner(m, loop)
    if inner > most:
        raise GraphError(f"{m.text}: a sum of {m.length} products cannot be divided")
    per = max(1, most // inner)
    if per > EVEN:  # pieces that begin where bands do
        per -= per % EVEN
    if math.prod(m.terms[:loop]) > 1:
        # Loops outside are unrolled: every piece has one iteration of them.
        for outer in range(m.terms[0]):
            if loop == 2:
                for middle in range(m.terms[1]):
                    yield from _cut(step, (outer, middle), loop, per)
            else:
                yield from _cut(step, (outer,), loop, per)
    else:
        yield from _cut(step, (0,) * loop, loop, per)


def _inner(m: MatrixStep, loop: int) -> int:
    return math.prod(m.terms[loop + 1 :])


def _cut(step: VectorStep, outer: tuple[int, ...], loop: int, per: int) -> Iterator[VectorStep]:
    m = step.matrix
    assert m is not None
    for start in range(0, m.terms[loop], per):
        count = min(per, m.terms[loop] - start)
        index = (*outer, start)

        def at(w: TileWalk, index: tuple[int, ...] = index) -> TileWalk:
            offset = sum(i * s for i, s in zip(index, w.terms, strict=False))
            return changed(w, base=changed(w.base, offset=w.base.offset + offset))

        piece = (*(1,) * loop, count, *m.terms[loop + 1 :])
        share = math.prod(piece) / m.length
        yield step.changed(
            matrix=changed(
                m,
                terms=piece,
                streamed=at(m.streamed),
                stationary=at(m.stationary),
                useful_macs=round(m.useful_macs * share),
            ),
        )


def conv_weight(selector: Selector, node: Node, onto: tuple[Node, Node] | None = None) -> None:
    """The gradient of a kernel: for each tap the sum over positions and samples of ``X[source]ᵀ · dY``.

    Args:
        onto: a sum, and the tensor whose rows it is added to, which become the sum's.
    """
    x, dy = node.inputs
    qx, qy = selector.tiles_of(x), selector.tiles_of(dy)
    windows = node.attrs["windows"]
    grid, t = selector.keep.grid(node), selector.t
    taps = windows[0].taps * windows[1].taps
    per_tap = grid.m // taps
    if onto is not None:
        selector.stored[node] = selector.stored[onto[1]]
    stored, whole = rows_of(selector, node, onto is not None)
    channels = (x.shape[1], dy.shape[1], node.attrs["groups"])
    rows = max(BAND * t, selector.keep.few_rows // 4)
    some = [
        part
        for band in bands(*channels, t)
        for part in band.pieces(
            max(1, rows // (band.count * t)) if node.attrs["groups"] == 1 else band.length
        )
    ]
    groups: list[list[Turns]] = []
    most = turn_of(selector, qx.grid.j + qy.grid.j)
    if onto is None and sum(b.count * b.length for b in some) < per_tap * grid.j:
        zero = whole.changed(a=Source.ZERO)
        selector.add(node, zero)
    output, source = maps(windows, qy.grid.m)
    inside = reads_inside(node)
    for tap in range(taps):
        r, s = divmod(tap, windows[1].taps)
        groups.append([])
        for band in some:
            place = Access(
                stored.buffer,
                s2=grid.j * t,
                s0=1,
                s1=t + band.step * grid.j * t,
                offset=((tap * per_tap + band.i) * grid.j + band.j) * t,
            )
            step = VectorStep((1, band.length, band.count, t), Source.ACC, target=place)
            if grid.kind != "tiles":  # T inputs of one filter a row, or T filters of one input
                place = Access(place.buffer, s2=1, s1=1, offset=tap * per_tap + band.i + band.j)
                step = VectorStep((1, band.length, band.count, 1), Source.ACC, target=place)
            pieces: list[VectorStep] = []
            for h in tap_segments(windows[0], r):
                for w in tap_segments(windows[1], s):
                    matrix = MatrixStep(
                        (1, band.length, band.count),
                        (h.count, w.count, output.samples),
                        t,
                        TileWalk(
                            Access(
                                qx.buffer,
                                s1=1,
                                s0=band.step,
                                offset=source.walk(h.source, w.source) * qx.grid.j + band.i,
                                transposed=not qx.transposed,
                            ),
                            _terms(source.walk(h.move, 0), source.walk(0, w.move), qx.grid.j),
                        ),
                        TileWalk(
                            Access(
                                qy.buffer,
                                s0=1,
                                offset=output.walk(h.first, w.first) * qy.grid.j + band.j,
                                transposed=qy.transposed,
                            ),
                            _terms(output.walk(h.step, 0), output.walk(0, w.step), qy.grid.j),
                        ),
                        layer_of(node),
                        phase_of(node),
                        node.name or "conv_weight",
                        round(
                            inside
                            * (h.count * w.count * output.samples * t * band.macs(*channels, t))
                        ),
                    )
                    if grid.columns == 1:
                        matrix = as_row(matrix)
                    elif grid.rows == 1:
                        matrix.rows = 1
                    pieces += shorter(step.changed(matrix=matrix), most)
            groups[-1].append(pieces or [step.changed(a=Source.ZERO)])
    if onto is not None:
        selector.stored[onto[0]] = stored
    accumulate(selector, node if onto is None else onto[0], groups, onto is not None)


def _terms(h: int, w: int, across_tiles: int) -> tuple[int, int, int]:
    return h * across_tiles, w * across_tiles, across_tiles
