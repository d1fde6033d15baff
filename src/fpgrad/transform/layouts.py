"""Which of a tensor's rows and columns each core has, where cores share a network's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fpgrad.errors import GraphError
from fpgrad.graph import Node, Parts, Shape
from fpgrad.graph import builder as g
from fpgrad.graph.parts import ranges

Pattern = tuple[tuple[int, ...], ...]
"""Of each core the indices that it has along an axis, in its order; as many for each."""

FEWEST = 2
"""A core's part has as many rows or columns at least: a tensor of one is laid out otherwise."""


class CannotSplitError(GraphError):
    """A layout that leads to tensors which cores cannot compute of their parts."""


@dataclass(frozen=True)
class Layout:
    """How a tensor is divided. rows: within each of its `blocks` equal blocks. None: each core has all.

    With both, the tensor is zero but in blocks on its diagonal, and each core has one of them.
    """

    rows: Pattern | None = None
    columns: Pattern | None = None
    blocks: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether all cores have all of it."""
        return self.rows is None and self.columns is None

    def turned(self) -> Layout:
        """That of the transpose; blocks of rows have none."""
        if self.rows is not None and self.blocks > 1:
            raise CannotSplitError("a tensor of several blocks is transposed")
        return Layout(self.columns, self.rows)

    def along(self, shape: Shape) -> Layout:
        """That of an operand of this shape in an elementwise op whose result has this layout."""
        rows = self.rows if shape[0] > 1 else None
        columns = self.columns if shape[1] > 1 else None
        return Layout(rows, columns, self.blocks if rows is not None else 1)

    def shape(self, whole: Shape) -> Shape:
        """The shape of a core's part."""
        rows = whole[0] if self.rows is None else self.blocks * len(self.rows[0])
        return rows, whole[1] if self.columns is None else len(self.columns[0])

    def parts(self, whole: Shape) -> Parts:
        """The parts of a tensor of this shape."""
        each = whole[0] // self.blocks
        rows = columns = None
        if self.rows is not None:
            rows = tuple(
                ranges(tuple(block * each + i for block in range(self.blocks) for i in mine))
                for mine in self.rows
            )
        if self.columns is not None:
            columns = tuple(map(ranges, self.columns))
        return Parts(whole, rows, columns)

    def cut(self, node: Node) -> Node:
        """The part of a constant, which must be the same for all cores: one program has one constant."""
        layout = self.along(node.shape)
        if layout.is_whole:
            return node
        cores = len(layout.rows or layout.columns or ())
        parts = layout.parts(node.shape)
        first, *others = (node.value[parts.index(core)] for core in range(cores))
        if any(not np.array_equal(first, other) for other in others):
            raise CannotSplitError(f"constant {node.name!r} differs between its parts")
        return g.const(first, node.name)


WHOLE = Layout()


@dataclass(frozen=True)
class Value:
    """A core's part of a tensor. loose: the leaves that it is computed from element by element, where
    nothing has been asked of it that says how it is divided; until then it is whole."""

    node: Node
    layout: Layout = WHOLE
    loose: frozenset[Node] = frozenset()


def even(size: int, cores: int) -> Pattern:
    """Equal parts, the first for core 0."""
    each, rest = divmod(size, cores)
    if rest or each < FEWEST:
        raise CannotSplitError(f"{size} are not {cores} equal parts of {FEWEST} or more")
    return tuple(tuple(range(core * each, (core + 1) * each)) for core in range(cores))


def side_by_side(patterns: Sequence[Pattern], sizes: Sequence[int]) -> Pattern:
    """Of tensors of these sizes joined along the axis: each core has its parts of all."""
    starts = np.cumsum([0, *sizes])
    return tuple(
        tuple(int(start) + i for start, mine in zip(starts, part, strict=False) for i in mine)
        for part in zip(*patterns, strict=True)
    )


def flat(pattern: Pattern, positions: int, channels: int) -> Pattern:
    """Of a map's channels, as columns p*channels + c of a vector."""
    return tuple(
        tuple(p * channels + c for p in range(positions) for c in mine) for mine in pattern
    )


def channels_of(pattern: Pattern, positions: int, channels: int) -> Pattern:
    """The inverse of `flat`."""
    found = tuple(mine[: len(mine) // positions] for mine in pattern)
    if flat(found, positions, channels) != pattern:
        raise CannotSplitError("a vector becomes a map whose positions are on different cores")
    return found


def window(pattern: Pattern, start: int, stop: int) -> tuple[Pattern, tuple[int, int]]:
    """Columns start to stop of a divided tensor: their pattern, and which of its own columns each core takes."""
    places = [[k for k, i in enumerate(mine) if start <= i < stop] for mine in pattern]
    first = places[0]
    adjacent = all(b == a + 1 for a, b in pairwise(first))
    if len(first) < FEWEST or not adjacent or any(other != first for other in places):
        raise CannotSplitError(f"columns {start} to {stop} lie otherwise on different cores")
    taken = tuple(tuple(mine[k] - start for k in first) for mine in pattern)
    return taken, (first[0], first[-1] + 1)


def whole_groups(pattern: Pattern, per_in: int, per_out: int) -> tuple[Pattern, int]:
    """Of a convolution in groups: the output channels that a core makes of its inputs, and how many groups it has."""
    found: list[tuple[int, ...]] = []
    count = 0
    for mine in pattern:
        mine_groups = [i // per_in for i in mine[::per_in]]
        if mine != tuple(k * per_in + i for k in mine_groups for i in range(per_in)):
            raise CannotSplitError("groups are on several cores")
        count = len(mine_groups)
        found.append(tuple(k * per_out + o for k in mine_groups for o in range(per_out)))
    if len(found[0]) < FEWEST:
        raise CannotSplitError(f"fewer than {FEWEST} channels are left to a core")
    return tuple(found), count


def same(layouts: Sequence[Layout], what: str) -> Layout:
    """The layout that operands have in common."""
    first, *others = layouts
    if any(other != first for other in others):
        raise CannotSplitError(f"operands of {what} are divided in different ways")
    return first
