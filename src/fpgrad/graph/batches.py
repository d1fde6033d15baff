"""The ops that cut a batch into micro-batches and put it together again.

They move no data on the machine: code generation loads an input by micro-batches, and lets each write its own rows of
an output or of a metric's state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpgrad.errors import GraphError
from fpgrad.graph.node import Shape
from fpgrad.graph.record import Array, Attrs, OpRecord

TAKE, JOIN = "take_samples", "join_samples"


def _take_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = shapes[0]
    first, count = attrs["first"], attrs["count"]
    if first < 0 or count < 1 or first + count > rows:
        raise GraphError(f"samples {first} to {first + count} must be among the operand's {rows}")
    return count, cols


def _join_shape(shapes: Sequence[Shape], _: Attrs) -> Shape:
    if len(set(shapes)) != 1:
        raise GraphError(f"operands of join_samples must have one shape, not {sorted(set(shapes))}")
    rows, cols = shapes[0]
    return len(shapes) * rows, cols


def _take(operands: Sequence[Array], attrs: Attrs) -> Array:
    return operands[0][attrs["first"] : attrs["first"] + attrs["count"]]


BATCH_RECORDS = (
    # Rows of an input with a row a sample, or of a metric's state.
    OpRecord(TAKE, 1, _take_shape, _take, attrs=("first", "count"), machine=True),
    # Equal micro-batches in their order, as an output or as a state's new value.
    OpRecord(JOIN, None, _join_shape, lambda x, _: np.concatenate(x, axis=0), machine=True),
)
