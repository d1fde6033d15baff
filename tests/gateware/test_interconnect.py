"""Cores at one AXI4 port: what each reads and writes, under stalls everywhere; turns; and the rules of the port."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Module, unsigned
from amaranth.lib.wiring import Out
from amaranth.sim import Simulator
from tests.gateware.axi_memory import AxiMemory

from fpgrad.formats import TileFormat
from fpgrad.gateware.axi import AxiPort, ports
from fpgrad.gateware.interconnect import Interconnect, RoundRobin
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig

SIDE = 4
#: Rows of external memory that a core reads, and then as many that it writes.
ROWS = 75


def config(cores: int, words: int) -> MachineConfig:
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=SIDE)),
        memory=MemoryConfig(dram_rows=1024, dram_words_per_cycle=words),
        cores=cores,
    )


def chip(c: MachineConfig) -> tuple[Module, Interconnect, list[AxiPort]]:
    m = Module()
    m.submodules.dut = dut = Interconnect(c)
    cores = [AxiPort(c) for _ in range(c.cores)]
    for n, core in enumerate(cores):
        m.submodules[f"core{n}"] = core
        for name, (flow, _) in ports(c).items():
            here, there = getattr(core, f"m_axi_{name}"), getattr(dut.axi[n], name)
            m.d.comb += there.eq(here) if flow is Out else here.eq(there)
    return m, dut, cores


@pytest.mark.parametrize(("cores", "words"), [(2, 4), (3, 1)])
@pytest.mark.parametrize(("stall", "hold"), [(0, 0), (0.4, 0), (0, 0.5), (0.3, 0.3)])
def test_every_core_reads_and_writes_its_rows(cores, words, stall, hold):
    c = config(cores, words)
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 1 << 32, (2 * ROWS * cores, SIDE), dtype=np.uint32)
    m, dut, axis = chip(c)
    memory = AxiMemory(rows.reshape(-1), words, stall, ids=2 * cores)
    before, wanted, finished = rows.copy(), rows.copy(), [0] * cores
    sim = Simulator(m)
    sim.add_clock(1e-6)

    async def serve(ctx):
        await memory.serve(ctx, dut)

    sim.add_testbench(serve, background=True)
    for core, axi in enumerate(axis):
        first = 2 * ROWS * core
        starts = range(0, ROWS, 25)
        sizes = rng.integers(1, 25, len(starts))
        asks = [
            (first + at, int(n), k % 2) for k, (at, n) in enumerate(zip(starts, sizes, strict=True))
        ]
        puts = [
            (first + ROWS + at, int(n), k % 3 != 1)
            for k, (at, n) in enumerate(zip(starts, sizes, strict=True))
        ]
        puts[-1] = (*puts[-1][:2], True)
        values = [rng.integers(0, 1 << 32, (n, SIDE), dtype=np.uint32) for _, n, _ in puts]
        for (at, n, _), value in zip(puts, values, strict=True):
            wanted[at : at + n] = value

        def benches(core=core, axi=axi, asks=asks, puts=puts, values=values):
            random = np.random.default_rng(core)

            async def request(ctx, stream, payloads):
                for payload in payloads:
                    while random.random() < hold:
                        await ctx.tick()
                    ctx.set(stream.payload, payload)
                    ctx.set(stream.valid, 1)
                    await ctx.tick().until(stream.ready)
                    ctx.set(stream.valid, 0)
                finished[core] += 1

            async def ask(ctx):
                payloads = [{"row": r, "rows": n, "index": i} for r, n, i in asks]
                await request(ctx, axi.read_request, payloads)

            async def put(ctx):
                payloads = [{"row": r, "rows": n, "last": i} for r, n, i in puts]
                await request(ctx, axi.write_request, payloads)

            async def give(ctx):
                beats = np.concatenate(values).reshape(-1, words).tolist()
                await request(ctx, axi.write_beats, beats)

            async def take(ctx):
                left = [
                    [
                        b
                        for r, n, i in asks
                        if i == kind
                        for b in before[r : r + n].reshape(-1, words).tolist()
                    ]
                    for kind in (0, 1)
                ]
                while left[0] or left[1]:
                    ready = bool(random.random() >= hold)
                    ctx.set(axi.read_beats.ready, ready)
                    if ready and ctx.get(axi.read_beats.valid):
                        beat = axi.read_beats.payload
                        got = [ctx.get(word) for word in beat.words]
                        assert got == left[ctx.get(beat.index)].pop(0)
                    await ctx.tick()
                finished[core] += 1

            async def answered(ctx):
                for _ in range(sum(last for _, _, last in puts)):
                    await ctx.tick().until(axi.written)
                finished[core] += 1

            return ask, put, give, take, answered

        for bench in benches():
            sim.add_testbench(bench, background=True)

    async def watch(ctx):
        for _ in range(30000):
            if finished == [5] * cores:
                return
            assert not any(ctx.get(axi.error) for axi in axis)
            await ctx.tick()
        pytest.fail("never done")

    sim.add_testbench(watch)
    sim.run()
    np.testing.assert_array_equal(rows, wanted)


@pytest.mark.parametrize("count", [2, 3])
def test_turns(count):
    """All always have something: one after the other. One alone has every cycle."""
    dut, taken = RoundRobin(unsigned(8), count), []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for source in dut.i:
            ctx.set(source.valid, 1)
        for n in range(20):
            if n == 12:
                for source in dut.i[:-1]:
                    ctx.set(source.valid, 0)
            if ctx.get(dut.o.valid):
                taken.append(ctx.get(dut.o.payload.source))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    turns = [(n + 1) % count for n in range(12)]
    assert taken == turns + [count - 1] * (19 - 12)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_turns_begin_anew(before):
    """However many there were."""
    dut, taken = RoundRobin(unsigned(8), 3), []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        for turns in (before, 6):
            for source in dut.i:
                ctx.set(source.valid, 1)
            taken.clear()
            for n in range(turns + 1):
                if n == turns:
                    for source in dut.i:
                        ctx.set(source.valid, 0)
                if ctx.get(dut.o.valid):
                    taken.append(ctx.get(dut.o.payload.source))
                await ctx.tick()
            ctx.set(dut.clear, 1)
            await ctx.tick()
            ctx.set(dut.clear, 0)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert taken == [1, 2, 0, 1, 2, 0]
