"""Which positions of a map a window combines, as affine pieces: the index arithmetic of convolutions and pools.

Along one axis, an output position reads the taps whose source exists. Positions that read alike, evenly spaced, are
one :class:`Segment`: inside it every address is affine, so that one instruction does all of it, and what would be
padding, or fall between the points of a stride, is in no segment. A :class:`Region` is a segment of rows with a
segment of columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from fpgrad.codegen.steps import Access, Limit, VectorStep, changed
from fpgrad.graph import Window

#: Tile rows times tiles across in one pass over a map, at least about: enough to hide what an instruction costs, few
#: enough that the next layer can begin while this one is at work.
BAND = 128

#: Bands of a map, at most about; those of a large one are larger.
BANDS = 128

#: Where there is little room, a band is smaller, but no less than this.
LEAST = 32

#: More tiles than any band has.
UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Segment:
    """Outputs ``first + a*step`` (a < count) read, by taps ``tap + b*tap_step`` (b < taps), the sources
    ``source + a*move + b*tap_move``. Without taps there is nothing to read.
    """

    first: int
    count: int
    step: int = 1
    tap: int = 0
    taps: int = 0
    tap_step: int = 1
    source: int = 0
    move: int = 0
    tap_move: int = 0

    def part(self, start: int, count: int) -> Segment:
        """``count`` of the outputs, from the ``start``-th on."""
        return replace(
            self,
            first=self.first + start * self.step,
            count=count,
            source=self.source + start * self.move,
        )


def band_of(tiles: int, most: int = UNLIMITED) -> int:
    """Tiles in a band of a map that has so many, where a band may have ``most``."""
    return min(max(LEAST, most), max(BAND, 1 << (2 * tiles // BANDS + 1).bit_length() - 1))


Reads = tuple[tuple[int, int], ...]
"""The taps of an output that exist, each with its source."""


@lru_cache(maxsize=1024)
def segments(window: Window, *, taps_matter: bool = True) -> tuple[Segment, ...]:
    """All outputs of an axis, those that read nothing too, in as few segments as their spacing allows.

    Args:
        taps_matter: outputs of one segment read the same taps (of a kernel), not only sources alike (of a pool).
    """
    reads: dict[int, Reads] = {o: tuple(window.reads(o)) for o in range(window.out)}

    def by_taps() -> tuple[Segment, ...]:
        return _grouped(reads, lambda pairs: tuple(r for r, _ in pairs))

    if taps_matter:
        return by_taps()
    by_sources = _grouped(reads, lambda pairs: tuple(x - pairs[0][1] for _, x in pairs))
    return by_sources if len(by_sources) == 1 else min(by_taps(), by_sources, key=len)


@lru_cache(maxsize=1024)
def tap_segments(window: Window, tap: int) -> tuple[Segment, ...]:
    """The outputs that read one tap."""
    reads: dict[int, Reads] = {
        o: ((tap, x),) for o in range(window.out) if (x := window.source(o, tap)) is not None
    }
    return _grouped(reads, lambda _: ())


def _grouped(
    reads: dict[int, Reads], key: Callable[[Reads], tuple[int, ...]]
) -> tuple[Segment, ...]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for o, pairs in reads.items():
        groups.setdefault(key(pairs), []).append(o)
    found = [
        segment
        for outputs in groups.values()
        for segment in _affine([(o, reads[o]) for o in outputs])
    ]
    return tuple(sorted(found, key=lambda s: s.first))


def _affine(outputs: list[tuple[int, Reads]]) -> list[Segment]:
    """Evenly spaced pieces with evenly spaced sources."""
    found: list[Segment] = []
    while outputs:
        (first, pairs), length, step, move = outputs[0], 1, 1, 0
        for (before, old), (o, new) in pairwise(outputs):
            by = new[0][1] - old[0][1] if new else 0
            if length == 1:
                step, move = o - before, by
            elif (o - before, by) != (step, move):
                break
            length += 1
        found.append(_segment(first, length, step, move, pairs))
        outputs = outputs[length:]
    return found


def _segment(first: int, count: int, step: int, move: int, pairs: Reads) -> Segment:
    if not pairs:
        return Segment(first, count, step)
    tap, source = pairs[0]
    tap_step, tap_move = 1, 0
    for second in pairs[1:2]:
        tap_step, tap_move = second[0] - tap, second[1] - source
    assert all(pair == (tap + b * tap_step, source + b * tap_move) for b, pair in enumerate(pairs))
    return Segment(first, count, step, tap, len(pairs), tap_step, source, move, tap_move)


@dataclass(frozen=True)
class Map:
    """How the positions and sample tiles of a map are numbered: tile row ``(h*width + w)*samples + m``."""

    height: int
    width: int
    samples: int  # sample tiles

    def walk(self, h: int, w: int, m: int = 0) -> int:
        """The tile row of a position and a sample tile; of differences too."""
        return (h * self.width + w) * self.samples + m


@dataclass(frozen=True)
class Region:
    """Output positions of a map that read alike, with all sample tiles or, where they are no single loop, with one.

    Args:
        h, w: rows and columns.
        output, source: the two maps.
        m: the sample tile, None: all.
    """

    h: Segment
    w: Segment
    output: Map
    source: Map
    m: int | None = None

    @property
    def taps(self) -> int:
        """Taps that each position reads."""
        return self.h.taps * self.w.taps

    @property
    def columns(self) -> int:
        """Iterations of the loop over columns, and sample tiles where those are in it."""
        return self.w.count * (self.output.samples if self.m is None else 1)

    def column_stride(self, through: Map, step: int) -> int:
        """Tile rows from one iteration of that loop to the next, where a column is ``step`` columns further."""
        if self.m is None and (through.samples > 1 or self.w.count == 1):
            return 1
        return through.walk(0, step)

    def written(self, a: Access) -> Access:
        """A walk over the whole output (s2 from tile row to tile row), here."""
        return changed(
            a,
            s3=a.s2 * self.output.walk(self.h.step, 0),
            s2=a.s2 * self.column_stride(self.output, self.w.step),
            offset=a.offset + a.s2 * self.output.walk(self.h.first, self.w.first, self.m or 0),
        )

    def read(self, a: Access, tap_h: int = 0, tap_w: int = 0) -> Access:
        """A walk over the whole source: what the output positions here read by these of their taps."""
        h = self.h.source + tap_h * self.h.tap_move
        w = self.w.source + tap_w * self.w.tap_move
        return changed(
            a,
            s3=a.s2 * self.source.walk(self.h.move, 0),
            s2=a.s2 * self.column_stride(self.source, self.w.move),
            offset=a.offset + a.s2 * self.source.walk(h, w, self.m or 0),
        )


def maps(windows: tuple[Window, Window], tile_rows: int) -> tuple[Map, Map]:
    """The output map, which has so many tile rows, and the source map."""
    h, w = windows
    samples = tile_rows // (h.out * w.out)
    return Map(h.out, w.out, samples), Map(h.size, w.size, samples)


def regions(
    windows: tuple[Window, Window],
    tile_rows: int,
    across: int,
    most: int = UNLIMITED,
    *,
    taps_matter: bool = True,
    first: tuple[int, int] | None = None,
) -> list[Region]:
    """All output positions, in regions of about a band at most.

    Args:
        tile_rows, across: the output's tiles. most: those of a band.
        first: rows from the one to before the other come first, by themselves.
    """
    output, source = maps(windows, tile_rows)
    rows = max(1, band_of(tile_rows * across, most) // (output.width * output.samples * across))
    high = [part for s in segments(windows[0], taps_matter=taps_matter) for part in cut(s, rows)]
    begin, end = first or (0, windows[0].out)
    high = [part for s in high for part in apart(s, (begin, end))]
    found: list[Region] = []
    for h in sorted(high, key=lambda s: (not begin <= s.first < end, s.first)):
        for w in segments(windows[1], taps_matter=taps_matter):
            found += _with_samples(h, w, output, source)
    return found


def cut(s: Segment, rows: int) -> list[Segment]:
    """A segment in parts that end where those of other segments of the axis do: at multiples of ``rows`` outputs."""
    parts: list[Segment] = []
    start = 0
    while start < s.count:
        first = s.first + start * s.step
        end = (first // (rows * s.step) + 1) * rows * s.step
        count = min(s.count - start, -(-(end - first) // s.step))
        parts.append(s.part(start, count))
        start += count
    return parts


def apart(s: Segment, at: tuple[int, ...]) -> list[Segment]:
    """A segment in parts that end before these outputs."""
    ends = [min(s.count, max(0, -(-(o - s.first) // s.step))) for o in sorted(at)]
    return [s.part(a, b - a) for a, b in pairwise([0, *ends, s.count]) if b > a]


def _with_samples(h: Segment, w: Segment, output: Map, source: Map) -> list[Region]:
    """Columns and sample tiles are one loop if both maps walk on evenly from column to column."""
    alone = w.count == 1 or output.samples == 1
    if alone or (w.step == 1 and (w.move == 1 or not w.taps)):
        return [Region(h, w, output, source)]
    return [Region(h, w, output, source, m) for m in range(output.samples)]


def by_tile_rows(step: VectorStep) -> VectorStep:
    """A pass over one number a sample, T samples a row, with the loops of a pass over a map; others as they are."""
    n3, n2, n1, n0 = step.loops
    if n3 == n2 == n0 == 1 < n1:
        return moved(step, (1, n1, 1, 1), columns)
    return step


def columns(a: Access) -> Access:
    """A walk over packed samples, from tile row to tile row."""
    return changed(a, s2=a.s1, s1=0)


def restricted(step: VectorStep, region: Region) -> VectorStep:
    """A pass over a whole map (loops: tile rows, tiles across, rows) for the positions of a region alone."""
    _, _, across, rows = step.loops
    return moved(step, (region.h.count, region.columns, across, rows), region.written)


def across(step: VectorStep, first: int, count: int) -> VectorStep:
    """A pass for ``count`` of its tiles across, from ``first`` on."""
    n3, n2, n1, n0 = step.loops
    if count == n1:
        return step
    part = moved(step, (n3, n2, count, n0), lambda a: changed(a, offset=a.offset + first * a.s1))
    if first + count < n1 and part.lane_limit.loop == 1:
        part.lane_limit = Limit()
    if first + count < n1 and part.row_limit.loop == 1:
        part.row_limit = Limit()
    return part


def moved(step: VectorStep, loops: tuple[int, ...], at: Callable[[Access], Access]) -> VectorStep:
    """A step with other loops, and ``at`` applied to all its walks over memory."""
    a, b, c, d = (at(v) if isinstance(v, Access) else v for v in step.operands)
    return step.changed(
        loops=loops,
        a=a,
        b=b,
        c=c,
        d=d,
        target=None if step.target is None else at(step.target),
        tile=None if step.tile is None else at(step.tile),
    )


def banded(step: VectorStep, most: int = UNLIMITED) -> list[VectorStep]:
    """A pass over many tile rows as passes over about a band each, of ``most`` tiles, with their products."""
    n3, n2, n1, n0 = step.loops
    rows = max(1, band_of(n2 * n1, most) // n1)
    if n3 > 1 or n2 <= 2 * rows:
        return [step]
    parts: list[VectorStep] = []
    for first in range(0, n2, rows):
        count = min(rows, n2 - first)
        part = moved(
            step,
            (1, count, n1, n0),
            lambda a, first=first: changed(a, offset=a.offset + first * a.s2),
        )
        if first + count < n2:
            part.row_limit = part.row_limit if part.row_limit.loop != 2 else Limit()
            part.lane_limit = part.lane_limit if part.lane_limit.loop != 2 else Limit()
        m = step.matrix
        if m is not None:
            streamed = m.streamed.base
            moved_base = changed(streamed, offset=streamed.offset + first * streamed.s1)
            part.matrix = changed(
                m,
                outputs=(1, count, m.outputs[2]),
                streamed=changed(m.streamed, base=moved_base),
                useful_macs=m.useful_macs * count // n2,
            )
        parts.append(part)
    return parts
