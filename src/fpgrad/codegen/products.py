"""Products: a matmul of the graph becomes a matrix step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpgrad.codegen.names import layer_of, phase_of
from fpgrad.codegen.steps import Access, Buffer, MatrixStep, TileWalk, VectorStep
from fpgrad.codegen.storage import Grid, Stored
from fpgrad.graph import Node

if TYPE_CHECKING:
    from fpgrad.codegen.select import Selector


def product(selector: Selector, node: Node) -> MatrixStep:
    """The matrix step of a matmul. A column result is computed as the row that is its transpose."""
    a, b = node.inputs
    ta, tb = bool(node.attrs["ta"]), bool(node.attrs["tb"])
    rows, columns = node.shape
    inner = a.shape[0] if ta else a.shape[1]
    if (columns == 1 and rows > 1) or (rows == columns == 1 and a.inputs[0].op == "const"):
        a, b, ta, tb = b, a, not tb, not ta
        rows, columns = columns, rows
    qa, qb = selector.tiles_of(a), selector.tiles_of(b)
    grid = Grid(rows, columns, selector.t)
    am, ak = (1, qa.grid.j) if ta else (qa.grid.j, 1)
    bk, bj = (1, qb.grid.j) if tb else (qb.grid.j, 1)
    return MatrixStep(
        (1, grid.m, grid.j),
        (1, 1, Grid(inner, 1, selector.t).m),
        1 if rows == 1 else selector.t,
        TileWalk(Access(qa.buffer, s1=am, transposed=ta != qa.transposed), (0, 0, ak)),
        TileWalk(Access(qb.buffer, s0=bj, transposed=tb != qb.transposed), (0, 0, bk)),
        layer_of(node),
        phase_of(node),
        node.name or "matmul",
        rows * columns * inner,
    )


def is_splat(matmul: Node) -> bool:
    """Whether a (1, 1) product comes out equal in all lanes: its stationary tile repeats a constant."""
    return any(q.inputs[0].op == "const" for q in matmul.inputs)


def splat(selector: Selector, node: Node, stored: Stored) -> None:
    """Spread lane 0 over all lanes: the row is written T times, then a column of that tile is the answer."""
    t = selector.t
    tile = Buffer(f"{node.name} spread", "vector", t, t)
    spread = VectorStep((1, 1, t), Access(stored.buffer), target=Access(tile, s0=1))
    back = VectorStep((1, 1, 1), Access(tile, transposed=True), target=Access(stored.buffer))
    for step in (spread, back):
        step.layer, step.phase, step.text = layer_of(node), phase_of(node), "spread"
        selector.out.steps.append(step)
