"""Feature maps: from the user's tensors to maps and back, and the windows of Keras's options.

Keras has two data formats, the graph one: a map's rows are positions and its columns channels. What
the user has channels first is the same map, its arrays transposed on the way to and from the device.
"""

from __future__ import annotations

from dataclasses import replace

from fpgrad.frontend.keras.context import Context, Grid, Value
from fpgrad.graph import OPS, Node, Window, Windows
from fpgrad.graph import builder as g
from fpgrad.graph.maps import tap_counts
from fpgrad.graph.window import pointwise, positions, taps

MIXED_FORMATS = (
    "use channels_last in the whole model; with channels_first, no Reshape between maps and "
    "vectors, and Flatten(data_format='channels_first')"
)
"""What to do where numbers would have to change their order."""

# Unfolded windows of an image fill the lanes that its few channels leave empty.
_MOST_UNFOLDED = 64
_FEW_CHANNELS = 16


def to_map(context: Context, where: str, value: Value, channels_first: bool) -> Value:
    """Returns ``value``, of rank 2 or 3, as a map; reports data formats that do not fit."""
    grid = Grid.of(value.shape, channels_first)
    shape = grid.shape(len(value.shape))
    if value.is_map:
        assert value.grid is not None
        have = (value.grid.positions, value.grid.channels, value.grid.order)
        if have == (grid.positions, grid.channels, grid.order):
            return Value(value.node, shape, grid)
    if value.order != grid.order:
        context.report(
            where,
            f"data_format={_name(channels_first)!r} does not fit the order of its input of shape "
            f"{(None, *value.shape)}",
            MIXED_FORMATS,
        )
        return Value(_spread(context.placeholder(where, shape).node, grid), shape, grid)
    return Value(_spread(to_vector(value).node, grid), shape, grid)


def to_vector(value: Value) -> Value:
    """Returns ``value`` with one row a sample, its numbers in their order as before."""
    if not value.is_map:
        return value
    assert value.grid is not None
    return value.like(g.flatten(value.node, value.grid.positions))


def natural_map(value: Value) -> Grid | None:
    """The grid of a map whose shape shows its channels, None for vectors and flattened maps."""
    if not value.is_map or value.grid is None or len(value.shape) not in (2, 3):
        return None
    fits = value.shape == value.grid.shape(len(value.shape))
    return value.grid if fits else None


def channel_format(rank: int, axis: int) -> bool | None:
    """Whether channels are first when they lie along Keras's ``axis``; None: neither first nor last.

    ``rank`` is that of one sample.
    """
    if rank not in (2, 3):
        return None
    if axis in (-1, rank):
        return False
    return True if axis in (1, -rank) else None


def _name(channels_first: bool) -> str:
    return "channels_first" if channels_first else "channels_last"


def _spread(node: Node, grid: Grid) -> Node:
    """A vector's numbers as a map. What was made of the model's input one by one is made again."""
    if grid.positions == 1:
        return node
    again = _on_windows(node, pointwise(grid.height, grid.width), grid.channels)
    return g.unflatten(node, grid.positions) if again is None else again


def _on_windows(node: Node, windows: Windows, channels: int) -> Node | None:
    """The windows of a node that is a batch input, or made of one number by number."""
    if node.op == "input":
        return g.unfold(node, windows, channels)
    operand = _single_operand(node)
    inner = None if operand is None else _on_windows(operand, windows, channels)
    return None if inner is None else _again(node, inner)


def _single_operand(node: Node) -> Node | None:
    """The one operand of a node that works number by number, besides constant numbers."""
    if node.is_leaf or not OPS[node.op].elementwise:
        return None
    operands = [x for x in node.inputs if not (x.op == "const" and x.shape == (1, 1))]
    return operands[0] if len(operands) == 1 else None


def _again(node: Node, operand: Node) -> Node:
    """The same op on another operand."""
    inputs = [x if x.op == "const" else operand for x in node.inputs]
    return g.make(node.op, inputs, node.name, **node.attrs)


# Windows ---------------------------------------------------------------------------------------


def window(
    size: int, kernel: int, stride: int = 1, dilation: int = 1, padding: str = "valid"
) -> Window:
    """One axis of a convolution or pooling, padded as TensorFlow does.

    ``padding`` is "valid", "same" or "causal".
    """
    reach = (kernel - 1) * dilation + 1
    if padding == "same":
        out = -(-size // stride)
        pad = max((out - 1) * stride + reach - size, 0) // 2
    else:
        pad = reach - 1 if padding == "causal" else 0
        out = (size + pad - reach) // stride + 1
    return Window(size, max(out, 1), kernel, stride, dilation, pad)


def transposed_window(
    size: int, kernel: int, stride: int, dilation: int, padding: str, output_padding: int | None
) -> Window:
    """One axis of a transposed convolution: that of the convolution whose gradient it is, turned.

    ``out`` and the padding are Keras's, keras/src/backend/common/backend_utils.py.
    """
    reach = (kernel - 1) * dilation + 1
    if padding == "valid":
        extra = max(stride - reach, 0) if output_padding is None else output_padding
        out, left = (size - 1) * stride + reach + extra, reach - 1
    else:
        if output_padding is None:
            out, total = size * stride, stride + reach - 2
        else:
            out = (size - 1) * stride + reach % 2 + output_padding
            total = reach + reach % 2 - 2 + output_padding
        left = min(total // 2 + total % 2, reach - 1)
    return Window(out, size, kernel, stride, dilation, reach - 1 - left).transposed


def padded(size: int, before: int, after: int) -> Window:
    """One axis of zero padding or, with negative numbers, of cropping."""
    return Window(size, size + before + after, 1, pad=before)


def repeated(size: int, times: int) -> Window:
    """One axis of nearest upsampling: each position ``times`` times."""
    if times == 1:
        return Window(size, size, 1)
    return Window(size, size * times, times, pad=times - 1, up=times)


def whole(grid: Grid) -> Windows:
    """The windows of one output position that reads all of a map, in the map's order."""
    return Window(grid.height, 1, grid.height), Window(grid.width, 1, grid.width)


def pads(windows: Windows) -> bool:
    """Whether any tap of any position is padding."""
    return bool(tap_counts(windows).min() < taps(windows))


# Convolutions ----------------------------------------------------------------------------------


def without_zero_padding(node: Node, windows: Windows) -> tuple[Node, Windows]:
    """Lets windows pad by themselves where a layer put zeros around the map before them."""
    while _is_zero_padding(node):
        inner: Windows = node.attrs["windows"]
        node = node.inputs[0]
        windows = (_through(windows[0], inner[0]), _through(windows[1], inner[1]))
    return node, windows


def unfolded(node: Node, windows: Windows, channels: int) -> Node | None:
    """The windows of a map of the model's input, (Pout*N, taps*channels), if that is the better way.

    It is where channels are few: the taps then share the lanes of a tile with them. The taps of a row must lie side
    by side.
    """
    if channels >= _FEW_CHANNELS or taps(windows) * channels > _MOST_UNFOLDED:
        return None
    if windows[1].taps > 1 and windows[1].dilation != 1:
        return None
    chain: list[Node] = []
    while node.op != "unfold":
        if _is_zero_padding(node):
            node, windows = without_zero_padding(node, windows)
            continue
        operand = _single_operand(node)
        if operand is None:
            return None
        chain.append(node)
        node = operand
    # Padding is zero after what was done to the numbers, not before.
    if taps(node.attrs["windows"]) > 1 or (pads(windows) and any(x.op != "mul" for x in chain)):
        return None
    result = g.unfold(node.inputs[0], windows, channels)
    for step in reversed(chain):
        result = _again(step, result)
    return result


def _is_zero_padding(node: Node) -> bool:
    return (
        node.op == "pool"
        and node.attrs["kind"] == "sum"
        and all(
            (w.taps, w.stride, w.up) == (1, 1, 1) and w.pad >= 0 and w.out >= w.size + w.pad
            for w in node.attrs["windows"]
        )
    )


def _through(outer: Window, inner: Window) -> Window:
    return replace(outer, size=inner.size, pad=outer.pad + inner.pad)


def is_pointwise(windows: Windows) -> bool:
    """Whether a convolution is a product of each position by itself."""
    return (
        taps(windows) == 1
        and positions(windows)[0] == positions(windows)[1]
        and all(w.is_identity for w in windows)
    )


__all__ = [
    "MIXED_FORMATS",
    "channel_format",
    "is_pointwise",
    "natural_map",
    "padded",
    "pads",
    "repeated",
    "to_map",
    "to_vector",
    "transposed_window",
    "unfolded",
    "whole",
    "window",
    "without_zero_padding",
]
