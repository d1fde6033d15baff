"""Instructions large enough to be split between threads: the same bits as the reference for any number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.programs.contents import contents
from tests.programs.machines import MACHINES
from tests.programs.order import single

from fpgrad.emulator import EmulatorExecutor
from fpgrad.isa.compare import first_difference
from fpgrad.isa.instructions import (
    Alu,
    Immediate,
    Loops,
    Mask,
    Matrix,
    RowStream,
    Source,
    Space,
    Target,
    TileStream,
    TileTarget,
    Vector,
)
from fpgrad.reference import ReferenceExecutor

CONFIG = replace(
    MACHINES["T16"],
    memory=replace(MACHINES["T16"].memory, vector_rows=2048, tiles=320, tile_dma=False),
)
PRODUCTS = Matrix(
    n1=8,
    n0=8,
    k0=8,
    rows=16,
    streamed=TileStream(1, 0, s1=1, t0=8),
    stationary=TileStream(0, 64, s0=1, t0=8),
)
UPDATE = Vector(
    loops=Loops(1, 8, 8, 16),
    p0=RowStream(Space.VECTOR, 0, 0, 0, 128, 16, 1),
    a=Source.ACC,
    b=Source.I0,
    c=Source.P0,
    alu=Alu.ADD,
    negate_product=1,
    i0=Immediate(1, 3),
    row_mask=Mask(2, 7),
    lane_mask=Mask(1, 9),
    target=Target(Space.VECTOR, 0, 0, 128, 16, 1),
    tile=TileTarget(1, 0, 128, 0, 8, 1),
    fence=1,
)
#: The same pass in one loop less, and one whose iterations overwrite what others read.
FLAT = replace(UPDATE, a=Source.P0, loops=Loops(1, 1, 64, 16))
SHIFTED = replace(FLAT, target=Target(Space.VECTOR, 16, 0, 0, 16, 1), tile=TileTarget())


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_threads_do_not_change_bits(threads: int, seed: int):
    program = single(CONFIG, PRODUCTS, UPDATE, FLAT, SHIFTED, PRODUCTS, UPDATE)
    memories = contents(CONFIG, seed, odd=False)
    reference, emulator = ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG, threads=threads)
    results = []
    for machine in (reference, emulator):
        machine.load_program(program)
        machine.restore(memories)
        results.append(machine.run("run", 5, (0, 0)))
    assert first_difference(reference.dump(), emulator.dump(), program) is None
    assert results[0].saturated_vector == results[1].saturated_vector
    assert results[0].saturated_accumulator == results[1].saturated_accumulator
