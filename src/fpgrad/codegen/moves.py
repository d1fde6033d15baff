"""Joining and cutting tensors by features: copies of rows of the transposed tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.steps import Access, Buffer, Limit, Value, VectorStep
from fpgrad.codegen.storage import Stored
from fpgrad.graph import Node
from fpgrad.isa.instructions import Source

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector


def concat(selector: Selector, node: Node) -> None:
    """Features are rows of the transposed tensor, so any widths join."""
    assemble(selector, node, [(x, 0, x.shape[1]) for x in node.inputs])


def cut(selector: Selector, node: Node) -> None:
    """The rows of some features."""
    start, stop = node.attrs["start"], node.attrs["stop"]
    assemble(selector, node, [(node.inputs[0], start, stop)])


def assemble(selector: Selector, node: Node, parts: list[tuple[Node, int, int]]) -> None:
    """Copy feature ranges one after the other into a transposed tensor, then quantise it if need be."""
    grid, t = selector.keep.grid(node), selector.t
    column = grid.columns == 1
    buffer = Buffer(node.name or node.op, "vector", grid.row_count, 1 if column else t)
    lanes = Limit(2, grid.rows % t) if grid.rows % t else Limit()
    at = 0
    moves: list[tuple[tuple[int, int, int], Value, int]] = []
    for x, start, stop in parts:
        source = selector.features(x)
        source = replace(source, offset=source.offset + start)
        moves.append(((grid.m, 1, stop - start), source, at))
        at += stop - start
    if at % t and not column:
        moves.append(((grid.m, 1, grid.j * t - at), Source.ZERO, at))
    for loops, source, offset in moves:
        target = Access(buffer, s2=1 if column else grid.j * t, s0=1, offset=offset)
        step = VectorStep(loops, source, lane_limit=lanes, target=target, text=node.op)
        step.layer, step.phase = layer_of(node), phase_of(node)
        selector.out.steps.append(step)
    selector.stored[node] = Stored(buffer, grid, grid.kind, transposed=not column)
    selector.complete(node)
