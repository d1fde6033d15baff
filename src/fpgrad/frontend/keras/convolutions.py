"""Convolutions, plain, depthwise, separable and transposed, of images and of series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpgrad.frontend.keras.activations import activate
from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.maps import (
    is_pointwise,
    to_map,
    transposed_window,
    unfolded,
    window,
    without_zero_padding,
)
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.frontend.keras.registry import lowers
from fpgrad.frontend.weights import KernelLayout
from fpgrad.graph import Node, Window, Windows
from fpgrad.graph import builder as g
from fpgrad.graph.window import taps


@lowers("convolutional.conv1d.Conv1D", "convolutional.conv2d.Conv2D")
def convolution(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """``activation(conv(x, kernel) + bias)``, with groups."""
    check_layer_options(context, layer, arguments)
    x = _input(context, layer, inputs)
    windows = _windows(layer, x)
    kernel = layer._kernel
    node = _product(
        context, x.node, kernel, f"{layer.name}/kernel", windows, layer.filters, layer.groups
    )
    return _finish(context, layer, x, node, windows, layer.filters)


@lowers(
    "convolutional.depthwise_conv1d.DepthwiseConv1D",
    "convolutional.depthwise_conv2d.DepthwiseConv2D",
)
def depthwise(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Each channel by itself, with kernels of its own: a convolution with a group for each."""
    check_layer_options(context, layer, arguments)
    x = _input(context, layer, inputs)
    windows = _windows(layer, x)
    groups = x.node.shape[1]
    filters = groups * layer.depth_multiplier
    node = _product(context, x.node, layer.kernel, f"{layer.name}/kernel", windows, filters, groups)
    return _finish(context, layer, x, node, windows, filters)


@lowers(
    "convolutional.separable_conv1d.SeparableConv1D",
    "convolutional.separable_conv2d.SeparableConv2D",
)
def separable(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """A depthwise convolution, then a product of each position's channels."""
    check_layer_options(context, layer, arguments)
    x = _input(context, layer, inputs)
    windows = _windows(layer, x)
    groups = x.node.shape[1]
    inner = groups * layer.depth_multiplier
    name = f"{layer.name}/depthwise_kernel"
    node = _product(context, x.node, layer.depthwise_kernel, name, windows, inner, groups)
    layout = KernelLayout((inner, layer.filters))
    pointwise = context.state(layer.pointwise_kernel, f"{layer.name}/pointwise_kernel", layout)
    return _finish(context, layer, x, g.matmul(node, pointwise), windows, layer.filters)


@lowers(
    "convolutional.conv1d_transpose.Conv1DTranspose",
    "convolutional.conv2d_transpose.Conv2DTranspose",
)
def transposed(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """The gradient of a convolution, as a layer: kernel (taps, filters, channels)."""
    check_layer_options(context, layer, arguments)
    x = _input(context, layer, inputs)
    assert x.grid is not None
    shape = layer.compute_output_shape((context.batch_size, *x.shape))[1:]
    if 0 in shape:
        context.report(
            layer.name,
            f"an empty result, of shape {(None, *shape)}, is not supported",
            "use a larger output_padding or kernel",
        )
        return context.placeholder(layer.name, tuple(max(size, 1) for size in shape))
    windows = _per_axis(
        x.grid,
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        layer.output_padding or (None,) * layer.rank,
        make=lambda size, kernel, stride, dilation, extra: transposed_window(
            size, kernel, stride, dilation, layer.padding, extra
        ),
    )
    layout = KernelLayout((taps(windows) * layer.filters, x.node.shape[1]), taps=taps(windows))
    kernel = context.state(layer.kernel, f"{layer.name}/kernel", layout)
    node = g.conv(x.node, kernel, windows, transposed_weights=True)
    return _finish(context, layer, x, node, windows, layer.filters)


def _input(context: Context, layer: Any, inputs: tuple[Value, ...]) -> Value:
    (x,) = inputs
    return to_map(context, layer.name, x, layer.data_format == "channels_first")


def _windows(layer: Any, x: Value) -> Windows:
    assert x.grid is not None
    return _per_axis(
        x.grid,
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        make=lambda size, kernel, stride, dilation: window(
            size, kernel, stride, dilation, layer.padding
        ),
    )


def _per_axis(grid: Grid, *options: Any, make: Any) -> Windows:
    """Windows from a layer's options, one number for each of its one or two axes."""
    if len(options[0]) == 1:
        return Window(1, 1, 1), make(grid.width, *(option[0] for option in options))
    return (
        make(grid.height, *(option[0] for option in options)),
        make(grid.width, *(option[1] for option in options)),
    )


def _product(
    context: Context,
    x: Node,
    variable: Any,
    name: str,
    windows: Windows,
    filters: int,
    groups: int,
) -> Node:
    """The convolution of a map with a kernel variable (taps, channels / groups, filters)."""
    channels = x.shape[1]
    shape = (taps(windows) * channels, filters)
    if groups == 1:
        columns = x if is_pointwise(windows) else unfolded(x, windows, channels)
        if columns is not None:
            return g.matmul(columns, context.state(variable, name, KernelLayout(shape)))
    x, windows = without_zero_padding(x, windows)
    kernel = context.state(variable, name, KernelLayout(shape, taps(windows), groups))
    return g.conv(x, kernel, windows, groups=groups)


def _finish(
    context: Context, layer: Any, x: Value, node: Node, windows: Windows, filters: int
) -> Value:
    """Bias and activation; the map that comes out."""
    if layer.use_bias:
        row = KernelLayout((1, filters))
        node = g.add(node, context.state(layer.bias, f"{layer.name}/bias", row))
    assert x.grid is not None
    grid = Grid(windows[0].out, windows[1].out, filters, x.grid.channels_first)
    return activate(
        context, layer.name, layer.activation, Value(node, grid.shape(len(x.shape)), grid)
    )
