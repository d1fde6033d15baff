"""A core's part of each op whose channels or positions are divided: one rule for each, see `fpgrad.transform.split`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fpgrad.graph import Node, describe
from fpgrad.graph import builder as g
from fpgrad.graph.window import taps
from fpgrad.transform.bands import Band, bands
from fpgrad.transform.layouts import (
    CannotSplitError,
    Layout,
    Value,
    channels_of,
    flat,
    same,
    side_by_side,
    whole_groups,
    window,
)

if TYPE_CHECKING:
    from fpgrad.transform.split import Splitter


def summed(node: Node) -> Value:
    """A core's part of a sum becomes the sum."""
    return Value(g.all_sum(node))


def _matmul(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    ta, tb = bool(node.attrs["ta"]), bool(node.attrs["tb"])
    x = s.settled(a)
    if s.lines is not None and (ta or a.op == "const") and not tb:
        x = _summed_rows(s, node)
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


def _summed_rows(s: Splitter, node: Node) -> Value:
    """The first operand of a product that sums over rows of the second: bands as that one is, or made so."""
    a, b = node.inputs
    x = s.settled(a)
    if s.in_bands(x) and node.attrs["ta"]:
        s.values[b] = s.own_rows(b)
    elif b.op != "state" and s.in_bands(s.settled(b)):
        if node.attrs["ta"]:
            return s.own_rows(a)
        layout = Layout(columns=s.rows_of(b).rows)
        return Value(layout.cut(a), layout)
    return x


def _product(node: Node, made: Node | None, inner: object, outer: tuple) -> Value:
    """Of a product: what it sums over is divided alike in both operands, or one of what is left."""
    rows, columns = outer
    if made is None or (inner is not None) + (rows is not None) + (columns is not None) > 1:
        raise CannotSplitError(f"operands of {describe(node)} are divided differently")
    return summed(made) if inner is not None else Value(made, Layout(rows, columns))


def _conv(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    windows, groups = node.attrs["windows"], node.attrs["groups"]
    turned = node.attrs["transposed_weights"]
    x, rows_out = s.settled(a), None
    height, width = windows
    band = s.band(height)
    if band is None:
        x = s.whole_rows(a)
    elif x.layout.columns is None:
        x = Value(s.with_halo(a, (height.size, width.size), band))
        windows, rows_out = (band.window, width), s.rows_of(node).rows
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
        made = g.conv(x.node, w.node, windows, turned, count)
        return Value(made, Layout(rows_out, outputs))
    made = g.conv(x.node, w.node, windows, turned) if made_in == inner else None
    return _product(node, made, inner, (rows_out, made_out))


def _conv_weight(s: Splitter, node: Node) -> Value:
    a, b = node.inputs
    groups, windows = node.attrs["groups"], node.attrs["windows"]
    x, dy = s.settled(a), s.settled(b)
    if s.in_bands(x) or s.in_bands(dy):
        band = s.band(windows[0])
        if band is not None:
            return _conv_weight_of_bands(s, node, band)
        x, dy = s.whole_rows(a), s.whole_rows(b)
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


def _conv_weight_of_bands(s: Splitter, node: Node, band: Band) -> Value:
    a, b = node.inputs
    height, width = node.attrs["windows"]
    dy = s.own_rows(b)
    if s.own_rows(a).layout.columns is not None or dy.layout.columns is not None:
        raise CannotSplitError(f"operands of {describe(node)} are divided in rows and channels")
    x = s.with_halo(a, (height.size, width.size), band)
    return summed(g.conv_weight(x, dy.node, (band.window, width), node.attrs["groups"]))


def _reduce(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    axis = node.attrs["axis"]
    if axis == 0 and node.op != "reduce_sum":
        x = s.whole_rows(node.inputs[0])
    made = g.make(node.op, (x.node,), axis=axis)
    along, across = (
        (x.layout.rows, x.layout.columns) if axis == 0 else (x.layout.columns, x.layout.rows)
    )
    if along is None:
        kept = Layout(columns=across) if axis == 0 else Layout(across, None, x.layout.blocks)
        return Value(made, kept)
    if node.op != "reduce_sum" or across is not None:
        raise CannotSplitError(f"{describe(node)} is taken over channels of different cores")
    return summed(made)


def _flatten(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    count, columns = node.attrs["positions"], x.layout.columns
    if node.op == "flatten" and s.in_bands(x):
        made = g.flatten(x.node, count // s.cores)
        return Value(made, Layout(columns=bands(node.shape[1], s.cores)))
    if s.lines is not None and columns is not None and count % s.cores == 0:
        of_bands = columns == bands(node.inputs[0].shape[1], s.cores)
        if node.op == "unflatten" and of_bands:
            return Value(g.unflatten(x.node, count // s.cores), s.rows_of(node))
    if columns is not None:
        move = flat if node.op == "flatten" else channels_of
        wide = node.inputs[0].shape[1] if node.op == "flatten" else node.shape[1]
        columns = move(columns, count, wide)
    return Value(g.make(node.op, (x.node,), positions=count), Layout(columns=columns))


def _max_gradient(s: Splitter, node: Node) -> Value:
    values = [s.settled(x) for x in node.inputs]
    if any(map(s.in_bands, values)):
        height, width = node.attrs["windows"]
        band = s.band(height)
        if band is not None and band.alone:
            made = [s.own_rows(x).node for x in node.inputs]
            return Value(g.make(node.op, made, windows=(band.window, width)), s.rows_of(node))
        values = [s.whole_rows(x) for x in node.inputs]
    layout = same([v.layout for v in values], describe(node))
    return Value(g.make(node.op, [v.node for v in values], **node.attrs), layout)


def _unfold(s: Splitter, node: Node) -> Value:
    x = s.settled(node.inputs[0])
    attrs = node.attrs
    if s.divides(attrs["windows"][0].out) and s.uses[node.inputs[0]] == 1:
        return Value(g.make("unfold", (x.node,), **{**attrs, "cores": s.cores}), s.rows_of(node))
    return Value(g.make("unfold", (x.node,), **attrs))


def _concat(s: Splitter, node: Node) -> Value:
    values = [s.settled(x) for x in node.inputs]
    if any(map(s.in_bands, values)):
        values = [s.own_rows(x) for x in node.inputs]
        if all(v.layout.columns is None for v in values):
            return Value(g.make("concat", [v.node for v in values]), s.rows_of(node))
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


RULES: Mapping[str, Callable[[Splitter, Node], Value]] = {
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
