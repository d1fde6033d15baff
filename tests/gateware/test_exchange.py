"""The exchange against the reference: random rows, streams that stall, and cores that run apart."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator
from tests.gateware.pipeline import pairs

from fpgrad.formats import BF16, FP24, FloatFormat, TileFormat
from fpgrad.gateware.exchange import LINK_LATENCY, Exchange
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.reference import exchange

ROWS = 40


def config(cores: int, number: FloatFormat = FP24) -> MachineConfig:
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=4)),
        vector=VectorConfig(number=number),
        memory=MemoryConfig(dram_words_per_cycle=4),
        cores=cores,
    )


def bench(c: MachineConfig, sent: np.ndarray, hold: np.ndarray, stall: np.ndarray, seed: int = 0):
    """Cycles in which each core took its sums, after they and the counter were compared.

    Args:
        sent: (cores, rows, T) codes.
        hold, stall: for each core the probability that it does not send, or take, in a cycle.
    """
    reference = exchange.Exchange(c.vector.number, c.cores)
    for core, rows in enumerate(sent):
        reference.send(core, rows)
    wanted = [row.tolist() for row in reference.sums]
    dut, taken = Exchange(c), [[] for _ in range(c.cores)]

    def send(core):
        rng = np.random.default_rng(seed + core)
        port = dut.rows[core]

        async def process(ctx):
            for row in sent[core]:
                while rng.random() < hold[core]:
                    await ctx.tick()
                ctx.set(port.payload, row.tolist())
                ctx.set(port.valid, 1)
                await ctx.tick().until(port.ready)
                ctx.set(port.valid, 0)

        return process

    def take(core):
        rng = np.random.default_rng(seed + 100 + core)
        port = dut.sums[core]

        async def process(ctx):
            held = None
            for now in range(40 * ROWS):
                if len(taken[core]) == len(wanted):
                    break
                ready = bool(rng.random() >= stall[core])
                ctx.set(port.ready, ready)
                row = [ctx.get(lane) for lane in port.payload] if ctx.get(port.valid) else None
                assert held in (None, row), "changed before it was taken"
                held = None if ready else row
                if ready and row is not None:
                    assert row == wanted[len(taken[core])]
                    taken[core].append(now)
                await ctx.tick()
            ctx.set(port.ready, 0)
            assert len(taken[core]) == len(wanted)

        return process

    async def end(ctx):
        while min(map(len, taken)) < len(wanted):
            await ctx.tick()
        await ctx.tick().repeat(3)
        assert not ctx.get(dut.left)
        assert ctx.get(dut.saturated) == reference.saturated
        ctx.set(dut.clear, 1)
        await ctx.tick()
        assert ctx.get(dut.saturated) == 0

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for core in range(c.cores):
        sim.add_testbench(send(core))
        sim.add_testbench(take(core))
    sim.add_testbench(end)
    sim.run()
    return taken


def rows(c: MachineConfig, count: int, seed: int = 1) -> np.ndarray:
    """Numbers of every size, many that cancel or saturate, and codes that no operation makes."""
    rng = np.random.default_rng(seed)
    a, b = pairs(c.vector.number, rng, 4 * count)
    pool = np.stack([a, b])[:, -4 * count :].reshape(2, count, 4)
    top = c.vector.number.max_code - rng.integers(0, 2, (c.cores, count, 4))
    odd = rng.integers(0, 1 << c.vector.number.mantissa_bits, top.shape)
    others = np.where(rng.random(top.shape) < 0.7, top, odd)
    sent = np.resize(pool, (c.cores, count, 4))
    return np.where(rng.random(sent.shape) < 0.15, others, sent)


@pytest.mark.parametrize(("cores", "number"), [(1, FP24), (2, FP24), (2, BF16), (5, FP24)])
@pytest.mark.parametrize(("hold", "stall"), [(0.5, 0), (0, 0.5), (0.4, 0.4)])
def test_sums(cores, number, hold, stall):
    c = config(cores, number)
    bench(c, rows(c, ROWS), np.full(cores, hold), np.full(cores, stall))


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_one_slow_core(slow):
    c = config(3)
    uneven = np.where(np.arange(3) == slow, 0.8, 0)
    bench(c, rows(c, ROWS), uneven, np.zeros(3))
    bench(c, rows(c, ROWS), np.zeros(3), uneven)


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_a_row_a_cycle(cores):
    c, none = config(cores), np.zeros(cores)
    taken = bench(c, rows(c, ROWS), none, none)
    first = 1 + LINK_LATENCY * (cores - 1)
    assert taken == [list(range(first, first + ROWS))] * cores


def test_what_is_left_is_seen():
    dut = Exchange(config(2))

    async def send(ctx):
        assert not ctx.get(dut.left)
        ctx.set(dut.rows[1].valid, 1)
        await ctx.tick()
        ctx.set(dut.rows[1].valid, 0)
        await ctx.tick().repeat(10)
        assert ctx.get(dut.left)
        ctx.set(dut.rows[0].valid, 1)
        await ctx.tick()
        ctx.set(dut.rows[0].valid, 0)
        await ctx.tick().repeat(10)
        assert ctx.get(dut.left)
        for core in (0, 1):
            assert ctx.get(dut.sums[core].valid)
            ctx.set(dut.sums[core].ready, 1)
            await ctx.tick()
            ctx.set(dut.sums[core].ready, 0)
            assert ctx.get(dut.left) == (core == 0)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(send)
    sim.run()
