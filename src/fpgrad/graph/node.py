"""The two data types of the graph: an immutable value (Node) and a named set of them (Function).

Everything above the machine program is written in these: the front ends produce them, the passes
rewrite them, code generation consumes them. They carry no behaviour beyond consistency, so that an
op's meaning stays in one place (`fpgrad.graph.ops`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fpgrad.graph.parts import Parts

Shape = tuple[int, int]

INPUT_KINDS = ("batch", "column", "scalar", "seed")
"""Kinds of input: (N, F) data, (N, 1) per-sample scalar, (1, 1) per-step scalar, (1, 1) seed."""

STATE_ROLES = ("parameter", "moving", "slot", "metric")
"""Roles of a state: model parameter, moving statistic, optimizer moment, metric accumulator."""

EMPTY_ATTRS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Node:
    """One rank-2 float tensor value. Compared and hashed by identity.

    op: key of `fpgrad.graph.ops.OPS`. inputs: operands in order. attrs: immutable mapping of the
    op's attributes. shape: (rows, cols). name: the user's layer or tensor this value belongs to.
    """

    op: str
    inputs: tuple[Node, ...]
    attrs: Mapping[str, Any]
    shape: Shape
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.attrs, MappingProxyType):
            object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def value(self) -> np.ndarray:
        """The read-only float64 array of a `const` node."""
        return self.attrs["value"]

    @property
    def is_leaf(self) -> bool:
        """Whether this is an input, a state or a constant."""
        return self.op in ("input", "state", "const")

    def __repr__(self) -> str:
        return f"<{self.op} {self.shape} {self.name!r}>"


@dataclass(frozen=True)
class Function:
    """One step of the machine: inputs and old states in, outputs and new states out.

    states: persisting tensors, declared in the order in which they are laid out. updates: the new
    value of each changed state at the end of the step; every read of a state sees its old value.
    parts: of a function that each of several cores computes for the whole batch, the states and
    seeds of which each core has a part of its own, by name; shapes are those of the parts.
    """

    name: str
    inputs: tuple[Node, ...] = ()
    states: tuple[Node, ...] = ()
    outputs: tuple[tuple[str, Node], ...] = ()
    updates: tuple[tuple[Node, Node], ...] = ()
    parts: Mapping[str, Parts] = field(default_factory=dict)

    @property
    def roots(self) -> tuple[Node, ...]:
        """Every node that must be computed: outputs, then new values of states."""
        return tuple(n for _, n in self.outputs) + tuple(n for _, n in self.updates)

    def nodes(self) -> tuple[Node, ...]:
        """All nodes in topological order, operands first; inputs and states lead."""
        return tuple(topological((*self.inputs, *self.states, *self.roots)))

    def input_named(self, name: str) -> Node:
        """The input called `name`; KeyError when there is none."""
        return _named(self.inputs, name)

    def state_named(self, name: str) -> Node:
        """The state called `name`; KeyError when there is none."""
        return _named(self.states, name)

    def output_named(self, name: str) -> Node:
        """The output called `name`; KeyError when there is none."""
        return dict(self.outputs)[name]


def _named(nodes: Iterable[Node], name: str) -> Node:
    for node in nodes:
        if node.name == name:
            return node
    raise KeyError(name)


def topological(roots: Iterable[Node]) -> Iterator[Node]:
    """Yields the roots and all they depend on, operands before users, each once.

    The order is that of a depth-first walk in operand order, so it depends on structure only.
    """
    done: set[Node] = set()
    for root in roots:
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if node in done:
                continue
            if expanded:
                done.add(node)
                yield node
                continue
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.inputs))
