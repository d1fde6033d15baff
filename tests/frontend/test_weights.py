"""Layouts of arrays: every number in its place, and back again."""

from __future__ import annotations

import numpy as np
import pytest

from fpgrad.frontend.weights import ChannelsFirst, KernelLayout, SampleLayout


def numbered(*shape):
    return np.arange(1, np.prod(shape) + 1, dtype=np.float64).reshape(shape)


def test_kernel_of_a_convolution():
    kernel = numbered(3, 2, 5, 4)
    state = KernelLayout((3 * 2 * 5, 4), taps=6).pack(kernel)
    for r in range(3):
        for s in range(2):
            np.testing.assert_array_equal(
                state[(r * 2 + s) * 5 : (r * 2 + s + 1) * 5], kernel[r, s]
            )


def test_kernel_with_groups_is_zero_outside_them():
    kernel = numbered(3, 3, 2, 12)  # 6 channels in 3 groups
    layout = KernelLayout((9 * 6, 12), taps=9, groups=3)
    state = layout.pack(kernel).reshape(9, 6, 12)
    expected = np.zeros((9, 6, 12))
    for i in range(6):
        for o in range(12):
            if i // 2 == o // 4:
                expected[:, i, o] = kernel.reshape(9, 2, 12)[:, i % 2, o]
    np.testing.assert_array_equal(state, expected)
    assert layout.size == kernel.size


def test_depthwise_kernel_is_one_group_a_channel():
    kernel = numbered(2, 2, 3, 2)  # 3 channels, each gives 2
    state = KernelLayout((4 * 3, 6), taps=4, groups=3).pack(kernel).reshape(4, 3, 6)
    for c in range(3):
        for m in range(2):
            np.testing.assert_array_equal(state[:, c, c * 2 + m], kernel[:, :, c, m].ravel())
    assert np.count_nonzero(state) == kernel.size


def test_rows_of_a_dense_kernel_behind_channels_first():
    kernel = numbered(3 * 4, 2)  # 3 channels, 4 positions
    state = KernelLayout((12, 2), taps=4, order=ChannelsFirst(3, 4)).pack(kernel)
    for c in range(3):
        for p in range(4):
            np.testing.assert_array_equal(state[p * 3 + c], kernel[c * 4 + p])


def test_features_behind_channels_first():
    gamma = numbered(12)
    state = KernelLayout((1, 12), order=ChannelsFirst(3, 4)).pack(gamma)
    assert state.shape == (1, 12)
    assert [state[0, p * 3 + c] for c in range(3) for p in range(4)] == gamma.tolist()


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (KernelLayout((7, 5)), (7, 5)),
        (KernelLayout((18, 8), taps=9), (3, 3, 2, 8)),
        (KernelLayout((36, 8), taps=9, groups=2), (3, 3, 2, 8)),
        (KernelLayout((36, 8), taps=9, groups=4), (3, 3, 4, 2)),
        (KernelLayout((12, 2), order=ChannelsFirst(3, 4)), (12, 2)),
        (KernelLayout((1, 12), order=ChannelsFirst(4, 3)), (12,)),
    ],
)
def test_unpacking_is_the_inverse(layout, shape):
    variable = numbered(*shape).astype(np.float32)
    assert layout.size == variable.size
    state = layout.pack(variable)
    assert state.shape == layout.state
    assert state.dtype == np.float32
    np.testing.assert_array_equal(layout.unpack(state).reshape(shape), variable)


def test_samples():
    images = numbered(2, 3, 4, 5).astype(np.uint8)
    plain = SampleLayout((3, 4, 5))
    np.testing.assert_array_equal(plain.pack(images), images.reshape(2, -1))
    np.testing.assert_array_equal(plain.unpack(plain.pack(images)), images)
    first = SampleLayout((3, 4, 5), ChannelsFirst(3, 20))
    rows = first.pack(images)
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows, images.transpose(0, 2, 3, 1).reshape(2, -1))
    np.testing.assert_array_equal(first.unpack(rows), images)
