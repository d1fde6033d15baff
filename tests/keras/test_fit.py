"""What surrounds the steps: data sources, callbacks, epochs, the user's weights."""

from __future__ import annotations

import math
import warnings

import keras
import numpy as np
import pytest
from tests.keras.exact import ExactSession

from fpgrad.errors import SaturationWarning
from fpgrad.keras import FPGA

torch = pytest.importorskip("torch")
L = keras.layers
rng = np.random.default_rng(0)
X = rng.standard_normal((40, 5)).astype(np.float32)
Y = rng.integers(0, 3, 40)


def build(optimizer="adam", seed=1, metrics=("accuracy",)):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [L.Input((5,)), L.Dense(6, activation="relu"), L.Dense(3, activation="softmax")]
    )
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=list(metrics))
    return model


def fpga(model=None, **options):
    return FPGA(model or build(), open_session=ExactSession, **options)


def close(model, twin, tolerance=1e-4):
    for mine, theirs in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


class Sequence(keras.utils.PyDataset):
    def __init__(self, size=8):
        super().__init__()
        self.size = size

    def __len__(self):
        return math.ceil(len(X) / self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return X[rows], Y[rows]


def loader():
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(tensors, batch_size=16)


def generator():
    while True:
        for start in range(0, 40, 10):
            yield X[start : start + 10], Y[start : start + 10]


@pytest.mark.parametrize(
    ("source", "options"),
    [(Sequence, {}), (loader, {}), (generator, {"steps_per_epoch": 4})],
)
def test_streams_train_as_in_keras(source, options):
    model, twin = build("sgd"), build("sgd")
    expected = twin.fit(source(), epochs=3, shuffle=False, verbose=0, **options)
    history = fpga(model).fit(source(), epochs=3, shuffle=False, verbose=0, **options)
    close(model, twin)
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-4)


def test_stream_with_validation_stream_and_sample_weights():
    model, twin = build("sgd"), build("sgd")
    weights = np.linspace(0, 2, 40).astype(np.float32)

    def batches():
        tensors = map(torch.from_numpy, (X, Y, weights))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=9)

    expected = twin.fit(batches(), validation_data=Sequence(), epochs=2, verbose=0)
    history = fpga(model).fit(batches(), validation_data=Sequence(), epochs=2, verbose=0)
    close(model, twin)
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-4)


def test_shuffle_is_that_of_keras_for_numpy_arrays():
    orders = []
    for _ in range(2):
        model = build()
        sessions = []
        FPGA(model, open_session=lambda f, s=sessions: s.append(ExactSession(f)) or s[-1]).fit(
            X, Y, batch_size=8, epochs=2, verbose=0
        )
        orders.append(model.get_weights()[0])
    np.testing.assert_array_equal(orders[0], orders[1])
    ordered = build()
    fpga(ordered).fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert not np.allclose(ordered.get_weights()[0], orders[0])


def test_arrays_are_uploaded_once_and_steps_run_in_groups():
    sessions = []

    def open_session(functions):
        sessions.append(ExactSession(functions))
        return sessions[-1]

    FPGA(build(), open_session=open_session).fit(X, Y, batch_size=2, epochs=6, verbose=0)
    (session,) = sessions
    assert session.uploads == 1
    groups = [steps for name, steps in session.calls if name == "train"]
    assert sum(groups) == 6 * 20
    assert max(groups) == 20


def test_batch_callbacks_see_every_step_and_its_weights():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            assert logs is not None
            seen.append((batch, logs["loss"], self.model.get_weights()[0].copy()))
            if batch == 2:
                self.model.optimizer.learning_rate = 0.0

    model = build("sgd")
    fpga(model).fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[Watch()])
    assert [batch for batch, _, _ in seen] == [0, 1, 2, 3, 4]
    assert not np.array_equal(seen[0][2], seen[1][2])
    np.testing.assert_array_equal(seen[2][2], seen[4][2])


def test_early_stopping_restores_the_best_weights():
    model, twin = build("sgd"), build("sgd")
    for trainer, m in ((twin, twin), (fpga(model), model)):
        stop = keras.callbacks.EarlyStopping(
            "loss", min_delta=10, patience=2, restore_best_weights=True
        )
        history = trainer.fit(X, Y, epochs=9, shuffle=False, verbose=0, callbacks=[stop])
        assert len(history.epoch) == 3
        assert m.stop_training
    close(model, twin)


def test_learning_rate_callbacks_act():
    model = build("adam")
    callbacks = [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=10),
    ]
    history = fpga(model).fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(
        history.history["learning_rate"], [1e-3, 1e-3, 1e-4, 1e-5], rtol=1e-5
    )


def test_checkpoint_and_resume_give_the_same_run(tmp_path):
    path = str(tmp_path / "model.keras")
    whole, half = build("adam"), build("adam")
    fpga(whole).fit(X, Y, epochs=4, shuffle=False, verbose=0)
    fpga(half).fit(
        X, Y, epochs=2, shuffle=False, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(path)]
    )
    resumed = keras.saving.load_model(path)
    fpga(resumed).fit(X, Y, epochs=4, initial_epoch=2, shuffle=False, verbose=0)
    close(resumed, whole, 1e-5)
    assert resumed is not None
    iterations = [int(model.optimizer.iterations) for model in (resumed, whole)]  # type: ignore[union-attr]
    assert iterations == [8, 8]


def test_tensorboard_and_csv_run(tmp_path):
    pytest.importorskip("tensorboard")
    fpga().fit(X, Y, verbose=0, callbacks=[keras.callbacks.TensorBoard(str(tmp_path))])
    assert list(tmp_path.rglob("events*"))


def test_csv_logger(tmp_path):
    file = tmp_path / "log.csv"
    fpga().fit(X, Y, epochs=2, verbose=0, callbacks=[keras.callbacks.CSVLogger(str(file))])
    assert file.read_text().startswith("epoch,accuracy,loss")


def test_progress_bar_is_keras_own(capsys):
    fpga().fit(X, Y, batch_size=8, epochs=2, verbose=2)
    assert "Epoch 2/2" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_steps_per_epoch(steps):
    model, twin = build("sgd"), build("sgd")
    options = {"batch_size": 8, "epochs": 3, "steps_per_epoch": steps, "shuffle": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fpga(model).fit(X, Y, verbose=0, **options)
    # On the PyTorch backend Keras would begin each epoch anew; the order is that of its adapters.
    taken, start = [], 0
    for _ in range(3):
        if start == 5:
            start = 0
        stop = min(start + steps, 5)
        taken += range(start, stop)
        start = stop
    for batch in taken:
        rows = slice(8 * batch, 8 * batch + 8)
        twin.train_on_batch(X[rows], Y[rows])
    close(model, twin)


def test_validation_options():
    model = build()
    history = (
        fpga(model)
        .fit(
            X,
            Y,
            epochs=4,
            verbose=0,
            validation_split=0.25,
            validation_freq=2,
            validation_batch_size=3,
            validation_steps=2,
        )
        .history
    )
    assert len(history["val_loss"]) == 2
    assert len(history["loss"]) == 4


def test_on_batch_methods():
    model, twin = build("sgd"), build("sgd")
    machine = fpga(model)
    for size in (7, 3, 12, 1):
        expected = twin.train_on_batch(X[:size], Y[:size])
        np.testing.assert_allclose(machine.train_on_batch(X[:size], Y[:size]), expected, rtol=1e-4)
    expected = twin.train_on_batch(X, Y, class_weight={1: 3.0}, return_dict=True)
    got = machine.train_on_batch(X, Y, class_weight={1: 3.0}, return_dict=True)
    assert got.keys() == expected.keys()
    close(model, twin)
    np.testing.assert_allclose(machine.test_on_batch(X, Y), twin.test_on_batch(X, Y), rtol=1e-4)
    np.testing.assert_allclose(
        machine.predict_on_batch(X), twin.predict_on_batch(X), rtol=1e-3, atol=1e-5
    )


def test_evaluate_and_predict_leave_the_weights_alone():
    model = build()
    before = model.get_weights()
    machine = fpga(model)
    result = machine.evaluate(X, Y, verbose=0, return_dict=True)
    np.testing.assert_allclose(result["loss"], model.evaluate(X, Y, verbose=0)[0], rtol=1e-4)
    assert machine.evaluate(X, Y, verbose=0) == [result["loss"], result["accuracy"]]
    assert machine.predict(X, batch_size=7, verbose=0).shape == (40, 3)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_predict_needs_no_compile():
    model = keras.Sequential([L.Input((5,)), L.Dense(2)])
    np.testing.assert_allclose(
        fpga(model).predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_sequential_without_input_is_built_from_the_data():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([L.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    fpga(model).fit(X, Y, verbose=0)
    assert model.built


def test_several_inputs_by_list_and_by_name():
    def two():
        keras.utils.set_random_seed(1)
        a, b = L.Input((2,), name="a"), L.Input((3,), name="b")
        model = keras.Model([a, b], L.Dense(3, "softmax")(L.Concatenate()([a, b])))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    as_list, as_dict, twin = two(), two(), two()
    twin.fit([X[:, :2], X[:, 2:]], Y, shuffle=False, verbose=0)
    fpga(as_list).fit([X[:, :2], X[:, 2:]], Y, shuffle=False, verbose=0)
    fpga(as_dict).fit({"b": X[:, 2:], "a": X[:, :2]}, Y, shuffle=False, verbose=0)
    close(as_list, twin)
    close(as_dict, twin)


def test_changed_weights_and_compile_are_seen():
    model = build("sgd")
    machine = fpga(model)
    machine.fit(X, Y, verbose=0)
    model.set_weights([0 * w for w in model.get_weights()])
    np.testing.assert_allclose(machine.predict(X, verbose=0), 1 / 3, atol=1e-6)
    model.layers[0].trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    kernel = model.layers[1].get_weights()[0]
    machine.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], 0 * kernel[:0].sum())
    assert machine.counters["steps"] == 4


def test_dropout_draws_the_same_masks_again():
    def run(first_seed):
        keras.utils.set_random_seed(first_seed)
        model = keras.Sequential(
            [L.Input((5,)), L.Dense(6), L.Dropout(0.5, seed=7), L.Dense(3, "softmax")]
        )
        model.set_weights([np.ones(w.shape) for w in model.get_weights()])
        model.compile("sgd", "sparse_categorical_crossentropy")
        fpga(model).fit(X, Y, shuffle=False, epochs=2, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_array_equal(run(1), run(2))


def test_saturation_is_reported_epoch_by_epoch():
    class Saturating(ExactSession):
        def train(self, data, order, scalars, seeds):
            self.counters["saturated_vector"] += len(order)
            return super().train(data, order, scalars, seeds)

    with pytest.warns(SaturationWarning, match="^10 numbers saturated in 2 epochs"):
        history = FPGA(build(), open_session=Saturating).fit(
            X, Y, batch_size=8, epochs=2, verbose=0
        )
    assert history.history["saturated"] == [5, 5]
    assert "saturated" not in fpga().fit(X, Y, verbose=0).history


def test_an_interrupt_keeps_what_was_trained():
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model = build()
    before = model.get_weights()[0]
    with pytest.raises(KeyboardInterrupt):
        fpga(model).fit(X, Y, epochs=3, verbose=0, callbacks=[Interrupt()])
    assert not np.array_equal(model.get_weights()[0], before)
