"""Load and store against the reference, with and without stalls, at boundary lengths."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator
from tests.gateware.dram import Dram

from fpgrad.formats import TileFormat
from fpgrad.gateware.dma import Load as LoadUnit
from fpgrad.gateware.dma import Store as StoreUnit
from fpgrad.isa import instructions as isa
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import DramAddress
from fpgrad.isa.layout import values
from fpgrad.reference import dma
from fpgrad.reference.machine import Machine

ROWS = 512
BASES = [3, 40, 100, 7] + [0] * 12


def config(words=4):
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=4)),
        memory=MemoryConfig(
            inbox_rows=64,
            outbox_rows=64,
            dram_rows=ROWS,
            dram_words_per_cycle=words,
            dram_latency=9,
        ),
    )


def as_dict(instruction):
    return {
        f.name: as_dict(v)
        if dataclasses.is_dataclass(v := getattr(instruction, f.name))
        else int(v)
        for f in dataclasses.fields(instruction)
    }


def run(dut, background, instruction, step, on_tick):
    """Cycles from the one in which the instruction is taken to ``done``."""
    values(instruction)
    took = []

    async def bench(ctx):
        for n, row in enumerate(BASES):
            ctx.set(dut.bases[n], row)
        ctx.set(dut.instruction.payload, as_dict(instruction))
        ctx.set(dut.step, step)
        ctx.set(dut.instruction.valid, 1)
        assert ctx.get(dut.instruction.ready)
        await ctx.tick()
        ctx.set(dut.instruction.valid, 0)
        ctx.set(dut.step, 0)
        for now in range(1, 6000):
            on_tick(ctx)
            if ctx.get(dut.done):
                took.append(now)
                break
            await ctx.tick()
        else:
            pytest.fail("never done")
        await ctx.tick()
        assert ctx.get(dut.instruction.ready)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for process in background:
        sim.add_testbench(process, background=True)
    sim.add_testbench(bench)
    sim.run()
    return took[0]


LOADS = {
    "one row": isa.Load(source=DramAddress(1, 5, 2)),
    "rows": isa.Load(rows=7, source=DramAddress(2, 1, 0), inbox=3),
    "strided": isa.Load(count=5, rows=2, stride=9, source=DramAddress(0, 2, 4), inbox=10),
    "many groups": isa.Load(count=30, rows=1, stride=3, source=DramAddress(3, 0, 1), inbox=1),
    "gather 1": isa.Load(
        count=1, rows=3, stride=3, gather=1, source=DramAddress(2), index=DramAddress(1, 0, 1)
    ),
    "gather T": isa.Load(
        count=4, rows=1, stride=1, gather=1, source=DramAddress(2), index=DramAddress(1, 0, 1)
    ),
    "gather T+1": isa.Load(
        count=5, rows=2, stride=2, gather=1, source=DramAddress(2), index=DramAddress(1, 0, 1)
    ),
    "gather 2T": isa.Load(
        count=8, rows=2, stride=2, gather=1, source=DramAddress(2), index=DramAddress(1, 0, 1)
    ),
    "gather many": isa.Load(
        count=31, rows=2, stride=4, gather=1, source=DramAddress(2), index=DramAddress(1, 0, 2)
    ),
}


def load_bench(instruction, words=4, stall=0.0, step=3):
    c = config(words)
    machine = Machine(c)
    random = np.random.default_rng(2)
    dram = machine.dram_rows(0, ROWS)
    dram[:] = random.integers(0, 1 << 32, dram.shape, dtype=np.uint32)
    dram[40:60] = random.integers(0, 80, (20, 4))
    dut = LoadUnit(c)
    inbox = np.zeros_like(machine.inbox)
    model = Dram(dram, words, c.memory.dram_latency, stall)

    def on_tick(ctx):
        assert not ctx.get(dut.error)
        if ctx.get(dut.inbox_write):
            inbox[ctx.get(dut.inbox_row)] = [ctx.get(dut.inbox_data[k]) for k in range(4)]

    async def serve(ctx):
        await model.read(ctx, dut.request, dut.beats)

    took = run(dut, [serve], instruction, step, on_tick)
    dma.load(machine, instruction, BASES, step)
    np.testing.assert_array_equal(inbox, machine.inbox)
    return took


@pytest.mark.parametrize("stall", [0, 0.6])
@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("name", LOADS)
def test_load(name, words, stall):
    load_bench(LOADS[name], words, stall)


def test_load_timing():
    """One beat a cycle after the first latency, for any groups; two latencies when gathering."""
    long = isa.Load(
        count=15, rows=4, stride=4, gather=1, source=DramAddress(2), index=DramAddress(1)
    )
    latency = config().memory.dram_latency
    one = load_bench(LOADS["one row"])
    assert load_bench(LOADS["rows"]) == one + 6
    assert load_bench(LOADS["strided"]) == one + 9
    assert load_bench(LOADS["many groups"]) == one + 29
    gather = load_bench(LOADS["gather 1"])
    assert gather - one == latency + 7
    assert load_bench(long) == gather - 3 + 60 + 2


STORES = {
    "one row": isa.Store(target=DramAddress(1, 5, 2)),
    "rows": isa.Store(rows=9, outbox=3, target=DramAddress(2, 1, 7)),
    "all": isa.Store(rows=64, target=DramAddress(0)),
}


def store_bench(instruction, words=4, stall=0.0, step=2):
    c = config(words)
    machine = Machine(c)
    random = np.random.default_rng(2)
    machine.outbox[:] = random.integers(0, 1 << 24, machine.outbox.shape)
    dut = StoreUnit(c)
    got = np.zeros((ROWS, 4), np.uint32)
    model = Dram(got, words, 0, stall)

    async def outbox(ctx):
        pipe = [0, 0]
        while True:
            read, row = ctx.get(dut.outbox_read), ctx.get(dut.outbox_row)
            await ctx.tick()
            pipe = [row if read else 0, pipe[0]]
            ctx.set(dut.outbox_data, [int(x) for x in machine.outbox[pipe[1]]])

    async def serve(ctx):
        await model.write(ctx, dut.request, dut.beats)

    def on_tick(ctx):
        assert not ctx.get(dut.error)

    took = run(dut, [outbox, serve], instruction, step, on_tick)
    dma.store(machine, instruction, BASES, step)
    np.testing.assert_array_equal(got, machine.dram_rows(0, ROWS))
    return took


@pytest.mark.parametrize("stall", [0, 0.6])
@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("name", STORES)
def test_store(name, words, stall):
    store_bench(STORES[name], words, stall)


def test_store_timing():
    one = store_bench(STORES["one row"])
    assert store_bench(STORES["rows"]) == one + 8
    assert store_bench(STORES["all"]) == one + 63


@pytest.mark.parametrize(
    ("instruction", "unit"),
    [
        (isa.Load(rows=2, source=DramAddress(0, ROWS - 4)), LoadUnit),
        (isa.Load(count=2, stride=(1 << 20) - 1, source=DramAddress(0)), LoadUnit),
        (isa.Store(rows=2, target=DramAddress(0, ROWS - 4)), StoreUnit),
    ],
)
def test_addresses_outside_external_memory_are_reported(instruction, unit):
    c = config()
    dut = unit(c)
    model = Dram(np.zeros((1 << 21, 4), np.uint32), 4, 5)
    seen = []

    async def serve(ctx):
        await (model.read if unit is LoadUnit else model.write)(ctx, dut.request, dut.beats)

    run(dut, [serve], instruction, 0, lambda ctx: seen.append(ctx.get(dut.error)))
    assert sum(seen) == 1
