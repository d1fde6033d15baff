"""The core through the host port in Amaranth's simulator: a whole run, seen by the host."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module
from amaranth.lib.wiring import connect
from amaranth.sim import Simulator
from tests.gateware.dram import Dram

from fpgrad.formats import TileFormat
from fpgrad.gateware.core import Core
from fpgrad.gateware.hub import Hub
from fpgrad.isa.config import ControlConfig, MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import (
    Alu,
    DramAddress,
    Load,
    Loops,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    TileTarget,
    Tokens,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.isa.registers import (
    MAGIC,
    Control,
    Register,
    Status,
    instruction_address,
    instruction_words,
)
from fpgrad.reference import ReferenceExecutor

CONFIG = MachineConfig(
    matrix=MatrixConfig(tile=TileFormat(side=4)),
    vector=VectorConfig(functions=(), random=False),
    memory=MemoryConfig(
        vector_rows=16,
        tiles=4,
        inbox_rows=16,
        outbox_rows=16,
        mask_rows=8,
        dram_rows=64,
        dram_words_per_cycle=2,
    ),
    control=ControlConfig(4, 4, 4, 4),
)


def program() -> Program:
    """Two tiles in, their product where a mask says so, plus a row, out."""
    inbox = RowStream(Space.INBOX, s1=4, s0=1)
    quantise = Vector(
        loops=Loops(n1=2, n0=4),
        p0=inbox,
        a=Source.P0,
        tile=TileTarget(1, base=1, s1=1),
        wait=Tokens(load=1),
        signal=Tokens(matrix=1),
    )
    mark = Vector(loops=Loops(n0=4), p0=inbox, a=Source.P0, target=Target(Space.MASK, base=4, s0=1))
    add = Vector(
        loops=Loops(n0=4),
        p0=RowStream(Space.INBOX, base=3),
        p1=RowStream(Space.MASK, transposed=1, base=4, s0=1),
        a=Source.ACC,
        b=Source.P1,
        c=Source.P0,
        alu=Alu.ADD,
        target=Target(Space.OUTBOX, 2, s0=1),
        fence=1,
        signal=Tokens(load=1, store=1),
    )
    multiply = Matrix(
        rows=4,
        wait=Tokens(vector=1),
        streamed=_tile(1, transposed=1),
        stationary=_tile(2),
    )
    units = {
        Unit.LOAD: (
            Load(
                rows=8, source=DramAddress(1, 0, 8), wait=Tokens(vector=1), signal=Tokens(vector=1)
            ),
        ),
        Unit.MATRIX: (multiply,),
        Unit.VECTOR: (quantise, mark, add),
        Unit.STORE: (
            Store(
                rows=4,
                source=2,
                target=DramAddress(0, 0, 4),
                wait=Tokens(vector=1),
                signal=Tokens(vector=1),
            ),
        ),
    }
    wait_for_store = Vector(wait=Tokens(store=1))
    units[Unit.VECTOR] += (wait_for_store,)
    none = (0, 0, 0, 0)
    tokens = (none, none, (1, 0, 0, 0), none)
    return Program(CONFIG, units, {"main": Entry(none, (1, 1, 4, 1), tokens)})


def _tile(base: int, transposed: int = 0):
    return type(Matrix().streamed)(transposed, base)


def test_a_run_through_the_host_port():
    core, hub, p, steps, bases = Core(CONFIG), Hub(CONFIG), program(), 3, [40, 3]
    m = Module()
    m.submodules.core, m.submodules.hub = core, hub
    connect(m, hub.control, core.control)
    connect(m, core.status, hub.status[0])
    connect(m, core.rows, hub.rows[0])
    connect(m, hub.sums[0], core.sums)
    random = np.random.default_rng(5)
    words = random.integers(0x3D << 24, 0x41 << 24, (64, 4), dtype=np.uint32)
    words |= random.integers(0, 2, (64, 4), dtype=np.uint32) << 31
    words &= np.uint32(0xFFFFFF00)
    reference = ReferenceExecutor(CONFIG)
    reference.load_program(p)
    reference.write(0, words)
    reference.run("main", steps, bases)
    dram = Dram(words, 2, CONFIG.memory.dram_latency, stall=0.3)

    async def read(ctx, address):
        ctx.set(hub.host.address, address)
        await ctx.tick().repeat(2)
        return ctx.get(hub.host.read_data)

    async def write(ctx, address, value):
        ctx.set(hub.host.address, address)
        ctx.set(hub.host.data, value)
        ctx.set(hub.host.write, 1)
        await ctx.tick()
        ctx.set(hub.host.write, 0)

    async def bench(ctx):
        assert await read(ctx, Register.MAGIC) == MAGIC
        assert await read(ctx, Register.DIGEST) == int(CONFIG.digest[:8], 16)
        entry = p.entries["main"]
        for unit in Unit:
            for index, packed in enumerate(p.words(unit)):
                for n in range(instruction_words(unit)):
                    at = instruction_address(unit, index) + n
                    await write(ctx, at, (packed >> (32 * n)) & 0xFFFFFFFF)
            await write(ctx, Register.START + unit, entry.start[unit])
            await write(ctx, Register.STOP + unit, entry.stop[unit])
            tokens = sum(n << (8 * d) for d, n in enumerate(entry.tokens[unit]))
            await write(ctx, Register.TOKENS + unit, tokens)
        for n, base in enumerate(bases):
            await write(ctx, Register.BASE + n, base)
        await write(ctx, Register.STEPS, steps)
        await write(ctx, Register.CONTROL, Control.START)
        await ctx.tick().repeat(3)
        assert ctx.get(hub.running)
        assert await read(ctx, Register.STATUS) & Status.RUNNING
        await ctx.tick().until(~hub.running)
        await ctx.tick().repeat(20)
        assert await read(ctx, Register.STATUS) == 0
        assert await read(ctx, Register.CYCLES) > 0
        assert 0 < await read(ctx, Register.BUSY) < await read(ctx, Register.CYCLES)
        assert await read(ctx, Register.STEP + Unit.VECTOR) == steps - 1

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)

    async def serve_reads(ctx):
        await dram.read(ctx, core.read_request, core.read_beats)

    async def serve_writes(ctx):
        await dram.write(ctx, core.write_request, core.write_beats, core.written)

    sim.add_testbench(serve_reads, background=True)
    sim.add_testbench(serve_writes, background=True)
    sim.run()
    np.testing.assert_array_equal(words, reference.read(0, 64))
