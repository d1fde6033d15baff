"""Images on their way from the inbox into maps, and between maps and vectors.

An image's numbers lie in the inbox one feature a row of the transposed tile: LOAD puts the T samples of a sample tile
side by side, so that reading columns gives a feature of T samples at once. A window of an image is then so many rows,
gathered by address arithmetic alone, and its tile is written transposed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fpgrad.codegen.batches import Share, share_of
from fpgrad.codegen.geometry import Map, band_of
from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.steps import Access, Buffer, LoadStep, Value, VectorStep
from fpgrad.codegen.storage import Grid, Stored, ceil_div
from fpgrad.errors import GraphError
from fpgrad.graph import Node
from fpgrad.graph.window import Window
from fpgrad.isa.instructions import Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector


@dataclass(frozen=True)
class Image:
    """An input of the model as it lies in external memory: (height, width, channels) with a border of zeros.

    Args:
        top, left: rows and columns of the border before the image; bottom, right: after it.
    """

    height: int
    width: int
    channels: int
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """With its border."""
        rows, columns = self.top + self.height + self.bottom, self.left + self.width + self.right
        return rows, columns, self.channels

    @property
    def features(self) -> int:
        """Numbers of a sample, the border's too."""
        rows, columns, channels = self.shape
        return rows * columns * channels

    def around(self, other: Image) -> Image:
        """An image with both borders."""
        if (self.height, self.width, self.channels) != (other.height, other.width, other.channels):
            raise GraphError("an input is read as images of different shapes")
        return Image(
            self.height,
            self.width,
            self.channels,
            max(self.top, other.top),
            max(self.bottom, other.bottom),
            max(self.left, other.left),
            max(self.right, other.right),
        )


@dataclass(frozen=True)
class Band:
    """What each core reads of an image that cores share by its rows.

    Args:
        lines: rows of the image, with its border. step: from those of one core to those of the next.
    """

    lines: int
    step: int


def lines_of(node: Node, image: Image) -> Band:
    """The rows of an image that the windows of a core's band read."""
    h = node.attrs["windows"][0]
    out = h.out // node.attrs["cores"]
    return Band(
        image.top - h.pad + (out - 1) * h.stride + (h.taps - 1) * h.dilation + 1, out * h.stride
    )


def image_of(node: Node, side: int) -> Image:
    """What an unfold asks of its input. Of cores that share it, each one's part begins with a row of external memory."""
    h, w = node.attrs["windows"]

    def border(x: Window) -> tuple[int, int]:
        if x.up != 1 or x.dilation < 1:
            raise GraphError(f"{node.name}: an input cannot be read through window {x}")
        last = (x.out - 1) * x.stride + (x.taps - 1) * x.dilation - x.pad
        return max(0, x.pad), max(0, last - (x.size - 1))

    image = Image(h.size, w.size, node.attrs["channels"], *border(h), *border(w))
    if node.attrs["cores"] == 1:
        return image
    each = side * (4 if node.inputs[0].attrs.get("octets") else 1)
    step = lines_of(node, image).step * image.channels
    wide = image.shape[1]
    while wide * step % each:
        wide += 1
    return replace(image, right=image.right + wide - image.shape[1])


def load_image(selector: Selector, node: Node, image: Image, band: Band | None = None) -> Stored:
    """The loads of an image input, one for each sample tile; of bytes, four times as many numbers a row.

    Args:
        band: what each core loads of it; None: all of it.
    """
    t, octets = selector.t, bool(node.attrs["octets"])
    samples = node.shape[0]
    share = share_of(node) or Share(node.name, 0, samples)
    if samples % t:
        raise GraphError(f"{node.name}: a batch of images must be a multiple of {t}, not {samples}")
    each = t * 4 if octets else t
    stride, apart, features = ceil_div(image.features, each), 0, image.features
    if band is not None:
        line = image.features // image.shape[0]
        features, apart = band.lines * line, band.step * line // each
    rows = ceil_div(features, each)
    lines = rows * (4 if octets else 1)
    grid = Grid(samples, features, t)
    buffer = Buffer(node.name, "inbox", samples // t * lines * t, t)
    loads = selector.out.loads
    if buffer.size > selector.keep.few_inputs:
        # It comes in pieces, when they are needed.
        buffer.outside, buffer.align = True, t * lines // rows
        loads = selector.out.fetches
    first = len(loads)
    for m in range(samples // t):
        loads.append(
            LoadStep(
                buffer,
                share.whole,
                t,
                rows,
                index="order",
                index_stride=share.samples // t,
                first=share.first + m * t,
                place=m * lines * t,
                group_stride=1,
                row_stride=t,
                octets=octets,
                core_stride=apart,
                stride=stride,
            )
        )
    buffer.loads = loads[first:] if buffer.outside else []
    return Stored(buffer, grid, "samples")


def load_columns(selector: Selector, columns: list[Node]) -> None:
    """The loads of numbers a sample: those of the same samples together, as many as there are lanes."""
    t = selector.t
    by_share: dict[int, list[Node]] = {}
    for node in columns:
        share = share_of(node)
        by_share.setdefault(0 if share is None else share.first, []).append(node)
    for group in by_share.values():
        for first in range(0, len(group), t):
            some = group[first : first + t]
            grid = selector.keep.grid(some[0])
            name = f"columns {first // t}"
            buffer = Buffer(name, "inbox", grid.m * t, t)
            gather(selector, buffer, some[0], name, 1)
            for lane, node in enumerate(some):
                selector.stored[node] = Stored(buffer, grid, "samples", column=lane)


def gather(selector: Selector, buffer: Buffer, node: Node, base: str, rows: int) -> None:
    """A load of an input's samples in the order of the step, ``rows`` for each."""
    load = LoadStep(buffer, base, node.shape[0], rows, index="order")
    share = share_of(node)
    if share is not None:
        load.base = share.whole if base == node.name else base
        load.first, load.index_stride = share.first, ceil_div(share.samples, selector.t)
        if node.shape[0] % selector.t:
            raise GraphError(
                f"{node.name}: micro-batches must be a multiple of {selector.t} samples, not {node.shape[0]}"
            )
    selector.out.loads.append(load)


def unfold(selector: Selector, root: Node, node: Node, scale: Value) -> None:
    """Windows of an image as rows of transposed tiles: tiles at once where only products read them.

    Args:
        root: what is stored, the unfold itself or its multiple.
        node: the unfold.
    """
    (x,) = node.inputs
    image, t = selector.images[x], selector.t
    h, w = node.attrs["windows"]
    h = replace(h, out=h.out // node.attrs["cores"])
    grid = selector.keep.grid(node)
    output = Map(h.out, w.out, grid.m // (h.out * w.out))
    _, columns, channels = image.shape
    source = selector.stored[x]
    per_tile = source.buffer.size // output.samples
    quantise = selector.fold.quantises.get(root)
    rows_needed = selector.fold.uses[root] - (quantise is not None) > 0
    stored = tiles = None
    if quantise is not None:
        tiles = selector.new_tiles(root, quantise, transposed=True)
    if rows_needed or quantise is None:
        stored = selector.new_rows(root, transposed=True)
        tail = grid.j * t - node.shape[1]
        if tail and grid.kind == "tiles":
            target = Access(stored.buffer, s2=grid.j * t, s0=1, offset=node.shape[1])
            selector.add(root, VectorStep((grid.m, 1, tail), Source.ZERO, target=target))
    joined = w.dilation == 1 or w.taps == 1
    inner = (h.taps, w.taps * channels) if joined else (w.taps, channels)
    band = max(1, band_of(grid.tile_count, selector.keep.band) // (output.width * grid.j))
    for m in range(output.samples):
        for r in range(1 if joined else h.taps):
            if not joined and tiles is not None:
                raise GraphError(
                    f"{node.name}: a dilated window of an input needs a map of its own"
                )
            for first in range(0, h.out, band):
                count = min(band, h.out - first)
                at = (
                    (first * h.stride + r * h.dilation - h.pad + image.top) * columns
                    - w.pad
                    + image.left
                ) * channels
                read = Access(
                    source.buffer,
                    s3=h.stride * columns * channels,
                    s2=w.stride * channels,
                    s1=h.dilation * columns * channels if joined else w.dilation * channels,
                    s0=1,
                    offset=m * per_tile + at,
                    transposed=True,
                )
                step = VectorStep((count, w.out, *inner), read, scale, flow=tiles is not None)
                row = output.walk(first, 0, m)
                if tiles is not None:
                    step.tile = Access(
                        tiles.buffer,
                        s3=output.walk(1, 0) * grid.j,
                        s2=output.walk(0, 1) * grid.j,
                        s1=1,
                        offset=row * grid.j,
                    )
                if stored is not None:
                    lines = grid.row_count // grid.m
                    step.target = Access(
                        stored.buffer,
                        s3=output.walk(1, 0) * lines,
                        s2=output.walk(0, 1) * lines,
                        s1=inner[1],
                        s0=1,
                        offset=row * lines + r * w.taps * channels,
                    )
                selector.add(root, step)


def flatten(selector: Selector, node: Node) -> None:
    """(P*N, C) to (N, P*C), or back: rows of the transposed tensor, copied."""
    (x,) = node.inputs
    t, count = selector.t, node.attrs["positions"]
    flat = node.op == "flatten"
    grid = selector.keep.grid(node)
    channels = x.shape[1] if flat else node.shape[1]
    vectors = grid if flat else selector.keep.grid(x)
    samples, wide = vectors.m, ceil_div(channels, t) * t
    source = selector.place(x)
    stored = selector.new_rows(node, transposed=True)

    # Feature c of position p: a row of the vector's transposed tiles, and of the map's.
    def of_vector(buffer: Buffer, turned: bool) -> Access:
        return Access(buffer, s3=vectors.j * t, s2=channels, s0=1, transposed=turned)

    def of_map(buffer: Buffer, turned: bool) -> Access:
        if channels == 1:  # T samples a row already
            return Access(buffer, s3=1, s2=samples)
        return Access(buffer, s3=wide, s2=samples * wide, s0=1, transposed=turned)

    read, write = (of_map, of_vector) if flat else (of_vector, of_map)
    tail = grid.j * t - node.shape[1]
    if tail and grid.kind == "tiles":
        target = Access(stored.buffer, s2=grid.j * t, s0=1, offset=node.shape[1])
        selector.add(node, VectorStep((grid.m, 1, tail), Source.ZERO, target=target))
    step = VectorStep(
        (samples, count, 1, channels),
        read(source.buffer, not source.transposed),
        target=write(stored.buffer, False),
        text=node.op,
    )
    step.layer, step.phase = layer_of(node), phase_of(node)
    selector.out.steps.append(step)
    selector.complete(node)
