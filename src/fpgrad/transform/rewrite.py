"""Rebuilding a function bottom-up: the one traversal that every rewriting pass uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from fpgrad.graph import Function, Node, builder

Rule = Callable[[Node, tuple[Node, ...]], Node | None]
"""(node, its rewritten operands) -> its replacement, or None to keep the op."""


class Pass(Protocol):
    """A named rewrite between two stages; the pipeline verifies both ends.

    Implementations are frozen dataclasses whose fields are their options.
    """

    @property
    def name(self) -> str:
        """The name shown in dumps and errors."""
        ...

    @property
    def stages(self) -> tuple[str, str]:
        """Stage wanted, stage delivered."""
        ...

    def run(self, function: Function) -> Function:
        """The rewritten function, of equal meaning."""
        ...


def with_inputs(node: Node, inputs: tuple[Node, ...]) -> Node:
    """`node` itself when its operands are `inputs`, else a copy that has them."""
    same = len(inputs) == len(node.inputs) and all(
        a is b for a, b in zip(inputs, node.inputs, strict=True)
    )
    return node if same else Node(node.op, inputs, node.attrs, node.shape, node.name)


def rewrite(function: Function, rule: Rule) -> Function:
    """Applies `rule` to every node, operands first; new nodes take the name of the one replaced.

    Inputs and states are never replaced. What nothing uses any more is gone from the result.
    """
    done: dict[Node, Node] = {}
    for node in function.nodes():
        if node.op in ("input", "state"):
            done[node] = node
            continue
        inputs = tuple(done[x] for x in node.inputs)
        with builder.naming(node.name):
            replacement = rule(node, inputs)
        done[node] = with_inputs(node, inputs) if replacement is None else replacement
    return replace(
        function,
        outputs=tuple((name, done[node]) for name, node in function.outputs),
        updates=tuple((state, done[node]) for state, node in function.updates),
    )


def prune_inputs(function: Function) -> Function:
    """Drops inputs that nothing reads, except model data (kind "batch")."""
    used = set(replace(function, inputs=(), states=()).nodes())
    kept = tuple(n for n in function.inputs if n in used or n.attrs["kind"] == "batch")
    return replace(function, inputs=kept)
