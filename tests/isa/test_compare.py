"""The comparison of machines finds one wrong bit in any memory, and says where it is in the user's words."""

from __future__ import annotations

import pytest
from tests.programs.machines import MACHINES

from fpgrad.isa.compare import count_differences, first_difference
from fpgrad.isa.program import Program, Symbol
from fpgrad.reference import ReferenceExecutor

CONFIG = MACHINES["T4"]
SYMBOLS = (
    Symbol("dense/kernel", "vector", 8, 8, 4, 8),
    Symbol("dense/bias", "vector", 16, 2, 1, 7, "row"),
    Symbol("loss", "vector", 20, 2, 7, 1, "column"),
    Symbol("x", "tile", 2, 4, 4, 14, transposed=True),
    Symbol("relu", "mask", 16, 16, 6, 8),
    Symbol("pool", "mask", 32, 4, 4, 4, transposed=True),
    Symbol("drop", "mask", 32, 4, 4, 4),
)
PROGRAM = Program(CONFIG, {}, {}, SYMBOLS)

PLACES = {
    ("vector", (3, 0)): "vector row 3, lane 0: 0x0 and 0x1",
    ("vector", (13, 2)): "vector row 13, lane 2 (dense/kernel[1, 6]): 0x0 and 0x1",
    ("vector", (17, 1)): "vector row 17, lane 1 (dense/bias[0, 5]): 0x0 and 0x1",
    ("vector", (17, 3)): "vector row 17, lane 3 (padding of dense/bias): 0x0 and 0x1",
    ("vector", (21, 2)): "vector row 21, lane 2 (loss[6, 0]): 0x0 and 0x1",
    ("inbox", (1, 3)): "inbox row 1, lane 3: 0x0 and 0x1",
    ("outbox", (2, 2)): "outbox row 2, lane 2: 0x0 and 0x1",
    ("mask", (15, 3)): "mask row 15, lane 3: 0 and 1",
    ("mask", (21, 1)): "mask row 21, lane 1 (relu[1, 5]): 0 and 1",
    ("mask", (24, 2)): "mask row 24, lane 2 (relu[4, 2]): 0 and 1",
    ("mask", (26, 2)): "mask row 26, lane 2 (padding of relu): 0 and 1",
    ("mask", (33, 2)): "mask row 33, lane 2 (pool[2, 1] or drop[1, 2]): 0 and 1",
    ("mantissas", (3, 1, 2)): "mantissas tile 3, row 1, lane 2 (x[2, 5]): 0 and 1",
    ("mantissas", (5, 3, 0)): "mantissas tile 5, row 3, lane 0 (padding of x): 0 and 1",
    ("exponents", (2,)): "exponents tile 2 (x): 0 and 1",
    ("scalars", (3,)): "scalars lane 3: 0x0 and 0x1",
    ("random", (0,)): "random lane 0: 0x1 and 0x0",
    ("dram", (300, 3)): "dram row 300, lane 3: 0x0 and 0x1",
}


@pytest.mark.parametrize(("name", "index"), PLACES)
def test_one_flipped_bit_is_found_and_named(name: str, index: tuple[int, ...]):
    left, right = ReferenceExecutor(CONFIG), ReferenceExecutor(CONFIG)
    assert first_difference(left.dump(), right.dump(), PROGRAM) is None
    right.poke(name, index, int(name != "random"))
    assert first_difference(left.dump(), right.dump(), PROGRAM) == PLACES[name, index]
    assert count_differences(left.dump(), right.dump())[0] == 1


def test_more_than_one_is_counted():
    left, right = ReferenceExecutor(CONFIG), ReferenceExecutor(CONFIG)
    for row in (40, 41, 90):
        right.poke("mask", (row, 1), 1)
    wanted = "mask row 40, lane 1: 0 and 1; 3 of 384 words differ"
    assert first_difference(left.dump(), right.dump()) == wanted


def test_machines_of_other_depths_differ():
    other = ReferenceExecutor(MACHINES["T8"])
    assert first_difference(ReferenceExecutor(CONFIG).dump(), other.dump()) == (
        "vector has shape (32, 4) in one machine and (64, 8) in the other"
    )
