"""Text reports of a step: totals, rendering, and that no environment changes the text."""

from __future__ import annotations

import dataclasses

import pytest

from fpgrad.errors import InvalidArgumentError
from fpgrad.report import LayerRow, MemoryUse, Needs, StepSummary, render

SUMMARY = StepSummary(
    model="digits",
    machine="1 core, 16x16, fp24",
    batch_size=32,
    cycles=1500,
    useful_macs=192_000,
    clock_hz=100e6,
    layers=(
        LayerRow(name="dense", phase="forward", matrix_cycles=256, vector_cycles=64),
        LayerRow(name="dense", phase="gradient", matrix_cycles=256),
        LayerRow(name="dense", phase="update", vector_cycles=700),
        LayerRow(name="loss", phase="other", vector_cycles=90),
    ),
    memories=(
        MemoryUse(name="tiles", used_bits=8 * 1024 * 12, capacity_bits=8 * 1024 * 16),
        MemoryUse(name="numbers", used_bits=8 * 1024 * 20, capacity_bits=8 * 1024 * 16),
    ),
    needs=Needs(
        mac_lanes=256, on_chip_bits=8 * 1024 * 32, dsp_blocks=128, dsp_note="two products each"
    ),
)

TEXT = """\
digits on 1 core, 16x16, fp24

  layer         phase      matrix unit   of step   vector unit   of step
 ────────────────────────────────────────────────────────────────────────
  dense         forward            256    17.1 %            64     4.3 %
                gradient           256    17.1 %
                update                                     700    46.7 %
  loss          other                                       90     6.0 %
 ────────────────────────────────────────────────────────────────────────
  busy cycles                      512    34.1 %           854    56.9 %

  memory    used KiB   of KiB                    full
 ─────────────────────────────────────────────────────
  tiles         12.0     16.0                  75.0 %
  numbers       20.0     16.0   125.0 %, does not fit

Step: 1,500 cycles by the cycle model for 32 samples, 50.0 % of the array's multiply-accumulates
useful
Time: 15 µs a step, 2,133,333 samples/s at 100 MHz
Chip: 256 MAC lanes, 32.0 KiB on chip, about 128 DSP blocks (two products each)
"""


def test_derived_numbers() -> None:
    assert SUMMARY.matrix_cycles == 512
    assert SUMMARY.vector_cycles == 854
    assert SUMMARY.utilisation == 0.5
    assert SUMMARY.seconds == pytest.approx(15e-6)
    assert SUMMARY.samples_per_second == pytest.approx(32 / 15e-6)


def test_text() -> None:
    assert render(SUMMARY) == TEXT


def test_saturations_are_shown_when_counted() -> None:
    counted = dataclasses.replace(SUMMARY, saturations=(("vector", 1234), ("accumulator", 0)))
    assert render(counted).endswith("Saturated numbers so far: vector 1,234, accumulator 0\n")


def test_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert render(SUMMARY) == TEXT


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_asked(width: int) -> None:
    long_name = dataclasses.replace(SUMMARY.layers[0], name="encoder/block_3/" + 80 * "x")
    text = render(dataclasses.replace(SUMMARY, layers=(long_name,)), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("x") >= 80, "no part of a name is cut off"


def test_names_are_not_markup() -> None:
    row = dataclasses.replace(SUMMARY.layers[0], name="[bold]:smile:")
    assert "[bold]:smile:" in render(dataclasses.replace(SUMMARY, layers=(row,)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LayerRow(name="a", phase="sideways"),
            r"LayerRow\.phase must be one of forward, .*, other, not 'sideways'",
        ),
        (
            lambda: LayerRow(name="a", phase="forward", matrix_cycles=-1),
            r"LayerRow\.matrix_cycles must not be negative, not -1",
        ),
        (
            lambda: MemoryUse(name="a", used_bits=-8, capacity_bits=0),
            r"MemoryUse\.used_bits must not be negative, not -8",
        ),
        (
            lambda: dataclasses.replace(SUMMARY, clock_hz=0.0),
            r"StepSummary\.clock_hz must be positive, not 0\.0",
        ),
        (
            lambda: dataclasses.replace(SUMMARY, cycles=0),
            r"StepSummary\.cycles must be positive, not 0",
        ),
        (lambda: render(SUMMARY, width=20), r"width must be at least 60 columns, not 20"),
    ],
)
def test_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgumentError, match=f"^{message}$"):
        make()
