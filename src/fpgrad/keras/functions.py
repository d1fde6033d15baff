"""From a lowered Keras model to the three functions of a session, through `fpgrad.transform`.

The front end says what the user wrote, in Keras's words. Here those words become losses, metrics
and optimizers of the training graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fpgrad.flow.recomputing import Recomputation
from fpgrad.flow.schedules import Schedule
from fpgrad.frontend.lowered import (
    HostMetric,
    LossSpec,
    Lowered,
    MetricSpec,
    Normaliser,
    OptimizerSpec,
    Training,
)
from fpgrad.graph import Function, Node, Shape
from fpgrad.isa.program import Program
from fpgrad.transform import (
    L1L2,
    MetricTerm,
    Optimizer,
    Recompute,
    build_evaluation,
    build_prediction,
    build_training,
    cost,
    lower,
    lower_split,
)
from fpgrad.transform import losses as loss_library
from fpgrad.transform import metrics as metric_library
from fpgrad.transform import optimizers as optimizer_library

__all__ = ["OUTPUTS_STATE", "Steps", "build_steps", "split_steps", "with_host_metrics", "work"]

_OUTPUTS = "outputs"

OUTPUTS_STATE = f"{_OUTPUTS}_sum"
"""The state in which a training step leaves the model's outputs for metrics on the host."""

_LARGE_EPSILON = 1e-6
"""Above it, Adam's epsilon is added outside the root, as Keras does, at the cost of more passes."""


@dataclass(frozen=True)
class Steps:
    """The functions of a session by name, and the optimizer whose scalars the host computes.

    The functions are of stage "quantised", what code generation takes. ``schedule`` says how they go through a batch,
    ``recomputation`` what they compute again, ``program`` is there if they have been compiled already.
    """

    functions: Mapping[str, Function]
    optimizer: Optimizer | None
    seeded: bool
    schedule: Schedule | None = None
    recomputation: Recomputation | None = None
    program: Program | None = None


def build_steps(
    lowered: Lowered, cores: int = 1, parts: int = 1, recompute: Recompute | None = None
) -> Steps:
    """Returns "predict" and, if the model was lowered for training, "train" and "evaluate".

    ``lowered`` is the model for the samples that one of the machine's cores has at a time, ``parts`` how many times that
    many it has in a step. ``recompute`` says what is computed again in the backward pass, nothing by default.
    """
    found = _functions(lowered)
    functions = {
        k: lower(f, cores=cores, parts=parts, recompute=recompute)
        for k, f in found.functions.items()
    }
    return replace(found, functions=functions)


def split_steps(lowered: Lowered, cores: int, side: int, *, by_rows: bool = True) -> Steps | None:
    """Returns the functions of ``lowered``, the model for the whole batch, with layers divided among cores.

    ``side`` is that of the machine's tiles, ``by_rows`` says whether maps may be divided by theirs. None: nothing is
    gained by dividing any layer.
    """
    found = _functions(lowered)
    functions = lower_split(found.functions, cores, side, by_rows=by_rows)
    if functions is None:
        return None
    kept = Recomputation((), "cores share the layers")
    return replace(found, functions=functions, recomputation=kept)


def work(steps: Steps, side: int, cores: int) -> float:
    """Returns roughly how many cycles the longest of the functions takes, for comparisons: those of a core, and of the
    port that brings the samples of all cores, a row a cycle."""
    function = steps.functions.get("train", steps.functions["predict"])
    inputs = [n for n in function.inputs if n.attrs["kind"] == "batch"]
    rows = sum(n.shape[0] * -(-n.shape[1] // side) for n in inputs)
    return cost(function, side) + cores * rows


def _functions(lowered: Lowered) -> Steps:
    """The functions of stage "training"."""
    predict = build_prediction(lowered.forward)
    training = lowered.training
    if training is None:
        return Steps({"predict": predict}, None, seeded=False)
    loss = _loss(training.loss)
    optimizer = _optimizer(training.optimizer)
    metrics = [
        MetricTerm(binding.name, _metric(binding.spec), weighted=binding.weighted)
        for binding in training.metrics
    ]
    regularisers = {r.state: L1L2(r.l1, r.l2) for r in training.regularizers}
    in_training = list(metrics)
    if training.host_metrics:
        in_training.append(MetricTerm(_OUTPUTS, _Outputs(loss)))
    train = build_training(lowered.forward, loss, optimizer, in_training, regularisers)
    evaluate = build_evaluation(lowered.forward, loss, metrics, regularisers)
    seeded = any(node.attrs["kind"] == "seed" for node in train.inputs)
    functions = {"train": train, "evaluate": evaluate, "predict": predict}
    return Steps(functions, optimizer, seeded=seeded)


def with_host_metrics(training: Training) -> Training:
    """Moves weighted metrics to the host where the device's weights are not the user's own."""
    if training.normaliser is Normaliser.COUNT:
        return training
    moved = tuple(HostMetric(b.metric, weighted=True) for b in training.metrics if b.weighted)
    return replace(
        training,
        metrics=tuple(b for b in training.metrics if not b.weighted),
        host_metrics=(*training.host_metrics, *moved),
    )


@dataclass(frozen=True)
class _Outputs:
    """Not a metric: leaves the outputs of a single step in a metric's state."""

    loss: loss_library.Loss

    def target_shape(self, prediction: Shape) -> Shape:
        """That of the loss, whose target it shares."""
        return self.loss.target_shape(prediction)

    def per_sample(self, prediction: Node, target: Node) -> Node:  # noqa: ARG002
        """The outputs themselves, (N, K)."""
        return prediction


def _loss(spec: LossSpec | MetricSpec) -> loss_library.Loss:
    match spec.kind:
        case "sparse_categorical_crossentropy":
            return loss_library.SparseCategoricalCrossentropy(spec.from_logits)
        case "categorical_crossentropy":
            return loss_library.CategoricalCrossentropy(spec.from_logits, spec.label_smoothing)
        case "binary_crossentropy":
            return loss_library.BinaryCrossentropy(spec.from_logits, spec.label_smoothing)
        case "mean_squared_error":
            return loss_library.MeanSquaredError()
        case "mean_absolute_error":
            return loss_library.MeanAbsoluteError()
        case "huber":
            assert isinstance(spec, LossSpec)
            return loss_library.Huber(spec.delta)
        case kind:
            raise AssertionError(kind)


def _metric(spec: MetricSpec) -> metric_library.Metric:
    match spec.kind:
        case "sparse_categorical_accuracy":
            return metric_library.SparseCategoricalAccuracy()
        case "categorical_accuracy":
            return metric_library.CategoricalAccuracy()
        case "binary_accuracy":
            return metric_library.BinaryAccuracy(spec.threshold)
        case _:
            return metric_library.LossMetric(_loss(spec))


def _optimizer(spec: OptimizerSpec) -> Optimizer:
    arguments: dict[str, Any] = dict(spec.arguments)
    arguments["undecayed"] = spec.no_decay
    match spec.kind:
        case "sgd":
            return optimizer_library.sgd(**arguments)
        case "rmsprop":
            return optimizer_library.rmsprop(**arguments)
        case "adam":
            inside = arguments["epsilon"] <= _LARGE_EPSILON
            return optimizer_library.adam(**arguments, epsilon_inside=inside)
        case kind:
            raise AssertionError(kind)
