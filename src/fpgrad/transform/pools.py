"""Passes about pooling, on the forward function."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fpgrad.graph import Function, Node
from fpgrad.graph import builder as g
from fpgrad.transform.rewrite import rewrite


@dataclass(frozen=True)
class MaxPoolBeforeRelu:
    """The maximum over windows of relu(x) becomes relu of the maximum of x, on fewer numbers.

    It runs before differentiation, so that backward, too, relu's gate acts on the pooled map. Equal
    in values, for relu is monotone and relu(0) = 0 is the maximum of nothing. Equal in gradients:
    where the maximum is positive, relu(x) and x equal it at the same positions; where it is not,
    both forms give zero. A relu with other users is left, for it has to be computed anyway.
    """

    name: str = field(default="max-pool-before-relu", init=False)
    stages: tuple[str, str] = field(default=("forward", "forward"), init=False)

    def run(self, function: Function) -> Function:
        """The function with those pairs exchanged."""
        uses = Counter(x for node in function.nodes() for x in node.inputs)
        uses.update(function.roots)

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            if node.op != "pool" or node.attrs["kind"] != "max":
                return None
            if operands[0].op != "relu" or uses[node.inputs[0]] > 1:
                return None
            pooled = g.pool(operands[0].inputs[0], node.attrs["windows"], "max")
            return g.relu(pooled, name=operands[0].name)

        return rewrite(function, rule)
