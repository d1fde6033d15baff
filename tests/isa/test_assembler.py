"""Text and programs are each other's inverse; the manual is current; files are whole or refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.codegen.models import forward, functions

from fpgrad.codegen.compile import compile_functions
from fpgrad.errors import ProgramError, ProgramFileError, ProgramMismatchError
from fpgrad.isa.assembler import assemble, disassemble, instruction_text, parse_instruction
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import from_values, layout, pack, unpack, width
from fpgrad.isa.manual import manual
from fpgrad.isa.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_functions(functions(forward(32, (32, 64, 10))))


@st.composite
def instructions(draw: st.DrawFn):
    unit = draw(st.sampled_from(Unit))
    numbers = []
    for leaf in layout(CLASS_OF[unit]):
        values = (
            st.sampled_from(list(leaf.enum)).map(int)
            if leaf.enum
            else st.integers(leaf.low, leaf.high)
        )
        numbers.append(draw(st.one_of(st.just(leaf.default), values)))
    return unit, from_values(CLASS_OF[unit], tuple(numbers))


@given(instructions())
def test_packing_and_text_round_trip(drawn):
    unit, instruction = drawn
    assert unpack(CLASS_OF[unit], pack(instruction)) == instruction
    assert pack(instruction) < 1 << width(CLASS_OF[unit])
    assert parse_instruction(unit, instruction_text(instruction)) == instruction


def test_a_program_survives_text(program: Program):
    again = assemble(disassemble(program), program)
    assert again.digest == program.digest
    assert again.entries == program.entries


def test_text_names_the_line_that_is_wrong(program: Program):
    with pytest.raises(
        ProgramError, match=r"line 2: vector field alu must be PASS, ADD, .*, not 'SUB'"
    ):
        assemble(".entry a load 0:0 matrix 0:0 vector 0:1 store 0:0\nvector 0: alu=SUB", program)
    with pytest.raises(ProgramError, match="line 1: matrix has no field 'alu'"):
        assemble("matrix 0: alu=ADD", program)


def test_values_outside_their_field_are_refused():
    with pytest.raises(ProgramError, match=r"Matrix.rows must be 0 to 63, not 64"):
        parse_instruction(Unit.MATRIX, "rows=64")


def test_the_manual_is_current():
    path = Path(__file__).parents[2] / "docs" / "isa.md"
    assert path.read_text() == manual(), "run: python -m fpgrad.isa.manual > docs/isa.md"


def test_files_round_trip(program: Program, tmp_path: Path):
    path = tmp_path / "model.fpg"
    program.save(path)
    again = Program.load(path)
    assert again.digest == program.digest
    assert again.symbols == program.symbols
    assert again.notes == program.notes
    assert again.meta == program.meta


@pytest.mark.parametrize("cut", [0, 10, 1000, -1])
def test_truncated_files_are_refused(program: Program, tmp_path: Path, cut: int):
    path = tmp_path / "model.fpg"
    program.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ProgramFileError, match="not a whole program file"):
        Program.load(path)


def test_corrupted_files_are_refused(program: Program, tmp_path: Path):
    path = tmp_path / "model.fpg"
    program.save(path)
    whole = path.read_bytes()
    for at in range(100, len(whole) - 100, len(whole) // 25):
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(bytes(data))
        with contextlib.suppress(ProgramFileError):
            assert Program.load(path).digest == program.digest


def test_a_program_for_another_machine_is_refused(program: Program):
    with pytest.raises(ProgramMismatchError, match=r"for another machine: .*memory.vector_rows"):
        program.check_machine(MachineConfig())
