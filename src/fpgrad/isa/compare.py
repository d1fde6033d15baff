"""Where two machines differ: the memories of two executors of one program, compared word by word.

Every rung of the ladder of equality ends here, so that a mismatch names the user's tensor and element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.isa.program import Program, Symbol

#: Memories by the space of the symbols that lie in them.
_SPACE = {"mantissas": "tile", "exponents": "tile"}

#: Memories whose elements are plain integers; the others' are codes.
_INTEGERS = ("mask", "mantissas", "exponents")

#: Axes of a core's memories where they are not two.
_AXES = {"mantissas": 3, "exponents": 1, "scalars": 1, "random": 1}

Dump = Mapping[str, NDArray[Any]]


def first_difference(a: Dump, b: Dump, program: Program | None = None) -> str | None:
    """Compare two dumps (see ``dump`` of the executors).

    External memory that only one of them has touched counts as zeros there.

    Returns:
        None when every word of the memories that both have is equal; else a sentence with the memory, the place
        (core if there are several, tile, row and lane), the symbol it belongs to, both values, and how many words
        differ.
    """
    for name in a:
        if name not in b:
            continue
        left, right = _same_length(a[name], b[name]) if name == "dram" else (a[name], b[name])
        if left.shape != right.shape:
            return f"{name} has shape {left.shape} in one machine and {right.shape} in the other"
        differing = np.flatnonzero(left.reshape(-1) != right.reshape(-1))
        if not len(differing):
            continue
        index = tuple(int(i) for i in np.unravel_index(differing[0], left.shape))
        core, place = _core(name, index)
        symbol = "" if program is None else _symbol(program, name, place)
        rest = f"; {len(differing)} of {left.size} words differ" if len(differing) > 1 else ""
        values = f"{int(left[index]):#x} and {int(right[index]):#x}"
        if name in _INTEGERS:
            values = f"{int(left[index])} and {int(right[index])}"
        return f"{name} {core}{_place(name, place)}{symbol}: {values}{rest}"
    return None


def count_differences(a: Dump, b: Dump) -> tuple[int, int]:
    """How many words of the memories that both dumps have differ, and how many there are."""
    differing = words = 0
    for name in a:
        if name not in b:
            continue
        left, right = _same_length(a[name], b[name]) if name == "dram" else (a[name], b[name])
        words += left.size
        differing += int((left != right).sum()) if left.shape == right.shape else left.size
    return differing, words


def _same_length(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = max(len(a), len(b))
    return tuple(np.pad(x, ((0, rows - len(x)), (0, 0))) for x in (a, b))  # pyright: ignore[reportReturnType]


def _core(name: str, index: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Of which of several cores a memory's element is, and its index in that core's memory."""
    if len(index) == _AXES.get(name, 2):
        return "", index
    return f"of core {index[0]}, ", index[1:]


def _place(name: str, index: tuple[int, ...]) -> str:
    if name == "mantissas":
        return f"tile {index[0]}, row {index[1]}, lane {index[2]}"
    if name == "exponents":
        return f"tile {index[0]}"
    if len(index) == 1:
        return f"lane {index[0]}"
    return f"row {index[0]}, lane {index[1]}"


def _symbol(program: Program, name: str, index: tuple[int, ...]) -> str:
    """The symbols whose place this is, with the element of the tensor where there is one."""
    space = _SPACE.get(name, name)
    found = [
        s for s in program.symbols if s.space == space and s.base <= index[0] < s.base + s.size
    ]
    return (
        f" ({' or '.join(_element(s, index, program.config.side) for s in found)})" if found else ""
    )


def _element(symbol: Symbol, index: tuple[int, ...], side: int) -> str:
    at = index[0] - symbol.base + symbol.first
    if symbol.space == "tile":
        if len(index) == 1:
            return symbol.name
        tile, row, lane = at, index[1], index[2]
    else:
        tile, row, lane = at // side, at % side, index[1]
    if symbol.kind == "row":
        row, column = 0, at * side + lane
    elif symbol.kind == "column":
        row, column = at * side + lane, 0
    else:
        row, lane = (lane, row) if symbol.transposed else (row, lane)
        across = max(1, -(-symbol.columns // side))
        row, column = tile // across * side + row, tile % across * side + lane
    if row >= symbol.rows or column >= symbol.columns:
        return f"padding of {symbol.name}"
    return f"{symbol.name}[{row}, {column}]"
