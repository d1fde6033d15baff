"""The page of figures is what the results say, and the results are whole."""

from __future__ import annotations

import re

import pytest
from benchmarks.record import RESULTS, Record, show, spread
from benchmarks.report import PAGE, QUESTIONS, load_all, render, table


def test_page_is_rendered_from_the_results():
    message = "run `python -m benchmarks.report` after a benchmark"
    assert PAGE.read_text() == render(load_all()), message


def test_every_benchmark_has_results():
    assert {path.stem for path in RESULTS.glob("*.json")} == set(QUESTIONS)


@pytest.mark.parametrize("record", load_all().values(), ids=lambda record: record.name)
def test_a_result_says_on_what_it_was_measured(record: Record):
    assert re.fullmatch(r"[0-9a-f]{10}\+?", record.facts["commit"])
    assert record.facts["cores"] >= 1
    assert record.facts["load_before"] >= 0
    assert {"python", "numpy", "keras", "torch"} <= set(record.facts["versions"])
    assert record.bars
    assert record.notes


@pytest.mark.parametrize("record", load_all().values(), ids=lambda record: record.name)
def test_a_bar_holds_if_its_figures_say_so(record: Record):
    for bar in record.bars:
        below, above = bar["value"] <= bar["limit"], bar["value"] >= bar["limit"]
        assert bar["holds"] == {"≤": below, "≥": above}[bar["relation"]]


def test_a_record_is_the_same_after_saving(tmp_path):
    record = Record("example", {"seeds": 2}, {"cores": 2})
    record.row("Rows", what="a", value=1.5, count=3, same=True, none=None)
    record.bar("value", 1.5, "≤", 2, "s")
    assert Record.load(record.save(tmp_path)) == record


def test_table_shows_numbers_on_the_right():
    rows = [{"what": "a", "cycles": 12_345}, {"what": "b", "cycles": 0.25, "more": None}]
    assert table(rows) == (
        "| what | cycles | more |\n| --- | --: | --: |\n| a | 12,345 |  |\n| b | 0.25 |  |\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(2090, "2,090"), (2090.4, "2,090"), (0.01234, "0.0123"), (97.25, "97.2"), (312.6, "313"),
     (0.0000123, "0.000012"), (True, "yes"), (None, ""), (0.0, "0")],
)  # fmt: skip
def test_show(value, text):
    assert show(value) == text


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
