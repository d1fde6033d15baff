"""The convolutional networks are the published ones, and the fp32 twin trains as Keras does."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.networks import cifar_model, conv_model, useful_macs
from benchmarks.twin import Twin


@pytest.mark.parametrize(
    ("wide", "millions", "parameters"), [(1, 29.227, 82), (2, 115.08, 307), (4, 456.65, 1185)]
)
def test_macs_of_the_published_networks(wide, millions, parameters):
    model = cifar_model(wide)
    assert useful_macs(model, padding=True) / 1e6 == pytest.approx(millions, rel=1e-4)
    assert model.count_params() / 1e3 == pytest.approx(parameters, rel=0.01)


def test_padding_is_not_useful():
    # Of 3x3 taps at 4x4 positions, (3*4 - 2)**2 lie inside; the first layer has no gradient of its input.
    model = conv_model((4, 4, 1), [(2,)], classes=3)
    assert useful_macs(model) == 2 * 100 * 2 + 3 * 8 * 3
    assert useful_macs(model, padding=True) == 2 * 144 * 2 + 3 * 8 * 3


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("normalise", [False, True])
def test_twin_trains_as_keras_does(optimizer, normalise):
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 8, 8, 1), np.float32), rng.integers(0, 10, 40)
    # A bias before normalisation has no gradient but rounding errors, which Adam makes steps of.
    options = {"normalise": normalise, "biases": not normalise}
    model = conv_model((8, 8, 1), [(4,), (8,)], optimizer, **options)
    twin = Twin(model)
    history = model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history
    assert twin.fit(x, y, 16) == pytest.approx(history["loss"][0], rel=1e-5)
    for mine, theirs in zip(twin.weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert twin.evaluate(x, y) == pytest.approx((loss, accuracy), rel=1e-4)
    assert twin.evaluate_model(x, y) == pytest.approx((loss, accuracy), rel=1e-4)
