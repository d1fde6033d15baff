"""The queue of beats: order, and in which cycles it takes and offers."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.sim import Simulator

from fpgrad.gateware.queue import BeatQueue


@pytest.mark.parametrize("depth", [2, 4, 32])
@pytest.mark.parametrize(("give", "take"), [(1, 1), (0.5, 0.5), (0.9, 0.3), (0.3, 0.9)])
def test_a_queue_is_as_quick_as_one_of_registers(depth, give, take):
    """What comes in a cycle is offered in the next, and stays until it leaves."""
    dut, rng, waiting = BeatQueue(unsigned(16), depth=depth), np.random.default_rng(depth), deque()
    levels = set()

    async def bench(ctx):
        for n in range(600):
            # Now and then nothing leaves, or nothing comes, until it is full or empty.
            phase = n // 50 % 4
            comes = rng.random() < give and phase != 2
            leaves = rng.random() < take and phase != 1
            ctx.set(dut.i.valid, comes)
            ctx.set(dut.i.payload, n)
            ctx.set(dut.o.ready, leaves)
            levels.add(len(waiting))
            assert ctx.get(dut.i.ready) == (len(waiting) < depth)
            assert ctx.get(dut.o.valid) == bool(waiting)
            if waiting:
                assert ctx.get(dut.o.payload) == waiting[0]
            room = len(waiting) < depth
            if waiting and leaves:
                waiting.popleft()
            if comes and room:
                waiting.append(n)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert 0 in levels
    assert max(levels) == depth or depth == 32
