"""Windows against the definition by search, their transpose, and their text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpgrad.errors import GraphError
from fpgrad.graph.window import Window, all_positions, pointwise, positions, taps, transposed

SIZES = st.integers(1, 7)
windows = st.builds(
    Window,
    size=SIZES,
    out=SIZES,
    taps=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(-3, 3).filter(bool),
    pad=st.integers(-4, 4),
    up=st.integers(1, 3),
)


def triples(window: Window) -> set[tuple[int, int, int]]:
    """All (output, tap, input), by search for the inputs that satisfy the equation."""
    return {
        (o, r, p)
        for o in range(window.out)
        for r in range(window.taps)
        for p in range(window.size)
        if p * window.up == o * window.stride + r * window.dilation - window.pad
    }


@given(windows)
def test_source(window):
    found = {
        (o, r, p)
        for o in range(window.out)
        for r in range(window.taps)
        if (p := window.source(o, r)) is not None
    }
    assert found == triples(window)


@given(windows)
def test_sources_of_a_tap(window):
    found = [(o, r, p) for r in range(window.taps) for o, p in window.sources(r)]
    assert len(found) == len(set(found))
    assert set(found) == triples(window)
    for r in range(window.taps):
        assert window.sources(r) == sorted(window.sources(r))


@given(windows)
def test_transposed_is_an_involution_with_the_same_triples(window):
    assert window.transposed.transposed == window
    assert {(o, r, p) for p, r, o in triples(window.transposed)} == triples(window)


@given(windows)
def test_identity(window):
    if window.is_identity:
        assert triples(window) == {(o, 0, o) for o in range(window.size)}
        assert window.size == window.out


@given(windows)
def test_text_is_read_back(window):
    assert Window.parse(str(window)) == window


def test_text():
    assert str(Window(28, 14, 3, stride=2, pad=1)) == "28->14 taps 3 stride 2 pad 1"
    assert str(Window(5, 5, 1)) == "5->5 taps 1"
    assert str(Window(28, 14, 3, stride=2, pad=1).transposed) == (
        "14->28 taps 3 dilation -1 pad -1 up 2"
    )


def test_pairs():
    pair = (Window(4, 2, 3, stride=2), Window(5, 3, 2))
    assert taps(pair) == 6
    assert positions(pair) == (20, 6)
    assert transposed(pair) == (pair[0].transposed, pair[1].transposed)
    assert triples(all_positions(4)[1]) == {(0, r, r) for r in range(4)}
    assert all(window.is_identity for window in pointwise(3, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0, 1, 1), "size of a window must be positive, not 0"),
        (lambda: Window(1, 1, 1, stride=0), "stride of a window must be positive, not 0"),
        (lambda: Window(1, 1, 1, up=-1), "up of a window must be positive, not -1"),
        (lambda: Window(1, 1, 1, dilation=0), "dilation of a window must not be 0"),
        (lambda: Window(1, 1, 1, pad=0.5), "pad of a window must be an integer, not 0.5"),
        (lambda: Window(1, 1, True), "taps of a window must be an integer, not True"),
        (
            lambda: Window.parse("28->14"),
            "window must be like '28->14 taps 3 stride 2 pad 1', not '28->14'",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(GraphError) as caught:
        make()
    assert str(caught.value) == message
