"""Strategies for single instructions: every one is legal alone, whatever the others do."""

from __future__ import annotations

from dataclasses import replace

from tests.programs.draw import Draw
from tests.programs.machines import NUMBERS, STEPS, Area, areas, block_rows
from tests.programs.places import footprint, overtakes

from fpgrad.isa.instructions import (
    Alu,
    DramAddress,
    Load,
    Loops,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    TileTarget,
    Transfer,
    Vector,
    VectorOp,
)

ROW_OPS = {"scalars": VectorOp.SCALARS, "seed": VectorOp.SEED}


def vector(d: Draw, kind: str) -> Vector:
    """A vector instruction: "pass", "reduce", "tile", "scalars" or "seed"."""
    if kind in ROW_OPS:
        space = d.one(Space.VECTOR, Space.INBOX)
        return Vector(
            ROW_OPS[kind],
            p0=RowStream(space, 0, d.int(0, d.rows(space) - 1)),
            fence=d.one(0, 0, 0, 0, 1),
        )
    flow = d.one(0, 0, 1) if kind == "tile" else 0
    ways = d.config.vector.ways
    loops = d.loops(ways if kind == "reduce" else 1, d.t if kind == "tile" and not flow else None)
    return vector_pass(d, kind, loops, flow=flow)


def vector_pass(d: Draw, kind: str, loops: Loops, flow: int = 0, acc: bool = False) -> Vector:
    """A pass of these loops.

    Args:
        acc: it takes accumulator rows.
    """
    reduce = int(kind == "reduce")
    sources = d.sources()
    operands = {"a": d.one(*sources), "b": d.one(*sources), "c": d.one(*sources), "d": Source.ONE}
    if d.config.vector.post_multiply and d.one(False, True):
        operands["d"] = d.one(*sources)
    if acc:
        names = ["a", "b", *(() if reduce else ("c",))]
        operands[d.one(*names, *(("d",) if d.config.vector.post_multiply else ()))] = Source.ACC
    p0, p1 = (
        d.stream(loops) if source in operands.values() or d.one(False, False, True) else RowStream()
        for source in (Source.P0, Source.P1)
    )
    v = Vector(
        VectorOp.PASS,
        loops,
        p0,
        p1,
        **operands,
        negate_product=d.one(0, 1),
        negate_c=d.one(0, 1),
        alu=d.one(Alu.ADD, *Alu),
        function=d.function(),
        reduce=reduce,
        i0=d.immediate(),
        i1=d.immediate(),
        row_mask=d.mask(loops.n0),
        lane_mask=d.mask(d.t),
        fence=d.one(0, 0, 0, 0, 0, 0, 0, 1),
    )
    if kind == "tile":
        inner = -(-loops.n1 * loops.n0 // d.t) if flow else loops.n1
        base, strides = d.walk((loops.n3, loops.n2, inner), "tile")
        v = replace(v, tile=TileTarget(1, flow, base, *strides))
    v = replace(v, target=target(d, v))
    return replace(v, target=outbox(d, v)) if overtakes(d.config, v) else v


def target(d: Draw, v: Vector) -> Target:
    """Rows to write: sometimes those that are read, in place."""
    spaces = d.spaces(Space.VECTOR, Space.OUTBOX, Space.MASK)
    space = d.one(*((Space.NONE, Space.NONE) if v.tile.enable else ()), *spaces)
    p = v.p0
    if space is p.space and not p.transposed and d.one(False, True):
        return Target(space, p.base, p.s3, p.s2, p.s1, p.s0)
    return d.target(space, written_loops(d, v))


def outbox(d: Draw, v: Vector) -> Target:
    """Rows that no pass reads."""
    return d.target(Space.OUTBOX, written_loops(d, v))


def written_loops(d: Draw, v: Vector) -> Loops:
    """Loops of the rows that are written: a reducing pass writes ``ways`` of each innermost loop."""
    return replace(v.loops, n0=d.config.vector.ways) if v.reduce else v.loops


def matrix(d: Draw, terms: int = 3) -> Matrix:
    """A matrix instruction with up to ``terms`` products in its innermost loop of products."""
    counts = (
        d.one(1, 1, 2), d.one(1, 1, 2), d.int(1, 3), d.one(1, 1, 2), d.one(1, 2), d.int(1, terms),
    )  # fmt: skip
    rows = d.one(d.t, d.int(1, d.t))
    return Matrix(*counts, rows, d.tiles(counts), d.tiles(counts))


def taking(d: Draw, matrices: list[Matrix]) -> list[Vector]:
    """Passes that take the rows of these matrix instructions, one or two."""
    total = sum(m.outputs * m.rows for m in matrices)
    parts = [total]
    if total > 1 and d.one(False, False, True):
        first = d.int(1, total - 1)
        parts = [first, total - first]
    out = []
    for rows in parts:
        loops = d.loops_of(rows, matrices[0].rows)
        kinds = ["pass", "tile", *(["reduce"] if loops.n0 >= d.config.vector.ways else [])]
        kind = d.one(*kinds)
        flow = int(kind == "tile" and (loops.n0 > d.t or d.one(False, True)))
        out.append(vector_pass(d, kind, loops, flow, acc=True))
    return out


def untiled(d: Draw, v: Vector, matrices: list[Matrix]) -> Vector:
    """The pass, without its tiles when it would overwrite what these instructions read."""
    reads = [footprint(d.config, m).reads for m in matrices]
    writes = footprint(d.config, v).writes
    return replace(v, tile=TileTarget()) if any(r & writes for r in reads) else v


def transfers(d: Draw, load: bool) -> list[Transfer]:
    """Kinds of moves that the machine has."""
    m = d.config.memory
    kinds = [Transfer.ROWS, *([Transfer.BYTES] if load and m.bytes else [])]
    if m.tile_dma:
        kinds += [Transfer.TILES, *([Transfer.MASKS] if m.mask_rows >= 32 else [])]
    return kinds


def load(d: Draw) -> Load:
    """A load from external memory's areas."""
    kind = d.one(*transfers(d, True))
    gather = d.one(0, 1)
    count = d.one(d.int(1, 4), d.int(1, 2 * d.t + 1))
    names = {
        Transfer.ROWS: ("numbers", "numbers", "common", *(("words",) if d.odd else ())),
        Transfer.BYTES: ("words", "numbers", "common"),
        Transfer.MASKS: ("words", "numbers"),
        Transfer.TILES: ("blocks", "long"),
    }
    name, rows = block(d, kind, names[kind])
    source, stride = dram(d, kind, name, rows, NUMBERS if gather else count)
    inner = rows * (4 if kind is Transfer.BYTES else 1)
    target, strides = chip(d, kind, "inbox", count, inner)
    step = d.int(0, 2)
    index = areas(d.config)["index"]
    room = index.rows - -(-count // d.t) - (STEPS - 1) * step
    if room < 0:
        step, room = 0, index.rows - -(-count // d.t)
    at = DramAddress()
    if gather:
        core, room = cores(d, index, room)
        at = DramAddress(index.register, d.int(0, room), step, core)
    return Load(kind, count, rows, source, stride, gather, at, target, *strides)


def store(d: Draw) -> Store:
    """A store to external memory's areas, whose data stay of their kind."""
    kind = d.one(*transfers(d, False))
    count = d.int(1, 4)
    names = {
        Transfer.ROWS: ("numbers",),
        Transfer.MASKS: ("words",),
        Transfer.TILES: ("blocks", "long"),
    }
    name, rows = block(d, kind, names[kind])
    target, stride = dram(d, kind, name, rows, count)
    source, strides = chip(d, kind, "outbox", count, rows)
    return Store(kind, count, rows, source, *strides, target, stride)


def block(d: Draw, kind: Transfer, names: tuple[str, ...]) -> tuple[str, int]:
    """An area, and the rows (tiles) of a group there."""
    name = d.one(*(n for n in names if n in areas(d.config)))
    most = areas(d.config)[name].tiles
    if kind is not Transfer.TILES:
        return name, d.int(1, 2 if kind in (Transfer.BYTES, Transfer.MASKS) else 4)
    # A group of fewer tiles than the block has must find their exponents in as many rows.
    return name, d.int(4 * d.t * (most // (4 * d.t)) + 1 if most > 4 * d.t else 1, most)


def dram(d: Draw, kind: Transfer, name: str, rows: int, numbers: int) -> tuple[DramAddress, int]:
    """Where the groups of a transfer are in an area, and their distance."""
    area = areas(d.config)[name]
    span = area.span if kind is Transfer.TILES else 1
    group = block_rows(d.t, rows) if kind is Transfer.TILES else rows
    room = area.rows // span - -(-group // span)
    step = d.int(0, min(2, room // (STEPS - 1)))
    room -= (STEPS - 1) * step
    stride = d.int(0, min(3, room // max(1, numbers - 1)))
    room -= stride * (numbers - 1)
    core, room = cores(d, area, room)
    address = DramAddress(area.register, d.int(0, room) * span, step * span, core)
    return address, stride * span


def cores(d: Draw, area: Area, room: int) -> tuple[int, int]:
    """How far the cores' places in an area are apart, and the room that is left of so many rows."""
    if area.pitch:
        return area.pitch, room
    others = d.config.cores - 1
    if not others:
        return d.one(0, 0, 5), room
    stride = d.int(0, min(2, room // others))
    return stride, room - stride * others


def sums(d: Draw) -> list[Store | Load]:
    """Rows to the other cores, and the sums back: in this order, so that few rows ever wait between the two."""
    total = d.int(1, 2 * d.t)
    shapes = [(n, total // n) for n in range(1, total + 1) if total % n == 0]
    (count, rows), (back, back_rows) = d.one(*shapes), d.one(*shapes)
    source, strides = chip(d, Transfer.SUM, "outbox", count, rows)
    target, (group, row) = chip(d, Transfer.SUM, "inbox", back, back_rows)
    return [
        Store(Transfer.SUM, count, rows, source, *strides),
        Load(Transfer.SUM, back, back_rows, target=target, group_stride=group, row_stride=row),
    ]


def chip(d: Draw, kind: Transfer, rows: str, count: int, inner: int) -> tuple[int, tuple[int, ...]]:
    """Where the groups of a transfer are on the chip."""
    if kind is Transfer.MASKS:
        return d.walk((count, inner), "mask", 32)
    return d.walk((count, inner), "tile" if kind is Transfer.TILES else rows)
