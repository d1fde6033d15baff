"""Passes about the matrix unit: what it computes and in which format its operands come."""

from __future__ import annotations

from dataclasses import dataclass, field

from fpgrad.graph import OPS, Function, Node
from fpgrad.graph import builder as g
from fpgrad.transform.gradients import fill
from fpgrad.transform.rewrite import rewrite

LONGEST_ROW_OF_ONES = 64 * 16
"""Rows of the longest tensor that is summed on the array. The row of ones is a constant of the program
and has a tile for each 16 of them; 64 tiles are a small part of any machine's memory, while the
thousands that a large map would need are not, and its sum costs the vector unit little beside the
map's other passes."""


@dataclass(frozen=True)
class RowSumsOnArray:
    """Sums over rows of a tensor that feeds a product become a product with a row of ones.

    Such is the gradient of a bias: its operand is in tiles already, for the gradient of the kernel,
    so the sum costs the array one row of tiles and the vector unit nothing. Tensors of more rows
    than LONGEST_ROW_OF_ONES stay with the vector unit.
    """

    name: str = field(default="row-sums-on-array", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function with those sums replaced."""
        multiplied = {x for node in function.nodes() if _is_product(node) for x in node.inputs}
        ones: dict[int, Node] = {}

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            if node.op != "reduce_sum" or node.attrs["axis"] != 0:
                return None
            if node.inputs[0] not in multiplied:
                return None
            rows = operands[0].shape[0]
            # Kernels of several blocks are laid out otherwise than a row of ones.
            if rows > LONGEST_ROW_OF_ONES or operands[0].attrs.get("blocks", 1) > 1:
                return None
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
            if not _is_product(node):
                return None
            return Node(node.op, tuple(map(wrap, operands)), node.attrs, node.shape, node.name)

        return rewrite(function, rule)


def _is_product(node: Node) -> bool:
    return node.op in OPS and OPS[node.op].product
