"""Constant folding, algebraic identities, merging of equal nodes and removal of dead ones.

Every rule is exact in real arithmetic. Those that would change a rounding (regrouping products with
a constant) only ever reduce the number of roundings.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from fpgrad.graph import OPS, Function, Node, evaluate_node
from fpgrad.graph import builder as g
from fpgrad.transform.rewrite import prune_inputs, rewrite, with_inputs

FOLD_LIMIT = 4096
"""Largest constant, in elements, that folding makes: constants take memory in the program."""


@dataclass(frozen=True)
class Simplify:
    """One bottom-up sweep; each node sees operands that are simplified already."""

    name: str = field(default="simplify", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """A function of equal meaning with no two equal nodes."""
        known: dict[Hashable, Node] = {}

        def merged(node: Node) -> Node:
            return known.setdefault(_key(node), node)

        def rule(node: Node, operands: tuple[Node, ...]) -> Node:
            candidate = _canonical(with_inputs(node, operands))
            simple = _simplified(candidate)
            while simple is not candidate and not simple.is_leaf:
                simple = with_inputs(simple, tuple(merged(x) for x in simple.inputs))
                candidate = _canonical(simple)
                simple = _simplified(candidate)
            return merged(simple)

        return prune_inputs(rewrite(function, rule))


def _key(node: Node) -> Hashable:
    if node.op in ("input", "state"):
        return id(node)
    attrs: Hashable
    if node.op == "const":
        attrs = node.value.tobytes()
    else:
        attrs = tuple(sorted(node.attrs.items()))
    return node.op, tuple(id(x) for x in node.inputs), attrs, node.shape


def _canonical(node: Node) -> Node:
    """Constants as second operands of commutative ops; then scalars and rows after full tensors."""
    if node.op not in OPS or not OPS[node.op].commutative:
        return node
    a, b = node.inputs
    if (a.op == "const", -_size(a)) > (b.op == "const", -_size(b)):
        return with_inputs(node, (b, a))
    return node


def _size(node: Node) -> int:
    return node.shape[0] * node.shape[1]


def _scalar(node: Node) -> float | None:
    """The number of a (1, 1) constant."""
    return float(node.value[0, 0]) if node.op == "const" and node.shape == (1, 1) else None


def _simplified(node: Node) -> Node:
    """A simpler equal of `node`, or `node` itself; commutative ops have constants second."""
    if node.is_leaf:
        return node
    if all(x.op == "const" for x in node.inputs) and _size(node) <= FOLD_LIMIT:
        return g.const(evaluate_node(node, [x.value for x in node.inputs]), node.name)
    if node.op == "mul":
        return _product(node)
    if node.op in ("add", "sub"):
        return _sum(node)
    if node.op.startswith("reduce_"):
        return node.inputs[0] if node.inputs[0].shape == node.shape else node
    if node.op == "slice":
        return node.inputs[0] if node.inputs[0].shape == node.shape else node
    if node.op == "concat":
        return node.inputs[0] if len(node.inputs) == 1 else node
    return node


def _product(node: Node) -> Node:
    a, b = node.inputs
    factor = _scalar(b)
    if factor is None:
        return node
    if factor == 1.0:
        return a
    if a.op == "mul":
        inner = _scalar(a.inputs[1])
        if inner is not None:
            return g.mul(a.inputs[0], inner * factor, name=node.name)
    return node


def _sum(node: Node) -> Node:
    a, b = node.inputs
    if _scalar(b) == 0.0 and a.shape == node.shape:
        return a
    if _scalar(a) == 0.0 and b.shape == node.shape:
        # Only `sub` has its constant first: 0 - b.
        return g.mul(b, -1.0, name=node.name)
    negated_b, negated_a = _negated(b), _negated(a)
    if node.op == "add" and negated_b is not None:
        return g.sub(a, negated_b, name=node.name)
    if node.op == "add" and negated_a is not None:
        return g.sub(b, negated_a, name=node.name)
    if node.op == "sub" and negated_b is not None:
        return g.add(a, negated_b, name=node.name)
    return node


def _negated(node: Node) -> Node | None:
    """X when `node` is x * -1."""
    if node.op == "mul" and _scalar(node.inputs[1]) == -1.0:
        return node.inputs[0]
    return None
