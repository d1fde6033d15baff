"""The vector unit against the reference: random legal instructions, stalled sources, and its timing."""

import copy

import numpy as np
import pytest

from fpgrad.formats import BF16, FP24, FloatFormat, Function, TableFormat, TileFormat
from fpgrad.formats.table import TABLED
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import Space, Vector
from fpgrad.reference import vector as reference
from fpgrad.reference.machine import Machine
from tests.gateware.pipeline import random_codes
from tests.gateware.vector_bench import Trace, run
from tests.gateware.vector_programs import Programs


def make_config(
    number: FloatFormat = FP24,
    side: int = 4,
    bits: int = 8,
    functions: tuple[Function, ...] = TABLED,
    post_multiply: bool = True,
    random: bool = True,
) -> MachineConfig:
    return MachineConfig(
        MatrixConfig(TileFormat(side, bits)),
        VectorConfig(number, TableFormat(), functions, post_multiply, random),
        MemoryConfig(
            vector_rows=64, tiles=24, inbox_rows=32, outbox_rows=32, dram_words_per_cycle=side
        ),
    )


def filled(config: MachineConfig, rng: np.random.Generator) -> Machine:
    machine = Machine(config)
    fmt, t = config.vector.number, config.side
    for memory in (machine.vector, machine.inbox):
        memory[:] = random_codes(fmt, rng, memory.size).reshape(-1, t)
    return machine


def acc_rows(config, rng, count):
    codes = random_codes(config.vector.number, rng, count * config.side).reshape(count, -1)
    return [(row, rng.random(config.side) < 0.1) for row in codes]


def landed(instruction: Vector) -> int:
    """Writes of rows that an instruction does, tiles' rows not counted."""
    loops = instruction.loops
    if instruction.op or instruction.target.space is Space.NONE:
        return 0
    return loops.n2 * loops.n1 * (4 if instruction.reduce else loops.n0)


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
    for name in ("vector", "outbox", "mantissas", "exponents"):
        np.testing.assert_array_equal(getattr(machine, name), getattr(expected, name), err_msg=name)
    assert trace.saturated_vector == expected.saturated_vector
    assert trace.saturated_accumulator == expected.saturated_accumulator
    # An instruction is done only when everything up to it has been written.
    needed = [landed(i) for i in instructions]
    tiles = [i.tile.enable and not i.op and i.loops.n2 * i.loops.n1 * config.side for i in instructions]
    for n, cycle in enumerate(trace.done):
        before = [w for w in trace.writes if w[0] < cycle]
        assert sum(w[1] != "tile" for w in before) >= sum(needed[: n + 1])
        assert sum(w[1] == "tile" for w in before) >= sum(tiles[: n + 1])
    return trace


@pytest.mark.parametrize(("acc_p", "source_p"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.7), (0.5, 0.5)])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_instructions(seed, acc_p, source_p):
    check(make_config(), seed, 25, acc_p, source_p)


@pytest.mark.parametrize(
    "config",
    [
        make_config(BF16, bits=6),
        make_config(FloatFormat(3, 2), bits=4),
        make_config(FloatFormat(8, 23), bits=16),
        make_config(FP24, side=8),
        make_config(functions=(Function.EXP2, Function.RECIPROCAL), random=False),
        make_config(functions=(), post_multiply=False),
        make_config(functions=()),
        make_config(post_multiply=False),
    ],
    ids=["bf16", "tiny", "fp32", "side8", "two-functions", "bare", "no-functions", "no-post"],
)
def test_random_instructions_of_other_machines(config):
    check(config, 3, 20, 0.2, 0.2)
