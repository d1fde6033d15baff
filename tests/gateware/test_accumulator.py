"""The block accumulators against the format's definition."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.formats import AccumulatorFormat, TileFormat
from fpgrad.formats.blockfloat import accumulate
from fpgrad.gateware.accumulator import (
    ACCUMULATOR_LATENCY,
    REUSE,
    AccumulatorArray,
    largest_shift,
)

SIDE = 4


@pytest.mark.parametrize(
    ("mantissa", "bits", "guard"), [(8, 32, 6), (8, 20, 0), (8, 20, 6), (16, 20, 16), (16, 48, 3)]
)
def test_sums(mantissa, bits, guard):
    rng = np.random.default_rng([mantissa, bits, guard])
    tile, acc = TileFormat(SIDE, mantissa), AccumulatorFormat(bits, guard)
    unit = AccumulatorArray(tile, acc)
    most = SIDE * tile.limit**2
    wanted: dict[int, tuple[list[int], list[int], int]] = {}
    got: dict[int, tuple[list[int], list[int], int]] = {}
    clamped = 0

    async def bench(ctx):
        nonlocal clamped
        cycle = 0

        async def step():
            nonlocal cycle
            if ctx.get(unit.out_valid):
                got[cycle] = (
                    [ctx.get(unit.magnitude[j]) for j in range(SIDE)],
                    [ctx.get(unit.negative[j]) for j in range(SIDE)],
                    ctx.get(unit.saturated),
                )
            await ctx.tick()
            cycle += 1

        for _ in range(30):
            k = int(rng.integers(1, 6))
            # The fewest rows that keep REUSE cycles between uses of one.
            rows = int(rng.integers(REUSE, SIDE + 1))
            products = rng.integers(-most, most + 1, (k, rows, SIDE))
            products[rng.random(products.shape) < 0.2] = -most
            exponents = rng.integers(1, 12, k) * int(rng.choice([0, 1, 8]))
            exponents[rng.random(k) < 0.2] = 0
            total, top, saturated = accumulate(acc, products, exponents)
            clamped += int(saturated.sum())
            for p in range(k):
                for r in range(rows):
                    ctx.set(unit.valid, 1)
                    ctx.set(unit.row, r)
                    ctx.set(unit.first, p == 0)
                    ctx.set(unit.last, p == k - 1)
                    ctx.set(unit.zero, int(exponents[p]) == 0)
                    shift = min(int(top - exponents[p]), largest_shift(tile, acc))
                    ctx.set(unit.shift, shift)
                    for j in range(SIDE):
                        ctx.set(unit.sums[j], int(products[p, r, j]))
                    if p == k - 1:
                        flags = sum(int(f) << j for j, f in enumerate(saturated[r]))
                        magnitude = np.abs(total[r]).tolist()
                        negative = (total[r] < 0).astype(int).tolist()
                        wanted[cycle + ACCUMULATOR_LATENCY] = (magnitude, negative, flags)
                    await step()
                    if rng.random() < 0.1:
                        ctx.set(unit.valid, 0)
                        await step()
        ctx.set(unit.valid, 0)
        for _ in range(ACCUMULATOR_LATENCY + 1):
            await step()

    sim = Simulator(unit)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert got == wanted
    if bits == 20 and guard:
        assert clamped
