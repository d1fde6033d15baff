"""A run that is stopped and goes on ends with the bits of one that was not."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpgrad import FPGA
from fpgrad.codegen.compile import Machine
from fpgrad.errors import CheckpointError, CheckpointWarning
from fpgrad.formats import BF16
from fpgrad.host.checkpoint import Checkpoint, load, save
from fpgrad.isa.config import MachineConfig, VectorConfig

L = keras.layers


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 6)).astype(np.float32), rng.integers(0, 3, 50)


def build(optimizer="adam", width=5, seed=1, loss="sparse_categorical_crossentropy"):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            L.Input((6,)),
            L.Dense(width, "relu"),
            L.BatchNormalization(),
            L.Dropout(0.25),
            L.Dense(3, "softmax"),
        ]
    )
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


class Cut(keras.callbacks.Callback):
    """Ends the process's training in the middle of an epoch, as a lost board would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise ConnectionError("the board is gone")


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(3e-3, amsgrad=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-3, momentum=0.5, centered=True),
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)
    ),
}


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "emulator") for name in OPTIMIZERS), ("adam", "reference")]
)
def test_a_cut_run_ends_with_the_bits_of_an_undisturbed_one(name, backend, data, tmp_path):
    def run(model, path, **options):
        fpga = FPGA(model, backend=backend)
        return fpga.fit(*data, 8, epochs=5, verbose=0, checkpoint=path, **options).history

    whole, path = build(OPTIMIZERS[name]()), tmp_path / "cut.fpgrad"
    expected = run(whole, tmp_path / "whole.fpgrad")
    with pytest.raises(ConnectionError):
        run(build(OPTIMIZERS[name]()), path, callbacks=[Cut(2)])
    # Another process: other initial weights, another order of samples, other names of layers.
    resumed = build(OPTIMIZERS[name](), seed=99)
    history = run(resumed, path)
    assert history == {key: values[2:] for key, values in expected.items()}
    for mine, theirs in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    both = zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True)
    for mine, theirs in both:
        np.testing.assert_array_equal(np.asarray(mine.value), np.asarray(theirs.value))
    # What one file says, the other says.
    mine, theirs = load(path), load(tmp_path / "whole.fpgrad")
    assert mine.manifest == theirs.manifest
    for key, array in theirs.tensors.items():
        np.testing.assert_array_equal(mine.tensors[key], array)


def test_a_checkpoint_changes_no_bit_of_a_run(data, tmp_path):
    with_one, without = build(), build()
    for model, path in ((with_one, tmp_path / "x"), (without, None)):
        keras.utils.set_random_seed(5)
        FPGA(model).fit(*data, 8, epochs=3, verbose=0, checkpoint=path)
    for mine, theirs in zip(with_one.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_more_epochs_go_on_and_no_more_are_none(data, tmp_path):
    path, model = tmp_path / "run", build()
    FPGA(model).fit(*data, epochs=2, verbose=0, checkpoint=path)
    assert len(FPGA(model).fit(*data, epochs=2, verbose=0, checkpoint=path).epoch) == 0
    assert FPGA(model).fit(*data, epochs=3, verbose=0, checkpoint=path).epoch == [2]
    assert load(path).manifest["epoch"] == 3


def test_learning_rate_set_by_a_callback_comes_back(data, tmp_path):
    path, model = tmp_path / "run", build()
    halve = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
    FPGA(model).fit(*data, epochs=2, verbose=0, checkpoint=path, callbacks=[halve])
    again = build()
    FPGA(again).fit(*data, epochs=2, verbose=0, checkpoint=path)
    assert float(again.optimizer.learning_rate) == pytest.approx(0.001 / 4)


OTHERS = {
    "model": {"model": lambda: build(width=7)},
    "optimizer": {"model": lambda: build(keras.optimizers.Adam(beta_1=0.8))},
    "loss": {"model": lambda: build(loss=keras.losses.SparseCategoricalCrossentropy())},
    "machine": {"config": Machine(MachineConfig(vector=VectorConfig(number=BF16)))},
    "data set or batch size": {"batch_size": 16},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_lost(what, data, tmp_path):
    path, other = tmp_path / "run", OTHERS[what]
    FPGA(build()).fit(*data, 8, epochs=1, verbose=0, checkpoint=path)
    written, model = path.read_bytes(), other.get("model", build)()
    before = model.get_weights()
    with pytest.raises(CheckpointError, match=f"another {what}"):
        FPGA(model, config=other.get("config")).fit(
            *data, other.get("batch_size", 8), epochs=2, verbose=0, checkpoint=path
        )
    assert path.read_bytes() == written
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_stream_goes_on_and_says_that_its_order_is_not_known(data, tmp_path):
    path = tmp_path / "run"

    def batches():
        while True:
            for start in range(0, 48, 8):
                yield data[0][start : start + 8], data[1][start : start + 8]

    for epochs, told in ((1, False), (2, True)):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            FPGA(build()).fit(
                batches(), steps_per_epoch=6, epochs=epochs, verbose=0, checkpoint=path
            )
        assert any(w.category is CheckpointWarning for w in heard) is told


def test_a_folder_that_is_not_there(data, tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        FPGA(build()).fit(*data, verbose=0, checkpoint=tmp_path / "no" / "run")


# The file ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "run"
    tensors = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array(3, np.int64)}
    save(path, Checkpoint(tensors, {"epoch": 3, "order": {"state": 1 << 120}}))
    return path


def test_a_file_holds_what_was_saved(written):
    found = load(written)
    assert found.manifest == {"epoch": 3, "order": {"state": 1 << 120}}
    assert found.tensors["a"].tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert found.tensors["b"] == 3
    assert [p.name for p in written.parent.iterdir()] == ["run"]


@settings(max_examples=60)
@given(st.data())
def test_any_part_of_a_file_is_refused(written, data):
    whole = written.read_bytes()
    path = written.parent.parent / "part"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError):
        load(path)


@settings(max_examples=60)
@given(st.data())
def test_a_flipped_bit_of_a_number_is_noticed(written, data):
    whole = bytearray(written.read_bytes())
    at = data.draw(st.integers(len(whole) - 56, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    path = written.parent.parent / "flipped"
    path.write_bytes(whole)
    with pytest.raises(CheckpointError):
        load(path)


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "foreign"
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(CheckpointError, match="has not written"):
        load(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load(tmp_path / "nothing")


def test_a_failing_write_leaves_the_old_file(written, monkeypatch):
    before = written.read_bytes()

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(written, Checkpoint({"a": np.zeros(3)}, {}))
    assert written.read_bytes() == before
    assert [p.name for p in written.parent.iterdir()] == ["run"]
