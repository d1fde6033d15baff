"""Kernels whose tiles live in external memory: how they lie there, and the slices of them that products read.

Late layers have small maps and large kernels. A pass there computes some of the channels of a band of positions, of a
slice of the kernel that was loaded for it; the rest of the kernel stays outside. In external memory the tiles of input
tile i, tap and output tile j lie in the order (i, tap, j), in blocks of ``group`` tiles across with their exponents. So
both kinds of slices are one load: all inputs of some outputs, blocks at equal distances, for the layer; all outputs of
some inputs, one run of blocks, for the gradient of what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fpgrad.codegen.steps import Access, Buffer, Slice, block_rows
from fpgrad.codegen.storage import Grid, Quantised
from fpgrad.graph import Function, Node
from fpgrad.graph.window import taps


@dataclass(frozen=True)
class Layout:
    """Where the tiles of a kernel are in external memory.

    Args:
        taps, rows, columns: taps, input tiles and output tiles.
        group: output tiles of a block, a divisor of ``columns``.
        most: tiles of a slice at most, about.
        side: T.
    """

    taps: int
    rows: int
    columns: int
    group: int
    most: int
    side: int

    @classmethod
    def of(cls, grid: Grid, taps: int, most: int) -> Layout:
        """The layout for slices of about ``most`` tiles."""
        rows = grid.m // taps
        group = divisor(grid.j, most // (taps * rows))
        return cls(taps, rows, grid.j, group, most, grid.side)

    @property
    def block(self) -> int:
        """Rows of external memory of a block."""
        return block_rows("tile", self.group, self.side)

    @property
    def across(self) -> int:
        """Blocks from one input tile and tap to the next."""
        return self.columns // self.group

    @property
    def size(self) -> int:
        """Rows of external memory of the kernel."""
        return self.rows * self.taps * self.across * self.block

    def row(self, m: int) -> int:
        """The first row of what is tile row ``m`` = tap*rows + i of the kernel."""
        tap, i = divmod(m, self.rows)
        return (i * self.taps + tap) * self.across * self.block


@dataclass(frozen=True)
class Part:
    """Output tiles ``first`` to ``first + count - 1`` of a conv, and where the tiles of the kernel for them are.

    Args:
        walk: the first tile.
        tap, i, j: tiles from one tap, input tile and output tile of the conv to the next.
    """

    first: int
    count: int
    walk: Access
    taps_across: int
    tap: int
    i: int
    j: int


def whole(q: Quantised, node: Node, count: int) -> Part:
    """The kernel operand of a conv, on the chip: tile ``((tap*rows) + row)*columns + column``, by inputs and outputs."""
    h, w = node.attrs["windows"]
    flipped = bool(node.attrs["transposed_weights"])
    i, j = (1, q.grid.j) if flipped else (q.grid.j, 1)
    walk = Access(q.buffer, transposed=flipped != q.transposed)
    return Part(0, count, walk, w.taps, q.grid.tile_count // (h.taps * w.taps), i, j)


def slices(q: Quantised, layout: Layout, node: Node) -> Iterator[Part]:
    """The kernel operand of a conv, in slices that are loaded."""
    _, w = node.attrs["windows"]
    n, rows, columns = layout.taps, layout.rows, layout.columns
    flipped = bool(node.attrs["transposed_weights"])
    group = divisor(rows, layout.most // (n * columns)) if flipped else layout.group
    for first in range(0, rows if flipped else columns, group):
        if flipped:
            row = first * n * layout.across * layout.block
            lies = Slice(q.buffer, row, group * n * layout.across, layout.group, layout.block)
            tap, i, j = columns, 1, n * columns
        else:
            row = first // group * layout.block
            lies = Slice(q.buffer, row, rows * n, group, layout.across * layout.block)
            tap, i, j = group, n * group, 1
        name = f"{q.buffer.name}, {'inputs' if flipped else 'outputs'} from tile {first}"
        buffer = Buffer(name, "tile", lies.count * lies.size, outside=True, slice=lies)
        walk = Access(buffer, transposed=flipped != q.transposed, offset=-first * j)
        yield Part(first, group, walk, w.taps, tap, i, j)


def divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` up to ``most``, at least 1."""
    return max((d for d in range(1, min(n, most) + 1) if n % d == 0), default=1)


def convolution_kernels(function: Function) -> dict[str, int]:
    """States whose tiles only convolutions read, without groups, and their taps."""
    found: dict[str, int] = {}
    others: set[str] = set()
    for node in function.nodes():
        for k, q in enumerate(node.inputs):
            if q.op != "quantise" or q.inputs[0].op != "state":
                continue
            name = q.inputs[0].name
            single = 1 in (node.shape[1], node.inputs[0].shape[1])
            if node.op == "conv" and k == 1 and node.attrs["groups"] == 1 and not single:
                found[name] = taps(node.attrs["windows"])
            else:
                others.add(name)
    return {name: n for name, n in found.items() if name not in others}
