"""The sequencer against the order in which the reference executor starts instructions."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator

from fpgrad.gateware.sequencer import Sequencer
from fpgrad.isa.instructions import CLASS_OF, Load, Tokens, Unit
from fpgrad.isa.layout import pack, width
from fpgrad.isa.registers import WORD_BITS
from fpgrad.reference.executor import counts


def instructions(count):
    random = np.random.default_rng(count)

    def tokens():
        return Tokens(*(int(n) for n in random.integers(0, 3, 4)))

    return [
        Load(count=i + 1, target=1000 + i, wait=tokens(), signal=tokens()) for i in range(count)
    ]


async def write(ctx, dut, program):
    for index, instruction in enumerate(program):
        packed = pack(instruction)
        for word in range(-(-max(1, packed.bit_length()) // WORD_BITS)):
            ctx.set(dut.write, 1)
            ctx.set(dut.write_data.index, index)
            ctx.set(dut.write_data.word, word)
            ctx.set(dut.write_data.data, (packed >> (WORD_BITS * word)) & 0xFFFFFFFF)
            await ctx.tick()
    ctx.set(dut.write, 0)


async def start(ctx, dut, first, stop, steps):
    ctx.set(dut.start, first)
    ctx.set(dut.stop, stop)
    ctx.set(dut.steps, steps)
    ctx.set(dut.go, 1)
    await ctx.tick()
    ctx.set(dut.go, 0)


def simulate(dut, bench):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("stall", [0, 0.5])
@pytest.mark.parametrize(
    ("first", "stop", "steps"), [(0, 1, 1), (0, 1, 5), (2, 7, 3), (0, 12, 2), (11, 12, 2)]
)
def test_issues_the_range_as_often_as_it_has_steps(first, stop, steps, stall):
    program = instructions(12)
    dut = Sequencer(unit=Unit.LOAD, depth=12)
    random = np.random.default_rng(7)
    wanted = [(step, i) for step in range(steps) for i in range(first, stop)]
    seen, took, signalled, cycles = [], [], [], []

    async def bench(ctx):
        await write(ctx, dut, program)
        ctx.set(dut.available, [0] * 4)
        await start(ctx, dut, first, stop, steps)
        outstanding = []
        for now in range(1, 4000):
            tokens = [int(n) for n in random.integers(0, 4, 4)] if stall else [2] * 4
            ctx.set(dut.available, tokens)
            ready = random.random() >= stall
            done = bool(outstanding) and random.random() >= stall
            ctx.set(dut.instruction.ready, ready)
            ctx.set(dut.done, done)
            if done:
                outstanding.pop(0)
                signalled.append(tuple(ctx.get(dut.signal[u]) for u in range(4)))
            taking = tuple(ctx.get(dut.take[u]) for u in range(4))
            if ready and ctx.get(dut.instruction.valid):
                assert all(n >= t for n, t in zip(tokens, taking, strict=True))
                payload = dut.instruction.payload
                assert ctx.get(payload.count) == ctx.get(payload.target) - 999
                seen.append((ctx.get(dut.step), ctx.get(payload.target) - 1000))
                took.append(taking)
                cycles.append(now)
                outstanding.append(seen[-1])
            else:
                assert taking == (0,) * 4
            await ctx.tick()
            if ctx.get(dut.finished):
                assert not ctx.get(dut.busy)
                break
        else:
            pytest.fail("the sequencer did not finish")

    simulate(dut, bench)
    assert seen == wanted
    assert took == [counts(program[i].wait) for _, i in wanted]
    assert signalled == [counts(program[i].signal) for _, i in wanted]
    if not stall:
        assert cycles == list(range(3, 3 + len(wanted)))


@pytest.mark.parametrize(("fills", "ready"), [(1, 1), (0.3, 1), (1, 0.3), (0.4, 0.4)])
@pytest.mark.parametrize(("first", "stop", "steps"), [(0, 1, 5), (2, 7, 3), (5, 6, 1)])
def test_streamed_instructions_are_issued_as_they_come(first, stop, steps, fills, ready):
    """Cycle by cycle: out of the ring when a register is free, offered two cycles later, none without a beat of it."""
    program, depth, slot = instructions(12), 4, 2
    dut = Sequencer(unit=Unit.LOAD, depth=depth, beat_words=8)
    random = np.random.default_rng(7)
    wanted = [(step, i) for step in range(steps) for i in range(first, stop)]
    seen, left_at, there_at, taken_at = [], [], [], []

    async def bench(ctx):
        ctx.set(dut.available, [2] * 4)
        await start(ctx, dut, first, stop, steps)
        beats = [(i, part) for _, i in wanted for part in range(slot)]
        filled = 0
        for now in range(1, 4000):
            if ctx.get(dut.finished):
                break
            fill = filled < len(beats) and filled // slot < len(left_at) + depth
            fill = fill and random.random() < fills
            ctx.set(dut.fill, fill)
            if fill:
                i, part = beats[filled]
                for word in range(8):
                    value = (pack(program[i]) >> (WORD_BITS * (8 * part + word))) & 0xFFFFFFFF
                    ctx.set(dut.beat[word], value)
                filled += 1
                if part == slot - 1:
                    there_at.append(now + 1)
            takes = random.random() < ready
            ctx.set(dut.instruction.ready, takes)
            ctx.set(dut.done, ctx.get(dut.busy))
            if ctx.get(dut.got):
                left_at.append(now)
            if takes and ctx.get(dut.instruction.valid):
                seen.append((ctx.get(dut.step), ctx.get(dut.instruction.payload.target) - 1000))
                taken_at.append(now)
            await ctx.tick()

    simulate(dut, bench)
    assert seen == wanted
    moved = [1]
    for k, taken in enumerate(taken_at):
        assert left_at[k] == max(there_at[k], moved[-1])
        moved.append(max(left_at[k] + 1, taken_at[k - 1] if k else 0))
        assert taken > moved[-1]
        if ready == 1:
            assert taken == moved[-1] + 1


@pytest.mark.parametrize(("stop", "steps"), [(0, 3), (4, 0)])
def test_an_empty_range_or_no_steps_is_finished_at_once(stop, steps):
    dut = Sequencer(unit=Unit.LOAD, depth=4)

    async def bench(ctx):
        await write(ctx, dut, instructions(4))
        ctx.set(dut.available, [9] * 4)
        ctx.set(dut.instruction.ready, 1)
        await start(ctx, dut, 0, stop, steps)
        for _ in range(10):
            assert ctx.get(dut.finished)
            assert not ctx.get(dut.instruction.valid)
            await ctx.tick()

    simulate(dut, bench)


def test_waiting_is_reported_and_halt_ends_the_run():
    dut = Sequencer(unit=Unit.LOAD, depth=4)

    async def bench(ctx):
        await write(ctx, dut, [Load(), Load(wait=Tokens(vector=1))])
        ctx.set(dut.instruction.ready, 1)
        await start(ctx, dut, 0, 2, 1)
        await ctx.tick().repeat(6)
        assert (ctx.get(dut.busy), ctx.get(dut.waiting), ctx.get(dut.at)) == (1, 1, 1)
        ctx.set(dut.halt, 1)
        ctx.set(dut.done, 1)
        await ctx.tick()
        ctx.set(dut.done, 0)
        assert ctx.get(dut.finished)

    simulate(dut, bench)


def test_every_unit_gets_its_own_layout():
    for unit, cls in CLASS_OF.items():
        dut = Sequencer(unit=unit, depth=2)
        dut._MustUse__silence = True
        assert (dut.unit, dut.depth) == (unit, 2)
        assert dut.instruction.payload.shape().size == width(cls)


def test_depth_must_fit_the_register_map():
    with pytest.raises(ValueError, match="depth must be 1 to 4096, not 4097"):
        Sequencer(unit=Unit.LOAD, depth=4097)
