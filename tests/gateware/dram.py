"""External memory for benches in the Amaranth simulator: the same behaviour as the C++ model of the RTL executor."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np


class Dram:
    """Serves the read and write halves of a DMA port.

    Args:
        words: (rows, T) of uint32, read and written in place.
        beat: words a beat.
        latency: cycles from a request to its first beat.
        stall: probability with which a stream is held for a cycle, 0 for never.
    """

    def __init__(
        self, words: np.ndarray, beat: int, latency: int, stall: float = 0, seed: int = 0
    ) -> None:
        self.words, self.beat, self.latency, self.stall = words, beat, latency, stall
        self.random = np.random.default_rng(seed)
        self.requests = 0

    def _go(self) -> bool:
        return self.stall == 0 or self.random.random() >= self.stall

    async def read(self, ctx: Any, request: Any, beats: Any) -> None:
        """Serve reads: a testbench in the background."""
        pending: deque[tuple[int, list[int]]] = deque()
        flat = self.words.reshape(-1, self.beat)
        per_row = self.words.shape[1] // self.beat
        now = 0
        while True:
            there = bool(pending) and pending[0][0] <= now and self._go()
            ctx.set(beats.valid, there)
            if there:
                ctx.set(beats.payload, [int(x) for x in flat[pending[0][1][0]]])
            ready = self._go()
            ctx.set(request.ready, ready)
            asked = ready and ctx.get(request.valid)
            row, rows = ctx.get(request.payload.row), ctx.get(request.payload.rows)
            taken = there and ctx.get(beats.ready)
            await ctx.tick()
            if taken:
                pending[0][1].pop(0)
                if not pending[0][1]:
                    pending.popleft()
            if asked:
                self.requests += 1
                pending.append(
                    (now + self.latency, list(range(row * per_row, (row + rows) * per_row)))
                )
            now += 1

    async def write(self, ctx: Any, request: Any, beats: Any) -> None:
        """Serve writes: a testbench in the background."""
        flat = self.words.reshape(-1, self.beat)
        per_row = self.words.shape[1] // self.beat
        places: deque[int] = deque()
        while True:
            ready, take = self._go(), bool(places) and self._go()
            ctx.set(request.ready, ready)
            ctx.set(beats.ready, take)
            asked = ready and ctx.get(request.valid)
            row, rows = ctx.get(request.payload.row), ctx.get(request.payload.rows)
            sent = take and ctx.get(beats.valid)
            values = [ctx.get(beats.payload[k]) for k in range(self.beat)] if sent else []
            await ctx.tick()
            if asked:
                places.extend(range(row * per_row, (row + rows) * per_row))
            if sent:
                flat[places.popleft()] = values
