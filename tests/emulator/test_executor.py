"""The emulator's errors, and that the comparison of machines finds a single wrong word and names its place."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.programs.cases import once, run
from tests.programs.machines import MACHINES
from tests.programs.order import single

from fpgrad.emulator import EmulatorExecutor, available_levels
from fpgrad.errors import ExecutionError, InvalidArgumentError, ProgramError
from fpgrad.isa.compare import first_difference
from fpgrad.isa.instructions import (
    Immediate,
    Loops,
    RowStream,
    Source,
    Space,
    Target,
    Tokens,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Note, Program, Symbol
from fpgrad.reference import ReferenceExecutor

CONFIG = MACHINES["T4"]
COPY = Vector(
    loops=Loops(n0=4),
    p0=RowStream(Space.VECTOR, 0, 0, s0=1),
    a=Source.P0,
    target=Target(Space.VECTOR, 8, s0=1),
)
SYMBOLS = (
    Symbol("dense/kernel", "vector", 8, 8, 4, 8),
    Symbol("dense/bias", "vector", 16, 2, 1, 7, "row"),
    Symbol("x", "tile", 2, 2, 4, 8, transposed=True),
    Symbol("relu", "mask", 16, 16, 6, 8),
)


def _machines() -> tuple[ReferenceExecutor, EmulatorExecutor, Program]:
    program = single(CONFIG, COPY)
    program = Program(CONFIG, program.units, program.entries, SYMBOLS)
    reference, emulator = ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG)
    for machine in (reference, emulator):
        run(machine, once(program, seed=1, odd=True))
    return reference, emulator, program


@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("vector", (13, 2), "vector row 13, lane 2 (dense/kernel[1, 6]): "),
        ("vector", (17, 1), "vector row 17, lane 1 (dense/bias[0, 5]): "),
        ("vector", (17, 3), "vector row 17, lane 3 (padding of dense/bias): "),
        ("inbox", (15, 3), "inbox row 15, lane 3: "),
        ("outbox", (0, 1), "outbox row 0, lane 1: "),
        ("mask", (95, 0), "mask row 95, lane 0: "),
        ("mask", (21, 1), "mask row 21, lane 1 (relu[1, 5]): "),
        ("mantissas", (3, 1, 2), "mantissas tile 3, row 1, lane 2 (x[2, 5]): "),
        ("exponents", (2,), "exponents tile 2 (x): "),
        ("scalars", (3,), "scalars lane 3: "),
        ("random", (0,), "random lane 0: "),
        ("dram", (300, 3), "dram row 300, lane 3: "),
    ],
)
@pytest.mark.parametrize("which", ["reference", "emulator"])
def test_one_flipped_bit_is_found_and_named(
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


def test_poke_refuses_what_is_not_there():
    for machine in (ReferenceExecutor(CONFIG), EmulatorExecutor(CONFIG)):
        with pytest.raises(
            InvalidArgumentError, match=r"^memory must be one of vector, inbox, .*, not 'ram'$"
        ):
            machine.poke("ram", (0,), 1)
        with pytest.raises(InvalidArgumentError, match=r"is outside vector"):
            machine.poke("vector", (9999, 0), 1)


def _stopping(message: str, *vectors: Vector, notes: tuple[Note, ...] = ()) -> None:
    program = Program(CONFIG, {Unit.VECTOR: vectors}, {"run": Entry((0,) * 4, (0, 0, len(vectors), 0))},
                      notes={Unit.VECTOR: notes})  # fmt: skip
    emulator = EmulatorExecutor(CONFIG)
    emulator.load_program(program)
    with pytest.raises(ExecutionError, match=f"^{re.escape(message)}$"):
        emulator.run("run", 1, ())


def test_addresses_outside_a_memory_name_instruction_and_layer():
    outside = Vector(loops=Loops(n0=4), p0=RowStream(Space.VECTOR, 0, 30, s0=1), a=Source.P0)
    _stopping(
        "vector instruction 1 (layer dense), step 0: vector addresses 30 to 33 are outside its 32 rows",
        COPY,
        outside,
        notes=(Note(), Note("dense")),
    )


def test_units_that_wait_for_each_other_are_named():
    waiting = Vector(wait=Tokens(load=1))
    _stopping("the units wait for each other: vector at instruction 0 of step 0", waiting)


def test_dram_is_bounded():
    emulator = EmulatorExecutor(CONFIG)
    with pytest.raises(
        ExecutionError, match=r"^DRAM rows 510 to 513 are outside the 512 rows of the machine$"
    ):
        emulator.read(510, 4)
    with pytest.raises(ExecutionError, match=r"are outside"):
        emulator.write(512, np.zeros((1, 4), np.uint32))


def test_arguments_are_checked():
    with pytest.raises(
        InvalidArgumentError, match=r"^level must be one of baseline.*, not 'sse9'$"
    ):
        EmulatorExecutor(CONFIG, level="sse9")
    with pytest.raises(InvalidArgumentError, match=r"^threads must be at least 1, not 0$"):
        EmulatorExecutor(CONFIG, threads=0)
    assert available_levels()[0] == "baseline"
    with pytest.raises(ExecutionError, match=r"^no program is loaded$"):
        EmulatorExecutor(CONFIG).run("run", 1, ())


def test_immediates_that_are_no_codes_are_refused():
    emulator = EmulatorExecutor(CONFIG)
    with pytest.raises(ProgramError, match=r"^vector instruction 0: i1 must be a code of 24 bits"):
        emulator.load_program(single(CONFIG, Vector(i1=Immediate(0, 1 << 24))))
    with pytest.raises(
        ProgramError, match=r"^vector instruction 0: i0 must be a scalar's number, below 4, not 4$"
    ):
        emulator.load_program(single(CONFIG, Vector(i0=Immediate(1, 4))))
