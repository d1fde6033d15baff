"""Function tables: piecewise linear functions of a fraction, and what is made of them.

A table holds ``T(t)`` for ``t`` in [0, 1) in ``S`` equal segments as integers with
``coefficient_bits`` fraction bits; the slope of a segment is the difference of its end points, so
the function is continuous, monotone where the original is, and exact at the ends of segments up to
the coefficients' rounding. Around it each function does what floating point makes cheap: the
exponent of a reciprocal is negated, that of a square root halved, the integer part of the argument
of 2**x becomes the exponent. All steps are integer arithmetic, the same in the reference, the
emulator and the gateware.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from fpgrad.errors import FormatError
from fpgrad.formats import smallfloat
from fpgrad.formats.smallfloat import Codes, Flags, FloatFormat


class Function(IntEnum):
    """What the function stage of a vector pass computes; the value is its code in instructions."""

    NONE = 0
    RELU = 1
    EXP2 = 2
    LOG2 = 3
    RECIPROCAL = 4
    RSQRT = 5
    TANH = 6
    SIGMOID = 7
    PHI = 8


#: The functions that need a table.
TABLED = tuple(f for f in Function if f > Function.RELU)

#: log2 of the argument at which the odd-symmetric functions are taken to have reached 1.
RANGE_LOG2 = {Function.TANH: 2, Function.SIGMOID: 3, Function.PHI: 2}


def _normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


_ON_FRACTION: dict[Function, Callable[[float], float]] = {
    Function.EXP2: lambda t: 2.0**t,
    Function.LOG2: lambda t: math.log2(1.0 + t),
    Function.RECIPROCAL: lambda t: 1.0 / (1.0 + t),
    Function.TANH: lambda t: math.tanh(4.0 * t),
    Function.SIGMOID: lambda t: 1.0 / (1.0 + math.exp(-8.0 * t)),
    Function.PHI: lambda t: _normal_cdf(4.0 * t),
}


@dataclass(frozen=True)
class TableFormat:
    """Resolution of the function tables.

    Args:
        segments: 8, 16, 32 or 64 linear pieces.
        coefficient_bits: fraction bits of the coefficients, 8 to 15.
    """

    segments: int = 16
    coefficient_bits: int = 10

    def __post_init__(self) -> None:
        if self.segments not in (8, 16, 32, 64):
            raise FormatError(f"segments must be 8, 16, 32 or 64, not {self.segments!r}")
        if not 8 <= self.coefficient_bits <= 15:
            raise FormatError(f"coefficient_bits must be 8 to 15, not {self.coefficient_bits!r}")

    @property
    def index_bits(self) -> int:
        """Leading bits of the argument that select the segment."""
        return self.segments.bit_length() - 1

    @property
    def fraction_bits(self) -> int:
        """Fraction bits of a table's argument and result, the same for every float format."""
        return 15


@dataclass(frozen=True)
class Table:
    """Coefficients of one function: ``T(t) = base[s] + slope[s] * rest``, as integers.

    ``base`` and ``slope`` have one entry a segment (RSQRT: two octaves, the odd exponents' second).
    """

    function: Function
    format: TableFormat
    base: tuple[int, ...]
    slope: tuple[int, ...]

    def lookup(self, segment_set: ArrayLike, t: ArrayLike) -> Codes:
        """``T(t)``; ``t`` and the result have 15 fraction bits; set 1 is the odd octave."""
        f, b, s = self.format.fraction_bits, self.format.coefficient_bits, self.format.index_bits
        argument = np.asarray(t, dtype=np.int64)
        first = np.asarray(segment_set, dtype=np.int64) * self.format.segments
        index = first + (argument >> (f - s))
        rest = argument & ((1 << (f - s)) - 1)
        base = np.asarray(self.base, dtype=np.int64)[index]
        slope = np.asarray(self.slope, dtype=np.int64)[index]
        return (base << (f - b)) + ((slope * rest) >> (b - s))


def make_table(function: Function, fmt: TableFormat) -> Table:
    """Coefficients of ``function`` from its values at the ends of segments."""
    n, one = fmt.segments, 1 << fmt.coefficient_bits

    def points(f: Callable[[float], float]) -> list[int]:
        return [round(f(i / n) * one) for i in range(n + 1)]

    if function is Function.RSQRT:
        sets = [
            points(lambda t: (1.0 + t) ** -0.5),
            points(lambda t: (2.0 * (1.0 + t)) ** -0.5),
        ]
    elif function in _ON_FRACTION:
        sets = [points(_ON_FRACTION[function])]
    else:
        raise FormatError(f"{function.name} has no table")
    base = tuple(v for p in sets for v in p[:-1])
    slope = tuple(p[i + 1] - p[i] for p in sets for i in range(n))
    return Table(function, fmt, base, slope)


def _fixed(fmt: FloatFormat, codes: Codes, point: int) -> Codes:
    """Magnitude of ``codes`` as an integer with ``point`` fraction bits, cut off; at most 2**40."""
    _, exponent, significand = smallfloat.split(fmt, codes)
    shift = exponent - fmt.bias - fmt.mantissa_bits + point
    left = np.minimum(significand << np.clip(shift, 0, 24), 1 << 40)
    return np.where(
        shift >= 0, np.where(shift > 24, 1 << 40, left), significand >> np.clip(-shift, 0, 62)
    )


def _mantissa15(fmt: FloatFormat, significand: Codes) -> Codes:
    """The fraction of a significand with 15 bits: padded with zeros, or cut off."""
    fraction = significand & ((1 << fmt.mantissa_bits) - 1)
    d = 15 - fmt.mantissa_bits
    return fraction << d if d >= 0 else fraction >> -d


def evaluate(
    fmt: FloatFormat, table: Table | None, function: Function, codes: ArrayLike
) -> tuple[Codes, Flags]:
    """Apply ``function`` to small floats.

    RECIPROCAL and RSQRT of zero, and EXP2 where the result would reach ``2**(bias+1)``, give the
    largest number of their sign and saturate; LOG2 of zero is ``-bias``. RSQRT and LOG2 take the
    magnitude of their argument.

    Returns:
        codes, and where the result saturated.
    """
    c = np.asarray(codes, dtype=np.int64)
    never = np.zeros(c.shape, dtype=np.bool_)
    if function is Function.NONE:
        return c, never
    if function is Function.RELU:
        return np.where(smallfloat.order_key(fmt, c) > 0, c, 0), never
    if table is None or table.function is not function:
        raise FormatError(f"{function.name} needs its own table")
    sign, exponent, significand = smallfloat.split(fmt, c)
    unbiased = exponent - fmt.bias
    offset = fmt.bias + fmt.mantissa_bits - 15  # exponent field of an integer with 15 fraction bits
    positive = np.zeros_like(c)
    if function is Function.RECIPROCAL:
        y = table.lookup(0, _mantissa15(fmt, significand))
        result, over = smallfloat.compose(fmt, sign, y, offset - unbiased)
        zero = exponent == 0
        limit = fmt.max_code | (sign << (fmt.width - 1))
        return np.where(zero, limit, result), over | zero
    if function is Function.RSQRT:
        odd = unbiased & 1
        y = table.lookup(odd, _mantissa15(fmt, significand))
        result, over = smallfloat.compose(fmt, positive, y, offset - (unbiased >> 1))
        zero = exponent == 0
        return np.where(zero, fmt.max_code, result), over | zero
    if function is Function.LOG2:
        fixed = (unbiased << 15) + table.lookup(0, _mantissa15(fmt, significand))
        negative = (fixed < 0).astype(np.int64)
        return smallfloat.compose(fmt, negative, np.abs(fixed), np.full_like(c, offset))
    if function is Function.EXP2:
        magnitude = np.minimum(_fixed(fmt, c, 15), 1 << (15 + 10))
        fixed = np.where(sign == 1, -magnitude, magnitude)
        y = table.lookup(0, fixed & 0x7FFF)
        return smallfloat.compose(fmt, positive, y, offset + (fixed >> 15))
    # The symmetric ones: tanh(-x) = -tanh(x); f(-x) = 1 - f(x) for sigmoid and phi.
    argument = _fixed(fmt, c, 15 - RANGE_LOG2[function])
    y = np.where(argument >= 1 << 15, 1 << 15, table.lookup(0, np.minimum(argument, 0x7FFF)))
    if function is Function.TANH:
        return smallfloat.compose(fmt, sign, y, np.full_like(c, offset))
    y = np.where(sign == 1, (1 << 15) - y, y)
    return smallfloat.compose(fmt, positive, y, np.full_like(c, offset))
