"""Errors of the function tables: the bound that follows from how they are made, and measurements.

The test of the tables and the numbers in docs/formats.md both come from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fpgrad.formats import (
    FP24,
    FloatFormat,
    Function,
    TableFormat,
    from_float,
    make_table,
    to_float,
)
from fpgrad.formats.table import TABLED, evaluate

SEGMENTS = (8, 16, 32, 64)
COEFFICIENT_BITS = (8, 10, 12, 15)


def exact(function: Function, x: np.ndarray) -> np.ndarray:
    """The functions in float64."""
    if function is Function.EXP2:
        return np.exp2(x)
    if function is Function.LOG2:
        return np.log2(np.abs(x))
    if function is Function.RECIPROCAL:
        return 1.0 / x
    if function is Function.RSQRT:
        return 1.0 / np.sqrt(np.abs(x))
    if function is Function.TANH:
        return np.tanh(x)
    if function is Function.SIGMOID:
        return 1.0 / (1.0 + np.exp(-np.maximum(x, -700.0)))
    return np.array([0.5 * math.erfc(v) for v in (-x / math.sqrt(2.0)).tolist()])


@dataclass(frozen=True)
class Shape:
    """What the bound of a function is made of; ``F(t)`` is the tabled function on [0, 1)."""

    relative: bool
    curvature: (
        float  # largest |F''|; relative functions: largest |F''| / F, segments taken as points
    )
    slope: float  # largest |F'|, relative or not
    smallest: float  # F's smallest value where errors are relative, else 1
    beyond: float = 0.0  # what is cut off at the end of the range


_LN2 = math.log(2.0)
SHAPES = {
    Function.EXP2: Shape(True, _LN2**2, _LN2, 1.0),
    Function.LOG2: Shape(False, 1.0 / _LN2, 1.0 / _LN2, 1.0),
    Function.RECIPROCAL: Shape(True, 2.0, 1.0, 0.5),
    Function.RSQRT: Shape(True, 0.75, 0.5, 0.5),
    Function.TANH: Shape(False, 16 * 4 / 3**1.5, 4.0, 1.0, 1 - math.tanh(4)),
    Function.SIGMOID: Shape(False, 64 / (6 * 3**0.5), 2.0, 1.0, 1 / (1 + math.exp(8))),
    Function.PHI: Shape(
        False, 16 / math.sqrt(2 * math.pi * math.e), 4 / math.sqrt(2 * math.pi), 1.0, 3.2e-5
    ),
}


def bound(function: Function, table: TableFormat, fmt: FloatFormat) -> float:
    """The stated bound, relative or absolute, without the rounding of the result to ``fmt``."""
    shape, h = SHAPES[function], 1.0 / table.segments
    # Over a segment the ratio of F'' to F is at most 1 + h times that at its worse end.
    chord = h * h / 8 * shape.curvature * (1 + h if shape.relative else 1.0)
    coefficients = 2.0 ** -(table.coefficient_bits + 1) / shape.smallest
    floor = 2.0**-15 / shape.smallest
    by_mantissa = function in (Function.RECIPROCAL, Function.RSQRT, Function.LOG2)
    argument = 0.0 if by_mantissa and fmt.mantissa_bits <= 15 else 2.0**-15 * shape.slope
    return max(chord + coefficients + floor + argument, shape.beyond)


def errors(
    function: Function, table: TableFormat, fmt: FloatFormat, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Errors at ``codes``, relative or absolute as stated, and the exact results."""
    want = exact(function, to_float(fmt, codes))
    got = to_float(fmt, evaluate(fmt, make_table(function, table), function, codes)[0])
    error = np.abs(got - want)
    return (error / np.abs(want) if SHAPES[function].relative else error), want


def binade(fmt: FloatFormat, unbiased: int) -> np.ndarray:
    """All positive codes in [2**unbiased, 2**(unbiased+1))."""
    start = fmt.one + (unbiased << fmt.mantissa_bits)
    return np.arange(start, start + (1 << fmt.mantissa_bits))


def critical_codes(function: Function) -> np.ndarray:
    """fp24 codes among which the largest error over the whole range is found.

    RECIPROCAL and RSQRT repeat every one or two binades. For the others all codes between two
    neighbouring table arguments give one result, and the functions are monotone: the error is
    largest at the first or the last of these codes, and both are here for every argument.
    """
    if function in (Function.RECIPROCAL, Function.RSQRT, Function.LOG2):
        return np.concatenate([binade(FP24, -1), binade(FP24, 0)])
    point = {Function.EXP2: 15, Function.TANH: 13, Function.SIGMOID: 12, Function.PHI: 13}[function]
    first = from_float(FP24, np.arange((1 << 15) + 1) / 2.0**point)[0]
    positive = np.concatenate([first, first[1:] - 1])
    if function is Function.EXP2:
        positive = np.concatenate([positive, binade(FP24, 0)])
    else:
        positive = np.append(positive, FP24.max_code)
    return np.concatenate([positive, positive[positive > 0] | FP24.sign_bit])


def rounded_up(x: float) -> str:
    """Two significant digits, never less than ``x``."""
    exponent = math.floor(math.log10(x))
    digits = math.ceil(x / 10.0 ** (exponent - 1) - 1e-9)
    if digits == 100:
        digits, exponent = 10, exponent + 1
    return f"{digits // 10}.{digits % 10}e{exponent}"


def markdown_rows() -> list[str]:
    """The table of docs/formats.md, measured anew."""
    rows = []
    for function in TABLED:
        codes = critical_codes(function)
        kind = "relative" if SHAPES[function].relative else "absolute"
        for bits in COEFFICIENT_BITS:
            cells = [
                rounded_up(errors(function, TableFormat(n, bits), FP24, codes)[0].max())
                for n in SEGMENTS
            ]
            rows.append(f"| `{function.name}` | {kind} | {bits} | {' | '.join(cells)} |")
    return rows
