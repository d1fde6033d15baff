"""RTL against the reference: zero differing words, and a difference is found and named."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.programs.cases import KINDS, cases, once, products, run
from tests.programs.machines import bases
from tests.programs.order import single
from tests.rtl.compare import difference
from tests.rtl.conftest import CONFIGS, NAMES

from fpgrad.emulator import EmulatorExecutor
from fpgrad.emulator.timing import PIPELINE, timeline
from fpgrad.errors import (
    ExecutionError,
    InvalidArgumentError,
    ProgramError,
    ProgramMismatchError,
)
from fpgrad.isa.compare import first_difference
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    Load,
    Loops,
    Matrix,
    RowStream,
    Source,
    Space,
    Target,
    Tokens,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program, Symbol
from fpgrad.reference import ReferenceExecutor

SETTINGS = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", NAMES)
@SETTINGS
@given(data=st.data())
def test_random_programs_leave_the_same_bits(machines, name: str, data: st.DataObject):
    case = data.draw(cases(CONFIGS[name], length=12))
    assert difference(case, machines(name)) is None


@pytest.mark.parametrize("kind", list(dict.fromkeys(KINDS)))
@SETTINGS
@given(data=st.data())
def test_each_kind_of_instruction_alone(machines, kind: str, data: st.DataObject):
    case = data.draw(cases(CONFIGS["side 4"], 4, (kind,), entries=1))
    assert difference(case, machines("side 4")) is None


@SETTINGS
@given(data=st.data())
def test_cycles_are_those_of_the_emulator(machines, data: st.DataObject):
    config = CONFIGS["side 4"]
    case = data.draw(cases(config, kinds=tuple(k for k in KINDS if k not in ("load", "store"))))
    rtl, emulator = run(machines("side 4"), case), run(EmulatorExecutor(config), case)
    assert [r.cycles for r in rtl] == [r.cycles for r in emulator]


@SETTINGS
@given(data=st.data())
def test_cycles_with_external_memory_are_those_of_the_emulator(machines, data: st.DataObject):
    """Slow and refreshed, it serves LOAD and STORE at once; LOAD waits for the vector unit's writes."""
    config = CONFIGS["moves"]
    case = data.draw(cases(config))
    for (entry, steps), result in zip(case.runs, run(machines("moves"), case), strict=True):
        found = timeline(case.program, entry, steps, bases=bases(config))
        cycles = max(record.end for record in found) + PIPELINE.finish
        # Where a gathered group is, and so where its burst is split, the model does not know.
        assert abs(cycles - result.cycles) <= 2 * steps * gathers(case.program)


def gathers(program: Program) -> int:
    return sum(i.gather * i.count for i in program.units[Unit.LOAD] if isinstance(i, Load))


@SETTINGS
@given(data=st.data())
def test_long_sums(machines, data: st.DataObject):
    case = data.draw(products(CONFIGS["side 8"], 200))
    assert difference(case, machines("side 8")) is None


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@settings(SETTINGS, max_examples=1000, derandomize=False)
@given(data=st.data())
def test_many_random_programs_leave_the_same_bits(machines, name: str, data: st.DataObject):
    case = data.draw(cases(CONFIGS[name], length=20))
    assert difference(case, machines(name)) is None


COPY = Vector(
    loops=Loops(n0=16),
    p0=RowStream(Space.VECTOR, 0, 0, s0=1),
    a=Source.P0,
    target=Target(Space.VECTOR, 32, s0=1),
)
SYMBOLS = (
    Symbol("dense/kernel", "vector", 16, 8, 4, 8),
    Symbol("x", "tile", 2, 2, 4, 8, transposed=True),
    Symbol("relu", "mask", 16, 16, 6, 8),
)
PROGRAM = dataclasses.replace(single(CONFIGS["side 4"], COPY), symbols=SYMBOLS)


@pytest.mark.parametrize(
    ("memory", "index", "place"),
    [
        ("vector", (17, 3), "vector row 17, lane 3 (dense/kernel[1, 3]): "),
        ("inbox", (5, 0), "inbox row 5, lane 0: "),
        ("outbox", (63, 2), "outbox row 63, lane 2: "),
        ("mask", (95, 3), "mask row 95, lane 3: "),
        ("mask", (21, 1), "mask row 21, lane 1 (relu[1, 5]): "),
        ("mantissas", (3, 1, 2), "mantissas tile 3, row 1, lane 2 (x[2, 5]): "),
        ("exponents", (7,), "exponents tile 7: "),
        ("scalars", (1,), "scalars lane 1: "),
        ("random", (2,), "random lane 2: "),
        ("dram", (40, 1), "dram row 40, lane 1: "),
    ],
)
@pytest.mark.parametrize("other", [ReferenceExecutor, EmulatorExecutor])
def test_one_flipped_bit_is_found_and_named(
    machines, other, memory: str, index: tuple[int, ...], place: str
):
    """In either machine."""
    pair = other(CONFIGS["side 4"]), machines("side 4")
    for executor in pair:
        run(executor, once(PROGRAM, 1))
    before = pair[0].dump()
    assert first_difference(before, pair[1].dump(), PROGRAM) is None
    for executor in pair:
        executor.poke(memory, index, int(before[memory][index]) ^ 1)
        found = first_difference(pair[0].dump(), pair[1].dump(), PROGRAM)
        assert found is not None
        assert found.startswith(place)
        executor.poke(memory, index, int(before[memory][index]))
        assert first_difference(before, executor.dump(), PROGRAM) is None


def test_a_bit_flipped_before_the_run_spreads(machines):
    rtl = machines("side 4")
    run(rtl, once(PROGRAM, 2))
    wanted = rtl.dump()
    rtl.poke("vector", (3, 2), int(wanted["vector"][3, 2]) ^ 1)
    rtl.run("run", 1, bases(CONFIGS["side 4"]))
    found = first_difference(wanted, rtl.dump(), PROGRAM)
    assert found is not None
    assert "; 2 of " in found


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
    takes = Vector(loops=Loops(n0=2), a=Source.ACC)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_machine_has_the_memories_of_the_reference(machines, name: str):
    rtl = machines(name)
    rtl.load_program(Program(CONFIGS[name], {}, {}))
    wanted, got = ReferenceExecutor(CONFIGS[name]).dump(), rtl.dump()
    assert {k: x.shape for k, x in wanted.items()} == {k: x.shape for k, x in got.items()}
    assert first_difference(wanted, got) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_dump_can_be_restored(machines, name: str):
    config, rtl = CONFIGS[name], machines(name)
    program = single(config, COPY)
    run(rtl, once(program, 3))
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
