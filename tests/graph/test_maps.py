"""The ops on feature maps against PyTorch in float64, and their shape rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.graph.models import from_map, kernel_rows, same_window, to_map, valid_window
from tests.graph.test_window import windows
from torch.nn import functional

from fpgrad.errors import GraphError
from fpgrad.graph import Function, Node, Window, Windows, evaluate
from fpgrad.graph import builder as g
from fpgrad.graph.maps import group_mask, tap_counts
from fpgrad.graph.ops import OPS
from fpgrad.graph.window import all_positions, pointwise, taps, transposed

RNG = np.random.default_rng(6)
N = 3

# (size of both axes, taps, stride, dilation, padding of both sides), non-square.
GEOMETRIES = {
    "valid": ((6, 5), (3, 2), (1, 1), (1, 1), (0, 0)),
    "padded": ((6, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    "strided": ((7, 6), (3, 2), (2, 3), (1, 1), (1, 0)),
    "dilated": ((7, 8), (3, 2), (1, 1), (2, 3), (2, 1)),
    "strided and dilated": ((9, 8), (2, 3), (2, 2), (3, 2), (0, 2)),
    "1x1": ((4, 3), (1, 1), (1, 1), (1, 1), (0, 0)),
    "1x1 strided": ((5, 4), (1, 1), (2, 2), (1, 1), (0, 0)),
    "single position": ((1, 1), (1, 1), (1, 1), (1, 1), (0, 0)),
    "padding only around one position": ((1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    "whole map": ((3, 4), (3, 4), (1, 1), (1, 1), (0, 0)),
    "one row": ((1, 9), (1, 3), (1, 2), (1, 1), (0, 1)),
}


def windows_of(geometry: str) -> Windows:
    size, count, stride, dilation, pad = GEOMETRIES[geometry]
    height, width = (
        Window(
            size[i],
            (size[i] + 2 * pad[i] - dilation[i] * (count[i] - 1) - 1) // stride[i] + 1,
            count[i],
            stride[i],
            dilation[i],
            pad[i],
        )
        for i in (0, 1)
    )
    return height, width


def value_of(node: Node) -> np.ndarray:
    return evaluate(Function("f", outputs=(("y", node),)), {}, {})[0]["y"]


def images(geometry: str, channels: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=(N, channels, *GEOMETRIES[geometry][0])))


def close(node: Node, expected: torch.Tensor) -> None:
    wanted = to_map(expected.detach().numpy())
    assert node.shape == wanted.shape
    np.testing.assert_allclose(value_of(node), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_and_its_gradients(geometry, groups):
    _, count, stride, dilation, pad = GEOMETRIES[geometry]
    windows = windows_of(geometry)
    x = images(geometry, 4).requires_grad_()
    w = torch.tensor(RNG.normal(size=(6, 4 // groups, *count)), requires_grad=True)
    y = functional.conv2d(x, w, None, stride, pad, dilation, groups)
    dy = torch.tensor(RNG.normal(size=tuple(y.shape)))
    y.backward(dy)
    assert x.grad is not None
    assert w.grad is not None

    xs, kernel = (
        g.const(to_map(x.detach().numpy())),
        g.const(kernel_rows(w.detach().numpy(), groups)),
    )
    cotangent = g.const(to_map(dy.numpy()))
    close(g.conv(xs, kernel, windows, groups=groups), y)
    back = g.conv(cotangent, kernel, transposed(windows), transposed_weights=True, groups=groups)
    close(back, x.grad)
    dw = value_of(g.conv_weight(xs, cotangent, windows, groups=groups))
    dw = dw * group_mask(dw.shape, taps(windows), groups)
    np.testing.assert_allclose(dw, kernel_rows(w.grad.numpy(), groups), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", ["valid", "padded", "strided", "dilated", "1x1 strided"])
def test_transposed_convolution(geometry, groups):
    # PyTorch's kernel of a transposed convolution is that of the convolution it transposes.
    _, count, stride, dilation, pad = GEOMETRIES[geometry]
    forward = windows_of(geometry)
    x = torch.tensor(RNG.normal(size=(N, 6, forward[0].out, forward[1].out)))
    w = torch.tensor(RNG.normal(size=(6, 4 // groups, *count)))
    rest = [
        window.size - ((window.out - 1) * s - 2 * p + d * (window.taps - 1) + 1)
        for window, s, p, d in zip(forward, stride, pad, dilation, strict=True)
    ]
    y = functional.conv_transpose2d(x, w, None, stride, pad, rest, groups, dilation)
    node = g.conv(
        g.const(to_map(x.numpy())),
        g.const(kernel_rows(w.numpy(), groups)),
        transposed(forward),
        transposed_weights=True,
        groups=groups,
    )
    close(node, y)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_unfold(geometry):
    _, count, stride, dilation, pad = GEOMETRIES[geometry]
    windows = windows_of(geometry)
    x = images(geometry, 2)
    columns = functional.unfold(x, count, dilation, pad, stride)
    rows = x.permute(0, 2, 3, 1).reshape(N, -1).numpy()
    node = g.unfold(g.const(rows), windows, 2)
    # PyTorch has channels outermost in a column, and taps inside.
    wanted = columns.reshape(N, 2, taps(windows), -1).permute(3, 0, 2, 1)
    np.testing.assert_array_equal(value_of(node), wanted.reshape(node.shape).numpy())


POOLS = [name for name, geometry in GEOMETRIES.items() if all(2 * p <= k for p, k in zip(geometry[4], geometry[1], strict=True))]  # fmt: skip


@pytest.mark.parametrize("geometry", POOLS)
def test_maximum(geometry):
    _, count, stride, dilation, pad = GEOMETRIES[geometry]
    windows = windows_of(geometry)
    x = images(geometry, 5).requires_grad_()
    y = functional.max_pool2d(x, count, stride, pad, dilation)
    dy = torch.tensor(RNG.normal(size=tuple(y.shape)))
    y.backward(dy)
    assert x.grad is not None
    xs = g.const(to_map(x.detach().numpy()))
    pooled = g.pool(xs, windows, "max")
    close(pooled, y)
    close(g.pool_max_grad(xs, pooled, g.const(to_map(dy.numpy())), windows), x.grad)


@pytest.mark.parametrize("geometry", [n for n in POOLS if GEOMETRIES[n][3] == (1, 1)])
def test_average(geometry):
    _, count, stride, _, pad = GEOMETRIES[geometry]
    windows = windows_of(geometry)
    x = images(geometry, 5)
    node = g.average_pool(g.const(to_map(x.numpy())), windows)
    close(node, functional.avg_pool2d(x, count, stride, pad, count_include_pad=False))
    uneven = len(set(tap_counts(windows))) > 1
    assert node.inputs[1].shape == ((node.shape[0], 1) if uneven else (1, 1))


@settings(max_examples=150, deadline=None)
@given(windows, windows, st.booleans())
def test_any_windows_mean_what_source_says(height, width, turned):
    pair, generator = (height, width), np.random.default_rng(0)
    x = generator.normal(size=(height.size * width.size, N, 2))
    w = generator.normal(size=(taps(pair), 2, 3))
    dy = generator.normal(size=(height.out * width.out, N, 3))
    y, dx, dw, largest = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape), {}
    for q, t in np.ndindex(dy.shape[0], taps(pair)):
        row = height.source(q // width.out, t // width.taps)
        col = width.source(q % width.out, t % width.taps)
        if row is None or col is None:
            continue
        p = row * width.size + col
        y[q] += x[p] @ w[t]
        dx[p] += dy[q] @ w[t].T
        dw[t] += x[p].T @ dy[q]
        largest[q] = np.maximum(largest.get(q, -np.inf), x[p])
    rows = [g.const(a.reshape(-1, a.shape[2])) for a in (x, w, dy)]
    block = g.const(w.transpose(0, 2, 1).reshape(-1, 2)) if turned else rows[1]
    found = {
        "y": (g.conv(rows[0], block, pair, turned), y),
        "dx": (g.conv(rows[2], block, transposed(pair), not turned), dx),
        "dw": (g.conv_weight(rows[0], rows[2], pair), dw),
        "max": (g.pool(rows[0], pair, "max"), np.array([largest.get(q, np.zeros((N, 2))) for q in range(len(y))])),
    }  # fmt: skip
    for name, (node, expected) in found.items():
        wanted = expected.reshape(node.shape)
        np.testing.assert_allclose(value_of(node), wanted, rtol=1e-12, atol=1e-12, err_msg=name)


def test_ties_and_empty_windows():
    x = g.const([[1.0], [1.0], [-3.0]])
    windows = (Window(1, 1, 1), Window(3, 3, 2, pad=3, stride=2))
    pooled = g.pool(x, windows, "max")
    # Positions 0 and 2 of 3 outputs read inputs (-3, -2), (-1, 0), (1, 2).
    np.testing.assert_array_equal(value_of(pooled), [[0.0], [1.0], [1.0]])
    np.testing.assert_array_equal(value_of(g.average_pool(x, windows)), [[0.0], [1.0], [-1.0]])
    pair = (Window(1, 1, 1), Window(3, 1, 3))
    dx = g.pool_max_grad(x, g.const(1.0), g.const(5.0), pair)
    np.testing.assert_array_equal(value_of(dx), [[5.0], [5.0], [0.0]])


def test_what_pooling_with_sums_expresses():
    image = RNG.normal(size=(N, 2, 3, 4))
    x = g.const(to_map(image))

    def sums(height: Window, width: Window) -> np.ndarray:
        return from_map(value_of(g.pool(x, (height, width), "sum")), height.out, width.out)

    padded = sums(Window(3, 6, 1, pad=1), Window(4, 5, 1))
    np.testing.assert_array_equal(padded, np.pad(image, ((0, 0), (0, 0), (1, 2), (0, 1))))
    np.testing.assert_array_equal(sums(Window(3, 1, 1, pad=-1), Window(4, 2, 1, stride=2)), image[:, :, 1:2, ::2])  # fmt: skip
    upsampled = sums(Window(6, 3, 2, stride=2).transposed, Window(12, 4, 3, stride=3).transposed)
    np.testing.assert_array_equal(upsampled, image.repeat(2, axis=2).repeat(3, axis=3))
    total = value_of(g.pool(x, all_positions(12), "sum"))
    np.testing.assert_allclose(total, image.sum((2, 3)))
    spread = value_of(g.pool(g.const(total), transposed(all_positions(12)), "sum"))
    np.testing.assert_array_equal(spread, np.tile(total, (12, 1)))


def test_flatten_and_back():
    image = RNG.normal(size=(N, 2, 3, 4))
    x = g.const(to_map(image))
    flat = g.flatten(x, 12)
    # Rows in HWC order, as Keras flattens.
    np.testing.assert_array_equal(value_of(flat), image.transpose(0, 2, 3, 1).reshape(N, -1))
    np.testing.assert_array_equal(value_of(g.unflatten(flat, 12)), x.value)
    input_ = g.unfold(flat, pointwise(3, 4), 2)
    np.testing.assert_array_equal(value_of(input_), x.value)


def test_dense_after_flatten_is_a_convolution():
    x, w = RNG.normal(size=(12 * N, 2)), RNG.normal(size=(24, 5))
    whole = (valid_window(3, 3), valid_window(4, 4))
    flat = g.matmul(g.flatten(g.const(x), 12), g.const(w))
    node = g.conv(g.const(x), g.const(w), whole)
    assert node.shape == (N, 5)
    np.testing.assert_allclose(value_of(node), value_of(flat), rtol=1e-12)


def test_group_mask():
    np.testing.assert_array_equal(
        group_mask((4, 4), 1, 2), [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    )
    np.testing.assert_array_equal(group_mask((4, 2), 2, 2), np.tile(np.eye(2), (2, 1)))
    assert np.all(group_mask((6, 5), 3, 1) == 1.0)


def message(make, *args, **kwargs) -> str:
    with g.naming("c"), pytest.raises(GraphError) as caught:
        make(*args, **kwargs)
    return str(caught.value)


def test_shape_errors():
    x, y = g.state("x", (24, 4)), g.state("y", (12, 6))
    pair = (same_window(3, 3), same_window(4, 2))
    halved = (same_window(3, 3, 3), same_window(4, 2, 2))
    w = g.state("w", (24, 6))
    assert message(g.conv, x, w, pair[:1]) == (
        "conv 'c': windows must be two, of height and width, not (Window(size=3, out=3, taps=3,"
        " stride=1, dilation=1, pad=1, up=1),)"
    )
    assert message(g.conv, g.state("x", (25, 4)), w, pair) == (
        "conv 'c': rows of the map must be a multiple of its 12 positions, not 25"
    )
    assert message(g.conv, x, y, pair) == (
        "conv 'c': kernel of 6 taps for 4 channels must be (6*4, outputs), not (12, 6)"
    )
    assert message(g.conv, x, y, pair, transposed_weights=True) == (
        "conv 'c': kernel of 6 taps for 4 channels must be (6*outputs, 4), not (12, 6)"
    )
    assert message(g.conv, x, w, pair, groups=4) == (
        "conv 'c': groups must divide 4 and 6 channels, not be 4"
    )
    assert message(g.conv_weight, x, g.state("y", (2, 6)), halved) == (
        "conv_weight 'c': both maps must have equal samples, not 2 and 1"
    )
    assert message(g.conv_weight, x, y, pair, groups=0) == (
        "conv_weight 'c': both maps must have equal samples, not 2 and 1"
    )
    assert message(g.unfold, x, pair, 3) == (
        "unfold 'c': samples of 12 positions and 3 channels have 36 columns, not 4"
    )
    assert message(g.pool, x, pair, "mean") == (
        "pool 'c': kind must be one of ('sum', 'max'), not 'mean'"
    )
    assert message(g.pool_max_grad, x, y, x, halved) == (
        "pool_max_grad 'c': maximum and cotangent must be (4, 4), not (12, 6) and (24, 4)"
    )
    assert message(g.flatten, x, 5) == (
        "flatten 'c': rows of the map must be a multiple of its 5 positions, not 24"
    )
    assert message(g.unflatten, x, 3) == (
        "unflatten 'c': columns must be a multiple of the 3 positions, not 4"
    )
    assert message(g.state, "w", (24, 4), blocks=7) == (
        "blocks of state 'w' must divide its 24 rows, not 7"
    )


MAP_OPS = {"conv", "conv_weight", "unfold", "pool", "pool_max_grad", "flatten", "unflatten"}


def test_all_are_ops_of_the_machine():
    assert all(OPS[op].machine for op in MAP_OPS)
