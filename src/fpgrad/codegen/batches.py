"""Micro-batches: how a step that is taken apart by samples looks to the rest of code generation.

`take_samples` and `join_samples` move nothing. A micro-batch of an input is an input that is loaded by itself, one of a
metric's state a state that lies inside the whole one, and one of an output is stored behind the one before it. So they
become leaves, updates and outputs of their own, and passes know nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fpgrad.errors import GraphError
from fpgrad.graph import JOIN, TAKE, Function, Node, describe


@dataclass(frozen=True)
class Share:
    """Which samples of a batch a leaf, or what is stored, has: from ``first`` on, of ``samples``; of the tensor
    ``whole``."""

    whole: str
    first: int
    samples: int


#: The attribute of leaves that are a micro-batch of an input or a state.
SHARE = "share"


def share_of(node: Node) -> Share | None:
    """Which micro-batch a leaf is; None for a whole input or state."""
    return node.attrs.get(SHARE)


def named(name: str, first: int) -> str:
    """The name of a micro-batch of a tensor."""
    return f"{name}, samples from {first}"


def apart(function: Function) -> Function:
    """The function with a leaf for each micro-batch of an input or state, and an update for each of a state.

    Outputs are as before: see :func:`shares`. Functions that are not taken apart come back as they are.

    Raises:
        GraphError: micro-batches that do not cover an input or a state evenly.
    """
    nodes = function.nodes()
    if not any(node.op == TAKE for node in nodes):
        return function
    done: dict[Node, Node] = {}
    leaves: dict[Node, dict[int, Node]] = {}
    for node in nodes:
        if node.op == TAKE:
            done[node] = leaf(node, leaves)
        else:
            done[node] = rebuilt(node, done)
    for whole, parts in leaves.items():
        counts = {part.shape[0] for part in parts.values()}
        if len(counts) > 1 or sorted(parts) != list(range(0, whole.shape[0], min(counts))):
            raise GraphError(f"{describe(whole)} must be taken apart into equal micro-batches")
    updates: list[tuple[Node, Node]] = []
    for state, value in function.updates:
        if state not in leaves:
            updates.append((state, done[value]))
        elif value.op == JOIN and len(value.inputs) == len(leaves[state]):
            parts = sorted(leaves[state].items())
            updates += [(part, done[x]) for (_, part), x in zip(parts, value.inputs, strict=True)]
        else:
            raise GraphError(
                f"the new value of {describe(state)} must be joined from micro-batches"
            )
    return replace(
        function,
        inputs=tuple(x for node in function.inputs for x in ordered(leaves.get(node)) or [node]),
        outputs=tuple((name, done[x]) for name, x in function.outputs),
        updates=tuple(updates),
    )


def leaf(node: Node, leaves: dict[Node, dict[int, Node]]) -> Node:
    """The leaf that a micro-batch is."""
    (whole,) = node.inputs
    first: int = node.attrs["first"]
    known = leaves.setdefault(whole, {})
    if first not in known:
        share = Share(whole.name, first, whole.shape[0])
        attrs = {**whole.attrs, SHARE: share}
        known[first] = Node(whole.op, (), attrs, node.shape, named(whole.name, first))
    return known[first]


def rebuilt(node: Node, done: Mapping[Node, Node]) -> Node:
    """A node with the operands that were made of its own."""
    inputs = tuple(done[x] for x in node.inputs)
    return (
        node if inputs == node.inputs else Node(node.op, inputs, node.attrs, node.shape, node.name)
    )


def ordered(parts: Mapping[int, Node] | None) -> list[Node]:
    """Micro-batches in the order of samples."""
    return [part for _, part in sorted((parts or {}).items())]


def shares(name: str, node: Node) -> list[tuple[Share, Node]]:
    """What an output is put together from."""
    parts = node.inputs if node.op == JOIN else (node,)
    rows = node.shape[0]
    each = rows // len(parts)
    return [(Share(name, i * each, rows), part) for i, part in enumerate(parts)]


def turns(nodes: Iterable[Node]) -> dict[Node, int]:
    """In which micro-batch's turn a node is computed: where samples of several count, in the last one's; what no sample
    counts for, when it is used first.

    Args:
        nodes: of a function, operands first.
    """
    order = list(nodes)
    turn: dict[Node, int] = {}
    for node in order:
        share = share_of(node)
        known = [turn[x] for x in node.inputs if x in turn]
        if share is not None:
            turn[node] = share.first
        elif known:
            turn[node] = max(known)
    users: dict[Node, int] = {}
    for node in reversed(order):
        if node not in turn:
            turn[node] = users.get(node, 0)
        for x in node.inputs:
            users[x] = min(users.get(x, turn[node]), turn[node])
    return turn
