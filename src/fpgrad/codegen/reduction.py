"""Reductions: a reducing pass leaves 4 partial rows, two small passes combine them.

A sum along features walks tiles by columns, so that each lane sums its own sample; a sum along samples walks them by
rows. Neither needs a tree across lanes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fpgrad.codegen.geometry import band_of
from fpgrad.codegen.match import Match
from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.steps import WAYS, Access, Buffer, Limit, Value, VectorStep
from fpgrad.codegen.storage import Grid, Walk, ceil_div
from fpgrad.errors import GraphError
from fpgrad.graph import Node
from fpgrad.isa.instructions import Alu, Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector

#: Rows that a reducing pass reads, about: longer ones would hold up the products that other passes wait for.
LONGEST = 2048

#: Rows of partial sums beyond which each pass leaves as few as it can.
FEW = 4096

ALU = {"reduce_sum": Alu.ADD, "reduce_max": Alu.MAX, "reduce_min": Alu.MIN}


def emit(selector: Selector, node: Node, m: Match) -> None:
    """Emit the passes of a reduction."""
    (x,) = node.inputs
    if 1 in x.shape and node.shape == (1, 1):
        across_lanes(selector, node, m, x)
    elif node.attrs["axis"] == 1:
        along_features(selector, node, m, x.shape)
    else:
        along_samples(selector, node, m, x)


def joined(tiles: int, side: int) -> int:
    """How many tiles below each other a reducing pass takes as one run."""
    most = max(1, LONGEST // (2 * side))
    return max(n for n in range(1, min(tiles, most) + 1) if tiles % n == 0)


def _emit(selector: Selector, node: Node, step: VectorStep) -> None:
    step.layer, step.phase = layer_of(node), phase_of(node)
    step.text = step.text or node.op
    selector.out.steps.append(step)


def combine(selector: Selector, node: Node, partial: Buffer, groups: int, lanes: Limit) -> None:
    """Four rows a group to one: the tensor's place, its tiles and its state."""
    alu = ALU[node.op]
    half = Buffer(f"{node.name} halves", "vector", groups * 2)
    first = Access(partial, s2=WAYS, s0=1)
    second = Access(partial, s2=WAYS, s0=1, offset=2)
    loops = (groups, 1, 2)
    _emit(
        selector,
        node,
        VectorStep(
            loops, first, c=second, alu=alu, lane_limit=lanes, target=Access(half, s2=2, s0=1)
        ),
    )
    last = VectorStep(
        (1, groups, 1), Access(half, s1=2), c=Access(half, s1=2, offset=1), alu=alu, text=node.op
    )
    selector.finish(node, last, None, Walk.NORMAL)


def along_features(selector: Selector, node: Node, m: Match, shape: tuple[int, int]) -> None:
    """(N, F) to (N, 1): lanes are samples."""
    t, (rows, features) = selector.t, shape
    groups = -(-rows // t)
    lanes = Limit(2, rows % t) if rows % t else Limit()
    alu = ALU[node.op]

    def operand(leaf: Node) -> Value:
        return selector.features(leaf)

    a = operand(m.a)
    b: Value = Source.ONE if m.b is None else operand(m.b)
    if features < WAYS:
        chain(selector, node, a, features, groups, lanes)
        return
    partial = Buffer(f"{node.name} partial", "vector", groups * WAYS)
    step = VectorStep(
        (groups, 1, features),
        a,
        b,
        alu=alu,
        negate_product=m.negate_product,
        reduce=True,
        lane_limit=lanes,
    )
    step.target = Access(partial, s2=WAYS, s0=1)
    _emit(selector, node, step)
    combine(selector, node, partial, groups, lanes)


def chain(
    selector: Selector, node: Node, a: Value, features: int, groups: int, lanes: Limit
) -> None:
    """One to three features: add row to row."""
    assert isinstance(a, Access)

    def feature(i: int) -> Access:
        return Access(a.buffer, s1=a.s2, offset=a.offset + i * a.s0, transposed=a.transposed)

    so_far: Access = feature(0)
    for i in range(1, features - 1):
        row = Buffer(f"{node.name} part", "vector", groups)
        step = VectorStep((1, groups, 1), so_far, c=feature(i), alu=ALU[node.op])
        step.lane_limit = Limit(1, lanes.limit) if lanes.loop else Limit()
        step.target = Access(row, s1=1)
        _emit(selector, node, step)
        so_far = Access(row, s1=1)
    if features == 1:
        last = VectorStep((1, groups, 1), so_far, text=node.op)
    else:
        last = VectorStep(
            (1, groups, 1), so_far, c=feature(features - 1), alu=ALU[node.op], text=node.op
        )
    selector.finish(node, last, None, Walk.NORMAL)


def along_samples(selector: Selector, node: Node, m: Match, x: Node) -> None:
    """(N, F) to (1, F): lanes are features."""
    t, (rows, columns) = selector.t, x.shape
    grid = selector.keep.grid(x)
    if rows % t and node.op != "reduce_sum":
        raise GraphError(f"{node.name}: {node.op} over {rows} samples needs a multiple of {t}")

    def operand(leaf: Node) -> Access:
        stored = selector.place(leaf)
        if stored.kind == "samples":
            return Access(stored.buffer, s2=1, s1=t * grid.j, s0=grid.j)
        return Access(stored.buffer, s2=t, s1=grid.j * t, s0=1, transposed=stored.transposed)

    def follows(v: Value) -> bool:
        return isinstance(v, Access) and not v.transposed and v.s1 == t * v.s0

    def at(a: Access, tiles: int) -> Access:
        """The walk from so many tiles down on, with runs of tiles in the middle loop."""
        return replace(a, offset=a.offset + tiles * a.s1, s1=run * a.s1)

    a = operand(m.a)
    b: Value = Source.ONE if m.b is None else operand(m.b)
    lanes = Limit(2, columns % t) if columns % t else Limit()
    alu = ALU[node.op]
    # Tiles below each other are one run of rows where there is one tile across.
    run = joined(grid.m, t) if grid.j == 1 and follows(a) and (m.b is None or follows(b)) else 1
    groups = grid.m // run
    if run == 1 and grid.j > 1 and groups >= 2 * WAYS:
        down(selector, node, m, (a, b), grid, lanes)
        return
    partial = Buffer(f"{node.name} partial", "vector", grid.j * groups * WAYS)
    at_once = max(1, LONGEST // (grid.j * run * t))
    for first in range(0, groups, at_once):
        count = min(at_once, groups - first)

        def part(v: Value, first: int = first) -> Value:
            return at(v, first * run) if isinstance(v, Access) else v

        step = VectorStep(
            (grid.j, count, run * t),
            part(a),
            part(b),
            alu=alu,
            negate_product=m.negate_product,
            reduce=True,
        )
        step.lane_limit = lanes
        step.target = Access(partial, s2=WAYS * groups, s1=WAYS, s0=1, offset=first * WAYS)
        _emit(selector, node, step)
    all_groups(selector, node, partial, (grid.j, groups), lanes)


def down(
    selector: Selector,
    node: Node,
    m: Match,
    operands: tuple[Access, Value],
    grid: Grid,
    lanes: Limit,
) -> None:
    """(N, F) to (1, F), where tiles below each other are far apart: each of their T rows is summed from tile to tile."""
    t = selector.t
    rows = max(4 * WAYS, LONGEST // (grid.j * t), band_of(grid.tile_count) // grid.j)
    chunks = ceil_div(grid.m, rows)
    # Of a large map a chunk's rows are summed at once: few are left of each.
    at_once = grid.j * chunks * t * WAYS > FEW
    groups = chunks if at_once else chunks * t
    partial = Buffer(f"{node.name} partial", "vector", grid.j * groups * WAYS)

    def at(v: Value, tiles: int) -> Value:
        if not isinstance(v, Access):
            return v
        return replace(v, offset=v.offset + tiles * v.s1, s1=v.s0, s0=v.s1)

    for chunk in range(chunks):
        first, end = (grid.m * (chunk + i) // chunks for i in (0, 1))
        a, b = (at(v, first) for v in operands)
        loops = (grid.j, t, end - first)
        step = VectorStep(
            loops, a, b, alu=ALU[node.op], negate_product=m.negate_product, reduce=True
        )
        step.lane_limit = lanes
        if at_once:
            sums = Buffer(f"{node.name} part", "vector", grid.j * t * WAYS)
            step.target = Access(sums, s2=t * WAYS, s1=WAYS, s0=1)
            _emit(selector, node, step)
            rest = Access(sums, s2=t * WAYS, s0=1)
            step = VectorStep((grid.j, 1, t * WAYS), rest, alu=ALU[node.op], reduce=True)
            step.lane_limit = lanes
            step.target = Access(partial, s2=groups * WAYS, s0=1, offset=chunk * WAYS)
        else:
            offset = chunk * t * WAYS
            step.target = Access(partial, s2=groups * WAYS, s1=WAYS, s0=1, offset=offset)
        _emit(selector, node, step)
    all_groups(selector, node, partial, (grid.j, groups), lanes)


def all_groups(
    selector: Selector, node: Node, partial: Buffer, shape: tuple[int, int], lanes: Limit
) -> None:
    """Four rows a group, of so many groups for each tile across, to the result."""
    across, groups = shape
    if groups > 1:
        fewer = Buffer(f"{node.name} partial sums", "vector", across * WAYS)
        step = VectorStep(
            (across, 1, groups * WAYS),
            Access(partial, s2=WAYS * groups, s0=1),
            alu=ALU[node.op],
            reduce=True,
        )
        step.lane_limit = lanes
        step.target = Access(fewer, s2=WAYS, s0=1)
        _emit(selector, node, step)
        partial = fewer
    combine(selector, node, partial, across, lanes)


def across_lanes(selector: Selector, node: Node, m: Match, x: Node) -> None:
    """A vector to (1, 1): add its rows, write the row of lane sums T times, add the columns of that tile.

    Each column of the tile holds one lane's sum in all lanes, so the result does too.
    """
    t, grid = selector.t, selector.keep.grid(x)
    length = x.shape[0] * x.shape[1]
    if length % t and node.op != "reduce_sum":
        raise GraphError(f"{node.name}: {node.op} over {length} numbers needs a multiple of {t}")
    alu = ALU[node.op]

    def operand(leaf: Node) -> Value:
        return selector.access(leaf, grid, Walk.NORMAL)

    b: Value = Source.ONE if m.b is None else operand(m.b)
    rows = grid.m * grid.j
    products_row = Buffer(f"{node.name} terms", "vector", rows)
    first = VectorStep((1, rows, 1), operand(m.a), b, negate_product=m.negate_product)
    first.lane_limit = Limit(1, length % t) if length % t else Limit()
    first.target = Access(products_row, s1=1)
    _emit(selector, node, first)
    while rows > 1:
        half = rows // 2
        fewer = Buffer(f"{node.name} terms", "vector", rows - half)
        step = VectorStep(
            (1, half, 1),
            Access(products_row, s1=1),
            c=Access(products_row, s1=1, offset=rows - half),
        )
        step.alu, step.target = alu, Access(fewer, s1=1)
        _emit(selector, node, step)
        if rows % 2:
            middle = VectorStep(
                (1, 1, 1), Access(products_row, offset=half), target=Access(fewer, offset=half)
            )
            _emit(selector, node, middle)
        products_row, rows = fewer, rows - half
    tile = Buffer(f"{node.name} lanes", "vector", t, t)
    _emit(selector, node, VectorStep((1, 1, t), Access(products_row), target=Access(tile, s0=1)))
    partial = Buffer(f"{node.name} partial", "vector", WAYS)
    step = VectorStep((1, 1, t), Access(tile, s0=1, transposed=True), alu=alu, reduce=True)
    step.target = Access(partial, s0=1)
    _emit(selector, node, step)
    combine(selector, node, partial, 1, Limit())
