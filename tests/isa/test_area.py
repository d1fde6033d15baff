"""Where a streamed program lies in external memory, and machines and programs that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fpgrad.errors import ConfigError, ProgramMismatchError
from fpgrad.formats import TileFormat
from fpgrad.isa.area import burst_rows, first_rows, image, rows_needed, slot_beats, slot_words
from fpgrad.isa.config import BURST, ControlConfig, MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import CLASS_OF, Load, Unit, Vector
from fpgrad.isa.layout import unpack
from fpgrad.isa.program import Entry, Program


def machine(side: int = 4, words: int = 2, rows: int = 4096, depth: int = 8) -> MachineConfig:
    return MachineConfig(
        MatrixConfig(TileFormat(side)),
        memory=MemoryConfig(
            vector_rows=64, inbox_rows=64, dram_rows=1000, dram_words_per_cycle=words
        ),
        control=ControlConfig(depth, depth, depth, depth, program_rows=rows),
    )


@pytest.mark.parametrize(("side", "words"), [(4, 1), (4, 4), (16, 16), (32, 32), (32, 1)])
def test_no_burst_crosses_a_boundary_and_none_meets_another(side, words):
    config = machine(side, words)
    counts = {Unit.LOAD: 3, Unit.MATRIX: 0, Unit.VECTOR: 9, Unit.STORE: 1}
    *firsts, end = first_rows(config, counts)
    assert firsts[0] >= config.memory.dram_rows
    assert end - config.memory.dram_rows == rows_needed(config, counts)
    ends = [*firsts[1:], end]
    for unit in Unit:
        octets = 4 * slot_words(config, unit)
        assert slot_beats(config, unit) * 4 * words == octets
        assert slot_beats(config, unit) * BURST <= 256
        first = firsts[unit] * 4 * side
        for at in range(0, counts[unit], BURST):
            start, stop = first + at * octets, first + (at + BURST) * octets
            assert start // 4096 == (stop - 1) // 4096
        assert first + counts[unit] * octets <= ends[unit] * 4 * side
    # Large enough for a burst of any unit, and no larger.
    assert burst_rows(config) * side >= BURST * max(slot_words(config, u) for u in Unit)


@pytest.mark.parametrize(("side", "words"), [(4, 1), (32, 32)])
def test_the_image_holds_every_instruction_at_its_place(side, words):
    config = machine(side, words)
    listed = {
        Unit.LOAD: tuple(Load(count=n + 1) for n in range(5)),
        Unit.VECTOR: tuple(Vector(negate_c=n % 2) for n in range(3)),
    }
    program = Program(config, listed, {"main": Entry((0, 0, 0, 0), (5, 0, 3, 0))})
    firsts, rows = image(config, {u: program.words(u) for u in Unit})
    assert len(rows) == rows_needed(config, {u: len(i) for u, i in listed.items()}) - (
        firsts[0] - config.memory.dram_rows
    )
    assert rows.dtype == np.uint32
    for unit, instructions in listed.items():
        for n, instruction in enumerate(instructions):
            at = (firsts[unit] - firsts[0]) * side + n * slot_words(config, unit)
            words32 = rows.reshape(-1)[at : at + slot_words(config, unit)].tolist()
            packed = sum(word << (32 * k) for k, word in enumerate(words32))
            assert unpack(CLASS_OF[unit], packed) == instruction


def test_a_machine_without_streaming_is_written_down_as_before():
    plain, streamed = MachineConfig(), machine()
    assert "program_rows" not in plain.to_dict()["control"]
    for config in (plain, streamed):
        assert MachineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert streamed.control.streamed
    assert not plain.control.streamed
    assert streamed.external_rows == 1000 + 4096
    assert replace(streamed, control=replace(streamed.control, program_rows=8)).digest != (
        streamed.digest
    )


def test_only_a_machine_of_its_kind_takes_a_program():
    config = machine(depth=8)
    plain = replace(config, control=replace(config.control, program_rows=0))
    program = Program(plain, {}, {"main": Entry((0,) * 4, (0,) * 4)})
    with pytest.raises(ProgramMismatchError) as caught:
        program.check_machine(config)
    assert str(caught.value) == (
        "the program is for another machine: control.program_rows = 0 (machine: 4096)"
    )


@pytest.mark.parametrize("depth", [2, 6, 12, 0])
def test_rings_are_powers_of_two_that_hold_a_burst(depth):
    with pytest.raises(ConfigError) as caught:
        machine(depth=depth)
    assert str(caught.value) == (
        "control.load must be a power of two from 4 on, the instructions of a burst, where programs stream in from "
        f"external memory, not {depth}"
    )


def test_a_negative_area_is_none():
    with pytest.raises(ConfigError) as caught:
        machine(rows=-1)
    assert str(caught.value) == "control.program_rows must be 0 or a number of rows, not -1"


def test_the_area_has_addresses():
    with pytest.raises(ConfigError) as caught:
        machine(rows=(1 << 28) - 999)
    assert str(caught.value) == (
        "memory.dram_rows and control.program_rows must be at most 268435456 together, not 268435457"
    )


def test_a_program_that_its_area_would_cut_off_is_refused():
    entries = {"main": Entry((0, 0, 0, 0), (20, 0, 0, 0))}
    loads = {Unit.LOAD: (Load(),) * 20}
    # 24 rows up to the first burst, 80 of instructions, 16 up to the next.
    Program(machine(rows=120), loads, entries)
    with pytest.raises(ConfigError) as caught:
        Program(machine(rows=119), loads, entries)
    assert str(caught.value) == (
        "the program takes 120 rows of external memory behind its 1000 rows of data, the machine has 119; raise "
        "control.program_rows"
    )
