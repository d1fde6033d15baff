"""Passes about the matrix unit: what it computes and in which format its operands come."""

from __future__ import annotations

from dataclasses import dataclass, field

from fpgrad.graph import Function, Node
from fpgrad.graph import builder as g
from fpgrad.transform.gradients import fill
from fpgrad.transform.rewrite import rewrite


@dataclass(frozen=True)
class RowSumsOnArray:
    """Sums over rows of a tensor that feeds a product become a product with a row of ones.

    Such is the gradient of a bias: its operand is in tiles already, for the gradient of the kernel,
    so the sum costs the array one row of tiles and the vector unit nothing.
    """

    name: str = field(default="row-sums-on-array", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function with those sums replaced."""
        multiplied = {x for node in function.nodes() if node.op == "matmul" for x in node.inputs}
        ones: dict[int, Node] = {}

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            if node.op != "reduce_sum" or node.attrs["axis"] != 0:
                return None
            if node.inputs[0] not in multiplied:
                return None
            rows = operands[0].shape[0]
            if rows not in ones:
                ones[rows] = fill(1.0, (1, rows))
            return g.matmul(ones[rows], operands[0])

        return rewrite(function, rule)


@dataclass(frozen=True)
class QuantiseOperands:
    """Wraps each operand of a product in a quantise node, one for each tensor.

    Tiles are square and share an exponent, so a tensor and its transpose are the same bits: every
    product that reads the tensor, transposed or not, shares the node.
    """

    name: str = field(default="quantise-operands", init=False)
    stages: tuple[str, str] = field(default=("machine", "quantised"), init=False)

    def run(self, function: Function) -> Function:
        """The function in stage `quantised`."""
        quantised: dict[Node, Node] = {}

        def wrap(x: Node) -> Node:
            if x not in quantised:
                quantised[x] = g.quantise(x, name=x.name)
            return quantised[x]

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            if node.op != "matmul":
                return None
            return Node(node.op, tuple(map(wrap, operands)), node.attrs, node.shape, node.name)

        return rewrite(function, rule)
