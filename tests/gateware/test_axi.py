"""The AXI4 port: every burst rule under stalls in all directions, and what reads and writes do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator
from tests.gateware.axi_memory import AxiMemory

from fpgrad.formats import TileFormat
from fpgrad.gateware.axi import FETCH_ID, AxiPort
from fpgrad.isa.config import ControlConfig, MachineConfig, MatrixConfig, MemoryConfig

ROWS = 800


def config(side, words, cores=1, **queues):
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=side)),
        memory=MemoryConfig(dram_rows=ROWS, dram_words_per_cycle=words, **queues),
        cores=cores,
    )


def streamed(side, words):
    control = ControlConfig(8, 8, 8, 8, program_rows=64)
    return dataclasses.replace(config(side, words), control=control)


def simulate(dut, memory, *benches):
    async def serve(ctx):
        await memory.serve(ctx, dut)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    # First: what it says is seen by the others in the same cycle.
    sim.add_testbench(serve, background=True)
    for bench in benches:
        sim.add_testbench(bench)
    sim.run()


def boundary(c):
    """Rows between two boundaries of 4 KiB, or 256 beats."""
    return c.memory.page_beats * c.memory.dram_words_per_cycle // c.side


def requests(c):
    """Of boundary lengths and places; (row, rows)."""
    page = boundary(c)
    out = [(0, 1), (1, 2), (page - 1, 1), (page - 1, 2), (page, page), (page - 3, page + 5)]
    return [*out, (5, 2 * page), (3, 1), (4, 1), (2 * page, 1)]


@pytest.mark.parametrize(
    ("side", "words", "depth"), [(4, 1, 128), (4, 4, 128), (32, 32, 128), (4, 2, 4)]
)
@pytest.mark.parametrize("stall", [0, 0.5])
@pytest.mark.parametrize("hold", [0, 0.5])
def test_reads(side, words, depth, stall, hold):
    c = config(side, words, read_queue=depth)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 1 << 32, (ROWS, side), dtype=np.uint32)
    dut, memory = AxiPort(c), AxiMemory(rows.reshape(-1), words, stall)
    wanted = [[], []]
    todo = [(row, count, int(rng.integers(2))) for row, count in requests(c)]
    for row, count, index in todo:
        wanted[index] += rows[row : row + count].reshape(-1, words).tolist()
    cycles = []

    async def ask(ctx):
        for row, count, index in todo:
            ctx.set(dut.read_request.payload, {"row": row, "rows": count, "index": index})
            ctx.set(dut.read_request.valid, 1)
            await ctx.tick().until(dut.read_request.ready)
            ctx.set(dut.read_request.valid, 0)
            while rng.random() < hold:
                await ctx.tick()

    async def take(ctx):
        got = [[], []]
        total = sum(len(beats) for beats in wanted)
        for now in range(20000):
            ready = rng.random() >= hold
            ctx.set(dut.read_beats.ready, ready)
            if ready and ctx.get(dut.read_beats.valid):
                cycles.append(now)
                index = ctx.get(dut.read_beats.payload.index)
                got[index].append([ctx.get(w) for w in dut.read_beats.payload.words])
            if sum(len(beats) for beats in got) == total:
                break
            await ctx.tick()
        assert got == wanted

    simulate(dut, memory, ask, take)
    if not stall and not hold:
        # A request in cycle 0, on AR in 2, beats from 3 on the stream in 4: one a cycle to the end.
        assert cycles == list(range(4, 4 + len(cycles)))


@pytest.mark.parametrize(("stall", "hold"), [(0, 0), (0.5, 0), (0, 0.5), (0.4, 0.4)])
def test_a_streamed_program_is_read_beside_requests(stall, hold):
    """Each kind of beat in the order of its addresses, the program's whether or not others are taken."""
    side, words = 4, 2
    c = streamed(side, words)
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 1 << 32, (ROWS, side), dtype=np.uint32)
    flat = rows.reshape(-1, words).tolist()
    dut, memory = AxiPort(c), AxiMemory(rows.reshape(-1), words, stall, ids=4)
    todo = [(row, count, int(rng.integers(2))) for row, count in requests(c)]
    bursts = [(64 * n + 8 * int(rng.integers(4)), int(rng.integers(1, 33))) for n in range(12)]
    wanted = {kind: [] for kind in (0, 1, FETCH_ID)}
    for row, count, index in todo:
        wanted[index] += flat[row * side // words :][: count * side // words]
    for beat, beats in bursts:
        wanted[FETCH_ID] += flat[beat:][:beats]
    got = {kind: [] for kind in wanted}

    async def ask(ctx):
        for row, count, index in todo:
            ctx.set(dut.read_request.payload, {"row": row, "rows": count, "index": index})
            ctx.set(dut.read_request.valid, 1)
            await ctx.tick().until(dut.read_request.ready)
            ctx.set(dut.read_request.valid, 0)
            while rng.random() < hold:
                await ctx.tick()

    async def fetch(ctx):
        for beat, beats in bursts:
            fields = {"beat": beat, "more": beats - 1, "flag": FETCH_ID, "last": 1}
            ctx.set(dut.fetch_burst.payload, fields)
            ctx.set(dut.fetch_burst.valid, 1)
            await ctx.tick().until(dut.fetch_burst.ready)
            ctx.set(dut.fetch_burst.valid, 0)
            while rng.random() < 0.8:
                await ctx.tick()

    async def take(ctx):
        for _ in range(20000):
            ready = rng.random() >= hold
            ctx.set(dut.read_beats.ready, ready)
            if ready and ctx.get(dut.read_beats.valid):
                beat = dut.read_beats.payload
                got[ctx.get(beat.index)].append([ctx.get(word) for word in beat.words])
            if ctx.get(dut.fetched):
                got[FETCH_ID].append([ctx.get(word) for word in dut.fetched_beat])
            assert not ctx.get(dut.error)
            if all(len(got[kind]) == len(wanted[kind]) for kind in wanted):
                return
            await ctx.tick()

    simulate(dut, memory, ask, fetch, take)
    assert got == wanted


def test_fetched_bursts_go_before_those_of_a_request():
    """A request of three bursts, and one to fetch when the first has left: it is the second."""
    c = streamed(4, 4)
    dut, memory = AxiPort(c), AxiMemory(np.zeros(4 * ROWS, np.uint32), 4, ids=4)
    page = c.read_burst

    async def bench(ctx):
        ctx.set(dut.read_beats.ready, 1)
        ctx.set(dut.read_request.payload, {"row": 0, "rows": 2 * page + 5, "index": 0})
        ctx.set(dut.read_request.valid, 1)
        await ctx.tick()
        ctx.set(dut.read_request.valid, 0)
        await ctx.tick()
        fields = {"beat": 16, "more": 7, "flag": FETCH_ID, "last": 1}
        ctx.set(dut.fetch_burst.payload, fields)
        ctx.set(dut.fetch_burst.valid, 1)
        await ctx.tick().until(dut.fetch_burst.ready)
        ctx.set(dut.fetch_burst.valid, 0)
        await ctx.tick().repeat(10)

    simulate(dut, memory, bench)
    assert memory.bursts["ar"] == [(0, page), (16, 8), (page, page), (2 * page, 5)]


@pytest.mark.parametrize("depth", [4, 16])
def test_no_more_is_asked_for_than_there_is_room_for(depth):
    """Nobody takes beats: as many come as can wait. Each burst's worth of them that is taken lets another one go."""
    c = config(4, 4, read_queue=depth)
    dut, memory = AxiPort(c), AxiMemory(np.arange(4 * ROWS, dtype=np.uint32), 4)
    taken = []

    async def bench(ctx):
        ctx.set(dut.read_request.payload, {"row": 0, "rows": 40, "index": 0})
        ctx.set(dut.read_request.valid, 1)
        await ctx.tick()
        ctx.set(dut.read_request.valid, 0)
        for n in range(41 - depth):
            await ctx.tick().repeat(20)
            assert ctx.get(dut.m_axi_rready)
            assert sum(beats for _, beats in memory.bursts["ar"]) == (
                depth + n // c.read_burst * c.read_burst
            )
            assert ctx.get(dut.read_beats.valid)
            taken.append(ctx.get(dut.read_beats.payload.words[0]))
            ctx.set(dut.read_beats.ready, 1)
            await ctx.tick()
            ctx.set(dut.read_beats.ready, 0)

    simulate(dut, memory, bench)
    assert taken == list(range(0, 4 * (41 - depth), 4))


@pytest.mark.parametrize(
    ("side", "words", "cores", "depth"),
    [(4, 1, 1, 2), (4, 4, 1, 2), (32, 32, 1, 2), (4, 4, 2, 2), (4, 2, 2, 64)],
)
@pytest.mark.parametrize("stall", [0, 0.5])
@pytest.mark.parametrize("hold", [0, 0.5])
def test_writes(side, words, cores, depth, stall, hold):
    c = config(side, words, cores, write_queue=depth)
    rng = np.random.default_rng(1)
    wanted = np.zeros((ROWS, side), np.uint32)
    dut, memory = AxiPort(c), AxiMemory(np.zeros_like(wanted).reshape(-1), words, stall)
    todo = [(row, count, n % 3 != 1) for n, (row, count) in enumerate(requests(c))]
    beats, bursts = [], []
    for row, count, _ in todo:
        wanted[row : row + count] = rng.integers(0, 1 << 32, (count, side), dtype=np.uint32)
        beats += wanted[row : row + count].reshape(-1, words).tolist()
        first, last = (n * side // words // c.write_burst for n in (row, row + count))
        last -= (row + count) * side // words % c.write_burst == 0
        bursts.append(last - first + 1 + sum(bursts[-1:]))
    ends = [n for n, (_, _, last) in zip(bursts, todo, strict=True) if last]
    cycles, given = [], []

    async def ask(ctx):
        for row, count, last in todo:
            ctx.set(dut.write_request.payload, {"row": row, "rows": count, "last": last})
            ctx.set(dut.write_request.valid, 1)
            await ctx.tick().until(dut.write_request.ready)
            ctx.set(dut.write_request.valid, 0)
            while rng.random() < hold:
                await ctx.tick()

    async def give(ctx):
        for beat in beats:
            ctx.set(dut.write_beats.payload, beat)
            ctx.set(dut.write_beats.valid, 1)
            await ctx.tick().until(dut.write_beats.ready)
            given.append(beat)
            ctx.set(dut.write_beats.valid, 0)
            while rng.random() < hold:
                await ctx.tick()

    async def watch(ctx):
        seen = 0
        for now in range(20000):
            if ctx.get(dut.written):
                cycles.append(now)
                # Not before the answer to the burst that ends the request.
                assert memory.answered == ends[seen]
                seen += 1
            if seen == len(ends):
                break
            await ctx.tick()
            # Of a core among others all beats of a burst are there when it goes.
            asked = sum(beats for _, beats in memory.bursts["aw"])
            assert cores == 1 or asked <= len(given)
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(dut.written)

    simulate(dut, memory, ask, give, watch)
    assert len(cycles) == len(ends)
    assert len(memory.bursts["aw"]) == memory.answered == bursts[-1]
    np.testing.assert_array_equal(memory.words.reshape(-1, side), wanted)
    if not stall and not hold and (cores == 1 or depth == 64):
        # A request in cycle 0, its beats taken from 2 on, on W in 3, on B one after the last, 1.
        # With several cores beats are taken from 0 on, and leave when a burst is complete.
        wanted_cycles = 3 + len(beats) - 1 + 2
        assert cycles[-1] == wanted_cycles if cores == 1 else cycles[-1] <= wanted_cycles + depth


@pytest.mark.parametrize(("channel", "answer"), [("r", 2), ("r", 3), ("b", 2), ("b", 3)])
def test_errors_of_memory_are_reported(channel, answer):
    dut = AxiPort(config(4, 4))

    async def bench(ctx):
        await ctx.tick().repeat(2)
        ctx.set(getattr(dut, f"m_axi_{channel}resp"), answer)
        assert not ctx.get(dut.error)
        ctx.set(getattr(dut, f"m_axi_{channel}valid"), 1)
        await ctx.tick()
        ctx.set(getattr(dut, f"m_axi_{channel}valid"), 0)
        assert ctx.get(dut.error)
        await ctx.tick()
        assert not ctx.get(dut.error)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
