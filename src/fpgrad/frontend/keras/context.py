"""What every handler works with: values with their user's shape, and the place to report problems.

A handler never raises for something unsupported. It reports it and returns a value of the right
shape, so that one run over the model finds everything there is to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from fpgrad.errors import Problem
from fpgrad.frontend.lowered import VariableBinding
from fpgrad.frontend.weights import ChannelsFirst, KernelLayout
from fpgrad.graph import Node
from fpgrad.graph import builder as g

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Grid:
    """How numbers lie in a feature map: ``height`` is 1 for a series.

    ``channels_first`` says that the user's order of the same numbers is channel by channel.
    """

    height: int
    width: int
    channels: int
    channels_first: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], channels_first: bool) -> Grid:
        """The grid of a sample of rank 2 (a series) or 3 (an image)."""
        channels = shape[0] if channels_first else shape[-1]
        sizes = shape[1:] if channels_first else shape[:-1]
        height, width = (1, *sizes)[-2:]
        return cls(height, width, channels, channels_first)

    @property
    def positions(self) -> int:
        """Height times width."""
        return self.height * self.width

    @property
    def order(self) -> ChannelsFirst | None:
        """The user's order of numbers, None where it is the graph's too."""
        if not self.channels_first or self.positions == 1 or self.channels == 1:
            return None
        return ChannelsFirst(self.channels, self.positions)

    def shape(self, rank: int) -> tuple[int, ...]:
        """One sample's shape as the user has it, of ``rank`` 2 or 3."""
        sizes = (self.height, self.width)[3 - rank :]
        return (self.channels, *sizes) if self.channels_first else (*sizes, self.channels)


@dataclass(frozen=True)
class Value:
    """A tensor of the user's model. ``shape`` is one sample's.

    Without ``grid`` the node is (N, F), row-major in F. With it the node is the map, (positions*N,
    channels), or its numbers position by position, (N, F). The shape is free of the grid: Flatten
    and Reshape change no more than it.
    """

    node: Node
    shape: tuple[int, ...]
    grid: Grid | None = None

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return prod(self.shape)

    @property
    def is_map(self) -> bool:
        """Whether the node's rows are positions of samples, and not samples."""
        return self.grid is not None and self.node.shape[1] != self.features

    @property
    def order(self) -> ChannelsFirst | None:
        """The user's order of a sample's numbers, None for the graph's own."""
        return None if self.grid is None else self.grid.order

    def like(self, node: Node) -> Value:
        """The value of ``node``, computed from this one number by number."""
        return self if node is self.node else replace(self, node=node)


@dataclass
class Context:
    """One lowering under way: the states made so far, and the problems found."""

    batch_size: int
    problems: list[Problem] = field(default_factory=list)
    variables: dict[int, VariableBinding] = field(default_factory=dict)
    states: dict[int, Node] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    calls: dict[int, int] = field(default_factory=dict)

    def report(self, where: str, what: str, remedy: str = "") -> None:
        """Notes one unsupported thing at the user's ``where``, once."""
        problem = Problem("/".join((*self.path, where)), what, remedy)
        if problem not in self.problems:
            self.problems.append(problem)

    def qualified(self, name: str) -> str:
        """The name of a layer inside the models that hold it: "encoder/dense_1"."""
        return "/".join((*self.path, name))

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Layers lowered inside the block belong to the nested model ``name``."""
        self.path = (*self.path, name)
        try:
            yield
        finally:
            self.path = self.path[:-1]

    def state(
        self,
        variable: Any,
        name: str,
        layout: KernelLayout,
        *,
        moving: bool = False,
    ) -> Node:
        """Returns the state that holds ``variable``; a layer used twice shares its states.

        Args:
            variable: the Keras variable.
            name: its name in the layer, such as "dense/kernel".
            layout: how it lies in the graph.
            moving: whether it is a moving statistic and not a parameter.
        """
        key = id(variable)
        if key not in self.states:
            state = self.qualified(name)
            taken = {binding.state for binding in self.variables.values()}
            serial = 2
            while state in taken:
                state = f"{self.qualified(name)}~{serial}"
                serial += 1
            trainable = bool(variable.trainable) and not moving
            role = "moving" if moving else "parameter"
            self.states[key] = g.state(
                state, layout.state, trainable=trainable, role=role, blocks=layout.taps
            )
            self.variables[key] = VariableBinding(state, variable, layout, trainable)
        elif self.variables[key].layout != layout:
            self.report(
                name,
                "is used for maps of two kinds, which must store it in two ways",
                "use one layer for each place",
            )
        return self.states[key]

    def placeholder(self, name: str, shape: tuple[int, ...]) -> Value:
        """A value that stands for the output of something that was reported."""
        node = g.batch_input(f"unsupported:{name}", (self.batch_size, max(prod(shape), 1)))
        return Value(node, shape)


Handler = Callable[[Context, Any, tuple[Value, ...], Mapping[str, Any]], Value]
"""Lowers one call of a layer: (context, layer, its input values, call arguments) to its output."""

ActivationHandler = Callable[[Value, Mapping[str, Any]], Value]


def class_key(thing: Any) -> str:
    """The qualified name of an object's class, by which handlers are found."""
    cls = type(thing)
    return f"{cls.__module__}.{cls.__qualname__}"


def function_key(function: Any) -> str:
    """The qualified name of a function, by which activations, losses and metrics are found."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
