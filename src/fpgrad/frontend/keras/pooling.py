"""Pooling, and what else only gathers positions: padding, cropping, upsampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.maps import padded, repeated, to_map, whole, window
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.frontend.keras.registry import lowers
from fpgrad.graph import Node, Window, Windows
from fpgrad.graph import builder as g


def _input(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> tuple[Value, Grid]:
    check_layer_options(context, layer, arguments)
    x = to_map(
        context,
        layer.name,
        inputs[0],
        getattr(layer, "data_format", None) == "channels_first",
    )
    assert x.grid is not None
    return x, x.grid


def _output(x: Value, node: Node, windows: Windows) -> Value:
    assert x.grid is not None
    grid = Grid(windows[0].out, windows[1].out, x.grid.channels, x.grid.channels_first)
    return Value(node, grid.shape(len(x.shape)), grid)


def _pooling_windows(layer: Any, grid: Grid) -> Windows:
    sizes, strides = _numbers(layer.pool_size), _numbers(layer.strides)
    if len(sizes) == 1:
        return Window(1, 1, 1), window(grid.width, *sizes, *strides, padding=layer.padding)
    height, width = (
        window(size, pool, stride, padding=layer.padding)
        for size, pool, stride in zip((grid.height, grid.width), sizes, strides, strict=True)
    )
    return height, width


def _numbers(option: Any) -> tuple[int, ...]:
    return (option,) if isinstance(option, int) else tuple(option)


@lowers("pooling.max_pooling1d.MaxPooling1D", "pooling.max_pooling2d.MaxPooling2D")
def max_pooling(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """The largest number of each window, padding left out."""
    x, grid = _input(context, layer, inputs, arguments)
    windows = _pooling_windows(layer, grid)
    return _output(x, g.pool(x.node, windows, "max"), windows)


@lowers("pooling.average_pooling1d.AveragePooling1D", "pooling.average_pooling2d.AveragePooling2D")
def average_pooling(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """The mean of each window, padding left out."""
    x, grid = _input(context, layer, inputs, arguments)
    windows = _pooling_windows(layer, grid)
    return _output(x, g.average_pool(x.node, windows), windows)


@lowers(
    "pooling.global_average_pooling1d.GlobalAveragePooling1D",
    "pooling.global_average_pooling2d.GlobalAveragePooling2D",
)
def global_average_pooling(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """The mean over all positions."""
    x, grid = _input(context, layer, inputs, arguments)
    return _global(layer, x, g.average_pool(x.node, whole(grid)))


@lowers(
    "pooling.global_max_pooling1d.GlobalMaxPooling1D",
    "pooling.global_max_pooling2d.GlobalMaxPooling2D",
)
def global_max_pooling(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """The largest number of each channel."""
    x, grid = _input(context, layer, inputs, arguments)
    return _global(layer, x, g.pool(x.node, whole(grid), "max"))


def _global(layer: Any, x: Value, node: Node) -> Value:
    assert x.grid is not None
    if not layer.keepdims:
        return Value(node, (x.grid.channels,))
    return Value(node, Grid(1, 1, x.grid.channels, x.grid.channels_first).shape(len(x.shape)))


@lowers("reshaping.zero_padding1d.ZeroPadding1D", "reshaping.zero_padding2d.ZeroPadding2D")
def zero_padding(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Zeros around the map. Convolutions that follow take them into their windows."""
    x, grid = _input(context, layer, inputs, arguments)
    return _bordered(x, grid, layer.padding, 1)


@lowers("reshaping.cropping1d.Cropping1D", "reshaping.cropping2d.Cropping2D")
def cropping(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """The map without its border."""
    x, grid = _input(context, layer, inputs, arguments)
    return _bordered(x, grid, layer.cropping, -1)


def _bordered(x: Value, grid: Grid, border: Any, sign: int) -> Value:
    if isinstance(border[0], int):
        border = ((0, 0), border)
    (top, bottom), (left, right) = border
    windows = (
        padded(grid.height, sign * top, sign * bottom),
        padded(grid.width, sign * left, sign * right),
    )
    return _output(x, g.pool(x.node, windows, "sum"), windows)


@lowers("reshaping.up_sampling1d.UpSampling1D", "reshaping.up_sampling2d.UpSampling2D")
def up_sampling(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Each position several times, nearest."""
    x, grid = _input(context, layer, inputs, arguments)
    interpolation = getattr(layer, "interpolation", "nearest")
    if interpolation != "nearest":
        context.report(
            layer.name,
            f"interpolation={interpolation!r} is not supported",
            "use interpolation='nearest', or a Conv2DTranspose",
        )
    height, width = (1, *_numbers(layer.size))[-2:]
    windows = (repeated(grid.height, height), repeated(grid.width, width))
    return _output(x, g.pool(x.node, windows, "sum"), windows)
