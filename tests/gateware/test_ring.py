"""The ring of instructions against a queue, in all sizes of beats, slow and fast on both sides."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.gateware.ring import Ring

WIDTH = 19 * 32 - 28  # of a pass: the last word is not whole


@pytest.mark.parametrize("beat_words", [1, 4, 32])
@pytest.mark.parametrize(("fills", "gets"), [(1, 1), (0.4, 1), (1, 0.1), (0.5, 0.3)])
def test_instructions_leave_as_they_came(beat_words, fills, gets):
    depth, beats = 4, max(1, 32 // beat_words)
    dut, random = Ring(width=WIDTH, depth=depth, beat_words=beat_words), np.random.default_rng(3)
    inside: deque[int] = deque()
    left = []
    # Who fills it counts on all that it was sent.
    sent: deque[int] = deque()

    async def bench(ctx):
        part, packed = 0, 0
        for _ in range(400 if beats == 1 else 1200):
            assert ctx.get(dut.there) == bool(inside)
            if left:
                assert ctx.get(dut.instruction) == left[-1]
            room = len(inside) + bool(sent) < depth or part > 0
            fill, get = room and random.random() < fills, bool(inside) and random.random() < gets
            if fill and part == 0:
                packed = int.from_bytes(random.bytes(128), "little") & ((1 << WIDTH) - 1)
                sent.append(packed)
            for word in range(beat_words):
                at = 32 * (part * beat_words + word)
                ctx.set(dut.beat[word], (packed >> at) & 0xFFFFFFFF)
            ctx.set(dut.fill, fill)
            ctx.set(dut.get, get)
            await ctx.tick()
            if get:
                left.append(inside.popleft())
            if fill:
                part = (part + 1) % beats
                if part == 0:
                    inside.append(sent.popleft())
        # It was cleared in the middle of an instruction.
        ctx.set(dut.get, 0)
        ctx.set(dut.fill, 0)
        ctx.set(dut.clear, 1)
        await ctx.tick()
        ctx.set(dut.clear, 0)
        assert not ctx.get(dut.there)
        ctx.set(dut.fill, 1)
        for n in range(beats):
            assert not ctx.get(dut.there)
            ctx.set(dut.beat[0], n)
            await ctx.tick()
        assert ctx.get(dut.there)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert len(left) > 10
