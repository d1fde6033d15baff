"""Where tensors live: how a rank-2 tensor becomes rows of T numbers, and tiles.

* ``tiles``: an (R, C) tensor is ceil(R/T) × ceil(C/T) tiles of T rows each, tile (m, j) first row ``(m*J + j)*T``.
  Each tile may hold its transpose.
* ``vector``: (1, C) and (R, 1) are packed, T elements a row.
* ``splat``: (1, 1) is one row whose lanes all hold the number.
* ``samples``: a batch input as it came: each sample's ceil(F/T) rows one after the other.

Padding up to whole tiles and rows is always zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from fpgrad.codegen.steps import Buffer

Kind = Literal["tiles", "vector", "splat", "samples"]


class Walk(Enum):
    """How a pass goes through a batch tensor's tiles."""

    NORMAL = "rows are samples"
    TRANSPOSED = "rows are features"


def ceil_div(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Grid:
    """A tensor's shape in tiles of side T.

    Args:
        blocks: the rows are so many equal blocks (a kernel's taps), each padded to whole tiles.
    """

    rows: int
    columns: int
    side: int
    blocks: int = 1

    @property
    def m(self) -> int:
        """Tiles down."""
        return self.blocks * ceil_div(self.rows // self.blocks, self.side)

    @property
    def rest(self) -> int:
        """Rows in the last tile down, 0 when it is full. Blocks need no care: their padding stays zero by itself."""
        return self.rows % self.side if self.blocks == 1 else 0

    @property
    def j(self) -> int:
        """Tiles across."""
        return ceil_div(self.columns, self.side)

    @property
    def kind(self) -> Kind:
        """How a tensor of this shape is stored."""
        if self.rows == 1 and self.columns == 1:
            return "splat"
        return "vector" if 1 in (self.rows, self.columns) else "tiles"

    @property
    def row_count(self) -> int:
        """Rows of memory for the numbers."""
        if self.kind == "tiles":
            return self.m * self.j * self.side
        return self.m * self.j

    @property
    def tile_count(self) -> int:
        """Tiles of tile memory for the quantised tensor."""
        return self.m * self.j


@dataclass(frozen=True)
class Stored:
    """A tensor in row memory."""

    buffer: Buffer
    grid: Grid
    kind: Kind
    transposed: bool = False
    column: int | None = (
        None  # a per-sample column of packed inputs: which lane of the samples' rows
    )


@dataclass(frozen=True)
class Quantised:
    """A tensor in tile memory. A column vector's tiles are stored transposed, one row of numbers each."""

    buffer: Buffer
    grid: Grid
    transposed: bool
