"""Load and store against the reference, with and without stalls, at boundary lengths."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator
from tests.gateware.dram import Dram

from fpgrad.formats import BF16, FP24, FloatFormat, TileFormat, smallfloat
from fpgrad.gateware.load import Load as LoadUnit
from fpgrad.gateware.smallfloat import from_byte
from fpgrad.gateware.store import Store as StoreUnit
from fpgrad.isa import instructions as isa
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import DramAddress, Transfer
from fpgrad.isa.layout import values
from fpgrad.reference import ReferenceExecutor, dma

ROWS = 512
BASES = [3, 40, 100, 7] + [0] * 12
INDEX_ROWS = slice(40, 60)
LATENCY = 9


def config(words=4, side=4, **memory):
    memory = {"bytes": True, "tile_dma": True, "mask_rows": 128, **memory}
    return MachineConfig(
        matrix=MatrixConfig(tile=TileFormat(side=side)),
        memory=MemoryConfig(
            inbox_rows=64,
            outbox_rows=64,
            tiles=48,
            dram_rows=ROWS,
            dram_words_per_cycle=words,
            dram_latency=LATENCY,
            **memory,
        ),
    )


def as_dict(instruction):
    return {
        f.name: as_dict(v)
        if dataclasses.is_dataclass(v := getattr(instruction, f.name))
        else int(v)
        for f in dataclasses.fields(instruction)
    }


def run(dut, background, instructions, step, on_tick):
    """Cycles from the one in which the first instruction is taken to each ``done``."""
    dones = []

    async def issue(ctx):
        for n, row in enumerate(BASES):
            ctx.set(dut.bases[n], row)
        for instruction in instructions:
            values(instruction)
            ctx.set(dut.instruction.payload, as_dict(instruction))
            ctx.set(dut.step, step)
            ctx.set(dut.instruction.valid, 1)
            await ctx.tick().until(dut.instruction.ready)
        ctx.set(dut.instruction.valid, 0)
        ctx.set(dut.step, 0)

    async def watch(ctx):
        for now in range(6000):
            on_tick(ctx)
            if ctx.get(dut.done):
                dones.append(now)
            if len(dones) == len(instructions):
                break
            await ctx.tick()
        else:
            pytest.fail("never done")
        for _ in range(20):
            await ctx.tick()
            on_tick(ctx)
            assert not ctx.get(dut.done)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for process in background:
        sim.add_testbench(process, background=True)
    sim.add_testbench(issue)
    sim.add_testbench(watch)
    sim.run()
    return dones


SUMS = {
    "one sum": {"kind": Transfer.SUM},
    "sums": {"kind": Transfer.SUM, "rows": 9},
    "groups of sums": {
        "kind": Transfer.SUM, "count": 3, "rows": 2, "group_stride": -20, "row_stride": 3
    },
}  # fmt: skip

GATHER = {"gather": 1, "source": DramAddress(2), "index": DramAddress(1, 0, 1)}
LOADS = {
    "one row": isa.Load(source=DramAddress(1, 5, 2)),
    "rows": isa.Load(rows=7, source=DramAddress(2, 1, 0), target=3),
    "strided": isa.Load(
        count=5, rows=2, stride=9, source=DramAddress(0, 2, 4), target=10, group_stride=2
    ),
    "placed": isa.Load(
        count=3, rows=4, stride=5, source=DramAddress(0), target=40, group_stride=-17, row_stride=2
    ),
    "many groups": isa.Load(count=30, stride=3, source=DramAddress(3, 0, 1), group_stride=1),
    "gather 1": isa.Load(count=1, rows=3, stride=3, **GATHER),
    "gather T": isa.Load(count=4, stride=1, group_stride=1, **GATHER),
    "gather T+1": isa.Load(count=5, rows=2, stride=2, group_stride=3, **GATHER),
    "gather 2T": isa.Load(count=8, rows=2, stride=2, group_stride=2, **GATHER),
    "gather many": isa.Load(count=31, rows=2, stride=4, group_stride=2, **GATHER),
    "bytes": isa.Load(kind=Transfer.BYTES, source=DramAddress(1, 30)),
    "many bytes": isa.Load(
        kind=Transfer.BYTES,
        count=3,
        rows=2,
        stride=3,
        source=DramAddress(2, 1),
        target=2,
        group_stride=17,
        row_stride=2,
    ),
    "one tile": isa.Load(kind=Transfer.TILES, source=DramAddress(2, 1), target=5),
    "tiles": isa.Load(
        kind=Transfer.TILES, rows=17, source=DramAddress(2), target=30, row_stride=-1
    ),
    "blocks": isa.Load(
        kind=Transfer.TILES,
        count=3,
        rows=5,
        stride=20,
        source=DramAddress(2),
        target=1,
        group_stride=16,
        row_stride=3,
    ),
    "masks": isa.Load(kind=Transfer.MASKS, source=DramAddress(2), target=3),
    "many masks": isa.Load(
        kind=Transfer.MASKS,
        count=2,
        rows=2,
        stride=5,
        source=DramAddress(2),
        target=0,
        group_stride=64,
        row_stride=32,
    ),
    **{name: isa.Load(target=50, **fields) for name, fields in SUMS.items()},
}


def random_dram(machine, rng):
    dram = machine.external.rows(0, ROWS)
    dram[:] = rng.integers(0, 1 << 32, dram.shape, dtype=np.uint32)
    dram[INDEX_ROWS] = rng.integers(0, 80, dram[INDEX_ROWS].shape)
    return dram


def load_bench(instructions, words=4, stall=0.0, busy=0.0, step=3, side=4, reorder=False):
    """Cycles to each done, after all memories were compared."""
    c = config(words, side)
    t = c.side
    machine = ReferenceExecutor(c).machine
    rng = np.random.default_rng(2)
    dram = random_dram(machine, rng)
    summed = [i.count * i.rows for i in instructions if i.kind is Transfer.SUM]
    sums = rng.integers(0, 1 << 24, (sum(summed), t))
    machine.exchange.send(0, sums)
    dut = LoadUnit(c)
    got = {
        name: np.zeros_like(getattr(machine, name))
        for name in ("inbox", "mantissas", "exponents", "mask")
    }
    model = Dram(dram, words, LATENCY, stall, reorder=reorder)

    def row(port, ctx):
        return [ctx.get(lane) for lane in port.data]

    def on_tick(ctx):
        assert not ctx.get(dut.error)
        if ctx.get(dut.inbox.en):
            got["inbox"][ctx.get(dut.inbox.address)] = row(dut.inbox, ctx)
        if ctx.get(dut.tiles.en):
            assert not ctx.get(dut.tiles_busy)
            address = ctx.get(dut.tiles.address)
            got["mantissas"][address // t, address % t] = row(dut.tiles, ctx)
        if ctx.get(dut.tiles.exponent_en):
            assert not ctx.get(dut.exponents_busy)
            got["exponents"][ctx.get(dut.tiles.exponent_address)] = ctx.get(dut.tiles.exponent)
        if ctx.get(dut.masks.en):
            assert not ctx.get(dut.masks_busy)
            got["mask"][ctx.get(dut.masks.address)] = row(dut.masks, ctx)

    async def serve(ctx):
        await model.read(ctx, dut.request, dut.beats)

    async def send(ctx):
        for row in sums:
            while rng.random() < stall:
                await ctx.tick()
            ctx.set(dut.sums.payload, row.tolist())
            ctx.set(dut.sums.valid, 1)
            await ctx.tick().until(dut.sums.ready)
            ctx.set(dut.sums.valid, 0)

    # Before the memory, which looks at what is ready because of it.
    async def others(ctx):
        while True:
            for port in (dut.tiles_busy, dut.exponents_busy, dut.masks_busy):
                ctx.set(port, rng.random() < busy)
            await ctx.tick()

    took = run(dut, [others, serve, send], instructions, step, on_tick)
    for instruction in instructions:
        dma.load(machine, instruction, BASES, step)
    for name, memory in got.items():
        np.testing.assert_array_equal(memory, getattr(machine, name), name)
    return took


@pytest.mark.parametrize(("words", "stall", "busy"), [(1, 0, 0), (2, 0.6, 0.3), (4, 0, 0.8)])
@pytest.mark.parametrize("name", LOADS)
def test_load(name, words, stall, busy):
    load_bench([LOADS[name]], words, stall, busy)


@pytest.mark.parametrize("words", [1, 8])
@pytest.mark.parametrize("name", ["strided", "gather T+1", "bytes", "blocks", "many masks"])
def test_load_of_side_8(name, words):
    """A beat of one word is then less than eight bytes, one of eight words more."""
    load_bench([LOADS[name]], words, side=8)


@pytest.mark.parametrize(("stall", "busy", "reorder"), [(0, 0, False), (0.5, 0.8, True)])
@pytest.mark.parametrize("words", [1, 4])
def test_loads_follow_each_other(words, stall, busy, reorder):
    load_bench(list(LOADS.values()), words, stall, busy, reorder=reorder)


def test_load_timing():
    """One beat a cycle after the first latency, for any groups; two latencies when gathering."""
    (one,) = load_bench([LOADS["one row"]])
    assert one == 5 + LATENCY + 2
    assert load_bench([LOADS["rows"]]) == [one + 6]
    assert load_bench([LOADS["strided"]]) == [one + 9]
    assert load_bench([LOADS["many groups"]]) == [one + 29]
    # One more before the first ask, then index row, two until its groups are asked for.
    (gather,) = load_bench([LOADS["gather 1"]])
    assert gather - one == 1 + (3 + LATENCY) + 2 + 2
    long = dataclasses.replace(LOADS["gather many"], count=15, rows=4)
    assert load_bench([long]) == [gather - 3 + 60 + 2]
    # Four rows of bytes to a beat, one exponent, tiles row by row, masks.
    assert load_bench([LOADS["bytes"]]) == [one + 3]
    assert load_bench([LOADS["one tile"]]) == [one + 4]
    assert load_bench([LOADS["tiles"]]) == [one + 17 + 17 * 4 - 1]
    assert load_bench([LOADS["masks"]]) == [one + 31]
    # A row a cycle when the sums are there.
    assert load_bench([LOADS["sums"]]) == [2 + 8 + 2]
    after = load_bench([LOADS["sums"], LOADS["rows"]])
    assert after == [12, 12 - 1 + one + 6]


def test_latency_is_paid_once():
    (one,) = load_bench([LOADS["one row"]])
    assert load_bench([LOADS["one row"]] * 5) == [one + 3 * n for n in range(5)]
    assert load_bench([LOADS["rows"]] * 3) == [one + 7 * n + 6 for n in range(3)]


STORES = {
    "one row": isa.Store(target=DramAddress(1, 5, 2)),
    "rows": isa.Store(rows=9, source=3, target=DramAddress(2, 1, 7)),
    "all": isa.Store(rows=64, target=DramAddress(0)),
    "groups": isa.Store(
        count=3,
        rows=2,
        source=50,
        group_stride=-20,
        row_stride=3,
        target=DramAddress(3),
        stride=5,
    ),
    "one tile": isa.Store(kind=Transfer.TILES, source=2, target=DramAddress(2, 1)),
    "tiles": isa.Store(kind=Transfer.TILES, rows=17, source=30, row_stride=-1),
    "blocks": isa.Store(
        kind=Transfer.TILES,
        count=3,
        rows=5,
        source=1,
        group_stride=16,
        row_stride=3,
        target=DramAddress(2),
        stride=20,
    ),
    "masks": isa.Store(kind=Transfer.MASKS, source=3, target=DramAddress(2)),
    "many masks": isa.Store(
        kind=Transfer.MASKS,
        count=2,
        rows=2,
        source=0,
        group_stride=64,
        row_stride=32,
        target=DramAddress(1),
        stride=7,
    ),
    **{name: isa.Store(source=50, **fields) for name, fields in SUMS.items()},
}


def store_bench(instructions, words=4, stall=0.0, step=2, side=4):
    """Cycles to each done, after external memory was compared."""
    c = config(words, side)
    t = c.side
    machine = ReferenceExecutor(c).machine
    rng = np.random.default_rng(2)
    limit = c.matrix.tile.limit
    machine.outbox[:] = rng.integers(0, 1 << 24, machine.outbox.shape)
    machine.mantissas[:] = rng.integers(-limit, limit + 1, machine.mantissas.shape)
    machine.exponents[:] = rng.integers(0, 255, machine.exponents.shape)
    machine.mask[:] = rng.integers(0, 2, machine.mask.shape)
    dut = StoreUnit(c)
    got = np.zeros((ROWS, t), np.uint32)
    model = Dram(got, words, 0, stall)
    memories = (
        (dut.outbox, machine.outbox),
        (dut.tiles, machine.mantissas.reshape(-1, t)),
        (dut.masks, machine.mask),
    )

    def memory(port, rows, latency):
        async def serve(ctx):
            pipe = [None] * latency
            while True:
                address = ctx.get(port.address) if ctx.get(port.en) else None
                await ctx.tick()
                pipe = [address, *pipe][:latency]
                if pipe[-1] is not None:
                    word = rows[pipe[-1]]
                    if rows.ndim == 1:
                        ctx.set(port.data, int(word))
                    else:
                        for lane, value in zip(port.data, word, strict=True):
                            ctx.set(lane, int(value) & ((1 << len(lane)) - 1))

        return serve

    async def serve(ctx):
        await model.write(ctx, dut.request, dut.beats, dut.written)

    async def receive(ctx):
        while True:
            ready = rng.random() >= stall
            ctx.set(dut.rows.ready, ready)
            if ready and ctx.get(dut.rows.valid):
                sent.append([ctx.get(lane) for lane in dut.rows.payload])
            await ctx.tick()

    def on_tick(ctx):
        assert not ctx.get(dut.error)

    background = [memory(port, rows, 2) for port, rows in memories]
    background += [memory(dut.exponents, machine.exponents, 1), serve, receive]
    sent = []
    took = run(dut, background, instructions, step, on_tick)
    for instruction in instructions:
        dma.store(machine, instruction, BASES, step)
    np.testing.assert_array_equal(got, machine.external.rows(0, ROWS))
    assert sent == [row.tolist() for row in machine.exchange.sums]
    return took


@pytest.mark.parametrize(("words", "stall"), [(1, 0), (2, 0.6), (4, 0)])
@pytest.mark.parametrize("name", STORES)
def test_store(name, words, stall):
    store_bench([STORES[name]], words, stall)


@pytest.mark.parametrize("words", [1, 8])
@pytest.mark.parametrize("name", ["groups", "blocks", "many masks"])
def test_store_of_side_8(name, words):
    store_bench([STORES[name]], words, side=8)


@pytest.mark.parametrize("stall", [0, 0.5])
@pytest.mark.parametrize("words", [1, 4])
def test_stores_follow_each_other(words, stall):
    store_bench(list(STORES.values()), words, stall)


def test_store_timing():
    (one,) = store_bench([STORES["one row"]])
    assert one == 7
    assert store_bench([STORES["rows"]]) == [one + 8]
    assert store_bench([STORES["all"]]) == [one + 63]
    # An exponent, then a beat every four rows; one for 32 rows of masks.
    assert store_bench([STORES["one tile"]]) == [one + 4]
    assert store_bench([STORES["masks"]]) == [one + 31]
    assert store_bench([STORES["sums"]]) == [2 + 3 + 8 + 1]
    after = store_bench([STORES["sums"], STORES["rows"], STORES["one sum"]])
    assert after == [14, 15 + one + 8, 15 + one + 9]
    assert store_bench([STORES["rows"]] * 3) == [one + 9 * n + 8 for n in range(3)]
    assert store_bench([STORES["one row"]] * 3) == [one + 4 * n for n in range(3)]


@pytest.mark.parametrize(
    ("instruction", "unit"),
    [
        (isa.Load(rows=2, source=DramAddress(0, ROWS - 4)), LoadUnit),
        (isa.Load(count=2, stride=(1 << 20) - 1, source=DramAddress(0)), LoadUnit),
        (isa.Store(rows=2, target=DramAddress(0, ROWS - 4)), StoreUnit),
        (isa.Store(count=2, stride=(1 << 20) - 1, target=DramAddress(0)), StoreUnit),
    ],
)
def test_addresses_outside_external_memory_are_reported(instruction, unit):
    c = config(tile_dma=False, bytes=False)
    dut = unit(c)
    model = Dram(np.zeros((1 << 21, 4), np.uint32), 4, 5)
    seen = []

    async def serve(ctx):
        if unit is LoadUnit:
            await model.read(ctx, dut.request, dut.beats)
        else:
            await model.write(ctx, dut.request, dut.beats, dut.written)

    run(dut, [serve], [instruction], 0, lambda ctx: seen.append(ctx.get(dut.error)))
    assert sum(seen) == 1


@pytest.mark.parametrize("fmt", [FP24, BF16, FloatFormat(5, 4), FloatFormat(3, 2)])
def test_bytes_become_numbers(fmt):
    m = Module()
    byte, code = Signal(8), Signal(fmt.width)
    m.d.comb += code.eq(from_byte(m, fmt, byte))
    wanted, _ = smallfloat.from_float(fmt, np.arange(256.0))

    async def bench(ctx):
        for n in range(256):
            ctx.set(byte, n)
            assert ctx.get(code) == wanted[n], n

    sim = Simulator(m)
    sim.add_testbench(bench)
    sim.run()
