"""Which part of an expression one vector pass computes: ``f(alu(±(a*b), ±c)) * d`` read off the graph.

:func:`candidates` yields every way to fold single-use operands of a node into its pass, the largest first; the
selector takes the first that the machine can do (two memory streams, two immediates, one accumulator stream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fpgrad.codegen.steps import WAYS
from fpgrad.formats import Function
from fpgrad.graph import Node
from fpgrad.isa.instructions import Alu

FUNCTIONS = {
    "relu": Function.RELU,
    "exp2": Function.EXP2,
    "log2": Function.LOG2,
    "reciprocal": Function.RECIPROCAL,
    "rsqrt": Function.RSQRT,
    "tanh": Function.TANH,
    "sigmoid": Function.SIGMOID,
    "phi": Function.PHI,
}
ALUS = {
    "add": Alu.ADD,
    "sub": Alu.ADD,
    "max": Alu.MAX,
    "min": Alu.MIN,
    "gt": Alu.GT,
    "ge": Alu.GE,
    "eq": Alu.EQ,
    "gate": Alu.GATE,
}
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min")
#: What a pass can take as it comes.
STREAMED = ("matmul", "conv", "uniform")
COMMUTATIVE = {"add", "max", "min", "eq"}


@dataclass(frozen=True)
class Match:
    """A pass for one node. ``None`` operands are absent: b and d mean one, c means zero."""

    a: Node
    b: Node | None = None
    c: Node | None = None
    d: Node | None = None
    alu: Alu = Alu.PASS
    function: Function = Function.NONE
    negate_product: bool = False
    negate_c: bool = False
    absorbed: tuple[Node, ...] = ()

    @property
    def leaves(self) -> tuple[Node, ...]:
        """The operands that are present."""
        return tuple(n for n in (self.a, self.b, self.c, self.d) if n is not None)


def _is_minus_one(node: Node) -> bool:
    return node.op == "const" and node.shape == (1, 1) and float(node.value[0, 0]) == -1.0


def products(node: Node) -> Iterator[Match]:
    """``node``, a mul, as a product."""
    x, y = node.inputs
    if _is_minus_one(y):
        yield Match(x, negate_product=True)
    elif _is_minus_one(x):
        yield Match(y, negate_product=True)
    yield Match(x, y)


def _alu(node: Node, single: Callable[[Node], bool]) -> Iterator[Match]:
    """``node``, an alu op, with a product folded into its first operand where there is one."""
    x, y = node.inputs
    alu = ALUS[node.op]
    subtract = node.op == "sub"
    if x.op == "mul" and single(x):
        for p in products(x):
            yield replace(p, c=y, alu=alu, negate_c=subtract, absorbed=(x,))
    if y.op == "mul" and single(y) and (node.op in COMMUTATIVE or subtract):
        for p in products(y):
            negative = p.negate_product != subtract
            yield replace(p, c=x, alu=alu, negate_product=negative, absorbed=(y,))
    yield Match(x, c=y, alu=alu, negate_c=subtract)


def _inner(node: Node, single: Callable[[Node], bool]) -> Iterator[Match]:
    """``node`` as an alu op or a product."""
    if node.op in ALUS:
        yield from _alu(node, single)
    elif node.op == "mul":
        yield from products(node)


def _functions(node: Node, single: Callable[[Node], bool]) -> Iterator[Match]:
    """``node`` as a function of something, or as what can stand inside a function."""
    if node.op in FUNCTIONS:
        (x,) = node.inputs
        if single(x):
            for inner in _inner(x, single):
                yield replace(inner, function=FUNCTIONS[node.op], absorbed=(*inner.absorbed, x))
        yield Match(x, function=FUNCTIONS[node.op])
    else:
        yield from _inner(node, single)


def candidates(node: Node, single: Callable[[Node], bool]) -> Iterator[Match]:
    """Ways to compute ``node`` in one pass, from the most folded to the least.

    Args:
        single: whether a node has one user, so that folding it saves a pass.
    """
    if node.op == "mul":
        for x, d in (node.inputs, node.inputs[::-1]):
            if single(x) and (x.op in FUNCTIONS or x.op in ALUS):
                for inner in _functions(x, single):
                    yield replace(inner, d=d, absorbed=(*inner.absorbed, x))
    yield from _functions(node, single)


def reduction(node: Node, single: Callable[[Node], bool]) -> Match:
    """A reduction's operands: a product is folded into a sum, so that a dot product is one pass."""
    (x,) = node.inputs
    long_enough = node.attrs["axis"] == 0 or x.shape[1] >= WAYS
    fits = all(y.shape == x.shape and y.op not in STREAMED for y in x.inputs)
    if node.op == "reduce_sum" and x.op == "mul" and single(x) and long_enough and fits:
        m = next(products(x))
        return Match(m.a, m.b, negate_product=m.negate_product, absorbed=(x,))
    return Match(x)
