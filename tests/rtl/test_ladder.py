"""RTL against the reference: zero differing words, and a difference is found and named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rtl.compare import check_random, differences, reference_dump, rtl_dump, run_both
from tests.rtl.conftest import CONFIGS
from tests.rtl.programs import BASE, random_program

from fpgrad.errors import (
    ExecutionError,
    InvalidArgumentError,
    ProgramError,
    ProgramMismatchError,
)
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Load, Loops, Matrix, Source, Tokens, Unit, Vector
from fpgrad.isa.program import Entry, Program
from fpgrad.reference import ReferenceExecutor


@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs_leave_the_same_bits(machines, name):
    for seed in range(25):
        check_random(CONFIGS[name], machines(name), seed, count=30, steps=3)


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 30), steps=st.integers(1, 3))
def test_any_random_program_leaves_the_same_bits(machines, seed, count, steps):
    check_random(CONFIGS["side 4"], machines("side 4"), seed, count, steps)


@pytest.mark.parametrize(
    "kind", ["load", "store", "pass", "reduce", "tile", "matrix", "scalars", "seed"]
)
def test_each_kind_of_instruction_alone(machines, kind):
    for seed in range(5):
        program, words = random_program(CONFIGS["side 4"], 100 + seed, 10, (kind,))
        lines, _ = run_both(CONFIGS["side 4"], machines("side 4"), program, words, 1)
        assert not lines, f"seed {100 + seed}: " + "; ".join(lines)


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
    config, rtl = CONFIGS["side 4"], machines("side 4")
    program, words = random_program(config, 1)
    lines, _ = run_both(config, rtl, program, words, 1)
    assert lines == []
    before = rtl_dump(rtl)
    value = int(before[memory][place])
    rtl.poke(memory, place, value ^ 1)
    lines = differences(before, rtl_dump(rtl))
    assert lines == [
        f"{memory}: 1 differ, first {place}: {value:#x} and {value ^ 1:#x}",
    ]


def test_a_bit_flipped_before_the_run_spreads(machines):
    config, rtl = CONFIGS["side 4"], machines("side 4")
    program, words = random_program(config, 2)
    run_both(config, rtl, program, words, 1)
    wanted = rtl_dump(rtl)
    rtl.load_program(program)
    words[0, 0] ^= 1 << 30
    rtl.write(BASE, words)
    rtl.run("main", 1, [BASE])
    assert differences(wanted, rtl_dump(rtl))


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
    takes = Vector(loops=Loops(1, 1, 2), a=Source.ACC)
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
    rtl = machines("bare")
    fresh = ReferenceExecutor(CONFIGS["bare"])
    rtl.load_program(Program(CONFIGS["bare"], {}, {}))
    assert differences(reference_dump(fresh), rtl_dump(rtl)) == []


def test_a_dump_can_be_restored(machines):
    config, rtl = CONFIGS["side 4"], machines("side 4")
    program, words = random_program(config, 3)
    run_both(config, rtl, program, words, 1)
    before = rtl.dump()
    rtl.load_program(program)
    assert differences(before, rtl_dump(rtl) | {"dram": before["dram"]})
    rtl.restore(before)
    after = rtl.dump()
    assert differences(before, after) == []
    assert len(after["dram"]) == len(before["dram"])


def test_places_that_are_not_there_are_refused(machines):
    rtl = machines("side 4")
    with pytest.raises(InvalidArgumentError, match=r"memory must be one of vector, inbox, .*'x'"):
        rtl.poke("x", 0, 1)
    with pytest.raises(InvalidArgumentError, match=r"index \(128, 0\) is outside vector"):
        rtl.poke("vector", (128, 0), 1)
