"""From the step of a micro-batch to that of a batch: gradient accumulation.

A step is built for a micro-batch, in practice for one tile of samples. This pass makes the step of a batch of several:
what is computed of single samples, forward and backward, once for each of them; sums over samples, which gradients are,
added up; and the rest, such as the optimizer, once. So what a layer leaves for the backward pass need not be kept for
the whole batch at a time: code generation goes from one micro-batch to the next.

Sums are added in the order of the samples, ((s0 + s1) + s2) + ..., each addition rounded to the machine's numbers. What
is computed of single samples has the same bits as in the step of the whole batch, if the micro-batch is whole tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fpgrad.errors import GraphError
from fpgrad.graph import Function, Node, describe
from fpgrad.graph import builder as g
from fpgrad.transform.cores import Finder, found_in
from fpgrad.transform.rewrite import with_inputs
from fpgrad.transform.step_inputs import batch_rows


@dataclass(frozen=True)
class Accumulate:
    """Makes the step of a batch of several micro-batches from that of one.

    parts: how many. On several cores it comes after `SumOverCores`: each core adds up its own sums first.
    """

    parts: int
    name: str = field(default="accumulate", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The step of the batch; GraphError names what cannot be computed by micro-batches."""
        coupled = coupling(function)
        if coupled:
            listed = "\n  ".join(coupled)
            raise GraphError(
                f"function {function.name!r} cannot be computed by micro-batches:\n  {listed}"
            )
        if self.parts == 1:
            return function
        finder = found_in(function)
        return _Copies(function, finder, self.parts).function()


def coupling(function: Function) -> list[str]:
    """Why a function cannot be computed by micro-batches, in the model's own names; empty if it can.

    It cannot where what becomes of single samples depends on a sum over all of them, as with the statistics of a batch,
    or where something else than a sum is taken over them.
    """
    finder = found_in(function)
    if finder.problems:
        return [problem.removesuffix(" of different cores") for problem in finder.problems]
    after: dict[Node, Node] = {sum_: sum_ for sum_ in finder.parts}
    found: dict[str, None] = {}
    for node in function.nodes():
        source = next((after[x] for x in node.inputs if x in after), None)
        if source is None:
            continue
        if node in finder.split or node in after:
            found[f"{layer_of(source)} couples samples"] = None
        else:
            after[node] = source
    return list(found)


def layer_of(node: Node) -> str:
    """The user's layer that a node belongs to, or what it is."""
    return node.name.split(":")[0].split("/")[0] or describe(node)


class _Copies:
    """A function's nodes, with a copy for each micro-batch of those that belong to single samples."""

    def __init__(self, function: Function, finder: Finder, parts: int) -> None:
        self.source, self.finder, self.parts = function, finder, parts
        self.rows = batch_rows(function)
        self.whole: dict[Node, Node] = {}
        self.copies: dict[Node, list[Node]] = {}
        sums = set(finder.parts)
        for node in function.nodes():
            if node.op in ("input", "state"):
                self.leaf(node)
            elif node in finder.split or node in sums:
                with g.naming(node.name):
                    copies = [self.copy(node, part) for part in range(parts)]
                    if node in sums:
                        self.whole[node] = added(copies)
                    else:
                        self.copies[node] = copies
            else:
                self.whole[node] = with_inputs(node, tuple(self.whole[x] for x in node.inputs))

    def leaf(self, node: Node) -> None:
        """An input or a state: with a row a sample, it has the rows of all micro-batches."""
        self.whole[node] = node
        if node in self.finder.split:
            rows = self.rows
            whole = Node(node.op, (), node.attrs, (self.parts * rows, node.shape[1]), node.name)
            self.whole[node] = whole
            self.copies[node] = [
                g.take_samples(whole, part * rows, rows, node.name) for part in range(self.parts)
            ]

    def copy(self, node: Node, part: int) -> Node:
        """A node of one micro-batch. Its random numbers are its own."""
        attrs = node.attrs
        if node.op == "uniform":
            attrs = {**attrs, "stream": attrs["stream"] * self.parts + part}
        inputs = tuple(self.of(x, part) for x in node.inputs)
        return Node(node.op, inputs, attrs, node.shape, node.name)

    def of(self, node: Node, part: int) -> Node:
        """What a node of one micro-batch reads."""
        return self.copies[node][part] if node in self.copies else self.whole[node]

    def joined(self, node: Node) -> Node:
        """A tensor with a row a sample, of all micro-batches."""
        return g.join_samples([self.of(node, part) for part in range(self.parts)], node.name)

    def function(self) -> Function:
        """The step of the batch.

        Metrics come first, then parameters from the last to the first: the order in which a backward pass finishes
        their gradients, so that nothing that they are made of is kept for longer than it takes.
        """
        found = [x for x in self.source.updates if x[0].attrs["role"] == "metric"]
        found += [x for x in reversed(self.source.updates) if x[0].attrs["role"] != "metric"]
        return replace(
            self.source,
            inputs=tuple(self.whole[x] for x in self.source.inputs),
            states=tuple(self.whole[x] for x in self.source.states),
            outputs=tuple((name, self.joined(x)) for name, x in self.source.outputs),
            updates=tuple(
                (
                    self.whole[state],
                    self.joined(value) if state in self.finder.split else self.whole[value],
                )
                for state, value in found
            ),
        )


def added(parts: list[Node]) -> Node:
    """The sum of what the micro-batches have, from the first on."""
    total = parts[0]
    for part in parts[1:]:
        total = g.add(total, part)
    return total
