"""The vector unit against the reference: random legal instructions, stalled sources, and its timing."""

import copy

import numpy as np
import pytest
from tests.gateware.pipeline import random_codes
from tests.gateware.vector_bench import Trace, run
from tests.gateware.vector_programs import Programs

from fpgrad.formats import BF16, FP24, FloatFormat, Function, TableFormat, TileFormat
from fpgrad.formats.table import TABLED
from fpgrad.gateware.issue import write_latency
from fpgrad.gateware.quantise import quantise_latency
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import (
    Alu,
    Immediate,
    Loops,
    Mask,
    RowStream,
    Source,
    Space,
    Target,
    TileTarget,
    Vector,
    VectorOp,
)
from fpgrad.reference import ReferenceExecutor
from fpgrad.reference import vector as reference
from fpgrad.reference.machine import Machine


def make_config(
    number: FloatFormat = FP24,
    side: int = 4,
    bits: int = 8,
    functions: tuple[Function, ...] = TABLED,
    post_multiply: bool = True,
    random: bool = True,
    mask_rows: int = 0,
) -> MachineConfig:
    return MachineConfig(
        MatrixConfig(TileFormat(side, bits)),
        VectorConfig(number, TableFormat(), functions, post_multiply, random),
        MemoryConfig(
            vector_rows=64,
            tiles=24,
            inbox_rows=32,
            outbox_rows=32,
            mask_rows=mask_rows,
            dram_words_per_cycle=side,
        ),
    )


def filled(config: MachineConfig, rng: np.random.Generator) -> Machine:
    machine = ReferenceExecutor(config).machine
    fmt, t = config.vector.number, config.side
    for memory in (machine.vector, machine.inbox):
        memory[:] = random_codes(fmt, rng, memory.size).reshape(-1, t)
    machine.mask[:] = rng.integers(0, 2, machine.mask.shape)
    return machine


def acc_rows(config, rng, count):
    codes = random_codes(config.vector.number, rng, count * config.side).reshape(count, -1)
    return [(row, rng.random(config.side) < 0.1) for row in codes]


def landed(instruction: Vector) -> int:
    """Writes of rows that an instruction does, tiles' rows not counted."""
    loops = instruction.loops
    if instruction.op or instruction.target.space is Space.NONE:
        return 0
    return loops.n3 * loops.n2 * loops.n1 * (4 if instruction.reduce else loops.n0)


def tile_rows(instruction: Vector, side: int) -> int:
    """Writes of tiles' rows that an instruction does."""
    loops, tile = instruction.loops, instruction.tile
    if instruction.op or not tile.enable:
        return 0
    inner = -(-loops.n1 * loops.n0 // side) if tile.flow else loops.n1
    return loops.n3 * loops.n2 * inner * side


def check(config: MachineConfig, seed: int, count: int, acc_p: float, source_p: float) -> Trace:
    rng = np.random.default_rng(seed)
    machine = filled(config, rng)
    programs = Programs(config, rng)
    instructions = [programs.one() for _ in range(count)]
    rows = acc_rows(config, rng, sum(reference.acc_rows(i) for i in instructions))
    expected = copy.deepcopy(machine)
    expected.accumulated.extend(rows)
    for instruction in instructions:
        reference.execute(expected, instruction)
    trace = run(
        config,
        machine,
        instructions,
        acc=rows,
        acc_stall=lambda: rng.random() < acc_p,
        source_stall=lambda: rng.random() < source_p,
    )
    assert len(trace.done) == len(trace.taken) == count
    for name in ("vector", "outbox", "mask", "mantissas", "exponents"):
        np.testing.assert_array_equal(getattr(machine, name), getattr(expected, name), err_msg=name)
    assert trace.saturated_vector == expected.saturated_vector
    assert trace.saturated_accumulator == expected.saturated_accumulator
    # An instruction is done only when everything up to it has been written.
    needed = [landed(i) for i in instructions]
    tiles = [tile_rows(i, config.side) for i in instructions]
    for n, cycle in enumerate(trace.done):
        before = [w for w in trace.writes if w[0] < cycle]
        assert sum(w[1] != "tile" for w in before) >= sum(needed[: n + 1])
        assert sum(w[1] == "tile" for w in before) >= sum(tiles[: n + 1])
    return trace


@pytest.mark.parametrize(("acc_p", "source_p"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.7), (0.5, 0.5)])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_instructions(seed, acc_p, source_p):
    check(make_config(mask_rows=32), seed, 16, acc_p, source_p)


@pytest.mark.parametrize(
    "config",
    [
        make_config(BF16, bits=6),
        make_config(FloatFormat(3, 2), bits=4),
        make_config(FloatFormat(8, 23), bits=16),
        make_config(FP24, side=8, mask_rows=80),
        make_config(functions=(Function.EXP2, Function.RECIPROCAL), random=False),
        make_config(functions=(), post_multiply=False, mask_rows=4),
        make_config(functions=()),
        make_config(post_multiply=False),
    ],
    ids=["bf16", "tiny", "fp32", "side8", "two-functions", "bare", "no-functions", "no-post"],
)
def test_random_instructions_of_other_machines(config):
    check(config, 3, 12, 0.2, 0.2)


def execute(config, machine, instructions, **kwargs):
    """Run on the unit, compare with the reference, give back the trace."""
    expected = copy.deepcopy(machine)
    expected.accumulated.extend(kwargs.get("acc", ()))
    for instruction in instructions:
        reference.execute(expected, instruction)
    trace = run(config, machine, instructions, **kwargs)
    for name in ("vector", "outbox", "mask", "mantissas", "exponents"):
        np.testing.assert_array_equal(getattr(machine, name), getattr(expected, name), err_msg=name)
    assert len(trace.done) == len(instructions)
    return trace


def copying(source: int, target: int, rows: int, **fields) -> Vector:
    return Vector(
        loops=Loops(n0=rows),
        p0=RowStream(Space.VECTOR, base=source, s0=1),
        a=Source.P0,
        target=Target(Space.VECTOR, target, s0=1),
        **fields,
    )


@pytest.mark.parametrize("n0", [4, 5, 7, 8, 14])
@pytest.mark.parametrize("alu", [Alu.ADD, Alu.MAX])
def test_reducing_pass_meets_its_partial_sums_whatever_comes_late(n0, alu):
    config = make_config()
    rng = np.random.default_rng(n0)
    fmt = config.vector.number
    late = Vector(
        loops=Loops(n1=2, n0=n0),
        a=Source.ACC,
        alu=alu,
        reduce=1,
        negate_c=int(alu is Alu.ADD),
        target=Target(Space.VECTOR, 3, s1=4, s0=1),
    )
    codes = fmt.one | rng.integers(0, 1 << fmt.mantissa_bits, (2 * n0, 4))
    rows = [(row, np.zeros(4, bool)) for row in codes]
    execute(config, filled(config, rng), [late], acc=rows, acc_stall=lambda: rng.random() < 0.6)


WAYS = {
    "direct": {},
    "relu": {"function": Function.RELU},
    "post": {"d": Source.I0},
    "function": {"function": Function.EXP2},
    "both": {"function": Function.EXP2, "d": Source.I0},
}
LATENCY = {"direct": 10, "relu": 10, "post": 12, "function": 16, "both": 18}


def test_latency_and_fence():
    config = make_config()
    passes: list[Vector] = []
    for way in WAYS.values():
        passes.append(copying(0, 20, 6, fence=1, **way))
        # Begins with the row that the pass before wrote last.
        passes.append(copying(25, 40, 3, fence=1))
    trace = execute(config, filled(config, np.random.default_rng(5)), passes)
    assert trace.reads[0] == trace.taken[0] + 1
    for n, way in enumerate(WAYS):
        latency = LATENCY[way]
        assert latency == write_latency(
            function=way in ("function", "both"), post=way in ("post", "both")
        )
        reads, writes = trace.reads[9 * n :], trace.writes[9 * n :]
        assert reads[:6] == list(range(reads[0], reads[0] + 6))
        assert [w[0] for w in writes[:6]] == [r + latency for r in reads[:6]]
        assert trace.done[2 * n] == reads[5] + latency + 1
        assert trace.taken[2 * n + 1] == reads[5]
        assert reads[6] == reads[5] + latency + 2


def test_passes_without_fence_follow_in_order():
    config = make_config()
    pairs = [(before, after) for before in WAYS for after in WAYS]
    passes: list[Vector] = []
    for before, after in pairs:
        passes.append(copying(0, 20, 4, fence=1, **WAYS[before]))
        passes.append(copying(8, 40, 4, **WAYS[after]))
    trace = execute(config, filled(config, np.random.default_rng(6)), passes)
    for n, (before, after) in enumerate(pairs):
        bubble = max(0, LATENCY[before] - LATENCY[after])
        assert trace.reads[8 * n + 4] == trace.reads[8 * n + 3] + 1 + bubble
    rows = [*range(20, 24), *range(40, 44)]
    assert [w[2] for w in trace.writes] == rows * len(pairs)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_quantiser_latency(side):
    config = make_config(side=side, functions=(), post_multiply=False, random=False)
    machine = filled(config, np.random.default_rng(7))
    counts = (1, 2, 4)
    passes: list[Vector] = []
    for n0 in counts:
        tiles = Vector(
            loops=Loops(n1=3, n0=n0),
            p0=RowStream(Space.VECTOR, base=0, s1=4, s0=1),
            a=Source.P0,
            tile=TileTarget(1, base=2, s1=1),
            fence=1,
        )
        passes += [tiles, copying(0, 20, 1)]
    trace = execute(config, machine, passes)
    assert quantise_latency(side) == side + {4: 4, 8: 5, 16: 5}[side]
    written = [w[0] for w in trace.writes if w[1] == "tile"]
    reads, dones = trace.reads, trace.done
    for n0 in counts:
        firsts = reads[0 : 3 * n0 : n0]
        assert firsts[1:] == [firsts[0] + side, firsts[0] + 2 * side]
        rows, written = written[: 3 * side], written[3 * side :]
        ends = [first + n0 - 1 + 10 + quantise_latency(side) for first in firsts]
        assert rows[side - 1 :: side] == ends
        # The copy is written long before the tiles, but it is done after them.
        assert dones[:2] == [ends[-1] + 1, ends[-1] + 2]
        reads, dones = reads[3 * n0 + 1 :], dones[2:]


@pytest.mark.parametrize(("n1", "n0"), [(3, 2), (1, 9), (2, 4), (5, 3), (1, 1)])
def test_rows_flow_into_tiles_without_waits_but_after_the_last(n1, n0):
    config, side = make_config(functions=(), post_multiply=False, random=False), 4
    tiles = Vector(
        loops=Loops(2, 2, n1, n0),
        p0=RowStream(Space.VECTOR, s3=32, s2=16, s1=n0, s0=1),
        a=Source.P0,
        tile=TileTarget(1, 1, base=1, s3=10, s2=5, s1=1),
    )
    trace = execute(config, filled(config, np.random.default_rng(10)), [tiles, copying(0, 20, 1)])
    start, expected = trace.reads[0], []
    for _ in range(4):
        rows = n1 * n0
        expected += range(start, start + rows)
        start += -(-rows // side) * side
    assert trace.reads == [*expected, expected[-1] + 1]
    # Tiles are written one after the other: the last one T cycles after the one before.
    full = [row for n, row in enumerate(expected) if n % (n1 * n0) % side == side - 1]
    end = expected[-1] + quantise_latency(side)
    if full:
        end = max(end, full[-1] + quantise_latency(side) + side * (full[-1] != expected[-1]))
    assert trace.done[0] == end + 10 + 1


def test_masks_hold_what_is_above_zero_and_are_read_as_numbers():
    config = make_config(mask_rows=16)
    fmt = config.vector.number
    machine = filled(config, np.random.default_rng(11))
    smallest = 1 << fmt.mantissa_bits
    # Zeros, not only the canonical one, both signs; the smallest numbers; one.
    codes = [0, 1, smallest - 1, smallest, fmt.one, fmt.max_code, fmt.sign_bit, 1 << 20]
    codes += [code | fmt.sign_bit for code in codes[1:]]
    machine.vector[:4] = np.array([*codes, 0]).reshape(4, 4)
    write = Vector(
        loops=Loops(n0=4),
        p0=RowStream(Space.VECTOR, s0=1),
        a=Source.P0,
        target=Target(Space.MASK, 4, s0=2),
    )
    read = Vector(
        loops=Loops(n0=4),
        p0=RowStream(Space.MASK, base=4, s0=2),
        p1=RowStream(Space.MASK, transposed=1, base=4, s0=1),
        a=Source.P0,
        b=Source.I0,
        c=Source.P1,
        alu=Alu.ADD,
        i0=Immediate(0, fmt.one + (1 << fmt.mantissa_bits)),
        target=Target(Space.VECTOR, 8, s0=1),
        fence=1,
    )
    trace = execute(config, machine, [write, read])
    # A fence waits for masks as long as for rows.
    assert trace.reads[4] == trace.reads[3] + LATENCY["direct"] + 2


def test_every_loop_has_its_strides_and_its_mask():
    config = make_config(mask_rows=32)
    passes = [
        Vector(
            loops=Loops(3, 2, 2, 2),
            p0=RowStream(Space.VECTOR, base=63, s3=-20, s2=-9, s1=-3, s0=-1),
            p1=RowStream(Space.MASK, base=0, s3=8, s2=4, s1=2, s0=1),
            a=Source.P0,
            c=Source.P1,
            alu=Alu.ADD,
            row_mask=Mask(loop, 1),
            lane_mask=Mask(4 - loop, 2),
            target=Target(Space.OUTBOX, base=2, s3=10, s2=5, s1=2, s0=1),
            tile=TileTarget(1, base=23, s3=-8, s2=-4, s1=-1),
        )
        for loop in (1, 2, 3)
    ]
    execute(config, filled(config, np.random.default_rng(12)), passes)


def test_scalars_and_seed_take_effect_at_once():
    config = make_config()
    machine = filled(config, np.random.default_rng(8))
    use = Vector(a=Source.RANDOM, b=Source.I0, i0=Immediate(1, 2), target=Target(Space.VECTOR, 30))
    special = [
        Vector(op=op, loops=Loops(2, 2, 3, 4), p0=RowStream(Space.VECTOR, 1, base))
        for op, base in ((VectorOp.SCALARS, 20), (VectorOp.SEED, 21))
    ]
    trace = execute(config, machine, [copying(0, 20, 2), *special, use])
    reads = trace.reads
    assert reads[2] == reads[1] + 12
    assert reads[3] == reads[2] + 12
    execute(config, machine, [*special, use])


def test_a_pass_follows_scalars_after_twelve_cycles_with_a_fence_and_three_without():
    config = make_config()
    machine = filled(config, np.random.default_rng(9))
    scalars = Vector(op=VectorOp.SCALARS, p0=RowStream(Space.INBOX, base=20))
    use = copying(0, 30, 1, b=Source.I0, i0=Immediate(1, 2))
    trace = execute(config, machine, [scalars, use])
    assert trace.reads[1] == trace.reads[0] + 3
