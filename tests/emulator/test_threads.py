"""Instructions large enough to be split between threads: the same bits as the reference for any number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.programs.cases import once, run
from tests.programs.machines import MACHINES, resized
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

CONFIG = resized(MACHINES["T16"], vector_rows=2048, tiles=320, mask_rows=2048)
PRODUCTS = Matrix(
    2, 4, 8, 1, 2, 4, 16,
    TileStream(1, 0, 4, 1, 0, 0, 32, 8), TileStream(0, 64, 0, 0, 1, 0, 32, 8),
)  # fmt: skip
UPDATE = Vector(
    loops=Loops(2, 4, 8, 16),
    p0=RowStream(Space.VECTOR, 0, 0, 512, 128, 16, 1),
    a=Source.ACC,
    b=Source.I0,
    c=Source.P0,
    alu=Alu.ADD,
    negate_product=1,
    i0=Immediate(1, 3),
    row_mask=Mask(3, 7),
    lane_mask=Mask(1, 9),
    target=Target(Space.VECTOR, 0, 512, 128, 16, 1),
    tile=TileTarget(1, 0, 128, 32, 8, 1),
    fence=1,
)
#: The same pass in two loops less, and one whose iterations overwrite what others read.
FLAT = replace(
    UPDATE,
    a=Source.P0,
    loops=Loops(1, 1, 64, 16),
    p0=RowStream(Space.VECTOR, 0, 0, s1=16, s0=1),
    target=Target(Space.VECTOR, s1=16, s0=1),
)
SHIFTED = replace(FLAT, target=Target(Space.VECTOR, 16, s1=16, s0=1), tile=TileTarget())
#: Rows that flow into tiles across loops, and masks from numbers and back.
FLOWING = replace(
    FLAT,
    loops=Loops(2, 4, 4, 24),
    p0=RowStream(Space.VECTOR, 1, 0, 512, 96, 24, 1),
    target=Target(Space.MASK, 0, 512, 96, 24, 1),
    tile=TileTarget(1, 1, 192, 24, 6, 1),
)
MASKED = replace(FLAT, b=Source.P1, p1=RowStream(Space.MASK, 1, 0, s1=16, s0=1), tile=TileTarget())


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_threads_do_not_change_bits(threads: int, seed: int):
    program = single(CONFIG, PRODUCTS, UPDATE, FLAT, SHIFTED, FLOWING, MASKED, PRODUCTS, UPDATE)
    case = once(program, seed, steps=5)
    reference, emulator = ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG, threads=threads)
    results = [run(machine, case)[0] for machine in (reference, emulator)]
    assert first_difference(reference.dump(), emulator.dump(), program) is None
    assert results[0].saturated_vector == results[1].saturated_vector
    assert results[0].saturated_accumulator == results[1].saturated_accumulator
