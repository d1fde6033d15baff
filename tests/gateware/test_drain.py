"""The conversion to small floats against the format's definition, and the queue's protocol."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.formats import BF16, FP24, AccumulatorFormat, FloatFormat, TileFormat
from fpgrad.formats.blockfloat import drain
from fpgrad.gateware.drain import CONVERTER_LATENCY, QUEUE_LATENCY, AccQueue, Converter

SIDE = 4


@pytest.mark.parametrize(
    "number", [FP24, BF16, FloatFormat(2, 1), FloatFormat(5, 10), FloatFormat(8, 23)]
)
@pytest.mark.parametrize(
    ("mantissa", "bits", "guard"), [(8, 32, 6), (8, 20, 0), (16, 48, 16), (2, 20, 3)]
)
def test_conversion(number, mantissa, bits, guard):
    rng = np.random.default_rng([number.width, mantissa, bits])
    tile, acc = TileFormat(SIDE, mantissa), AccumulatorFormat(bits, guard)
    unit = Converter(tile, number, acc)
    rows = 300
    limit = (1 << (bits - 1)) - 1
    # All magnitudes' lengths alike often, with long runs of equal bits, which is where ties are.
    values = rng.integers(0, limit + 1, (rows, SIDE)) >> rng.integers(0, bits, (rows, SIDE))
    values = np.where(
        rng.random(values.shape) < 0.4,
        (values >> 1 << 1) & -(1 << rng.integers(0, bits - 1, values.shape)),
        values,
    )
    values = np.where(rng.random(values.shape) < 0.05, limit, values)
    values *= rng.choice([-1, 1], values.shape)
    # The exponents at which this format's numbers begin and end, and some beyond.
    middle = 2 * number.bias + 2 * (mantissa - 2) + guard - bits // 2
    spread = rng.integers(-number.bias - 8, number.bias + 9, rows)
    exponents = np.clip(middle + spread, 0, 2 * number.max_exponent)
    before = rng.random((rows, SIDE)) < 0.1
    codes, over = drain(tile, number, acc, values, exponents[:, None])
    got = []

    async def bench(ctx):
        for r in range(rows + CONVERTER_LATENCY):
            if r < rows:
                ctx.set(unit.valid, 1)
                ctx.set(unit.exponent, int(exponents[r]))
                ctx.set(unit.negative, sum(int(v < 0) << j for j, v in enumerate(values[r])))
                ctx.set(unit.saturated, sum(int(f) << j for j, f in enumerate(before[r])))
                for j in range(SIDE):
                    ctx.set(unit.magnitude[j], abs(int(values[r, j])))
            else:
                ctx.set(unit.valid, 0)
            assert ctx.get(unit.out_valid) == (r >= CONVERTER_LATENCY)
            if ctx.get(unit.out_valid):
                got.append(
                    (
                        [ctx.get(unit.codes[j]) for j in range(SIDE)],
                        ctx.get(unit.out_saturated),
                    )
                )
            await ctx.tick()

    sim = Simulator(unit)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    flags = over | before
    for r in range(rows):
        bits_set = sum(int(f) << j for j, f in enumerate(flags[r]))
        assert got[r] == (codes[r].tolist(), bits_set), r


@pytest.mark.parametrize("source", [0.3, 1.0])
@pytest.mark.parametrize("sink", [0.3, 1.0])
@pytest.mark.parametrize("rows", [4, 5])
def test_queue(source, sink, rows):
    rng = np.random.default_rng(int(10 * source + 100 * sink))
    queue = AccQueue(width=12, side=SIDE, rows=rows)

    async def bench(ctx):
        kept, written_at, count, held = [], [], 0, None
        for cycle in range(300):
            taking = bool(rng.random() < sink)
            ctx.set(queue.acc.ready, taking)
            if ctx.get(queue.acc.valid):
                row = [ctx.get(queue.acc.codes[j]) for j in range(SIDE)]
                row.append(ctx.get(queue.acc.saturated))
                assert held is None or held == row
                assert row == kept[0]
                assert cycle >= written_at[0] + QUEUE_LATENCY
                held = row
                if taking:
                    kept.pop(0)
                    written_at.pop(0)
                    held = None
            else:
                assert not written_at or cycle < written_at[0] + QUEUE_LATENCY
            # The writer's count: a row makes room in the cycle after it was taken.
            writing = len(kept) < rows and rng.random() < source
            ctx.set(queue.write, bool(writing))
            if writing:
                row = [int(x) for x in rng.integers(1 << 12, size=SIDE)]
                row.append(int(rng.integers(1 << SIDE)))
                for j in range(SIDE):
                    ctx.set(queue.codes[j], row[j])
                ctx.set(queue.saturated, row[-1])
                kept.append(row)
                written_at.append(cycle)
                count += 1
            await ctx.tick()
        assert count > 50

    sim = Simulator(queue)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
