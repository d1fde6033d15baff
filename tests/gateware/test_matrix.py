"""The matrix unit against the reference, bit by bit, and against its documented timing."""

import numpy as np
import pytest
from tests.gateware.matrix_bench import (
    check_rows,
    make_config,
    random_instruction,
    random_machine,
    simulate,
)
from tests.gateware.matrix_timing import schedule

from fpgrad.errors import ConfigError
from fpgrad.gateware.matrix import MatrixUnit, drain_latency
from fpgrad.isa.instructions import Matrix, TileStream

FORMATS = {
    "default": {},
    "bf16": {"number": (8, 7), "acc": (24, 1)},
    "narrow": {"mantissa": 4, "number": (5, 4), "acc": (20, 0)},
    "wide": {"mantissa": 16, "number": (8, 23), "acc": (48, 16)},
    "saturating": {"number": (8, 15), "acc": (20, 6)},
    "overwide": {"mantissa": 16, "number": (6, 20), "acc": (24, 10)},
}


@pytest.mark.parametrize("name", FORMATS)
def test_random_instructions(name):
    config = make_config(**FORMATS[name])
    flagged = 0
    for seed in range(2):
        rng = np.random.default_rng([seed, *name.encode()])
        machine = random_machine(config, rng)
        instructions = [random_instruction(config, rng) for _ in range(5)]
        trace = simulate(machine, instructions)
        flagged += check_rows(machine, instructions, trace)
    if name in ("saturating", "overwide"):
        assert flagged


@pytest.mark.parametrize("source", [1.0, 0.05])
@pytest.mark.parametrize("sink", [0.5, 0.1])
def test_stalled_source_and_sink(source, sink):
    rng = np.random.default_rng(int(100 * (source + sink)))
    config = make_config()
    machine = random_machine(config, rng)
    instructions = [random_instruction(config, rng) for _ in range(5)]
    stalls = rng.random((2, 20000))
    trace = simulate(
        machine,
        instructions,
        ready=lambda c: stalls[0, c] < sink,
        offer=lambda c: stalls[1, c] < source,
    )
    check_rows(machine, instructions, trace)


def test_sink_that_waits_for_long():
    rng = np.random.default_rng(0)
    config = make_config()
    machine = random_machine(config, rng)
    instructions = [random_instruction(config, rng, rows=4, terms=1, most=8) for _ in range(6)]
    trace = simulate(machine, instructions, ready=lambda c: c > 400, acc_rows=8)
    check_rows(machine, instructions, trace)


@pytest.mark.parametrize("side", [8, 16])
def test_other_sides(side):
    rng = np.random.default_rng(side)
    config = make_config(side=side, tiles=6)
    machine = random_machine(config, rng)
    instructions = [random_instruction(config, rng, most=2) for _ in range(3)]
    check_rows(machine, instructions, simulate(machine, instructions))


def square(n1, n0, k, rows):
    """Both loops over outputs in use, and the innermost loop over products."""
    return Matrix(
        n1=n1,
        n0=n0,
        k0=k,
        rows=rows,
        streamed=TileStream(0, 0, t0=1),
        stationary=TileStream(1, 0, s0=1, t0=1),
    )


def test_every_loop_walks_with_its_own_strides():
    config = make_config(tiles=512)
    machine = random_machine(config, np.random.default_rng(1))
    strides = [256, 128, 64, 9, 3, 1]
    deep = Matrix(
        *(2, 2, 2, 2, 3, 3),
        rows=1,
        streamed=TileStream(0, 0, *strides),
        stationary=TileStream(1, 511, *(-s for s in strides)),
    )
    trace = simulate(machine, [deep, square(1, 1, 2, 4)])
    check_rows(machine, [deep, square(1, 1, 2, 4)], trace)
    first = trace.accepted[0] + 5
    late = deep.terms + 1 - 4  # the scan of the first tile that its load does not hide
    assert trace.busy[: deep.products] == [first + late + 4 * n for n in range(deep.products)]


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("side", [4, 8])
def test_one_instruction_has_no_bubbles(rows, k, side):
    config = make_config(side=side)
    machine = random_machine(config, np.random.default_rng(0))
    trace = simulate(machine, [square(2, 3, k, rows)])
    assert len(trace.accepted) == 1
    a, t = trace.accepted[0], side
    late = max(0, k + 1 - t)  # the scan of a first tile that the first load does not hide
    go = [a + t * (1 + p) + late for p in range(6 * k)]
    assert trace.busy == [g + 1 + r for g in go for r in range(rows)]
    assert [c for c, _ in trace.done] == [go[-1] + rows + 1]
    finished = go[k - 1 :: k]
    assert trace.valid == [g + 1 + r + drain_latency(t) for g in finished for r in range(rows)]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_instructions_follow_without_bubbles(k):
    config = make_config()
    machine = random_machine(config, np.random.default_rng(0))
    instructions = [square(1, 2, k, 4), square(1, 1, k, 4), square(2, 1, k, 4), square(1, 1, k, 4)]
    trace = simulate(machine, instructions)
    check_rows(machine, instructions, trace)
    first = trace.accepted[0] + 4 + 1
    assert trace.busy == list(range(first, first + 6 * k * 4))


@pytest.mark.parametrize("seed", range(5))
def test_timing_model(seed):
    """The recurrences of the timing model give every cycle, whatever source and sink do."""
    rng = np.random.default_rng(seed)
    config = make_config(tiles=24)
    machine = random_machine(config, rng)
    instructions = [
        random_instruction(config, rng, terms=int(rng.choice([1, 2, 5, 9]))) for _ in range(7)
    ]
    stalls = rng.random((2, 20000))
    source, sink = rng.choice([0.02, 0.2, 1.0]), rng.choice([0.2, 0.6, 1.0])
    capacity = int(rng.choice([4, 9, 32]))

    def offer(cycle):
        return stalls[0, cycle] < source

    def ready(cycle):
        return stalls[1, cycle] < sink

    trace = simulate(machine, instructions, offer=offer, ready=ready, acc_rows=capacity)
    check_rows(machine, instructions, trace)
    wanted = schedule(instructions, 4, offer=offer, ready=ready, acc_rows=capacity)
    assert trace.accepted == wanted.accepted
    assert trace.busy == wanted.busy
    assert [c for c, _ in trace.done] == wanted.done
    assert [c for c, _, _ in trace.rows] == wanted.taken


def test_queue_must_hold_an_output_tile():
    with pytest.raises(ConfigError, match=r"acc_rows must be at least the tile side 4, not 3"):
        MatrixUnit(make_config(), acc_rows=3)
