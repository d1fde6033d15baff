"""A matrix unit with its tile memory, driven by random or given instructions, and what is expected of it."""

from dataclasses import dataclass, field

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator

from fpgrad.formats import AccumulatorFormat, FloatFormat, TileFormat
from fpgrad.gateware.matrix import MatrixUnit
from fpgrad.gateware.memory import ExponentMemory, SkewedMemory
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import Matrix, TileStream, Tokens
from fpgrad.isa.layout import pack
from fpgrad.reference import ReferenceExecutor
from fpgrad.reference import matrix as reference


def make_config(side=4, mantissa=8, number=(8, 15), acc=(32, 6), tiles=12):
    return MachineConfig(
        MatrixConfig(TileFormat(side, mantissa), AccumulatorFormat(*acc)),
        VectorConfig(number=FloatFormat(*number)),
        MemoryConfig(
            vector_rows=side,
            tiles=tiles,
            inbox_rows=side,
            outbox_rows=side,
            dram_words_per_cycle=side,
        ),
    )


def random_machine(config, rng, exponents=None):
    """A machine whose tile memory holds random tiles; some are zero, some at the limits."""
    machine = ReferenceExecutor(config).machine
    tile, tiles, side = config.matrix.tile, config.memory.tiles, config.side
    largest = config.vector.number.max_exponent
    mantissas = rng.integers(-tile.limit, tile.limit + 1, (tiles, side, side))
    extreme = rng.random(tiles) < 0.3
    signs = rng.choice([-1, 1], (tiles, 1, 1))
    mantissas = np.where(extreme[:, None, None], tile.limit * signs, mantissas)
    if exponents is None:
        middle = int(rng.integers(1, largest + 1))
        exponents = np.clip(rng.normal(middle, 4, tiles).astype(np.int64), 1, largest)
        exponents[rng.random(tiles) < 0.1] = largest
        exponents[rng.random(tiles) < 0.1] = 1
    exponents = np.where(rng.random(tiles) < 0.15, 0, exponents)
    # A zero exponent means a zero tile, whatever its mantissas.
    machine.mantissas[:], machine.exponents[:] = mantissas, exponents
    return machine


def split(rng, number):
    """``number`` as a product of three."""
    factors = [1, 1, 1]
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            factors[int(rng.integers(3))] *= prime
            number //= prime
    assert number == 1
    return factors


def random_instruction(config, rng, *, most=6, rows=None, terms=None):
    """Random loops over random strides that stay inside tile memory: up to ``most`` output tiles."""
    tiles = config.memory.tiles
    outputs = split(rng, int(rng.integers(1, most + 1)))
    sums = split(rng, int(rng.integers(1, 7)) if terms is None else terms)
    counts = np.array([*outputs, *sums])

    def stream():
        while True:
            strides = rng.integers(-2, 3, 6)
            reach = (counts - 1) * strides
            low, high = -reach[reach < 0].sum(), tiles - 1 - reach[reach > 0].sum()
            if low <= high:
                base = int(rng.integers(low, high + 1))
                return TileStream(int(rng.integers(2)), base, *strides.tolist())

    if rows is None:
        rows = config.side if rng.random() < 0.5 else int(rng.integers(1, config.side + 1))
    tokens = Tokens(*(int(x) for x in rng.integers(0, 16, 4)))
    n2, n1, n0 = outputs
    k2, k1, k0 = sums
    return Matrix(n2, n1, n0, k2, k1, k0, rows, stream(), stream(), signal=tokens)


@dataclass
class Trace:
    """What was seen: cycles of acceptance, completion and delivery, and what was delivered."""

    accepted: list[int] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    rows: list[tuple[int, list[int], int]] = field(default_factory=list)
    valid: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    idle: int = 0


def simulate(machine, instructions, *, ready=None, offer=None, acc_rows=None, limit=20000):
    """Run ``instructions``; ``ready(cycle)`` and ``offer(cycle)`` let sink and source stall."""
    config = machine.config
    side, tiles = config.side, config.memory.tiles
    top = Module()
    unit = MatrixUnit(config, acc_rows=acc_rows)
    memory = SkewedMemory(
        width=config.matrix.tile.mantissa_bits, depth=tiles * side, side=side, read_ports=2
    )
    exponents = ExponentMemory(width=config.vector.number.exponent_bits, depth=tiles)
    top.submodules += [unit, memory, exponents]
    wiring.connect(top, unit.streamed, memory.read[0])
    wiring.connect(top, unit.stationary, memory.read[1])
    wiring.connect(top, unit.streamed_exponent, exponents.read[0])
    wiring.connect(top, unit.stationary_exponent, exponents.read[1])
    payload = Signal(unit.instruction.payload.shape().size)
    top.d.comb += unit.instruction.payload.as_value().eq(payload)
    mask = (1 << config.matrix.tile.mantissa_bits) - 1
    wanted_rows = sum(i.outputs * i.rows for i in instructions)
    trace = Trace()

    async def bench(ctx):
        ctx.set(memory.write.en, 1)
        ctx.set(exponents.write.en, 1)
        for t in range(tiles):
            for r in range(side):
                ctx.set(memory.write.address, t * side + r)
                ctx.set(exponents.write.address, t)
                ctx.set(exponents.write.data, int(machine.exponents[t]))
                for lane in range(side):
                    ctx.set(memory.write.data[lane], int(machine.mantissas[t, r, lane]) & mask)
                await ctx.tick()
        ctx.set(memory.write.en, 0)
        ctx.set(exponents.write.en, 0)
        await ctx.tick().repeat(3)
        assert ctx.get(unit.idle)
        pending = [pack(i) for i in instructions]
        offered = False
        for cycle in range(limit):
            offered = bool(pending) and (offered or offer is None or bool(offer(cycle)))
            ctx.set(unit.instruction.valid, offered)
            if offered:
                ctx.set(payload, pending[0])
            taking = ready is None or bool(ready(cycle))
            ctx.set(unit.acc.ready, taking)
            if offered and ctx.get(unit.instruction.ready):
                trace.accepted.append(cycle)
                pending.pop(0)
                offered = False
            if ctx.get(unit.busy):
                trace.busy.append(cycle)
            if ctx.get(unit.done):
                trace.done.append((cycle, ctx.get(unit.signal.as_value())))
            if ctx.get(unit.acc.valid):
                trace.valid.append(cycle)
                if taking:
                    codes = [ctx.get(unit.acc.codes[lane]) for lane in range(side)]
                    trace.rows.append((cycle, codes, ctx.get(unit.acc.saturated)))
            await ctx.tick()
            if len(trace.rows) == wanted_rows and len(trace.done) == len(instructions):
                ctx.set(unit.instruction.valid, 0)
                assert ctx.get(unit.idle)
                trace.idle = cycle + 1
                return
        raise AssertionError(f"not finished: {len(trace.rows)} of {wanted_rows} rows")

    sim = Simulator(top)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return trace


def check_rows(machine, instructions, trace):
    """Every row, every code, every flag equals the reference's."""
    machine.accumulated.clear()
    for i in instructions:
        reference.execute(machine, i)
    assert len(trace.rows) == len(machine.accumulated)
    flagged = 0
    for n, ((_, codes, saturated), (want, flags)) in enumerate(
        zip(trace.rows, machine.accumulated, strict=True)
    ):
        assert codes == want.tolist(), n
        assert saturated == sum(int(f) << lane for lane, f in enumerate(flags)), n
        flagged += int(flags.sum())
    assert [pack(i.signal) for i in instructions] == [signal for _, signal in trace.done]
    return flagged
