"""The ops that move rows of a map between the cores that share it.

Each core has a band of the map's rows, the first for core 0. As rows of a tensor have the position outermost, a band of
a map is a band of its tensor's rows, and so are the lines at its ends. What cores need of each other goes through sums:
`spread` puts rows into a core's own place among those of all, with zeros in the others, an all_sum makes that the same
on all cores, and `pick` takes the place of one of them. These two mean something else on each core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpgrad.errors import GraphError
from fpgrad.graph.node import Shape
from fpgrad.graph.record import CORE, Array, Attrs, OpRecord

SPREAD, PICK, STACK = "spread", "pick", "stack"


def _places(attrs: Attrs) -> int:
    first, stop = attrs["places"]
    if not 0 <= first < stop:
        raise GraphError(f"places must be those of some cores, not {attrs['places']}")
    return stop - first


def _spread_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, columns = shapes[0]
    start, stop = attrs["rows"]
    if not 0 <= start < stop <= rows:
        raise GraphError(f"rows {start} to {stop} must be among the operand's {rows}")
    return _places(attrs) * (stop - start), columns


def _pick_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, columns = shapes[0]
    count = _places(attrs)
    if rows % count:
        raise GraphError(f"rows must be those of {count} places, not {rows}")
    return rows // count, columns


def _stack_shape(shapes: Sequence[Shape], _: Attrs) -> Shape:
    columns = {shape[1] for shape in shapes}
    if len(columns) != 1:
        raise GraphError(f"operands of stack must have equal columns, not {sorted(columns)}")
    return sum(shape[0] for shape in shapes), columns.pop()


def _spread(operands: Sequence[Array], attrs: Attrs) -> Array:
    (first, stop), core = attrs["places"], attrs.get(CORE, 0)
    mine = operands[0][slice(*attrs["rows"])]
    return np.concatenate([mine if place == core else 0.0 * mine for place in range(first, stop)])


def _pick(operands: Sequence[Array], attrs: Attrs) -> Array:
    (first, stop), place = attrs["places"], attrs.get(CORE, 0) + attrs["shift"]
    parts = np.split(operands[0], stop - first)
    return parts[place - first] if first <= place < stop else 0.0 * parts[0]


BAND_RECORDS = (
    # Rows start:stop of the operand in a core's own place of those of cores first:stop, zeros in the others.
    OpRecord(SPREAD, 1, _spread_shape, _spread, attrs=("places", "rows"), machine=True),
    # Of such places that of the core whose number is larger by `shift`; zeros where there is none.
    OpRecord(PICK, 1, _pick_shape, _pick, attrs=("places", "shift"), machine=True),
    # Rows of all operands, one after the other.
    OpRecord(STACK, None, _stack_shape, lambda x, _: np.concatenate(x, axis=0), machine=True),
)
