"""Loop nests and their addresses against NumPy, restarted in the middle too."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from fpgrad.gateware.address import AddressGenerator, LoopNest

WIDTH = 12


@pytest.mark.parametrize("levels", [2, 3, 4, 6])
def test_a_nest_and_its_addresses(levels):
    rng = np.random.default_rng(levels)
    m = Module()
    m.submodules.nest = nest = LoopNest(levels=levels)
    m.submodules.walk = walk = AddressGenerator(width=WIDTH, levels=levels)
    m.d.comb += [walk.load.eq(nest.load), walk.step.eq(nest.step), walk.level.eq(nest.level)]

    async def bench(ctx):
        for run in range(6):
            # The innermost loop last, as NumPy counts.
            counts = rng.choice([1, 1, 2, 3, 5] if levels < 5 else [1, 2, 3], levels)
            strides, base = rng.integers(-9, 10, levels), int(rng.integers(1 << WIDTH))
            single = run == 5
            for n in range(levels):
                ctx.set(nest.counts[n], int(counts[-1 - n]))
                ctx.set(walk.strides[n], int(strides[-1 - n]))
            ctx.set(walk.base, base)
            ctx.set(nest.single, single)
            ctx.set(nest.load, 1)
            await ctx.tick()
            ctx.set(nest.load, 0)
            trips = np.ones_like(counts) if single else counts
            numbers = np.indices(trips).reshape(levels, -1).T
            for number in numbers[: 5 if run == 4 else None]:
                # With a step in every cycle, or not.
                if run % 2 and rng.random() < 0.5:
                    await ctx.tick()
                last = [int(i == n - 1) for i, n in zip(number, trips, strict=True)][::-1]
                assert ctx.get(walk.address) == (base + int(number @ strides)) % (1 << WIDTH)
                assert ctx.get(nest.last) == sum(bit << n for n, bit in enumerate(last))
                assert ctx.get(nest.end) == all(last)
                assert ctx.get(nest.i0) == number[-1]
                assert ctx.get(nest.tail) == (trips[-1] - number[-1] <= 4)
                ctx.set(nest.step, 1)
                await ctx.tick()
                ctx.set(nest.step, 0)

    simulator = Simulator(m)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()


def test_the_number_of_the_innermost_iteration_stays_high():
    nest = LoopNest(levels=2)

    async def bench(ctx):
        ctx.set(nest.counts[0], 150)
        ctx.set(nest.counts[1], 1)
        ctx.set(nest.load, 1)
        await ctx.tick()
        ctx.set(nest.load, 0)
        ctx.set(nest.step, 1)
        for i0 in range(150):
            number = ctx.get(nest.i0)
            assert number == i0 if i0 < 64 else number >= 64
            assert number % 4 == i0 % 4
            assert ctx.get(nest.tail) == (i0 >= 146)
            assert ctx.get(nest.end) == (i0 == 149)
            await ctx.tick()

    simulator = Simulator(nest)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
