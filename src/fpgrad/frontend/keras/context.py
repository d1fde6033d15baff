"""What every handler works with: values with their user's shape, and the place to report problems.

A handler never raises for something unsupported. It reports it and returns a value of the right
shape, so that one run over the model finds everything there is to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from fpgrad.errors import Problem
from fpgrad.frontend.lowered import VariableBinding
from fpgrad.graph import Node
from fpgrad.graph import builder as g

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Value:
    """A tensor of the user's model: ``node`` is (N, F), ``shape`` one sample's, row-major in F."""

    node: Node
    shape: tuple[int, ...]

    @property
    def features(self) -> int:
        """Numbers in one sample."""
        return prod(self.shape)


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
        self, variable: Any, name: str, shape: tuple[int, int], *, moving: bool = False
    ) -> Node:
        """Returns the state that holds ``variable``; a layer used twice shares its states.

        Args:
            variable: the Keras variable.
            name: its name in the layer, such as "dense/kernel".
            shape: (rows, cols) in the graph.
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
            self.states[key] = g.state(state, shape, trainable=trainable, role=role)
            self.variables[key] = VariableBinding(state, variable, shape, trainable)
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
