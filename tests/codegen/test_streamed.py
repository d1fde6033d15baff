"""Machines whose programs stream in from external memory: when they are made, and what cannot be."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tests.codegen.models import forward, functions, optimizers

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.codegen.control import RING
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import ConfigError, MemoryCapacityError
from fpgrad.flow.estimate import program_bytes, summarise
from fpgrad.formats import TileFormat
from fpgrad.graph import Function
from fpgrad.isa.config import BURST, ControlConfig, MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import Unit
from fpgrad.isa.program import Program
from fpgrad.isa.registers import MAX_INSTRUCTIONS
from fpgrad.report import render

FORMATS = MachineConfig(
    MatrixConfig(TileFormat(4)), memory=MemoryConfig(dram_rows=1 << 16, dram_words_per_cycle=2)
)


def model(cores: int = 1) -> dict[str, Function]:
    net = forward(8, (6, 5, 3))
    return functions(net, optimizer=optimizers.sgd(momentum=0.5), cores=cores)


MODEL = model()


def compiled(instructions: int | None, formats: MachineConfig = FORMATS) -> Program:
    return compile_functions(model(formats.cores), Machine(formats, instructions=instructions))


PLAIN = compiled(None)
COUNTS = {u: len(PLAIN.units[u]) for u in Unit}


def test_a_program_streams_only_if_it_has_to():
    most = max(COUNTS.values())
    assert compiled(most).units == PLAIN.units
    assert not compiled(most).config.control.streamed
    assert not PLAIN.config.control.streamed
    assert compiled(most - 1).config.control.streamed


def test_a_streamed_program_is_the_same_program():
    """On a machine that differs by its rings and by how it divides its external memory."""
    streamed = compiled(16)
    assert streamed.units == PLAIN.units
    assert streamed.entries == PLAIN.entries
    config, control = streamed.config, streamed.config.control
    assert config.external_rows == FORMATS.memory.dram_rows
    depths = [getattr(control, u.name.lower()) for u in Unit]
    assert depths == [min(16, max(BURST, 1 << (n - 1).bit_length())) for n in COUNTS.values()]
    assert replace(config, control=PLAIN.config.control, memory=PLAIN.config.memory) == (
        PLAIN.config
    )
    assert replace(config.memory, dram_rows=1 << 16) == PLAIN.config.memory
    # It fits just so.
    fixed = Machine(config, fixed=True)
    assert compile_functions(MODEL, fixed).units == PLAIN.units


def test_a_fixed_machine_with_too_few_rows_for_the_program():
    config = compiled(16).config
    less = replace(config, control=replace(config.control, program_rows=100))
    with pytest.raises(ConfigError, match=r"the program takes \d+ rows of external memory behind"):
        compile_functions(MODEL, Machine(less, fixed=True))


def test_no_fixed_instruction_memory_is_larger_than_the_host_can_write(monkeypatch):
    monkeypatch.setattr("fpgrad.codegen.control.MAX_INSTRUCTIONS", COUNTS[Unit.VECTOR] - 1)
    with pytest.raises(ConfigError) as caught:
        compile_functions(MODEL, Machine(PLAIN.config, fixed=True))
    n = COUNTS[Unit.VECTOR]
    assert str(caught.value) == (
        f"the program has more instructions than a unit's memory can have ({n - 1}): vector: {n}. Give the machine "
        "control.program_rows, so that programs stream in from external memory"
    )
    # A machine that is made for it streams.
    assert compiled(None).config.control.streamed


@pytest.mark.parametrize("instructions", [0, 3])
def test_rings_hold_a_burst(instructions):
    with pytest.raises(ConfigError) as caught:
        compiled(instructions)
    assert str(caught.value) == (
        f"instructions must be at least 4, those of a burst from external memory, not {instructions}"
    )


def test_external_memory_without_room_for_the_program():
    small = replace(FORMATS, memory=replace(FORMATS.memory, dram_rows=300))
    with pytest.raises(MemoryCapacityError) as caught:
        compiled(16, small)
    assert re.fullmatch(
        r"the program takes \d+ rows of external memory, which has 300; raise memory.dram_rows",
        str(caught.value),
    )


@pytest.mark.parametrize("cores", [1, 2])
def test_a_summary_says_what_streams(cores):
    formats = replace(FORMATS, cores=cores)
    program = compiled(16, formats)
    entry = program.entries["train"]
    counts = [entry.stop[u] - entry.start[u] for u in Unit]
    moved = cores * 4 * sum(n * w for n, w in zip(counts, (16, 16, 32, 8), strict=True))
    assert program_bytes(program, "train") == moved
    text = re.sub(r"\s+", " ", render(summarise(program)))
    control = program.config.control
    each = ", ".join(
        f"{u.name.lower()} {n:,} ({getattr(control, u.name.lower())})"
        for u, n in zip(Unit, counts, strict=True)
    )
    assert (
        f"Program: streams in from external memory, {moved:,} bytes a step; instructions of each unit (and of its "
        f"ring): {each}"
    ) in text
    assert "vector program, ring" in text
    plain = compiled(None, formats)
    assert program_bytes(plain, "train") == 0
    assert "streams" not in render(summarise(plain))


@pytest.mark.slow
def test_more_instructions_than_a_memory_can_have_need_no_option():
    net = forward(8, (*(6,) * 520, 3))
    formats = replace(FORMATS, memory=replace(FORMATS.memory, dram_words_per_cycle=4))
    program = compile_functions(
        functions(net, optimizer=optimizers.sgd(momentum=0.5)), Machine(formats)
    )
    assert len(program.units[Unit.VECTOR]) > MAX_INSTRUCTIONS
    control = program.config.control
    assert control.streamed
    assert {control.load, control.matrix, control.vector, control.store} == {RING}
    # Rings of a hundredth of the program cost a step little.
    per_step = cycles_per_step(program, "train")
    depths = dict.fromkeys(("load", "matrix", "vector", "store"), 1 << 13)
    whole = replace(program.config, control=ControlConfig(**depths))
    assert per_step < 1.1 * cycles_per_step(replace(program, config=whole), "train")
