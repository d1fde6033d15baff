"""The fetch unit against what the sequencers will want: every instruction once a step, in order, and no more than that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.formats import TileFormat
from fpgrad.gateware.axi import FETCH_ID
from fpgrad.gateware.fetch import BURSTS, Fetch
from fpgrad.isa.area import first_rows, slot_beats
from fpgrad.isa.config import BURST, ControlConfig, MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import Unit

SIDE = 4
COUNTS = {Unit.LOAD: 6, Unit.MATRIX: 30, Unit.VECTOR: 41, Unit.STORE: 0}


def machine(words: int, depth: int) -> MachineConfig:
    return MachineConfig(
        MatrixConfig(TileFormat(SIDE)),
        memory=MemoryConfig(vector_rows=64, inbox_rows=64, dram_words_per_cycle=words),
        control=ControlConfig(depth, depth, depth, depth, program_rows=4096),
    )


@dataclass
class Seen:
    """What a run did: the first beat and the beats of each burst, in order, the beats that filled each ring, and the
    most bursts that memory had to answer."""

    bursts: list[tuple[int, int]] = field(default_factory=list)
    fills: dict[Unit, list[int]] = field(default_factory=lambda: {u: [] for u in Unit})
    outstanding: int = 0
    first_burst: int = 0


def simulate(config, runs, *, stall=0.0, latency=5, eats=1.0, seed=0):
    """Runs of (start, stop, steps); memory answers each beat with its number, rings are emptied when they can be."""
    dut, random = Fetch(config), np.random.default_rng(seed)
    *firsts, _ = first_rows(config, COUNTS)
    depth = config.control.load
    slots = [slot_beats(config, u) for u in Unit]
    seen = [Seen() for _ in runs]

    async def bench(ctx):
        for unit in Unit:
            ctx.set(dut.program[unit], firsts[unit])
        for run, (start, stop, steps) in zip(seen, runs, strict=True):
            for unit in Unit:
                ctx.set(dut.start[unit], start[unit])
                ctx.set(dut.stop[unit], stop[unit])
            ctx.set(dut.steps, steps)
            ctx.set(dut.go, 1)
            await ctx.tick()
            ctx.set(dut.go, 0)
            wanted = [steps * (b - a) for a, b in zip(start, stop, strict=True)]
            beats: deque[tuple[int, int]] = deque()
            level, parts, eaten = [0] * 4, [0] * 4, [0] * 4
            complete = came = 0
            for now in range(1, 60000):
                # What fills the rings has room there.
                for unit in Unit:
                    if ctx.get(dut.fill[unit]):
                        run.fills[unit].append(ctx.get(dut.filled[0]))
                        parts[unit] += 1
                        level[unit] += parts[unit] % slots[unit] == 0
                        assert level[unit] <= depth
                eat = [n > 0 and bool(random.random() < eats) for n in level]
                for unit in Unit:
                    ctx.set(dut.got[unit], eat[unit])
                    level[unit] -= eat[unit]
                    eaten[unit] += eat[unit]
                ready = bool(random.random() >= stall)
                ctx.set(dut.burst.ready, ready)
                if ready and ctx.get(dut.burst.valid):
                    p = dut.burst.payload
                    assert ctx.get(p.flag) == FETCH_ID
                    run.first_burst = run.first_burst or now
                    burst = ctx.get(p.beat), ctx.get(p.more) + 1
                    run.bursts.append(burst)
                    beats.extend((now + latency, burst[0] + k) for k in range(burst[1]))
                arrives = bool(beats) and beats[0][0] <= now and bool(random.random() >= stall)
                ctx.set(dut.came, arrives)
                if arrives:
                    ctx.set(dut.beat[0], beats.popleft()[1] & 0xFFFFFFFF)
                    came += 1
                if beats and came == sum(n for _, n in run.bursts[: complete + 1]):
                    complete += 1
                run.outstanding = max(run.outstanding, len(run.bursts) - complete)
                await ctx.tick()
                if eaten == wanted and ctx.get(dut.idle):
                    break
            else:
                pytest.fail("never done")
            for _ in range(20):
                assert not ctx.get(dut.burst.valid)
                ctx.set(dut.came, 0)
                for unit in Unit:
                    ctx.set(dut.got[unit], 0)
                await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return seen, firsts


RUNS = [
    ((0, 0, 0, 0), (6, 30, 41, 0), 1),
    ((2, 3, 7, 0), (3, 11, 8, 0), 3),  # ranges that begin and end inside bursts
    ((0, 4, 4, 0), (0, 8, 12, 0), 2),  # nothing for a unit; the ring's size and more
    ((5, 29, 40, 0), (6, 30, 41, 0), 3),
]


@pytest.mark.parametrize("words", [1, 4])
@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize(("stall", "latency", "eats"), [(0, 1, 1), (0.3, 20, 0.5), (0, 40, 0.2)])
def test_rings_get_their_ranges_as_often_as_there_are_steps(words, depth, stall, latency, eats):
    config = machine(words, depth)
    seen, firsts = simulate(config, RUNS, stall=stall, latency=latency, eats=eats)
    for (start, stop, steps), run in zip(RUNS, seen, strict=True):
        for unit in Unit:
            slot, first = slot_beats(config, unit), firsts[unit] * SIDE // words
            wanted = [
                first + i * slot + k
                for _ in range(steps)
                for i in range(start[unit], stop[unit])
                for k in range(slot)
            ]
            assert run.fills[unit] == wanted
        for beat, beats in run.bursts:
            octets = 4 * words
            assert beat * octets // 4096 == ((beat + beats) * octets - 1) // 4096
            assert beats <= 256


def test_a_burst_is_up_to_the_next_multiple_and_the_first_is_there_in_cycle_3():
    config = machine(4, 8)
    (run,), firsts = simulate(config, [((0, 2, 0, 0), (0, 11, 0, 0), 2)], latency=1)
    slot, first = slot_beats(config, Unit.MATRIX), firsts[Unit.MATRIX] * SIDE // 4
    assert run.first_burst == 3
    counts = [(2, 2), (4, 4), (8, 3)] * 2
    assert run.bursts == [(first + at * slot, n * slot) for at, n in counts]


def test_units_take_turns_and_only_so_many_bursts_are_on_their_way():
    config = machine(4, 64)
    (run,), firsts = simulate(config, [((0, 0, 0, 0), (6, 30, 41, 0), 1)], latency=500)
    whose = [max(u for u in Unit if firsts[u] * SIDE // 4 <= beat) for beat, _ in run.bursts]
    # As long as all three have something.
    assert whose[:6] == [Unit.LOAD, Unit.MATRIX, Unit.VECTOR] * 2
    assert run.outstanding == BURSTS


def test_no_more_is_asked_for_after_halt_and_what_was_comes_before_idle():
    config, dut = machine(4, 8), Fetch(machine(4, 8))

    async def bench(ctx):
        ctx.set(dut.stop[Unit.VECTOR], 40)
        ctx.set(dut.steps, 1)
        ctx.set(dut.burst.ready, 1)
        ctx.set(dut.go, 1)
        await ctx.tick()
        ctx.set(dut.go, 0)
        beats = 0
        for now in range(1, 40):
            ctx.set(dut.halt, now == 2)
            if ctx.get(dut.burst.valid):
                beats += ctx.get(dut.burst.payload.more) + 1
            await ctx.tick()
        assert beats == 2 * BURST * slot_beats(config, Unit.VECTOR)
        for _ in range(beats):
            assert not ctx.get(dut.idle)
            ctx.set(dut.came, 1)
            await ctx.tick()
        ctx.set(dut.came, 0)
        await ctx.tick()
        assert ctx.get(dut.idle)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
