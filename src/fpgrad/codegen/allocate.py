"""Allocation: bases for buffers, by lifetime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpgrad.codegen.exchange import sum_spans
from fpgrad.codegen.steps import Buffer, Move, StepList, VectorStep


@dataclass(frozen=True)
class Need:
    """Rows and tiles that a program uses of each memory."""

    vector_rows: int = 0
    tiles: int = 0
    inbox_rows: int = 0
    outbox_rows: int = 0
    mask_rows: int = 0

    def join(self, other: Need) -> Need:
        """What suffices for both."""
        return Need(
            max(self.vector_rows, other.vector_rows),
            max(self.tiles, other.tiles),
            max(self.inbox_rows, other.inbox_rows),
            max(self.outbox_rows, other.outbox_rows),
            max(self.mask_rows, other.mask_rows),
        )


def align_up(x: int, to: int) -> int:
    """The smallest multiple of ``to`` from ``x`` on."""
    return -(-x // to) * to


def lay_out(buffers: Iterable[Buffer], start: int = 0) -> int:
    """Place buffers one after the other; returns the end."""
    at = start
    for buffer in buffers:
        buffer.base = align_up(at, buffer.align)
        at = buffer.base + buffer.size
    return at


def lifetimes(steps: Sequence[VectorStep]) -> dict[Buffer, tuple[int, int]]:
    """First and last step that touches each buffer which does not persist."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for buffer in (*step.reads(), *step.writes()):
            if not buffer.persistent:
                spans[buffer] = (spans.get(buffer, (i, i))[0], i)
    return spans


def place(spans: dict[Buffer, tuple[int, int]], floor: int) -> int:
    """First fit: buffers whose lifetimes overlap get disjoint places from ``floor`` on; returns the end.

    Two buffers may share a place only when one's last use comes before the other's first: a pass never writes
    where it reads another tensor.
    """
    order = sorted(spans, key=lambda b: (-b.size, spans[b]))
    first, last = (np.array([spans[b][i] for b in order], np.int64) for i in (0, 1))
    low, high = np.zeros(len(order), np.int64), np.zeros(len(order), np.int64)
    end = floor
    for n, buffer in enumerate(order):
        rivals = np.flatnonzero((first[:n] <= last[n]) & (last[:n] >= first[n]))
        rivals = rivals[np.argsort(low[rivals], kind="stable")]
        at = lowest(low[rivals], high[rivals], floor, buffer)
        buffer.base, low[n], high[n] = at, at, at + buffer.size
        end = max(end, at + buffer.size)
    return end


def lowest(low: NDArray[np.int64], high: NDArray[np.int64], floor: int, buffer: Buffer) -> int:
    """The lowest place for a buffer beside others, which lie from ``low`` to ``high``, by ``low``."""
    align = buffer.align
    tops = np.maximum.accumulate(np.concatenate([[floor], high]))
    starts = -(-tops // align) * align
    fitting = np.flatnonzero(starts[:-1] + buffer.size <= low)
    return int(starts[fitting[0]] if len(fitting) else starts[-1])


def with_moves(
    spans: Mapping[Buffer, tuple[int, int]], moves: Iterable[Move]
) -> dict[Buffer, tuple[int, int]]:
    """Lifetimes of buffers, with the time that their moves take."""
    spans = dict(spans)
    for move in moves:
        first, last = spans.get(move.buffer, (move.at, move.at))
        spans[move.buffer] = min(first, move.at), max(last, move.until)
    return spans


def fullest(steps: StepList, place: str) -> tuple[int, int]:
    """The step at which most of a memory is in use, and how much."""
    change = np.zeros(len(steps.steps) + 2, np.int64)
    for buffer, (first, last) in with_moves(lifetimes(steps.steps), steps.moves).items():
        if buffer.place == place:
            change[first] += buffer.size
            change[last + 1] -= buffer.size
    used = np.cumsum(change)
    return int(used.argmax()), int(used.max())


def allocate(steps: StepList, vector_floor: int, tile_floor: int) -> Need:
    """Give every buffer of a function its base, above what persists.

    Tiles of tile memory may be written again once the pass that took the rows of their last product has begun:
    the order of steps is that of passes, so their lifetimes need nothing more. Inputs keep their places in the inbox,
    and outputs theirs in the outbox, because their transfers reach into the neighbouring steps.
    """
    touched = lifetimes(steps.steps)
    sums, parts = sum_spans(steps, touched)
    spans = with_moves(touched, steps.moves)
    inbox = lay_out(dict.fromkeys(load.buffer for load in steps.loads))
    outbox = lay_out(dict.fromkeys(store.buffer for store in steps.stores))
    kept = {x.buffer for x in (*steps.loads, *steps.stores)}
    spans |= sums | parts

    def of(place_name: str) -> dict[Buffer, tuple[int, int]]:
        return {b: s for b, s in spans.items() if b.place == place_name and b not in kept}

    return Need(
        place(of("vector"), vector_floor),
        place(of("tile"), tile_floor),
        place(of("inbox"), inbox),
        place(of("outbox"), outbox),
        place(of("mask"), 0),
    )
