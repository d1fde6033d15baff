"""Splitting: passes and products over several tiles of rows become one for each.

The next layer can then begin with the first tile of samples while this one is busy with the second, and the optimizer
with the first rows of a weight matrix while the array makes the gradient of the others. It pays where tensors are
small, and costs instructions.
"""

from __future__ import annotations

from dataclasses import replace

from fpgrad.codegen.steps import Access, Limit, MatrixStep, StepList, TileWalk, Value, VectorStep

#: Passes over more tiles than this are left whole.
MOST = 4


def split(steps: StepList) -> StepList:
    """A step list with its small passes split."""
    return replace(steps, steps=[part for step in steps.steps for part in parts(step)])


def parts(step: VectorStep) -> list[VectorStep]:
    """A step as several, in the order in which the whole one goes."""
    n3, n2, n1, n0 = step.loops
    if n3 > 1:
        return [step]
    if 2 <= n2 <= MOST:
        return [part(step, i, n2, (1, n1, n0), "s2") for i in range(n2)]
    if step.columns and n2 == 1 and 2 <= n1 <= MOST:
        return [part(step, i, n1, (1, 1, n0), "s1") for i in range(n1)]
    return [step]


def part(
    step: VectorStep, i: int, count: int, loops: tuple[int, int, int], stride: str
) -> VectorStep:
    """Iteration ``i`` of the loop that ``stride`` belongs to."""
    loop = 2 if stride == "s2" else 1

    def move(value: Value) -> Value:
        return at(value) if isinstance(value, Access) else value

    def at(a: Access) -> Access:
        return replace(a, offset=a.offset + i * getattr(a, stride))

    def limit(x: Limit) -> Limit:
        return x if x.loop != loop or i == count - 1 else Limit()

    return replace(
        step,
        loops=loops,
        a=move(step.a),
        b=move(step.b),
        c=move(step.c),
        d=move(step.d),
        row_limit=limit(step.row_limit),
        lane_limit=limit(step.lane_limit),
        target=None if step.target is None else at(step.target),
        tile=None if step.tile is None else at(step.tile),
        matrix=None if step.matrix is None else product(step.matrix, i, count),
    )


def product(m: MatrixStep, i: int, count: int) -> MatrixStep:
    """Part ``i`` of ``count`` of a product, by output tile rows, or by columns where there is one row."""
    macs = m.useful_macs // count + (m.useful_macs % count if i == 0 else 0)
    by_rows = m.outputs[1] == count

    def at(w: TileWalk) -> TileWalk:
        stride = w.base.s1 if by_rows else w.base.s0
        return replace(w, base=replace(w.base, offset=w.base.offset + i * stride))

    outputs = (m.outputs[0], 1, m.outputs[2]) if by_rows else (*m.outputs[:2], 1)
    return replace(
        m,
        outputs=outputs,
        streamed=at(m.streamed),
        stationary=at(m.stationary),
        useful_macs=macs,
    )
