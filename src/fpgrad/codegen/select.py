"""Instruction selection: a function of the graph becomes symbolic passes and products.

Every node that is not folded into its user's pass (:mod:`match`) is computed by one pass into a buffer. Batch
tensors may be stored transposed: a pass that combines a tensor with a per-sample column, or reduces along features,
walks tiles by columns (lanes are samples), and writes what it finds in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fpgrad.codegen import bands, moves, pooling, reduction
from fpgrad.codegen.batches import Share, shares
from fpgrad.codegen.convolution import conv_passes, conv_weight, long_product
from fpgrad.codegen.exchange import all_sum
from fpgrad.codegen.fold import Folding
from fpgrad.codegen.geometry import banded
from fpgrad.codegen.inputs import (
    Band,
    Image,
    flatten,
    gather,
    image_of,
    lines_of,
    load_columns,
    load_image,
    unfold,
)
from fpgrad.codegen.kernels import Part, slices
from fpgrad.codegen.late import computed_late
from fpgrad.codegen.match import REDUCTIONS, Match
from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.persistent import Persistent
from fpgrad.codegen.products import is_splat, product, splat
from fpgrad.codegen.steps import (
    Access,
    Buffer,
    Limit,
    LoadStep,
    StepList,
    StoreStep,
    Value,
    VectorStep,
)
from fpgrad.codegen.storage import Grid, Quantised, Stored, Walk
from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, PICK, SPREAD, STACK, Function, Node
from fpgrad.isa.instructions import Source

#: Ops between cores that share maps.
BANDS = {SPREAD: bands.spread, PICK: bands.pick, STACK: bands.stack}

#: Ops whose results are 0 or 1.
BITS = ("gt", "ge", "eq")


class Selector:
    """Selects one function. Use :func:`select`."""

    def __init__(self, function: Function, persistent: Persistent) -> None:
        self.function = function
        self.keep = persistent
        self.t = persistent.side
        self.fold = Folding(function, self.t, persistent.terms, persistent.outside)
        self.out = StepList(function.name, turns=len(set(self.fold.turns.values())))
        self.stored: dict[Node, Stored] = {}
        self.quantised: dict[Node, Quantised] = {}
        self.images: dict[Node, Image] = {}
        self.bands: dict[Node, Band] = {}
        self.sliced: dict[tuple[Buffer, bool], list[Part]] = {}
        self.seeds: dict[Node, Buffer] = {}
        self.sent: dict[str, Stored] = {}

    def run(self) -> StepList:
        """Select the whole function."""
        roots = self.fold.choose()
        self.declare_inputs()
        inputs = [n for n in self.fold.nodes if n.op == "quantise" and n.inputs[0].op == "input"]
        # What is computed of one micro-batch comes before what is computed of the next.
        turns = {first: turn for turn, first in enumerate(sorted(set(self.fold.turns.values())))}
        for node in sorted([*inputs, *roots], key=self.fold.turns.__getitem__):
            done = len(self.out.steps)
            if node.op == "quantise":
                self.quantise_input(node)
            else:
                self.compute(node)
            for step in self.out.steps[done:]:
                step.turn = turns[self.fold.turns[node]]
                step.again |= node in self.fold.again
        last = len(self.out.steps)
        for state, value in self.function.updates:
            if self.fold.targets.get(value) is not state:
                self.copy_to_state(state, value)
        for name, node in self.function.outputs:
            for share, part in shares(name, node):
                self.output(share, part)
        for step in self.out.steps[last:]:
            step.turn = self.out.turns - 1
        self.out.steps = computed_late(self.out.steps, self.t)
        return self.out

    def declare_inputs(self) -> None:
        """Inbox buffers and their loads, the scalar file and the random seeds."""
        t = self.t
        inputs = self.function.inputs
        batch = [n for n in inputs if n.attrs["kind"] == "batch"]
        columns = [n for n in inputs if n.attrs["kind"] == "column"]
        scalars = [n for n in inputs if n.attrs["kind"] == "scalar" and self.fold.uses[n]]
        seeds = [n for n in inputs if n.attrs["kind"] == "seed" and self.fold.uses[n]]
        for node in self.fold.nodes:
            if node.op == "unfold":
                (x,) = node.inputs
                image = image_of(node, self.t)
                self.images[x] = image.around(self.images.get(x, image))
                if node.attrs["cores"] > 1:
                    self.bands[x] = lines_of(node, image)
        for node in batch:
            if node in self.images:
                self.stored[node] = load_image(self, node, self.images[node], self.bands.get(node))
                continue
            grid = self.keep.grid(node)
            buffer = Buffer(node.name, "inbox", grid.m * t * grid.j, t)
            gather(self, buffer, node, node.name, grid.j)
            self.stored[node] = Stored(buffer, grid, "samples")
        load_columns(self, columns)
        if len(scalars) > t:
            raise GraphError(
                f"{self.function.name}: {len(scalars)} scalar inputs, the scalar file holds {t}; "
                "use fewer groups of parameters or a larger tile side"
            )
        if scalars:
            self.prologue("scalars", scalars)
        if len(seeds) == 1 and seeds[0].name not in self.function.parts:
            self.prologue("seed", seeds)
        else:
            self.load_seeds(seeds)

    def prologue(self, op: str, nodes: list[Node]) -> None:
        """A row that comes with each step: scalars, or the generators' seeds."""
        buffer = Buffer(op, "inbox", 1)
        self.out.loads.append(LoadStep(buffer, op, 1, 1, step_stride=1))
        kind = "scalars" if op == "scalars" else "seed"
        self.out.steps.append(
            VectorStep(
                (1, 1, 1), Access(buffer), op=kind, layer="step", phase="forward", text=f"load {op}"
            )
        )
        del nodes

    def load_seeds(self, seeds: list[Node]) -> None:
        """A row for each tensor of random numbers, of all cores or of each; the pass that makes it begins with it."""
        parts = [self.function.parts.get(node.name) for node in seeds]
        rows = [1 if p is None else p.whole[0] for p in parts]
        for i, node in enumerate(seeds):
            buffer = self.seeds[node] = Buffer(node.name, "inbox", 1)
            each = 0 if parts[i] is None else 1
            self.out.loads.append(
                LoadStep(
                    buffer,
                    "seed",
                    1,
                    1,
                    offset=sum(rows[:i]),
                    step_stride=sum(rows),
                    core_stride=each,
                )
            )

    def begin_random(self, node: Node) -> None:
        """Set the generators for a random tensor that has a seed of its own."""
        buffer = self.seeds.get(node.inputs[0])
        if buffer is not None:
            self.add(node, VectorStep((1, 1, 1), Access(buffer), op="seed", text="load seed"))

    def place(self, node: Node) -> Stored:
        """Where a node's numbers lie."""
        if node in self.stored:
            return self.stored[node]
        if node.op == "state":
            return self.keep.add_state(node)
        if node.op == "const":
            return self.keep.constant(node)
        raise GraphError(f"{node.name or node.op} was not computed before its use")

    def tiles_of(self, node: Node) -> Quantised:
        """The tiles of a quantise node."""
        (x,) = node.inputs
        if x.op == "state":
            return self.keep.add_state_tile(x)
        if x.op == "const":
            return self.keep.constant_tile(x)
        return self.quantised[node]

    def slices(self, node: Node, kernel: Quantised) -> list[Part]:
        """The slices of a conv's kernel; none if it is on the chip."""
        layout = kernel.buffer.layout
        if layout is None:
            return []
        key = kernel.buffer, bool(node.attrs["transposed_weights"])
        if key not in self.sliced:
            self.sliced[key] = list(slices(kernel, layout, node))
        return self.sliced[key]

    def loops(self, grid: Grid) -> tuple[int, int, int]:
        """The loop nest of a pass over a tensor."""
        return (grid.m, grid.j, self.t) if grid.kind == "tiles" else (1, grid.m * grid.j, 1)

    def limits(self, grid: Grid, walk: Walk) -> tuple[Limit, Limit]:
        """Row and lane limits of a pass over a tensor."""
        t = self.t
        if grid.kind == "splat":
            return Limit(), Limit()
        if grid.kind == "vector":
            rest = 0 if grid.blocks > 1 else grid.rows * grid.columns % t
            return Limit(), Limit(1, rest) if rest else Limit()
        by_m = Limit(2, grid.rest) if grid.rest else Limit()
        by_j = Limit(1, grid.columns % t) if grid.columns % t else Limit()
        return (by_m, by_j) if walk is Walk.NORMAL else (by_j, by_m)

    def access(self, leaf: Node, grid: Grid, walk: Walk) -> Access:
        """Memory rows of an operand in a pass over a tensor of shape ``grid``."""
        t = self.t
        by_rows = leaf.op == "const" and leaf.shape[0] == 1 < leaf.shape[1]
        if by_rows and grid.kind == "tiles" and walk is Walk.TRANSPOSED:
            return Access(self.keep.constant(leaf, by_rows=True).buffer, s1=t, s0=1)
        stored = self.place(leaf)
        buffer, j = stored.buffer, stored.grid.j
        if stored.kind == "splat":
            return Access(buffer)
        if stored.kind == "samples":
            if stored.column is not None or stored.grid.columns == 1:
                step = {"s2": t} if grid.kind == "tiles" else {"s1": t}
                return Access(buffer, offset=stored.column or 0, transposed=True, **step)
            if walk is Walk.NORMAL:
                return Access(buffer, s2=t * j, s1=1, s0=j)
            if j == 1:
                return Access(buffer, s2=t, s0=1, transposed=True)
            stored = self.tiled(leaf)
            buffer = stored.buffer
        if stored.kind == "tiles":
            flipped = stored.transposed != (walk is Walk.TRANSPOSED)
            return Access(buffer, s2=j * t, s1=t, s0=1, transposed=flipped)
        if grid.kind != "tiles":
            return Access(buffer, s1=1)
        return Access(buffer, s2=1) if leaf.shape[1] == 1 else Access(buffer, s1=1)

    def tiled(self, leaf: Node) -> Stored:
        """A batch input copied from the inbox to tiles, so that it can be read by columns."""
        grid = self.keep.grid(leaf)
        if self.stored[leaf].kind == "samples":
            source = self.access(leaf, grid, Walk.NORMAL)
            buffer = Buffer(f"{leaf.name} tiles", "vector", grid.row_count, self.t)
            self.emit(
                leaf,
                VectorStep(self.loops(grid), source),
                Walk.NORMAL,
                Stored(buffer, grid, "tiles"),
            )
        return self.stored[leaf]

    def emit(
        self,
        node: Node,
        step: VectorStep,
        walk: Walk,
        stored: Stored | None,
        passes: Callable[[VectorStep], list[VectorStep]] | None = None,
    ) -> None:
        """Finish a pass that computes ``node``: limits, targets and names; ``passes`` makes several of it."""
        grid = self.keep.grid(node)
        t = self.t
        step.row_limit, step.lane_limit = self.limits(grid, walk)
        step.columns = grid.columns == 1 < grid.rows
        if stored is not None:
            tiles = grid.kind == "tiles"
            step.target = (
                Access(stored.buffer, s2=grid.j * t, s1=t, s0=1)
                if tiles
                else Access(stored.buffer, s1=1)
            )
            self.stored[node] = stored
        step.layer, step.phase = layer_of(node), phase_of(node)
        step.text = step.text or f"{node.name}: {node.op}"
        self.out.steps += banded(step, self.keep.band) if passes is None else passes(step)

    def add(self, node: Node, step: VectorStep) -> None:
        """Append a pass that works for ``node``."""
        step.layer, step.phase = layer_of(node), phase_of(node)
        step.text = step.text or f"{node.name}: {node.op}"
        self.out.steps.append(step)

    def new_rows(self, node: Node, transposed: bool = False) -> Stored:
        """A place for a node's numbers."""
        grid = self.keep.grid(node)
        buffer = Buffer(node.name or node.op, "vector", grid.row_count, self.t)
        transposed = transposed and grid.kind == "tiles"
        self.stored[node] = Stored(buffer, grid, grid.kind, transposed)
        return self.stored[node]

    def new_tiles(self, node: Node, quantise: Node, transposed: bool) -> Quantised:
        """A place for a node's tiles."""
        grid = self.keep.grid(node)
        buffer = Buffer(f"{node.name} tiles", "tile", grid.tile_count)
        self.quantised[quantise] = Quantised(buffer, grid, transposed)
        return self.quantised[quantise]

    def quantise_targets(self, node: Node, step: VectorStep, walk: Walk) -> bool:
        """Let the pass that computes ``node`` write its tiles too; whether it has any."""
        grid = self.keep.grid(node)
        state = self.fold.targets.get(node)
        quantise = self.fold.quantises.get(node)
        if state is not None and state.name in self.keep.state_tiles:
            q = self.keep.state_tiles[state.name]
        elif quantise is not None:
            transposed = (
                walk is Walk.TRANSPOSED if grid.kind == "tiles" else grid.columns == 1 < grid.rows
            )
            q = self.new_tiles(node, quantise, transposed)
        else:
            return False
        if quantise is not None:
            self.quantised[quantise] = q
        step.tile = Access(q.buffer, s2=grid.j, s1=1)
        return True

    def quantise_input(self, node: Node) -> None:
        """Quantise a batch input straight from the inbox."""
        (x,) = node.inputs
        grid = self.keep.grid(x)
        step = VectorStep(self.loops(grid), self.access(x, grid, Walk.NORMAL), text="quantise")
        self.quantise_targets(x, step, Walk.NORMAL)
        self.emit(x, step, Walk.NORMAL, None)

    def compute(self, node: Node) -> None:
        """Emit the passes that compute one node into its place."""
        if node in self.fold.unfolds:
            unfold(self, node, *self.fold.unfolds[node])
        elif node.op in ("matmul", "conv"):
            if self.fold.product_terms(node) > self.keep.terms:
                long_product(self, node)
            else:
                step = VectorStep(self.loops(self.keep.grid(node)), Source.ACC)
                self.finish(node, step, node, Walk.NORMAL)
        elif node.op == "conv_weight":
            conv_weight(self, node)
        elif node in self.fold.added:
            before, gradient = self.fold.added[node]
            conv_weight(self, gradient, (node, before))
        elif node.op == "pool":
            pooling.pool(self, node)
        elif node.op == "pool_max_grad":
            pooling.max_gradient(self, node)
        elif node.op in ("flatten", "unflatten"):
            flatten(self, node)
        elif node.op in REDUCTIONS:
            reduction.emit(self, node, self.fold.matches[node])
        elif node.op == ALL_SUM:
            all_sum(self, node)
        elif node.op in BANDS:
            BANDS[node.op](self, node)
        elif node.op == "concat":
            moves.concat(self, node)
        elif node.op == "slice":
            moves.cut(self, node)
        elif node.op == "uniform":
            self.begin_random(node)
            self.finish(
                node, VectorStep(self.loops(self.keep.grid(node)), Source.RANDOM), None, Walk.NORMAL
            )
        else:
            self.elementwise(node, self.fold.matches[node])

    def elementwise(self, node: Node, match: Match) -> None:
        """Emit a matched pass."""
        grid = self.keep.grid(node)
        streamed = self.fold.streamed(node, match)
        walk = self.fold.walk(node, match.leaves)
        assert walk is not None
        if (
            walk is Walk.NORMAL
            and grid.kind == "tiles"
            and streamed is None
            and node not in self.fold.targets
        ):
            walk = self.preferred_walk(match)
        values: dict[Node, Value] = {}
        for leaf in match.leaves:
            value = self.fold.immediate(leaf)
            if leaf is streamed:
                if leaf.op == "uniform":
                    self.begin_random(leaf)
                value = Source.RANDOM if leaf.op == "uniform" else Source.ACC
            values[leaf] = self.access(leaf, grid, walk) if value is None else value
        one, zero = Source.ONE, Source.ZERO
        step = VectorStep(
            self.loops(grid),
            values[match.a],
            one if match.b is None else values[match.b],
            zero if match.c is None else values[match.c],
            one if match.d is None else values[match.d],
            match.alu,
            match.function,
            match.negate_product,
            match.negate_c,
        )
        product = streamed if streamed is not None and streamed.op != "uniform" else None
        self.finish(node, step, product, walk)

    def preferred_walk(self, match: Match) -> Walk:
        """Transposed if that is how all stored operands lie and nothing stands against it."""
        tiles = [self.place(x) for x in match.leaves if self.fold.immediate(x) is None]
        rows = [x for x in match.leaves if x.shape[0] == 1 and x.shape[1] > 1 and x.op != "const"]
        batch = [s for s in tiles if s.kind in ("tiles", "samples") and s.grid.kind == "tiles"]
        if batch and not rows and all(s.transposed for s in batch):
            return Walk.TRANSPOSED
        return Walk.NORMAL

    def finish(
        self,
        node: Node,
        step: VectorStep,
        matmul: Node | None,
        walk: Walk,
        passes: Callable[[VectorStep], list[VectorStep]] | None = None,
    ) -> None:
        """Give a pass its product (a matmul or conv) and its targets, and emit it.

        Args:
            passes: makes the passes that are needed of the one that has all targets.
        """
        grid = self.keep.grid(node)
        if matmul is not None:
            step.text = f"{step.text} {matmul.op}".strip()
            if matmul.op == "conv":
                passes = partial(conv_passes, self, matmul)
            else:
                step.matrix = product(self, matmul)
        tiles = self.quantise_targets(node, step, walk)
        others = self.fold.uses[node] - (node in self.fold.quantises)
        state = self.fold.targets.get(node)
        stored = None
        if state is not None:
            stored = self.keep.add_state(state)
            step.text = step.text or "update"
        elif others or not tiles:
            align = self.t if grid.kind == "tiles" else 1
            flipped = walk is Walk.TRANSPOSED and grid.kind == "tiles"
            place = "vector"
            spread = matmul is not None and matmul.shape == (1, 1)  # is read once more
            if (node in self.fold.output_names and others == 1) or (
                self.fold.only_summed(node) and not spread
            ):
                place = "outbox"
            elif grid.kind == "tiles" and (node.op in BITS or self.fold.only_gates(node)):
                place = self.keep.bits
            buffer = Buffer(node.name or node.op, place, grid.row_count, align)
            stored = Stored(buffer, grid, grid.kind, flipped)
        self.emit(node, step, walk, stored, passes)
        if (
            matmul is not None
            and matmul.shape == (1, 1)
            and stored is not None
            and not is_splat(matmul)
        ):
            splat(self, node, stored)

    # Moving rows --------------------------------------------------------------------------------

    def features(self, node: Node) -> Access:
        """A batch tensor as its features' rows: i2 is the sample tile, i0 the feature."""
        stored = self.place(node)
        if stored.kind == "samples" and stored.grid.j > 1:
            stored = self.tiled(node)
        if stored.grid.columns == 1 or stored.column is not None:
            if stored.kind == "samples":
                return Access(stored.buffer, s2=self.t, offset=stored.column or 0, transposed=True)
            return Access(stored.buffer, s2=1)
        rows = stored.grid.j * self.t
        return Access(stored.buffer, s2=rows, s0=1, transposed=not stored.transposed)

    def complete(self, node: Node) -> None:
        """Copy a computed tensor to the tiles or the state that it should also be in."""
        grid = self.keep.grid(node)
        stored = self.stored[node]
        if node in self.fold.quantises:
            walk = Walk.TRANSPOSED if stored.transposed else Walk.NORMAL
            step = VectorStep(self.loops(grid), self.access(node, grid, walk), text="quantise")
            self.quantise_targets(node, step, walk)
            self.emit(node, step, walk, None)
            self.stored[node] = stored
        state = self.fold.targets.pop(node, None)
        if state is not None:
            self.copy_to_state(state, node)

    def copy_to_state(self, state: Node, value: Node) -> None:
        """Write a value to a state's place."""
        grid = self.keep.grid(state)
        immediate = self.fold.immediate(value)
        source = self.access(value, grid, Walk.NORMAL) if immediate is None else immediate
        step = VectorStep(self.loops(grid), source, text="update")
        if state.name in self.keep.state_tiles:
            step.tile = Access(self.keep.state_tiles[state.name].buffer, s2=grid.j, s1=1)
        before = self.stored.get(value)
        self.emit(value, step, Walk.NORMAL, self.keep.add_state(state))
        if before is not None:
            self.stored[value] = before

    def output(self, share: Share, node: Node) -> None:
        """Send an output, or a micro-batch of one, to DRAM through the outbox."""
        name, grid = share.whole, self.keep.grid(node)
        stored = self.stored.get(node)
        if stored is None or stored.buffer.place != "outbox":
            walk = Walk.TRANSPOSED if stored is not None and stored.transposed else Walk.NORMAL
            buffer = Buffer(f"{name} out", "outbox", grid.row_count, 1)
            flipped = walk is Walk.TRANSPOSED
            step = VectorStep(self.loops(grid), self.access(node, grid, walk), text="output")
            sent = Stored(buffer, grid, grid.kind, flipped)
            self.emit(node, step, walk, sent)
            if stored is not None:
                self.stored[node] = stored
            stored = sent
        whole = Grid(share.samples, node.shape[1], self.t)
        offset = share.first // node.shape[0] * grid.row_count
        self.out.stores.append(
            StoreStep(stored.buffer, name, grid.row_count, offset, step_stride=whole.row_count)
        )
        self.sent[name] = Stored(stored.buffer, whole, stored.kind, stored.transposed)


def select(function: Function, persistent: Persistent) -> Selector:
    """Select ``function`` (stage "quantised").

    Returns:
        the selector, whose ``out`` is the list of steps and ``sent`` the outputs' places.

    Raises:
        GraphError: an expression has no pass; the message names the user's layer.
    """
    selector = Selector(function, persistent)
    selector.run()
    return selector
