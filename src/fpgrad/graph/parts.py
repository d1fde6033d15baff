"""Which elements of a tensor each core of a machine has, where every core has others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpgrad.graph.node import Shape

Ranges = tuple[tuple[int, int], ...]
"""Indices along an axis, in order: those of each range from its first to before its second number."""


@dataclass(frozen=True)
class Parts:
    """The parts of a tensor, one a core; together they are the whole.

    whole: the shape of the tensor. rows, columns: those of each core, None where each has all. With
    both, cores have blocks on a diagonal, and the tensor is zero elsewhere.
    """

    whole: Shape
    rows: tuple[Ranges, ...] | None = None
    columns: tuple[Ranges, ...] | None = None

    @property
    def shape(self) -> Shape:
        """Of a part."""
        rows, columns = (
            size if ranges is None else sum(stop - start for start, stop in ranges[0])
            for size, ranges in zip(self.whole, (self.rows, self.columns), strict=True)
        )
        return rows, columns

    @property
    def cores(self) -> int:
        """How many parts there are."""
        return len(self.rows or self.columns or ())

    def index(self, core: int) -> tuple[NDArray[np.intp], ...]:
        """What picks a core's part out of an array of the whole."""
        axes = zip(self.whole, (self.rows, self.columns), strict=True)
        return np.ix_(
            *(
                np.arange(size)
                if ranges is None
                else np.concatenate([np.arange(*r) for r in ranges[core]])
                for size, ranges in axes
            )
        )


def ranges(indices: tuple[int, ...]) -> Ranges:
    """Indices as ranges, joined where one follows the other."""
    found: list[tuple[int, int]] = []
    for i in indices:
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return tuple(found)
