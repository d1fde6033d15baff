"""Layers that work on numbers or features, wherever they lie: Dense, dropout, normalisation, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fpgrad.frontend.keras.activations import activate, softmax
from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.maps import channel_format, to_map, to_vector, whole
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.frontend.keras.registry import lowers
from fpgrad.frontend.weights import KernelLayout
from fpgrad.graph import Node
from fpgrad.graph import builder as g

# Products and masks ----------------------------------------------------------------------------


@lowers("core.dense.Dense")
def dense(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """``activation(x · kernel + bias)``: of a map at each position, as Keras does.

    Of a flattened map it is a convolution that covers it.
    """
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    if len(x.shape) > 3:
        context.report(
            layer.name,
            f"Dense on a tensor of shape {(None, *x.shape)} is not supported",
            "put a Flatten before it: Dense works on vectors and at the positions of maps",
        )
        return context.placeholder(layer.name, (*x.shape[:-1], layer.units))
    if len(x.shape) > 1:
        x = to_map(context, layer.name, x, channels_first=False)
    shape = (x.features if len(x.shape) == 1 else x.node.shape[1], layer.units)
    name = f"{layer.name}/kernel"
    grid = x.grid
    if grid is not None and x.is_map and len(x.shape) == 1:
        layout = KernelLayout(shape, grid.positions, order=x.order)
        node = g.conv(x.node, context.state(layer._kernel, name, layout), whole(grid))
    else:
        layout = KernelLayout(shape, order=x.order)
        node = g.matmul(x.node, context.state(layer._kernel, name, layout))
    if layer.use_bias:
        row = KernelLayout((1, layer.units))
        node = g.add(node, context.state(layer.bias, f"{layer.name}/bias", row))
    out = (*x.shape[:-1], layer.units)
    value = Value(node, out, Grid.of(out, channels_first=False) if len(out) > 1 else None)
    return activate(context, layer.name, layer.activation, value)


@lowers("regularization.dropout.Dropout")
def dropout(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Inverted dropout; the mask is made on the device from the step's seed."""
    (x,) = inputs
    if layer.noise_shape is not None and tuple(layer.noise_shape)[1:] != x.shape:
        context.report(
            layer.name,
            f"noise_shape={layer.noise_shape} is not supported",
            "leave noise_shape away: every number gets its own mask; SpatialDropout drops channels",
        )
    if not _drops(context, layer, arguments):
        return x
    return x.like(g.dropout(x.node, layer.rate))


@lowers(
    "regularization.spatial_dropout.SpatialDropout1D",
    "regularization.spatial_dropout.SpatialDropout2D",
)
def spatial_dropout(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Dropout of whole channels."""
    first = getattr(layer, "data_format", None) == "channels_first"
    x = to_map(context, layer.name, inputs[0], first)
    if not _drops(context, layer, arguments):
        return inputs[0]
    assert x.grid is not None
    return x.like(g.spatial_dropout(x.node, layer.rate, x.grid.positions))


def _drops(context: Context, layer: Any, arguments: Mapping) -> bool:
    """Checks the options of a dropout; whether it does anything."""
    rest = {name: value for name, value in arguments.items() if name != "training"}
    check_layer_options(context, layer, rest)
    # Functional models record the default, False, and Keras's fit overrides it.
    if arguments.get("training"):
        context.report(
            layer.name,
            "training=True in the call is not supported",
            "call the layer without it: dropout then works in fit and rests in predict",
        )
    if layer.rate >= 1.0:
        context.report(layer.name, f"rate={layer.rate} leaves nothing", "use a rate below 1")
        return False
    return layer.rate > 0.0


# Activations -----------------------------------------------------------------------------------


@lowers("activations.activation.Activation")
def activation(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """An activation by string or function."""
    check_layer_options(context, layer, arguments)
    return activate(context, layer.name, layer.activation, inputs[0])


@lowers("activations.relu.ReLU")
def relu(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """ReLU with its slope and ceiling; a threshold is reported."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    if layer.threshold:
        context.report(
            layer.name, f"threshold={layer.threshold} is not supported", "use threshold=0"
        )
    slope = float(layer.negative_slope)
    node = g.leaky_relu(x.node, slope) if slope else g.relu(x.node)
    if layer.max_value is not None:
        node = g.minimum(node, float(layer.max_value))
    return x.like(node)


@lowers("activations.leaky_relu.LeakyReLU")
def leaky_relu(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """``x`` where positive, else ``negative_slope * x``."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    return x.like(g.leaky_relu(x.node, float(layer.negative_slope)))


@lowers("activations.elu.ELU")
def elu(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    return x.like(g.elu(x.node, float(layer.alpha)))


@lowers("activations.softmax.Softmax")
def softmax_layer(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Softmax over the channels of a vector or a map."""
    check_layer_options(context, layer, arguments)
    return softmax(context, layer.name, inputs[0], layer.axis)


# Normalisation ---------------------------------------------------------------------------------


@lowers("normalization.batch_normalization.BatchNormalization")
def batch_normalization(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Statistics over the samples of the batch (without padding), moving averages for inference."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    found = _along_channels(context, layer, x, layer.axis)
    if found is None:
        return x
    x = found
    if getattr(layer, "renorm", False):
        context.report(layer.name, "renorm=True is not supported", "use renorm=False")
    if getattr(layer, "synchronized", False):
        context.report(layer.name, "synchronized=True is not supported", "use synchronized=False")
    if layer.trainable and context.calls.setdefault(id(layer), 0):
        context.report(
            layer.name,
            "a BatchNormalization that is called more than once is not supported",
            "use one layer for each place",
        )
    context.calls[id(layer)] = context.calls.get(id(layer), 0) + 1
    row = _row(x)
    node = g.batch_norm(
        x.node,
        _parameter(context, layer, "gamma", row, layer.scale, 1.0),
        _parameter(context, layer, "beta", row, layer.center, 0.0),
        context.state(layer.moving_mean, f"{layer.name}/moving_mean", row, moving=True),
        context.state(layer.moving_variance, f"{layer.name}/moving_variance", row, moving=True),
        epsilon=float(layer.epsilon),
        momentum=float(layer.momentum),
        trainable=bool(layer.trainable),
    )
    return x.like(node)


@lowers("normalization.layer_normalization.LayerNormalization")
def layer_normalization(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Each sample normalised by its own mean and variance."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    found = _along_channels(context, layer, x, layer.axis, last_only=True)
    if found is None:
        return x
    x = found
    if getattr(layer, "rms_scaling", False):
        context.report(layer.name, "rms_scaling=True is not supported", "use rms_scaling=False")
    row = _row(x)
    node = g.layer_norm(
        x.node,
        _parameter(context, layer, "gamma", row, layer.scale, 1.0),
        _parameter(context, layer, "beta", row, layer.center, 0.0),
        epsilon=float(layer.epsilon),
    )
    return x.like(node)


def _along_channels(
    context: Context, layer: Any, x: Value, axis: Any, *, last_only: bool = False
) -> Value | None:
    """``x`` as a vector or map whose columns lie along ``axis``; another axis is reported."""
    if not isinstance(axis, int):
        axis = axis[0] if len(axis) == 1 else tuple(axis)
    if len(x.shape) == 1 and axis in (-1, 1):
        return to_vector(x)
    first = channel_format(len(x.shape), axis) if isinstance(axis, int) else None
    if first is None or (first and last_only):
        context.report(
            layer.name,
            f"{type(layer).__name__} of shape {(None, *x.shape)} along axis {axis} is not supported",
            "normalise along the last axis, axis=-1"
            if last_only
            else "normalise along the channels: axis=-1, or axis=1 with channels_first",
        )
        return None
    return to_map(context, layer.name, x, first)


def _row(x: Value) -> KernelLayout:
    """One number for each column: a map's channels, a vector's numbers in their order."""
    return KernelLayout((1, x.node.shape[1]), order=None if len(x.shape) > 1 else x.order)


def _parameter(
    context: Context, layer: Any, name: str, row: KernelLayout, present: bool, otherwise: float
) -> Node | float:
    if not present:
        return otherwise
    return context.state(getattr(layer, name), f"{layer.name}/{name}", row)


# Numbers as they come --------------------------------------------------------------------------


@lowers("preprocessing.rescaling.Rescaling")
def rescaling(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """``x · scale + offset``, both single numbers."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    numbers: dict[str, float] = {}
    for option in ("scale", "offset"):
        value = np.asarray(getattr(layer, option), dtype=np.float64)
        if value.size != 1:
            context.report(
                layer.name,
                f"{option} of shape {value.shape} is not supported",
                "give one number for all channels, or put a BatchNormalization after it",
            )
        numbers[option] = float(value.flat[0])
    node = x.node if numbers["scale"] == 1.0 else g.mul(x.node, numbers["scale"])
    return x.like(g.add(node, numbers["offset"]) if numbers["offset"] else node)
