"""Each benchmark runs, with settings so small that its figures mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import (
    compile_time,
    conv_cycles,
    conv_machines,
    conv_parity,
    cycles,
    emulator_speed,
    few_samples,
    parity,
    published,
    rtl_speed,
    vgg,
)
from benchmarks.models import Case, dense_case
from benchmarks.networks import conv_model, vgg_model
from benchmarks.record import Record
from benchmarks.report import render

TINY = dense_case((32, 4, 10), 4, side=4)
TINY_IMAGES = Case("1X", lambda: conv_model((4, 4, 1), [(4,), (4,)]), 4, side=4)


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


def test_few_samples():
    case = dense_case((32, 64, 10), 4, side=4)
    record = few_samples.run([case], cores=[1, 4])
    assert list(bars(record)) == [
        f"{case.title}, speed-up of 4 cores",
        "cases that could not be run",
    ]
    one, four = record.tables["Cycles of a training step of 16 samples"]
    assert one["layers shared"] == 0
    assert four["layers shared"] == 2
    assert int(four["cycles a step"] or 0) < int(one["cycles a step"] or 0)


def test_vgg():
    scales = [(4, 8), (8, 16)]
    case = Case("VGG", lambda: vgg_model(8, scales, 10), 4, side=4)
    record = vgg.run(case, tiles=2000, rows=4000, masks=8000, bits=32)
    assert list(bars(record)) == [
        f"{case.title}: array utilisation, counted the published way",
        f"{case.title}: model to program, processor time",
        "cases that could not be run",
    ]
    (row,) = record.tables[vgg.STEP]
    assert float(row["published way %"] or 0) > float(row["utilisation %"] or 0) > 0


def test_compile_time():
    record = compile_time.run([TINY], repetitions=1)
    assert list(bars(record)) == [f"{TINY.title}: model to program", "cases that could not be run"]
    (row,) = record.tables["Compile time and program size"]
    assert int(row["bytes"] or 0) > int(row["instructions"] or 0) > 0


def test_conv_cycles():
    record = conv_cycles.run([TINY_IMAGES], repetitions=1, tiles=[1, 500])
    assert list(bars(record)) == [
        f"{TINY_IMAGES.title}: array utilisation of a training step, padding not counted",
        f"{TINY_IMAGES.title}: model to program, processor time",
        "cases that could not be run",
    ]
    (row,) = record.tables[conv_cycles.CYCLES]
    assert float(row["published way %"] or 0) > float(row["utilisation %"] or 0) > 0
    assert len(record.tables[conv_cycles.FEWER]) == 1
    (failed,) = record.tables["Failed"]
    assert failed["case"] == f"{TINY_IMAGES.title}, 1 tiles"


def test_published():
    record = published.run((1,))
    assert list(bars(record)) == ["cases that could not be run"]
    assert all(bars(record).values())
    theirs, ours, *_ = record.tables[published.LANES]
    assert theirs["lanes"] == ours["lanes"] == 256
    assert theirs["times"] == 1
    assert float(ours["times"] or 0) > 1
    assert [row["DSP blocks"] for row in record.tables[published.DSPS]] == [1280, 1280, 512, 512]
    moved = [float(row["KB an image"] or 0) for row in record.tables[published.BYTES]]
    assert min(moved) > 0


def test_conv_machines():
    chip = conv_machines.Room(400, 2000, 2000)
    record = conv_machines.run([(TINY_IMAGES, chip)], cores=(1, 2), boards=("ZCU102",))
    assert list(bars(record))[-3:] == [
        f"{TINY_IMAGES.title}, little memory on the chip, external as ZCU102's: array utilisation",
        f"{TINY_IMAGES.name}, 32 lanes, little memory: array utilisation",
        "cases that could not be run",
    ]
    one, two = record.tables[conv_machines.CORES]
    assert two["lanes"] == 2 * int(one["lanes"] or 0)
    assert one["of linear %"] == 100 > float(two["of linear %"] or 0)
    (alone,), (shared,) = (
        record.tables[conv_machines.ROOM],
        record.tables[conv_machines.ROOMS_OF_CORES],
    )
    assert shared["utilisation %"] != alone["utilisation %"]


def test_conv_parity():
    setting = conv_parity.Setting("digits", normalise=True, optimizer="adam", epochs=1)
    record = conv_parity.run([setting], seeds=1, batch_size=32, scales=[(2,)], samples=48)
    assert list(bars(record)) == [f"{setting.title}: mean test accuracy away from fp32"]
    (row,) = record.tables[f"{setting.title}, each seed"]
    assert float(row["training loss"] or 0) == pytest.approx(row["fp32 training loss"], rel=0.05)


SPEEDS = [
    "fpgrad fit",
    "PyTorch loop",
    "PyTorch loop, fused optimizer",
    "PyTorch loop, channels last",
    "Keras fp32 fit",
    "emulator alone",
]


def test_emulator_speed():
    case = dense_case((32, 4, 10), 8)
    workload = emulator_speed.Workload.of(case, samples=12, epochs=1, bar=1.0)
    record = emulator_speed.run([workload], repetitions=1, threads=[1])
    assert len(bars(record)) == 1
    contenders = [row["contender"] for row in record.tables[workload.title]]
    assert contenders == [name for name in SPEEDS if "channels" not in name]


def test_emulator_speed_on_images():
    workload = emulator_speed.Workload.of(TINY_IMAGES, samples=6, epochs=1, bar=1.0, footprint=True)
    record = emulator_speed.run([workload], repetitions=1, threads=[1])
    assert [row["contender"] for row in record.tables[workload.title]] == SPEEDS
    for row in record.tables.get("Memory of the emulator", ()):  # only Linux tells
        assert float(row["ratio"] or 0) > 0


@pytest.mark.slow
def test_cycles(cache):
    held = bars(cycles.run([cycles.Count(TINY, steps=5)], cache))
    assert held["emulator's cycles away from the RTL's, largest of all cases"]
    assert held["cases whose bits differ on RTL and emulator"]
    assert held["cases that could not be run"]


@pytest.mark.slow
def test_conv_cycles_in_rtl(cache):
    held = bars(conv_cycles.run([TINY_IMAGES], 1, tiles=(), rtl=(1, 2), cache=cache))
    for title in ("1X, 16 lanes, batch 4: a step in RTL", "1X, 32 lanes, batch 8: a step in RTL"):
        assert held[f"{title}: words that differ from the emulator's"]
        assert held[f"{title}: emulator's cycles away"]
    assert held["cases that could not be run"]


@pytest.mark.slow
def test_rtl_speed(cache):
    record = rtl_speed.run(TINY, steps=2, repetitions=1, samples=12, cache=cache)
    assert len(bars(record)) == 3
    assert [row["clock"] for row in record.tables["Simulation"]] == ["wall", "processor time"]
