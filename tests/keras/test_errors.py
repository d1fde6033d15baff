"""Bad input: each a clear error of its own class, before anything runs, weights untouched."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.keras.exact import ExactSession

import fpgrad
from fpgrad.errors import (
    DataShapeError,
    InvalidArgumentError,
    LabelError,
    ModelNotCompiledError,
    NonFiniteDataError,
    UnsupportedFrameworkError,
    UnsupportedModelError,
)
from fpgrad.keras import FPGA

L = keras.layers
X = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
Y = np.arange(12) % 3


def build(loss="sparse_categorical_crossentropy", last="softmax", units=3):
    model = keras.Sequential([L.Input((5,)), L.Dense(units, activation=last)], name="net")
    model.compile("sgd", loss=loss)
    return model


def changed(array, index, value):
    array = np.array(array, dtype=np.float64)
    array[index] = value
    return array


BAD_DATA = {
    "too many features": (
        (X[:, :4], Y),
        {},
        DataShapeError,
        r"x for input '.*' must have shape \(n, 5\), not \(12, 4\)",
    ),
    "rank": (
        (X[:, :, None, None], Y),
        {},
        DataShapeError,
        r"x for input '.*' must have shape \(n, 5\), not \(12, 5, 1, 1\)",
    ),
    "one hot": (
        (X, np.eye(3)[Y]),
        {},
        DataShapeError,
        (
            r"y must be class indices of shape \(n,\), not \(12, 3\); for one-hot labels use the loss "
            r"'categorical_crossentropy'"
        ),
    ),
    "fewer labels": (
        (X, Y[:-1]),
        {},
        DataShapeError,
        r"y must have as many samples as x, 12, not 11",
    ),
    "no labels": ((X, None), {}, InvalidArgumentError, r"y must be given: .*"),
    "no samples": (
        (X[:0], Y[:0]),
        {},
        DataShapeError,
        r"x must have at least one sample for net, not 0",
    ),
    "two arrays": (
        ([X, X], Y),
        {},
        DataShapeError,
        r"x must have one array for each of the inputs .*, not 2",
    ),
    "words": (
        (X.astype(str), Y),
        {},
        DataShapeError,
        r"x .* must be an array of real numbers, not of <U32",
    ),
    "nan": (
        (changed(X, (3, 1), np.nan), Y),
        {},
        NonFiniteDataError,
        (
            r"x for input '.*' must be finite numbers, not NaN, infinity or beyond float32 "
            r"\(sample 3, 1 such numbers\)"
        ),
    ),
    "infinity": (
        (changed(X, (4, 1), -np.inf), Y),
        {},
        NonFiniteDataError,
        r".*\(sample 4, 1 such.*",
    ),
    "beyond float32": (
        (changed(X, (4, 1), 1e60), Y),
        {},
        NonFiniteDataError,
        r".*\(sample 4, 1 such.*",
    ),
    "nan weight": (
        (X, Y),
        {"sample_weight": changed(np.ones(12), 2, np.nan)},
        NonFiniteDataError,
        r"sample_weight must be finite.*",
    ),
    "label too large": (
        (X, changed(Y, 7, 3)),
        {},
        LabelError,
        r"y must be class indices, integers in \[0, 3\), not 3 \(sample 7, 1 such labels\)",
    ),
    "negative label": (
        (X, changed(Y, 0, -1)),
        {},
        LabelError,
        r".*not -1 \(sample 0, 1 such labels\)",
    ),
    "half a label": (
        (X, changed(Y, 0, 0.5)),
        {},
        LabelError,
        r".*not 0.5 \(sample 0, 1 such labels\)",
    ),
    "validation": (
        (X, Y),
        {"validation_data": (X, changed(Y, 7, 3))},
        LabelError,
        r".*\[0, 3\), not 3 \(sample 7.*",
    ),
    "weights by feature": (
        (X, Y),
        {"sample_weight": np.ones((12, 2))},
        DataShapeError,
        r"sample_weight must have shape \(n,\): one weight a sample, not \(12, 2\)",
    ),
    "both weights": (
        (X, Y),
        {"sample_weight": np.ones(12), "class_weight": {0: 1.0}},
        InvalidArgumentError,
        r"class_weight and sample_weight cannot both be given: .*",
    ),
    "batch size": (
        (X, Y),
        {"batch_size": 0},
        InvalidArgumentError,
        r"batch_size must be an integer of 1 or more, not 0",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_before_anything_runs(case):
    arguments, options, error, message = BAD_DATA[case]
    model = build()
    before = model.get_weights()
    opened = []
    fpga = FPGA(model, open_session=lambda f: opened.append(f) or ExactSession(f))
    with pytest.raises(error, match=f"^{message}$"):
        fpga.fit(*arguments, verbose=0, **options)
    assert not opened
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dense_targets():
    fpga = FPGA(build("categorical_crossentropy"), open_session=ExactSession)
    with pytest.raises(DataShapeError, match=r"use the loss 'sparse_categorical_crossentropy'$"):
        fpga.fit(X, Y, verbose=0)
    with pytest.raises(LabelError, match=r"^y must be in \[0, 1\] for this loss, not 2 \(sample 0"):
        fpga.fit(X, 2 * np.eye(3)[Y], verbose=0)
    regression = FPGA(build("mse", None), open_session=ExactSession)
    with pytest.raises(DataShapeError, match=r"^y must have shape \(n, 3\), not \(12, 2\)$"):
        regression.fit(X, np.ones((12, 2)), verbose=0)


def test_a_bad_batch_in_a_stream_does_not_reach_the_weights():
    model = build()
    before = model.get_weights()

    def batches():
        yield X, Y
        yield changed(X, (0, 0), np.nan).astype(np.float32), Y

    with pytest.raises(NonFiniteDataError):
        FPGA(model, open_session=ExactSession).fit(batches(), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert len(before) == len(model.get_weights())


@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
def test_a_model_must_be_compiled(method):
    model = keras.Sequential([L.Input((5,)), L.Dense(3)], name="net")
    with pytest.raises(
        ModelNotCompiledError, match=r"^model 'net' must be compiled before it is trained: call .*"
    ):
        getattr(FPGA(model, open_session=ExactSession), method)(X, Y)


def test_a_model_must_have_a_loss():
    model = keras.Sequential([L.Input((5,)), L.Dense(3)], name="net")
    model.compile("sgd")
    with pytest.raises(ModelNotCompiledError, match=r"must be compiled with a loss"):
        FPGA(model, open_session=ExactSession).fit(X, Y)


def test_not_a_keras_model():
    with pytest.raises(UnsupportedFrameworkError, match=r"not builtins\.int$"):
        fpgrad.FPGA(3)
    with pytest.raises(UnsupportedFrameworkError):
        FPGA(3)


def test_backends_are_named():
    with pytest.raises(
        InvalidArgumentError, match=r"^backend must be one of emulator, rtl, reference, not 'gpu'$"
    ):
        fpgrad.FPGA(build(), backend="gpu")


def test_a_failing_executor_leaves_the_weights():
    class Failing(ExactSession):
        broken = True

        def train(self, data, order, scalars, seeds=None):
            result = super().train(data, order, scalars, seeds)
            if self.broken:
                raise RuntimeError("the machine stopped")
            return result

    sessions = []
    model = build()
    before = model.get_weights()
    fpga = FPGA(model, open_session=lambda f: sessions.append(Failing(f)) or sessions[-1])
    with pytest.raises(RuntimeError, match=r"^the machine stopped$"):
        fpga.fit(X, Y, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # What the failed step left in the device is overwritten before the next one.
    sessions[0].broken = False
    twin = build()
    twin.set_weights(before)
    fpga.fit(X, Y, shuffle=False, verbose=0)
    twin.fit(X, Y, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], twin.get_weights()[0], rtol=1e-5)


def test_unsupported_things_are_refused_at_once():
    inputs = L.Input((8, 8, 1), name="image")
    x = L.UpSampling2D(2, interpolation="bilinear", name="up")(inputs)
    x = L.Flatten(name="flat")(x)
    x = L.Dense(5, activation="selu", kernel_constraint="non_neg", name="hidden")(x)
    model = keras.Model(inputs, L.LSTM(3, name="memory")(L.Reshape((5, 1))(x)), name="net")
    model.compile(keras.optimizers.Adam(use_ema=True, clipnorm=1.0), loss="kl_divergence")
    with pytest.raises(UnsupportedModelError) as caught:
        FPGA(model, open_session=ExactSession).fit(np.ones((4, 8, 8, 1)), np.ones((4, 3)))
    found = [(problem.where, problem.what) for problem in caught.value.problems]
    assert found == [
        ("up", "interpolation='bilinear' is not supported"),
        ("hidden", "kernel_constraint=NonNeg is not supported"),
        ("hidden", "activation 'selu' is not supported"),
        ("memory", "layer LSTM is not supported"),
        ("optimizer Adam", "clipnorm=1.0 is not supported"),
        ("optimizer Adam", "use_ema=True is not supported"),
        ("loss kl_divergence", "is not supported"),
    ]
    assert all(problem.remedy for problem in caught.value.problems)
    assert str(caught.value).startswith("model 'net' cannot be compiled, 7 unsupported things:\n")
