"""A step whose maps are divided by rows among cores against the same step on one, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.codegen.test_maps import Net
from tests.graph.models import random_states
from tests.transform.band_models import MODELS, dropped, in_bands, same
from tests.transform.test_split import batch, on_cores, unlowered

from fpgrad.graph import (
    ALL_SUM,
    STACK,
    Function,
    Node,
    Window,
    evaluate,
    parse_function,
    print_function,
    verify,
)
from fpgrad.graph.maps import group_mask
from fpgrad.transform import lower, lower_split
from fpgrad.transform.bands import band_of
from fpgrad.transform.choice import heights
from fpgrad.transform.rewrite import rewrite


def start(function: Function) -> dict[str, np.ndarray]:
    states = random_states(function, seed=2)
    if "conv2/kernel" in states and states["conv2/kernel"].shape == (36, 4):
        states["conv2/kernel"] *= group_mask((36, 4), 9, 4)
    return states


@pytest.mark.parametrize("lines", [2, 8])
@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_cores_together_do_what_one_does(name: str, cores: int, lines: int):
    """Of small maps, too, and of large ones alone."""
    functions = unlowered(MODELS[name]())
    one = {k: lower(f) for k, f in functions.items()}
    some = in_bands(functions, cores, lines)
    assert any(
        node.op == "unfold" and node.attrs["cores"] == cores for node in some["train"].nodes()
    ) or (lines == 8 and name == "strided input")
    states = start(one["train"])
    for step, entry in enumerate(("train", "train", "evaluate", "predict")):
        mine = {s.name: states[s.name] for s in one[entry].states}
        inputs = batch(one[entry], step)
        wanted, new = evaluate(one[entry], inputs, mine)
        got, others = on_cores(some[entry], inputs, mine, cores)
        assert got.keys() == wanted.keys()
        for results, expected in ((got, wanted), (others, new)):
            for key, value in expected.items():
                np.testing.assert_allclose(results[key], value, rtol=1e-7, atol=1e-9, err_msg=key)
        states |= new


@pytest.mark.parametrize("name", ["flattened", "residual", "upsampled"])
def test_each_sum_over_the_cores_is_needed(name: str):
    train = in_bands(unlowered(MODELS[name]()), 2)["train"]
    states, inputs = start(lower(unlowered(MODELS[name]())["train"])), batch(train)
    _, wanted = on_cores(train, inputs, states, 2)
    sums = [node for node in train.nodes() if node.op == ALL_SUM]
    assert sums
    for left_out in sums:

        def rule(node: Node, operands: Sequence[Node], left_out: Node = left_out) -> Node | None:
            return operands[0] if node is left_out else None

        try:
            _, got = on_cores(rewrite(train, rule), inputs, states, 2)
        except AssertionError:
            continue  # apart
        assert any(not np.allclose(got[k], v, rtol=1e-7, atol=1e-9) for k, v in wanted.items())


def windows() -> list[Window]:
    """Windows of all kinds, those of gradients too."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        size, kernel, stride, dilation = (int(rng.integers(1, n)) for n in (25, 6, 4, 3))
        window = same(size, kernel, stride, dilation)
        if rng.random() < 0.3:
            window = Window(size, max(1, size - kernel + 1), kernel)
        found += [window, window.transposed]
    return found


@pytest.mark.parametrize("cores", [2, 3, 4])
def test_a_band_and_its_halo_are_read_as_the_map_is(cores: int):
    divided = 0
    for window in windows():
        band = band_of(window, cores)
        if band is None:
            continue
        divided += 1
        size, out = window.size // cores, window.out // cores
        for core in range(cores):
            for o in range(out):
                first = core * size - band.before
                read = [(tap, first + row) for tap, row in band.window.reads(o)]
                inside = [(tap, row) for tap, row in read if 0 <= row < window.size]
                assert inside == window.reads(core * out + o), (window, core, o)
    assert divided > 50


@pytest.mark.parametrize(
    ("window", "cores"),
    [
        (same(7, 3), 2),
        (Window(8, 6, 3), 2),
        (same(14, 2, 2), 4),
        (same(4, 5), 4),
        (Window(8, 1, 8), 2),
    ],
)
def test_what_bands_cannot_do(window: Window, cores: int):
    """Odd heights, rows that are lost at the borders, bands of no whole rows, halos of more than the band beside."""
    assert band_of(window, cores) is None


def test_random_numbers_differ_between_bands():
    functions = unlowered(dropped(), penalised=False)
    train = in_bands(functions, 2)["train"]
    drawn = {n.inputs[0].name: n.shape for n in train.nodes() if n.op == "uniform"}
    assert drawn == {"seed 0": (64, 4), "seed 1": (4, 3)}
    assert "seed 0" in train.parts
    assert "seed 1" not in train.parts


def test_a_divided_function_is_printed_and_read_again():
    train = in_bands(unlowered(MODELS["residual"]()), 2)["train"]
    again = verify(parse_function(print_function(train)), "quantised")
    assert print_function(again) == print_function(train)


def halos(functions: dict[str, Function] | None) -> int:
    assert functions is not None
    return sum(node.op == STACK for node in functions["train"].nodes())


def test_narrow_maps_are_divided_by_rows_and_wide_ones_by_channels():
    """A tile has 4 channels."""
    narrow = unlowered(
        Net(4, 16, 16, 1).folded(4).relu().conv(4).relu().conv(4).relu().dense(3).done()
    )
    wide = unlowered(
        Net(4, 2, 2, 1).folded(32).relu().conv(32).relu().conv(32).relu().dense(3).done()
    )
    assert halos(lower_split(narrow, 2, 4)) > 0
    assert halos(lower_split(wide, 2, 4)) == 0


def test_maps_of_no_equal_bands_are_not_divided():
    odd = unlowered(Net(4, 9, 9, 1).folded(16).relu().conv(16).relu().conv(16).dense(3).done())
    found = lower_split(odd, 2, 4)
    assert halos(found) == 0
    assert heights(odd["predict"], 2) == []
    assert heights(unlowered(MODELS["flattened"]())["predict"], 2) == [8, 4, 2]
