"""No pass reads a row that an earlier pass may still be computing; programs do not change unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
from tests.codegen.models import forward, functions, g, metrics, optimizers

from fpgrad.codegen.compile import compile_functions
from fpgrad.codegen.emit import HAZARD_ROWS
from fpgrad.isa.instructions import Source, Space, Unit, Vector, VectorOp
from fpgrad.isa.program import Program


def rows_of(stream, loops, side: int, ways: int = 0) -> list[set[int]]:
    """Row addresses that each iteration touches."""
    i2, i1, i0 = np.indices((loops.n2, loops.n1, loops.n0)).reshape(3, -1)
    slot = i0 % ways if ways else i0
    address = stream.base + i2 * stream.s2 + i1 * stream.s1 + slot * stream.s0
    if getattr(stream, "transposed", 0):
        first = address - address % side
        return [set(range(a, a + side)) for a in first]
    return [{int(a)} for a in address]


def first_hazard(program: Program, entry: str, steps: int = 2) -> str | None:
    """The first row read too early if rows are issued one a cycle without ever waiting but at fences."""
    e = program.entries[entry]
    side, ways = program.config.side, program.config.vector.ways
    now = 0
    written: dict[int, int] = {}
    for _ in range(steps):
        for index in range(e.start[Unit.VECTOR], e.stop[Unit.VECTOR]):
            v = program.units[Unit.VECTOR][index]
            assert isinstance(v, Vector)
            if v.fence:
                now += HAZARD_ROWS
            used = {v.a, v.b, v.c, v.d} if v.op is VectorOp.PASS else {Source.P0}
            reads = [
                rows_of(p, v.loops, side)
                for p, source in ((v.p0, Source.P0), (v.p1, Source.P1))
                if source in used and p.space is Space.VECTOR
            ]
            writes = (
                rows_of(v.target, v.loops, side, ways if v.reduce else 0)
                if v.target.space == Space.VECTOR
                else []
            )
            for i in range(v.loops.n2 * v.loops.n1 * v.loops.n0):
                for stream in reads:
                    for row in stream[i]:
                        if now - written.get(row, -HAZARD_ROWS) < HAZARD_ROWS:
                            return f"vector {index} reads row {row} in cycle {now}, written from {written[row]}"
                kept = not v.reduce or i % v.loops.n0 >= v.loops.n0 - ways
                if writes and kept:
                    for row in writes[i]:
                        written[row] = now
                now += 1
    return None


MODELS = {
    "mlp": lambda: functions(
        forward(32, (32, 64, 10)),
        optimizer=optimizers.adam(),
        accuracy=metrics.SparseCategoricalAccuracy(),
    ),
    "tiny": lambda: functions(forward(2, (1, 3, 2)), optimizer=optimizers.adam()),
    "gelu": lambda: functions(
        forward(33, (20, 40, 17), hidden=g.gelu), optimizer=optimizers.rmsprop(momentum=0.9)
    ),
    "deep": lambda: functions(
        forward(64, (16, 16, 16, 16, 4), hidden=g.tanh), optimizer=optimizers.sgd(momentum=0.9)
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_written_before_they_are_read(name: str):
    program = compile_functions(MODELS[name]())
    for entry in program.entries:
        assert first_hazard(program, entry) is None


def test_the_check_can_fail():
    import dataclasses

    program = compile_functions(MODELS["mlp"]())
    unfenced = tuple(dataclasses.replace(v, fence=0) for v in program.units[Unit.VECTOR])
    broken = dataclasses.replace(program, units={**program.units, Unit.VECTOR: unfenced})
    assert first_hazard(broken, "train") is not None
