"""Several cores on the RTL: what they send each other, how they share memory, and what their errors say.

Random programs of several cores are in test_ladder.py, which runs on every machine.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.isa.test_cores import ROWS, sum_program
from tests.programs.cases import cases, once, run
from tests.programs.machines import bases
from tests.programs.order import single
from tests.rtl.compare import difference
from tests.rtl.conftest import CONFIGS
from tests.rtl.dma_cycles import FIRST, done_cycles
from tests.rtl.test_ladder import gathers

from fpgrad.emulator.timing import PIPELINE, run_cycles, timeline
from fpgrad.errors import ExecutionError, InvalidArgumentError
from fpgrad.formats import smallfloat
from fpgrad.gateware.exchange import LINK_LATENCY
from fpgrad.isa.compare import first_difference
from fpgrad.isa.instructions import (
    DramAddress,
    Load,
    Loops,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    Tokens,
    Transfer,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.reference import ReferenceExecutor

SETTINGS = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=list(HealthCheck)
)
SEVERAL = ["two cores", "three cores"]


@pytest.mark.parametrize("name", SEVERAL)
def test_all_cores_receive_the_sum_in_the_order_of_the_cores(machines, name):
    config, rtl = CONFIGS[name], machines(name)
    number, t, cores = config.vector.number, config.side, config.cores
    rng = np.random.default_rng(cores)
    values = rng.normal(size=(2, cores, ROWS, t)) * 2.0 ** rng.integers(-9, 9, (2, cores, ROWS, t))
    # Sums of two large numbers are clamped, and counted once for all cores.
    values[1, 0, 2], values[1, 1, 2] = 1e38, 3e38
    words = (smallfloat.from_float(number, values)[0] << (32 - number.width)).astype(np.uint32)
    reference = ReferenceExecutor(config)
    results = []
    for executor in (reference, rtl):
        executor.load_program(sum_program(config))
        for step in range(2):
            executor.write(step * 128, words[step].reshape(-1, t))
        results.append(executor.run("sum", 2, [0, 400]).saturated_vector)
    assert results == [t, t]
    assert first_difference(reference.dump(), rtl.dump()) is None
    # Equal runs take equally long.
    first = rtl.run("sum", 2, [0, 400]).cycles
    assert rtl.run("sum", 2, [0, 400]).cycles == first


@pytest.mark.parametrize("name", [*SEVERAL, "moves"])
@SETTINGS
@given(data=st.data())
def test_sums(machines, name: str, data: st.DataObject):
    """Little else, so that their numbers are odd, or so large that sums are clamped. With one core too."""
    case = data.draw(cases(CONFIGS[name], 3, ("sum", "sum", "pass"), entries=1))
    assert difference(case, machines(name)) is None


@pytest.mark.parametrize("name", SEVERAL)
@SETTINGS
@given(data=st.data())
def test_cores_share_external_memory(machines, name: str, data: st.DataObject):
    case = data.draw(cases(CONFIGS[name], 12, ("load", "store", "sum", "pass"), entries=1))
    assert difference(case, machines(name)) is None


@pytest.mark.parametrize("name", SEVERAL)
@SETTINGS
@given(data=st.data())
def test_cycles_are_those_of_the_emulator(machines, name: str, data: st.DataObject):
    """Equal, where nothing is gathered from places that the model does not know. Every run begins like the first."""
    config = CONFIGS[name]
    case = data.draw(cases(config, 16).filter(lambda case: not gathers(case.program)))
    case = replace(case, runs=2 * case.runs)
    for (entry, steps), result in zip(case.runs, run(machines(name), case), strict=True):
        found = timeline(case.program, entry, steps, bases=bases(config))
        assert result.cycles == max(record.end for record in found) + PIPELINE.finish


def test_turns_begin_anew_with_every_run(machines):
    """Only the second core's rows go across a boundary of bursts: it has one more, which is a run's last.

    They are masks, for which a core takes longer than memory: it matters whose come first.
    """
    config, rtl = CONFIGS["two cores"], machines("two cores")
    rows = config.read_burst * config.memory.dram_words_per_cycle // config.side
    source = DramAddress(0, 2 * rows, 0, 2 * rows - 1)
    units = {Unit.LOAD: (Load(Transfer.MASKS, rows=3, row_stride=32, source=source),)}
    program = Program(config, units, {"main": entry(units)})
    rtl.load_program(program)
    for steps in (1, 1, 2, 1, 1):
        assert rtl.run("main", steps, [0]).cycles == run_cycles(program, "main", steps)


@pytest.mark.parametrize("unit", [Unit.LOAD, Unit.STORE])
def test_cycles_of_a_beat(machines, unit: Unit):
    """What the documentation says, beside one core, and two more in which the others' beats move."""
    config, rtl = CONFIGS["three cores"], machines("three cores")
    load, store = Load(), Store()
    loads, stores = done_cycles(config, [load], [store])
    units = {unit: (load if unit is Unit.LOAD else store,)}
    rtl.load_program(Program(config, units, {"main": entry(units)}))
    done, more = (loads[-1], 3) if unit is Unit.LOAD else (stores[-1], 6)
    assert rtl.run("main", 1, [0]).cycles == done + more + 2 + 1


@pytest.mark.parametrize("rows", [1, 9, 20])
def test_cycles_of_sums(machines, rows: int):
    """What the documentation says."""
    config, rtl = CONFIGS["three cores"], machines("three cores")
    units = {
        Unit.STORE: (Store(kind=Transfer.SUM, rows=rows),),
        Unit.LOAD: (Load(kind=Transfer.SUM, rows=rows),),
    }
    rtl.load_program(Program(config, units, {"main": entry(units)}))
    # Taken, read, in the exchange, at the cores, done.
    taken = FIRST + 5 + 1 + LINK_LATENCY * 2
    assert rtl.run("main", 1, [0]).cycles == taken + rows - 1 + 2 + 1


def entry(program_units: dict[Unit, tuple], tokens=((0,) * 4,) * 4) -> Entry:
    return Entry((0,) * 4, tuple(len(program_units.get(u, ())) for u in Unit), tokens)


COPY = Vector(
    loops=Loops(n0=16),
    p0=RowStream(Space.VECTOR, s0=1),
    a=Source.P0,
    target=Target(Space.VECTOR, 32, s0=1),
)


@pytest.mark.parametrize("core", [0, 1, 2])
def test_one_flipped_bit_in_one_core_is_found_and_named(machines, core: int):
    config, rtl = CONFIGS["three cores"], machines("three cores")
    program, reference = single(config, COPY), ReferenceExecutor(config)
    for executor in (reference, rtl):
        run(executor, once(program, 1))
    before = reference.dump()
    assert first_difference(before, rtl.dump(), program) is None
    places = {
        "vector": (core, 17, 3),
        "mantissas": (core, 3, 1, 2),
        "exponents": (core, 7),
        "scalars": (core, 1),
    }
    for memory, place in places.items():
        rtl.poke(memory, place, int(before[memory][place]) ^ 1)
        found = first_difference(before, rtl.dump(), program)
        assert found is not None
        assert found.startswith(f"{memory} of core {core}, ")
        assert "words differ" not in found
        rtl.restore({memory: before[memory]})
        assert first_difference(before, rtl.dump(), program) is None
    with pytest.raises(InvalidArgumentError, match=r"index \(3, 0, 0\) is outside vector"):
        rtl.poke("vector", (3, 0, 0), 1)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (
            {Unit.LOAD: (Load(kind=Transfer.SUM),)},
            "the units wait for each other: load works up to instruction 0 of step 0",
        ),
        (
            {Unit.STORE: (Store(kind=Transfer.SUM, rows=60),)},
            "the units wait for each other: store works up to instruction 0 of step 0",
        ),
        (
            {Unit.STORE: (Store(kind=Transfer.SUM),)},
            "rows were sent to the exchange and never taken",
        ),
        (
            {Unit.LOAD: (Load(rows=2, source=DramAddress(core_stride=2000)),)},
            "a load or store was outside the",
        ),
    ],
)
def test_what_cannot_end_well_is_an_error(machines, units, message):
    """The last: only the third core is outside."""
    config, rtl = CONFIGS["three cores"], machines("three cores")
    rtl.load_program(Program(config, units, {"main": entry(units)}))
    with pytest.raises(ExecutionError, match=message):
        rtl.run("main", 1, [0])


def test_what_follows_a_sum_does_not_stand_in_the_way_of_other_cores(machines):
    """Cores that wait for a sum have asked for no more than they can take, so that the last one's rows come."""
    config, rtl = CONFIGS["three cores"], machines("three cores")
    rows, pairs = 40, 6
    fill = Vector(
        loops=Loops(n0=rows), p0=RowStream(Space.INBOX, s0=1), a=Source.P0,
        target=Target(Space.OUTBOX, s0=1), wait=Tokens(load=1, store=1),
        signal=Tokens(load=1, store=1),
    )  # fmt: skip
    far = DramAddress(0, 0, rows, 200)
    loads = (
        Load(rows=rows, source=far, wait=Tokens(vector=1), signal=Tokens(vector=1)),
        Load(kind=Transfer.SUM, rows=8, target=48),
    )
    stores = (
        Store(kind=Transfer.SUM, rows=8, wait=Tokens(vector=1)),
        Store(rows=rows, target=DramAddress(0, 700, rows, 250), signal=Tokens(vector=1)),
    )
    units = {Unit.LOAD: loads, Unit.VECTOR: (fill,), Unit.STORE: stores}
    tokens = [[0] * 4 for _ in Unit]
    tokens[Unit.VECTOR][Unit.LOAD] = tokens[Unit.STORE][Unit.VECTOR] = 1
    program = Program(config, units, {"main": entry(units, tuple(map(tuple, tokens)))})
    reference = ReferenceExecutor(config)
    words = np.random.default_rng(1).integers(0, 1 << 30, (700, config.side), dtype=np.uint32)
    for executor in (reference, rtl):
        executor.load_program(program)
        executor.write(0, words)
        executor.run("main", pairs, [0])
    assert first_difference(reference.dump(), rtl.dump()) is None
