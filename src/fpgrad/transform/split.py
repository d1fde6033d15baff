"""A step whose channels are divided among cores, each of which has all samples of the batch.

The counterpart of `fpgrad.transform.cores` for batches of few samples. A kernel that is divided by its
columns makes a part of its layer's output channels on each core; what follows channel by channel
(bias, activation, normalisation over samples, pooling, depthwise kernels) stays there. The next kernel is
divided by its rows: each core multiplies what it has, and the sum over the cores is the layer's output,
the same on all of them. Gradients go the same ways back. It is tensor parallelism as in Megatron-LM
(Shoeybi et al., arXiv:1909.08053), done on the differentiated graph, where no op needs a rule for its
gradient.

The pass is told which kernels are divided by outputs. All else follows, and what does not fit together is
refused: then another set must be chosen, see `fpgrad.transform.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fpgrad.graph import OPS, Function, Node, Parts, describe
from fpgrad.graph import builder as g
from fpgrad.graph.window import taps
from fpgrad.transform.layouts import (
    WHOLE,
    CannotSplitError,
    Layout,
    channels_of,
    flat,
    same,
    side_by_side,
    whole_groups,
    window,
)


@dataclass(frozen=True)
class Value:
    """A core's part of a tensor. loose: the leaves that it is computed from element by element, where
    nothing has been asked of it that says how it is divided; until then it is whole."""

    node: Node
    layout: Layout = WHOLE
    loose: frozenset[Node] = frozenset()


@dataclass(frozen=True)
class SplitChannels:
    """Divides tensors as the states' layouts say, and puts an all_sum behind each sum over channels.

    states: layouts by name; all others are whole, optimizer slots like their parameters.
    """

    states: Mapping[str, Layout]
    cores: int
    name: str = field(default="split-channels", init=False)
    stages: tuple[str, str] = field(default=("machine", "machine"), init=False)

    def run(self, function: Function) -> Function:
        """The function of one core's parts.

        Raises:
            CannotSplitError: tensors whose parts are on different cores meet in an op.
        """
        names = {state.name for state in function.states}
        known = {name: self.states.get(_parameter(name), WHOLE) for name in names}
        return Splitter(function, known, self.cores).run()


def found_layouts(
    function: Function, chosen: Mapping[str, Layout], cores: int
) -> dict[str, Layout]:
    """The layouts of a function's states that follow from those of some.

    Raises:
        CannotSplitError: they lead to a contradiction.
    """
    splitter = Splitter(function, chosen, cores)
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

    def __init__(self, function: Function, states: Mapping[str, Layout], cores: int) -> None:
        self.function, self.cores = function, cores
        self.leaves = {s: states[s.name] for s in function.states if s.name in states}
        self.values: dict[Node, Value] = {}
        self.seeds: dict[Node, Parts | None] = {}

    def run(self) -> Function:
        """The function of one core's parts."""
        for node in self.function.nodes():
            self.value(node)
        for state, value in self.function.updates:
            self.agree(state, value)
        outputs: list[tuple[str, Node]] = []
        for name, node in self.function.outputs:
            value = self.settled(node)
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
        if self.settled(value, self.value(state).layout).layout != self.settled(state).layout:
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
            x = self.value(node.inputs[0])
            return Value(g.make("pool", (x.node,), **node.attrs), x.layout, x.loose)
        rule = _RULES.get(node.op)
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
                value = self.settled(x, layout.along(x.shape))
            if x.op == "const":
                value = Value(layout.cut(x), layout.along(x.shape))
            elif value.layout != layout.along(x.shape):
                raise CannotSplitError(f"operands of {describe(node)} are divided differently")
            values.append(value)
        loose = frozenset[Node]().union(*(v.loose for v in values))
        return Value(g.make(node.op, [v.node for v in values], **node.attrs), layout, loose)


# Rules, one for each op: a core's part of the node.


def _summed(node: Node) -> Value:
    return Value(g.all_sum(node))


def _matmul(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    ta, tb = bool(node.attrs["ta"]), bool(node.attrs["tb"])
    x = s.settled(a)
    left = x.layout.turned() if ta else x.layout
    inner = left.columns
    if b.op == "const" and inner is not None:
        raise CannotSplitError(f"{describe(node)} has a constant kernel")
    wanted = Layout(columns=inner) if tb else Layout(rows=inner)
    w = s.settled(b, wanted)
    right = w.layout.turned() if tb else w.layout
    if left.blocks > 1 or right.blocks > 1:
        raise CannotSplitError(f"{describe(node)} has an operand of several blocks")
    made = g.make("matmul", (x.node, w.node), **node.attrs) if inner == right.rows else None
    return _product(node, made, inner, (left.rows, right.columns))


def _product(node: Node, made: Node | None, inner: object, outer: tuple) -> Value:
    """Of a product: what it sums over is divided alike in both operands, or one of what is left."""
    rows, columns = outer
    if made is None or (inner is not None) + (rows is not None) + (columns is not None) > 1:
        raise CannotSplitError(f"operands of {describe(node)} are divided differently")
    return _summed(made) if inner is not None else Value(made, Layout(rows, columns))


def _conv(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    windows, groups = node.attrs["windows"], node.attrs["groups"]
    turned = node.attrs["transposed_weights"]
    x = s.settled(a)
    inner = x.layout.columns
    outputs, count = None, groups
    if groups > 1 and inner is not None:
        outputs, count = whole_groups(inner, a.shape[1] // groups, node.shape[1] // groups)
    first, second = (outputs, inner) if turned else (inner, outputs)
    blocks = taps(windows) if first is not None else 1
    w = s.settled(b, Layout(first, second, blocks))
    rows, columns = w.layout.rows, w.layout.columns
    made_in, made_out = (columns, rows) if turned else (rows, columns)
    if groups > 1:
        if (made_in, made_out) != (inner, outputs):
            raise CannotSplitError(f"operands of {describe(node)} are divided differently")
        return Value(g.conv(x.node, w.node, windows, turned, count), Layout(columns=outputs))
    made = g.conv(x.node, w.node, windows, turned) if made_in == inner else None
    return _product(node, made, inner, (None, made_out))


def _conv_weight(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    groups, windows = node.attrs["groups"], node.attrs["windows"]
    x, dy = s.settled(a), s.settled(b)
    rows, columns = x.layout.columns, dy.layout.columns
    blocks = taps(windows) if rows is not None else 1
    count = groups
    if groups > 1 and (rows is not None or columns is not None):
        if rows is None or columns is None:
            raise CannotSplitError(f"operands of {describe(node)} are divided differently")
        outputs, count = whole_groups(rows, a.shape[1] // groups, b.shape[1] // groups)
        if outputs != columns:
            raise CannotSplitError(f"operands of {describe(node)} are divided differently")
    elif rows is not None and columns is not None:
        raise CannotSplitError(f"both operands of {describe(node)} are divided")
    made = g.conv_weight(x.node, dy.node, windows, count)
    return Value(made, Layout(rows, columns, blocks))


def _reduce(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    axis = node.attrs["axis"]
    made = g.make(node.op, (x.node,), axis=axis)
    along, across = (
        (x.layout.rows, x.layout.columns) if axis == 0 else (x.layout.columns, x.layout.rows)
    )
    if along is None:
        kept = Layout(columns=across) if axis == 0 else Layout(across, None, x.layout.blocks)
        return Value(made, kept)
    if node.op != "reduce_sum" or across is not None:
        raise CannotSplitError(f"{describe(node)} is taken over channels of different cores")
    return _summed(made)


def _flatten(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    count, columns = node.attrs["positions"], x.layout.columns
    if columns is not None:
        move = flat if node.op == "flatten" else channels_of
        wide = node.inputs[0].shape[1] if node.op == "flatten" else node.shape[1]
        columns = move(columns, count, wide)
    return Value(g.make(node.op, (x.node,), positions=count), Layout(columns=columns))


def _max_gradient(s: Splitter, node: Node) -> Value:
    values = [s.settled(x) for x in node.inputs]
    layout = same([v.layout for v in values], describe(node))
    return Value(g.make(node.op, [v.node for v in values], **node.attrs), layout)


def _unfold(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    return Value(g.make("unfold", (x.node,), **node.attrs))


def _concat(s: Splitter, node: Node) -> Value:
    values = [s.settled(x) for x in node.inputs]
    made = g.make("concat", [v.node for v in values])
    patterns = [v.layout.columns for v in values if v.layout.columns is not None]
    if not patterns and all(v.layout.is_whole for v in values):
        return Value(made)
    if len(patterns) < len(values) or any(v.layout.rows is not None for v in values):
        raise CannotSplitError(f"{describe(node)} joins divided tensors and whole ones")
    return Value(made, Layout(columns=side_by_side(patterns, [x.shape[1] for x in node.inputs])))


def _slice(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    start, stop = node.attrs["start"], node.attrs["stop"]
    columns = x.layout.columns
    if columns is not None:
        columns, (start, stop) = window(columns, start, stop)
    return Value(g.slice_cols(x.node, start, stop), replace(x.layout, columns=columns))


_RULES: Mapping[str, Callable[[Splitter, Node], Value]] = {
    "matmul": _matmul,
    "conv": _conv,
    "conv_weight": _conv_weight,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "flatten": _flatten,
    "unflatten": _flatten,
    "pool_max_grad": _max_gradient,
    "unfold": _unfold,
    "concat": _concat,
    "slice": _slice,
}
