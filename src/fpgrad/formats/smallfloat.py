"""Small floating point with parametric widths, in exact integer arithmetic.

A code has one sign, ``E`` exponent and ``M`` mantissa bits.
Every number that is not a tile mantissa is a small float (fp24 = 1-8-15 by default, bf16 = 1-8-7).
The machine has no subnormals, infinities or NaN: results below the smallest normal number are
flushed to zero (tininess is judged on the exact result, before rounding), results above the
largest are clamped to it. Numbers travel as *codes*: int64 arrays that hold the ``1+E+M`` bits
``sign|exponent|mantissa``. An exponent field of 0 is the number zero whatever its mantissa;
operations produce +0 or -0 codes only as plain 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import FormatError

Codes: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class FloatFormat:
    """Widths of a small float.

    Args:
        exponent_bits: 2 to 8; the bias is ``2**(exponent_bits-1) - 1``. All exponent codes but 0
            and the all-ones code are numbers, so that a format with 8 exponent bits is a subset of
            IEEE binary32.
        mantissa_bits: stored fraction bits, 1 to 23.
    """

    exponent_bits: int = 8
    mantissa_bits: int = 15

    def __post_init__(self) -> None:
        if not 2 <= self.exponent_bits <= 8:
            raise FormatError(f"exponent_bits must be 2 to 8, not {self.exponent_bits!r}")
        if not 1 <= self.mantissa_bits <= 23:
            raise FormatError(f"mantissa_bits must be 1 to 23, not {self.mantissa_bits!r}")

    @property
    def width(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """Exponent field of the numbers in [1, 2)."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """Largest exponent field that is a number."""
        return (1 << self.exponent_bits) - 2

    @property
    def max_code(self) -> int:
        """Code of the largest positive number."""
        return (self.max_exponent << self.mantissa_bits) | ((1 << self.mantissa_bits) - 1)

    @property
    def one(self) -> int:
        """Code of 1.0."""
        return self.bias << self.mantissa_bits

    @property
    def sign_bit(self) -> int:
        """The bit of a code that is set in negative numbers."""
        return 1 << (self.exponent_bits + self.mantissa_bits)


FP24 = FloatFormat(8, 15)
BF16 = FloatFormat(8, 7)


def split(fmt: FloatFormat, codes: ArrayLike) -> tuple[Codes, Codes, Codes]:
    """Sign (0/1), exponent field and significand with its hidden bit (0 for zero) of ``codes``."""
    c = np.asarray(codes, dtype=np.int64)
    m = fmt.mantissa_bits
    exponent = (c >> m) & ((1 << fmt.exponent_bits) - 1)
    significand = np.where(exponent > 0, (c & ((1 << m) - 1)) | (1 << m), 0)
    return (c >> (fmt.exponent_bits + m)) & 1, exponent, significand


def bit_length(x: Codes) -> Codes:
    """Bit length of non-negative int64 numbers below 2**62."""
    length = np.zeros_like(x)
    for shift in (32, 16, 8, 4, 2, 1):
        high = x >> shift
        big = high > 0
        length = np.where(big, length + shift, length)
        x = np.where(big, high, x)
    return length + (x > 0)


def round_shift(x: Codes, shift: ArrayLike) -> Codes:
    """``x / 2**shift`` for non-negative ``x``, to nearest, ties to even; ``shift`` 0 to 62."""
    s = np.asarray(shift, dtype=np.int64)
    down = x >> s
    rest = x - (down << s)
    half = np.where(s > 0, np.int64(1) << np.maximum(s - 1, 0), np.int64(1) << 62)
    return down + ((rest > half) | ((rest == half) & ((down & 1) == 1) & (s > 0)))


def compose(
    fmt: FloatFormat, sign: Codes, magnitude: Codes, exponent: Codes
) -> tuple[Codes, Flags]:
    """Round ``(-1)**sign * magnitude * 2**(exponent - bias - M)`` into ``fmt``.

    Args:
        magnitude: non-negative integers below 2**62 (a trailing sticky bit is allowed).
        exponent: the exponent field that a magnitude in ``[2**M, 2**(M+1))`` would get.

    Returns:
        codes, and a flag where the number was clamped to the largest.
    """
    m = fmt.mantissa_bits
    excess = bit_length(magnitude) - (m + 1)
    true_exponent = exponent + excess
    tiny = (magnitude == 0) | (true_exponent < 1)
    rounded = round_shift(magnitude, np.maximum(excess, 0)) << np.maximum(-excess, 0)
    carry = rounded >> (m + 1)
    final_exponent = true_exponent + carry
    rounded = np.where(carry > 0, rounded >> 1, rounded)
    over = ~tiny & (final_exponent > fmt.max_exponent)
    body = (final_exponent << m) | (rounded & ((1 << m) - 1))
    body = np.where(over, fmt.max_code, body)
    signed = body | (sign << (fmt.width - 1))
    return np.where(tiny, 0, signed), over


def multiply(fmt: FloatFormat, a: ArrayLike, b: ArrayLike) -> tuple[Codes, Flags]:
    """Product, rounded once; and where it saturated."""
    sa, ea, ma = split(fmt, a)
    sb, eb, mb = split(fmt, b)
    return compose(fmt, sa ^ sb, ma * mb, ea + eb - fmt.bias - fmt.mantissa_bits)


def add(fmt: FloatFormat, a: ArrayLike, b: ArrayLike) -> tuple[Codes, Flags]:
    """Sum, rounded once; and where it saturated. Exact cancellation gives +0."""
    sa, ea, ma = split(fmt, a)
    sb, eb, mb = split(fmt, b)
    swap = (eb > ea) | ((eb == ea) & (mb > ma))
    s1, e1, m1 = np.where(swap, sb, sa), np.where(swap, eb, ea), np.where(swap, mb, ma)
    s2, e2, m2 = np.where(swap, sa, sb), np.where(swap, ea, eb), np.where(swap, ma, mb)
    guard = fmt.mantissa_bits + 4
    distance = np.minimum(e1 - e2, 2 * guard)
    small = m2 << guard
    shifted = small >> distance
    sticky = (shifted << distance) != small
    large = m1 << guard
    # A subtrahend with bits below the guard makes the difference smaller: take one unit more.
    difference = large - shifted - sticky
    total = np.where(s1 == s2, large + shifted, difference) | sticky
    return compose(fmt, s1, total, e1 - guard)


def order_key(fmt: FloatFormat, codes: ArrayLike) -> Codes:
    """Integers that compare as the numbers do (zeros equal)."""
    sign, exponent, _ = split(fmt, codes)
    body = np.asarray(codes, dtype=np.int64) & (fmt.sign_bit - 1)
    body = np.where(exponent == 0, 0, body)
    return np.where(sign == 1, -body, body)


def negate(fmt: FloatFormat, codes: ArrayLike) -> Codes:
    """The negative; zero stays the code 0."""
    c = np.asarray(codes, dtype=np.int64)
    _, exponent, _ = split(fmt, c)
    return np.where(exponent == 0, 0, c ^ fmt.sign_bit)


def from_float(fmt: FloatFormat, values: ArrayLike) -> tuple[Codes, Flags]:
    """Round float64 (or float32) numbers to nearest even.

    Raises:
        FormatError: on NaN or infinity.
    """
    v = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(v)):
        raise FormatError("values must be finite: NaN and infinity have no code")
    fraction, exponent = np.frexp(np.abs(v))
    magnitude = (fraction * (1 << 53)).astype(np.int64)
    field = exponent.astype(np.int64) - 53 + fmt.mantissa_bits + fmt.bias
    return compose(fmt, np.signbit(v).astype(np.int64), magnitude, field)


def to_float(fmt: FloatFormat, codes: ArrayLike) -> NDArray[np.float64]:
    """The numbers that ``codes`` stand for, exactly."""
    sign, exponent, significand = split(fmt, codes)
    magnitude = np.ldexp(
        significand.astype(np.float64), (exponent - fmt.bias - fmt.mantissa_bits).astype(np.int32)
    )
    return np.where(sign == 1, -magnitude, magnitude)
