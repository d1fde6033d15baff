"""From one machine's step to that of several cores, each of which has a part of the batch.

A step's function is compiled for the samples of one core. What it computes of single samples, each core
computes of its own. What it computes of all of them, it computes by sums over samples, and a sum over the
batch is the sum over the cores of their parts: there this pass puts `all_sum`. What it computes of such
sums, of states and of scalars is then the same on all cores.

It comes after differentiation. A gradient of the whole batch's function is made of sums over samples as
the function itself is, so the argument above holds for both, and no op has to be differentiated that reads
other cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, OPS, TAKE, Function, Node, describe
from fpgrad.graph import builder as g
from fpgrad.transform.rewrite import rewrite, with_inputs
from fpgrad.transform.step_inputs import batch_rows


@dataclass(frozen=True)
class SumOverCores:
    """Puts an all_sum behind each sum over samples. The function's batch is that of one core."""

    name: str = field(default="sum-over-cores", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function for each of several cores; GraphError names what cannot be divided."""
        parts = set(partial_sums(function))

        def rule(node: Node, operands: tuple[Node, ...]) -> Node | None:
            return g.all_sum(with_inputs(node, operands)) if node in parts else None

        return rewrite(function, rule)


def partial_sums(function: Function) -> list[Node]:
    """The sums over a core's samples that are used as if they were over all.

    Raises:
        GraphError: with everything in the function that is computed of several samples and is no sum over
            them, and with what would come to differ between cores without being a number a sample.
    """
    samples = micro_batch_rows(function)
    finder = found_in(function)
    for name, node in function.outputs:
        if node not in finder.split:
            finder.refuse(f"output {name!r}, {describe(node)}, has no row for each sample")
    for state, value in function.updates:
        if (value in finder.split) > (state in finder.split):
            finder.refuse(
                f"state {state.name!r} would become {describe(value)} of a core's samples"
            )
    if samples < 2:
        # A sum over one sample may have been folded away.
        finder.refuse("a core's part of the batch must be 2 samples or more")
    if finder.problems:
        listed = "\n  ".join(finder.problems)
        raise GraphError(f"function {function.name!r} cannot be divided among cores:\n  {listed}")
    summed: set[Node] = set()
    reached = [x for node in function.nodes() if node.op == ALL_SUM for x in node.inputs]
    while reached:
        node = reached.pop()
        summed.add(node)
        if node.op == "add":  # of micro-batches
            reached.extend(node.inputs)
    return [node for node in finder.parts if node not in summed]


def micro_batch_rows(function: Function) -> int:
    """Samples that are computed at a time: those of the batch, unless it is taken apart."""
    taken = (node.attrs["count"] for node in function.nodes() if node.op == TAKE)
    return next(taken, batch_rows(function))


def found_in(function: Function) -> Finder:
    """What of a function has rows that are samples, and what sums them up."""
    finder = Finder(micro_batch_rows(function))
    for node in function.nodes():
        finder.look_at(node)
    return finder


class Finder:
    """Follows through a function, operands first, which tensors have rows that are a core's samples.

    Attributes:
        split: tensors with such rows (of a map: its positions times samples). All others are the same on
            each core, once the parts are summed.
        parts: a core's parts of sums over samples.
        problems: what is neither.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.split: set[Node] = set()
        self.parts: list[Node] = []
        self.problems: list[str] = []

    def refuse(self, problem: str) -> None:
        """Note what cannot be."""
        self.problems.append(problem)

    def look_at(self, node: Node) -> None:
        """Find out about a node whose operands are known."""
        if node.op == "input":
            if node.attrs["kind"] in ("batch", "column"):
                self.split.add(node)
        elif node.op == "state":
            # A metric has a number a sample, which the host adds up, or one for the whole step.
            rows = node.shape[0]
            if node.attrs["role"] == "metric" and rows >= self.samples and not rows % self.samples:
                self.split.add(node)
        elif node.op == "uniform":
            # Each core's generators have a seed of their own.
            self.split.add(node)
        elif node.op in ("matmul", "conv"):
            self.product(node)
        elif node.op == "conv_weight":
            if self.both(node):
                self.parts.append(node)
        elif node.op.startswith("reduce_") and node.attrs["axis"] == 0:
            self.reduction(node)
        elif node.op != ALL_SUM and any(x in self.split for x in node.inputs):
            self.split.add(node)
            if node.op in OPS and OPS[node.op].elementwise:
                self.check_constants(node)

    def reduction(self, node: Node) -> None:
        """Along rows: of samples, only sums can be put together."""
        if node.inputs[0] not in self.split:
            return
        if node.op == "reduce_sum":
            self.parts.append(node)
        else:
            self.refuse(f"{describe(node)} is taken over samples of different cores")

    def product(self, node: Node) -> None:
        """A product sums over samples if these are what its operands have in common."""
        a, b = node.inputs
        # Whether samples are the axis that is summed over, and the one that is kept.
        inner_a, outer_a = self.axes(a, bool(node.attrs.get("ta")))
        outer_b, inner_b = self.axes(b, bool(node.attrs.get("tb")))
        if node.op == "conv" and b in self.split:
            self.refuse(f"{describe(node)} has kernels that depend on samples")
        elif outer_b or (outer_a and inner_b):
            self.refuse(f"{describe(node)} multiplies samples with each other")
        elif inner_a or inner_b:
            ones = [x for x in (a, b) if x not in self.split]
            if all(_constant(x) for x in ones):
                self.parts.append(node)
            else:
                self.refuse(f"{describe(node)} weights samples with {describe(ones[0])}")
        elif outer_a:
            self.split.add(node)

    def axes(self, x: Node, turned: bool) -> tuple[bool, bool]:
        """Whether samples are an operand's columns and whether they are its rows, as the product reads it."""
        return (x in self.split and turned), (x in self.split and not turned)

    def both(self, node: Node) -> bool:
        """Whether both operands have samples; one alone is refused."""
        having = [x in self.split for x in node.inputs]
        if any(having) and not all(having):
            self.refuse(f"{describe(node)} has samples in one of its operands alone")
        return all(having)

    def check_constants(self, node: Node) -> None:
        """A constant that has rows has the same for each sample, whichever core computes it."""
        for x in node.inputs:
            if x.op == "const" and x.shape[0] > 1:
                rows = x.value.reshape(-1, self.samples, x.shape[1])  # positions, samples, channels
                if np.any(rows != rows[:, :1]):
                    self.refuse(f"{describe(node)} has a constant that differs between samples")


def _constant(node: Node) -> bool:
    """Whether a tensor is one number in all its elements, such as a row of ones."""
    node = node.inputs[0] if node.op == "quantise" else node
    return node.op == "const" and bool(np.all(node.value == node.value[:1, :1]))
