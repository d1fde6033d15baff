"""The ops on feature maps: convolution, its weight gradient, unfolding, pooling, flattening.

A map of N samples, P = H*W positions and C channels is a node (P*N, C) with row p*N + n: positions
outermost, p = h*W + w. N is what the rows leave when divided by the positions of the windows. All
loops here are over taps, t = r*S + s for tap r of S of the height and s of the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import GraphError
from fpgrad.graph.node import Shape
from fpgrad.graph.record import CORE, Array, Attrs, OpRecord
from fpgrad.graph.window import Window, Windows, positions, taps

POOL_KINDS = ("sum", "max")

_Indices = NDArray[np.intp]


@lru_cache(maxsize=64)
def tap_positions(windows: Windows) -> tuple[tuple[_Indices, _Indices], ...]:
    """For each tap, the output positions that have a source and, in step, their input positions."""
    height, width = windows
    rows = [np.array(height.sources(r), np.intp).reshape(-1, 2) for r in range(height.taps)]
    cols = [np.array(width.sources(s), np.intp).reshape(-1, 2) for s in range(width.taps)]
    return tuple(
        (
            (row[:, 0, None] * width.out + col[None, :, 0]).ravel(),
            (row[:, 1, None] * width.size + col[None, :, 1]).ravel(),
        )
        for row in rows
        for col in cols
    )


def tap_counts(windows: Windows) -> NDArray[np.intp]:
    """For each output position, the number of taps that are not padding."""
    counts = np.zeros(positions(windows)[1], np.intp)
    for outputs, _ in tap_positions(windows):
        counts[outputs] += 1
    return counts


def group_mask(shape: Shape, blocks: int, groups: int) -> Array:
    """1 inside the groups of a kernel of `blocks` taps, 0 outside.

    Row i and column j of each block belong to groups i // (rows/groups) and j // (cols/groups).
    """
    rows = np.arange(shape[0]) % (shape[0] // blocks) * groups // (shape[0] // blocks)
    cols = np.arange(shape[1]) * groups // shape[1]
    return (rows[:, None] == cols[None, :]).astype(np.float64)


# Shapes


def _windows(attrs: Attrs) -> Windows:
    windows = attrs["windows"]
    if not (
        isinstance(windows, tuple)
        and len(windows) == 2
        and all(isinstance(window, Window) for window in windows)
    ):
        raise GraphError(f"windows must be two, of height and width, not {windows!r}")
    return windows


def _samples(what: str, rows: int, count: int) -> int:
    """Samples of a map of `count` positions."""
    if count < 1 or rows % count:
        raise GraphError(f"rows of {what} must be a multiple of its {count} positions, not {rows}")
    return rows // count


def _check_groups(groups: int, inputs: int, outputs: int) -> None:
    if groups < 1 or inputs % groups or outputs % groups:
        raise GraphError(f"groups must divide {inputs} and {outputs} channels, not be {groups!r}")


def _conv_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    (rows, channels), (kernel_rows, kernel_cols) = shapes
    windows = _windows(attrs)
    count, (size, out) = taps(windows), positions(windows)
    samples = _samples("the map", rows, size)
    if attrs["transposed_weights"]:
        fits = kernel_rows % count == 0 and kernel_cols == channels
        wanted, outputs = f"({count}*outputs, {channels})", kernel_rows // count
    else:
        fits = kernel_rows == count * channels
        wanted, outputs = f"({count}*{channels}, outputs)", kernel_cols
    if not fits:
        raise GraphError(
            f"kernel of {count} taps for {channels} channels must be {wanted}, not {shapes[1]}"
        )
    _check_groups(attrs["groups"], channels, outputs)
    return out * samples, outputs


def _conv_weight_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    (rows, channels), (out_rows, outputs) = shapes
    windows = _windows(attrs)
    size, out = positions(windows)
    _check_samples(_samples("the map", rows, size), _samples("the cotangent", out_rows, out))
    _check_groups(attrs["groups"], channels, outputs)
    return taps(windows) * channels, outputs


def _check_samples(first: int, second: int) -> None:
    if first != second:
        raise GraphError(f"both maps must have equal samples, not {first} and {second}")


def _unfold_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = shapes[0]
    windows, channels = _windows(attrs), attrs["channels"]
    size, out = positions(windows)
    if cols != size * channels:
        raise GraphError(
            f"samples of {size} positions and {channels} channels have {size * channels} columns,"
            f" not {cols}"
        )
    if windows[0].out % attrs["cores"]:
        raise GraphError(f"{windows[0].out} rows of windows are no {attrs['cores']} equal bands")
    return out * rows // attrs["cores"], taps(windows) * channels


def _pool_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, channels = shapes[0]
    if attrs["kind"] not in POOL_KINDS:
        raise GraphError(f"kind must be one of {POOL_KINDS}, not {attrs['kind']!r}")
    size, out = positions(_windows(attrs))
    return out * _samples("the map", rows, size), channels


def _pool_max_grad_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    pooled = _pool_shape(shapes[:1], {"windows": attrs["windows"], "kind": "max"})
    if shapes[1] != pooled or shapes[2] != pooled:
        raise GraphError(f"maximum and cotangent must be {pooled}, not {shapes[1]} and {shapes[2]}")
    return shapes[0]


def _flatten_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, channels = shapes[0]
    return _samples("the map", rows, attrs["positions"]), attrs["positions"] * channels


def _unflatten_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    samples, cols = shapes[0]
    count = attrs["positions"]
    if count < 1 or cols % count:
        raise GraphError(f"columns must be a multiple of the {count} positions, not {cols}")
    return count * samples, cols // count


# Meanings


def _by_position(x: Array, count: int) -> Array:
    return x.reshape(count, x.shape[0] // count, x.shape[1])


def _conv(operands: Sequence[Array], attrs: Attrs) -> Array:
    x, w = operands
    windows = attrs["windows"]
    size, out = positions(windows)
    x, w = _by_position(x, size), _by_position(w, taps(windows))
    if attrs["transposed_weights"]:
        w = w.transpose(0, 2, 1)
    y = np.zeros((out, x.shape[1], w.shape[2]))
    for tap, (outputs, sources) in enumerate(tap_positions(windows)):
        y[outputs] += x[sources] @ w[tap]
    return y.reshape(-1, y.shape[2])


def _conv_weight(operands: Sequence[Array], attrs: Attrs) -> Array:
    windows = attrs["windows"]
    x, dy = (_by_position(a, n) for a, n in zip(operands, positions(windows), strict=True))
    channels, outputs = x.shape[2], dy.shape[2]
    blocks = [
        x[sources].reshape(-1, channels).T @ dy[targets].reshape(-1, outputs)
        for targets, sources in tap_positions(windows)
    ]
    return np.concatenate(blocks)


def _unfold(operands: Sequence[Array], attrs: Attrs) -> Array:
    windows, channels = attrs["windows"], attrs["channels"]
    size, out = positions(windows)
    samples = operands[0].shape[0]
    x = operands[0].reshape(samples, size, channels).transpose(1, 0, 2)
    y = np.zeros((out, samples, taps(windows), channels))
    for tap, (outputs, sources) in enumerate(tap_positions(windows)):
        y[outputs, :, tap] = x[sources]
    bands = np.split(y.reshape(out * samples, -1), attrs["cores"])
    return bands[attrs.get(CORE, 0) % attrs["cores"]]


def _pool(operands: Sequence[Array], attrs: Attrs) -> Array:
    windows = attrs["windows"]
    size, out = positions(windows)
    x = _by_position(operands[0], size)
    largest = attrs["kind"] == "max"
    y = np.full((out, *x.shape[1:]), -np.inf if largest else 0.0)
    for outputs, sources in tap_positions(windows):
        if largest:
            y[outputs] = np.maximum(y[outputs], x[sources])
        else:
            y[outputs] += x[sources]
    if largest:
        y[tap_counts(windows) == 0] = 0.0
    return y.reshape(-1, x.shape[2])


def _pool_max_grad(operands: Sequence[Array], attrs: Attrs) -> Array:
    windows = attrs["windows"]
    size, out = positions(windows)
    x, y, dy = (_by_position(a, n) for a, n in zip(operands, (size, out, out), strict=True))
    dx = np.zeros(x.shape)
    for outputs, sources in tap_positions(windows):
        dx[sources] += dy[outputs] * (x[sources] == y[outputs])
    return dx.reshape(operands[0].shape)


def _flatten(operands: Sequence[Array], attrs: Attrs) -> Array:
    x = _by_position(operands[0], attrs["positions"])
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def _unflatten(operands: Sequence[Array], attrs: Attrs) -> Array:
    samples, cols = operands[0].shape
    x = operands[0].reshape(samples, attrs["positions"], -1)
    return x.transpose(1, 0, 2).reshape(-1, cols // attrs["positions"])


MAP_RECORDS = (
    # Operands x (Pin*N, Cin) and w (taps*Cin, Cout), or (taps*Cout, Cin) with transposed_weights:
    # Y[q] = sum over taps t of X[source(q, t)] . W[t]. With groups the numbers of w outside the
    # blocks of `group_mask` are zero, by promise.
    OpRecord(
        "conv",
        2,
        _conv_shape,
        _conv,
        attrs=("windows", "transposed_weights", "groups"),
        machine=True,
        product=True,
    ),
    # Operands x (Pin*N, Cin) and dy (Pout*N, Cout): dW[t] = sum over q of X[source(q, t)]^T . dY[q].
    # With groups only what `group_mask` keeps is defined.
    OpRecord(
        "conv_weight",
        2,
        _conv_weight_shape,
        _conv_weight,
        attrs=("windows", "groups"),
        machine=True,
        product=True,
    ),
    # Of a batch input (N, H*W*C): each output position's window, columns (t*C + c), 0 in padding. With cores: of these
    # rows each core has a band.
    OpRecord(
        "unfold", 1, _unfold_shape, _unfold, attrs=("windows", "channels", "cores"), machine=True
    ),
    # Over the taps that are not padding; 0 where all are.
    OpRecord("pool", 1, _pool_shape, _pool, attrs=("windows", "kind"), machine=True),
    # Operands x, its pooled maximum y and dy: dX[p] = sum of dY[q] over the (q, t) that read p and
    # have X[p] == Y[q]. Ties each get the whole cotangent.
    OpRecord(
        "pool_max_grad",
        3,
        _pool_max_grad_shape,
        _pool_max_grad,
        attrs=("windows",),
        machine=True,
    ),
    # (P*N, C) to (N, P*C) with columns p*C + c, and back.
    OpRecord("flatten", 1, _flatten_shape, _flatten, attrs=("positions",), machine=True),
    OpRecord("unflatten", 1, _unflatten_shape, _unflatten, attrs=("positions",), machine=True),
)
