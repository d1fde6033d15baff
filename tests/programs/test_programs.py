"""Random programs are what they claim: legal, free of races, and the same in every order that tokens allow."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.programs.cases import KINDS, KINDS_OF_CORES, Case, cases, run
from tests.programs.disorder import DisorderlyReference, RaceError
from tests.programs.machines import MACHINES, bases, with_cores
from tests.programs.places import footprint, members

from fpgrad.isa.compare import first_difference
from fpgrad.isa.instructions import CLASS_OF, Tokens, Transfer, Unit
from fpgrad.isa.layout import Bits, layout, values
from fpgrad.isa.ranges import check_entry
from fpgrad.reference import ReferenceExecutor

SETTINGS = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(
    ("name", "cores"),
    [("T4", 1), ("T8", 1), ("T32", 1), ("E8M14", 1), ("T4", 2), ("T8", 3), ("E5", 4)],
)
@SETTINGS
@given(data=st.data())
def test_programs_are_legal_and_the_same_in_any_order(name: str, cores: int, data: st.DataObject):
    config = with_cores(MACHINES[name], cores)
    case = data.draw(cases(config, length=6))
    for entry in case.program.entries.values():
        check_entry(case.program, entry)
    reference, other = ReferenceExecutor(config), DisorderlyReference(config)
    results = run(reference, case)
    for other.seed in range(2):
        assert run(other, case) == results
        assert first_difference(reference.dump(), other.dump(), case.program) is None


def scrambled(reference: ReferenceExecutor, places: int, seed: int) -> None:
    """Change what is at these places, to numbers of the same kind."""
    machine = reference.machine
    at, rng = members(machine.config, places), np.random.default_rng(seed)
    for name in ("vector", "inbox", "outbox", "mask", "mantissas", "exponents", "dram"):
        memory = machine.external.words if name == "dram" else getattr(machine, name)
        rows = at["tile" if name in ("mantissas", "exponents") else name]
        rows = rows[rows < len(memory)]
        memory[rows] = rng.permuted(memory[rows], axis=0)


@SETTINGS
@given(data=st.data())
def test_instructions_touch_what_their_footprint_says(data: st.DataObject):
    """They change nothing else, and what they leave does not depend on anything else."""
    config = MACHINES["T4"]
    case = data.draw(cases(config, length=1, entries=1))
    program = case.program
    for unit, listed in program.units.items():
        program = dataclasses.replace(
            program,
            units={
                **program.units,
                unit: tuple(dataclasses.replace(i, wait=Tokens()) for i in listed),
            },
        )
    chain = [i for x in program.units.values() for i in x]
    reads = writes = 0
    for i in chain:
        touches = footprint(config, i)
        reads, writes = reads | touches.reads, writes | touches.writes
    left, right = ReferenceExecutor(config), ReferenceExecutor(config)
    memories = prepared(left, case, program)
    prepared(right, case, program)
    others = ~(reads | writes)
    scrambled(right, others, case.seed)
    before = right.dump()
    for machine in (left, right):
        machine.run("part 0", 1, bases(config))
    for name, old in before.items():
        new = right.dump()[name]
        if name in memories and name not in ("scalars", "random"):
            kind = "tile" if name in ("mantissas", "exponents") else name
            allowed = members(config, writes)[kind]
            changed = np.flatnonzero((new[: len(old)] != old).reshape(len(old), -1).any(1))
            assert set(changed) <= set(allowed), name
            assert (left.dump()[name][allowed] == new[allowed]).all(), name
    assert (left.dump()["scalars"] == right.dump()["scalars"]).all()


def prepared(reference: ReferenceExecutor, case: Case, program) -> dict[str, np.ndarray]:
    """Load a program and a case's memories."""
    from tests.programs.contents import contents

    memories = contents(program.config, case.seed, case.odd)
    reference.load_program(program)
    reference.restore(memories)
    return memories


@pytest.mark.parametrize(
    ("what", "kinds"), [("wait", KINDS), ("fence", ("pass", "tile", "reduce"))]
)
def test_what_is_not_ordered_is_found(what: str, kinds: tuple[str, ...]):
    """Without their tokens or fences many programs are wrong."""
    config = MACHINES["T4"]
    found = tried = 0

    @SETTINGS
    @given(case=cases(config, kinds=kinds, entries=1, odd=False))
    def without(case: Case) -> None:
        nonlocal found, tried
        program = case.program
        empty = {"wait": Tokens(), "signal": Tokens()} if what == "wait" else {"fence": 0}
        units = {
            unit: tuple(
                dataclasses.replace(i, **empty) if what == "wait" or unit is Unit.VECTOR else i
                for i in listed
            )
            for unit, listed in program.units.items()
        }
        if units == program.units:
            return
        tried += 1
        broken = dataclasses.replace(case, program=dataclasses.replace(program, units=units))
        try:
            run(DisorderlyReference(config), broken)
        except RaceError:
            found += 1

    without()
    assert found > tried / 4 > 3


def test_everything_is_drawn():
    """Each value of each small field, both signs of each stride, and tokens between all units that touch each other."""
    seen: set[tuple] = set()

    for cores, kinds in ((1, KINDS), (1, ("matrix", "load", "store")), (3, KINDS_OF_CORES)):

        @settings(SETTINGS, max_examples=90)
        @given(case=cases(with_cores(MACHINES["T4"], cores), length=10, kinds=kinds))
        def look(case: Case) -> None:
            for unit, listed in case.program.units.items():
                for i in listed:
                    for leaf, value in zip(layout(type(i)), values(i), strict=True):
                        small = leaf.enum or leaf.width <= 2
                        seen.add((unit, leaf.name, value if small else np.sign(value)))

        look()
    missing = [
        f"{unit.name}.{leaf.name} = {value}"
        for unit, cls in CLASS_OF.items()
        for leaf in layout(cls)
        for value in wanted(unit, leaf)
        if (unit, leaf.name, value) not in seen
    ]
    assert missing == []


#: What no program has.
NEVER = {"p0.space": {0, 3}, "p1.space": {3}, "target.space": {2}}


def wanted(unit: Unit, leaf: Bits) -> set[int]:
    """The values of a field that must be drawn: of numbers only the signs."""
    if leaf.enum:
        never = NEVER.get(leaf.name, set()) if unit is not Unit.STORE else {Transfer.BYTES}
        return {int(v) for v in leaf.enum} - never
    if leaf.width <= 2:
        return set(range(1 << leaf.width))
    low = {1} if leaf.default == 1 or leaf.name == "rows" else {0, 1}
    return low | ({-1, 0} if leaf.signed else set())
