"""From a model's forward function to the functions of a session: train, evaluate, predict.

States have the same names in all three and stand for the same tensors in the device's memory:
parameters and moving statistics as the front end named them, "<parameter>:<slot>" for optimizer
slots, and the metric accumulators "loss_sum", "<metric>_sum" and "regularisation_sum".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fpgrad.errors import GraphError
from fpgrad.graph import Function, Node, describe, verify
from fpgrad.graph import builder as g
from fpgrad.transform.autodiff import gradient_name, gradients
from fpgrad.transform.losses import Loss
from fpgrad.transform.metrics import Metric
from fpgrad.transform.modes import InferenceMode, TrainingMode
from fpgrad.transform.optimizers import Optimizer
from fpgrad.transform.pipeline import FORWARD, run_pipeline
from fpgrad.transform.regularisers import L1L2
from fpgrad.transform.rewrite import prune_inputs
from fpgrad.transform.step_inputs import StepInputs, batch_rows, step_inputs

LOSS_SUM = "loss_sum"
REGULARISATION_SUM = "regularisation_sum"


@dataclass(frozen=True)
class LossTerm:
    """A loss on one output. output None: the only one. target: name of its input. weight: factor
    in the total loss. metric: None, or the state that accumulates this term alone, "<metric>_sum".
    """

    loss: Loss
    output: str | None = None
    target: str = "y"
    weight: float = 1.0
    metric: str | None = None


@dataclass(frozen=True)
class MetricTerm:
    """A metric on one output, accumulated in the state "<name>_sum".

    weighted: per-sample values count by sample_weight (Keras's weighted_metrics) instead of valid.
    """

    name: str
    metric: Metric
    output: str | None = None
    target: str = "y"
    weighted: bool = False


@dataclass
class _Step:
    """A step under construction."""

    forward: Function
    inputs: StepInputs
    targets: dict[str, Node] = field(default_factory=dict)
    states: list[Node] = field(default_factory=list)
    updates: list[tuple[Node, Node]] = field(default_factory=list)

    def prediction(self, output: str | None) -> Node:
        """The output a term refers to."""
        outputs = dict(self.forward.outputs)
        if output is None and len(outputs) == 1:
            return next(iter(outputs.values()))
        if output not in outputs:
            raise GraphError(
                f"output of a loss or metric must be one of {sorted(outputs)}, not {output!r}"
            )
        return outputs[output]

    def target(self, name: str, term: Loss | Metric, prediction: Node) -> Node:
        """The target input called `name`, shared by all terms that use it."""
        shape = term.target_shape(prediction.shape)
        known = self.targets.setdefault(name, g.batch_input(name, shape))
        if known.shape != shape:
            raise GraphError(
                f"target {name!r} is {known.shape} for one loss or metric"
                f" and {shape} for {type(term).__name__}"
            )
        return known

    def accumulate(self, name: str, value: Node) -> None:
        """Adds `value` to a metric state in every step."""
        state = g.state(name, value.shape, role="metric")
        self.states.append(state)
        self.updates.append((state, g.add(state, value, name=name)))

    def function(self, name: str, scalars: Sequence[Node] = ()) -> Function:
        """The finished step, in stage `training`."""
        extra = (*self.targets.values(), *self.inputs.nodes, *scalars)
        model_inputs = tuple(n for n in self.forward.inputs if n not in self.inputs.nodes)
        return verify(
            prune_inputs(
                Function(
                    name,
                    (*model_inputs, *extra),
                    (*self.forward.states, *self.states),
                    (),
                    (*self.forward.updates, *self.updates),
                )
            ),
            "training",
        )


def build_training(
    forward: Function,
    losses: Sequence[LossTerm] | Loss,
    optimizer: Optimizer,
    metrics: Sequence[MetricTerm] = (),
    regularisers: Mapping[str, L1L2] | None = None,
    trainable: Collection[str] | None = None,
    name: str = "train",
) -> Function:
    """One training step: gradient of the mean weighted loss, optimizer, accumulated metrics.

    forward: stage `forward`. regularisers: by parameter name; those of frozen parameters do not
    count, as in Keras. trainable: names of the states to train, by default those with the attribute.
    Returns stage `training`, for `lower`. Its inputs: the model's, the targets, those of
    `StepInputs` that it uses, and `optimizer.scalar_inputs()`.
    """
    inputs = step_inputs(batch_rows(forward))
    step = _Step(run_pipeline((*FORWARD, TrainingMode(inputs)), forward), inputs)
    parameters = _trainable(forward, trainable)
    regularisers = regularisers or {}
    seeds = _add_losses(step, _loss_terms(losses), differentiate=True)
    found = gradients(seeds, parameters)
    _add_regularisation(step, parameters, regularisers)
    _add_metrics(step, metrics)
    scalars = optimizer.scalar_inputs()
    for parameter in parameters:
        gradient = _renamed(found[parameter], gradient_name(parameter.name))
        if parameter.name in regularisers:
            with g.naming(gradient.name):
                gradient = regularisers[parameter.name].add_gradient(gradient, parameter)
        states = optimizer.states(parameter)
        value, slots = optimizer.update(parameter, gradient, states, scalars)
        step.updates.append((parameter, value))
        step.updates.extend((states[slot], slots[slot]) for slot in states)
        step.states.extend(states.values())
    return step.function(name, tuple(scalars.values()))


def build_evaluation(
    forward: Function,
    losses: Sequence[LossTerm] | Loss,
    metrics: Sequence[MetricTerm] = (),
    regularisers: Mapping[str, L1L2] | None = None,
    trainable: Collection[str] | None = None,
    name: str = "evaluate",
) -> Function:
    """One evaluation step: the forward pass at inference, loss and metrics accumulated.

    Arguments as in build_training; only the metric states change.
    """
    inputs = step_inputs(batch_rows(forward))
    step = _Step(run_pipeline((*FORWARD, InferenceMode()), forward), inputs)
    _add_losses(step, _loss_terms(losses), differentiate=False)
    _add_regularisation(step, _trainable(forward, trainable), regularisers or {})
    _add_metrics(step, metrics)
    return step.function(name)


def build_prediction(forward: Function, name: str = "predict") -> Function:
    """One prediction step: the forward pass at inference, the model's outputs."""
    return replace(run_pipeline((*FORWARD, InferenceMode()), forward), name=name)


def _loss_terms(losses: Sequence[LossTerm] | Loss) -> Sequence[LossTerm]:
    terms = losses if isinstance(losses, Sequence) else (LossTerm(losses),)
    if not terms:
        raise GraphError("a training or evaluation step needs at least one loss")
    return terms


def _trainable(forward: Function, names: Collection[str] | None) -> tuple[Node, ...]:
    if names is None:
        return tuple(s for s in forward.states if s.attrs["trainable"])
    known = {s.name: s for s in forward.states}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise GraphError(f"trainable must name states of {forward.name!r}, not {unknown}")
    return tuple(s for s in forward.states if s.name in names)


def _add_losses(step: _Step, terms: Sequence[LossTerm], differentiate: bool) -> dict[Node, Node]:
    """Accumulates the loss; returns the cotangent of each per-sample loss."""
    seeds: dict[Node, Node] = {}
    total: Node | None = None
    for term in terms:
        prediction = step.prediction(term.output)
        target = step.target(term.target, term.loss, prediction)
        label = "loss" if len(terms) == 1 else f"loss/{term.output}"
        with g.naming(label):
            value = term.loss.per_sample(prediction, target)
            if value.shape != (prediction.shape[0], 1):
                raise GraphError(f"loss per sample must be (N, 1), not {describe(value)}")
            if differentiate:
                seed = g.mul(step.inputs.sample_weight, step.inputs.inv_count)
                seed = g.mul(seed, term.weight)
                seeds[value] = g.add(seeds[value], seed) if value in seeds else seed
            weighted = g.mul(value, step.inputs.sample_weight)
            if term.metric is not None:
                step.accumulate(f"{term.metric}_sum", weighted)
            part = g.mul(weighted, term.weight)
            total = part if total is None else g.add(total, part)
    if total is not None:
        step.accumulate(LOSS_SUM, total)
    return seeds


def _add_regularisation(
    step: _Step, parameters: Sequence[Node], regularisers: Mapping[str, L1L2]
) -> None:
    """Accumulates the penalties × number of samples, so that the host divides all by the count."""
    known = {s.name for s in step.forward.states}
    unknown = sorted(set(regularisers) - known)
    if unknown:
        raise GraphError(f"regularisers must name states of {step.forward.name!r}, not {unknown}")
    penalties: list[Node] = []
    for parameter in parameters:
        if parameter.name in regularisers:
            with g.naming(f"{parameter.name}:regulariser"):
                penalties.append(regularisers[parameter.name].value(parameter))
    if not penalties:
        return
    with g.naming("regularisation"):
        total = penalties[0]
        for penalty in penalties[1:]:
            total = g.add(total, penalty)
        count = g.reduce_sum(step.inputs.valid, axis=0)
        step.accumulate(REGULARISATION_SUM, g.mul(total, count))


def _add_metrics(step: _Step, metrics: Sequence[MetricTerm]) -> None:
    for term in metrics:
        prediction = step.prediction(term.output)
        target = step.target(term.target, term.metric, prediction)
        weight = step.inputs.sample_weight if term.weighted else step.inputs.valid
        with g.naming(term.name):
            value = g.mul(term.metric.per_sample(prediction, target), weight)
        step.accumulate(f"{term.name}_sum", value)


def _renamed(node: Node, name: str) -> Node:
    if node.is_leaf:
        return node
    return Node(node.op, node.inputs, node.attrs, node.shape, name)
