"""Arrays to rows of 32-bit words and back: how tensors lie in external memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fpgrad.errors import DataError
from fpgrad.formats import FloatFormat, from_float, to_float


def to_words(number: FloatFormat, values: ArrayLike) -> tuple[NDArray[np.uint32], int]:
    """Words of numbers rounded to the machine's format, and how many of them saturated."""
    v = np.asarray(values)
    if number.exponent_bits == 8 and number.mantissa_bits < 23 and v.dtype == np.float32:
        return float32_words(number, v)
    codes, over = from_float(number, v)
    return (codes << (32 - number.width)).astype(np.uint32), int(over.sum())


def float32_words(
    number: FloatFormat, values: NDArray[np.float32]
) -> tuple[NDArray[np.uint32], int]:
    """The same for float32 arrays and formats that are a part of float32, much faster. Values must be finite."""
    drop = 23 - number.mantissa_bits
    limit = np.uint32(number.max_code << drop)
    u = np.ascontiguousarray(values).view(np.uint32)
    # In place, array by array: this is most of the time that an upload takes. No carry reaches the sign.
    words = u >> np.uint32(drop)
    words &= np.uint32(1)
    words += np.uint32((1 << (drop - 1)) - 1)
    words += u
    words &= np.uint32(0x1_0000_0000 - (1 << drop))
    body = words & np.uint32(0x7FFFFFFF)
    saturated = 0
    if body.size and body.max() > limit:
        over = body > limit
        saturated = int(over.sum())
        words[over] = words[over] & np.uint32(0x80000000) | limit
    np.bitwise_and(u, np.uint32(0x7F800000), out=body)
    np.copyto(words, np.uint32(0), where=body == 0)
    return words, saturated


def from_words(number: FloatFormat, words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The numbers of words, as float32 (exact); where they are the same bits, a view of them."""
    if number.exponent_bits == 8:
        return words.view(np.float32)
    return to_float(number, words.astype(np.int64) >> (32 - number.width)).astype(np.float32)


def state_rows(
    values: NDArray[np.float32], info: Mapping[str, Any], side: int
) -> NDArray[np.float32]:
    """A state's rows (rows, T), padded with zeros."""
    rows, columns = info["shape"]
    out = np.zeros((info["rows"], side), np.float32)
    v = np.asarray(values, np.float32).reshape(rows, columns)
    if info["kind"] == "splat":
        out[:] = v
    elif info["kind"] == "vector":
        blocks = info.get("blocks", 1)
        out.reshape(blocks, -1)[:, : v.size // blocks] = v.reshape(blocks, -1)
    else:
        blocks = info.get("blocks", 1)
        m, j = blocks * -(-(rows // blocks) // side), -(-columns // side)
        padded = np.zeros((blocks, m // blocks * side, j * side), np.float32)
        padded[:, : rows // blocks, :columns] = v.reshape(blocks, -1, columns)
        out[:] = padded.reshape(m, side, j, side).transpose(0, 2, 1, 3).reshape(-1, side)
    return out


def tensor(
    rows: NDArray[Any], shape: tuple[int, int], kind: str, transposed: bool, blocks: int = 1
) -> NDArray[Any]:
    """A tensor from its rows (..., rows, T): the inverse of :func:`state_rows`, transposed tiles included.

    Returns:
        shape (..., R, C).
    """
    side, (r, c) = rows.shape[-1], shape
    lead = rows.shape[:-2]
    if kind == "splat":
        return rows[..., :1, :1].reshape(*lead, 1, 1).copy()
    if kind == "vector":
        return rows.reshape(*lead, blocks, -1)[..., : r * c // blocks].reshape(*lead, r, c)
    m, j = blocks * -(-(r // blocks) // side), -(-c // side)
    tiles = rows.reshape(*lead, m, j, side, side)
    if transposed:
        tiles = tiles.swapaxes(-1, -2)
    full = tiles.swapaxes(-2, -3).reshape(*lead, blocks, m // blocks * side, j * side)
    return full[..., : r // blocks, :c].reshape(*lead, r, c)


def whole_shape(info: Mapping[str, Any]) -> tuple[int, int]:
    """The shape of a state as the user of a session sees it, of which cores may have parts."""
    if info["split"] is not None:
        rows, columns = info["split"]["whole"]
        return rows, columns
    return info["parts"] * info["shape"][0], info["shape"][1]


def parts_of(values: NDArray[np.float32], info: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """What each core has of a state (:func:`whole_shape`): one array for all, or one for each."""
    if info["split"] is None:
        return list(values.reshape(info["parts"], *info["shape"]))
    return [values[index] for index in _part_indices(info["split"])]


def whole(parts: NDArray[np.float32], info: Mapping[str, Any]) -> NDArray[np.float32]:
    """The inverse of :func:`parts_of`, from the arrays of all cores (C, R, C)."""
    if info["split"] is None:
        return parts[: info["parts"]].reshape(-1, info["shape"][1]).copy()
    values = np.zeros(whole_shape(info), np.float32)
    for part, index in zip(parts, _part_indices(info["split"]), strict=True):
        values[index] = part
    return values


def _part_indices(split: Mapping[str, Any]) -> list[tuple[NDArray[np.intp], ...]]:
    """For each core the index of its part in an array of the whole."""
    axes = (split["rows"], split["columns"])
    cores = len(next(ranges for ranges in axes if ranges is not None))
    return [
        np.ix_(
            *(
                np.arange(size)
                if ranges is None
                else np.concatenate([np.arange(*r) for r in ranges[core]])
                for size, ranges in zip(split["whole"], axes, strict=True)
            )
        )
        for core in range(cores)
    ]


def numbers(values: NDArray) -> NDArray:
    """As float32, or as the bytes that they are."""
    return values if values.dtype == np.uint8 else values.astype(np.float32, copy=False)


def octets(name: str, values: NDArray) -> NDArray[np.uint8]:
    """Whole numbers from 0 to 255 as bytes.

    Raises:
        DataError: others.
    """
    if values.dtype == np.uint8:
        return values
    whole = np.clip(values, 0, 255).astype(np.uint8)
    if not np.array_equal(whole, values):
        raise DataError(f"{name} must hold whole numbers from 0 to 255: the model takes bytes")
    return whole


def sample_octets(values: NDArray[np.uint8], side: int) -> NDArray[np.uint32]:
    """Samples of bytes (n, F) as rows (n * ceil(F/4T), T) of words: features padded with zeros."""
    n, features = values.shape
    out = np.zeros((n, -(-features // (4 * side)) * 4 * side), np.uint8)
    out[:, :features] = values
    return out.view("<u4").reshape(-1, side)


def bordered(values: NDArray, image: Mapping[str, int]) -> NDArray:
    """Images (n, H*W*C) with a border of zeros, flat again.

    Args:
        image: height, width and channels, and the border's top, bottom, left and right.
    """
    shape = image["height"], image["width"], image["channels"]
    border = ((image["top"], image["bottom"]), (image["left"], image["right"]))
    whole = np.pad(values.reshape(-1, *shape), ((0, 0), *border, (0, 0)))
    return whole.reshape(len(values), -1)


def sample_rows(words: NDArray[np.uint32], side: int) -> NDArray[np.uint32]:
    """Samples (n, F) as rows (n * ceil(F/T), T): features padded with zeros."""
    n, features = words.shape
    if features % side == 0:
        return words.reshape(-1, side)
    width = -(-features // side) * side
    out = np.empty((n, width), np.uint32)
    out[:, :features] = words
    out[:, features:] = 0
    return out.reshape(-1, side)
