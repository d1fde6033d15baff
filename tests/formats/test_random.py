"""The per-lane generators: known vectors, seeds, and what is made of the bits."""

import numpy as np
import pytest

from fpgrad.errors import FormatError
from fpgrad.formats import BF16, FP24, FloatFormat, random24, seed_lanes, step, to_float, uniform


def test_known_vectors():
    """The example of Marsaglia's paper, and the first outputs from 1."""
    state = np.array([2463534242, 1], dtype=np.uint32)
    state = step(state)
    assert state.tolist() == [723471715, 270369]
    assert step(state).tolist() == [2497366906, 67634689]


def test_step_against_plain_python():
    states = seed_lanes(7, 64)
    for got, x in zip(step(states).tolist(), states.tolist(), strict=True):
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        assert got == x


def test_step_is_a_bijection_without_short_cycles():
    """The matrix of a step over GF(2) has order 2**32 - 1: every state but 0 is on one cycle."""
    columns = step(np.uint32(1) << np.arange(32, dtype=np.uint32)).tolist()

    def apply(matrix: list[int], x: int) -> int:
        out = 0
        for bit in range(32):
            if x >> bit & 1:
                out ^= matrix[bit]
        return out

    def power(exponent: int) -> list[int]:
        result, square = [1 << i for i in range(32)], columns
        while exponent:
            if exponent & 1:
                result = [apply(square, c) for c in result]
            square = [apply(square, c) for c in square]
            exponent >>= 1
        return result

    identity = [1 << i for i in range(32)]
    period = 2**32 - 1
    assert power(period) == identity
    for prime in (3, 5, 17, 257, 65537):
        assert power(period // prime) != identity


def test_seeds():
    """The same seed gives the same lanes, a prefix for fewer; no lane is 0 or equals another."""
    a = seed_lanes(2024, 1024)
    assert a.dtype == np.uint32
    assert np.array_equal(a, seed_lanes(2024, 1024))
    assert np.array_equal(a[:16], seed_lanes(2024, 16))
    assert len(set(a.tolist())) == 1024
    assert a.all()
    assert not np.array_equal(a, seed_lanes(2025, 1024))
    # SplitMix64 from 0 starts with e220a8397b1dcdaf, 6e789e6aa1b965f4 (its published test vector).
    assert seed_lanes(0, 2).tolist() == [0xE220A839, 0x6E789E6A]
    assert seed_lanes(2**64 - 1, 0).shape == (0,)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seed(seed: int):
    with pytest.raises(FormatError, match=rf"^seed must be 0 to 2\*\*64-1, not {seed}$"):
        seed_lanes(seed, 1)


def test_bad_lanes_and_state():
    with pytest.raises(FormatError, match=r"^lanes must not be negative, but is -1$"):
        seed_lanes(0, -1)
    with pytest.raises(FormatError, match=r"^state must be an array of uint32, not int64$"):
        step(np.array([1, 2]))


@pytest.mark.parametrize("fmt", [FP24, BF16, FloatFormat(5, 23), FloatFormat(2, 1)], ids=str)
def test_uniform(fmt: FloatFormat):
    """In [1, 2), with the state's top bits as the mantissa."""
    state = seed_lanes(3, 1000)
    m = fmt.mantissa_bits
    want = 1.0 + (state.astype(np.int64) >> (32 - m)) / 2.0**m
    assert np.array_equal(to_float(fmt, uniform(fmt, state)), want)


def test_spread():
    """Means and variances along time and across lanes are those of uniform numbers."""
    state = seed_lanes(11, 256)
    rows = []
    for _ in range(512):
        state = step(state)
        rows.append(random24(state) / 2.0**24)
    x = np.array(rows)
    sigma = (1 / 12) ** 0.5
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 0.5) < 5 * sigma / x.size**0.5
    assert abs(x.var() - 1 / 12) < 0.002
    assert np.abs(x.mean(axis=0) - 0.5).max() < 5 * sigma / 512**0.5
    assert np.abs(x.mean(axis=1) - 0.5).max() < 5 * sigma / 256**0.5
