"""One handler per Keras layer, keyed by qualified class name.

A subclass of a Keras layer has another name and so is reported: nobody can know what its ``call``
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from fpgrad.frontend.keras.activations import activate, softmax
from fpgrad.frontend.keras.context import Context, Handler, Value
from fpgrad.frontend.keras.options import check_layer_options
from fpgrad.graph import Node
from fpgrad.graph import builder as g

LAYERS: dict[str, Handler] = {}
"""Handlers by qualified class name; `lowers` enters them."""

_SRC = "keras.src.layers."


def lowers(*names: str) -> Callable[[Handler], Handler]:
    """Enters a handler for the classes of ``keras.src.layers`` with these qualified names."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            LAYERS[name if name.startswith("keras.") else _SRC + name] = handler
        return handler

    return enter


# Vectors ---------------------------------------------------------------------------------------


@lowers("core.dense.Dense")
def dense(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """``activation(x · kernel + bias)``."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    if len(x.shape) != 1:
        context.report(
            layer.name,
            f"Dense on a tensor of shape {(None, *x.shape)} is not supported",
            "put a Flatten before it: Dense works on vectors",
        )
        return context.placeholder(layer.name, (*x.shape[:-1], layer.units))
    kernel = context.state(layer.kernel, f"{layer.name}/kernel", tuple(layer.kernel.shape))
    node = g.matmul(x.node, kernel)
    if layer.use_bias:
        bias = context.state(layer.bias, f"{layer.name}/bias", (1, layer.units))
        node = g.add(node, bias)
    return activate(context, layer.name, layer.activation, Value(node, (layer.units,)))


@lowers(
    "core.identity.Identity",
    "reshaping.flatten.Flatten",
    "reshaping.reshape.Reshape",
)
def reshape(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Tensors are flat and row-major already: only the user's shape changes."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    if getattr(layer, "data_format", None) == "channels_first" and len(x.shape) > 1:
        context.report(
            layer.name,
            "data_format='channels_first' is not supported",
            "use channels_last",
        )
    shape = tuple(layer.compute_output_shape((context.batch_size, *x.shape))[1:])
    return Value(x.node, shape)


@lowers("regularization.dropout.Dropout")
def dropout(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """Inverted dropout; the mask is made on the device from the step's seed."""
    training = arguments.get("training")
    rest = {name: value for name, value in arguments.items() if name != "training"}
    check_layer_options(context, layer, rest)
    (x,) = inputs
    if training is not None:
        context.report(
            layer.name,
            f"training={training} in the call is not supported",
            "call the layer without it: dropout then works in fit and rests in predict",
        )
    if layer.noise_shape is not None and tuple(layer.noise_shape)[1:] != x.shape:
        context.report(
            layer.name,
            f"noise_shape={layer.noise_shape} is not supported",
            "leave noise_shape away: every number gets its own mask",
        )
    if layer.rate >= 1.0:
        context.report(layer.name, f"rate={layer.rate} leaves nothing", "use a rate below 1")
        return x
    if layer.rate == 0.0:
        return x
    return Value(g.dropout(x.node, layer.rate), x.shape)


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
    return Value(node, x.shape)


@lowers("activations.leaky_relu.LeakyReLU")
def leaky_relu(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """``x`` where positive, else ``negative_slope * x``."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    return Value(g.leaky_relu(x.node, float(layer.negative_slope)), x.shape)


@lowers("activations.elu.ELU")
def elu(context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping) -> Value:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    return Value(g.elu(x.node, float(layer.alpha)), x.shape)


@lowers("activations.softmax.Softmax")
def softmax_layer(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Softmax over the last axis of a vector."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    if layer.axis not in (-1, len(x.shape)):
        context.report(layer.name, f"axis={layer.axis} is not supported", "use axis=-1")
    return softmax(context, layer.name, x)


# Normalisation ---------------------------------------------------------------------------------


@lowers("normalization.batch_normalization.BatchNormalization")
def batch_normalization(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Statistics over the samples of the batch (without padding), moving averages for inference."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    axis = layer.axis if isinstance(layer.axis, int) else tuple(layer.axis)
    if len(x.shape) != 1 or axis not in (-1, 1):
        context.report(
            layer.name,
            f"BatchNormalization of shape {(None, *x.shape)} along axis {axis} is not supported",
            "normalise vectors along axis=-1: put a Flatten before it",
        )
        return x
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
    row = (1, x.features)
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
    return Value(node, x.shape)


@lowers("normalization.layer_normalization.LayerNormalization")
def layer_normalization(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Each sample normalised by its own mean and variance."""
    check_layer_options(context, layer, arguments)
    (x,) = inputs
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if len(x.shape) != 1 or axes not in ([-1], [1]):
        context.report(
            layer.name,
            f"LayerNormalization of shape {(None, *x.shape)} along axis {axes} is not supported",
            "normalise vectors along axis=-1: put a Flatten before it",
        )
        return x
    if getattr(layer, "rms_scaling", False):
        context.report(layer.name, "rms_scaling=True is not supported", "use rms_scaling=False")
    row = (1, x.features)
    node = g.layer_norm(
        x.node,
        _parameter(context, layer, "gamma", row, layer.scale, 1.0),
        _parameter(context, layer, "beta", row, layer.center, 0.0),
        epsilon=float(layer.epsilon),
    )
    return Value(node, x.shape)


def _parameter(
    context: Context, layer: Any, name: str, row: tuple[int, int], present: bool, otherwise: float
) -> Node | float:
    if not present:
        return otherwise
    return context.state(getattr(layer, name), f"{layer.name}/{name}", row)


# Several inputs --------------------------------------------------------------------------------


def _merge(
    context: Context,
    layer: Any,
    inputs: tuple[Value, ...],
    arguments: Mapping,
    combine: Callable[[Node, Node], Node],
) -> Value:
    check_layer_options(context, layer, arguments)
    shapes = {value.shape for value in inputs}
    # A single number per sample broadcasts over a vector; other broadcasting is not flat.
    vectors = {shape for shape in shapes if prod(shape) > 1}
    if len(vectors) > 1 or any(len(s) != len(inputs[0].shape) for s in shapes):
        context.report(
            layer.name,
            f"inputs of shapes {sorted((None, *s) for s in shapes)} are not supported",
            "give inputs of one shape",
        )
        return inputs[0]
    shape = next(iter(vectors), inputs[0].shape)
    node = inputs[0].node
    for value in inputs[1:]:
        node = combine(node, value.node)
    return Value(node, shape)


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
    return Value(g.mul(total.node, 1.0 / len(inputs)), total.shape)


@lowers("merging.concatenate.Concatenate")
def concatenate(
    context: Context, layer: Any, inputs: tuple[Value, ...], arguments: Mapping
) -> Value:
    """Vectors side by side; of larger tensors the first axis after the batch."""
    check_layer_options(context, layer, arguments)
    rank = len(inputs[0].shape) + 1
    axis = layer.axis % rank
    # Row-major tensors lie side by side when all axes before the concatenated one have size 1.
    if any(prod(value.shape[: axis - 1]) != 1 for value in inputs):
        context.report(
            layer.name,
            f"Concatenate of shape {(None, *inputs[0].shape)} along axis {layer.axis} "
            "is not supported",
            "put a Flatten before it: Concatenate works on vectors",
        )
        return context.placeholder(layer.name, inputs[0].shape)
    shape = list(inputs[0].shape)
    shape[axis - 1] = sum(value.shape[axis - 1] for value in inputs)
    return Value(g.concat(*(value.node for value in inputs)), tuple(shape))
