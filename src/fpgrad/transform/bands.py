"""How cores share a map by its rows: the windows of a band, and what it needs of the bands beside it.

Spatial partitioning, as in Mesh-TensorFlow (Shazeer et al., arXiv:1811.02084) and Dryden et al. (arXiv:1903.06681). A
convolution or pool over a map of `size` rows becomes one over the band that a core has, with a halo: rows of the bands
before and after it. At the ends of the map the halo is zeros, which is what a window reads outside the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fpgrad.graph import Node, Window
from fpgrad.graph import builder as g
from fpgrad.graph.window import Windows, all_positions, transposed
from fpgrad.transform.layouts import Pattern


@lru_cache(maxsize=64)
def bands(rows: int, cores: int) -> Pattern:
    """Equal parts of a tensor's rows, the first for core 0: the same object each time, so that comparing is short."""
    each = rows // cores
    return tuple(tuple(range(core * each, (core + 1) * each)) for core in range(cores))


@dataclass(frozen=True)
class Band:
    """The window of a core's band of a map. before, after: rows of the halo, which its input begins and ends with."""

    window: Window
    before: int
    after: int

    @property
    def alone(self) -> bool:
        """Whether no other core's rows are read."""
        return self.before == self.after == 0


def band_of(window: Window, cores: int) -> Band | None:
    """The window of each core's band; None if bands do not read alike, or read beyond those beside them."""
    size, rest_in = divmod(window.size, cores)
    out, rest_out = divmod(window.out, cores)
    if rest_in or rest_out or out * window.stride != size * window.up:
        return None
    places = [
        o * window.stride + r * window.dilation - window.pad
        for o in range(out)
        for r in range(window.taps)
    ]
    sources = [place // window.up for place in places if place % window.up == 0]
    if not sources:
        return None
    before, after = max(0, -min(sources)), max(0, max(sources) - (size - 1))
    if max(before, after) > size:
        return None
    read = Window(
        before + size + after,
        out,
        window.taps,
        window.stride,
        window.dilation,
        window.pad - before * window.up,
        window.up,
    )
    return Band(read, before, after)


def reads_all(windows: Windows) -> bool:
    """Whether the single output position reads all of the map."""
    height, width = windows
    whole = all(w.out == 1 and w.taps == w.size and w.pad == 0 for w in windows)
    return windows == all_positions(width.size) or (
        whole and height.dilation == width.dilation == 1
    )


def halo(own: Node, positions: tuple[int, int], band: Band, cores: int) -> Node:
    """A core's band of a map of so many rows and columns with its halo.

    own: the band. The halos go through two sums, in which each core but the one at the end has a place.
    """
    rows, columns = positions
    total = own.shape[0]
    line = total * cores // (rows * columns) * columns
    parts = [own]
    if band.before:
        places = (0, cores - 1)
        last = g.spread(own, places, (total - band.before * line, total))
        parts.insert(0, g.pick(g.all_sum(last), places, -1))
    if band.after:
        places = (1, cores)
        first = g.spread(own, places, (0, band.after * line))
        parts.append(g.pick(g.all_sum(first), places, 1))
    return g.stack(parts) if len(parts) > 1 else own


def gathered(own: Node, cores: int) -> Node:
    """The whole of a tensor whose rows are in bands."""
    return g.all_sum(g.spread(own, (0, cores), (0, own.shape[0])))


def own_band(whole: Node, cores: int) -> Node:
    """A core's band of a tensor that all cores have."""
    return g.pick(whole, (0, cores), 0)


def everywhere(node: Node) -> int | None:
    """The positions of a map that a pool spreads one position over; None if that is not what the node does."""
    if node.op != "pool" or node.attrs["kind"] != "sum":
        return None
    windows = transposed(node.attrs["windows"])
    return windows[0].size * windows[1].size if reads_all(windows) else None
