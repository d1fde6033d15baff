"""Each benchmark runs, with settings so small that its figures mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import compile_time, cycles, emulator_speed, parity, rtl_speed
from benchmarks.models import dense_case
from benchmarks.record import Record
from benchmarks.report import render

TINY = dense_case((32, 4, 10), 4, side=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where the tests of this module build the one machine that they simulate."""
    return tmp_path_factory.mktemp("cache")


def bars(record: Record) -> dict[str, bool]:
    assert f"`python -m benchmarks.{record.name}`" in render({record.name: record})
    return {bar["what"]: bar["holds"] for bar in record.bars}


def test_parity():
    record = parity.run(seeds=1, epochs=1, batch_size=360, networks=[(32, 4, 10)])
    assert list(bars(record)) == [
        "32-4-10: mean test accuracy away from fp32",
        "32-4-10: mean test loss away from fp32",
    ]
    assert len(record.tables["32-4-10, each seed"]) == 1


def test_compile_time():
    record = compile_time.run([TINY], repetitions=1)
    assert list(bars(record)) == [f"{TINY.title}: model to program", "cases that could not be run"]
    (row,) = record.tables["Compile time and program size"]
    assert int(row["bytes"] or 0) > int(row["instructions"] or 0) > 0


def test_emulator_speed():
    workload = emulator_speed.Workload((32, 4, 10), "adam", 8, samples=12, epochs=1, bar=1.0)
    record = emulator_speed.run([workload], repetitions=1, threads=[1])
    assert len(bars(record)) == 1
    assert [row["contender"] for row in record.tables[workload.title]] == [
        "fpgrad fit",
        "PyTorch loop",
        "PyTorch loop, fused optimizer",
        "Keras fp32 fit",
        "emulator alone",
    ]


@pytest.mark.slow
def test_cycles(cache):
    held = bars(cycles.run([cycles.Count(TINY, steps=5)], cache))
    assert held["emulator's cycles away from the RTL's, largest of all cases"]
    assert held["cases whose bits differ on RTL and emulator"]
    assert held["cases that could not be run"]


@pytest.mark.slow
def test_rtl_speed(cache):
    record = rtl_speed.run(TINY, steps=2, repetitions=1, samples=12, cache=cache)
    assert len(bars(record)) == 3
    assert [row["clock"] for row in record.tables["Simulation"]] == ["wall", "processor time"]
