"""How the numbers of a user's arrays lie in the rank-2 tensors of the graph, and back.

The graph knows kernels as blocks of rows, one a tap, and samples as positions of channels. The
user's arrays have as many axes as their framework gives them, groups, and sometimes channels first.
A layout is the whole difference; it moves numbers and never computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ChannelsFirst:
    """An order of numbers: the user's is channel by channel, the graph's position by position."""

    channels: int
    positions: int

    def pack(self, array: NDArray) -> NDArray:
        """From (..., channels * positions, n) in the user's order to the graph's."""
        return self._swap(array, self.channels, self.positions)

    def unpack(self, array: NDArray) -> NDArray:
        """The inverse of `pack`."""
        return self._swap(array, self.positions, self.channels)

    @staticmethod
    def _swap(array: NDArray, outer: int, inner: int) -> NDArray:
        *lead, _, last = array.shape
        split = array.reshape(*lead, outer, inner, last)
        return np.swapaxes(split, -3, -2).reshape(array.shape)


@dataclass(frozen=True)
class KernelLayout:
    """How a variable lies in a state of shape (rows, cols).

    Args:
        state: (rows, cols), rows = taps * inputs.
        taps: blocks of rows. The variable is (taps, inputs / groups, cols) in row-major order,
            whatever its shape: (kh, kw, inputs / groups, cols) of a convolution, (kh, kw, channels,
            multiplier) of a depthwise one.
        groups: input i of each tap meets only the columns of its own group. The state is zero
            elsewhere; the variable holds nothing there.
        order: of the rows or, in a state of one row, the columns: None for the graph's own.
    """

    state: tuple[int, int]
    taps: int = 1
    groups: int = 1
    order: ChannelsFirst | None = None

    @property
    def size(self) -> int:
        """Numbers in the variable."""
        return prod(self.state) // self.groups

    def pack(self, variable: ArrayLike) -> NDArray:
        """The state's array, of the variable's dtype, from the variable's of any shape."""
        v = np.asarray(variable)
        if self.order is not None:
            v = self.order.pack(v.reshape(self.order.channels * self.order.positions, -1))
        if self.groups == 1:
            return v.reshape(self.state)
        groups = np.arange(self.groups)
        blocks = np.zeros(self._blocks, v.dtype)
        # NumPy puts the axis of the groups, taken twice, first.
        grouped = v.reshape(self.taps, self._inputs, self.groups, -1)
        blocks[:, groups, :, groups] = grouped.transpose(2, 0, 1, 3)
        return blocks.reshape(self.state)

    def unpack(self, state: ArrayLike) -> NDArray:
        """The variable's numbers in its own order, flat: the inverse of `pack`."""
        s = np.asarray(state)
        if self.groups > 1:
            groups = np.arange(self.groups)
            s = s.reshape(self._blocks)[:, groups, :, groups].transpose(1, 2, 0, 3)
        if self.order is not None:
            s = self.order.unpack(s.reshape(self.order.channels * self.order.positions, -1))
        return s.reshape(-1)

    @property
    def _inputs(self) -> int:
        """Inputs of a tap in one group."""
        return self.state[0] // self.taps // self.groups

    @property
    def _blocks(self) -> tuple[int, ...]:
        return self.taps, self.groups, self._inputs, self.groups, self.state[1] // self.groups


@dataclass(frozen=True)
class SampleLayout:
    """How samples of the user's ``shape`` lie in rows: row-major, or position by position."""

    shape: tuple[int, ...]
    order: ChannelsFirst | None = None

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return prod(self.shape)

    def pack(self, samples: NDArray) -> NDArray:
        """Rows (n, features) of samples (n, *shape), of their dtype."""
        rows = samples.reshape(len(samples), self.features)
        return rows if self.order is None else self.order.pack(rows[..., None])[..., 0]

    def unpack(self, rows: NDArray) -> NDArray:
        """The inverse of `pack`."""
        rows = rows.reshape(-1, self.features)
        if self.order is not None:
            rows = self.order.unpack(rows[..., None])[..., 0]
        return rows.reshape(-1, *self.shape)
