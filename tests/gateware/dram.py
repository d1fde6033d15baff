"""External memory for benches in the Amaranth simulator, at the port of the load and store units."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np


class Dram:
    """Serves the read and write halves of a DMA port.

    Args:
        words: (rows, T) of uint32, read and written in place.
        beat: words a beat.
        latency: cycles from a request to its first beat, and from a last beat to ``written``.
        stall: probability with which a stream is held for a cycle, 0 for never.
        reorder: whether index rows may come before what was asked for earlier.
    """

    def __init__(
        self,
        words: np.ndarray,
        beat: int,
        latency: int,
        stall: float = 0,
        seed: int = 0,
        *,
        reorder: bool = False,
    ) -> None:
        self.words, self.beat, self.latency, self.stall = words, beat, latency, stall
        self.reorder = reorder
        self.random = np.random.default_rng(seed)
        self.requests = 0

    def _go(self) -> bool:
        return self.stall == 0 or self.random.random() >= self.stall

    async def read(self, ctx: Any, request: Any, beats: Any) -> None:
        """Serve reads: a testbench in the background."""
        # One queue, or one for each of both kinds; entries are the cycle when due, beats, index.
        queues: list[deque[tuple[int, list[int], int]]] = [deque(), deque()]
        flat = self.words.reshape(-1, self.beat)
        per_row = self.words.shape[1] // self.beat
        now = 0
        offered = None
        while True:
            if offered is None and self._go():
                due = [q for q in queues if q and q[0][0] <= now]
                if due:
                    offered = due[self.random.integers(len(due))]
            ctx.set(beats.valid, offered is not None)
            if offered is not None:
                _, places, index = offered[0]
                words = [int(x) for x in flat[places[0]]]
                ctx.set(beats.payload, {"words": words, "index": index})
            ready = self._go()
            ctx.set(request.ready, ready)
            asked = ready and ctx.get(request.valid)
            row, rows = ctx.get(request.payload.row), ctx.get(request.payload.rows)
            index = ctx.get(request.payload.index)
            taken = offered is not None and ctx.get(beats.ready)
            await ctx.tick()
            if taken:
                assert offered is not None
                offered[0][1].pop(0)
                if not offered[0][1]:
                    offered.popleft()
                offered = None
            if asked:
                self.requests += 1
                places = list(range(row * per_row, (row + rows) * per_row))
                queues[index and self.reorder].append((now + self.latency, places, index))
            now += 1

    async def write(self, ctx: Any, request: Any, beats: Any, written: Any) -> None:
        """Serve writes: a testbench in the background."""
        flat = self.words.reshape(-1, self.beat)
        per_row = self.words.shape[1] // self.beat
        places: deque[tuple[int, bool]] = deque()
        answers: deque[int] = deque()
        now = 0
        while True:
            ready, take = self._go(), bool(places) and self._go()
            ctx.set(request.ready, ready)
            ctx.set(beats.ready, take)
            answer = bool(answers) and answers[0] <= now
            if answer:
                answers.popleft()
            ctx.set(written, answer)
            asked = ready and ctx.get(request.valid)
            row, rows = ctx.get(request.payload.row), ctx.get(request.payload.rows)
            last = ctx.get(request.payload.last)
            sent = take and ctx.get(beats.valid)
            values = [ctx.get(beats.payload[k]) for k in range(self.beat)] if sent else []
            await ctx.tick()
            if asked:
                end = (row + rows) * per_row
                places.extend((n, bool(last and n == end - 1)) for n in range(row * per_row, end))
            if sent:
                place, ends = places.popleft()
                flat[place] = values
                if ends:
                    answers.append(now + 1 + self.latency)
            now += 1
