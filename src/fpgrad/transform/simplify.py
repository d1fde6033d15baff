"""Constant folding, algebraic identities, merging of equal nodes and removal of dead ones.

Every rule is exact in real arithmetic. Those that would change a rounding (regrouping products with
a constant) only ever reduce the number of roundings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fpgrad.graph import OPS, Function, Node, evaluate_node
from fpgrad.graph import builder as g
from fpgrad.graph.ops import broadcast
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
        uses = Counter(x for node in function.nodes() for x in node.inputs)
        uses.update(function.roots)
        known: dict[Hashable, Node] = {}
        settled: set[Node] = set()
        # Results that several nodes read: what is regrouped out of them is computed all the same.
        shared: set[Node] = set()
        results: set[Node] = set()

        def merged(node: Node) -> Node:
            if node in settled:
                return node
            node = with_inputs(node, tuple(merged(x) for x in node.inputs))
            representative = known.setdefault(_key(node), node)
            settled.add(representative)
            return representative

        def rule(node: Node, operands: tuple[Node, ...]) -> Node:
            candidate = _canonical(with_inputs(node, operands))
            simple = _simplified(candidate, shared)
            while simple is not candidate:
                candidate = _canonical(merged(simple))
                simple = _simplified(candidate, shared)
            result = merged(simple)
            if uses[node] > 1 or result in results:
                shared.add(result)
            results.add(result)
            return result

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


def _simplified(node: Node, shared: AbstractSet[Node]) -> Node:
    """A simpler equal of `node`, or `node` itself; commutative ops have constants second."""
    if node.is_leaf:
        return node
    if all(x.op == "const" for x in node.inputs) and _size(node) <= FOLD_LIMIT:
        return g.const(evaluate_node(node, [x.value for x in node.inputs]), node.name)
    if node.op == "mul":
        return _product(node, shared)
    if node.op in ("add", "sub"):
        return _sum(node)
    if node.op.startswith("reduce_"):
        return node.inputs[0] if node.inputs[0].shape == node.shape else node
    if node.op in ("slice", "flatten", "unflatten"):
        # A map of one position is flat.
        return node.inputs[0] if node.inputs[0].shape == node.shape else node
    if node.op == "concat":
        return node.inputs[0] if len(node.inputs) == 1 else node
    if node.op == "pool":
        return node.inputs[0] if all(w.is_identity for w in node.attrs["windows"]) else node
    return node


def _product(node: Node, shared: AbstractSet[Node]) -> Node:
    """Constants meet and move to the smaller operand; small operands meet before large ones."""
    a, b = node.inputs
    factor = _scalar(b)
    if factor is not None:
        inner, inner_factor = _split(a, shared)
        if factor == 1.0 or inner is not a:
            return _scaled(inner, inner_factor * factor, node.name)
        return node
    if a.op == "mul" and a not in shared:
        large, small = a.inputs
        joined = broadcast((small.shape, b.shape))
        if _scalar(small) is None and joined[0] * joined[1] < _size(a) == _size(large):
            return g.mul(large, g.mul(small, b, name=node.name), name=node.name)
    (x, factor_a), (y, factor_b) = _split(a, shared), _split(b, shared)
    if x is a or (y is b and _size(x) == _size(b)):
        return node
    return g.mul(x, _scaled(y, factor_a * factor_b, node.name), name=node.name)


def _split(node: Node, shared: AbstractSet[Node]) -> tuple[Node, float]:
    """(x, c) when `node` is x * c and has one user, else (node, 1)."""
    if node.op == "mul" and node not in shared:
        factor = _scalar(node.inputs[1])
        if factor is not None:
            return node.inputs[0], factor
    return node, 1.0


def _scaled(x: Node, factor: float, name: str) -> Node:
    """Multiplies by a constant, unless it is 1."""
    return x if factor == 1.0 else g.mul(x, factor, name=name)


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
    """Gives x when `node` is x * -1."""
    x, factor = _split(node, frozenset())
    return x if factor == -1.0 else None
