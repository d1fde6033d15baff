"""Tiles and block accumulators against rational arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats import oracle

from fpgrad.errors import FormatError
from fpgrad.formats import (
    BF16,
    FP24,
    AccumulatorFormat,
    FloatFormat,
    TileFormat,
    accumulate,
    dequantise,
    drain,
    from_float,
    quantise,
    random24,
    seed_lanes,
    smallfloat,
    step,
    to_float,
)

FP32 = FloatFormat(8, 23)
SIDES = [4, 8, 16, 32]
DEFAULT = TileFormat()


def spread_codes(
    fmt: FloatFormat, rng: np.random.Generator, shape: tuple[int, ...], octaves: int
) -> np.ndarray:
    """Numbers over some octaves, one in ten zero, one in four with few mantissa bits (ties)."""
    top = fmt.bias
    field = np.maximum(top - rng.integers(0, octaves, shape), 0)
    mantissa = rng.integers(0, 1 << fmt.mantissa_bits, shape)
    coarse = mantissa & ~((1 << max(fmt.mantissa_bits - 3, 0)) - 1)
    mantissa = np.where(rng.random(shape) < 0.25, coarse, mantissa)
    codes = (rng.integers(0, 2, shape) * fmt.sign_bit) | (field << fmt.mantissa_bits) | mantissa
    return np.where(rng.random(shape) < 0.1, 0, codes)


def noise_like(codes: np.ndarray, seed: int) -> np.ndarray:
    return random24(step(seed_lanes(seed, codes.size))).reshape(codes.shape)


# Formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 8), "side must be 4, 8, 16 or 32, not 5"),
        ((64, 8), "side must be 4, 8, 16 or 32, not 64"),
        ((16, 1), "mantissa_bits must be 2 to 16, not 1"),
        ((16, 17), "mantissa_bits must be 2 to 16, not 17"),
    ],
)
def test_tile_format_out_of_range(arguments: tuple[int, int], message: str):
    with pytest.raises(FormatError, match=f"^{message}$"):
        TileFormat(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((19, 0), "bits must be 20 to 48, not 19"),
        ((49, 0), "bits must be 20 to 48, not 49"),
        ((32, 17), "guard_bits must be 0 to 16, not 17"),
        ((32, -1), "guard_bits must be 0 to 16, not -1"),
    ],
)
def test_accumulator_format_out_of_range(arguments: tuple[int, int], message: str):
    with pytest.raises(FormatError, match=f"^{message}$"):
        AccumulatorFormat(*arguments)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bits", range(2, 17))
def test_product_bits_hold_the_largest_product(side: int, bits: int):
    fmt = TileFormat(side, bits)
    assert fmt.limit == 2 ** (bits - 1) - 1
    largest = side * fmt.limit**2
    assert 2 ** (fmt.product_bits - 2) <= largest < 2 ** (fmt.product_bits - 1)


def test_codes_of_another_shape():
    with pytest.raises(FormatError, match=r"^codes must end in \(16, 16\), not \(16, 8\)$"):
        quantise(DEFAULT, FP24, np.zeros((16, 8), dtype=np.int64))


def test_noise_of_another_shape_or_width():
    codes = np.zeros((4, 4), dtype=np.int64)
    tile = TileFormat(4, 8)
    with pytest.raises(
        FormatError, match=r"^random must be shaped like codes, \(4, 4\), not \(4,\)$"
    ):
        quantise(tile, FP24, codes, np.zeros(4, dtype=np.int64))
    with pytest.raises(
        FormatError, match=r"^random must hold integers of 24 bits, not 16777216 to 16777216$"
    ):
        quantise(tile, FP24, codes, np.full((4, 4), 1 << 24))


# Rounding to nearest -----------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("bits", range(2, 17))
def test_nearest_even_against_rationals(side: int, bits: int):
    """Every width and side, on formats narrower and wider than the mantissas."""
    rng = np.random.default_rng(100 * side + bits)
    tile = TileFormat(side, bits)
    for fmt in (FP24, BF16, FP32, FloatFormat(5, 2)):
        codes = spread_codes(fmt, rng, (side, side), octaves=bits + 3)
        mantissas, exponent = quantise(tile, fmt, codes)
        values = [oracle.value(fmt, int(c)) for c in codes.flat]
        want, log2 = oracle.tile(side, bits, values)
        assert mantissas.ravel().tolist() == want
        assert exponent == (0 if log2 is None else log2 + fmt.bias)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 16),
    st.builds(FloatFormat, st.integers(2, 8), st.integers(1, 23)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
)
def test_nearest_even_of_any_format(bits: int, fmt: FloatFormat, seed: int, octaves: int):
    codes = spread_codes(fmt, np.random.default_rng(seed), (4, 4), octaves)
    mantissas, exponent = quantise(TileFormat(4, bits), fmt, codes)
    want, log2 = oracle.tile(4, bits, [oracle.value(fmt, int(c)) for c in codes.flat])
    assert mantissas.ravel().tolist() == want
    assert exponent == (0 if log2 is None else log2 + fmt.bias)


@pytest.mark.parametrize("side", SIDES)
def test_transposed_tiles_are_the_same_bits(side: int):
    rng = np.random.default_rng(side)
    codes = spread_codes(FP24, rng, (5, side, side), octaves=12)
    tile = TileFormat(side, 8)
    for noise in (None, noise_like(codes, 1)):
        turned = None if noise is None else np.swapaxes(noise, -1, -2)
        m, e = quantise(tile, FP24, codes, noise)
        mt, et = quantise(tile, FP24, np.swapaxes(codes, -1, -2), turned)
        assert np.array_equal(np.swapaxes(m, -1, -2), mt)
        assert np.array_equal(e, et)


@pytest.mark.parametrize("bits", range(2, 17))
def test_clipping_is_symmetric(bits: int):
    """The largest number below a power of two would round up to 2**(bits-1): it is clipped."""
    tile = TileFormat(4, bits)
    codes = np.full((4, 4), FP24.max_code)
    codes[::2] |= FP24.sign_bit
    m, e = quantise(tile, FP24, codes)
    assert set(m.ravel().tolist()) == {tile.limit, -tile.limit}
    assert e == FP24.max_exponent
    minus, _ = quantise(tile, FP24, smallfloat.negate(FP24, codes))
    assert np.array_equal(minus, -m)


def test_tile_of_zeros():
    m, e = quantise(DEFAULT, FP24, np.zeros((2, 16, 16), dtype=np.int64))
    assert not m.any()
    assert e.tolist() == [0, 0]
    assert not dequantise(DEFAULT, FP24, m, e).any()


@pytest.mark.parametrize("bits", [2, 5, 8, 12, 16])
def test_error_is_at_most_half_a_unit(bits: int):
    """But for what is clipped, which is off by less than one unit; and tiles are fixed points."""
    tile = TileFormat(16, bits)
    rng = np.random.default_rng(bits)
    codes = from_float(FP32, rng.standard_normal((50, 16, 16)))[0]
    m, e = quantise(tile, FP32, codes)
    value = dequantise(tile, FP32, m, e)
    unit = 2.0 ** (e - FP32.bias - (bits - 2))[:, None, None]
    error = np.abs(value - to_float(FP32, codes)) / unit
    clipped = np.abs(m) == tile.limit
    assert error[~clipped].max() <= 0.5
    assert error.max() < 1.0
    again, same = quantise(tile, FP32, from_float(FP32, value)[0])
    assert np.array_equal(again, m)
    assert np.array_equal(same, e)


def test_dequantise_is_the_definition():
    m = np.array([[[3, -7], [127, -127]]])
    got = dequantise(DEFAULT, FP24, m, np.array([FP24.bias + 2]))
    assert got.tolist() == [[[3 / 16, -7 / 16], [127 / 16, -127 / 16]]]


# Stochastic rounding ---------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [FP24, BF16, FP32, FloatFormat(8, 1)], ids=str)
def test_stochastic_rounding_against_rationals(fmt: FloatFormat):
    """Up exactly when the part cut off, to 24 bits, and the noise carry; far-off exponents too."""
    rng = np.random.default_rng(9)
    tile = TileFormat(8, 8)
    for octaves in (8, 40, 120):
        codes = spread_codes(fmt, rng, (8, 8), octaves)
        codes[0, 0] = fmt.one
        noise = rng.integers(0, 1 << 24, (8, 8))
        noise[1], noise[2] = 0, (1 << 24) - 1
        m, e = quantise(tile, fmt, codes, noise)
        unit = oracle.power(int(e) - fmt.bias - 6)
        for got, c, n in zip(m.flat, codes.flat, noise.flat, strict=True):
            x = oracle.value(fmt, int(c)) / unit
            size = int(abs(x) * 2**24) + int(n) >> 24
            assert got == (-1 if x < 0 else 1) * min(size, tile.limit)


@pytest.mark.parametrize("bits", [4, 8])
def test_stochastic_rounding_is_unbiased(bits: int):
    """The mean over many draws is the number itself, within five standard errors."""
    tile = TileFormat(16, bits)
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.9, 0.9, (16, 16)) * 2.0 ** -rng.integers(0, bits + 4, (16, 16))
    x[0, 0] = 1.0
    codes, _ = from_float(FP24, x)
    x = to_float(FP24, codes)
    draws = 4000
    state = seed_lanes(42, 256)
    total = np.zeros((16, 16))
    for _ in range(draws):
        state = step(state)
        m, e = quantise(tile, FP24, codes, random24(state).reshape(16, 16))
        total += dequantise(tile, FP24, m, e)
    unit = 2.0 ** -(bits - 2)
    part = np.abs(x) / unit % 1.0
    deviation = np.sqrt(part * (1 - part) / draws) * unit
    assert np.all(np.abs(total / draws - x) <= 5 * deviation + 1e-12)
    assert abs((total / draws - x).mean()) < 5 * np.sqrt((deviation**2).mean() / 256)


def test_far_smaller_numbers_are_almost_never_rounded_up():
    """2**-20 of a unit goes up with probability 2**-20, not with that of a nearer number."""
    tile = TileFormat(4, 8)
    fmt = BF16
    codes = np.full((4, 4), fmt.one - (26 << fmt.mantissa_bits))
    codes[0, 0] = fmt.one
    for noise, want in (((1 << 24) - 16, 1), ((1 << 24) - 17, 0)):
        m, _ = quantise(tile, fmt, codes, np.full((4, 4), noise))
        assert m.ravel().tolist() == [64] + [want] * 15


def test_stochastic_rounding_repeats_from_a_seed():
    codes = spread_codes(FP24, np.random.default_rng(1), (3, 16, 16), 10)
    a, b, c = (quantise(DEFAULT, FP24, codes, noise_like(codes, s))[0] for s in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


# Accumulators ----------------------------------------------------------------------------------


def random_products(
    tile: TileFormat, rng: np.random.Generator, terms: int, octaves: int
) -> tuple[np.ndarray, np.ndarray]:
    a, b = (
        rng.integers(-tile.limit, tile.limit + 1, (terms, tile.side, tile.side)) for _ in range(2)
    )
    return a @ b, 254 - rng.integers(0, octaves, terms)


@pytest.mark.parametrize("acc", [AccumulatorFormat(), AccumulatorFormat(24, 1)], ids=str)
@pytest.mark.parametrize("tile", [DEFAULT, TileFormat(4, 6), TileFormat(32, 8)], ids=str)
def test_sums_of_safe_terms_never_saturate(acc: AccumulatorFormat, tile: TileFormat):
    """The worst sum of ``safe_terms`` products fits; one more may not."""
    terms = acc.safe_terms(tile)
    worst = tile.side * tile.limit**2
    assert terms >= 1
    for sign in (1, -1):
        products = np.full((terms + 1, 1, 1), sign * worst)
        fields = np.full(terms + 1, 254)
        lanes, _, over = accumulate(acc, products[:-1], fields[:-1])
        assert not over.any()
        assert lanes == sign * worst * terms << acc.guard_bits
        lanes, _, over = accumulate(acc, products, fields)
        assert over.all()
        assert lanes == sign * (2 ** (acc.bits - 1) - 1)


def test_default_accumulator_holds_a_layer_of_2080_inputs():
    """What 32 bits and 6 guard bits are good for without any assumption about the numbers."""
    assert AccumulatorFormat().safe_terms(DEFAULT) == 130


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 60), st.integers(0, 16))
def test_sums_against_rationals(seed: int, terms: int, octaves: int, guard: int):
    """Each product is floored to the common unit; nothing else is lost, and order is free."""
    rng = np.random.default_rng(seed)
    tile, acc = TileFormat(4, 8), AccumulatorFormat(48, guard)
    products, fields = random_products(tile, rng, terms, octaves)
    fields[rng.random(terms) < 0.2] = 0
    lanes, top, over = accumulate(acc, products, fields)
    assert top == fields.max()
    assert not over.any()
    for i, j in np.ndindex(4, 4):
        want = sum(
            (int(p) * 2**guard * oracle.power(int(e - top))).__floor__()
            for p, e in zip(products[:, i, j], fields, strict=True)
            if e
        )
        assert lanes[i, j] == want
    order = rng.permutation(terms)
    other, same, _ = accumulate(acc, products[order], fields[order])
    assert np.array_equal(lanes, other)
    assert top == same


def test_floor_of_negative_products():
    acc = AccumulatorFormat(32, 0)
    lanes, top, _ = accumulate(acc, [[[0, 0]], [[-1, 1]]], [254, 250])
    assert lanes.tolist() == [[-1, 0]]
    assert top == 254
    far, _, _ = accumulate(acc, [[[0, 0]], [[-5, 5]]], [254, 2])
    assert far.tolist() == [[-1, 0]]


def test_products_of_zero_tiles_do_not_count():
    """Exponent 0 says that a tile is zero: it neither sets the common exponent nor adds."""
    lanes, top, over = accumulate(AccumulatorFormat(), [[[0]], [[0]]], [0, 0])
    assert (lanes.tolist(), int(top), over.any()) == ([[0]], 0, False)


def test_saturated_lanes_stay_marked():
    """A sum that comes back into range is still reported."""
    acc = AccumulatorFormat(20, 0)
    big = 2**18
    lanes, _, over = accumulate(acc, [[[big]], [[big]], [[-big]]], [9, 9, 9])
    assert lanes == 2**19 - 1 - big
    assert over.all()


@settings(max_examples=200, deadline=None)
@given(
    st.builds(AccumulatorFormat, st.integers(20, 48), st.integers(0, 16)),
    st.builds(TileFormat, st.sampled_from(SIDES), st.integers(2, 16)),
    st.builds(FloatFormat, st.integers(2, 8), st.integers(1, 23)),
    st.data(),
)
def test_drain_against_rationals(
    acc: AccumulatorFormat, tile: TileFormat, fmt: FloatFormat, data: st.DataObject
):
    limit = 2 ** (acc.bits - 1) - 1
    lane = data.draw(st.integers(-limit, limit))
    field = data.draw(st.integers(2, 2 * fmt.max_exponent))
    code, flag = drain(tile, fmt, acc, np.array([lane]), np.array(field))
    unit = field - 2 * fmt.bias - 2 * (tile.mantissa_bits - 2) - acc.guard_bits
    want = oracle.nearest(fmt, lane * oracle.power(unit))
    assert (int(code[0]), bool(flag[0])) == want


@pytest.mark.parametrize("bits", [6, 8, 10])
def test_matrix_product_through_tiles(bits: int):
    """From floats to floats: the exact product of the quantised tiles, rounded at the end only."""
    rng = np.random.default_rng(bits)
    tile, acc = TileFormat(8, bits), AccumulatorFormat(48, 16)
    a, b = (from_float(FP24, rng.standard_normal((3, 8, 8)))[0] for _ in range(2))
    (ma, ea), (mb, eb) = quantise(tile, FP24, a), quantise(tile, FP24, b)
    lanes, top, over = accumulate(acc, ma @ mb, ea + eb)
    codes, flags = drain(tile, FP24, acc, lanes, top)
    exact = (dequantise(tile, FP24, ma, ea) @ dequantise(tile, FP24, mb, eb)).sum(axis=0)
    assert not over.any()
    assert not flags.any()
    assert np.array_equal(codes, from_float(FP24, exact)[0])
