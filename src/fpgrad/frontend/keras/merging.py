"""Layers of several inputs: number by number, or side by side along the channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.maps import (
    MIXED_FORMATS,
    channel_format,
    natural_map,
    repeated,
    to_map,
    to_vector,
)
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.frontend.keras.registry import lowers
from fpgrad.graph import Node
from fpgrad.graph import builder as g


def _merge(
    context: Context,
    layer: Any,
    inputs: tuple[Value, ...],
    arguments: Mapping,
    combine: Callable[[Node, Node], Node],
) -> Value:
    check_layer_options(context, layer, arguments)
    grids = [grid for value in inputs if (grid := natural_map(value)) is not None]
    same_rank = len({len(value.shape) for value in inputs}) == 1
    if grids and same_rank:
        values = _maps(context, layer, inputs, grids[0].channels_first)
    else:
        values = _vectors(context, layer, inputs, same_rank)
    if values is None:
        shapes = [value.shape for value in inputs] if same_rank else [inputs[0].shape]
        return context.placeholder(layer.name, tuple(map(max, zip(*shapes, strict=True))))
    node = values[0].node
    for value in values[1:]:
        node = combine(node, value.node)
    widest = max(values, key=lambda value: value.features)
    return widest.like(node)


def _vectors(
    context: Context, layer: Any, inputs: tuple[Value, ...], same_rank: bool
) -> list[Value] | None:
    """Inputs as nodes of one layout; flattened maps stay maps if all of them are."""
    shapes = {value.shape for value in inputs}
    # A single number per sample broadcasts over a vector; other broadcasting is not flat.
    vectors = {shape for shape in shapes if prod(shape) > 1}
    if len(vectors) > 1 or not same_rank:
        context.report(
            layer.name,
            f"inputs of shapes {sorted((None, *s) for s in shapes)} are not supported",
            "give inputs of one shape",
        )
        return None
    if all(value.is_map and value.grid == inputs[0].grid for value in inputs):
        return list(inputs)
    values = [to_vector(value) for value in inputs]
    if len({value.order for value in values if value.features > 1}) > 1:
        context.report(layer.name, "inputs of two orders are not supported", MIXED_FORMATS)
        return None
    return values


def _maps(
    context: Context, layer: Any, inputs: tuple[Value, ...], channels_first: bool
) -> list[Value] | None:
    """Inputs as maps of one size; a size of 1 broadcasts."""
    values = [to_map(context, layer.name, value, channels_first) for value in inputs]
    grids = [value.grid for value in values if value.grid is not None]
    height, width, channels = (
        max(sizes)
        for sizes in zip(*((grid.height, grid.width, grid.channels) for grid in grids), strict=True)
    )
    full = Grid(height, width, channels, channels_first)
    fits = all(
        grid.height in (1, height) and grid.width in (1, width) and grid.channels in (1, channels)
        for grid in grids
    )
    # Without an input of full size the result would have another shape than any of them.
    if not fits or full not in grids:
        context.report(
            layer.name,
            f"inputs of shapes {sorted((None, *value.shape) for value in inputs)} are not supported",
            "give inputs of one shape, or beside one of full shape some of height and width 1 or of "
            "one channel",
        )
        return None
    return [_broadcast(value, grid, full) for value, grid in zip(values, grids, strict=True)]


def _broadcast(value: Value, grid: Grid, full: Grid) -> Value:
    windows = (
        repeated(grid.height, full.height // grid.height),
        repeated(grid.width, full.width // grid.width),
    )
    if all(window.is_identity for window in windows):
        return value
    return value.like(g.pool(value.node, windows, "sum"))


@lowers("merging.add.Add", "keras.src.ops.numpy.Add")
def add(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Sum of the inputs."""
    return _merge(context, layer, inputs, arguments, g.add)


@lowers("merging.multiply.Multiply", "keras.src.ops.numpy.Multiply")
def multiply(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Product of the inputs, number by number."""
    return _merge(context, layer, inputs, arguments, g.mul)


@lowers("merging.subtract.Subtract", "keras.src.ops.numpy.Subtract")
def subtract(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """First input minus the second."""
    return _merge(context, layer, inputs, arguments, g.sub)


@lowers("merging.maximum.Maximum")
def maximum(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Largest of the inputs, number by number."""
    return _merge(context, layer, inputs, arguments, g.maximum)


@lowers("merging.minimum.Minimum")
def minimum(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Smallest of the inputs, number by number."""
    return _merge(context, layer, inputs, arguments, g.minimum)


@lowers("merging.average.Average")
def average(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Mean of the inputs."""
    total = _merge(context, layer, inputs, arguments, g.add)
    return total.like(g.mul(total.node, 1.0 / len(inputs)))


@lowers("merging.concatenate.Concatenate")
def concatenate(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Vectors side by side, or the channels of maps."""
    check_layer_options(context, layer, arguments)
    rank = len(inputs[0].shape)
    axis = layer.axis % (rank + 1)
    shape = list(inputs[0].shape)
    shape[axis - 1] = sum(value.shape[axis - 1] for value in inputs)
    # Row-major tensors lie side by side when all axes before the concatenated one have size 1.
    flat = all(prod(value.shape[: axis - 1]) == 1 for value in inputs)
    if flat and all(value.order is None and natural_map(value) is None for value in inputs):
        return Value(g.concat(*(to_vector(value).node for value in inputs)), tuple(shape))
    channels_first = channel_format(rank, axis)
    formats = {grid.channels_first for value in inputs if (grid := natural_map(value)) is not None}
    if channels_first is None or not formats <= {channels_first}:
        context.report(
            layer.name,
            f"Concatenate of shape {(None, *inputs[0].shape)} along axis {layer.axis} "
            "is not supported",
            MIXED_FORMATS if rank == 1 else "concatenate along the channels",
        )
        return context.placeholder(layer.name, tuple(shape))
    maps = [to_map(context, layer.name, value, channels_first) for value in inputs]
    grid = Grid.of(tuple(shape), channels_first)
    return Value(g.concat(*(value.node for value in maps)), tuple(shape), grid)
