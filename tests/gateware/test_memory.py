"""Skewed memories against a plain array: latencies, transposition, collisions, stalls."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.errors import ConfigError
from fpgrad.gateware.memory import (
    READ_LATENCY,
    WRITE_LATENCY,
    ExponentMemory,
    SkewedMemory,
)


def simulate(component, bench):
    sim = Simulator(component)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def expected_row(rows, address, transposed):
    side = rows.shape[1]
    if not transposed:
        return rows[address].tolist()
    first = address - address % side
    return rows[first : first + side, address % side].tolist()


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("read_ports", [1, 2])
def test_reads_and_writes_every_cycle(side, read_ports):
    rng = np.random.default_rng(side + read_ports)
    depth, width, cycles = 3 * side, 9, 200
    memory = SkewedMemory(width=width, depth=depth, side=side, read_ports=read_ports)

    async def bench(ctx):
        rows = np.zeros((depth, side), np.int64)
        # history[c]: contents that a read in cycle c sees.
        pending, visible = [], []
        for cycle in range(cycles):
            for write_cycle, address, data in list(pending):
                if write_cycle + WRITE_LATENCY <= cycle:
                    rows[address] = data
                    pending.remove((write_cycle, address, data))
            if rng.random() < 0.7:
                address = int(rng.integers(depth))
                data = rng.integers(1 << width, size=side)
                ctx.set(memory.write.en, 1)
                ctx.set(memory.write.address, address)
                for lane in range(side):
                    ctx.set(memory.write.data[lane], int(data[lane]))
                pending.append((cycle, address, data.tolist()))
            else:
                ctx.set(memory.write.en, 0)
            wanted = []
            for port in memory.read:
                en = rng.random() < 0.8
                address, transposed = int(rng.integers(depth)), int(rng.integers(2))
                ctx.set(port.en, en)
                ctx.set(port.address, address)
                ctx.set(port.transposed, transposed)
                wanted.append(expected_row(rows, address, transposed) if en else None)
            previous = visible[-1] if visible else [[0] * side] * read_ports
            visible.append([p if w is None else w for w, p in zip(wanted, previous, strict=True)])
            if cycle >= READ_LATENCY:
                for port, row in zip(memory.read, visible[cycle - READ_LATENCY], strict=True):
                    got = [ctx.get(port.data[lane]) for lane in range(side)]
                    assert got == row, cycle
            await ctx.tick()

    simulate(memory, bench)


def test_stall_freezes_the_reading_pipeline():
    side, depth = 4, 8
    memory = SkewedMemory(width=8, depth=depth, side=side)
    rng = np.random.default_rng(0)

    async def bench(ctx):
        rows = rng.integers(256, size=(depth, side))
        ctx.set(memory.write.en, 1)
        for r in range(depth):
            ctx.set(memory.write.address, r)
            for lane in range(side):
                ctx.set(memory.write.data[lane], int(rows[r, lane]))
            await ctx.tick()
        ctx.set(memory.write.en, 0)
        await ctx.tick().repeat(2)
        port = memory.read[0]
        ctx.set(port.en, 1)
        # Cycles without a stall: the row of each must come out two such cycles later.
        issued = []
        for _ in range(100):
            stall = rng.random() < 0.5
            address = int(rng.integers(depth))
            ctx.set(port.address, address)
            ctx.set(port.stall, stall)
            if len(issued) >= READ_LATENCY:
                got = [ctx.get(port.data[lane]) for lane in range(side)]
                assert got == rows[issued[-READ_LATENCY]].tolist()
            if not stall:
                issued.append(address)
            await ctx.tick()

    simulate(memory, bench)


def test_exponents():
    memory = ExponentMemory(width=8, depth=10)
    rng = np.random.default_rng(0)

    async def bench(ctx):
        words = np.zeros(10, np.int64)
        for _ in range(100):
            address, data = int(rng.integers(10)), int(rng.integers(256))
            ctx.set(memory.write.en, 1)
            ctx.set(memory.write.address, address)
            ctx.set(memory.write.data, data)
            wanted = []
            for port in memory.read:
                at = int(rng.integers(10))
                ctx.set(port.en, 1)
                ctx.set(port.address, at)
                wanted.append(int(words[at]))
            await ctx.tick()
            assert [ctx.get(port.data) for port in memory.read] == wanted
            words[address] = data

    simulate(memory, bench)


def test_depth_must_be_whole_blocks():
    message = r"depth of a skewed memory must be a positive multiple of 4, not 6"
    with pytest.raises(ConfigError, match=message):
        SkewedMemory(width=8, depth=6, side=4)
