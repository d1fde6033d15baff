"""From a Keras model object to `Lowered`, or to one error with the whole list of what is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import tree

from fpgrad.errors import ModelNotCompiledError, UnsupportedModelError
from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.frontend.keras.losses import (
    SUPPORTED,
    loss_kind,
    lower_loss,
    lower_regularizer,
    target_of,
)
from fpgrad.frontend.keras.maps import to_vector
from fpgrad.frontend.keras.metrics import lower_metric
from fpgrad.frontend.keras.model import input_names, lower_model
from fpgrad.frontend.keras.optimizers import lower_optimizer
from fpgrad.frontend.lowered import (
    HostMetric,
    InputBinding,
    Lowered,
    MetricBinding,
    Regularizer,
    TargetBinding,
    TargetKind,
    Training,
)
from fpgrad.graph import Function, Node, topological
from fpgrad.graph import builder as g

_OVERRIDES = ("train_step", "test_step", "compute_loss", "compute_metrics")


def lower(model: Any, batch_size: int, *, training: bool = True) -> Lowered:
    """Lowers a built Keras model for batches of ``batch_size`` samples.

    Args:
        model: a Sequential or functional model whose input shapes are known.
        batch_size: samples in a batch, 1 or more.
        training: whether loss, metrics and optimizer are lowered too; False for a model that is
            only to predict.

    Raises:
        ModelNotCompiledError: if ``training`` and the model was not compiled with a loss and an
            optimizer.
        UnsupportedModelError: with every layer, option, loss, metric and optimizer argument that
            cannot be compiled.
    """
    if training:
        _check_compiled(model)
    context = Context(batch_size)
    inputs, bindings = _inputs(context, model)
    outputs = lower_model(context, model, inputs) if inputs else []
    if len(outputs) > 1:
        names = [tensor.name for tensor in tree.flatten(model.outputs)]
        context.report(
            model.name,
            f"{len(outputs)} outputs ({', '.join(names)}) are not supported",
            "train one output, or concatenate them",
        )
    described = None
    if training:
        _check_overrides(context, model)
        described = _training(context, model, outputs[0] if outputs else None)
    if context.problems:
        raise UnsupportedModelError(context.problems, f"model {model.name!r}")
    output = _as_rows(outputs[0])
    return Lowered(
        model_name=model.name,
        batch_size=batch_size,
        forward=_forward(context, inputs, output.node),
        inputs=bindings,
        output_shape=output.shape,
        variables=_in_keras_order(context, model),
        training=described,
        output_order=output.order,
    )


def _as_rows(output: Value) -> Value:
    """The model's output with one row a sample.

    A sigmoid stays the last op, because losses look for it: they work on what it is taken of.
    """
    if output.is_map and output.node.op == "sigmoid":
        logits = to_vector(output.like(output.node.inputs[0]))
        return logits.like(g.sigmoid(logits.node, output.node.name))
    return to_vector(output)


def _check_compiled(model: Any) -> None:
    if not getattr(model, "compiled", False):
        raise ModelNotCompiledError(
            f"model {model.name!r} must be compiled before it is trained: call "
            "model.compile(optimizer=..., loss=...)"
        )
    if model._compile_loss is None:
        raise ModelNotCompiledError(
            f"model {model.name!r} must be compiled with a loss: call "
            "model.compile(optimizer=..., loss=...)"
        )
    if model.optimizer is None:
        raise ModelNotCompiledError(
            f"model {model.name!r} must be compiled with an optimizer: call "
            "model.compile(optimizer=..., loss=...)"
        )


def _check_overrides(context: Context, model: Any) -> None:
    for name in _OVERRIDES:
        method = getattr(type(model), name)
        if not method.__module__.startswith("keras.src."):
            context.report(
                model.name,
                f"its own {name} (of {type(model).__qualname__}) is not supported",
                "give losses and metrics to compile() instead",
            )


def _inputs(context: Context, model: Any) -> tuple[list[Value], tuple[InputBinding, ...]]:
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        context.report(
            model.name,
            "the shape of its input is not known",
            "begin it with keras.layers.Input(shape), or call it on data once; "
            "models with a call method of their own are not supported",
        )
        return [], ()
    channels_first = _has_channels_first(model)
    values: list[Value] = []
    bindings: list[InputBinding] = []
    for name, tensor in zip(input_names(model), tree.flatten(model.inputs), strict=True):
        shape = tuple(tensor.shape[1:])
        if None in shape:
            context.report(
                name,
                f"input shape {tensor.shape} is not supported",
                "give every size after the batch a number",
            )
        sizes = tuple(size or 1 for size in shape)
        value = context.placeholder(name, sizes)
        node = g.batch_input(name, value.node.shape, octets=str(tensor.dtype) == "uint8")
        grid = Grid.of(sizes, True) if channels_first and len(sizes) in (2, 3) else None
        values.append(Value(node, sizes, grid))
        bindings.append(InputBinding(name, sizes, values[-1].order))
    return values, tuple(bindings)


def _has_channels_first(model: Any) -> bool:
    """Whether a layer reads images channel by channel, in what order the inputs then come."""
    return any(
        getattr(layer, "data_format", None) == "channels_first" for layer in model._flatten_layers()
    )


def _forward(context: Context, inputs: Sequence[Value], output: Node) -> Function:
    used = set(topological([output]))
    states = tuple(state for state in context.states.values() if state in used)
    return Function(
        "forward",
        inputs=tuple(value.node for value in inputs),
        states=states,
        outputs=(("predictions", output),),
    )


def _in_keras_order(context: Context, model: Any) -> tuple:
    """Bindings in the order of ``model.weights``; weights that no output depends on have none."""
    return tuple(
        context.variables[id(variable)]
        for variable in model.weights
        if id(variable) in context.variables
    )


# Training --------------------------------------------------------------------------------------


def _training(context: Context, model: Any, output: Value | None) -> Training | None:
    output_shape = None if output is None else output.shape
    parameters = {b.state: b.variable for b in context.variables.values() if b.trainable}
    if output_shape is not None and not context.problems and not parameters:
        context.report(model.name, "has no trainable weights", "set trainable=True on a layer")
    regularizers = _regularizers(context)
    optimizer, problems = lower_optimizer(model.optimizer, parameters)
    context.problems.extend(problems)
    kind = _user_loss_kind(context, model)
    if kind is None or output_shape is None:
        return None
    target = target_of(kind, output_shape, None if output is None else output.order)
    if context.problems:
        # Keras can build loss and metrics only for a model that it could run.
        return None
    _build(model, target)
    ((_, loss_object, weight, _),) = model._compile_loss._flat_losses
    loss, normaliser, problems = lower_loss(loss_object, output_shape)
    context.problems.extend(problems)
    if weight not in (None, 1, 1.0):
        context.report(
            "compile",
            f"loss_weights={weight} is not supported",
            "scale the learning rate or the sample weights",
        )
    metrics, host_metrics = _metrics(model, kind, output_shape)
    if loss is None or optimizer is None:
        return None
    return Training(
        loss=loss,
        normaliser=normaliser,
        target=target,
        metrics=metrics,
        host_metrics=host_metrics,
        regularizers=regularizers,
        optimizer=optimizer,
    )


def _user_loss_kind(context: Context, model: Any) -> str | None:
    """The kind of the compiled loss, before Keras has resolved it."""
    given = [loss for loss in tree.flatten(model._compile_loss._user_loss) if loss is not None]
    if len(given) != 1:
        context.report("compile", f"{len(given)} losses are not supported", "give one loss")
        return None
    (loss,) = given
    remedy = f"use one of {', '.join(SUPPORTED)}"
    if isinstance(loss, str):
        if loss.lower() in ("crossentropy", "ce"):
            context.report(
                f"loss {loss}", "depends on the shape of the labels", f"say which: {remedy}"
            )
            return None
        loss = keras.losses.get(loss)
    kind = loss_kind(loss)
    if kind is None:
        name = getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__)
        context.report(f"loss {name}", "is not supported", remedy)
    return kind


def _build(model: Any, target: TargetBinding) -> None:
    """Lets Keras resolve loss and metrics, as its own ``fit`` does with the first batch."""
    x = tree.map_structure(
        lambda tensor: keras.KerasTensor((1, *tensor.shape[1:]), tensor.dtype),
        model.inputs if len(tree.flatten(model.inputs)) > 1 else tree.flatten(model.inputs)[0],
    )
    dtype = "int32" if target.kind is TargetKind.CLASS_INDEX else "float32"
    y = keras.KerasTensor((1, *target.shape), dtype)
    model._symbolic_build(data_batch=(x, y, None))
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _metrics(
    model: Any, kind: str, output_shape: tuple[int, ...]
) -> tuple[tuple[MetricBinding, ...], tuple[HostMetric, ...]]:
    on_device: list[MetricBinding] = []
    on_host: list[HostMetric] = []
    compiled = model._compile_metrics
    groups = (
        [(compiled._flat_metrics, False), (compiled._flat_weighted_metrics, True)]
        if compiled is not None
        else []
    )
    for lists, weighted in groups:
        for metric in (m for group in lists if group is not None for m in group.metrics):
            spec = lower_metric(metric, kind, output_shape)
            if spec is None:
                on_host.append(HostMetric(metric, weighted))
            else:
                name = _unused(metric.name, {binding.name for binding in on_device})
                on_device.append(MetricBinding(name, metric, spec, weighted))
    return tuple(on_device), tuple(on_host)


def _unused(name: str, taken: set[str]) -> str:
    """``name``, numbered if the user gave it to several metrics, or if it means something else."""
    taken = taken | {"loss", "regularisation", "outputs"}
    serial, result = 2, name
    while result in taken:
        serial, result = serial + 1, f"{name}_{serial}"
    return result


def _regularizers(context: Context) -> tuple[Regularizer, ...]:
    found: list[Regularizer] = []
    for binding in context.variables.values():
        regularizer = getattr(binding.variable, "regularizer", None)
        if regularizer is None or not binding.trainable:
            continue
        factors = lower_regularizer(regularizer)
        if factors is None:
            context.report(
                binding.state,
                f"regularizer {type(regularizer).__name__} is not supported",
                "use L1, L2 or L1L2",
            )
        elif any(factors):
            found.append(Regularizer(binding.state, *factors))
    return tuple(found)
