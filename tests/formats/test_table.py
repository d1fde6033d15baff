"""Function tables: error bounds, exact points, monotonicity, ends of range, and the docs' numbers."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats import table_errors
from tests.formats.table_errors import SHAPES, binade, bound, critical_codes, errors

from fpgrad.errors import FormatError
from fpgrad.formats import (
    BF16,
    FP24,
    TABLED,
    FloatFormat,
    Function,
    TableFormat,
    from_float,
    make_table,
    smallfloat,
    to_float,
)
from fpgrad.formats.table import evaluate

FP32 = FloatFormat(8, 23)
DEFAULT = TableFormat()
RESOLUTIONS = [TableFormat(n, b) for n in table_errors.SEGMENTS for b in (8, 10, 12, 15)]
EVERY_RESOLUTION = [TableFormat(n, b) for n in table_errors.SEGMENTS for b in range(8, 16)]
DECREASING = (Function.RECIPROCAL, Function.RSQRT)
DOCS = Path(__file__).parents[2] / "docs" / "formats.md"


def positive_codes(fmt: FloatFormat) -> np.ndarray:
    return np.arange(1 << fmt.mantissa_bits, fmt.max_code + 1)


def apply(function: Function, table: TableFormat, fmt: FloatFormat, x: object) -> np.ndarray:
    codes, _ = from_float(fmt, np.asarray(x, dtype=np.float64))
    return to_float(fmt, evaluate(fmt, make_table(function, table), function, codes)[0])


# Formats and tables ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((12, 10), "segments must be 8, 16, 32 or 64, not 12"),
        ((16, 7), "coefficient_bits must be 8 to 15, not 7"),
        ((16, 16), "coefficient_bits must be 8 to 15, not 16"),
    ],
)
def test_table_format_out_of_range(arguments: tuple[int, int], message: str):
    with pytest.raises(FormatError, match=f"^{message}$"):
        TableFormat(*arguments)


@pytest.mark.parametrize("function", [Function.NONE, Function.RELU])
def test_functions_without_table(function: Function):
    with pytest.raises(FormatError, match=rf"^{function.name} has no table$"):
        make_table(function, DEFAULT)


def test_table_of_another_function():
    table = make_table(Function.EXP2, DEFAULT)
    for wrong in (None, table):
        with pytest.raises(FormatError, match=r"^TANH needs its own table$"):
            evaluate(FP24, wrong, Function.TANH, [0])


def test_coefficients_are_pinned():
    """Tables are bits of the machine: the same on every platform, and changed only on purpose."""
    made = [make_table(f, t) for t in EVERY_RESOLUTION for f in TABLED]
    text = repr([(m.function.name, m.base, m.slope) for m in made])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "7b351d86aee2b63b0ff30c5e9e61fb27499f2d05ac7c28dc101d5736dd019081"


@pytest.mark.parametrize("table", EVERY_RESOLUTION, ids=str)
def test_coefficients_are_rounded_values_and_join(table: TableFormat):
    """Every base is the function rounded to ``coefficient_bits``; each segment ends at the next."""
    one = 1 << table.coefficient_bits
    ends = np.arange(table.segments) / table.segments
    scaled = {
        Function.EXP2: [ends],
        Function.LOG2: [1 + ends],
        Function.RECIPROCAL: [1 + ends],
        Function.RSQRT: [1 + ends, 2 + 2 * ends],
        Function.TANH: [4 * ends],
        Function.SIGMOID: [8 * ends],
        Function.PHI: [4 * ends],
    }
    for function in TABLED:
        made = make_table(function, table)
        x = np.concatenate(scaled[function])
        want = np.round(table_errors.exact(function, x) * one)
        assert np.array_equal(made.base, want)
        assert len(made.slope) == len(made.base)
        join = np.array(made.base) + made.slope
        per_set = table.segments
        for start in range(0, len(made.base), per_set):
            assert np.array_equal(
                join[start : start + per_set - 1], made.base[start + 1 : start + per_set]
            )
        assert min(made.base) >= 0
        assert max(made.base) < 2 * one
        assert max(map(abs, made.slope)) < one


# Error bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", TABLED, ids=lambda f: f.name)
def test_bounds_hold_at_every_resolution(function: Function):
    codes = critical_codes(function)
    for table in RESOLUTIONS:
        error, want = errors(function, table, FP24, codes)
        rounding = 2.0**-16 * (1 if SHAPES[function].relative else np.abs(want) + 2.0**-10)
        stated = bound(function, table, FP24)
        assert np.all(error <= stated + rounding), table
        assert error.max() > stated / 5, (table, "the stated bound is loose")


@pytest.mark.parametrize("function", TABLED, ids=lambda f: f.name)
def test_critical_codes_hold_the_largest_error(function: Function):
    """All fp24 codes of the useful range at the default resolution: nothing worse is among them."""
    worst = errors(function, DEFAULT, FP24, critical_codes(function))[0].max()
    low, high = {Function.EXP2: (-17, 6), Function.TANH: (-15, 4)}.get(function, (-8, 4))
    for sign in (0, FP24.sign_bit):
        codes = np.arange(binade(FP24, low)[0], binade(FP24, high)[0]) | sign
        error, want = errors(function, DEFAULT, FP24, codes)
        if function is Function.LOG2:  # results beyond 1 are rounded to fewer fraction bits
            error = error - 2.0**-16 * np.abs(want)
        assert error.max() <= worst


@pytest.mark.parametrize("function", TABLED, ids=lambda f: f.name)
def test_every_bf16_number(function: Function):
    """All codes whose result is normal and not beyond the largest."""
    positive = positive_codes(BF16)
    codes = np.concatenate([positive, positive | BF16.sign_bit])
    x = to_float(BF16, codes)
    if function is Function.EXP2:
        codes = codes[(x >= -126) & (x < 127.9)]
    if function is Function.RECIPROCAL:
        codes = codes[np.abs(x) <= 2.0**126]
    for table in (TableFormat(8, 8), DEFAULT, TableFormat(64, 15)):
        error, want = errors(function, table, BF16, codes)
        rounding = 2.0**-8 * (1.01 if SHAPES[function].relative else np.abs(want) + 0.01)
        assert np.all(error <= bound(function, table, BF16) + rounding)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(TABLED),
    st.sampled_from(EVERY_RESOLUTION),
    st.builds(FloatFormat, st.integers(4, 8), st.integers(4, 23)),
    st.floats(-1.0, 1.0),
    st.integers(-5, 4),
)
def test_bounds_hold_in_other_formats(
    function: Function, table: TableFormat, fmt: FloatFormat, x: float, scale: int
):
    code, _ = from_float(fmt, x * 2.0**scale)
    value = to_float(fmt, code)
    if value == 0 or (function is Function.EXP2 and not 1 - fmt.bias <= value < fmt.bias):
        return
    error, want = errors(function, table, fmt, np.array([code]))
    smallest = 2.0 ** (1 - fmt.bias)
    if SHAPES[function].relative:
        if not smallest <= abs(want[0]) < 2.0**fmt.bias:
            return
        slack = 2.0 ** -(fmt.mantissa_bits + 1) * 1.1
    else:
        slack = 2.0 ** -(fmt.mantissa_bits + 1) * (abs(want[0]) + 0.1) + smallest
    assert error[0] <= bound(function, table, fmt) + slack


@pytest.mark.parametrize("function", [Function.RECIPROCAL, Function.RSQRT], ids=lambda f: f.name)
def test_binades_repeat(function: Function):
    """What holds for one binade (RSQRT: two) holds for all: results differ by powers of two."""
    made = make_table(function, DEFAULT)
    period = 2 if function is Function.RSQRT else 1
    base = np.concatenate([binade(FP24, k) for k in range(period)])
    want = to_float(FP24, evaluate(FP24, made, function, base)[0])
    for times in (-60, -31, -1, 1, 17, 60):
        k = times * period
        got = to_float(FP24, evaluate(FP24, made, function, base + (k << 15))[0])
        assert np.array_equal(got, want * 2.0 ** (-k // period))


# Exact points, order, symmetry -----------------------------------------------------------------


@pytest.mark.parametrize("table", EVERY_RESOLUTION, ids=str)
@pytest.mark.parametrize("fmt", [FP24, BF16, FP32], ids=str)
def test_exact_points(table: TableFormat, fmt: FloatFormat):
    powers = 2.0 ** np.arange(-100, 101, 4)
    assert np.array_equal(apply(Function.RECIPROCAL, table, fmt, powers), 1 / powers)
    assert np.array_equal(apply(Function.RECIPROCAL, table, fmt, -powers), -1 / powers)
    assert np.array_equal(apply(Function.RSQRT, table, fmt, powers), powers**-0.5)
    assert np.array_equal(apply(Function.LOG2, table, fmt, powers), np.log2(powers))
    whole = np.arange(-126.0, 128.0)
    assert np.array_equal(apply(Function.EXP2, table, fmt, whole), np.exp2(whole))
    assert apply(Function.TANH, table, fmt, [0, 4, 1e30, -4]).tolist() == [0, 1, 1, -1]
    for function, end in ((Function.SIGMOID, 8), (Function.PHI, 4)):
        assert apply(function, table, fmt, [0, end, -end, -1e30]).tolist() == [0.5, 1, 0, 0]


@pytest.mark.parametrize("function", TABLED, ids=lambda f: f.name)
def test_monotone(function: Function):
    """Over all codes that matter, both signs, at every resolution."""
    codes = critical_codes(function)
    if function in DECREASING or function is Function.LOG2:
        codes = np.concatenate([codes, [1 << 15, FP24.max_code], binade(FP24, 7)])
    codes = codes[np.argsort(smallfloat.order_key(FP24, codes))]
    for table in RESOLUTIONS:
        made = make_table(function, table)
        key = smallfloat.order_key(FP24, evaluate(FP24, made, function, codes)[0])
        steps = np.diff(key)
        assert np.all(steps <= 0 if function in DECREASING else steps >= 0), table


@pytest.mark.parametrize("function", TABLED, ids=lambda f: f.name)
def test_monotone_in_bf16(function: Function):
    codes = positive_codes(BF16)
    for table in (TableFormat(8, 8), DEFAULT, TableFormat(64, 15)):
        key = smallfloat.order_key(
            BF16, evaluate(BF16, make_table(function, table), function, codes)[0]
        )
        steps = np.diff(key)
        assert np.all(steps <= 0 if function in DECREASING else steps >= 0)


def test_symmetry():
    x = np.linspace(0, 9, 5000)
    assert np.array_equal(
        apply(Function.TANH, DEFAULT, FP24, -x), -apply(Function.TANH, DEFAULT, FP24, x)
    )
    for function in (Function.SIGMOID, Function.PHI):
        both = apply(function, DEFAULT, FP32, x) + apply(function, DEFAULT, FP32, -x)
        assert np.array_equal(both, np.ones_like(x))
    for function in (Function.RSQRT, Function.LOG2):
        assert np.array_equal(
            apply(function, DEFAULT, FP24, -x - 1), apply(function, DEFAULT, FP24, x + 1)
        )


# Ends of range ---------------------------------------------------------------------------------


def test_ends_of_range_and_flags():
    def at(function: Function, x: float) -> tuple[float, bool]:
        code, _ = from_float(FP24, x)
        result, flag = evaluate(FP24, make_table(function, DEFAULT), function, code)
        return float(to_float(FP24, result)), bool(flag)

    largest = float(to_float(FP24, FP24.max_code))
    assert at(Function.RECIPROCAL, 0.0) == (largest, True)
    assert at(Function.RSQRT, 0.0) == (largest, True)
    assert at(Function.LOG2, 0.0) == (-127.0, False)
    assert at(Function.EXP2, 0.0) == (1.0, False)
    assert at(Function.EXP2, 128.0) == (largest, True)
    assert at(Function.EXP2, largest) == (largest, True)
    assert at(Function.EXP2, 127.0) == (2.0**127, False)
    assert at(Function.EXP2, -126.0) == (2.0**-126, False)
    assert at(Function.EXP2, -126.5) == (0.0, False)
    assert at(Function.EXP2, -largest) == (0.0, False)
    assert at(Function.RECIPROCAL, largest) == (0.0, False)
    assert at(Function.RECIPROCAL, 2.0**126) == (2.0**-126, False)
    assert at(Function.RSQRT, 2.0**-126) == (2.0**63, False)


def test_any_zero_code_is_zero():
    """An exponent field of 0 is zero whatever mantissa and sign stand beside it."""
    zeros = np.array([0, 1, 0x7FFF, FP24.sign_bit, FP24.sign_bit | 5])
    for function in TABLED:
        got, flags = evaluate(FP24, make_table(function, DEFAULT), function, zeros)
        assert len(set((got & (FP24.sign_bit - 1)).tolist())) == 1
        assert len(set(flags.tolist())) == 1


def test_none_and_relu():
    codes, _ = from_float(FP24, [1.5, 0.0, -1.5, -1e-30])
    same, flags = evaluate(FP24, None, Function.NONE, codes)
    assert np.array_equal(same, codes)
    assert not flags.any()
    positive, flags = evaluate(FP24, None, Function.RELU, codes)
    assert to_float(FP24, positive).tolist() == [1.5, 0.0, 0.0, 0.0]
    assert not flags.any()
    assert evaluate(FP24, None, Function.RELU, [5, FP24.sign_bit])[0].tolist() == [0, 0]


# Documentation ---------------------------------------------------------------------------------


def test_measured_errors_are_those_of_the_docs():
    row = re.compile(r"^\| `[A-Z0-9]+` \| (?:relative|absolute) \|.*$", re.MULTILINE)
    written = row.findall(DOCS.read_text(encoding="utf-8"))
    measured = table_errors.markdown_rows()
    assert written == measured, "docs/formats.md should have:\n" + "\n".join(measured)
