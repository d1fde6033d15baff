"""Walks a Keras model, Sequential or functional, nested or not, and lowers its layers in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import tree
from keras.src.models.functional import Functional

from fpgrad.frontend.keras import convolutions, layers, merging, pooling, reshaping
from fpgrad.frontend.keras.context import Context, Value, class_key
from fpgrad.frontend.keras.registry import LAYERS
from fpgrad.graph import builder as g

HANDLERS = (convolutions, layers, merging, pooling, reshaping)
"""The modules that fill the table of handlers."""


def supported_layers() -> tuple[str, ...]:
    """Names of the layer classes that can be lowered."""
    return tuple(sorted(key.rpartition(".")[2] for key in LAYERS if ".layers." in key))


def input_names(model: Any) -> list[str]:
    """Names of the model's inputs, in the order in which ``fit`` takes a list of arrays."""
    return [tensor.name for tensor in tree.flatten(model.inputs)]


def lower_model(context: Context, model: Any, inputs: Sequence[Value]) -> list[Value]:
    """Returns the outputs of ``model`` called with ``inputs``."""
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        return [_lower_sequential(context, model, inputs)]
    if isinstance(model, Functional) and type(model).call is Functional.call:
        return _lower_functional(context, model, inputs)
    context.report(model.name, *_subclassed(model))
    return []


def _subclassed(model: Any) -> tuple[str, str]:
    return (
        f"a model with its own call method ({type(model).__qualname__}) is not supported",
        "build it as keras.Sequential or keras.Model(inputs, outputs)",
    )


def _lower_sequential(context: Context, model: Any, inputs: Sequence[Value]) -> Value:
    values = tuple(inputs)
    for layer in model.layers:
        values = tuple(_lower_call(context, layer, values, {}))
    return values[0]


def _lower_functional(context: Context, model: Any, inputs: Sequence[Value]) -> list[Value]:
    values: dict[int, Value] = {
        id(tensor): value for tensor, value in zip(tree.flatten(model.inputs), inputs, strict=True)
    }
    nodes_by_depth = model._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if node.is_input or not node.outputs:
                continue
            if any(id(tensor) not in values for tensor in node.input_tensors):
                continue
            operands = tuple(values[id(tensor)] for tensor in node.input_tensors)
            outputs = _lower_call(
                context, node.operation, operands, _call_arguments(node), node.outputs
            )
            for tensor, value in zip(node.outputs, outputs, strict=False):
                values[id(tensor)] = value
    return [
        values.get(id(tensor)) or context.placeholder(tensor.name, tuple(tensor.shape[1:]))
        for tensor in tree.flatten(model.outputs)
    ]


def _call_arguments(node: Any) -> dict[str, Any]:
    """Arguments of a layer's call that are no tensors of the model."""
    arguments: dict[str, Any] = {}
    is_tensor = keras.utils.is_keras_tensor
    for position, value in enumerate(node.arguments.args):
        if not all(is_tensor(leaf) for leaf in tree.flatten(value)):
            arguments[f"#{position}"] = value
    for name, value in node.arguments.kwargs.items():
        if not any(is_tensor(leaf) for leaf in tree.flatten(value)):
            arguments[name] = value
        elif name in ("mask", "attention_mask"):
            arguments[name] = "a tensor"
    return arguments


def _lower_call(
    context: Context,
    layer: Any,
    inputs: tuple[Value, ...],
    arguments: dict[str, Any],
    outputs: Sequence[Any] = (),
) -> Sequence[Value]:
    if isinstance(layer, keras.Model):
        rest = {name: value for name, value in arguments.items() if value is not None}
        if rest:
            context.report(
                layer.name, f"call arguments {rest} are not supported", "call it with inputs only"
            )
        with context.inside(layer.name):
            return lower_model(context, layer, inputs)
    handler = LAYERS.get(class_key(layer))
    name = getattr(layer, "name", type(layer).__name__)
    if handler is None:
        context.report(
            name,
            f"layer {type(layer).__name__} is not supported",
            f"supported are {', '.join(supported_layers())}",
        )
        return [
            context.placeholder(name, s) for s in _output_shapes(context, layer, inputs, outputs)
        ]
    with g.naming(context.qualified(name)):
        return [handler(context, layer, inputs, arguments)]


def _output_shapes(
    context: Context, layer: Any, inputs: tuple[Value, ...], outputs: Sequence[Any]
) -> list[tuple[int, ...]]:
    """Shapes of an unsupported layer's outputs, so that the walk can go on behind it."""
    if outputs:
        return [tuple(size or 1 for size in tensor.shape[1:]) for tensor in outputs]
    shapes = [(context.batch_size, *value.shape) for value in inputs]
    shape = layer.compute_output_shape(shapes[0] if len(shapes) == 1 else shapes)
    return [tuple(size or 1 for size in shape[1:])]
