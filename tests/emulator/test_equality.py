"""The emulator equals the reference on random instructions and programs, at every level."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.emulator.equality import Equality
from tests.programs.cases import cases, once, products
from tests.programs.machines import MACHINES, with_cores
from tests.programs.order import single

from fpgrad.formats import Function
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
)

SETTINGS = settings(
    deadline=None, max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck)
)
#: What is drawn for one test each: a kind of instruction alone, or everything together.
KINDS_OF = {
    "passes": {"kinds": ("pass", "reduce", "tile", "scalars", "seed"), "length": 1, "entries": 1},
    "products": {"kinds": ("matrix",), "length": 1, "entries": 1},
    "moves": {"kinds": ("load", "store"), "length": 4, "entries": 1},
    "programs": {},
}


@functools.cache
def equality(name: str, cores: int = 1) -> Equality:
    return Equality(with_cores(MACHINES[name], cores))


@pytest.mark.parametrize("kinds", KINDS_OF)
@pytest.mark.parametrize("name", MACHINES)
@SETTINGS
@given(data=st.data())
def test_random_programs(name: str, kinds: str, data: st.DataObject):
    equality(name).check(data.draw(cases(MACHINES[name], **KINDS_OF[kinds])))


@pytest.mark.parametrize("name", ["T4", "T16", "E5", "fp32"])
@SETTINGS
@given(data=st.data(), cores=st.integers(2, 4))
def test_random_programs_on_several_cores(name: str, data: st.DataObject, cores: int):
    equality(name, cores).check(data.draw(cases(with_cores(MACHINES[name], cores))))


@pytest.mark.parametrize("name", ["T4", "T8", "T16", "bf16"])
@SETTINGS
@given(data=st.data(), cores=st.sampled_from([2, 1, 3, 16]))
def test_sums_over_the_cores(name: str, data: st.DataObject, cores: int):
    """Little else, so that their numbers are odd, or so large that sums are clamped."""
    config = with_cores(MACHINES[name], cores)
    equality(name, cores).check(data.draw(cases(config, 3, ("sum", "sum", "pass"), entries=1)))


@pytest.mark.parametrize("name", ["T4", "T16", "E5"])
@SETTINGS
@given(data=st.data())
def test_long_sums(name: str, data: st.DataObject):
    """So many products that accumulators may saturate on the way, whatever their order."""
    equality(name).check(data.draw(products(MACHINES[name], terms=400)))


def _pass(side: int, rng: np.random.Generator, **fields: object) -> Vector:
    """A pass over 2·T·T rows with everything that ``fields`` does not say plain."""
    rows = Loops(1, 1, 2, side)
    p0, p1 = (
        RowStream(Space.VECTOR, 0, int(rng.integers(0, 4 * side)), 0, 0, side, 1) for _ in range(2)
    )
    defaults = {
        "loops": rows,
        "p0": p0,
        "p1": p1,
        "a": Source.P0,
        "target": Target(Space.OUTBOX, 0, 0, 0, side, 1),
    }
    return Vector(**(defaults | fields))


@pytest.mark.parametrize("name", ["T4", "T8", "T16", "bf16", "E5"])
@pytest.mark.parametrize("alu", Alu)
def test_every_alu_with_every_source(name: str, alu: Alu):
    """All pairs of sources of b and c, both signs, odd and ordinary numbers."""
    side, rng = MACHINES[name].side, np.random.default_rng(alu)
    one = Immediate(1, 1)
    sources = [s for s in Source if s is not Source.ACC]
    chain = []
    for b in sources:
        for c in sources:
            p, n = int(rng.integers(0, 2)), int(rng.integers(0, 2))
            base = {"b": b, "c": c, "alu": alu, "i0": one, "negate_product": p, "negate_c": n}
            chain.append(
                _pass(side, rng, **base, target=Target(Space.VECTOR, 6 * side, 0, 0, side, 1))
            )
            chain.append(
                _pass(
                    side, rng, **base, reduce=1, target=Target(Space.VECTOR, 7 * side, 0, 0, 0, 1)
                )
            )
    for first in range(0, len(chain), 32):
        program = single(MACHINES[name], *chain[first : first + 32])
        for odd in (False, True):
            for seed in range(4):
                equality(name).check(once(program, seed, odd))


@pytest.mark.parametrize("name", ["T4", "T8", "T16", "bf16", "E5", "fp32"])
@pytest.mark.parametrize("function", Function)
def test_every_function(name: str, function: Function):
    """With and without masks, d operand, transposed reads, rows and tiles as targets."""
    side, rng = MACHINES[name].side, np.random.default_rng(function)
    chain = []
    for d in (Source.ONE, Source.P1, Source.I0):
        for transposed in (0, 1):
            for mask in (Mask(), Mask(1, side // 2), Mask(2, 1)):
                p0 = RowStream(Space.VECTOR, transposed, side, 0, 0, side, 1)
                common = {"function": function, "d": d, "p0": p0, "i0": Immediate(0, 5)}
                chain.append(_pass(side, rng, **common, row_mask=mask))
                chain.append(_pass(side, rng, **common, lane_mask=mask, alu=Alu.ADD, c=Source.P1))
                chain.append(
                    _pass(
                        side,
                        rng,
                        **common,
                        row_mask=mask,
                        target=Target(),
                        tile=TileTarget(1, 0, 2, 0, 0, 3),
                    )
                )
    program = single(MACHINES[name], *chain)
    for odd in (False, True):
        for seed in range(4):
            equality(name).check(once(program, seed, odd))
