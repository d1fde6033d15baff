"""What a front end hands on: graphs, and how the user's objects map to their inputs and states.

The graphs say what is computed. The bindings say which of the user's arrays fills which graph
input, which of the user's variables lives in which graph state, and which of the user's metrics is
summed up in which state, so that the layers above can move data without knowing the framework's
layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fpgrad.frontend.weights import ChannelsFirst, KernelLayout, SampleLayout

if TYPE_CHECKING:
    from fpgrad.graph import Function


MAP_OPS = frozenset({"conv", "unfold", "pool", "flatten", "unflatten"})
"""Ops whose operand or result is a feature map, without which there is none."""


class TargetKind(Enum):
    """What one sample's target is."""

    CLASS_INDEX = "class index"
    """One integer in [0, classes), graph input of shape (N, 1)."""
    VALUES = "values"
    """As many numbers as the model has outputs, graph input of shape (N, K)."""


class Normaliser(Enum):
    """By what the sum of a batch's weighted losses is divided."""

    COUNT = "count"
    """The number of the batch's samples (Keras: "sum_over_batch_size")."""
    WEIGHT = "weight"
    """The sum of the batch's sample weights (Keras: "mean_with_sample_weight")."""
    ONE = "one"
    """Nothing: the losses are summed (Keras: "sum")."""


@dataclass(frozen=True)
class InputBinding:
    """One of the model's inputs: ``name`` is the graph input's, ``shape`` one sample's.

    ``order`` is that of a sample's numbers when the user has channels first.
    """

    name: str
    shape: tuple[int, ...]
    order: ChannelsFirst | None = None

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return self.layout.features

    @property
    def layout(self) -> SampleLayout:
        """How samples become rows."""
        return SampleLayout(self.shape, self.order)


@dataclass(frozen=True)
class TargetBinding:
    """The target of the loss.

    ``shape`` is one sample's target (without the class axis for class indices); ``bounds`` are the
    least and greatest values that have a meaning, or None. ``order`` is the model's output's.
    """

    kind: TargetKind
    shape: tuple[int, ...]
    classes: int = 0
    bounds: tuple[float, float] | None = None
    name: str = "y"
    order: ChannelsFirst | None = None

    @property
    def layout(self) -> SampleLayout:
        """How samples' targets become rows, those of values."""
        return SampleLayout(self.shape, self.order)


@dataclass(frozen=True)
class VariableBinding:
    """One of the user's variables and the graph state that holds it, laid out as ``layout`` says."""

    state: str
    variable: Any = field(repr=False)
    layout: KernelLayout
    trainable: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the state."""
        return self.layout.state


@dataclass(frozen=True)
class LossSpec:
    """A loss by Keras's name: "sparse_categorical_crossentropy", "categorical_crossentropy",
    "binary_crossentropy", "mean_squared_error", "mean_absolute_error" or "huber"."""

    kind: str
    from_logits: bool = False
    label_smoothing: float = 0.0
    delta: float = 1.0


@dataclass(frozen=True)
class MetricSpec:
    """A metric by Keras's name, one number a sample: an accuracy, or one of the losses."""

    kind: str
    threshold: float = 0.5
    from_logits: bool = False
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class MetricBinding:
    """A metric that the device sums up, and the user's object that reports its mean.

    ``name`` is unique in the model. If ``weighted``, samples count by their weights.
    """

    name: str
    metric: Any
    spec: MetricSpec
    weighted: bool = False


@dataclass(frozen=True)
class Regularizer:
    """The penalty ``l1 · Σ|w| + l2 · Σw²`` on the parameter held in ``state``."""

    state: str
    l1: float
    l2: float


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer by name with its arguments, as the user wrote them.

    ``kind`` is one of "sgd", "rmsprop", "adam", "adamw". The learning rate is not an argument: it
    is a number that the host gives with every step. ``no_decay`` names the parameter states that
    the user excluded from weight decay.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    no_decay: frozenset[str] = frozenset()


@dataclass(frozen=True)
class HostMetric:
    """A metric that the host computes from the model's outputs, by the user's own object."""

    metric: Any
    weighted: bool = False


@dataclass(frozen=True)
class Training:
    """What the model was compiled for: all that a training step needs besides the forward pass.

    ``normaliser`` says by what a batch's loss is divided, ``regularizers`` what is added to it.
    """

    loss: LossSpec
    normaliser: Normaliser
    target: TargetBinding
    metrics: tuple[MetricBinding, ...]
    host_metrics: tuple[HostMetric, ...]
    regularizers: tuple[Regularizer, ...]
    optimizer: OptimizerSpec


@dataclass(frozen=True)
class Lowered:
    """A user's model for one batch size.

    ``forward`` is the model as a graph of stage "forward" with one output, "predictions", of shape
    (N, K); ``output_shape`` is the shape of one sample's and ``output_order`` the order of its
    numbers. ``training`` is None if the model was lowered for inference only.
    """

    model_name: str
    batch_size: int
    forward: Function
    inputs: tuple[InputBinding, ...]
    output_shape: tuple[int, ...]
    variables: tuple[VariableBinding, ...]
    training: Training | None
    output_order: ChannelsFirst | None = None

    @property
    def output_layout(self) -> SampleLayout:
        """How rows of the output become samples."""
        return SampleLayout(self.output_shape, self.output_order)

    @cached_property
    def has_maps(self) -> bool:
        """Whether there are feature maps: then the batch must be a multiple of the tile side."""
        return any(node.op in MAP_OPS for node in self.forward.nodes())
