"""Convolutional networks on an exact session train as in Keras: same start, same batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tests.keras.exact import ExactSession
from tests.keras.test_parity import _exact, check

from fpgrad.codegen.compile import Machine
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.keras import FPGA

__all__ = ["_exact"]

L = keras.layers
SAMPLES, CLASSES = 26, 3
IMAGE, SERIES = (6, 5, 2), (9, 2)


def images(shape=IMAGE):
    rng = np.random.default_rng(3)
    return rng.standard_normal((SAMPLES, *shape)).astype(np.float32), rng.integers(
        0, CLASSES, SAMPLES
    )


def classifier(shape, layers, optimizer="sgd"):
    def build():
        keras.utils.set_random_seed(2)
        model = keras.Sequential([L.Input(shape), *layers(), L.Dense(CLASSES), L.Softmax()])
        given = keras.optimizers.SGD(0.1) if optimizer == "sgd" else optimizer()
        model.compile(given, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    return build


NETWORKS = {
    "plain": lambda: [L.Conv2D(4, 3, activation="relu"), L.Flatten()],
    "deep": lambda: [
        L.Conv2D(4, 3, padding="same", activation="relu"),
        L.MaxPooling2D(),
        L.Conv2D(5, 2, activation="tanh"),
        L.Flatten(),
        L.Dense(6, "relu"),
    ],
    "batch norm": lambda: [
        L.Conv2D(4, 3, use_bias=False),
        L.BatchNormalization(momentum=0.8),
        L.ReLU(),
        L.GlobalAveragePooling2D(),
    ],
    "strides": lambda: [L.Conv2D(4, 3, strides=2, padding="same"), L.Conv2D(3, 2), L.Flatten()],
    "dilation": lambda: [L.Conv2D(3, 2), L.Conv2D(4, 2, dilation_rate=2), L.Flatten()],
    "groups": lambda: [L.Conv2D(4, 2), L.Conv2D(6, 2, groups=2), L.Flatten()],
    "depthwise": lambda: [
        L.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        L.BatchNormalization(),
        L.ReLU(),
        L.Conv2D(4, 1),
        L.GlobalMaxPooling2D(),
    ],
    "separable": lambda: [L.SeparableConv2D(4, 3, activation="relu"), L.Flatten()],
    "transposed": lambda: [
        L.Conv2D(3, 3, strides=2),
        L.Conv2DTranspose(2, 3, strides=2, padding="same", activation="tanh"),
        L.AveragePooling2D(2),
        L.Flatten(),
    ],
    "padding": lambda: [
        L.ZeroPadding2D(1),
        L.Conv2D(3, 3, strides=2),
        L.UpSampling2D(2),
        L.Cropping2D(1),
        L.Flatten(),
    ],
    "flatten": lambda: [
        L.Conv2D(3, 3),
        L.Flatten(),
        L.BatchNormalization(),
        L.Activation("tanh"),
    ],
    "layer norm": lambda: [L.Conv2D(4, 3), L.LayerNormalization(), L.ReLU(), L.Flatten()],
    "reshape": lambda: [
        L.Flatten(),
        L.Dense(12, "tanh"),
        L.Reshape((2, 3, 2)),
        L.Conv2D(3, 2),
        L.Flatten(),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    x, y = images()
    check(classifier(IMAGE, NETWORKS[name]), x, y, batch_size=10, epochs=2)


SERIES_NETWORKS = {
    "causal": lambda: [
        L.Conv1D(4, 3, padding="causal", activation="relu"),
        L.MaxPooling1D(2),
        L.Conv1D(3, 2),
        L.GlobalAveragePooling1D(),
    ],
    "separable": lambda: [L.SeparableConv1D(4, 3), L.BatchNormalization(), L.Flatten()],
}


@pytest.mark.parametrize("name", SERIES_NETWORKS)
def test_series(name):
    x, y = images(SERIES)
    check(classifier(SERIES, SERIES_NETWORKS[name]), x, y, batch_size=10, epochs=2)


@pytest.fixture
def _channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


CHANNELS_FIRST = {
    "flatten": lambda: [
        L.Conv2D(4, 3),
        L.BatchNormalization(axis=1),
        L.ReLU(),
        L.MaxPooling2D(2),
        L.Flatten("channels_last"),
        L.Dense(5, "tanh"),
    ],
    "global": lambda: [
        L.DepthwiseConv2D(2),
        L.Conv2D(4, 2, padding="same", activation="relu"),
        L.GlobalAveragePooling2D(),
    ],
}


@pytest.mark.usefixtures("_channels_first")
@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name):
    x, y = images((2, 6, 5))
    check(classifier((2, 6, 5), CHANNELS_FIRST[name]), x, y, batch_size=10, epochs=2)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_variables_of_kernels(name):
    x, y = images()

    def layers():
        return [
            L.Conv2D(4, 2, kernel_regularizer="l2"),
            L.DepthwiseConv2D(2, depthwise_regularizer=keras.regularizers.L1L2(0.01, 0.01)),
            L.ReLU(),
            L.Flatten(),
        ]

    check(classifier(IMAGE, layers, OPTIMIZERS[name]), x, y, batch_size=10, epochs=2)


def test_residual_network():
    x, y = images()

    def build():
        keras.utils.set_random_seed(2)
        inputs = L.Input(IMAGE)
        stem = L.Conv2D(4, 3, padding="same")(inputs)
        a = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(stem)))
        b = L.Add()([L.Conv2D(4, 3, padding="same")(a), stem])
        gate = L.Conv2D(4, 1, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(b))
        c = L.Concatenate()([L.Multiply()([b, gate]), a, L.MaxPooling2D(3, 1, padding="same")(b)])
        outputs = L.Dense(CLASSES, "softmax")(L.GlobalAveragePooling2D()(L.Conv2D(4, 1)(c)))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    check(build, x, y, batch_size=10, epochs=2)


@pytest.mark.parametrize("loss", ["mse", "binary_crossentropy"])
def test_autoencoder(loss):
    x = np.random.default_rng(0).random((SAMPLES, 4, 6, 1)).astype(np.float32)

    def build():
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                L.Input((4, 6, 1)),
                L.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
                L.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid"),
            ]
        )
        model.compile("adam", loss=loss, metrics=["mae"])
        return model

    check(build, x, x, batch_size=10, epochs=2)


@pytest.mark.usefixtures("_channels_first")
def test_autoencoder_with_channels_first():
    x = np.random.default_rng(0).random((SAMPLES, 2, 4, 6)).astype(np.float32)

    def build():
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                L.Input((2, 4, 6)),
                L.Conv2D(4, 3, padding="same", activation="relu"),
                L.Conv2D(2, 3, padding="same"),
            ]
        )
        model.compile("adam", loss="mse", metrics=["mae"])
        return model

    check(build, x, x, batch_size=10, epochs=2)


def test_bytes_stay_bytes():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (SAMPLES, *IMAGE), dtype=np.uint8)
    y = rng.integers(0, CLASSES, SAMPLES)

    def layers():
        return [L.Rescaling(1 / 127.5, -1.0), L.Conv2D(4, 3, activation="relu"), L.Flatten()]

    seen = []

    class Session(ExactSession):
        def upload(self, inputs):
            seen.append({name: array.dtype for name, array in inputs.items()})
            return super().upload(inputs)

    build = classifier(IMAGE, layers)
    check(build, x, y, batch_size=10, epochs=2)
    model = build()
    FPGA(model, open_session=Session).fit(x, y, verbose=0)
    assert seen[0][model.inputs[0].name] == np.uint8
    assert seen[0]["y"] == np.float32


def test_batches_fill_whole_tiles():
    x, y = images()
    sizes = []

    class Session(ExactSession):
        def __init__(self, functions):
            super().__init__(functions)
            sizes.append(self.batch_size)

    fpga = FPGA(classifier(IMAGE, NETWORKS["plain"])(), open_session=Session)
    fpga.fit(x, y, batch_size=10, verbose=0)
    fpga.fit(x, y, batch_size=20, verbose=0)
    fpga.fit(x, y, batch_size=32, verbose=0)
    mlp = FPGA(classifier(IMAGE, lambda: [L.Flatten()])(), open_session=Session)
    mlp.fit(x, y, batch_size=10, verbose=0)
    assert sizes == [16, 32, 10]
    narrow = MachineConfig(
        MatrixConfig(TileFormat(side=8)), memory=MemoryConfig(dram_words_per_cycle=8)
    )
    for config in (narrow, Machine(narrow)):
        small = FPGA(classifier(IMAGE, NETWORKS["plain"])(), config=config, open_session=Session)
        small.fit(x, y, batch_size=10, verbose=0)
    assert sizes[3:5] == [16, 16]
    small.fit(x, y, batch_size=20, verbose=0)
    assert sizes[5:] == [24]
