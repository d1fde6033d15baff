"""External memory is given out, taken back and joined again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpgrad.errors import MemoryCapacityError
from fpgrad.formats import BF16, FP24, FloatFormat, from_float, to_float
from fpgrad.host import pack
from fpgrad.host.memory import RowAllocator
from fpgrad.host.session import lane_seeds


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_rows_never_overlap_and_come_back(actions):
    memory, held = RowAllocator(500, 16), {}
    for take, size in actions:
        if take:
            try:
                first = memory.reserve(size)
            except MemoryCapacityError:
                continue
            assert first + size <= 500
            assert all(first + size <= f or f + n <= first for f, n in held.items())
            held[first] = size
        elif held:
            first = next(iter(held))
            memory.release(first)
            del held[first]
    for first in held:
        memory.release(first)
    assert memory.reserve(500) == 0


def test_too_little_memory_says_how_much():
    memory = RowAllocator(1 << 14, 16)
    memory.reserve(10000)
    with pytest.raises(MemoryCapacityError, match=r"holds 1 MiB; weights and data need 1.22 MiB"):
        memory.reserve(10000)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)
)
def test_fast_words_are_those_of_the_formats(values):
    array = np.array(values, np.float32)
    for number in (FP24, BF16, FloatFormat(8, 22)):
        words, saturated = pack.to_words(number, array)
        codes, over = from_float(number, array.astype(np.float64))
        np.testing.assert_array_equal(words.astype(np.int64) >> (32 - number.width), codes)
        assert saturated == over.sum()
        np.testing.assert_array_equal(
            pack.from_words(number, words), to_float(number, codes).astype(np.float32)
        )


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (1, 40), (7, 1), (20, 33), (16, 16)])
@pytest.mark.parametrize("side", [4, 16])
def test_states_round_trip_through_rows(shape, side):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tiles = -(-shape[0] // side) * -(-shape[1] // side)
    kind = "splat" if shape == (1, 1) else "vector" if 1 in shape else "tiles"
    rows = pack.state_rows(
        values,
        {"shape": shape, "kind": kind, "rows": tiles * (side if kind == "tiles" else 1)},
        side,
    )
    np.testing.assert_array_equal(pack.tensor(rows, shape, kind, False), values)


def test_seeds_differ_in_every_lane_and_step():
    seeds = lane_seeds(np.arange(100, dtype=np.uint64), 16)
    assert len(np.unique(seeds)) == 1600
