"""The static check refuses what the reference refuses."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from tests.programs.cases import cases
from tests.programs.machines import MACHINES

from fpgrad.errors import ExecutionError
from fpgrad.formats import Function, TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.instructions import (
    CLASS_OF,
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
    Transfer,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.isa.ranges import check_entry
from fpgrad.reference import ReferenceExecutor

CONFIG = MachineConfig(
    matrix=MatrixConfig(tile=TileFormat(side=4)),
    vector=VectorConfig(functions=()),
    memory=MemoryConfig(
        vector_rows=64,
        tiles=8,
        inbox_rows=64,
        outbox_rows=32,
        mask_rows=64,
        bytes=True,
        tile_dma=True,
        dram_words_per_cycle=4,
    ),
)
#: Without second multiplier and random numbers, masks, and moves of bytes and tiles.
BARE = replace(
    CONFIG,
    vector=VectorConfig(functions=(), post_multiply=False, random=False),
    memory=replace(CONFIG.memory, mask_rows=0, bytes=False, tile_dma=False),
)


def one(config, unit, instruction):
    stop = tuple(int(u == unit) for u in Unit)
    return Program(config, {unit: (instruction,)}, {"main": Entry((0,) * 4, stop)})


def read(base, *strides, space=Space.VECTOR):
    return RowStream(space, 0, base, *strides)


#: What both refuse: addresses outside a memory, and loops that mean nothing.
BAD = {
    "inbox": (
        Unit.LOAD,
        Load(count=5, rows=13, group_stride=13),
        "inbox addresses 0 to 64 are outside its 64 rows",
        "rows addresses 52 to 64 are outside its 64 rows",
    ),
    "inbox, a group before": (
        Unit.LOAD,
        Load(count=3, rows=2, target=5, group_stride=-3),
        "inbox addresses -1 to 6 are outside its 64 rows",
        "rows addresses -1 to 0 are outside its 64 rows",
    ),
    "inbox, rows far apart": (
        Unit.LOAD,
        Load(rows=9, row_stride=8),
        "inbox addresses 0 to 64 are outside its 64 rows",
        "rows addresses 0 to 64 are outside its 64 rows",
    ),
    "bytes": (
        Unit.LOAD,
        Load(Transfer.BYTES, rows=4, target=49),
        "inbox addresses 49 to 64 are outside its 64 rows",
        "bytes addresses 49 to 64 are outside its 64 rows",
    ),
    "tiles": (
        Unit.LOAD,
        Load(Transfer.TILES, count=2, rows=4, group_stride=5),
        "tile addresses 0 to 8 are outside its 8 rows",
        "tiles addresses 5 to 8 are outside its 8 rows",
    ),
    "masks": (
        Unit.LOAD,
        Load(Transfer.MASKS, rows=2, row_stride=33),
        "mask addresses 0 to 64 are outside its 64 rows",
        "masks addresses 0 to 64 are outside its 64 rows",
    ),
    "outbox": (
        Unit.STORE,
        Store(rows=2, source=31),
        "outbox addresses 31 to 32 are outside its 32 rows",
        "rows addresses 31 to 32 are outside its 32 rows",
    ),
    "tiles to store": (
        Unit.STORE,
        Store(Transfer.TILES, rows=3, source=1, row_stride=-1),
        "tile addresses -1 to 1 are outside its 8 rows",
        "tiles addresses -1 to 1 are outside its 8 rows",
    ),
    "masks to store": (
        Unit.STORE,
        Store(Transfer.MASKS, count=2, source=1, group_stride=32),
        "mask addresses 1 to 64 are outside its 64 rows",
        "masks addresses 33 to 64 are outside its 64 rows",
    ),
    "rows": (Unit.MATRIX, Matrix(rows=5), "a matrix instruction streams 1 to 4 rows, not 5"),
    "tile": (
        Unit.MATRIX,
        Matrix(k0=3, rows=4, streamed=TileStream(base=6, t0=1)),
        "tile addresses 6 to 8 are outside its 8 rows",
    ),
    "tile, all six loops": (
        Unit.MATRIX,
        Matrix(2, 2, 2, 2, 2, 2, 4, stationary=TileStream(0, 3, -2, 1, -1, 1, -1, 2)),
        "tile addresses -1 to 7 are outside its 8 rows",
        r"tile addresses -?\d to -?\d are outside its 8 rows",
    ),
    "low": (
        Unit.VECTOR,
        Vector(loops=Loops(1, 1, 2, 3), p0=read(2, 0, 0, 1, -2), a=Source.P0),
        "vector addresses -2 to 3 are outside its 64 rows",
    ),
    "fourth loop": (
        Unit.VECTOR,
        Vector(loops=Loops(n3=2), p1=read(0, 64), b=Source.P1),
        "vector addresses 0 to 64 are outside its 64 rows",
    ),
    "mask": (
        Unit.VECTOR,
        Vector(loops=Loops(n0=2), p0=read(63, 0, 0, 0, 1, space=Space.MASK), c=Source.P0),
        "mask addresses 63 to 64 are outside its 64 rows",
    ),
    "mask to write": (
        Unit.VECTOR,
        Vector(loops=Loops(n2=2), target=Target(Space.MASK, 0, s2=64)),
        "mask addresses 0 to 64 are outside its 64 rows",
    ),
    "none": (
        Unit.VECTOR,
        Vector(a=Source.P0),
        "an operand reads a memory stream whose space is NONE",
    ),
    "reduce": (Unit.VECTOR, Vector(reduce=1), "a reducing pass needs n0 of at least 4, not 1"),
    "target": (
        Unit.VECTOR,
        Vector(loops=Loops(n0=33), target=Target(Space.OUTBOX, s0=1)),
        "outbox addresses 0 to 32 are outside its 32 rows",
    ),
    "too many rows for a tile": (
        Unit.VECTOR,
        Vector(loops=Loops(n0=5), tile=TileTarget(1)),
        "a quantising pass needs n0 of at most 4 and must not reduce; n0 is 5",
    ),
    "tiles of a reducing pass": (
        Unit.VECTOR,
        Vector(loops=Loops(n0=5), reduce=1, tile=TileTarget(1, flow=1)),
        "a quantising pass needs n0 of at most 4 and must not reduce; n0 is 5",
    ),
    "tiles of three loops": (
        Unit.VECTOR,
        Vector(loops=Loops(2, 2, 2, 4), tile=TileTarget(1, 0, 2, 3, 2, 1)),
        "tile addresses 2 to 8 are outside its 8 rows",
    ),
    "tiles that rows flow into": (
        Unit.VECTOR,
        Vector(loops=Loops(1, 1, 3, 11), tile=TileTarget(1, 1, 0, s1=1)),
        "tile addresses 0 to 8 are outside its 8 rows",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_reference_refuses_is_refused_before_the_run(name):
    unit, instruction, message, *other = BAD[name]
    program = one(CONFIG, unit, instruction)
    where = f"{unit.name.lower()} instruction 0: "
    with pytest.raises(ExecutionError, match=f"^{where}{re.escape(message)}$"):
        check_entry(program, program.entries["main"])
    reference = ReferenceExecutor(CONFIG)
    reference.load_program(program)
    with pytest.raises(ExecutionError, match=f"^{other[0] if other else message}$"):
        reference.run("main", 1, [0])


#: What no machine does, or not the machine of this test.
NEVER = {
    "a trip count of a pass": (
        CONFIG,
        Vector(loops=Loops(n3=0)),
        "a trip count must be at least 1, not 0",
    ),
    "a trip count of products": (
        CONFIG,
        Matrix(k2=0, rows=1),
        "a trip count must be at least 1, not 0",
    ),
    "long sums": (
        CONFIG,
        Matrix(k2=2, k1=256, k0=128, rows=1),
        "a matrix instruction sums at most 65535 products, not 65536",
    ),
    "no groups": (CONFIG, Load(count=0), "count must be at least 1, not 0"),
    "no rows": (CONFIG, Store(rows=0), "rows must be at least 1, not 0"),
    "bytes to store": (CONFIG, Store(Transfer.BYTES), "STORE does not write bytes"),
    "target": (
        CONFIG,
        Vector(target=Target(Space.INBOX)),
        "a pass does not write to the inbox; only LOAD does",
    ),
    "source": (
        CONFIG,
        Vector(p0=read(0, space=Space.OUTBOX), d=Source.P0),
        "a pass does not read the outbox; only STORE does",
    ),
    "scalars": (
        CONFIG,
        Vector(VectorOp.SCALARS, p0=read(0, space=Space.MASK)),
        "SCALARS takes a row of numbers, not of masks",
    ),
    "seed": (
        CONFIG,
        Vector(VectorOp.SEED, p0=read(0, space=Space.OUTBOX)),
        "a pass does not read the outbox; only STORE does",
    ),
    "bytes to load": (BARE, Load(Transfer.BYTES), "the machine's LOAD does not take bytes"),
    "tiles to load": (
        BARE,
        Load(Transfer.TILES),
        "the machine does not move tiles or masks to and from external memory",
    ),
    "masks to store": (
        BARE,
        Store(Transfer.MASKS),
        "the machine does not move tiles or masks to and from external memory",
    ),
    "no masks": (
        BARE,
        Vector(target=Target(Space.MASK)),
        "mask addresses 0 to 0 are outside its 0 rows",
    ),
    "post": (
        BARE,
        Vector(d=Source.I0),
        "the machine has no second multiplier, so d must be ONE",
    ),
    "random": (BARE, Vector(c=Source.RANDOM), "the machine has no random generators"),
    "function": (BARE, Vector(function=Function.TANH), "the machine has no function TANH"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_no_machine_does_is_refused_before_the_run(name):
    config, instruction, message = NEVER[name]
    unit = next(u for u in Unit if CLASS_OF[u] is type(instruction))
    program = one(config, unit, instruction)
    where = f"{unit.name.lower()} instruction 0: "
    with pytest.raises(ExecutionError, match=f"^{where}{re.escape(message)}$"):
        check_entry(program, program.entries["main"])


GOOD = {
    "tiles of several rows' loops": Vector(
        loops=Loops(1, 2, 3, 5), tile=TileTarget(1, 1, 0, 0, 4, 1)
    ),
    "a full memory of masks": Load(Transfer.MASKS, rows=2, row_stride=32),
    "the longest sum": Matrix(k2=3, k1=5, k0=4369, rows=4),
    "strides of loops that do not turn": Load(target=63, group_stride=-500, row_stride=500),
    "a stream that is not read": Vector(p0=read(1000)),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_stays_inside_is_not_refused(name):
    unit = next(u for u in Unit if CLASS_OF[u] is type(GOOD[name]))
    program = one(CONFIG, unit, GOOD[name])
    check_entry(program, program.entries["main"])


@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
@given(case=cases(MACHINES["T4"]))
def test_good_programs_pass(case):
    for entry in case.program.entries.values():
        check_entry(case.program, entry)
