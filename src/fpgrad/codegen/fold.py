"""Folding: which nodes share a pass, and in what order the passes may come.

Users are looked at before what they use, so that a node is folded into its only user when the machine can do both in
one pass, and gets a pass of its own otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from fpgrad.codegen.batches import shares, turns
from fpgrad.codegen.convolution import terms as conv_terms
from fpgrad.codegen.match import ALUS, FUNCTIONS, REDUCTIONS, STREAMED, Match, candidates, reduction
from fpgrad.codegen.names import is_again, phase_of
from fpgrad.codegen.steps import Scalar, Value
from fpgrad.codegen.storage import Grid, Walk
from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, JOIN, Function, Node
from fpgrad.isa.instructions import Source


class Folding:
    """The passes of one function.

    Args:
        function: at stage "quantised".
        side: T.
        terms: products that one instruction may sum.
        outside: names of states in external memory: a new value that others read too is computed on the chip first.
    """

    def __init__(
        self, function: Function, side: int, terms: int, outside: Collection[str] = ()
    ) -> None:
        self.t = side
        self.terms = terms
        self.nodes = [node for node in function.nodes() if node.op != JOIN]
        self.turns = turns(self.nodes)
        self.uses: Counter[Node] = Counter()
        self.users: dict[Node, list[Node]] = {}
        for node in self.nodes:
            self.uses.update(node.inputs)
            for x in dict.fromkeys(node.inputs):
                self.users.setdefault(x, []).append(node)
        results = [x for name, node in function.outputs for _, x in shares(name, node)]
        self.uses.update([*results, *(value for _, value in function.updates)])
        self.targets: dict[Node, Node] = {}  # new value -> the state that takes its place
        for state, value in function.updates:
            near = state.name not in outside or self.uses[value] == 1
            moved = value.is_leaf or value.op in ("quantise", ALL_SUM)
            if near and not moved and value not in self.targets:
                self.targets[value] = state
        self.output_names = {
            x: name for name, node in function.outputs for _, x in shares(name, node)
        }
        self.quantises = {n.inputs[0]: n for n in self.nodes if n.op == "quantise"}
        self.again = made_again(self.nodes)
        self.matches: dict[Node, Match] = {}
        self.absorbed: set[Node] = set()
        self.unfolds: dict[
            Node, tuple[Node, Value]
        ] = {}  # what is stored -> unfold, and its factor
        self.added: dict[
            Node, tuple[Node, Node]
        ] = {}  # the sum -> what a gradient is added to in its place, and the gradient

    def choose(self) -> list[Node]:
        """Fold nodes into passes, users first; returns the nodes to compute, in an order that respects updates."""
        roots: list[Node] = []
        for node in reversed(self.nodes):
            if node.is_leaf or node in self.absorbed or node.op == "quantise":
                continue
            roots.append(node)
            if self.unfolded(node) or self.adds_in_place(node):
                continue
            if node.op in ALUS or node.op in FUNCTIONS or node.op == "mul":
                match = next(
                    (m for m in candidates(node, self.single) if self.possible(node, m)), None
                )
                if match is None:
                    raise GraphError(
                        f"{node.name or node.op}: {node.op} of shapes "
                        f"{' and '.join(str(x.shape) for x in node.inputs)} has no pass"
                    )
                self.matches[node] = match
                self.absorbed.update(match.absorbed)
                streamed = self.streamed(node, match)
                if streamed is not None:
                    self.absorbed.add(streamed)
            elif node.op in REDUCTIONS:
                match = reduction(node, self.single)
                self.matches[node] = match
                self.absorbed.update(match.absorbed)
        roots.reverse()
        level = self.levels()

        def when(node: Node) -> tuple[int, int, int]:
            later = node.op == "conv_weight"  # than a pass that takes the rows of the other product
            sooner = node in self.again  # than who reads it, but not than what else that needs
            return self.turns[node], level[node] + later, later - sooner

        return self.ordered(sorted(roots, key=when))

    def levels(self) -> dict[Node, int]:
        """The steps of computation behind each node. In their order a kernel's gradient, and its update, come when the
        layer's cotangent is there, not after those of all layers: what they read can go. What is computed again comes with
        those who read it. Behind the cotangent of what
        the layer reads, it keeps the matrix unit at work while the vector unit normalises that."""
        level: dict[Node, int] = {}
        for node in self.nodes:
            level[node] = 1 + max((level[x] for x in node.inputs), default=0)
        for node in reversed(self.nodes):
            users = self.users.get(node, ())
            if node in self.again and users:
                level[node] = min(level[x] + (x.op == "conv_weight") for x in users)
        return level

    def single(self, node: Node) -> bool:
        """Whether a node can be folded into its only user."""
        return self.uses[node] == 1 and node not in self.targets and node not in self.output_names

    def unfolded(self, node: Node) -> bool:
        """Whether a node is windows of an input, perhaps multiplied with a number: one pass reads and multiplies."""
        if node.op == "unfold":
            self.unfolds[node] = node, Source.ONE
            return True
        if node.op == "mul":
            for x, factor in (node.inputs, node.inputs[::-1]):
                value = self.immediate(factor)
                if x.op == "unfold" and self.single(x) and value is not None:
                    self.unfolds[node] = x, value
                    self.absorbed.add(x)
                    return True
        return False

    def adds_in_place(self, node: Node) -> bool:
        """Whether a node adds a kernel's gradient to that of the micro-batches before, which nobody else wants."""
        if node.op != "add":
            return False
        before, gradient = node.inputs
        able = gradient.op == "conv_weight" and self.single(gradient) and self.single(before)
        if able and (before.op == "conv_weight" or before.op == "add"):
            self.added[node] = before, gradient
            self.absorbed.add(gradient)
            return True
        return False

    def only_gates(self, node: Node) -> bool:
        """Whether nothing is asked of a tensor but where it is positive, besides its tiles."""
        users = [u for u in self.users.get(node, ()) if u.op != "quantise"]
        gates = all(u.op == "gate" and u.inputs[1] is node is not u.inputs[0] for u in users)
        return bool(users) and gates and node not in self.targets and node not in self.output_names

    def only_summed(self, node: Node) -> bool:
        """Whether nothing is asked of a tensor but its sum over the cores."""
        users = self.users.get(node, ())
        return [u.op for u in users] == [ALL_SUM] and self.single(node)

    def product_terms(self, node: Node) -> int:
        """Products in the longest sum of a matmul or conv."""
        if node.op == "conv":
            return conv_terms(node, self.t)
        x = node.inputs[0]
        return -(-(x.shape[0] if node.attrs["ta"] else x.shape[1]) // self.t)

    def streamed(self, node: Node, match: Match) -> Node | None:
        """The product or random tensor that the pass takes as it comes, if there is one."""
        if (
            self.walk(node, match.leaves) is Walk.TRANSPOSED
            and Grid(*node.shape, self.t).kind == "tiles"
        ):
            return None
        for leaf in match.leaves:
            if leaf.op in STREAMED and self.single(leaf) and leaf.shape == node.shape:
                if leaf.op == "matmul" and leaf.shape == (1, 1):
                    continue
                if leaf.op != "uniform" and self.product_terms(leaf) > self.terms:
                    continue
                if match.leaves.count(leaf) == 1:
                    return leaf
        return None

    def walk(self, node: Node, leaves: tuple[Node, ...]) -> Walk | None:
        """How the pass must go; None when its operands contradict each other."""
        rows, columns = node.shape
        if rows == 1 or columns == 1:
            return Walk.NORMAL
        transposed = any(x.shape == (rows, 1) for x in leaves)
        normal = node in self.targets or any(
            (x.shape == (1, columns) and x.op != "const") or x.op == "uniform" for x in leaves
        )
        if transposed:
            return None if normal else Walk.TRANSPOSED
        return Walk.NORMAL

    def possible(self, node: Node, match: Match) -> bool:
        """Whether one pass of the machine can do it."""
        if self.walk(node, match.leaves) is None:
            return False
        streamed = self.streamed(node, match)
        immediates: set[object] = set()
        streams: set[Node] = set()
        for leaf in match.leaves:
            value = self.immediate(leaf)
            if value is not None:
                if not isinstance(value, Source):
                    immediates.add(value)
            elif leaf is not streamed:
                if leaf.op == "uniform":
                    return False
                streams.add(leaf)
        return len(immediates) <= 2 and len(streams) <= 2

    def immediate(self, leaf: Node) -> Value | None:
        """The value of a leaf that needs no memory."""
        if leaf.op == "const" and leaf.shape == (1, 1):
            value = float(leaf.value[0, 0])
            return {0.0: Source.ZERO, 1.0: Source.ONE}.get(value, value)
        if leaf.op == "input" and leaf.attrs["kind"] == "scalar":
            return Scalar(leaf.name)
        return None

    def ordered(self, roots: list[Node]) -> list[Node]:
        """Topological order in which a state's new value comes after every other reader of its old value."""
        memory_inputs: dict[Node, set[Node]] = {}
        for root in roots:
            seen: set[Node] = set()
            stack = list(root.inputs)
            while stack:
                x = stack.pop()
                if x.op == "quantise" or x in self.absorbed:
                    stack.extend(x.inputs)
                else:
                    seen.add(x)
            memory_inputs[root] = seen
        after: dict[Node, set[Node]] = {
            r: {x for x in memory_inputs[r] if not x.is_leaf} for r in roots
        }
        for value, state in self.targets.items():
            after[value] |= {r for r in roots if r is not value and state in memory_inputs[r]}
        done: dict[Node, None] = {}
        position = {r: i for i, r in enumerate(roots)}
        visiting: set[Node] = set()

        def visit(node: Node) -> None:
            if node in done:
                return
            if node in visiting:
                raise GraphError(
                    f"{node.name or node.op}: a state's new value is read where its old one is needed"
                )
            visiting.add(node)
            for x in sorted(after[node], key=position.__getitem__):
                visit(x)
            done[node] = None

        for root in roots:
            visit(root)
        return list(done)


def made_again(nodes: Iterable[Node]) -> set[Node]:
    """What is computed a second time for the backward pass, and what the backward pass makes of such alone."""
    found: set[Node] = set()
    for node in nodes:
        kept = (x.is_leaf or x in found or phase_of(x) == "forward" for x in node.inputs)
        if is_again(node) or (any(x in found for x in node.inputs) and all(kept)):
            found.add(node)
    return found
