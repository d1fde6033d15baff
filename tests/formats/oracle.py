"""Small floats and tiles over again in `fractions`, sharing nothing with the package but bit layouts.

Numbers here are exact rationals, rounding is Python's own (``round`` of a Fraction is to nearest,
ties to even), and the smallest formats are rounded by looking through the list of their numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from fractions import Fraction

from fpgrad.formats import FloatFormat


def power(e: int) -> Fraction:
    return Fraction(2) ** e


def floor_log2(v: Fraction) -> int:
    """Largest e with 2**e <= v."""
    e = v.numerator.bit_length() - v.denominator.bit_length()
    return e if power(e) <= v else e - 1


def value(fmt: FloatFormat, code: int) -> Fraction:
    """The number of a code, from the definition."""
    mantissa = code % (1 << fmt.mantissa_bits)
    field = (code >> fmt.mantissa_bits) % (1 << fmt.exponent_bits)
    sign = -1 if code >> (fmt.mantissa_bits + fmt.exponent_bits) else 1
    if field == 0:
        return Fraction(0)
    bias = 2 ** (fmt.exponent_bits - 1) - 1
    return sign * (1 + Fraction(mantissa, 1 << fmt.mantissa_bits)) * power(field - bias)


def nearest(fmt: FloatFormat, v: Fraction) -> tuple[int, bool]:
    """Code of the number nearest to ``v``, and whether it saturated."""
    bias = 2 ** (fmt.exponent_bits - 1) - 1
    m = fmt.mantissa_bits
    if abs(v) < power(1 - bias):
        return 0, False
    sign = 1 << (m + fmt.exponent_bits) if v < 0 else 0
    e = floor_log2(abs(v))
    units = round(abs(v) / power(e - m))
    if units == 2 << m:
        e, units = e + 1, 1 << m
    if e > bias:
        top = 2**fmt.exponent_bits - 2
        return sign | (top << m) | ((1 << m) - 1), True
    return sign | ((e + bias) << m) | (units - (1 << m)), False


class Enumeration:
    """Rounding by search among all positive numbers of a tiny format."""

    def __init__(self, fmt: FloatFormat) -> None:
        self.codes = list(range(1 << fmt.mantissa_bits, fmt.max_code + 1))
        self.values = [value(fmt, c) for c in self.codes]
        self.sign = 1 << (fmt.exponent_bits + fmt.mantissa_bits)
        last = self.values[-1] - self.values[-2]
        self.overflow = self.values[-1] + last / 2

    def nearest(self, v: Fraction) -> tuple[int, bool]:
        size = abs(v)
        sign = self.sign if v < 0 else 0
        if size < self.values[0]:
            return 0, False
        if size >= self.overflow:
            return sign | self.codes[-1], True
        above = bisect_left(self.values, size)
        if above == len(self.values):
            return sign | self.codes[-1], False
        if self.values[above] == size:
            return sign | self.codes[above], False
        low, high = size - self.values[above - 1], self.values[above] - size
        if low != high:
            return sign | self.codes[above if high < low else above - 1], False
        even = above if self.codes[above] % 2 == 0 else above - 1
        return sign | self.codes[even], False


def tile(
    side: int, mantissa_bits: int, numbers: Iterable[Fraction]
) -> tuple[list[int], int | None]:
    """Mantissas of a tile of ``side**2`` numbers to nearest even, and floor of log2 of the largest."""
    flat = list(numbers)
    assert len(flat) == side * side
    largest = max(abs(x) for x in flat)
    if largest == 0:
        return [0] * len(flat), None
    e = floor_log2(largest)
    limit = 2 ** (mantissa_bits - 1) - 1
    unit = power(e - (mantissa_bits - 2))
    return [max(-limit, min(limit, round(x / unit))) for x in flat], e
