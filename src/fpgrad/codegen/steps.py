"""Symbolic instructions: what selection makes, scheduling orders, allocation places and emission writes out.

A step is an instruction whose addresses are still buffers. All steps of a function, in the order of the list, mean
what the function means; any order that keeps the dependencies between buffers means the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fpgrad.formats import Function
from fpgrad.isa.instructions import Alu, Source

#: Partial results of a reducing pass.
WAYS = 4

Place = Literal["vector", "tile", "inbox", "outbox"]


@dataclass(eq=False)
class Buffer:
    """A piece of a memory. ``size`` is in rows (tile memory: tiles); ``base`` is set by allocation.

    Args:
        persistent: keeps its contents from step to step, and between the functions of a program.
        align: ``base`` is a multiple of this (T where the buffer may be read transposed).
    """

    name: str
    place: Place
    size: int
    align: int = 1
    persistent: bool = False
    base: int | None = None


@dataclass(frozen=True)
class Access:
    """An affine walk over a buffer: ``offset + i2*s2 + i1*s1 + i0*s0``."""

    buffer: Buffer
    s2: int = 0
    s1: int = 0
    s0: int = 0
    offset: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class Region:
    """Rows (or tiles) ``low`` to ``high`` of a buffer, both included."""

    buffer: Buffer
    low: int
    high: int

    def meets(self, other: Region) -> bool:
        """Whether the two have a row in common."""
        return self.buffer is other.buffer and self.low <= other.high and other.low <= self.high

    def covers(self, other: Region) -> bool:
        """Whether all of ``other`` lies in this."""
        return self.buffer is other.buffer and self.low <= other.low and other.high <= self.high


def region(access: Access, loops: tuple[int, int, int], side: int) -> Region:
    """What a walk over a buffer can touch; reading columns touches whole tiles."""
    low = high = access.offset
    for count, stride in zip(loops, (access.s2, access.s1, access.s0), strict=True):
        low += min(0, (count - 1) * stride)
        high += max(0, (count - 1) * stride)
    if access.transposed and access.buffer.place != "tile":
        low, high = low - low % side, high - high % side + side - 1
    return Region(access.buffer, low, high)


@dataclass(frozen=True)
class Scalar:
    """An element of the scalar file, by the name of the step's scalar input."""

    name: str


Value = Access | Scalar | float | Source
"""An operand: memory rows, a per-step scalar, a constant, or one of the sources ACC, RANDOM, ZERO, ONE."""


@dataclass(frozen=True)
class Limit:
    """Results from ``limit`` on are padding on the last iteration of ``loop`` (1 or 2; 0: there is no padding)."""

    loop: int = 0
    limit: int = 0


@dataclass(eq=False)
class MatrixStep:
    """Sums of tile products; its rows are taken by exactly one vector step."""

    n1: int
    n0: int
    k: int
    rows: int
    streamed: Access
    stationary: Access
    stride_k: tuple[int, int]
    layer: str
    phase: str
    text: str
    useful_macs: int


@dataclass(eq=False)
class VectorStep:
    """A pass. ``matrix`` is the step whose rows it takes, if it takes any."""

    loops: tuple[int, int, int]
    a: Value
    b: Value = Source.ONE
    c: Value = Source.ZERO
    d: Value = Source.ONE
    alu: Alu = Alu.PASS
    function: Function = Function.NONE
    negate_product: bool = False
    negate_c: bool = False
    reduce: bool = False
    row_limit: Limit = Limit()
    lane_limit: Limit = Limit()
    target: Access | None = None
    tile: Access | None = None
    matrix: MatrixStep | None = None
    layer: str = ""
    phase: str = ""
    text: str = ""
    op: Literal["pass", "scalars", "seed"] = "pass"
    columns: bool = False  # each iteration of i1 is a tile of samples

    @property
    def rows(self) -> int:
        """Iterations of the loop nest: cycles in the vector unit."""
        return self.loops[0] * self.loops[1] * self.loops[2]

    @property
    def operands(self) -> tuple[Value, Value, Value, Value]:
        """a, b, c and d."""
        return self.a, self.b, self.c, self.d

    def rows_read(self, side: int) -> list[Region]:
        """Rows that the vector unit reads."""
        return [region(v, self.loops, side) for v in self.operands if isinstance(v, Access)]

    def tiles_read(self, side: int) -> list[Region]:
        """Tiles that the matrix unit reads for it."""
        m = self.matrix
        if m is None:
            return []
        pairs = zip((m.streamed, m.stationary), m.stride_k, strict=True)
        return [
            region(replace(a, s2=a.s1, s1=a.s0, s0=k), (m.n1, m.n0, m.k), side) for a, k in pairs
        ]

    def rows_written(self, side: int) -> list[Region]:
        """Rows written."""
        if self.target is None:
            return []
        n2, n1, n0 = self.loops
        return [region(self.target, (n2, n1, min(n0, WAYS) if self.reduce else n0), side)]

    def tiles_written(self, side: int) -> list[Region]:
        """Tiles written."""
        return [] if self.tile is None else [region(self.tile, self.loops, side)]

    def reads(self) -> set[Buffer]:
        """Buffers read, the matrix step's tiles included."""
        buffers = {v.buffer for v in self.operands if isinstance(v, Access)}
        if self.matrix is not None:
            buffers |= {self.matrix.streamed.buffer, self.matrix.stationary.buffer}
        return buffers

    def writes(self) -> set[Buffer]:
        """Buffers written."""
        return {t.buffer for t in (self.target, self.tile) if t is not None}


@dataclass(eq=False)
class LoadStep:
    """Rows of DRAM into an inbox buffer, before the step that reads them first.

    Args:
        base: name of the base register.
        groups, rows: samples (or 1), and rows of each.
        index: base register of the order of samples, or None for rows that advance with the step.
    """

    buffer: Buffer
    base: str
    groups: int
    rows: int
    index: str | None = None
    offset: int = 0
    step_stride: int = 0


@dataclass(eq=False)
class StoreStep:
    """An outbox buffer to DRAM, after the step that writes it last."""

    buffer: Buffer
    base: str
    rows: int
    offset: int = 0
    step_stride: int = 0


@dataclass
class StepList:
    """Everything one entry of a program does in a step."""

    name: str
    steps: list[VectorStep] = field(default_factory=list)
    loads: list[LoadStep] = field(default_factory=list)
    stores: list[StoreStep] = field(default_factory=list)
