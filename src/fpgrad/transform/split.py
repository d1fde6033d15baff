"""A step whose channels or positions are divided among cores, each of which has all samples of the batch.

The counterpart of `fpgrad.transform.cores` for batches of few samples. A kernel that is divided by its
columns makes a part of its layer's output channels on each core; what follows channel by channel
(bias, activation, normalisation over samples, pooling, depthwise kernels) stays there. The next kernel is
divided by its rows: each core multiplies what it has, and the sum over the cores is the layer's output,
the same on all of them. Gradients go the same ways back. It is tensor parallelism as in Megatron-LM
(Shoeybi et al., arXiv:1909.08053), done on the differentiated graph, where no op needs a rule for its
gradient.

Maps of few channels are divided by their rows instead: each core has a band of them, the kernels are whole,
and their gradients are sums over the bands, see `fpgrad.transform.bands`. A band that is flattened is a part
of a vector's columns, so that the kernel behind is divided by its rows; where bands cannot go on, they are
put together.

The pass is told which kernels are divided by outputs, and which maps by rows. All else follows, and what does not fit together is
refused: then another set must be chosen, see `fpgrad.transform.choice`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fpgrad.graph import OPS, Function, Node, Parts, describe
from fpgrad.graph import builder as g
from fpgrad.graph.window import Window, all_positions, transposed
from fpgrad.transform.bands import (
    Band,
    band_of,
    bands,
    everywhere,
    gathered,
    halo,
    own_band,
    reads_all,
)
from fpgrad.transform.layouts import FEWEST, WHOLE, CannotSplitError, Layout, Value
from fpgrad.transform.rules import RULES, summed


@dataclass(frozen=True)
class SplitChannels:
    """Divides tensors as the states' layouts say, and puts an all_sum behind each sum over channels.

    states: layouts by name; all others are whole, optimizer slots like their parameters.
    lines: maps that are made of the model's input are divided by their rows, if they have so many; None: no map is.
    """

    states: Mapping[str, Layout]
    cores: int
    lines: int | None = None
    name: str = field(default="split-channels", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function of one core's parts.

        Raises:
            CannotSplitError: tensors whose parts are on different cores meet in an op.
        """
        names = {state.name for state in function.states}
        known = {name: self.states.get(_parameter(name), WHOLE) for name in names}
        return Splitter(function, known, self.cores, self.lines).run()


def found_layouts(
    function: Function, chosen: Mapping[str, Layout], cores: int, lines: int | None = None
) -> dict[str, Layout]:
    """The layouts of a function's states that follow from those of some, and from dividing maps by rows.

    Raises:
        CannotSplitError: they lead to a contradiction.
    """
    splitter = Splitter(function, chosen, cores, lines)
    splitter.run()
    return {leaf.name: layout for leaf, layout in splitter.leaves.items() if leaf.op == "state"}


def _parameter(name: str) -> str:
    """The parameter that a slot belongs to; any other state itself."""
    return name.split(":")[0]


class Splitter:
    """Goes through a function, operands first, and makes of each node that of a core's part.

    Leaves whose layout nobody has said, such as a bias or a dropout's random numbers, take that of the
    tensor they meet. leaves: the layouts found.
    """

    def __init__(
        self,
        function: Function,
        states: Mapping[str, Layout],
        cores: int,
        lines: int | None = None,
    ) -> None:
        self.function, self.cores, self.lines = function, cores, lines
        self.leaves = {s: states[s.name] for s in function.states if s.name in states}
        self.values: dict[Node, Value] = {}
        self.seeds: dict[Node, Parts | None] = {}
        self.uses = Counter(x for node in function.nodes() for x in node.inputs)
        self.moved: dict[tuple[object, ...], Node] = {}  # halos, and bands that were put together

    def run(self) -> Function:
        """The function of one core's parts."""
        for node in self.function.nodes():
            self.value(node)
        for state, value in self.function.updates:
            self.agree(state, value)
        outputs: list[tuple[str, Node]] = []
        for name, node in self.function.outputs:
            value = self.whole_rows(node)
            if not value.layout.is_whole:
                raise CannotSplitError(f"output {name!r} is divided")
            outputs.append((name, value.node))
        parts = {
            s.name: self.value(s).layout.parts(s.shape)
            for s in self.function.states
            if not self.value(s).layout.is_whole
        }
        parts |= {seed.name: part for seed, part in self.seeds.items() if part is not None}
        inputs = [n for n in self.function.inputs if n.attrs["kind"] != "seed"]
        return replace(
            self.function,
            inputs=(*inputs, *self.seeds),
            states=tuple(self.value(s).node for s in self.function.states),
            outputs=tuple(outputs),
            updates=tuple(
                (self.value(s).node, self.value(v).node) for s, v in self.function.updates
            ),
            parts=parts,
        )

    def value(self, node: Node) -> Value:
        """A core's part of a node."""
        if node not in self.values:
            with g.naming(node.name):
                self.values[node] = self.computed(node)
        return self.values[node]

    def settled(self, node: Node, layout: Layout = WHOLE) -> Value:
        """A core's part of a node; if it is loose, it gets this layout from now on."""
        value = self.value(node)
        if not value.loose:
            return value
        for leaf in value.loose:
            mine = layout.along(leaf.shape)
            if mine.rows is not None and leaf.attrs.get("blocks", 1) != mine.blocks:
                raise CannotSplitError(f"{describe(leaf)} has other blocks")
            self.leaves[leaf] = mine
        for other in [n for n, v in self.values.items() if v.loose & value.loose]:
            del self.values[other]
        return self.value(node)

    def agree(self, state: Node, value: Node) -> None:
        """A state and its new value are divided alike."""
        found = self.settled(value, self.value(state).layout)
        if self.in_bands(found) and self.settled(state).layout.is_whole:
            self.values[value] = found = self.whole_rows(value)
        if found.layout != self.settled(state).layout:
            raise CannotSplitError(f"{describe(state)} and its new value are divided differently")

    def computed(self, node: Node) -> Value:
        """A core's part of a node whose operands are known."""
        if node.op in ("state", "uniform"):
            return self.leaf(node)
        if node.is_leaf:
            return Value(node)
        if node.op in OPS and OPS[node.op].elementwise:
            return self.elementwise(node)
        if node.op == "pool":
            return self.pool(node)
        rule = RULES.get(node.op)
        if rule is None:
            raise CannotSplitError(f"{describe(node)} has no rule")
        return rule(self, node)

    def leaf(self, node: Node) -> Value:
        """A state or random numbers."""
        layout = self.leaves.get(node, WHOLE)
        loose = frozenset() if node in self.leaves else frozenset({node})
        shape = layout.shape(node.shape)
        if node.op == "state":
            a = node.attrs
            part = g.state(node.name, shape, a["trainable"], a["role"], a["blocks"])
            return Value(part if not layout.is_whole else node, layout, loose)
        stream = node.attrs["stream"]
        # Whole tensors of random numbers must be equal, parts must not: each has a seed of its own.
        # While one is loose, its seed is declared again and again; the last counts.
        seed = g.seed_input(f"seed {stream}")
        for old in [s for s in self.seeds if s.name == seed.name]:
            del self.seeds[old]
        rows = tuple(((core, core + 1),) for core in range(self.cores))
        self.seeds[seed] = None if layout.is_whole else Parts((self.cores, 1), rows)
        return Value(g.uniform(seed, shape, stream), layout, loose)

    def elementwise(self, node: Node) -> Value:
        """Operands are divided alike; loose ones follow the others, and constants are cut."""
        self.put_together(node)
        fixed = [
            (x, v) for x in node.inputs for v in [self.value(x)] if not v.loose and x.op != "const"
        ]
        rows = next((v.layout.rows for _, v in fixed if v.layout.rows is not None), None)
        columns = next((v.layout.columns for _, v in fixed if v.layout.columns is not None), None)
        blocks = max((v.layout.blocks for _, v in fixed), default=1)
        layout = Layout(rows, columns, blocks if rows is not None else 1)
        told = [any(x.shape[axis] > 1 for x, _ in fixed) for axis in (0, 1)]
        values: list[Value] = []
        for x in node.inputs:
            value = self.value(x)
            known = all(told[axis] or x.shape[axis] == 1 for axis in (0, 1))
            if value.loose and (known or not layout.is_whole):
                value = self.settled(x, self.followed(x, layout))
            if rows is not None and self.lines is not None and x.shape[0] > 1:
                value = self.own_rows(x)
            elif x.op == "const":
                value = Value(layout.cut(x), layout.along(x.shape))
            if value.layout != layout.along(x.shape):
                raise CannotSplitError(f"operands of {describe(node)} are divided differently")
            values.append(value)
        loose = frozenset[Node]().union(*(v.loose for v in values))
        return Value(g.make(node.op, [v.node for v in values], **node.attrs), layout, loose)

    # Bands of maps ------------------------------------------------------------------------------

    def divides(self, lines: int) -> bool:
        """Whether a map of so many rows is to be divided by them."""
        return self.lines is not None and lines >= self.lines and lines % self.cores == 0

    def in_bands(self, value: Value) -> bool:
        """Whether a core has some rows of a tensor, and maps can be divided by theirs."""
        return self.lines is not None and value.layout.rows is not None

    def band(self, window: Window) -> Band | None:
        """How the cores do what a window says with their bands, if they can and should."""
        found = band_of(window, self.cores)
        return found if found and self.divides(min(window.size, window.out)) else None

    def rows_of(self, node: Node) -> Layout:
        """The layout of a tensor whose rows are in bands."""
        return Layout(bands(node.shape[0], self.cores))

    def whole_rows(self, node: Node) -> Value:
        """A tensor, put together if its rows are in bands."""
        value = self.settled(node)
        if node.op == "flatten" and self.in_bands(self.value(node.inputs[0])):
            flat = g.flatten(self.whole_rows(node.inputs[0]).node, node.attrs["positions"])
            return Value(flat)
        if not self.in_bands(value):
            return value
        key = value.node, "whole"
        if key not in self.moved:
            self.moved[key] = gathered(value.node, self.cores)
        return Value(self.moved[key], replace(value.layout, rows=None))

    def put_together(self, node: Node) -> None:
        """Let bands that were flattened be whole where they meet a tensor that is, such as a target."""
        found = [(x, self.value(x)) for x in node.inputs if x.shape[1] > 1 and x.op != "const"]
        whole = any(v.layout.columns is None and not v.loose for _, v in found)
        if self.lines is not None and whole:
            for x, value in found:
                if value.layout.columns is not None:
                    self.values[x] = self.whole_rows(x)

    def followed(self, node: Node, layout: Layout) -> Layout:
        """What loose leaves behind a node become where it meets a tensor of this layout."""
        found = layout.along(node.shape)
        if self.lines is None or all(x.shape[0] == node.shape[0] for x in self.value(node).loose):
            return found
        return Layout(columns=found.columns)  # each position has the same numbers

    def own_rows(self, node: Node) -> Value:
        """A core's band of a tensor's rows."""
        value = self.settled(node, self.rows_of(node)) if node.op == "uniform" else self.value(node)
        if value.layout.rows is not None:
            return value
        layout = replace(value.layout, rows=self.rows_of(node).rows)
        if node.shape[0] % self.cores or node.shape[0] < FEWEST * self.cores:
            raise CannotSplitError(f"the rows of {describe(node)} are not {self.cores} equal bands")
        if node.op == "const":
            with suppress(CannotSplitError):
                return Value(layout.cut(node), layout)
        key = value.node, "own"
        if key not in self.moved:
            self.moved[key] = self._own(node, value)
        return Value(self.moved[key], layout)

    def _own(self, node: Node, value: Value) -> Node:
        """Numbers that are the same at each position are spread over fewer of them; others are picked."""
        count = everywhere(node)
        if count is not None and count % self.cores == 0:
            windows = transposed(all_positions(count // self.cores))
            return g.pool(self.settled(node.inputs[0]).node, windows, "sum")
        return own_band(value.node, self.cores)

    def with_halo(self, node: Node, positions: tuple[int, int], band: Band) -> Node:
        """A core's band of a map of so many rows and columns, and of its halo what a window reads."""
        own = self.own_rows(node).node
        key = own, positions, band.before, band.after
        if key not in self.moved:
            self.moved[key] = halo(own, positions, band, self.cores)
        return self.moved[key]

    def pool(self, node: Node) -> Value:
        """Channel by channel; of bands a sum over all positions is a part of one."""
        (x,), (height, width), kind = node.inputs, node.attrs["windows"], node.attrs["kind"]
        value = self.value(x)
        if not self.in_bands(value):
            return Value(g.make("pool", (value.node,), **node.attrs), value.layout, value.loose)
        band = self.band(height)
        if band is not None and (kind == "sum" or band.alone):
            made = self.with_halo(x, (height.size, width.size), band)
            return Value(g.pool(made, (band.window, width), kind), self.rows_of(node))
        if kind == "sum" and reads_all((height, width)):
            count = height.size * width.size // self.cores
            return summed(g.pool(value.node, all_positions(count), kind))
        return Value(g.pool(self.whole_rows(x).node, (height, width), kind))
