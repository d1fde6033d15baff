"""Samples as rows of external memory: checked and packed before any of them is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import DataShapeError, InvalidArgumentError
from fpgrad.formats import FloatFormat
from fpgrad.host import pack

__all__ = ["Packed", "Packing", "Piece"]

#: Packs some samples: returns rows (samples * width, T) of words, and how many numbers saturated.
Rows = Callable[[NDArray], tuple[NDArray[np.uint32], int]]


@dataclass(frozen=True)
class Piece:
    """One input of all samples, or the columns that share rows.

    Attributes:
        key: by which a data set finds it.
        array: (samples, ...) numbers.
        rows: packs some of them.
        width: rows a sample.
    """

    key: str
    array: NDArray
    rows: Rows
    width: int


@dataclass(frozen=True)
class Packed:
    """Samples as words, ready to be sent: of each piece its width and its rows."""

    samples: int
    pieces: Mapping[str, tuple[int, NDArray[np.uint32]]]
    saturated: int


class Packing:
    """How a program's samples lie in external memory. Holds nothing, so that any thread may use it.

    Args:
        meta: of the program.
        number: the machine's format of numbers.
        side: T.
    """

    def __init__(self, meta: Mapping[str, Any], number: FloatFormat, side: int) -> None:
        self._functions = list(meta["functions"].values())
        self._number = number
        self._side = side
        empty = {
            info["name"]: np.zeros((1, info["columns"]), np.uint8)
            for function in self._functions
            for info in function["inputs"]
        }
        #: Rows that one sample takes with all its inputs.
        self.width = sum(piece.width for piece in self.pieces(empty)[1])

    def pieces(self, inputs: Mapping[str, ArrayLike]) -> tuple[int, list[Piece]]:
        """The number of samples and their pieces; see :meth:`fpgrad.host.session.Session.upload`.

        Raises:
            DataShapeError: arrays of different length or width. InvalidArgumentError: unknown names.
        """
        arrays = {k: np.asarray(v) for k, v in inputs.items()}
        lengths = {k: len(v) for k, v in arrays.items()}
        if not lengths or len(set(lengths.values())) != 1:
            raise DataShapeError(f"inputs must have the same number of samples, not {lengths}")
        samples = next(iter(lengths.values()))
        found: dict[str, Piece] = {}
        known: set[str] = set()
        for function in self._functions:
            for info in function["inputs"]:
                name = info["name"]
                known.add(name)
                if name in arrays and name not in found:
                    found[name] = self._batch(info, arrays[name].reshape(samples, -1))
            for group, names in enumerate(function["columns"]):
                known.update(names)
                key = f"columns {group}: {','.join(names)}"
                if key not in found:
                    found[key] = self._columns(key, names, arrays, samples)
        unknown = sorted(set(arrays) - known)
        if unknown:
            raise InvalidArgumentError(f"inputs must be among {sorted(known)}, not {unknown}")
        return samples, list(found.values())

    def pack(self, inputs: Mapping[str, ArrayLike]) -> Packed:
        """All samples as words.

        Raises:
            as :meth:`pieces`. DataError: an input of bytes holds other numbers than 0 to 255.
        """
        samples, pieces = self.pieces(inputs)
        done, saturated = {}, 0
        for piece in pieces:
            words, over = piece.rows(piece.array)
            done[piece.key] = piece.width, words
            saturated += over
        return Packed(samples, done, saturated)

    def _batch(self, info: Mapping[str, Any], array: NDArray) -> Piece:
        name, columns = info["name"], info["columns"]
        if array.shape[1] != columns:
            raise DataShapeError(
                f"{name} must have {columns} features a sample, not {array.shape[1]}"
            )
        return self._piece(name, array, partial(self._batch_rows, info))

    def _batch_rows(self, info: Mapping[str, Any], some: NDArray) -> tuple[NDArray[np.uint32], int]:
        some = pack.numbers(some)
        if "image" in info:
            some = pack.bordered(some, info["image"])
        if info.get("octets"):
            return pack.sample_octets(pack.octets(info["name"], some), self._side), 0
        return self._number_rows(some.astype(np.float32, copy=False))

    def _columns(
        self, key: str, names: list[str], arrays: Mapping[str, NDArray], samples: int
    ) -> Piece:
        columns = np.zeros((samples, len(names)), np.float32)
        for lane, name in enumerate(names):
            if name in arrays:
                columns[:, lane] = arrays[name].reshape(samples)
        return self._piece(key, columns, self._number_rows)

    def _number_rows(self, some: NDArray) -> tuple[NDArray[np.uint32], int]:
        words, over = pack.to_words(self._number, some)
        return pack.sample_rows(words, self._side), over

    def _piece(self, key: str, array: NDArray, rows: Rows) -> Piece:
        width = len(rows(np.zeros((1, *array.shape[1:]), array.dtype))[0])
        return Piece(key, array, rows, width)
