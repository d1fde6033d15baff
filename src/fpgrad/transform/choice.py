"""Which layers are divided among the cores: those that make a step short, by a simple count of cycles.

What counts is a core's work and what it sends: tile products at a row a cycle; the rows that elementwise
ops and reductions go through, two ops in a pass; two cycles for each row that is summed over the cores,
and what the way there and back takes; of bands of maps, a cycle for each row that is copied. The units work at the same time, the sums of the forward pass have
to be waited for: as an estimate, all of it is added up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fpgrad.graph import ALL_SUM, OPS, PICK, SPREAD, STACK, Function, Node
from fpgrad.graph.maps import tap_positions
from fpgrad.transform.layouts import CannotSplitError, Layout, even
from fpgrad.transform.split import SplitChannels, found_layouts

OPS_A_PASS = 2
"""Elementwise ops that the vector unit does in a pass, on average."""

ROW_CYCLES = 2
"""Cycles for a row that is summed over the cores."""

LATENCY = 100
"""Cycles from a part's last row to the sum's first."""


@dataclass(frozen=True)
class Choice:
    """A way to divide a network.

    states: the layouts of its states, by name; those left out are whole.
    lines: maps are divided by their rows as long as they have so many; None: none is.
    """

    states: Mapping[str, Layout]
    cost: float
    lines: int | None = None

    def passed(self, cores: int) -> SplitChannels:
        """The pass that divides so."""
        return SplitChannels(self.states, cores, self.lines)


def choose(
    functions: Mapping[str, Function],
    forward: str,
    judged: str,
    cores: int,
    side: int,
    *,
    by_rows: bool = True,
) -> Choice | None:
    """The best division found of the functions of a session (stage machine, for the whole batch).

    Maps are divided by rows from the model's input on, down to each of the heights that there are, or not
    at all. The kernels of what is not divided so are tried one by one in the order of the forward pass,
    whether dividing their outputs makes the step shorter; once from the first on, once from the second,
    since what the first one's outputs feed cannot have its own outputs divided.

    forward: the function that has all parameters. judged: the one whose cycles count. by_rows: whether maps
    may be divided by their rows.
    Returns None when nothing is gained.
    """
    candidates = kernels(functions[forward], cores)
    names = list(candidates)
    best = whole = Choice({}, cost(functions[judged], side))

    def tried(
        chosen: Collection[str], lines: int | None, entries: Collection[str]
    ) -> Choice | None:
        layouts = {name: candidates[name] for name in chosen}
        try:
            states = found_layouts(functions[forward], layouts, cores, lines)
            divided = {k: SplitChannels(states, cores, lines).run(functions[k]) for k in entries}
        except CannotSplitError:
            return None
        return Choice(states, cost(divided[judged], side), lines)

    possible = heights(functions[forward], cores) if by_rows else []
    for lines in (None, *possible):
        first = whole if lines is None else tried([], lines, [judged])
        if first is None:
            continue
        for start in range(max(1, min(2, len(names)))):
            chosen: list[str] = []
            now = first
            for name in names[start:] + names[:start]:
                found = tried([*chosen, name], lines, [judged])
                if found is not None and found.cost < now.cost:
                    chosen.append(name)
                    now = found
            if now.cost < best.cost and tried(chosen, lines, functions) is not None:
                best = now
    return best if best is not whole else None


def heights(function: Function, cores: int) -> list[int]:
    """The heights of maps that are made of the input by windows and can be divided, the largest first."""
    if not any(node.op == "unfold" for node in function.nodes()):
        return []
    windows = (node.attrs["windows"][0] for node in function.nodes() if "windows" in node.attrs)
    found = {height.out for height in windows if height.out % cores == 0}
    return sorted(found, reverse=True)


def kernels(function: Function, cores: int) -> dict[str, Layout]:
    """The kernels of a forward pass whose outputs can be divided, and how."""
    found: dict[str, Layout] = {}
    for node in function.nodes():
        if node.op not in ("matmul", "conv") or node.inputs[1].op != "state":
            continue
        w = node.inputs[1]
        turned = node.attrs["tb"] if node.op == "matmul" else node.attrs["transposed_weights"]
        if node.attrs.get("groups", 1) > 1:
            continue
        try:
            pattern = even(node.shape[1], cores)
        except CannotSplitError:
            continue
        blocks = w.attrs["blocks"]
        found[w.name] = Layout(pattern, None, blocks) if turned else Layout(columns=pattern)
    return found


def cost(function: Function, side: int) -> float:
    """Cycles of a step, roughly; for comparing ways to do the same."""
    computed = (n for n in function.nodes() if not n.is_leaf and n.op != "quantise")
    return sum(cycles(node, side) for node in computed)


def _tiles(size: int, side: int) -> int:
    return -(-size // side)


def _rows(node: Node, side: int) -> int:
    rows, columns = node.shape
    if 1 in (rows, columns):
        return _tiles(rows * columns, side)
    return _tiles(rows, side) * side * _tiles(columns, side)


def cycles(node: Node, side: int) -> float:
    """Cycles of one node, roughly."""
    if node.op == ALL_SUM:
        return LATENCY + ROW_CYCLES * _rows(node, side)
    if OPS[node.op].product:
        return side * _products(node, side)
    rows = max(_rows(x, side) for x in (node, *node.inputs))
    if node.op == PICK:  # products, and their sums
        return 2 * rows
    return rows if node.op in (SPREAD, STACK) else rows / OPS_A_PASS


def _products(node: Node, side: int) -> float:
    """Tile products of a matmul, conv or conv_weight."""
    a, b = node.inputs
    if node.op == "matmul":
        inner = a.shape[0] if node.attrs["ta"] else a.shape[1]
        down, across, deep = (_tiles(size, side) for size in (*node.shape, inner))
        return down * across * deep * (1 if node.shape[0] > 1 else 1 / side)
    windows, groups = node.attrs["windows"], node.attrs["groups"]
    pairs = sum(len(outputs) for outputs, _ in tap_positions(windows))
    size = windows[0].size * windows[1].size
    samples = _tiles(a.shape[0] // size, side)
    channels = (a.shape[1], node.shape[1] if node.op == "conv" else b.shape[1])
    inputs, outputs = (_tiles(c, side) for c in channels)
    # Of groups, tiles that have none of their blocks are left out.
    tiles = inputs * outputs if groups == 1 else max(inputs, outputs, inputs * outputs // groups)
    return pairs * samples * tiles
