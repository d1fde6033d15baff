"""Symbolic instructions: what selection makes, scheduling orders, allocation places and emission writes out.

A step is an instruction whose addresses are still buffers. All steps of a function, in the order of the list, mean
what the function means; any order that keeps the dependencies between buffers means the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from fpgrad.formats import Function
from fpgrad.isa.instructions import Alu, Source

if TYPE_CHECKING:
    from fpgrad.codegen.kernels import Layout

#: Partial results of a reducing pass.
WAYS = 4

#: Rows of mask memory in a row of external memory.
MASK_ROWS = 32

Place = Literal["vector", "tile", "inbox", "outbox", "mask"]

Changed = TypeVar("Changed")

Counts = tuple[int, ...]
"""Trip counts of a loop nest, innermost last; those that are left out in front are 1."""


def changed(x: Changed, **fields: Any) -> Changed:
    """A copy of a dataclass's object with other values of some fields.

    As ``dataclasses.replace``, but without making all fields anew, which took a sixth of the time of compiling.
    """
    copy = object.__new__(type(x))
    copy.__dict__.update(x.__dict__, **fields)
    return copy


@dataclass(eq=False)
class Buffer:
    """A piece of a memory. ``size`` is in rows (tile memory: tiles); ``base`` is set by allocation.

    Args:
        persistent: keeps its contents from step to step, and between the functions of a program.
        align: ``base`` is a multiple of this (T where the buffer may be read transposed).
        outside: it is in external memory, ``base`` in the image of what persists; the chip has copies of pieces.
        layout: how its tiles lie there, if it is a kernel.
        slice: what it is a slice of, that is outside.
        loads: what brings it from external memory, where the host has put it; pieces of them bring pieces of it.
    """

    name: str
    place: Place
    size: int
    align: int = 1
    persistent: bool = False
    base: int | None = None
    outside: bool = False
    layout: Layout | None = None
    slice: Slice | None = None
    loads: list[LoadStep] = field(default_factory=list)


@dataclass(frozen=True)
class Slice:
    """Where a slice of a kernel lies: ``count`` blocks of ``size`` tiles, ``block`` rows of external memory from one to
    the next, the first one ``row`` rows behind the kernel's own first."""

    kernel: Buffer
    row: int
    count: int
    size: int
    block: int


def block_rows(place: Place, size: int, side: int) -> int:
    """Rows of external memory for a block of rows or tiles: of tiles, their exponents, then the tiles."""
    if place == "tile":
        return -(-size // (4 * side)) + size * side // 4
    return size // MASK_ROWS if place == "mask" else size


@dataclass(frozen=True)
class Access:
    """An affine walk over a buffer: ``offset + i3*s3 + i2*s2 + i1*s1 + i0*s0``."""

    buffer: Buffer
    s2: int = 0
    s1: int = 0
    s0: int = 0
    offset: int = 0
    transposed: bool = False
    s3: int = 0

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """From the outermost loop to the innermost."""
        return self.s3, self.s2, self.s1, self.s0


class Region(NamedTuple):
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


def region(access: Access, loops: Counts, side: int) -> Region:
    """What a walk over a buffer can touch; reading columns touches whole tiles."""
    return reach(access, loops, access.strides[4 - len(loops) :], side)


def reach(access: Access, loops: Counts, strides: Counts, side: int) -> Region:
    """What a walk with these strides can touch."""
    low = high = access.offset
    for count, stride in zip(loops, strides, strict=True):
        if stride < 0:
            low += (count - 1) * stride
        else:
            high += (count - 1) * stride
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
    """Results from ``limit`` on are padding on the last iteration of ``loop`` (1 to 3; 0: there is no padding)."""

    loop: int = 0
    limit: int = 0


@dataclass(frozen=True)
class TileWalk:
    """The tiles of a product's operand: ``base`` walks with the output tiles (its s2, s1 and s0), ``terms`` are the
    strides of the sum's three loops."""

    base: Access
    terms: tuple[int, int, int]


@dataclass(eq=False)
class MatrixStep:
    """Sums of tile products; its rows are taken by exactly one vector step.

    Args:
        outputs: trip counts over output tiles, innermost last.
        terms: trip counts over the products of a sum, innermost last.
        rows: of each output tile.
    """

    outputs: tuple[int, int, int]
    terms: tuple[int, int, int]
    rows: int
    streamed: TileWalk
    stationary: TileWalk
    layer: str
    phase: str
    text: str
    useful_macs: int

    @property
    def length(self) -> int:
        """Products in a sum."""
        return math.prod(self.terms)

    @property
    def products(self) -> int:
        """Tile products."""
        return math.prod(self.outputs) * self.length


@dataclass(eq=False)
class VectorStep:
    """A pass. ``matrix`` is the step whose rows it takes, if it takes any."""

    loops: Counts
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
    flow: bool = False  # tiles take the rows of i1 and i0 as they come
    again: bool = False  # made a second time: not before those who read it have all else
    turn: int = 0  # of the micro-batches: those before come first
    first: bool = False  # before all others
    known: dict[str, list[Region]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.loops = (1,) * (4 - len(self.loops)) + tuple(self.loops)

    def changed(self, **fields: Any) -> Self:
        """See :func:`changed`; loops have to be four."""
        return changed(self, **fields, known={})

    @property
    def rows(self) -> int:
        """Iterations of the loop nest: cycles in the vector unit."""
        return math.prod(self.loops)

    @property
    def operands(self) -> tuple[Value, Value, Value, Value]:
        """a, b, c and d."""
        return self.a, self.b, self.c, self.d

    def rows_read(self, side: int) -> list[Region]:
        """Rows that the vector unit reads."""
        return self._regions("rows read", side, self._rows_read)

    def tiles_read(self, side: int) -> list[Region]:
        """Tiles that the matrix unit reads for it."""
        return self._regions("tiles read", side, self._tiles_read)

    def rows_written(self, side: int) -> list[Region]:
        """Rows written."""
        return self._regions("rows written", side, self._rows_written)

    def tiles_written(self, side: int) -> list[Region]:
        """Tiles written."""
        return self._regions("tiles written", side, self._tiles_written)

    def _regions(self, what: str, side: int, find: Callable[[int], list[Region]]) -> list[Region]:
        """Regions are asked for again and again; once they are, a step is not changed any more."""
        if what not in self.known:
            self.known[what] = find(side)
        return self.known[what]

    def _rows_read(self, side: int) -> list[Region]:
        return [region(v, self.loops, side) for v in self.operands if isinstance(v, Access)]

    def _tiles_read(self, side: int) -> list[Region]:
        m = self.matrix
        if m is None:
            return []
        return [
            reach(w.base, m.outputs + m.terms, w.base.strides[1:] + w.terms, side)
            for w in (m.streamed, m.stationary)
        ]

    def _rows_written(self, side: int) -> list[Region]:
        if self.target is None:
            return []
        inner = min(self.loops[3], WAYS) if self.reduce else self.loops[3]
        return [region(self.target, (*self.loops[:3], inner), side)]

    def _tiles_written(self, side: int) -> list[Region]:
        if self.tile is None:
            return []
        n3, n2, n1, n0 = self.loops
        inner = -(-n1 * n0 // side) if self.flow else n1
        return [region(self.tile, (n3, n2, inner, 1), side)]

    def reads(self) -> list[Buffer]:
        """Buffers read, the matrix step's tiles included; in an order that is the same in every run."""
        buffers = [v.buffer for v in self.operands if isinstance(v, Access)]
        if self.matrix is not None:
            buffers += [w.base.buffer for w in (self.matrix.streamed, self.matrix.stationary)]
        return list(dict.fromkeys(buffers))

    def rows_touched(self) -> list[Buffer]:
        """Buffers that the vector unit reads or writes rows of."""
        walks = (*self.operands, self.target)
        return [a.buffer for a in walks if isinstance(a, Access)]

    def writes(self) -> list[Buffer]:
        """Buffers written."""
        return [t.buffer for t in (self.target, self.tile) if t is not None]


@dataclass(eq=False)
class LoadStep:
    """Rows of DRAM into an inbox buffer, before the step that reads them first.

    Args:
        base: name of the base register.
        groups, rows: samples (or 1), and rows of each; stride: rows from one to the next (0: ``rows``).
        index: base register of the order of samples, or None for rows that advance with the step.
        first: where in the step's order of samples the groups begin.
        place: where in the buffer; group_stride (0: ``rows``) and row_stride: how groups and rows lie there.
        octets: the rows hold bytes.
        core_stride, index_core_stride: rows from one core's to the next core's.
    """

    buffer: Buffer
    base: str
    groups: int
    rows: int
    index: str | None = None
    offset: int = 0
    step_stride: int = 0
    index_stride: int = 0
    first: int = 0
    place: int = 0
    group_stride: int = 0
    row_stride: int = 1
    octets: bool = False
    core_stride: int = 0
    index_core_stride: int = 0
    stride: int = 0

    def piece(self, buffer: Buffer, low: int, side: int) -> LoadStep | None:
        """The load of those of its rows that go to rows of its buffer from ``low`` on that ``buffer`` has room for."""
        each = side * (4 if self.octets else 1)
        first = max(0, low - self.place) // each
        end = min(self.rows, (low + buffer.size - self.place) // each)
        if end <= first:
            return None
        place = self.place + first * each - low
        stride = self.stride or self.rows
        return replace(
            self,
            buffer=buffer,
            rows=end - first,
            offset=self.offset + first,
            place=place,
            stride=stride,
        )


@dataclass(eq=False)
class StoreStep:
    """An outbox buffer to DRAM, after the step that writes it last; ``core_stride`` rows from core to core."""

    buffer: Buffer
    base: str
    rows: int
    offset: int = 0
    step_stride: int = 0
    core_stride: int = 0


@dataclass(eq=False)
class Exchange:
    """Rows that are summed over the cores: ``out``, in the outbox, is sent after the step that writes it last; the sums
    are in ``into``, in the inbox, before the step that reads them first."""

    out: Buffer
    into: Buffer

    @property
    def rows(self) -> int:
        """How many rows each core sends."""
        return self.out.size


@dataclass(eq=False)
class Move:
    """Tiles, rows or masks to external memory and back.

    Args:
        buffer: on the chip; its place says what moves.
        kind: "store": after step ``at`` has written the buffer's last row or tile; its place is free from step
            ``until`` on (the first step after the last is the next round's). "load": once all steps before ``at`` are complete, and the stores ``after`` too; step
            ``until`` is the first to read it.
        row: first row in the area of external memory that ``area`` names.
        count, size: blocks, and rows or tiles in each; block: rows of external memory from one to the next.
        inside: the first row or tile of the buffer that moves.
        load: how it is loaded if it is an input of the step.
    """

    buffer: Buffer
    kind: Literal["store", "load"]
    row: int
    at: int
    until: int
    count: int
    size: int
    block: int
    inside: int = 0
    after: list[Move] = field(default_factory=list)
    area: str = "spill"
    load: LoadStep | None = None

    @property
    def rows(self) -> int:
        """Rows of external memory."""
        return self.count * self.block


@dataclass
class StepList:
    """Everything one entry of a program does in a step; ``turns``: of micro-batches, one after the other.

    Args:
        loads: inputs that come whole. fetches: those that come in pieces, which are among the moves.
    """

    name: str
    steps: list[VectorStep] = field(default_factory=list)
    loads: list[LoadStep] = field(default_factory=list)
    stores: list[StoreStep] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    fetches: list[LoadStep] = field(default_factory=list)
    turns: int = 1

    @property
    def spill_rows(self) -> int:
        """Rows of external memory for what the chip has no room for."""
        return max((m.row + m.rows for m in self.moves if m.area == "spill"), default=0)
