"""Token channels against counters in Python."""

from __future__ import annotations

import numpy as np
from amaranth.sim import Simulator

from fpgrad.gateware.tokens import UNITS, TokenChannels


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_channels_count_what_is_signalled_and_taken():
    dut = TokenChannels()
    random = np.random.default_rng(1)

    async def bench(ctx):
        model = random.integers(0, 20, (UNITS, UNITS))
        for s in range(UNITS):
            ctx.set(dut.initial[s], [int(n) for n in model[s]])
        ctx.set(dut.go, 1)
        await ctx.tick()
        ctx.set(dut.go, 0)
        for _ in range(300):
            signal = random.integers(0, 16, (UNITS, UNITS))
            signal[model > 200] = 0
            take = np.minimum(random.integers(0, 16, (UNITS, UNITS)), model.T)
            for u in range(UNITS):
                ctx.set(dut.signal[u], [int(n) for n in signal[u]])
                ctx.set(dut.take[u], [int(n) for n in take[u]])
                assert [ctx.get(dut.available[u][s]) for s in range(UNITS)] == list(model[:, u])
            await ctx.tick()
            model = model + signal - take.T
        assert ctx.get(dut.overflow) == 0

    simulate(dut, bench)


def test_overflow_is_seen_and_forgotten_by_the_next_run():
    dut = TokenChannels()

    async def bench(ctx):
        ctx.set(dut.initial[2], [0, 255, 0, 0])
        ctx.set(dut.go, 1)
        await ctx.tick()
        ctx.set(dut.go, 0)
        ctx.set(dut.signal[2], [0, 1, 0, 0])
        ctx.set(dut.take[1], [0, 0, 1, 0])
        await ctx.tick()
        assert ctx.get(dut.overflow) == 0
        ctx.set(dut.take[1], [0, 0, 0, 0])
        await ctx.tick()
        assert ctx.get(dut.overflow) == 1
        ctx.set(dut.signal[2], [0, 0, 0, 0])
        ctx.set(dut.go, 1)
        await ctx.tick()
        assert ctx.get(dut.overflow) == 0

    simulate(dut, bench)
