"""What an op is: the type of the records that `ops` and `maps` are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.graph.node import Shape

Array = NDArray[np.float64]
Attrs = Mapping[str, Any]

CORE = "core"
"""The attribute that an op is evaluated with besides its own: the number of the core."""


@dataclass(frozen=True)
class OpRecord:
    """What an op is.

    arity: number of operands, None for one or more. attrs: names of its attributes, all required.
    shape: operand shapes and attributes to result shape; raises GraphError. evaluate: float64
    operands and attributes to the float64 result. machine: code generation accepts it. elementwise:
    broadcasts its operands. product: its operands come in tiles, quantised.
    """

    name: str
    arity: int | None
    shape: Callable[[Sequence[Shape], Attrs], Shape]
    evaluate: Callable[[Sequence[Array], Attrs], Array]
    attrs: tuple[str, ...] = ()
    machine: bool = False
    commutative: bool = False
    elementwise: bool = False
    product: bool = False
