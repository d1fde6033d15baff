"""Small floats against rational arithmetic: tiny formats for all operands, the others for many."""

from collections.abc import Callable
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from tests.formats import oracle

from fpgrad.errors import FormatError
from fpgrad.formats import BF16, FP24, FloatFormat, from_float, smallfloat, to_float

FP32 = FloatFormat(8, 23)
TINY = [FloatFormat(2, 1), FloatFormat(3, 2), FloatFormat(2, 4), FloatFormat(4, 1)]

Operation = Callable[[FloatFormat, ArrayLike, ArrayLike], tuple[np.ndarray, np.ndarray]]
OPERATIONS: list[tuple[Operation, Callable[[Fraction, Fraction], Fraction]]] = [
    (smallfloat.add, lambda x, y: x + y),
    (smallfloat.multiply, lambda x, y: x * y),
]


def numbers(fmt: FloatFormat) -> list[int]:
    """Every code that is a number, zeros with any mantissa and sign included."""
    return [c for c in range(1 << fmt.width) if c % fmt.sign_bit <= fmt.max_code]


@st.composite
def formats(draw: st.DrawFn) -> FloatFormat:
    return FloatFormat(draw(st.integers(2, 8)), draw(st.integers(1, 23)))


@st.composite
def codes(draw: st.DrawFn, fmt: FloatFormat) -> int:
    """A number of ``fmt``; often one whose mantissa is nearly all zeros or all ones."""
    field = draw(st.integers(0, fmt.max_exponent))
    ones = (1 << fmt.mantissa_bits) - 1
    near = st.integers(-3, 3).map(lambda d: d & ones)
    mantissa = draw(st.one_of(st.integers(0, ones), near))
    return (draw(st.integers(0, 1)) * fmt.sign_bit) | (field << fmt.mantissa_bits) | mantissa


@st.composite
def neighbours(draw: st.DrawFn, fmt: FloatFormat) -> tuple[int, int]:
    """Two numbers whose exponents differ by little more than a significand: the hard sums."""
    a, b = draw(codes(fmt)), draw(codes(fmt))
    reach = fmt.mantissa_bits + 7
    field = ((a >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)) + draw(
        st.integers(-reach, reach)
    )
    field = min(max(field, 0), fmt.max_exponent)
    kept = b & (fmt.sign_bit | ((1 << fmt.mantissa_bits) - 1))
    return a, kept | (field << fmt.mantissa_bits)


# Formats ---------------------------------------------------------------------------------------


def test_names_and_sizes():
    assert (FP24.width, FP24.bias, FP24.max_exponent) == (24, 127, 254)
    assert (BF16.width, FP32.width) == (16, 32)
    assert to_float(FP24, FP24.one) == 1.0
    assert to_float(FP32, FP32.max_code) == float(np.finfo(np.float32).max)
    assert FloatFormat(3, 2).max_code == 0b110_11


@pytest.mark.parametrize("bits", [1, 9, 0, -1])
def test_exponent_bits_out_of_range(bits: int):
    with pytest.raises(FormatError, match=rf"^exponent_bits must be 2 to 8, not {bits}$"):
        FloatFormat(bits, 15)


@pytest.mark.parametrize("bits", [0, 24])
def test_mantissa_bits_out_of_range(bits: int):
    with pytest.raises(FormatError, match=rf"^mantissa_bits must be 1 to 23, not {bits}$"):
        FloatFormat(8, bits)


# Tiny formats, exhaustively --------------------------------------------------------------------


@pytest.mark.parametrize("fmt", TINY, ids=str)
def test_all_values(fmt: FloatFormat):
    every = numbers(fmt)
    want = [float(oracle.value(fmt, c)) for c in every]
    assert to_float(fmt, every).tolist() == want


@pytest.mark.parametrize("fmt", TINY, ids=str)
@pytest.mark.parametrize(("operation", "exact"), OPERATIONS, ids=["add", "multiply"])
def test_all_pairs(
    fmt: FloatFormat, operation: Operation, exact: Callable[[Fraction, Fraction], Fraction]
):
    every = numbers(fmt)
    a, b = np.meshgrid(every, every, indexing="ij")
    got, flags = operation(fmt, a, b)
    values = {c: oracle.value(fmt, c) for c in every}
    table = oracle.Enumeration(fmt)
    known: dict[Fraction, tuple[int, bool]] = {}
    for i, x in enumerate(every):
        for j, y in enumerate(every):
            v = exact(values[x], values[y])
            if v not in known:
                known[v] = table.nearest(v)
                assert known[v] == oracle.nearest(fmt, v), v  # two oracles that share nothing
            assert (got[i, j], flags[i, j]) == known[v], (x, y)


def test_tininess_is_judged_before_rounding():
    """Just below the smallest normal number, where IEEE 754 would round up to it: zero."""
    fmt = FloatFormat(3, 2)
    smallest = 1 << fmt.mantissa_bits
    below = np.nextafter(to_float(fmt, smallest), 0.0)
    assert from_float(fmt, [below, -below])[0].tolist() == [0, 0]
    assert from_float(fmt, to_float(fmt, smallest))[0] == smallest


def test_saturation_flags_start_at_half_a_unit():
    fmt = FloatFormat(3, 2)
    largest = float(to_float(fmt, fmt.max_code))
    assert largest == 14.0
    got, flags = from_float(fmt, [14.0, np.nextafter(15.0, 0), 15.0, -15.0, 1e300, -1e300])
    top, negative = fmt.max_code, fmt.max_code | fmt.sign_bit
    assert got.tolist() == [top, top, top, negative, top, negative]
    assert flags.tolist() == [False, False, True, True, True, True]


# Other formats, against rationals ----------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.data(), st.one_of(st.just(FP24), st.just(BF16), formats()))
def test_operations_are_exact_results_rounded_once(data: st.DataObject, fmt: FloatFormat):
    a, b = data.draw(st.one_of(st.tuples(codes(fmt), codes(fmt)), neighbours(fmt)))
    x, y = oracle.value(fmt, a), oracle.value(fmt, b)
    for operation, exact in OPERATIONS:
        code, flag = operation(fmt, a, b)
        assert (int(code), bool(flag)) == oracle.nearest(fmt, exact(x, y))
        swapped, _ = operation(fmt, b, a)
        assert swapped == code


@settings(max_examples=300, deadline=None)
@given(formats(), st.floats(allow_nan=False, allow_infinity=False))
def test_from_float(fmt: FloatFormat, x: float):
    code, flag = from_float(fmt, x)
    assert (int(code), bool(flag)) == oracle.nearest(fmt, Fraction(x))


@settings(max_examples=300, deadline=None)
@given(st.data(), formats())
def test_compose(data: st.DataObject, fmt: FloatFormat):
    """Any integer times any power of two, as the accumulators and tables hand it over."""
    sign = data.draw(st.integers(0, 1))
    magnitude = data.draw(st.integers(0, (1 << 62) - 1))
    exponent = data.draw(st.integers(-80, 300))
    code, flag = smallfloat.compose(
        fmt, *(np.array(v, dtype=np.int64) for v in (sign, magnitude, exponent))
    )
    v = (-1) ** sign * magnitude * oracle.power(exponent - fmt.bias - fmt.mantissa_bits)
    assert (int(code), bool(flag)) == oracle.nearest(fmt, v)


@settings(max_examples=200, deadline=None)
@given(st.data(), formats())
def test_round_trip_and_negation(data: st.DataObject, fmt: FloatFormat):
    c = data.draw(codes(fmt))
    value = oracle.value(fmt, c)
    assert Fraction(float(to_float(fmt, c))) == value
    back, flag = from_float(fmt, to_float(fmt, c))
    assert not flag
    assert back == (c if value else 0)
    minus = smallfloat.negate(fmt, c)
    assert oracle.value(fmt, int(minus)) == -value
    assert value or minus == 0


@settings(max_examples=200, deadline=None)
@given(st.data(), formats())
def test_order_key(data: st.DataObject, fmt: FloatFormat):
    a, b = data.draw(codes(fmt)), data.draw(codes(fmt))
    ka, kb = smallfloat.order_key(fmt, a), smallfloat.order_key(fmt, b)
    x, y = oracle.value(fmt, a), oracle.value(fmt, b)
    assert (ka < kb, ka == kb) == (x < y, x == y)


@pytest.mark.parametrize("fmt", TINY, ids=str)
def test_order_key_of_all_pairs(fmt: FloatFormat):
    every = numbers(fmt)
    key = smallfloat.order_key(fmt, every)
    value = to_float(fmt, every)
    assert np.array_equal(
        np.sign(key[:, None] - key[None, :]), np.sign(value[:, None] - value[None, :])
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, (1 << 62) - 1), min_size=1), st.integers(0, 62))
def test_integer_helpers(xs: list[int], shift: int):
    x = np.array(xs, dtype=np.int64)
    assert smallfloat.bit_length(x).tolist() == [v.bit_length() for v in xs]
    want = [round(Fraction(v, 1 << shift)) for v in xs]
    assert smallfloat.round_shift(x, shift).tolist() == want


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float):
    with pytest.raises(
        FormatError, match=r"^values must be finite: NaN and infinity have no code$"
    ):
        from_float(FP24, [0.0, bad])


# Against other implementations -----------------------------------------------------------------


def random_codes(fmt: FloatFormat, count: int, seed: int, low: int, high: int) -> np.ndarray:
    """Normal numbers with exponent fields in [low, high]."""
    rng = np.random.default_rng(seed)
    field = rng.integers(low, high + 1, count)
    mantissa = rng.integers(0, 1 << fmt.mantissa_bits, count)
    return (rng.integers(0, 2, count) * fmt.sign_bit) | (field << fmt.mantissa_bits) | mantissa


def test_bf16_is_the_upper_half_of_binary32():
    """All normal numbers of bf16 mean what ml_dtypes says."""
    every = np.arange(1 << 16)
    normal = (every & 0x7FFF >= 0x80) & (every & 0x7FFF <= BF16.max_code)
    theirs = every[normal].astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(to_float(BF16, every[normal]), theirs)


@pytest.mark.parametrize(
    ("fmt", "dtype", "bits"),
    [(BF16, ml_dtypes.bfloat16, np.uint16), (FP32, np.float32, np.uint32)],
    ids=["bfloat16", "float32"],
)
def test_against_other_arithmetic(fmt: FloatFormat, dtype: type, bits: type):
    """Sums, products and conversions agree wherever the result is normal and finite."""
    a = random_codes(fmt, 200_000, 1, 60, 190)
    near = random_codes(fmt, 100_000, 2, 100, 104)
    b = np.concatenate([random_codes(fmt, 100_000, 3, 60, 190), near])
    a[100_000:] = random_codes(fmt, 100_000, 4, 100, 104)
    x, y = (c.astype(bits).view(dtype) for c in (a, b))
    for operation, theirs in ((smallfloat.add, x + y), (smallfloat.multiply, x * y)):
        got, flags = operation(fmt, a, b)
        size = np.abs(theirs.astype(np.float64))
        normal = (size > 2.0**-126) & np.isfinite(size)
        assert normal.mean() > 0.9
        assert np.array_equal(got[normal], theirs.view(bits)[normal])
        zero = size == 0
        assert not got[zero].any()
        assert np.array_equal(flags, np.isinf(size))
        assert np.all((got[flags] & (fmt.sign_bit - 1)) == fmt.max_code)


@pytest.mark.parametrize(
    ("fmt", "dtype", "bits"),
    [(BF16, ml_dtypes.bfloat16, np.uint16), (FP32, np.float32, np.uint32)],
    ids=["bfloat16", "float32"],
)
def test_conversion_against_others(fmt: FloatFormat, dtype: type, bits: type):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(200_000) * 2.0 ** rng.integers(-100, 120, 200_000)).astype(np.float32)
    # Ties: bf16 halves are single bits of float32.
    x[:50_000] = ((x[:50_000].view(np.uint32) & 0xFFFF0000) | 0x8000).view(np.float32)
    got, flags = from_float(fmt, x)
    assert np.array_equal(got, x.astype(dtype).view(bits))
    assert not flags.any()


def test_fp24_is_float64_rounded():
    """Sums and products of fp24 are exact in float64 (or far apart), so one rounding remains."""
    a = random_codes(FP24, 100_000, 6, 100, 140)
    b = random_codes(FP24, 100_000, 7, 115, 125)
    x, y = to_float(FP24, a), to_float(FP24, b)
    assert np.array_equal(smallfloat.add(FP24, a, b)[0], from_float(FP24, x + y)[0])
    assert np.array_equal(smallfloat.multiply(FP24, a, b)[0], from_float(FP24, x * y)[0])


@pytest.mark.parametrize("distance", range(30))
def test_binary32_sums_at_every_distance(distance: int):
    """Random mantissas, exponents a fixed distance apart, both signs."""
    count = 4_000
    a = random_codes(FP32, count, 8 + distance, 127, 127)
    b = random_codes(FP32, count, 99 + distance, 127 - distance, 127 - distance)
    x, y = (c.astype(np.uint32).view(np.float32) for c in (a, b))
    assert np.array_equal(smallfloat.add(FP32, a, b)[0], (x + y).view(np.uint32))
