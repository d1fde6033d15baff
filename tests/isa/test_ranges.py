"""The static check refuses what the reference refuses."""

from __future__ import annotations

import pytest
from tests.rtl.programs import random_program

from fpgrad.errors import ExecutionError
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import (
    Load,
    Loops,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    TileStream,
    TileTarget,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.isa.ranges import check_entry
from fpgrad.reference import ReferenceExecutor

CONFIG = MachineConfig(
    matrix=MatrixConfig(tile=TileFormat(side=4)),
    vector=VectorConfig(functions=()),
    memory=MemoryConfig(
        vector_rows=64, tiles=8, inbox_rows=64, outbox_rows=32, dram_words_per_cycle=4
    ),
)


def one(unit, instruction):
    stop = tuple(int(u == unit) for u in Unit)
    return Program(CONFIG, {unit: (instruction,)}, {"main": Entry((0,) * 4, stop)})


BAD = {
    "inbox": (Unit.LOAD, Load(5, 13), "inbox addresses 0 to 64 are outside its 64 rows"),
    "outbox": (Unit.STORE, Store(2, 31), "outbox addresses 31 to 32 are outside its 32 rows"),
    "rows": (Unit.MATRIX, Matrix(rows=5), "a matrix instruction streams 1 to 4 rows, not 5"),
    "tiles": (
        Unit.MATRIX,
        Matrix(k=3, rows=4, streamed=TileStream(base=6, sk=1)),
        "tile addresses 6 to 8 are outside its 8 rows",
    ),
    "low": (
        Unit.VECTOR,
        Vector(loops=Loops(1, 2, 3), p0=RowStream(Space.VECTOR, 0, 2, 0, 1, -2), a=Source.P0),
        "vector addresses -2 to 3 are outside its 64 rows",
    ),
    "none": (
        Unit.VECTOR,
        Vector(a=Source.P0),
        "an operand reads a memory stream whose space is NONE",
    ),
    "reduce": (Unit.VECTOR, Vector(reduce=1), "a reducing pass needs n0 of at least 4, not 1"),
    "target": (
        Unit.VECTOR,
        Vector(loops=Loops(1, 1, 33), target=Target(Space.OUTBOX, s0=1)),
        "outbox addresses 0 to 32 are outside its 32 rows",
    ),
    "tile": (
        Unit.VECTOR,
        Vector(loops=Loops(1, 1, 5), tile=TileTarget(1)),
        "a quantising pass needs n0 of at most 4 and must not reduce; n0 is 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_reference_refuses_is_refused_before_the_run(name):
    unit, instruction, message = BAD[name]
    program = one(unit, instruction)
    with pytest.raises(ExecutionError, match=f"{unit.name.lower()} instruction 0: {message}"):
        check_entry(program, program.entries["main"])
    reference = ReferenceExecutor(CONFIG)
    reference.load_program(program)
    with pytest.raises(ExecutionError, match=message):
        reference.run("main", 1, [0])


@pytest.mark.parametrize("seed", range(8))
def test_good_programs_pass(seed):
    program, _ = random_program(CONFIG, seed)
    check_entry(program, program.entries["main"])
