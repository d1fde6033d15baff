"""The one description of how output positions read input positions, along one axis of a map.

Convolutions, their gradients, pooling, padding, cropping, subsampling and upsampling differ only in
their windows, so that index arithmetic is written once and a gradient is the same op with the window
transposed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil, floor
from typing import TypeAlias

from fpgrad.errors import GraphError

_TEXT = re.compile(
    r"(?P<size>\d+)->(?P<out>\d+) taps (?P<taps>\d+)(?: stride (?P<stride>\d+))?"
    r"(?: dilation (?P<dilation>-?\d+))?(?: pad (?P<pad>-?\d+))?(?: up (?P<up>\d+))?"
)


@dataclass(frozen=True)
class Window:
    """Output position o and tap r read input position (o*stride + r*dilation - pad)/up.

    They read nothing (padding) when that division leaves a remainder or its result is not in
    [0, size). size, out: positions of input and output. dilation and pad may be negative: a
    negative pad crops, a negative dilation is that of a transposed window.
    """

    size: int
    out: int
    taps: int
    stride: int = 1
    dilation: int = 1
    pad: int = 0
    up: int = 1

    def __post_init__(self) -> None:
        for field in ("size", "out", "taps", "stride", "dilation", "pad", "up"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool):
                raise GraphError(f"{field} of a window must be an integer, not {value!r}")
            if field not in ("dilation", "pad") and value < 1:
                raise GraphError(f"{field} of a window must be positive, not {value!r}")
        if self.dilation == 0:
            raise GraphError("dilation of a window must not be 0")

    def source(self, position: int, tap: int) -> int | None:
        """The input position that output `position` reads at `tap`, None where it is padding."""
        source, remainder = divmod(position * self.stride + tap * self.dilation - self.pad, self.up)
        return source if remainder == 0 and 0 <= source < self.size else None

    def sources(self, tap: int) -> list[tuple[int, int]]:
        """The pairs (output position, input position) of one tap, in order, without padding."""
        first = -((tap * self.dilation - self.pad) // self.stride)
        last = ((self.size - 1) * self.up - tap * self.dilation + self.pad) // self.stride
        positions = range(max(first, 0), min(last, self.out - 1) + 1)
        return [(o, p) for o in positions if (p := self.source(o, tap)) is not None]

    def reads(self, position: int) -> list[tuple[int, int]]:
        """The pairs (tap, input position) of one output position, in the order of taps, without padding."""
        start = position * self.stride - self.pad
        last = (self.size - 1) * self.up
        ends = sorted((-start / self.dilation, (last - start) / self.dilation))
        taps = range(max(0, ceil(ends[0])), min(self.taps - 1, floor(ends[1])) + 1)
        return [(r, p) for r in taps if (p := self.source(position, r)) is not None]

    @property
    def transposed(self) -> Window:
        """The same triples (output, tap, input) seen from the input; an involution."""
        return Window(
            self.out,
            self.size,
            self.taps,
            stride=self.up,
            dilation=-self.dilation,
            pad=-self.pad,
            up=self.stride,
        )

    @property
    def is_identity(self) -> bool:
        """Whether each output position reads the input position of the same number, once."""
        return (self.size, self.taps, self.stride, self.pad) == (self.out, 1, self.up, 0)

    def __str__(self) -> str:
        """Such as `28->14 taps 3 stride 2 pad 1`; what has its default is left out."""
        extra = (("stride", 1), ("dilation", 1), ("pad", 0), ("up", 1))
        changed = [
            f" {k} {getattr(self, k)}" for k, default in extra if getattr(self, k) != default
        ]
        return f"{self.size}->{self.out} taps {self.taps}{''.join(changed)}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """The window that `text` shows; GraphError when it shows none."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise GraphError(f"window must be like '28->14 taps 3 stride 2 pad 1', not {text!r}")
        return cls(**{k: int(v) for k, v in match.groupdict().items() if v is not None})


Windows: TypeAlias = tuple[Window, Window]
"""The windows of a two-dimensional op: height, width."""


def transposed(windows: Windows) -> Windows:
    """Both windows transposed."""
    return windows[0].transposed, windows[1].transposed


def taps(windows: Windows) -> int:
    """Number of taps of both axes together."""
    return windows[0].taps * windows[1].taps


def positions(windows: Windows) -> tuple[int, int]:
    """Numbers of positions of input and output."""
    return windows[0].size * windows[1].size, windows[0].out * windows[1].out


def all_positions(count: int) -> Windows:
    """The windows whose single output position reads all `count` positions of a map.

    Rows are position-major, so the map's own height and width do not matter.
    """
    return Window(1, 1, 1), Window(count, 1, count)


def pointwise(height: int, width: int) -> Windows:
    """The windows of one tap that leave a map as it is, those of a 1x1 convolution."""
    return Window(height, height, 1), Window(width, width, 1)
