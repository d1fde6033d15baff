"""The matrix unit: sums of tile products. This file is the specification of the matrix instruction."""

from __future__ import annotations

import numpy as np

from fpgrad.errors import ExecutionError
from fpgrad.formats import blockfloat
from fpgrad.formats.smallfloat import Codes
from fpgrad.isa.instructions import Matrix, TileStream
from fpgrad.reference.machine import Machine, check_range


def read_tiles(
    machine: Machine, stream: TileStream, i1: int, i0: int, k: int
) -> tuple[Codes, Codes]:
    """The ``k`` tiles of one output tile's sum: mantissas (k, T, T) and exponents (k,)."""
    address = stream.base + i1 * stream.s1 + i0 * stream.s0 + np.arange(k) * stream.sk
    check_range("tile", address, machine.config.memory.tiles)
    mantissas = machine.mantissas[address]
    if stream.transposed:
        mantissas = mantissas.transpose(0, 2, 1)
    return mantissas, machine.exponents[address]


def execute(machine: Machine, m: Matrix) -> None:
    """For each (i1, i0): sum the products of ``k`` tile pairs and push ``rows`` rows to the vector unit.

    A product's exponent is the sum of its tiles' exponent fields, or 0 (and the product is skipped) when either
    field is 0, which means a tile of zeros.
    """
    config = machine.config
    tile, acc, fmt = config.matrix.tile, config.matrix.accumulator, config.vector.number
    if not 1 <= m.rows <= config.side:
        raise ExecutionError(f"a matrix instruction streams 1 to {config.side} rows, not {m.rows}")
    for i1 in range(m.n1):
        for i0 in range(m.n0):
            left, left_exponent = read_tiles(machine, m.streamed, i1, i0, m.k)
            right, right_exponent = read_tiles(machine, m.stationary, i1, i0, m.k)
            zero = (left_exponent == 0) | (right_exponent == 0)
            exponent = np.where(zero, 0, left_exponent + right_exponent)
            products = left[:, : m.rows] @ right
            lanes, top, clamped = blockfloat.accumulate(acc, products, exponent)
            codes, over = blockfloat.drain(tile, fmt, acc, lanes, top)
            flags = clamped | over
            machine.accumulated.extend((codes[r], flags[r]) for r in range(m.rows))
