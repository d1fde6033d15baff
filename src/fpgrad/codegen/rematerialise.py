"""Computing again: windows of an input are made a second time for the backward pass, so that nobody has to keep them.

Such tiles are as large as the largest maps, and the passes that make them read nothing but the inbox. What the first
layer reads, and what the gradient of its kernel reads, is made piece by piece, shortly before it is needed, in a few
places that take turns.
"""

from __future__ import annotations

from collections.abc import Sequence

from fpgrad.codegen.steps import Access, Buffer, StepList, TileWalk, VectorStep, changed

#: Pieces that are there at a time: one can be made while another is read.
PLACES = 3


def compute_again(steps: StepList, side: int) -> None:
    """Give those who read an input's windows, the layer and its gradient, passes of their own that make them."""
    for buffer in windows(steps.steps, side):
        users = [s for s in steps.steps if s.matrix is not None and buffer in s.reads()]
        for phase in dict.fromkeys(s.phase for s in users):
            readers = [s for s in users if s.phase == phase]
            pieces = sorted({span(s, buffer, side) for s in readers})
            steps.steps = with_pieces(steps.steps, buffer, readers, pieces, side)
        steps.steps = [s for s in steps.steps if s.tile is None or s.tile.buffer is not buffer]


def windows(steps: Sequence[VectorStep], side: int) -> list[Buffer]:
    """Tiles that are made by passes over the inbox alone."""
    found: dict[Buffer, bool] = {}
    for step in steps:
        for r in step.tiles_written(side):
            alone = step.flow and step.matrix is None and step.target is None
            inputs = (v for v in step.operands if isinstance(v, Access))
            alone = alone and all(v.buffer.place == "inbox" for v in inputs)
            found[r.buffer] = found.get(r.buffer, True) and alone
    return [buffer for buffer, alone in found.items() if alone]


def span(step: VectorStep, buffer: Buffer, side: int) -> tuple[int, int]:
    """The tiles of a buffer that a step reads."""
    (r,) = (r for r in step.tiles_read(side) if r.buffer is buffer)
    return r.low, r.high


def with_pieces(
    steps: Sequence[VectorStep],
    buffer: Buffer,
    readers: Sequence[VectorStep],
    pieces: Sequence[tuple[int, int]],
    side: int,
) -> list[VectorStep]:
    """The steps, where ``readers`` find what they read of ``buffer`` in places that are written before each piece."""
    writers: dict[tuple[int, int], list[VectorStep]] = {}
    low: dict[tuple[int, int], int] = {}
    size = 0
    makers = [(s, r) for s in steps for r in s.tiles_written(side) if r.buffer is buffer]
    for piece in pieces:
        regions = {s: r for s, r in makers if r.low <= piece[1] and piece[0] <= r.high}
        writers[piece] = list(regions)
        low[piece] = min(r.low for r in regions.values())
        size = max(size, max(r.high for r in regions.values()) + 1 - low[piece])
    places = min(
        1 if readers[0].again else PLACES, len(pieces)
    )  # others wait for what is made of them
    again = Buffer(f"{buffer.name}, {readers[0].phase}", "tile", places * size)
    made: dict[tuple[int, int], int] = {}
    out: list[VectorStep] = []
    chosen = set(readers)
    for step in steps:
        if step not in chosen:
            out.append(step)
            continue
        piece = span(step, buffer, side)
        if piece not in made:
            made[piece] = len(made) % places * size - low[piece]
            for writer in writers[piece]:
                assert writer.tile is not None
                tile = moved(writer.tile, buffer, again, made[piece])
                out.append(writer.changed(tile=tile, phase=step.phase, again=True))
        out.append(reading(step, buffer, again, made[piece]))
    return out


def moved(a: Access, buffer: Buffer, to: Buffer, by: int) -> Access:
    """A walk over a tensor, over its copy."""
    return changed(a, buffer=to, offset=a.offset + by) if a.buffer is buffer else a


def reading(step: VectorStep, buffer: Buffer, to: Buffer, by: int) -> VectorStep:
    """A step whose product reads a copy."""
    m = step.matrix
    assert m is not None

    def at(w: TileWalk) -> TileWalk:
        return changed(w, base=moved(w.base, buffer, to, by))

    matrix = changed(m, streamed=at(m.streamed), stationary=at(m.stationary))
    return step.changed(matrix=matrix)
