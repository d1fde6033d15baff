"""Sums over the cores: what is sent, in which pieces, and where the sums lie.

A tensor that is summed over the cores is written to the outbox, sent by STORE, and its sum comes to the inbox by LOAD,
from where passes read it. Large tensors, which are gradients of kernels, go in pieces: while one is on its way, passes
make the next and use the one before. How many are on their way at once is limited, and so are inbox and outbox.

Neither place needs a token before it is used again. A sum comes only after its own core has sent its part, so after
every pass up to the part's last; the place in the inbox belongs, from that pass on, to nothing else. And the pass that
first reads a sum has waited for it, so the part was sent: from that pass on its place in the outbox is free.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fpgrad.codegen.divide import Pieces, components
from fpgrad.codegen.divide import moved as in_pieces
from fpgrad.codegen.flight import SMALL
from fpgrad.codegen.geometry import across, moved
from fpgrad.codegen.steps import (
    Access,
    Buffer,
    Exchange,
    Limit,
    Region,
    StepList,
    VectorStep,
    changed,
)
from fpgrad.codegen.storage import Stored, Walk
from fpgrad.graph import Node
from fpgrad.isa.config import MemoryConfig

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector

#: Rows of sums that are sent and not yet used, about, where a machine is made for its program. Four pieces: so many
#: rows hide what an instruction and the way to the other cores cost.
ROOM = 1024

#: Pieces of a tensor at most, so that programs stay short.
MOST = 64

Span = tuple[int, int]


# Selection ----------------------------------------------------------------------------------------


def all_sum(selector: Selector, node: Node) -> None:
    """Send a tensor, from where it was computed or from a copy, and let its sum be read in the inbox."""
    (x,) = node.inputs
    grid = selector.keep.grid(node)
    stored = selector.place(x)
    if stored.buffer.place != "outbox":
        walk = Walk.TRANSPOSED if stored.transposed else Walk.NORMAL
        buffer = Buffer(f"{node.name} part", "outbox", grid.row_count, selector.t)
        step = VectorStep(selector.loops(grid), selector.access(x, grid, walk), text="send")
        sent = Stored(buffer, grid, grid.kind, stored.transposed)
        selector.emit(x, step, walk, sent)
        selector.stored[x] = stored
        stored = sent
    into = Buffer(f"{node.name} sum", "inbox", grid.row_count, selector.t)
    selector.out.exchanges.append(Exchange(stored.buffer, into))
    selector.stored[node] = replace(stored, buffer=into)
    selector.complete(node)


# Pieces -------------------------------------------------------------------------------------------


def room_for_sums(steps: StepList, memory: MemoryConfig | None) -> int:
    """Rows of inbox and outbox for large sums, in a machine that exists (``memory``) or is to be made (None)."""
    if memory is None:
        return max([ROOM, *(4 * e.rows // MOST for e in steps.exchanges)])
    small = sum(e.rows for e in steps.exchanges if e.rows < SMALL)
    inbox = memory.inbox_rows - sum(b.size for b in {load.buffer for load in steps.loads})
    outbox = memory.outbox_rows - sum(b.size for b in {store.buffer for store in steps.stores})
    return min(ROOM, max(0, min(inbox, outbox) - small))


def divide_sums(steps: StepList, side: int, chunk: int) -> dict[Buffer, Pieces]:
    """Cut the passes that write and read large sums, and the sums where no pass needs two pieces together.

    Args:
        chunk: rows of a piece, about.

    Returns:
        the pieces of each buffer that has more than one.
    """
    chunk = max(chunk, side)
    large = [e for e in steps.exchanges if e.rows > max(chunk, SMALL)]
    rows = {b: chunk for e in large for b in (e.out, e.into)}
    if not rows:
        return {}
    steps.steps = [part for step in steps.steps for part in cut(step, rows)]
    touched: dict[Buffer, list[Region]] = {b: [] for b in rows}
    for step in steps.steps:
        for region in (*step.rows_written(side), *step.rows_read(side)):
            if region.buffer in touched:
                touched[region.buffer].append(region)
    pieces: dict[Buffer, Pieces] = {}
    exchanges: list[Exchange] = []
    for e in steps.exchanges:
        regions = touched.get(e.out, []) + touched.get(e.into, [])
        out, into = components(e.out, regions), components(e.into, regions)
        if out is None or into is None:
            exchanges.append(e)
            continue
        pieces |= {e.out: out, e.into: into}
        exchanges += map(Exchange, out.buffers, into.buffers)
    steps.exchanges = exchanges
    steps.steps = [in_pieces(step, pieces, side) for step in steps.steps]
    return pieces


def cut(step: VectorStep, rows: dict[Buffer, int]) -> list[VectorStep]:
    """A pass that goes through a buffer of ``rows`` row by row, as several that touch about so many rows each."""
    walks = [v for v in (*step.operands, step.target) if isinstance(v, Access) and v.buffer in rows]
    n3, n2, n1, n0 = step.loops
    if not walks or n3 > 1 or any(w.strides[1:] != (n1 * n0, n0, 1) for w in walks):
        return [step]
    most = min(rows[w.buffer] for w in walks)
    down, wide = max(1, most // (n1 * n0)), max(1, most // n0)
    parts = [tile_rows(step, first, min(down, n2 - first)) for first in range(0, n2, down)]
    if n1 <= wide:
        return parts
    return [
        tiles_across(part, first, min(wide, n1 - first))
        for part in parts
        for first in range(0, n1, wide)
    ]


def tile_rows(step: VectorStep, first: int, count: int) -> VectorStep:
    """A pass for ``count`` of its tile rows, from ``first`` on, with its products."""
    n3, n2, n1, n0 = step.loops
    if count == n2:
        return step
    part = moved(step, (n3, count, n1, n0), lambda a: changed(a, offset=a.offset + first * a.s2))
    if first + count < n2:
        part.row_limit = part.row_limit if part.row_limit.loop != 2 else Limit()
        part.lane_limit = part.lane_limit if part.lane_limit.loop != 2 else Limit()
    m = step.matrix
    if m is not None:
        base = m.streamed.base
        part.matrix = changed(
            m,
            outputs=(1, count, m.outputs[2]),
            streamed=changed(m.streamed, base=changed(base, offset=base.offset + first * base.s1)),
            useful_macs=share(m.useful_macs, first, count, n2),
        )
    return part


def tiles_across(step: VectorStep, first: int, count: int) -> VectorStep:
    """A pass for ``count`` of its tiles across, from ``first`` on, with its products."""
    part, m, n1 = across(step, first, count), step.matrix, step.loops[2]
    if m is not None and count < n1:
        base = m.stationary.base
        moved_base = changed(base, offset=base.offset + first * base.s0)
        part.matrix = changed(
            m,
            outputs=(*m.outputs[:2], count),
            stationary=changed(m.stationary, base=moved_base),
            useful_macs=share(m.useful_macs, first, count, n1),
        )
    return part


def share(macs: int, first: int, count: int, whole: int) -> int:
    """The multiplications of some of ``whole`` equal parts; all of them together have ``macs``."""
    return macs * (first + count) // whole - macs * first // whole


# Places -------------------------------------------------------------------------------------------


def sum_spans(
    steps: StepList, spans: dict[Buffer, Span]
) -> tuple[dict[Buffer, Span], dict[Buffer, Span]]:
    """From when until when sums have their places, in the inbox and in the outbox.

    Args:
        spans: the first and the last pass that touches each buffer.
    """
    inbox = {e.into: (spans[e.out][1], spans[e.into][1]) for e in steps.exchanges}
    outbox = {e.out: (spans[e.out][0], spans[e.into][0]) for e in steps.exchanges}
    return inbox, outbox


def in_order(steps: StepList, spans: dict[Buffer, Span]) -> list[Exchange]:
    """The order in which parts are sent, which is that in which sums come: that of the last passes that write them.

    A unit that waits for a sum, or for room to send a part, so never holds up what was to come before it: all that
    LOAD and STORE have to do before the n-th of them begins with a pass before its last one.
    """
    return sorted(steps.exchanges, key=lambda e: spans[e.out][1])
