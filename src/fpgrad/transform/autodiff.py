"""Reverse-mode differentiation over the table of gradient rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fpgrad.errors import GraphError
from fpgrad.graph import OPS, Node, Shape, describe, topological
from fpgrad.graph import builder as g
from fpgrad.transform.gradients import ACCEPTS_NARROW, GRADIENTS, fill, zeros


def gradients(seeds: Mapping[Node, Node], wrt: Iterable[Node]) -> dict[Node, Node]:
    """The gradients of sum over seeds of <seed cotangent, node> with respect to each of `wrt`.

    seeds: cotangent of each node to differentiate, of the node's shape. Returns one node of the
    same shape for each of `wrt`, a constant zero when nothing depends on it. Work is built only
    along paths that lead to `wrt`. GraphError names an op without a gradient rule.
    """
    targets = list(wrt)
    order = list(topological(seeds))
    relevant = set(targets)
    for node in order:
        if any(x in relevant for x in node.inputs):
            relevant.add(node)
    cotangents: dict[Node, Node] = {n: dy for n, dy in seeds.items() if n in relevant}
    for node in reversed(order):
        if node not in relevant or node not in cotangents or node.is_leaf:
            continue
        with g.naming(gradient_name(node.name)):
            for operand, piece in zip(node.inputs, _pull_back(node, cotangents[node]), strict=True):
                if piece is None or operand not in relevant:
                    continue
                previous = cotangents.get(operand)
                cotangents[operand] = piece if previous is None else g.add(previous, piece)
    result: dict[Node, Node] = {}
    for node in targets:
        with g.naming(gradient_name(node.name)):
            dy = cotangents.get(node)
            result[node] = zeros(node.shape) if dy is None else widen(dy, node.shape)
    return result


def gradient_name(name: str) -> str:
    """The name of the gradient of the tensor or layer `name`."""
    return name if name.endswith(":grad") else f"{name}:grad"


def widen(x: Node, shape: Shape) -> Node:
    """`x` repeated to `shape`."""
    if x.shape == shape:
        return x
    ones = (1 if x.shape[0] == shape[0] else shape[0], 1 if x.shape[1] == shape[1] else shape[1])
    return g.mul(x, fill(1.0, ones))


def _pull_back(node: Node, dy: Node) -> tuple[Node | None, ...]:
    rule = GRADIENTS.get(node.op)
    if rule is None:
        raise GraphError(f"{describe(node)} has no gradient rule")
    record = OPS[node.op]
    if not record.elementwise and node.op not in ACCEPTS_NARROW:
        dy = widen(dy, node.shape)
    pieces = rule(node, dy)
    if not record.elementwise:
        return pieces
    return tuple(
        None if piece is None else _sum_to(piece, node.shape, operand.shape)
        for piece, operand in zip(pieces, node.inputs, strict=True)
    )


def _sum_to(piece: Node, wide: Shape, narrow: Shape) -> Node:
    """Sums a cotangent, which broadcasts to `wide`, over the axes that the operand broadcast."""
    for axis in (0, 1):
        if narrow[axis] == wide[axis]:
            continue
        if piece.shape[axis] == wide[axis]:
            piece = g.reduce_sum(piece, axis=axis)
        else:
            piece = g.mul(piece, float(wide[axis]))
    return piece
