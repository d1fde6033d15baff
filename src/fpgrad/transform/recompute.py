"""Recomputation: what the backward pass reads of the forward pass is computed a second time instead of being kept.

A forward tensor that is read again on the way back waits from one half of the step to the other, on the chip or in
external memory. This pass gives those who read it copies of the nodes that make it, down to tensors that are kept anyway,
inputs, parameters and small tensors such as statistics: gradient checkpointing (Chen et al. 2016, arXiv:1604.06174), where
the tensors that are kept are chosen by what moving and what computing costs (as in Jain et al. 2020, arXiv:1910.02653).
The same operations on the same numbers give the same bits, so results do not change.

It comes after equal nodes have been merged, and nothing merges them later. The copies' names say what they are, so that
code generation computes them just before they are read.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fpgrad.graph import ALL_SUM, JOIN, OPS, TAKE, Function, Node
from fpgrad.transform.choice import cycles
from fpgrad.transform.cores import found_in
from fpgrad.transform.rewrite import rewrite, with_inputs

AGAIN = ":again"
"""What the names of copies end in."""

KEPT_OPS = frozenset({"uniform", ALL_SUM, TAKE, JOIN, "conv_weight", "pool_max_grad"})
"""What is never computed twice: random numbers would be others, sums over cores would be sent again."""

BITS = frozenset({"gt", "ge", "eq"})
"""Ops whose results take a bit a number: they are kept."""

DEPTH = 2
"""Products behind each other that are computed again for one reader."""

SMALL = 0.01
"""Tensors of less than this part of all that is kept are left alone."""


@dataclass(frozen=True)
class Recompute:
    """Replaces kept tensors by copies of the nodes that make them, where that is cheaper.

    side: of the machine's tiles. words: 32-bit words that external memory moves in a cycle, for each core; None:
    computing costs nothing, so that as little is kept as `DEPTH` allows. Functions without a backward pass stay as they
    are.
    """

    side: int
    words: float | None = None
    name: str = field(default="recompute", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function with copies; it is the same one if nothing is worth it."""
        step = _Step(function, self.side, self.words)
        chosen = step.chosen()
        return step.with_copies(chosen) if chosen else function


def recomputed(function: Function) -> list[str]:
    """The layers of which something is computed again, in the order of the forward pass."""
    found = (n.name for n in function.nodes() if n.name.endswith(AGAIN))
    copied = {name.split(":")[0].split("/")[0] for name in found}
    layers = (n.name.split(":")[0].split("/")[0] for n in function.nodes())
    return [name for name in dict.fromkeys(layers) if name in copied]


class _Step:
    """What the backward half of a function reads of the forward half, and what it would cost not to keep it."""

    def __init__(self, function: Function, side: int, words: float | None) -> None:
        self.function, self.side = function, side
        self.free, self.words = words is None, words or 1.0
        self.samples = found_in(function).split
        self.backward: set[Node] = set()
        self.readers: dict[Node, list[Node]] = {}
        self.group: dict[Node, Node] = {}
        self.price: dict[Node, float] = {}
        for node in function.nodes():
            self._look_at(node)
        sizes = {x: self._moved(x) for x in self.readers}
        least = SMALL * sum(sizes.values())
        self.kept = {x: size for x, size in sizes.items() if size >= least}

    def _look_at(self, node: Node) -> None:
        """Note what a node of the backward pass reads of the forward pass."""
        if ":grad" in node.name or not self.backward.isdisjoint(node.inputs):
            self.backward.add(node)
            self.group[node] = self._group(node)
            for x in node.inputs:
                # Windows of an input are made again by code generation.
                able = x not in self.backward and self._large(x) and x.op != "unfold"
                if able and not _asks_for_bits(node, x):
                    self.readers.setdefault(x, []).append(node)

    def _group(self, node: Node) -> Node:
        """The first of the element-wise operations of a layer that ``node`` goes on with: they share copies."""
        near = (x for x in node.inputs if x in self.group and x.name == node.name)
        together = (x for x in near if _elementwise(x) and _elementwise(node))
        return next((self.group[x] for x in together), node)

    def _large(self, x: Node) -> bool:
        """Whether a tensor has a row for each sample and position, and more than a bit or a number in it."""
        return x in self.samples and not x.is_leaf and 1 not in x.shape and x.op not in BITS

    def _moved(self, x: Node) -> float:
        """Cycles to send a tensor out and bring it back for each of its readers."""
        tiles = [_product(reader) for reader in self.readers[x]]
        return sum((tiles.count(p) + 1) * self._move(x, tiles=p) for p in set(tiles))

    def _move(self, x: Node, *, tiles: bool) -> float:
        """Cycles to move a tensor, in tiles of a byte a number or in rows of a word a number."""
        t = self.side
        count = -(-x.shape[0] // t) * -(-x.shape[1] // t)
        words = t * t / 4 if tiles else t * t
        return count * max(t, words / self.words)

    # Choosing ----------------------------------------------------------------------------------

    def chosen(self) -> set[Node]:
        """The tensors to compute again: one by one what gains most alone, as long as it gains with the others."""
        chosen: set[Node] = set()
        best = self.cost(chosen)
        alone = {x: best - self.cost({x}) for x in self.kept}
        order = sorted(self.kept, key=lambda x: -alone[x])
        growing = True
        while growing:
            growing = False
            for x in order:
                if x not in chosen and (cost := self.cost({*chosen, x})) < best:
                    best, growing = cost, True
                    chosen.add(x)
        return chosen

    def cost(self, chosen: AbstractSet[Node]) -> float:
        """Cycles for moving what is kept and computing what is not; infinite if it is not possible."""
        total = 0.0
        copies: dict[Node, set[Node]] = {}
        reads: dict[Node, set[tuple[Node, bool]]] = {}
        for x, size in self.kept.items():
            if x not in chosen:
                total += size
                continue
            made = self._behind(x, chosen)
            if made is None:
                return float("inf")
            for reader in self.readers[x]:
                copies.setdefault(self.group[reader], set()).update(made[0])
                reads.setdefault(self.group[reader], set()).update(made[1])
        total += sum(self._move(x, tiles=tiles) for r in reads.values() for x, tiles in r)
        if self.free:
            return total
        return total + sum(self._cycles(x) for c in copies.values() for x in c)

    def _cycles(self, node: Node) -> float:
        if node not in self.price:
            self.price[node] = cycles(node, self.side)
        return self.price[node]

    def _behind(
        self, x: Node, chosen: AbstractSet[Node]
    ) -> tuple[set[Node], set[tuple[Node, bool]]] | None:
        """The nodes to copy for a tensor, and the kept tensors that they read, in tiles or not; None if it cannot be."""
        copies: set[Node] = set()
        reads: set[tuple[Node, bool]] = set()
        stack = [(x, 0)]
        while stack:
            node, depth = stack.pop()
            product = _product(node)
            depth += product
            if node.op in KEPT_OPS or depth > DEPTH:
                return None
            copies.add(node)
            for operand in node.inputs:
                if operand in self.readers and operand not in chosen:
                    reads.add((operand, product))
                elif self._copied(operand, chosen):
                    stack.append((operand, depth))
        return copies, reads

    def _copied(self, x: Node, chosen: AbstractSet[Node]) -> bool:
        """Whether a copy reads a copy of an operand, not the operand."""
        if x in self.readers:
            return x in chosen
        return self._large(x)

    # Copying -----------------------------------------------------------------------------------

    def with_copies(self, chosen: AbstractSet[Node]) -> Function:
        """The function in which those who read the chosen tensors in the backward pass read copies.

        Each has its own, so that none has to live from one reader to the next.
        """

        groups: dict[Node, dict[Node, Node]] = {}

        def copy(x: Node, made: dict[Node, Node]) -> Node:
            if x not in made:
                inputs = (copy(o, made) if self._copied(o, chosen) else o for o in x.inputs)
                made[x] = Node(x.op, tuple(inputs), x.attrs, x.shape, x.name + AGAIN)
            return made[x]

        def rule(node: Node, operands: tuple[Node, ...]) -> Node:
            made = groups.setdefault(self.group.get(node, node), {})
            inputs = (
                copy(x, made)
                if x in chosen and node in self.backward and not _asks_for_bits(node, x)
                else operand
                for x, operand in zip(node.inputs, operands, strict=True)
            )
            return with_inputs(node, tuple(inputs))

        return rewrite(self.function, rule)


def _elementwise(node: Node) -> bool:
    return not node.is_leaf and OPS[node.op].elementwise


def _product(node: Node) -> bool:
    """Whether a node reads tiles."""
    return OPS[node.op].product


def _asks_for_bits(reader: Node, x: Node) -> bool:
    """Whether a node only asks where a tensor is positive, or a maximum, which is kept as bits."""
    cotangent = {"gate": 0, "pool_max_grad": 2}.get(reader.op)
    return cotangent is not None and reader.inputs[cotangent] is not x
