"""The matrix unit: sums of tile products. This file is the specification of the matrix instruction."""

from __future__ import annotations

import numpy as np

from fpgrad.errors import ExecutionError
from fpgrad.formats import blockfloat
from fpgrad.formats.smallfloat import Codes
from fpgrad.isa.instructions import Matrix, TileStream
from fpgrad.reference.machine import Machine, check_range


def read_tiles(
    machine: Machine, m: Matrix, stream: TileStream, i2: int, i1: int, i0: int
) -> tuple[Codes, Codes]:
    """The tiles of one output tile's sum, in order: mantissas (k, T, T) and exponents (k,)."""
    k2, k1, k0 = np.indices((m.k2, m.k1, m.k0)).reshape(3, -1)
    address = stream.base + i2 * stream.s2 + i1 * stream.s1 + i0 * stream.s0
    address = address + k2 * stream.t2 + k1 * stream.t1 + k0 * stream.t0
    check_range("tile", address, machine.config.memory.tiles)
    mantissas = machine.mantissas[address]
    if stream.transposed:
        mantissas = mantissas.transpose(0, 2, 1)
    return mantissas, machine.exponents[address]


def execute(machine: Machine, m: Matrix) -> None:
    """For each (i2, i1, i0): sum the products of all tile pairs and push ``rows`` rows to the vector unit.

    A product's exponent is the sum of its tiles' exponent fields, or 0 (and the product is skipped) when either
    field is 0, which means a tile of zeros.
    """
    config = machine.config
    tile, acc, fmt = config.matrix.tile, config.matrix.accumulator, config.vector.number
    if not 1 <= m.rows <= config.side:
        raise ExecutionError(f"a matrix instruction streams 1 to {config.side} rows, not {m.rows}")
    for i2, i1, i0 in np.ndindex(m.n2, m.n1, m.n0):
        left, left_exponent = read_tiles(machine, m, m.streamed, i2, i1, i0)
        right, right_exponent = read_tiles(machine, m, m.stationary, i2, i1, i0)
        zero = (left_exponent == 0) | (right_exponent == 0)
        exponent = np.where(zero, 0, left_exponent + right_exponent)
        products = left[:, : m.rows] @ right
        lanes, top, clamped = blockfloat.accumulate(acc, products, exponent)
        codes, over = blockfloat.drain(tile, fmt, acc, lanes, top)
        flags = clamped | over
        machine.accumulated.extend((codes[r], flags[r]) for r in range(m.rows))
