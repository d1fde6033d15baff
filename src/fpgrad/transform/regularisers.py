"""Penalties on parameters: their value for the reported loss and their gradient."""

from __future__ import annotations

from dataclasses import dataclass

from fpgrad.graph import Node
from fpgrad.graph import builder as g


@dataclass(frozen=True)
class L1L2:
    """l1*sum|W| + l2*sum W², as Keras has it."""

    l1: float = 0.0
    l2: float = 0.0

    def value(self, parameter: Node) -> Node:
        """The penalty, (1, 1)."""
        terms: list[Node] = []
        if self.l2:
            terms.append(g.mul(_total(g.unary("square", parameter)), self.l2))
        if self.l1:
            terms.append(g.mul(_total(g.unary("abs", parameter)), self.l1))
        if not terms:
            return g.const(0.0)
        return terms[0] if len(terms) == 1 else g.add(terms[0], terms[1])

    def add_gradient(self, gradient: Node, parameter: Node) -> Node:
        """`gradient` plus that of the penalty."""
        if self.l2:
            gradient = g.add(g.mul(parameter, 2.0 * self.l2), gradient)
        if self.l1:
            gradient = g.add(g.mul(g.unary("sign", parameter), self.l1), gradient)
        return gradient


def _total(x: Node) -> Node:
    return g.reduce_sum(g.reduce_sum(x, axis=0), axis=1)
