"""The register map's page says what the code says, and the map has no overlaps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fpgrad.isa.instructions import Unit
from fpgrad.isa.registers import (
    INSTRUCTION_WORDS,
    MAX_INSTRUCTIONS,
    REGION_LOG2,
    Control,
    Register,
    Status,
    UnitStatus,
    instruction_address,
    instruction_words,
)

PAGE = Path(__file__).parents[2] / "docs" / "registers.md"
ROW = re.compile(r"^\| (0x\w+) \| (\w+) \| (\d+) \| (\w+) \| (.*) \|$", re.MULTILINE)
ROWS = {name: (int(at, 16), int(n), text) for at, name, n, _, text in ROW.findall(PAGE.read_text())}


def test_the_page_has_every_register_at_its_address():
    assert {name: at for name, (at, _, _) in ROWS.items()} == {r.name: int(r) for r in Register}


def test_registers_do_not_overlap():
    ends = 0
    for at, count, _ in sorted(ROWS.values()):
        assert at >= ends
        ends = at + count


@pytest.mark.parametrize(
    ("name", "flags"), [("CONTROL", Control), ("STATUS", Status), ("UNIT", UnitStatus)]
)
def test_the_page_has_every_flag(name, flags):
    assert ", ".join(f"{f.name} = {int(f)}" for f in flags) in ROWS[name][2]


@pytest.mark.parametrize("unit", list(Unit))
def test_instructions_fit_their_regions(unit):
    assert instruction_words(unit) <= INSTRUCTION_WORDS
    first, last = instruction_address(unit, 0), instruction_address(unit, MAX_INSTRUCTIONS - 1)
    assert first >> REGION_LOG2 == (last + INSTRUCTION_WORDS - 1) >> REGION_LOG2 == 1 + unit
