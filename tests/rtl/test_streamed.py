"""Programs that stream in from external memory: where rings are full and empty, other entries, wrong words, and cycles.

Random programs' bits on these machines are in test_ladder.py, which runs on every machine.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.programs.cases import Case, cases, run
from tests.programs.contents import contents
from tests.programs.machines import bases
from tests.rtl.compare import difference
from tests.rtl.conftest import CONFIGS
from tests.rtl.test_ladder import gathers

from fpgrad.emulator.timing import PIPELINE, run_cycles, timeline
from fpgrad.errors import ExecutionError, InvalidArgumentError
from fpgrad.isa.area import image, slot_words
from fpgrad.isa.compare import first_difference
from fpgrad.isa.config import BURST, MachineConfig
from fpgrad.isa.instructions import (
    Alu,
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
from fpgrad.isa.registers import MAX_INSTRUCTIONS
from fpgrad.reference import ReferenceExecutor

SETTINGS = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)
STREAMED = ["streamed", "two cores streamed"]


@pytest.mark.parametrize("name", STREAMED)
@SETTINGS
@given(data=st.data())
def test_cycles_are_those_of_the_emulator(machines, name: str, data: st.DataObject):
    """All units' bursts and those of LOAD and STORE share a slow memory."""
    config = CONFIGS[name]
    case = data.draw(cases(config, length=16))
    for (entry, steps), result in zip(case.runs, run(machines(name), case), strict=True):
        found = timeline(case.program, entry, steps, bases=bases(config))
        cycles = max(record.end for record in found) + PIPELINE.finish
        # Where a gathered group is, and so where its burst is split, the model does not know.
        assert abs(cycles - result.cycles) <= 2 * steps * gathers(case.program)


@pytest.mark.parametrize("name", STREAMED)
@SETTINGS
@given(data=st.data())
def test_cycles_without_gathers_are_equal(machines, name: str, data: st.DataObject):
    config = CONFIGS[name]
    case = data.draw(cases(config, 20, ("pass", "tile", "matrix", "store", "reduce")))
    for (entry, steps), result in zip(case.runs, run(machines(name), case), strict=True):
        found = timeline(case.program, entry, steps, bases=bases(config))
        assert result.cycles == max(record.end for record in found) + PIPELINE.finish


def passes(count: int) -> tuple[Vector, ...]:
    """Each doubles a row of its own and adds the one before."""
    return tuple(
        Vector(
            loops=Loops(n0=1 + n % 3),
            p0=RowStream(Space.VECTOR, base=n % 32, s0=1),
            p1=RowStream(Space.VECTOR, base=(n + 7) % 32, s0=1),
            a=Source.P0,
            c=Source.P1,
            alu=Alu.ADD,
            target=Target(Space.VECTOR, 32 + n % 29, s0=1),
            fence=1,
        )
        for n in range(count)
    )


def entries(config: MachineConfig, **ranges: tuple[int, int]) -> Program:
    """Passes, and entries that are ranges of them."""
    listed = passes(max(stop for _, stop in ranges.values()))
    found = {name: Entry((0, 0, a, 0), (0, 0, b, 0)) for name, (a, b) in ranges.items()}
    return Program(config, {Unit.VECTOR: listed}, found)


RING = CONFIGS["streamed"].control.vector


@pytest.mark.parametrize("count", [1, BURST - 1, BURST, BURST + 1, RING - 1, RING, RING + 1, 67])
def test_programs_about_the_size_of_the_ring(machines, count: int):
    config, rtl = CONFIGS["streamed"], machines("streamed")
    program = entries(config, main=(0, count))
    for steps in (1, 2, 5):
        case = Case(program, (("main", steps),), count)
        assert difference(case, rtl) is None
        assert rtl.run("main", steps, []).cycles == run_cycles(program, "main", steps)


def test_instructions_beyond_those_that_a_memory_can_have(machines):
    config, rtl = CONFIGS["streamed"], machines("streamed")
    last = MAX_INSTRUCTIONS + 900
    program = entries(config, late=(MAX_INSTRUCTIONS + 1, last), across=(4090, 4103), all=(0, last))
    case = Case(program, (("late", 2), ("across", 3), ("all", 1)), 4)
    assert difference(case, rtl) is None
    for name, steps in case.runs:
        assert rtl.run(name, steps, []).cycles == run_cycles(program, name, steps)


@pytest.mark.parametrize("name", STREAMED)
def test_entries_one_after_the_other(machines, name: str):
    """Rings begin anew with every run: ranges that lie, begin and end anywhere, again and again."""
    config, rtl = CONFIGS[name], machines(name)
    program = entries(config, train=(3, 61), evaluate=(0, 40), predict=(60, 62), none=(7, 7))
    order = ["train", "predict", "train", "evaluate", "none", "train", "predict", "predict"]
    case = Case(program, tuple((name, 1 + n % 3) for n, name in enumerate(order)), 5)
    assert difference(case, rtl) is None
    first = rtl.run("train", 2, []).cycles
    rtl.run("predict", 1, [])
    assert rtl.run("train", 2, []).cycles == first


def test_a_wrong_word_in_external_memory_shows(machines):
    """One bit of each unit's instructions, where the machine reads them and nothing else does."""
    config, rtl = CONFIGS["streamed"], machines("streamed")
    units = {
        Unit.LOAD: tuple(Load(rows=2, target=4 * n, source=DramAddress(0, n)) for n in range(12)),
        Unit.MATRIX: tuple(Matrix(rows=1) for _ in range(6)),
        Unit.VECTOR: (
            *passes(20),
            *(Vector(a=Source.ACC, target=Target(Space.OUTBOX, n)) for n in range(6)),
        ),
        Unit.STORE: tuple(
            Store(rows=2, source=8, target=DramAddress(0, 600 + 2 * n)) for n in range(5)
        ),
    }
    stop = tuple(len(units[u]) for u in Unit)
    program = Program(config, units, {"main": Entry((0,) * 4, stop)})
    firsts, _ = image(config, {u: program.words(u) for u in Unit})
    memories, reference = contents(config, 1, False), ReferenceExecutor(config)
    for executor in (reference, rtl):
        executor.load_program(program)
        executor.restore(memories)
        executor.run("main", 1, [0])
    wanted = reference.dump()
    assert first_difference(wanted, rtl.dump()) is None
    # The last instruction's place to write to, or to read from.
    for unit, field, value in (
        (Unit.LOAD, "target", 40),
        (Unit.MATRIX, "streamed", replace(Matrix().streamed, base=5)),
        (Unit.VECTOR, "target", Target(Space.OUTBOX, 9)),
        (Unit.STORE, "source", 20),
    ):
        index = len(units[unit]) - 1
        changed = replace(units[unit][index], **{field: value})
        where = firsts[unit] + index * slot_words(config, unit) // config.side
        rows = slot_words(config, unit) // config.side
        right = rtl.simulation.read_memory(where, rows)
        words = np.zeros(rows * config.side, np.uint32)
        others = replace(program, units={**units, unit: (*units[unit][:-1], changed)})
        packed = others.words(unit)[-1]
        for k in range(len(words)):
            words[k] = (packed >> (32 * k)) & 0xFFFFFFFF
        assert (words.reshape(right.shape) != right).any()
        rtl.simulation.write_memory(where, words.reshape(right.shape))
        rtl.restore(memories)
        rtl.run("main", 1, [0])
        assert first_difference(wanted, rtl.dump()) is not None, unit
        rtl.simulation.write_memory(where, right)
        rtl.restore(memories)
        rtl.run("main", 1, [0])
        assert first_difference(wanted, rtl.dump()) is None


@pytest.mark.parametrize("name", STREAMED)
def test_where_a_run_stands_still_is_said_by_the_number_in_the_program(machines, name: str):
    config, rtl = CONFIGS[name], machines(name)
    loads = (*(Load(rows=1 + n % 3) for n in range(40)), Load(wait=Tokens(vector=1)), Load())
    program = Program(config, {Unit.LOAD: loads}, {"main": Entry((0,) * 4, (42, 0, 0, 0))})
    for _ in range(2):
        rtl.load_program(program)
        with pytest.raises(ExecutionError) as caught:
            rtl.run("main", 2, [0])
        assert str(caught.value) == (
            "the units wait for each other: load waits at instruction 40 of step 0"
        )
        with pytest.raises(ExecutionError, match="no program is loaded"):
            rtl.run("main", 2, [0])


def test_the_program_is_not_among_the_data(machines):
    """Neither for the host nor where memories are looked at and changed."""
    config, rtl = CONFIGS["streamed"], machines("streamed")
    rtl.load_program(entries(config, main=(0, 9)))
    rows = config.memory.dram_rows
    assert len(rtl.dump()["dram"]) == 0
    with pytest.raises(InvalidArgumentError, match=r"is outside dram: it has 1024 rows of data"):
        rtl.poke("dram", (rows, 0), 1)
    for use in (rtl.read, lambda row, n: rtl.write(row, np.zeros((n, config.side), np.uint32))):
        with pytest.raises(ExecutionError, match="DRAM rows 1023 to 1024 are outside the 1024"):
            use(rows - 1, 2)


def test_a_store_to_the_program_is_an_error(machines):
    config, rtl = CONFIGS["streamed"], machines("streamed")
    stores = (Store(target=DramAddress(0, config.memory.dram_rows)),)
    program = Program(config, {Unit.STORE: stores}, {"main": Entry((0,) * 4, (0, 0, 0, 1))})
    rtl.load_program(program)
    with pytest.raises(ExecutionError, match="a load or store was outside the 1024 rows of"):
        rtl.run("main", 1, [0])
    # It may be another one now.
    with pytest.raises(ExecutionError, match="no program is loaded"):
        rtl.run("main", 1, [0])
