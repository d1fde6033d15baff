"""Data sets that device memory has no room for: sent group by group, with the bits of those that are resident."""

from __future__ import annotations

import threading
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.errors import MemoryCapacityError, StreamedDataWarning
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.keras.placing import Group, Packed

L = keras.layers
FEATURES, SAMPLES, BATCH = 40, 203, 8


def machine(rows: int) -> Machine:
    return Machine(
        MachineConfig(
            MatrixConfig(TileFormat(side=4)),
            memory=MemoryConfig(dram_rows=rows, dram_words_per_cycle=4),
        )
    )


def build(loss="sparse_categorical_crossentropy"):
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [L.Input((FEATURES,)), L.Dense(5, "relu", name="hidden"), L.Dense(3, "softmax", name="out")]
    )
    model.compile("adam", loss, metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    return x, rng.integers(0, 3, SAMPLES)


def train(rows, data, **options):
    keras.utils.set_random_seed(11)
    fpga = FPGA(build(), config=machine(rows))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", StreamedDataWarning)
        history = fpga.fit(*data, batch_size=BATCH, epochs=3, verbose=0, **options)
    told = [str(w.message) for w in heard if w.category is StreamedDataWarning]
    return fpga, history.history, told


def same(a, b):
    for mine, theirs in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# A sample takes 11 rows, the program some 300.
@pytest.mark.parametrize("rows", [500, 900, 2000])
@pytest.mark.parametrize("options", [{}, {"class_weight": {0: 2.0, 1: 0.5}}, {"shuffle": False}])
def test_a_data_set_without_room_trains_to_the_same_bits(rows, options, data):
    resident, expected, nothing = train(1 << 16, data, validation_data=data, **options)
    streamed, history, told = train(rows, data, validation_data=data, **options)
    assert not nothing
    assert f"{SAMPLES} samples" in told[0]
    assert "memory.dram_rows" in told[0]
    assert history == expected
    same(streamed.model, resident.model)
    np.testing.assert_array_equal(
        streamed.predict(data[0], BATCH, verbose=0), resident.predict(data[0], BATCH, verbose=0)
    )
    assert streamed.evaluate(*data, BATCH, verbose=0) == resident.evaluate(*data, BATCH, verbose=0)


def test_validation_data_may_be_resident_beside_a_stream(data):
    few = data[0][:9], data[1][:9]
    resident, expected, _ = train(1 << 16, data, validation_data=few)
    streamed, history, _ = train(900, data, validation_data=few)
    assert history == expected
    same(streamed.model, resident.model)


def test_a_file_larger_than_the_device(tmp_path, data):
    x, y = data
    path = tmp_path / "x.npy"
    np.save(path, x)
    resident, _, _ = train(1 << 16, data)
    streamed, _, _ = train(900, (np.load(path, mmap_mode="r"), y))
    same(streamed.model, resident.model)


def test_a_stream_of_large_batches_goes_in_parts(data):
    x, y = data

    def batches():
        while True:
            for start in range(0, SAMPLES, BATCH):
                yield x[start : start + BATCH], y[start : start + BATCH]

    models = []
    for rows in (1 << 16, 600):
        model = build()
        FPGA(model, config=machine(rows)).fit(batches(), steps_per_epoch=26, epochs=2, verbose=0)
        models.append(model)
    same(*models)


def test_one_batch_without_room_is_an_error_and_leaves_the_weights(data):
    model = build()
    before = model.get_weights()
    fpga = FPGA(model, config=machine(350))
    with pytest.warns(StreamedDataWarning), pytest.raises(MemoryCapacityError, match="dram_rows"):
        fpga.fit(*data, batch_size=64, verbose=0)
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


class Store:
    """A machine that notes what it is given, and by which thread it was packed."""

    batch_size = 9
    room = 8

    def __init__(self):
        self.packers, self.held, self.most = [], [], 0

    def pack(self, arrays):
        self.packers.append(threading.current_thread())
        return arrays["x"].copy()

    def upload(self, arrays):
        self.held.append(arrays)
        self.most = max(self.most, len(self.held))
        return arrays

    def release(self, dataset):
        self.held = [kept for kept in self.held if kept is not dataset]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.booleans(), max_size=6))
def test_groups_come_in_order_whether_staged_or_not(sizes, staged):

    machine, group = Store(), Group()
    groups = [[np.full(n, i)] for i, n in enumerate(sizes)]

    def maker(batches):
        counts = np.array([len(batches[0])])
        return lambda: Packed(machine.pack({"x": batches[0]}), counts, counts * 1.0, None, None)

    for i, batches in enumerate(groups):
        placed = group.place(machine, batches, maker(batches))
        assert placed.dataset.tolist() == batches[0].tolist()
        if i + 1 < len(groups) and i < len(staged) and staged[i]:
            group.stage(machine, groups[i + 1], maker(groups[i + 1]))
    mine = threading.current_thread()
    others = sum(thread is not mine for thread in machine.packers)
    assert others == sum(staged[: len(groups) - 1])
    assert len(machine.packers) == len(groups)
    group.close()
    assert machine.most == 1
    assert not machine.held


def test_an_error_while_the_next_group_is_packed_is_that_groups(data):
    machine, group = Store(), Group()

    def broken():
        raise ValueError("bad sample")

    good = [np.zeros(2)]
    bad = [np.zeros(3)]

    counts = np.array([2])
    group.place(machine, good, lambda: Packed(np.zeros(2), counts, counts * 1.0, None, None))
    group.stage(machine, bad, broken)
    with pytest.raises(ValueError, match="bad sample"):
        group.place(machine, bad, broken)
    group.close()
