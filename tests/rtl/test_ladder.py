"""RTL against the reference: zero differing words, and a difference is found and named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.programs.cases import KINDS, cases
from tests.programs.contents import contents
from tests.rtl.compare import check
from tests.rtl.conftest import CONFIGS

from fpgrad.errors import (
    ExecutionError,
    InvalidArgumentError,
    ProgramError,
    ProgramMismatchError,
)
from fpgrad.isa.compare import count_differences, first_difference
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    DramAddress,
    Load,
    Loops,
    Matrix,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    Tokens,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.reference import ReferenceExecutor

UNHURRIED = settings(
    deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.parametrize("name", CONFIGS)
@UNHURRIED
@given(data=st.data())
def test_random_programs_leave_the_same_bits(machines, name, data):
    check(machines(name), data.draw(cases(CONFIGS[name], 20)))


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
@settings(UNHURRIED, max_examples=8)
@given(data=st.data())
def test_each_kind_of_instruction_alone(machines, kind, data):
    check(machines("side 4"), data.draw(cases(CONFIGS["side 4"], 10, (kind,))))


@UNHURRIED
@given(data=st.data())
def test_moves_at_once(machines, data):
    """LOAD and the quantiser write tiles, STORE and passes read, as external memory is slow."""
    kinds = ("load", "store", "tile", "load", "store", "pass")
    check(machines("moves"), data.draw(cases(CONFIGS["moves"], 30, kinds)))


def ran(machines, seed):
    """A program, and the machine with small random contents that it ran on."""
    config, rtl = CONFIGS["side 4"], machines("side 4")
    program = Program(
        config,
        {
            Unit.LOAD: (Load(rows=20, source=DramAddress(0, seed), signal=Tokens(vector=1)),),
            Unit.VECTOR: (
                Vector(
                    loops=Loops(1, 1, 1, 20),
                    p0=RowStream(Space.INBOX, s0=1),
                    a=Source.P0,
                    b=Source.P0,
                    target=Target(Space.OUTBOX, s0=1),
                    wait=Tokens(load=1),
                    signal=Tokens(store=1),
                ),
            ),
            Unit.STORE: (Store(rows=20, target=DramAddress(0, 100), wait=Tokens(vector=1)),),
        },
        {"main": entry(1, 0, 1, 1)},
    )
    rtl.load_program(program)
    rtl.restore(contents(config, seed))
    rtl.run("main", 1, [0])
    return program, rtl


@pytest.mark.parametrize(
    ("memory", "place"),
    [
        ("vector", (17, 3)),
        ("inbox", (5, 0)),
        ("outbox", (63, 2)),
        ("mantissas", (3, 1, 2)),
        ("exponents", (7,)),
        ("scalars", (1,)),
        ("random", (2,)),
        ("dram", (40, 1)),
    ],
)
def test_one_flipped_bit_is_found_and_named(machines, memory, place):
    program, rtl = ran(machines, 1)
    before = rtl.dump()
    value = int(before[memory][place])
    rtl.poke(memory, place, value ^ 1)
    after = rtl.dump()
    assert count_differences(before, after)[0] == 1
    difference = first_difference(before, after, program)
    assert difference is not None
    assert difference.startswith(f"{memory} ")
    assert int(after[memory][place]) == value ^ 1


def test_a_bit_flipped_before_the_run_spreads(machines):
    program, rtl = ran(machines, 2)
    wanted = rtl.dump()
    rtl.load_program(program)
    rtl.restore(contents(CONFIGS["side 4"], 2))
    place = (2, 0)
    rtl.poke("dram", place, int(rtl.dump()["dram"][place]) ^ 1 << 30)
    rtl.run("main", 1, [0])
    # The word itself, what was loaded, and its square, which was stored.
    assert count_differences(wanted, rtl.dump())[0] == 4


def entry(*lengths: int, tokens=((0,) * 4,) * 4) -> Entry:
    return Entry((0,) * 4, lengths, tokens)


def test_counters_and_an_empty_run(machines):
    rtl = machines("side 4")
    program = Program(CONFIGS["side 4"], {Unit.LOAD: (Load(rows=4),)}, {"main": entry(1, 0, 0, 0)})
    rtl.load_program(program)
    assert rtl.run("main", 0, [0]).cycles <= 2
    result = rtl.run("main", 5, [0])
    counters = rtl.counters()
    assert counters["cycles"] == result.cycles
    assert 0 < counters["load"] < result.cycles
    assert (counters["matrix"], counters["vector"], counters["store"]) == (0, 0, 0)


def test_a_deadlock_is_an_error_that_names_units_and_instructions(machines):
    rtl = machines("side 4")
    wait = Tokens(store=1)
    program = Program(
        CONFIGS["side 4"],
        {Unit.LOAD: (Load(), Load(wait=wait)), Unit.VECTOR: (Vector(),)},
        {"main": entry(2, 0, 1, 0), "fine": entry(1, 0, 1, 0)},
    )
    rtl.load_program(program)
    with pytest.raises(
        ExecutionError,
        match=r"^the units wait for each other: load waits at instruction 1 of step 0$",
    ):
        rtl.run("main", 3, [0])
    with pytest.raises(ExecutionError, match="no program is loaded"):
        rtl.run("fine", 3, [0])
    rtl.load_program(program)
    assert rtl.run("fine", 3, [0]).cycles > 0


def test_a_pass_without_its_rows_is_an_error(machines):
    rtl = machines("side 4")
    takes = Vector(loops=Loops(1, 1, 1, 2), a=Source.ACC)
    program = Program(
        CONFIGS["side 4"],
        {Unit.MATRIX: (Matrix(rows=1),), Unit.VECTOR: (takes,)},
        {"main": entry(0, 1, 1, 0), "left": entry(0, 1, 0, 0)},
    )
    rtl.load_program(program)
    with pytest.raises(ExecutionError, match="vector works up to instruction 0 of step 0"):
        rtl.run("main", 1, [0])
    rtl.load_program(program)
    with pytest.raises(ExecutionError, match=r"^accumulator rows were never taken$"):
        rtl.run("left", 1, [0])


def test_what_a_machine_cannot_run_is_refused(machines):
    rtl = machines("side 4")
    with pytest.raises(ProgramMismatchError, match="another machine"):
        rtl.load_program(Program(MachineConfig(), {}, {}))
    program = Program(
        CONFIGS["side 4"],
        {Unit.LOAD: (Load(rows=2, source=dataclasses.replace(Load().source, offset=1023)),)},
        {"main": entry(1, 0, 0, 0)},
    )
    rtl.load_program(program)
    with pytest.raises(ProgramError, match=r"entry must be one of \['main'\], not 'x'"):
        rtl.run("x", 1, [0])
    with pytest.raises(ExecutionError, match="a load or store was outside the 1024 rows"):
        rtl.run("main", 1, [0])
    with pytest.raises(ExecutionError, match="DRAM rows 1020 to 1027 are outside the 1024 rows"):
        rtl.read(1020, 8)


def test_reference_dump_has_the_same_memories(machines):
    rtl = machines("moves")
    fresh = ReferenceExecutor(CONFIGS["moves"])
    empty = Program(CONFIGS["moves"], {}, {})
    rtl.load_program(empty)
    fresh.load_program(empty)
    assert fresh.dump().keys() == rtl.dump().keys()
    assert first_difference(fresh.dump(), rtl.dump()) is None


def test_a_dump_can_be_restored(machines):
    program, rtl = ran(machines, 3)
    before = rtl.dump()
    rtl.load_program(program)
    assert first_difference(before, rtl.dump())
    rtl.restore(before)
    after = rtl.dump()
    assert first_difference(before, after) is None
    assert len(after["dram"]) == len(before["dram"])


def test_places_that_are_not_there_are_refused(machines):
    rtl = machines("side 4")
    with pytest.raises(InvalidArgumentError, match=r"memory must be one of vector, inbox, .*'x'"):
        rtl.poke("x", 0, 1)
    with pytest.raises(InvalidArgumentError, match=r"index \(128, 0\) is outside vector"):
        rtl.poke("vector", (128, 0), 1)
