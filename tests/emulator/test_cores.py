"""Several cores on the emulator: what they send each other, what their errors say, and in how many threads."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from tests.programs.cases import once, run
from tests.programs.machines import MACHINES, with_cores
from tests.programs.order import single

from fpgrad.emulator import EmulatorExecutor
from fpgrad.errors import ExecutionError, InvalidArgumentError
from fpgrad.isa.compare import first_difference
from fpgrad.isa.instructions import (
    Alu,
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
from fpgrad.isa.program import Entry, Note, Program, Symbol
from fpgrad.reference import ReferenceExecutor

CONFIG = with_cores(MACHINES["T4"], 3)
FILL = Vector(
    loops=Loops(n0=16),
    p0=RowStream(Space.VECTOR, s0=1),
    a=Source.P0,
    target=Target(Space.OUTBOX, s0=1),
)
ADD = Vector(
    loops=Loops(n0=16),
    p0=RowStream(Space.INBOX, s0=1),
    p1=RowStream(Space.VECTOR, s0=1),
    a=Source.P0,
    c=Source.P1,
    alu=Alu.ADD,
    target=Target(Space.VECTOR, s0=1),
)
SUMS = (Store(Transfer.SUM, rows=16), Load(Transfer.SUM, rows=16))
KEEP = Store(rows=16, target=DramAddress(1, step_stride=256, core_stride=16))


@pytest.mark.parametrize("cores", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_do_not_change_bits(cores: int, threads: int):
    config = with_cores(MACHINES["T4"], cores)
    config = replace(config, memory=replace(config.memory, dram_rows=8192))
    program = single(config, FILL, KEEP, *SUMS, ADD)
    case = once(program, seed=cores, steps=9)
    reference, emulator = ReferenceExecutor(config), EmulatorExecutor(config, threads=threads)
    left, right = (run(machine, case)[0] for machine in (reference, emulator))
    assert first_difference(reference.dump(), emulator.dump(), program) is None
    assert left.saturated_vector == right.saturated_vector


def _machines() -> tuple[ReferenceExecutor, EmulatorExecutor, Program]:
    program = single(CONFIG, FILL, *SUMS, ADD)
    symbols = (Symbol("dense/kernel", "vector", 8, 8, 4, 8), Symbol("x", "tile", 2, 2, 4, 8))
    program = Program(CONFIG, program.units, program.entries, symbols)
    reference, emulator = ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG)
    for machine in (reference, emulator):
        run(machine, once(program, seed=1, odd=True))
    return reference, emulator, program


@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("vector", (2, 13, 2), "vector of core 2, row 13, lane 2 (dense/kernel[1, 6]): "),
        ("inbox", (0, 15, 3), "inbox of core 0, row 15, lane 3: "),
        ("mask", (1, 95, 0), "mask of core 1, row 95, lane 0: "),
        ("mantissas", (2, 3, 1, 2), "mantissas of core 2, tile 3, row 1, lane 2 (x[1, 6]): "),
        ("exponents", (1, 2), "exponents of core 1, tile 2 (x): "),
        ("scalars", (2, 3), "scalars of core 2, lane 3: "),
        ("random", (1, 0), "random of core 1, lane 0: "),
        ("dram", (300, 3), "dram row 300, lane 3: "),
    ],
)
@pytest.mark.parametrize("which", ["reference", "emulator"])
def test_one_flipped_bit_is_found_and_its_core_named(
    which: str, name: str, index: tuple[int, ...], place: str
):
    reference, emulator, program = _machines()
    assert first_difference(reference.dump(), emulator.dump(), program) is None
    machine = reference if which == "reference" else emulator
    value = int(machine.dump()[name][index])
    machine.poke(name, index, value ^ 1)
    assert int(machine.dump()[name][index]) == value ^ 1
    found = first_difference(reference.dump(), emulator.dump(), program)
    assert found is not None
    assert found.startswith(place)
    assert "words differ" not in found


def test_a_wrong_word_of_one_core_reaches_all_of_them():
    reference, emulator, program = _machines()
    value = int(emulator.dump()["vector"][1, 3, 2])
    emulator.poke("vector", (1, 3, 2), value ^ 1 << 20)
    for machine in (reference, emulator):
        machine.run("run", 1, [0] * 16)
    left, right = reference.dump()["inbox"], emulator.dump()["inbox"]
    assert [tuple(x) for x in np.argwhere(left != right)] == [(core, 3, 2) for core in range(3)]
    found = first_difference(reference.dump(), emulator.dump(), program)
    assert found is not None
    assert found.startswith("vector of core 0, row 3, lane 2: ")


def test_a_dump_can_be_restored():
    reference, _, program = _machines()
    other = EmulatorExecutor(CONFIG)
    other.load_program(program)
    other.restore(reference.dump())
    assert first_difference(reference.dump(), other.dump(), program) is None


def test_poke_refuses_a_core_that_is_not_there():
    for machine in (ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG)):
        with pytest.raises(InvalidArgumentError, match=r"is outside scalars"):
            machine.poke("scalars", (3, 0), 1)


def stopped(
    message: str, *, tokens: tuple[tuple[int, ...], ...] = ((0,) * 4,) * 4, **units
) -> None:
    """Both executors raise this error; it names a core."""
    listed = {Unit[name.upper()]: instructions for name, instructions in units.items()}
    stop = tuple(len(listed.get(u, ())) for u in Unit)
    program = Program(CONFIG, listed, {"run": Entry((0,) * 4, stop, tokens)})
    for machine in (ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG, threads=2)):
        machine.load_program(program)
        with pytest.raises(ExecutionError, match=f"^{re.escape(message)}$"):
            machine.run("run", 1, [0])


def test_units_that_wait_for_each_other_and_their_core_are_named():
    stopped(
        "the units of core 0 wait for each other: load at instruction 1 of step 0",
        load=(Load(), Load(wait=Tokens(vector=1))),
    )


def test_sums_that_nobody_sends_are_an_error():
    stopped(
        "the units of core 0 wait for each other: load at instruction 0 of step 0",
        load=(Load(Transfer.SUM, rows=5),),
        store=(Store(Transfer.SUM, rows=4),),
    )


def test_sums_that_nobody_takes_are_an_error():
    stopped(
        "3 rows were sent to the exchange and never taken",
        load=(Load(Transfer.SUM, rows=5),),
        store=(Store(Transfer.SUM, rows=8),),
    )


def test_a_run_begins_with_an_empty_exchange():
    units = {Unit.LOAD: (Load(Transfer.SUM),), Unit.STORE: (Store(Transfer.SUM),)}
    entries = {"left": Entry((0,) * 4, (0, 0, 0, 1)), "whole": Entry((0,) * 4, (1, 0, 0, 1))}
    emulator = EmulatorExecutor(CONFIG)
    emulator.load_program(Program(CONFIG, units, entries))
    with pytest.raises(ExecutionError, match=r"^1 rows were sent to the exchange"):
        emulator.run("left", 1, [0])
    emulator.run("whole", 7, [0])


def test_addresses_outside_a_memory_name_instruction_core_and_layer():
    load = Load(source=DramAddress(offset=1000, core_stride=300))
    program = Program(
        CONFIG,
        {Unit.LOAD: (load,)},
        {"run": Entry((0,) * 4, (1, 0, 0, 0))},
        notes={Unit.LOAD: (Note("dense"),)},
    )
    emulator = EmulatorExecutor(CONFIG, threads=2)
    emulator.load_program(program)
    message = (
        "load instruction 0 of core 2 (layer dense), step 0: "
        "DRAM rows 1600 to 1600 are outside the 1536 rows of the machine"
    )
    with pytest.raises(ExecutionError, match=f"^{re.escape(message)}$"):
        emulator.run("run", 1, [0])


def test_sums_that_were_clamped_are_counted_once_for_the_load_that_took_them():
    program = single(CONFIG, *SUMS)
    largest = CONFIG.vector.number.max_code
    emulator = EmulatorExecutor(CONFIG)
    emulator.load_program(program)
    emulator.restore({"outbox": np.full((3, 16, 4), largest)})
    assert emulator.run("run", 2, [0]).saturated_vector == 2 * 16 * 4
    assert emulator.saturation_by_instruction() == {(Unit.LOAD, 0): 2 * 16 * 4}
    assert (emulator.dump()["inbox"] == largest).all()
