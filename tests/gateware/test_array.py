"""The multiplier array against NumPy: every product, with tiles swapped between rows."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.formats import TileFormat
from fpgrad.gateware.array import MultiplierArray, array_latency


@pytest.mark.parametrize(("side", "mantissa"), [(4, 2), (4, 8), (4, 16), (8, 8)])
def test_dot_products(side, mantissa):
    rng = np.random.default_rng([side, mantissa])
    tile = TileFormat(side, mantissa)
    array = MultiplierArray(tile)
    products = 4

    def operands():
        values = rng.integers(-tile.limit, tile.limit + 1, (side, side))
        extreme = rng.choice([-tile.limit, tile.limit], (side, side))
        return extreme if rng.random() < 0.3 else values

    tiles = [operands() for _ in range(products + 1)]
    rows = [operands() for _ in range(products)]
    got: dict[int, list[int]] = {}
    wanted: dict[int, list[int]] = {}

    async def bench(ctx):
        cycle = 0

        async def step():
            nonlocal cycle
            got[cycle] = [ctx.get(array.sums[j]) for j in range(side)]
            await ctx.tick()
            cycle += 1

        def load(row, values):
            ctx.set(array.shadow_en, 1)
            ctx.set(array.shadow_index, row)
            for j in range(side):
                ctx.set(array.shadow[j], int(values[j]))

        for r in range(side):
            load(r, tiles[0][r])
            await step()
        for p in range(products):
            for r in range(side):
                load(r, tiles[p + 1][r])
                ctx.set(array.swap, r == 0)
                ctx.set(array.row_en, 1)
                for i in range(side):
                    ctx.set(array.row[i], int(rows[p][r, i]))
                wanted[cycle + array_latency(side)] = (rows[p][r] @ tiles[p]).tolist()
                await step()
                # A gap: no row is offered, the shadow rests.
                if rng.random() < 0.3:
                    ctx.set(array.row_en, 0)
                    ctx.set(array.shadow_en, 0)
                    ctx.set(array.swap, 0)
                    await step()
        ctx.set(array.row_en, 0)
        for _ in range(array_latency(side) + 1):
            await step()

    sim = Simulator(array)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert {c: got[c] for c in wanted} == wanted
