"""What stays on the chip between steps: states, constants, and the quantised tiles of both.

All functions of a program share it. Its rows lie together at the start of vector memory, so that the host moves
the whole of it as one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fpgrad.codegen.batches import Share, share_of
from fpgrad.codegen.geometry import UNLIMITED
from fpgrad.codegen.kernels import Layout
from fpgrad.codegen.steps import Buffer, Place
from fpgrad.codegen.storage import Grid, Quantised, Stored
from fpgrad.errors import GraphError
from fpgrad.graph import ALL_SUM, OPS, Function, Node, Parts
from fpgrad.graph.window import taps

#: More than any machine has.
MANY = 1 << 40


@dataclass
class Persistent:
    """Buffers by what they hold.

    Args:
        side: T.
        terms: products that a sum may have without any risk of saturating the accumulators.
        bits: the memory for tensors of zeros and ones.
        few_rows: rows of vector memory that a single sum in turns may take.
        few_inputs: rows of the inbox that an input may take; larger ones come in pieces.
        band: tiles that a pass over a map goes through at most, about.
        blocks: of tensors whose rows are in blocks, how many.
        outside: names of the states that live in external memory.
        shares: micro-batches of metrics' states, by name; inside: where the rows of each lie in those of the whole.
        parts: of the states that every core has another part of.
        cores: for each core a number that it has as 1, and all others as 0.
    """

    side: int
    terms: int = 128
    bits: Place = "mask"
    few_rows: int = MANY
    few_inputs: int = MANY
    band: int = UNLIMITED
    blocks: dict[Node, int] = field(default_factory=dict)
    states: dict[str, Stored] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)
    shares: dict[str, Stored] = field(default_factory=dict)
    inside: dict[Buffer, tuple[Buffer, int]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    cores: dict[int, Stored] = field(default_factory=dict)
    state_tiles: dict[str, Quantised] = field(default_factory=dict)
    constants: dict[tuple[bytes, tuple[int, int], bool], Stored] = field(default_factory=dict)
    constant_rows: dict[Buffer, NDArray[np.float64]] = field(default_factory=dict)
    constant_tiles: dict[tuple[bytes, tuple[int, int]], tuple[Stored, Quantised]] = field(
        default_factory=dict
    )

    def grid(self, node: Node) -> Grid:
        """The node's shape in tiles."""
        return Grid(*node.shape, self.side, self.blocks.get(node, 1))

    def own(self, name: str) -> bool:
        """Whether each core has a state in the image for itself: metrics, and parts of divided tensors."""
        return self.roles[name] == "metric" or name in self.parts

    def find_blocks(self, function: Function) -> None:
        """Follow kernels' blocks through what is computed element by element from them."""
        for node in function.nodes():
            if node.op == "state":
                count = node.attrs["blocks"]
            elif node.op == "conv_weight":
                count = taps(node.attrs["windows"])
            elif node.op in ("quantise", ALL_SUM) or (node.op in OPS and OPS[node.op].elementwise):
                count = max(
                    self.blocks.get(x, 1) for x in node.inputs if x.shape[0] == node.shape[0]
                )
            else:
                continue
            if count > 1:
                self.blocks[node] = count
                for x in node.inputs:
                    if x.op == "const" and x.shape == node.shape:
                        self.blocks[x] = count

    def add_state(self, node: Node) -> Stored:
        """The place of a state, made at its first mention."""
        share = share_of(node)
        if share is not None:
            return self.add_share(node, share)
        known = self.states.get(node.name)
        if known is not None:
            if (known.grid.rows, known.grid.columns) != node.shape:
                raise GraphError(
                    f"state {node.name!r} has shape {node.shape} here and another elsewhere"
                )
            return known
        grid = self.grid(node)
        align = self.side if grid.kind == "tiles" else 1
        buffer = Buffer(node.name, "vector", grid.row_count, align, persistent=True)
        self.states[node.name] = Stored(buffer, grid, grid.kind)
        self.roles[node.name] = node.attrs["role"]
        return self.states[node.name]

    def add_share(self, node: Node, share: Share) -> Stored:
        """The place of a micro-batch of a state, which is among that of the whole one."""
        if node.name not in self.shares:
            whole, grid = self.states[share.whole], self.grid(node)
            buffer = Buffer(
                node.name, "vector", grid.row_count, whole.buffer.align, persistent=True
            )
            self.shares[node.name] = Stored(buffer, grid, grid.kind)
            offset = share.first // node.shape[0] * grid.row_count
            self.inside[buffer] = whole.buffer, offset
        return self.shares[node.name]

    def send_out(self, room: int) -> None:
        """Let the largest states live outside, until the others take no more than ``room`` rows."""
        sizes = {name: s.buffer.size for name, s in self.states.items()}
        total = sum(sizes.values())
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            stored = self.states[name]
            if total <= room or stored.kind != "tiles" or self.roles[name] == "metric":
                break
            stored.buffer.outside = True
            self.outside.add(name)
            total -= sizes[name]

    def send_tiles_out(self, kernels: Mapping[str, int], room: int, most: int) -> None:
        """Let the tiles of the largest kernels live outside, until the others take no more than ``room`` tiles.

        Args:
            kernels: names of those that can, with their taps.
            most: tiles of a slice at most, about.
        """
        total = sum(q.buffer.size for q in self.state_tiles.values())
        for name in sorted(kernels, key=lambda name: -self.state_tiles[name].buffer.size):
            q = self.state_tiles[name]
            if total <= room:
                break
            q.buffer.outside = True
            q.buffer.layout = Layout.of(q.grid, kernels[name], most)
            total -= q.buffer.size

    @property
    def outside_rows(self) -> int:
        """Rows of external memory for what persists there."""
        states = sum(self.states[name].buffer.size for name in self.outside)
        return states + sum(layout.size for _, layout in self.kernels_outside)

    @property
    def kernels_outside(self) -> list[tuple[Buffer, Layout]]:
        """Kernels whose tiles live outside."""
        buffers = (q.buffer for q in self.state_tiles.values())
        return [(b, b.layout) for b in buffers if b.layout is not None]

    def add_state_tile(self, node: Node) -> Quantised:
        """The quantised tiles of a state."""
        if node.name not in self.state_tiles:
            grid = self.grid(node)
            buffer = Buffer(node.name, "tile", grid.tile_count, persistent=True)
            self.state_tiles[node.name] = Quantised(
                buffer, grid, grid.columns == 1 and grid.rows > 1
            )
        return self.state_tiles[node.name]

    def core(self, number: int) -> Stored:
        """The place of what is 1 on a core, and 0 on the others."""
        if number not in self.cores:
            buffer = Buffer(f"core {number}", "vector", 1, persistent=True)
            self.cores[number] = Stored(buffer, Grid(1, 1, self.side), "splat")
        return self.cores[number]

    def constant(self, node: Node, by_rows: bool = False) -> Stored:
        """The place of a constant; ``by_rows`` spreads a (1, C) constant to C rows of equal lanes."""
        key = (node.value.tobytes(), node.shape, by_rows)
        if key not in self.constants:
            grid, t = self.grid(node), self.side
            rows = np.zeros((grid.j * t if by_rows else grid.row_count, t))
            if by_rows:
                rows[: node.shape[1]] = node.value.reshape(-1, 1)
            elif grid.kind == "splat":
                rows[:] = node.value
            elif grid.kind == "vector":
                rows.reshape(-1)[: node.value.size] = node.value.reshape(-1)
            else:
                padded = np.zeros((grid.m * t, grid.j * t))
                blocks = padded.reshape(grid.blocks, -1, grid.j * t)
                values = node.value.reshape(grid.blocks, -1, node.shape[1])
                blocks[:, : values.shape[1], : values.shape[2]] = values
                rows[:] = padded.reshape(grid.m, t, grid.j, t).transpose(0, 2, 1, 3).reshape(-1, t)
            align = 1 if grid.kind != "tiles" and not by_rows else t
            buffer = Buffer(
                f"constant {len(self.constants)}", "vector", len(rows), align, persistent=True
            )
            self.constant_rows[buffer] = rows
            self.constants[key] = Stored(buffer, grid, grid.kind)
        return self.constants[key]

    def constant_tile(self, node: Node) -> Quantised:
        """The quantised tiles of a constant. A vector's tiles repeat it in each row (see ``select.products``)."""
        key = (node.value.tobytes(), node.shape)
        if key not in self.constant_tiles:
            stored = self.constant(node)
            name = f"{stored.buffer.name} tiles"
            buffer = Buffer(name, "tile", stored.grid.tile_count, persistent=True)
            transposed = stored.grid.columns == 1 and stored.grid.rows > 1
            self.constant_tiles[key] = stored, Quantised(buffer, stored.grid, transposed)
        return self.constant_tiles[key][1]
