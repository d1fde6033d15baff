"""Random bits of the machine: one xorshift32 generator a lane, for stochastic rounding and dropout.

Three shifts and three exclusive-ors a step are a handful of LUTs a lane, and the same few integer
operations in NumPy and C++, so that a run that uses random numbers is as reproducible as one that
does not. The shifts 13, 17, 5 and the period of 2**32 - 1 (every state but 0) are from G.
Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8 (14), 2003.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import FormatError
from fpgrad.formats.smallfloat import Codes, FloatFormat

State: TypeAlias = NDArray[np.uint32]

_MASK64 = (1 << 64) - 1


def splitmix64(seeds: NDArray[np.uint64], numbers: ArrayLike) -> NDArray[np.uint64]:
    """Outputs of SplitMix64 ``(len(seeds), len(numbers))``: for each seed those with these numbers, from 1.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        step = np.asarray(numbers, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = seeds[:, None] + step
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def seed_lanes(seed: int, lanes: int) -> State:
    """Different, non-zero starting states ``(lanes,)`` from a seed of 64 bits.

    The states are the upper halves of successive outputs of SplitMix64 (Steele, Lea and Flood,
    OOPSLA 2014), those left out that are 0 or came before, so that no two lanes run through the
    same numbers in step.

    Raises:
        FormatError: when ``seed`` is not in [0, 2**64), or ``lanes`` is negative.
    """
    if not 0 <= seed <= _MASK64:
        raise FormatError(f"seed must be 0 to 2**64-1, not {seed!r}")
    if lanes < 0:
        raise FormatError(f"lanes must not be negative, but is {lanes!r}")
    states: dict[int, None] = {}
    first = 1
    while len(states) < lanes:
        some = splitmix64(np.array([seed], np.uint64), np.arange(first, first + lanes))
        states.update(dict.fromkeys(int(x) for x in some[0] >> np.uint64(32) if x))
        first += lanes
    return np.array(list(states)[:lanes], dtype=np.uint32)


def _checked(state: ArrayLike) -> State:
    x = np.asarray(state)
    if x.dtype != np.uint32:
        raise FormatError(f"state must be an array of uint32, not {x.dtype}")
    return x


def step(state: ArrayLike) -> State:
    """The next state of every lane. The state 0 stays 0: never start a lane from it."""
    x = _checked(state)
    x = x ^ (x << np.uint32(13))
    x = x ^ (x >> np.uint32(17))
    return x ^ (x << np.uint32(5))


def uniform(fmt: FloatFormat, state: ArrayLike) -> Codes:
    """Codes of numbers in [1, 2): the mantissa is the top ``mantissa_bits`` bits of the state."""
    x = _checked(state).astype(np.int64)
    return fmt.one | (x >> (32 - fmt.mantissa_bits))


def random24(state: ArrayLike) -> Codes:
    """Integers in [0, 2**24): top bits of the state, the noise that ``quantise`` takes."""
    return _checked(state).astype(np.int64) >> 8
