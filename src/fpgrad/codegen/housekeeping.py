"""What persists on the chip: its place, and the entries that move it to and from external memory and set it up."""

from __future__ import annotations

from collections.abc import Sequence

from fpgrad.codegen.allocate import align_up, lay_out
from fpgrad.codegen.geometry import banded
from fpgrad.codegen.persistent import Persistent
from fpgrad.codegen.steps import Access, Buffer, LoadStep, StepList, StoreStep, VectorStep
from fpgrad.codegen.storage import Quantised, Stored
from fpgrad.isa.instructions import Source

#: Rows moved at a time between DRAM and what persists on the chip, where there is room.
CHUNK = 256


def place_persistent(keep: Persistent) -> tuple[int, int]:
    """Bases for what persists on the chip, what each core has for itself last; the ends in vector memory and in tile
    memory."""
    inside = [item for item in keep.states.items() if item[0] not in keep.outside]
    rows = lay_out([s.buffer for name, s in inside if not keep.own(name)])
    rows = lay_out(keep.constant_rows, rows)
    rows = lay_out([s.buffer for s in keep.cores.values()], align_up(rows, keep.side))
    for names in (keep.parts, {n for n, role in keep.roles.items() if role == "metric"}):
        rows = lay_out([s.buffer for n, s in inside if n in names], align_up(rows, keep.side))
    for buffer, (whole, offset) in keep.inside.items():
        buffer.base = (whole.base or 0) + offset
    tiles = lay_out([q.buffer for q in keep.state_tiles.values() if not q.buffer.outside])
    tiles = lay_out([q.buffer for _, q in keep.constant_tiles.values()], tiles)
    return align_up(rows, keep.side), tiles


def place_outside(keep: Persistent, rows: int, cores: int) -> int:
    """Bases for what persists outside, in the image of what persists behind the ``rows`` of vector memory and what
    other cores than the first have of their own. Each core has it for itself, one behind the other; the first one's
    base."""
    first, size = own_rows(keep)
    first = align_up(rows if cores == 1 else max(rows, first + cores * size), keep.side)
    at = lay_out([keep.states[name].buffer for name in sorted(keep.outside)], first)
    for buffer, layout in keep.kernels_outside:
        buffer.base = at
        at += layout.size
    return first


def metric_rows(keep: Persistent) -> tuple[int, int]:
    """First row and number of rows of the metrics."""
    return span([s.buffer for name, s in keep.states.items() if keep.roles[name] == "metric"])


def own_rows(keep: Persistent) -> tuple[int, int]:
    """First row and number of rows of what each core has of its own on the chip, the metrics last."""
    near = [item for item in keep.states.items() if item[0] not in keep.outside]
    numbers = [s.buffer for s in keep.cores.values()]
    return span(numbers + [s.buffer for name, s in near if keep.own(name)])


def span(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """First row and number of rows of buffers that lie together."""
    if not buffers:
        return 0, 0
    first = min(b.base or 0 for b in buffers)
    return first, max((b.base or 0) + b.size for b in buffers) - first


def image_chunks(keep: Persistent, rows: int, cores: int, chunk: int) -> list[tuple[int, int, int]]:
    """First row and number of rows of each part of what persists that is moved at once, and the rows from one core's to
    the next core's. With several cores, all have metrics of their own, and parts of divided tensors; in the image they
    lie one behind the other."""
    if cores == 1:
        return [(first, min(chunk, rows - first), 0) for first in range(0, rows, chunk)]
    own, size = own_rows(keep)
    shared = own if size else rows
    chunks = [(first, min(chunk, shared - first), 0) for first in range(0, shared, chunk)]
    return chunks + [
        (first, min(chunk, own + size - first), size) for first in range(own, own + size, chunk)
    ]


def housekeeping(
    keep: Persistent, rows: int, cores: int, chunks: Sequence[tuple[int, int, int]]
) -> list[StepList]:
    """Entries that move what persists: ``load/i`` and ``store/i`` by chunks, ``quantise``, ``reset``, ``metrics``."""
    image = Buffer("image", "vector", rows, persistent=True, base=0)
    lists: list[StepList] = []
    for i, (first, size, stride) in enumerate(chunks):
        inbox, outbox = Buffer("chunk in", "inbox", size), Buffer("chunk out", "outbox", size)
        target, source = Access(image, s0=1, offset=first), Access(image, s0=1, offset=first)
        load = VectorStep(
            (1, 1, size),
            Access(inbox, s0=1),
            target=target,
            layer="states",
            phase="load",
            text="load",
        )
        store = VectorStep(
            (1, 1, size),
            source,
            target=Access(outbox, s0=1),
            layer="states",
            phase="store",
            text="store",
        )
        lists.append(
            StepList(
                f"load/{i}",
                [load],
                [LoadStep(inbox, "image", 1, size, offset=first, core_stride=stride)],
            )
        )
        lists.append(
            StepList(
                f"store/{i}",
                [store],
                [],
                [StoreStep(outbox, "image", size, offset=first, core_stride=stride)],
            )
        )
    tiles = [p for s, q in quantised_states(keep) for p in banded(requantise(keep, s, q))]
    lists.append(StepList("quantise", tiles))
    first, size = metric_rows(keep)
    if size:
        outbox = Buffer("metrics out", "outbox", size)
        area = Access(image, s0=1, offset=first)
        zero = VectorStep(
            (1, 1, size), Source.ZERO, target=area, layer="metrics", phase="reset", text="reset"
        )
        read = VectorStep(
            (1, 1, size),
            area,
            target=Access(outbox, s0=1),
            layer="metrics",
            phase="store",
            text="read",
        )
        lists.append(StepList("reset", [zero]))
        stride = size if cores > 1 else 0
        sent = StoreStep(outbox, "metrics", size, core_stride=stride)
        lists.append(StepList("metrics", [read], [], [sent]))
    return lists


def quantised_states(keep: Persistent) -> list[tuple[Stored, Quantised]]:
    """Row places with the tiles to make of them."""
    pairs = [(keep.states[name], q) for name, q in keep.state_tiles.items()]
    return pairs + list(keep.constant_tiles.values())


def requantise(keep: Persistent, stored: Stored, q: Quantised) -> VectorStep:
    """A pass that makes tiles of rows. Tiles of a constant vector repeat it in all rows."""
    grid, t = stored.grid, keep.side
    tile = Access(q.buffer, s2=grid.j, s1=1)
    if grid.kind == "tiles":
        source = Access(stored.buffer, s2=grid.j * t, s1=t, s0=1)
        loops = (grid.m, grid.j, t)
    else:
        source = Access(stored.buffer, s1=1)
        loops = (1, grid.m * grid.j, t if stored.buffer in keep.constant_rows else 1)
        tile = Access(q.buffer, s1=1)
    return VectorStep(
        loops, source, tile=tile, layer=stored.buffer.name, phase="load", text="quantise"
    )
