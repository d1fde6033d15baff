"""The instructions: what each of the four units can be told to do.

A program has one list of instructions for each unit. The units run their lists independently and in order; an
instruction starts when the tokens it waits for have arrived and, for the vector unit's fence, when all earlier
passes have been written. Addresses walk affine loop nests: ``base + i3*s3 + i2*s2 + i1*s1 + i0*s0`` with ``i0``
innermost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fpgrad.formats.table import Function
from fpgrad.isa.layout import bits, group

ROW_BITS = 20
TILE_BITS = 16
COUNT_BITS = 16
DRAM_BITS = 28
CODE_BITS = 32
TOKEN_BITS = 4


class Unit(IntEnum):
    """The units, in the order of their token fields."""

    LOAD = 0
    MATRIX = 1
    VECTOR = 2
    STORE = 3


class Space(IntEnum):
    """Row memories: rows of T small floats."""

    NONE = 0
    VECTOR = 1  # vector memory: read and written by the vector unit
    INBOX = 2  # written by LOAD, read by the vector unit
    OUTBOX = 3  # written by the vector unit, read by STORE
    MASK = 4  # one bit an element: a write keeps whether the number is above 0, a read gives 1.0 or 0.0


class Source(IntEnum):
    """Where an operand of a vector pass comes from."""

    ZERO = 0
    ONE = 1
    P0 = 2  # memory stream 0
    P1 = 3  # memory stream 1
    ACC = 4  # the next row that the matrix unit finished
    I0 = 5  # immediate 0 (or the scalar it names)
    I1 = 6
    RANDOM = 7  # uniform in [1, 2)


class Alu(IntEnum):
    """How the product ``p = ±(A*B)`` meets ``c = ±C``."""

    PASS = 0  # p
    ADD = 1  # p + c
    MAX = 2
    MIN = 3
    GT = 4  # 1.0 if p > c else 0.0
    GE = 5
    EQ = 6
    GATE = 7  # p if c > 0 else 0


class VectorOp(IntEnum):
    """Kinds of vector instruction."""

    PASS = 0
    SCALARS = 1  # the scalar file becomes the row at p0.base
    SEED = 2  # the random generators' states become the row at p0.base


@dataclass(frozen=True)
class Tokens:
    """A count for each unit: tokens to take from its channel to us, or to put into ours to it."""

    load: int = bits(TOKEN_BITS)
    matrix: int = bits(TOKEN_BITS)
    vector: int = bits(TOKEN_BITS)
    store: int = bits(TOKEN_BITS)


@dataclass(frozen=True)
class Loops:
    """Trip counts, at least 1; ``n0`` is innermost."""

    n3: int = bits(COUNT_BITS, default=1)
    n2: int = bits(COUNT_BITS, default=1)
    n1: int = bits(COUNT_BITS, default=1)
    n0: int = bits(COUNT_BITS, default=1)

    @property
    def count(self) -> int:
        """Iterations of the whole nest."""
        return self.n3 * self.n2 * self.n1 * self.n0


@dataclass(frozen=True)
class RowStream:
    """Rows of a memory. Transposed, row address ``q`` means column ``q % T`` of the T rows from ``q - q % T``."""

    space: Space = bits(3, enum=Space)
    transposed: int = bits(1)
    base: int = bits(ROW_BITS)
    s3: int = bits(ROW_BITS, signed=True)
    s2: int = bits(ROW_BITS, signed=True)
    s1: int = bits(ROW_BITS, signed=True)
    s0: int = bits(ROW_BITS, signed=True)


@dataclass(frozen=True)
class Target:
    """Rows to write: ``space`` NONE, VECTOR, OUTBOX or MASK."""

    space: Space = bits(3, enum=Space)
    base: int = bits(ROW_BITS)
    s3: int = bits(ROW_BITS, signed=True)
    s2: int = bits(ROW_BITS, signed=True)
    s1: int = bits(ROW_BITS, signed=True)
    s0: int = bits(ROW_BITS, signed=True)


@dataclass(frozen=True)
class TileTarget:
    """Tiles to quantise to: one for each (i3, i2, i1), its rows are i0; rows from n0 up to T are zero.

    With ``flow``, the rows of both inner loops flow into consecutive tiles for each (i3, i2): row ``i1*n0 + i0``
    is row ``% T`` of tile ``// T`` (which ``s1`` is multiplied with); the rest of the last tile is zero.
    """

    enable: int = bits(1)
    flow: int = bits(1)
    base: int = bits(TILE_BITS)
    s3: int = bits(TILE_BITS, signed=True)
    s2: int = bits(TILE_BITS, signed=True)
    s1: int = bits(TILE_BITS, signed=True)


@dataclass(frozen=True)
class Immediate:
    """A code of the machine's float format, or (``scalar`` = 1) the number of an element of the scalar file."""

    scalar: int = bits(1)
    value: int = bits(CODE_BITS)


@dataclass(frozen=True)
class Mask:
    """On the last iteration of loop ``loop`` (1, 2 or 3; 0 = never), results from ``limit`` on are replaced by 0."""

    loop: int = bits(2)
    limit: int = bits(6)


@dataclass(frozen=True)
class Vector:
    """A pass: ``y = function(alu(±(a*b), ±c)) * d`` on rows, for each point of the loop nest.

    With ``reduce``, ``c`` is the alu's own result ``ways`` iterations of i0 ago (for i0 < ways the result is the
    product itself), and only the last ``ways`` iterations of i0 are written, iteration i0 as i0 = ``i0 % ways``;
    n0 must be at least ``ways``.
    """

    op: VectorOp = bits(2, enum=VectorOp)
    loops: Loops = group(Loops)
    p0: RowStream = group(RowStream)
    p1: RowStream = group(RowStream)
    a: Source = bits(3, enum=Source)
    b: Source = bits(3, enum=Source, default=Source.ONE)
    c: Source = bits(3, enum=Source)
    d: Source = bits(3, enum=Source, default=Source.ONE)
    negate_product: int = bits(1)
    negate_c: int = bits(1)
    alu: Alu = bits(3, enum=Alu)
    function: Function = bits(4, enum=Function)
    reduce: int = bits(1)
    i0: Immediate = group(Immediate)
    i1: Immediate = group(Immediate)
    row_mask: Mask = group(Mask)
    lane_mask: Mask = group(Mask)
    target: Target = group(Target)
    tile: TileTarget = group(TileTarget)
    fence: int = bits(1)
    wait: Tokens = group(Tokens)
    signal: Tokens = group(Tokens)


@dataclass(frozen=True)
class TileStream:
    """Tiles of tile memory: ``base`` and a stride for each loop; transposed tiles are read by columns."""

    transposed: int = bits(1)
    base: int = bits(TILE_BITS)
    s2: int = bits(TILE_BITS, signed=True)
    s1: int = bits(TILE_BITS, signed=True)
    s0: int = bits(TILE_BITS, signed=True)
    t2: int = bits(TILE_BITS, signed=True)
    t1: int = bits(TILE_BITS, signed=True)
    t0: int = bits(TILE_BITS, signed=True)


@dataclass(frozen=True)
class Matrix:
    """For each (i2, i1, i0): the sum over all (k2, k1, k0) of ``streamed · stationary``, ``rows`` rows of it, to the
    accumulators. Loops ``n`` count output tiles and have strides ``s``, loops ``k`` count products and have strides
    ``t``; the last of each is innermost. ``k2*k1*k0`` is at most 65535.
    """

    n2: int = bits(COUNT_BITS, default=1)
    n1: int = bits(COUNT_BITS, default=1)
    n0: int = bits(COUNT_BITS, default=1)
    k2: int = bits(COUNT_BITS, default=1)
    k1: int = bits(COUNT_BITS, default=1)
    k0: int = bits(COUNT_BITS, default=1)
    rows: int = bits(6)
    streamed: TileStream = group(TileStream)
    stationary: TileStream = group(TileStream)
    wait: Tokens = group(Tokens)
    signal: Tokens = group(Tokens)

    @property
    def outputs(self) -> int:
        """Output tiles."""
        return self.n2 * self.n1 * self.n0

    @property
    def terms(self) -> int:
        """Products in the sum of each output tile."""
        return self.k2 * self.k1 * self.k0

    @property
    def products(self) -> int:
        """Tile products of the whole instruction."""
        return self.outputs * self.terms


@dataclass(frozen=True)
class DramAddress:
    """A DRAM row address: ``bases[register] + offset + step*step_stride + core*core_stride``."""

    register: int = bits(4)
    offset: int = bits(DRAM_BITS)
    step_stride: int = bits(DRAM_BITS)
    core_stride: int = bits(DRAM_BITS)


class Transfer(IntEnum):
    """What LOAD and STORE move; a DRAM row is T 32-bit words.

    ROWS: rows of small floats, one a DRAM row, between DRAM and inbox or outbox.
    BYTES: (LOAD) unsigned bytes: each DRAM row becomes four inbox rows of T numbers, 0 to 255, lowest byte first.
    TILES: between DRAM and tile memory. A group is a block: the exponents of its tiles, a byte each, lowest byte
        first, from the start of a DRAM row on; then each tile as T*T bytes (two's complement), row by row.
    MASKS: between DRAM and mask memory: a DRAM row is 32 mask rows, lowest bit first.
    SUM: not with DRAM but with the other cores. STORE sends rows of the outbox to the exchange. When all cores have
        sent their ``n``-th row, counted from the start of the run, the sum of the ``n``-th rows is there for all
        cores' LOADs: ``((x0 + x1) + x2) + ...`` in the order of the cores, each addition rounded and clamped as in
        a pass. LOAD takes the next ``count*rows`` sums, all of which go to the inbox. DRAM addresses and strides in
        DRAM mean nothing. With one core the sum is the row itself.
    """

    ROWS = 0
    BYTES = 1
    TILES = 2
    MASKS = 3
    SUM = 4


@dataclass(frozen=True)
class Load:
    """Copy ``count`` groups of ``rows`` rows from DRAM to a memory on chip, ``kind`` says which.

    Group ``i`` starts at DRAM row ``source + number*stride``: ``number`` is ``i``, or with ``gather`` the 32-bit word
    ``i`` from ``index`` on (T words in a row). What comes from row ``r`` of group ``i`` goes to
    ``target + i*group_stride + r*row_stride``; of BYTES, quarter ``q`` of row ``r`` counts as row ``4*r + q``; of
    MASKS, mask row ``b`` of row ``r`` goes ``b`` further; of TILES, ``rows`` counts tiles.
    """

    kind: Transfer = bits(3, enum=Transfer)
    count: int = bits(COUNT_BITS, default=1)
    rows: int = bits(COUNT_BITS, default=1)
    source: DramAddress = group(DramAddress)
    stride: int = bits(ROW_BITS)
    gather: int = bits(1)
    index: DramAddress = group(DramAddress)
    target: int = bits(ROW_BITS)
    group_stride: int = bits(ROW_BITS, signed=True)
    row_stride: int = bits(ROW_BITS, signed=True, default=1)
    wait: Tokens = group(Tokens)
    signal: Tokens = group(Tokens)


@dataclass(frozen=True)
class Store:
    """Copy ``count`` groups of ``rows`` rows (TILES: tiles; MASKS: DRAM rows) from a memory on chip to DRAM.

    Group ``i`` goes to DRAM row ``target + i*stride`` on. Places on chip are those of LOAD, with ``source`` for the
    base.
    """

    kind: Transfer = bits(3, enum=Transfer)
    count: int = bits(COUNT_BITS, default=1)
    rows: int = bits(COUNT_BITS, default=1)
    source: int = bits(ROW_BITS)
    group_stride: int = bits(ROW_BITS, signed=True)
    row_stride: int = bits(ROW_BITS, signed=True, default=1)
    target: DramAddress = group(DramAddress)
    stride: int = bits(ROW_BITS)
    wait: Tokens = group(Tokens)
    signal: Tokens = group(Tokens)


Instruction = Vector | Matrix | Load | Store

CLASS_OF: dict[Unit, type] = {
    Unit.LOAD: Load,
    Unit.MATRIX: Matrix,
    Unit.VECTOR: Vector,
    Unit.STORE: Store,
}
