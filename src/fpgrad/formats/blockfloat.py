"""Block floating point: a square tile of integer mantissas with one power-of-two exponent.

A ``T×T`` tile holds ``m[i,j] * 2**(E - bias - (mantissa_bits - 2))`` with
``|m| <= 2**(mantissa_bits-1) - 1``; ``E`` is the largest exponent field among the tile's numbers
(floor of log2 of the largest), 0 for a tile of zeros. Because the block is square and clipping is
symmetric, a tile and its transpose are the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import FormatError
from fpgrad.formats import smallfloat
from fpgrad.formats.smallfloat import Codes, Flags, FloatFormat


@dataclass(frozen=True)
class TileFormat:
    """A square tile of mantissas.

    Args:
        side: rows and columns, 4 to 32, a power of two.
        mantissa_bits: width of a mantissa with its sign, 2 to 16.
    """

    side: int = 16
    mantissa_bits: int = 8

    def __post_init__(self) -> None:
        if self.side not in (4, 8, 16, 32):
            raise FormatError(f"side must be 4, 8, 16 or 32, not {self.side!r}")
        if not 2 <= self.mantissa_bits <= 16:
            raise FormatError(f"mantissa_bits must be 2 to 16, not {self.mantissa_bits!r}")

    @property
    def limit(self) -> int:
        """Largest mantissa; the smallest is its negative."""
        return (1 << (self.mantissa_bits - 1)) - 1

    @property
    def product_bits(self) -> int:
        """Width of an exact dot product of ``side`` mantissa pairs, with sign."""
        return int(self.side * self.limit**2).bit_length() + 1


def _noise(random: ArrayLike, shape: tuple[int, ...]) -> Codes:
    noise = np.asarray(random, dtype=np.int64)
    if noise.shape != shape:
        raise FormatError(f"random must be shaped like codes, {shape}, not {noise.shape}")
    if noise.size and not 0 <= noise.min() <= noise.max() < 1 << 24:
        raise FormatError(
            f"random must hold integers of 24 bits, not {noise.min()} to {noise.max()}"
        )
    return noise


def quantise(
    tile: TileFormat,
    fmt: FloatFormat,
    codes: ArrayLike,
    random: ArrayLike | None = None,
) -> tuple[Codes, Codes]:
    """Quantise small floats to tiles.

    Args:
        codes: shape ``(..., side, side)``; each trailing matrix becomes one tile.
        random: None rounds to nearest even; else uniform integers of 24 bits, shaped like
            ``codes``, and the rounding is stochastic: the magnitude goes up with the probability
            of the part that is cut off, of which 24 bits count.

    Returns:
        mantissas shaped like ``codes`` and exponent fields of shape ``(...,)``.
    """
    c = np.asarray(codes, dtype=np.int64)
    if c.shape[-2:] != (tile.side, tile.side):
        raise FormatError(f"codes must end in {(tile.side, tile.side)}, not {c.shape}")
    noise = None if random is None else _noise(random, c.shape)
    sign, exponent, significand = smallfloat.split(fmt, c)
    top = exponent.max(axis=(-1, -2))
    shift = fmt.mantissa_bits - (tile.mantissa_bits - 2) + top[..., None, None] - exponent
    # Up to 16 mantissa bits may be wider than the float's significand: shift left then.
    left = np.maximum(-shift, 0)
    # A significand below 2**24 with 24 bits appended: from a shift of 48 on nothing is left.
    shift = np.clip(shift, 0, 50)
    if noise is None:
        magnitude = smallfloat.round_shift(significand, shift)
    else:
        magnitude = (((significand << 24) >> shift) + noise) >> 24
    magnitude = np.minimum(magnitude << left, tile.limit)
    return np.where(sign == 1, -magnitude, magnitude), top


def dequantise(
    tile: TileFormat, fmt: FloatFormat, mantissas: ArrayLike, exponents: ArrayLike
) -> NDArray[np.float64]:
    """The numbers of tiles, exactly, as float64."""
    power = np.asarray(exponents, dtype=np.int64) - fmt.bias - (tile.mantissa_bits - 2)
    return np.ldexp(
        np.asarray(mantissas, dtype=np.float64), power[..., None, None].astype(np.int32)
    )


@dataclass(frozen=True)
class AccumulatorFormat:
    """Block accumulator: an integer lane; its output tile's exponent is known before the sum.

    Args:
        bits: width of the lane with its sign, 20 to 48.
        guard_bits: bits kept below the unit of the product with the largest exponent.
    """

    bits: int = 32
    guard_bits: int = 6

    def __post_init__(self) -> None:
        if not 20 <= self.bits <= 48:
            raise FormatError(f"bits must be 20 to 48, not {self.bits!r}")
        if not 0 <= self.guard_bits <= 16:
            raise FormatError(f"guard_bits must be 0 to 16, not {self.guard_bits!r}")

    def safe_terms(self, tile: TileFormat) -> int:
        """How many tile products can be summed whatever their values, without saturation."""
        largest = tile.side * tile.limit**2 << self.guard_bits
        return ((1 << (self.bits - 1)) - 1) // largest


def accumulate(
    acc: AccumulatorFormat,
    products: ArrayLike,
    product_exponents: ArrayLike,
) -> tuple[Codes, Codes, Flags]:
    """Sum exact tile products along the first axis.

    Args:
        products: integers ``(K, rows, side)``: dot products of tile rows and columns.
        product_exponents: ``(K,)``: sum of the two tiles' exponent fields, or 0 when either tile
            is zero.

    Returns:
        lane values ``(rows, side)``, the common exponent (scalar array), and where a lane
        saturated. Each product is shifted to the largest exponent with a floor before it is added.
    """
    p = np.asarray(products, dtype=np.int64)
    e = np.asarray(product_exponents, dtype=np.int64)
    top = e.max()
    total = np.zeros(p.shape[1:], dtype=np.int64)
    saturated = np.zeros(p.shape[1:], dtype=np.bool_)
    limit = (1 << (acc.bits - 1)) - 1
    for k in range(len(p)):
        if e[k] == 0:
            continue
        total = total + ((p[k] << acc.guard_bits) >> min(int(top - e[k]), 62))
        over = np.abs(total) > limit
        saturated |= over
        total = np.clip(total, -limit, limit)
    return total, top, saturated


def drain(
    tile: TileFormat,
    fmt: FloatFormat,
    acc: AccumulatorFormat,
    lanes: ArrayLike,
    exponent: ArrayLike,
) -> tuple[Codes, Flags]:
    """Convert accumulator lanes to small floats, rounded to nearest even; and where they saturated.

    The value of a lane is ``lane * 2**(exponent - 2*bias - 2*(mantissa_bits-2) - guard_bits)``.
    """
    v = np.asarray(lanes, dtype=np.int64)
    power = (
        np.asarray(exponent, dtype=np.int64)
        - 2 * fmt.bias
        - 2 * (tile.mantissa_bits - 2)
        - acc.guard_bits
    )
    field = power + fmt.bias + fmt.mantissa_bits
    return smallfloat.compose(
        fmt, (v < 0).astype(np.int64), np.abs(v), np.broadcast_to(field, v.shape)
    )
