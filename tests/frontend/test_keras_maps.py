"""Layers on feature maps: the lowered graph computes what Keras does, for every option."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fpgrad.frontend.keras import lower
from fpgrad.graph import evaluate, verify

L = keras.layers
SAMPLES = 3


@pytest.fixture(autouse=True)
def _exact():
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def check(model, ops=None, without=()):
    """Compares the lowered model with Keras on random numbers; returns the lowered model.

    ``ops`` are ops that the graph must hold, ``without`` those that it must not.
    """
    rng = np.random.default_rng(0)
    for variable in model.weights:
        low = 0.3 if "variance" in variable.path else -1.0
        variable.assign(rng.uniform(low, 1.0, variable.shape))
    lowered = lower(model, SAMPLES, training=False)
    verify(lowered.forward, "forward")
    used = {node.op for node in lowered.forward.nodes()}
    assert set(ops or ()) <= used
    assert not set(without) & used
    # Keras casts what comes in to float32 first.
    x = [np.float32(rng.uniform(-1, 1, (SAMPLES, *b.shape))) for b in lowered.inputs]
    inputs = {b.name: b.layout.pack(a) for b, a in zip(lowered.inputs, x, strict=True)}
    states = {
        b.state: b.layout.pack(keras.ops.convert_to_numpy(b.variable)) for b in lowered.variables
    }
    outputs, _ = evaluate(lowered.forward, inputs, states)
    expected = np.asarray(
        keras.ops.convert_to_numpy(model(x if len(x) > 1 else x[0], training=False))
    )
    mine = lowered.output_layout.unpack(outputs["predictions"])
    assert mine.shape == expected.shape
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    return lowered


def sequential(shape, *layers):
    return keras.Sequential([L.Input(shape), *layers])


IMAGE, SERIES = (7, 6, 3), (11, 3)

IMAGES = {
    "plain": lambda: [L.Conv2D(4, 3)],
    "pointwise": lambda: [L.Conv2D(4, 1)],
    "oblong": lambda: [L.Conv2D(4, (2, 3), activation="relu")],
    "same": lambda: [L.Conv2D(4, 3, padding="same")],
    "same, even": lambda: [L.Conv2D(4, (2, 4), padding="same", use_bias=False)],
    "stride": lambda: [L.Conv2D(4, 3, strides=2)],
    "stride, same": lambda: [L.Conv2D(4, 3, strides=(2, 3), padding="same")],
    "stride beyond the kernel": lambda: [L.Conv2D(4, 1, strides=2, padding="same")],
    "dilation": lambda: [L.Conv2D(4, (3, 2), dilation_rate=(2, 3))],
    "dilation, same": lambda: [L.Conv2D(4, 3, dilation_rate=2, padding="same")],
    "groups": lambda: [L.Conv2D(6, 3, groups=3)],
    "second": lambda: [L.Conv2D(5, 3), L.Conv2D(4, 3, strides=2, padding="same")],
    "second, pointwise": lambda: [L.Conv2D(5, 3), L.Conv2D(4, 1)],
    "second, pointwise stride": lambda: [L.Conv2D(5, 3), L.Conv2D(4, 1, strides=2)],
    "second, groups": lambda: [L.Conv2D(6, 2), L.Conv2D(4, 3, groups=2, padding="same")],
    "many taps": lambda: [L.Conv2D(4, 5)],
    "depthwise": lambda: [L.DepthwiseConv2D(3, padding="same")],
    "depthwise, multiplier": lambda: [L.DepthwiseConv2D((2, 3), 2, depth_multiplier=2)],
    "separable": lambda: [L.SeparableConv2D(5, 3, activation="tanh")],
    "separable, options": lambda: [
        L.SeparableConv2D(5, 2, strides=2, padding="same", depth_multiplier=3, use_bias=False)
    ],
    "transposed": lambda: [L.Conv2DTranspose(4, 3)],
    "transposed, stride": lambda: [L.Conv2DTranspose(4, 3, strides=2, activation="relu")],
    "transposed, same": lambda: [L.Conv2DTranspose(4, 3, strides=2, padding="same")],
    "transposed, even": lambda: [L.Conv2DTranspose(4, (4, 2), strides=2, padding="same")],
    "transposed, wide stride": lambda: [L.Conv2DTranspose(4, 2, strides=3)],
    "transposed, dilation": lambda: [L.Conv2DTranspose(4, 3, dilation_rate=2)],
    "transposed, output padding": lambda: [
        L.Conv2DTranspose(4, 3, strides=2, output_padding=1, padding="same")
    ],
    "max": lambda: [L.MaxPooling2D()],
    "max, overlapping": lambda: [L.MaxPooling2D(3, strides=2)],
    "max, same": lambda: [L.MaxPooling2D(3, strides=2, padding="same")],
    "average": lambda: [L.AveragePooling2D((2, 3))],
    "average, same": lambda: [L.AveragePooling2D((3, 1), strides=1, padding="same")],
    "global average": lambda: [L.GlobalAveragePooling2D(), L.Dense(2)],
    "global max": lambda: [L.GlobalMaxPooling2D()],
    "global average, keepdims": lambda: [L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(2, 1)],
    "global max, keepdims": lambda: [L.GlobalMaxPooling2D(keepdims=True), L.Flatten()],
    "batch norm": lambda: [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()],
    "zero padding": lambda: [L.ZeroPadding2D(((1, 2), (3, 0)))],
    "zero padding, conv": lambda: [L.ZeroPadding2D(2), L.Conv2D(4, 3, strides=2)],
    "zero padding, same": lambda: [
        L.Conv2D(2, 2),
        L.ZeroPadding2D(1),
        L.Conv2D(4, 3, padding="same"),
    ],
    "zero padding, max": lambda: [L.ZeroPadding2D(1), L.MaxPooling2D(3, 2)],
    "spatial dropout": lambda: [L.Conv2D(2, 2), L.SpatialDropout2D(0.5), L.Conv2D(4, 3)],
    "cropping": lambda: [L.Cropping2D(((1, 2), (0, 1)))],
    "cropping, same": lambda: [L.Cropping2D(1), L.Conv2D(4, 3, padding="same")],
    "up": lambda: [L.UpSampling2D((2, 3))],
    "flatten": lambda: [L.Conv2D(4, 3), L.Flatten(), L.Dense(5)],
    "flatten, activation": lambda: [
        L.Conv2D(4, 3),
        L.Flatten(),
        L.ReLU(),
        L.Dropout(0.5),
        L.Dense(5),
    ],
    "flatten, batch norm": lambda: [
        L.Conv2D(4, 3),
        L.Flatten(),
        L.BatchNormalization(),
        L.Dense(5),
    ],
    "flatten, softmax": lambda: [L.Conv2D(4, 3), L.Flatten(), L.Softmax()],
    "flatten of the input": lambda: [L.Flatten(), L.Dense(5)],
    "activations": lambda: [L.Conv2D(4, 3), L.Activation("gelu"), L.LeakyReLU(0.1), L.ELU()],
    "rescaling": lambda: [L.Rescaling(0.25), L.Conv2D(4, 3, padding="same")],
    "rescaling, offset": lambda: [L.Rescaling(0.25, offset=-1.0), L.Conv2D(4, 3)],
    "rescaling, offset, same": lambda: [L.Rescaling(2.0, offset=1), L.Conv2D(4, 3, padding="same")],
    "rescaling behind padding": lambda: [L.ZeroPadding2D(1), L.Rescaling(2.0, 1.0), L.Conv2D(4, 3)],
    "dropout of the input": lambda: [L.Dropout(0.2), L.Conv2D(4, 3)],
    "reshape of a map": lambda: [L.Conv2D(4, 2), L.Reshape((10, 12)), L.Conv1D(3, 2)],
    "reshape of positions": lambda: [L.Conv2D(4, 2), L.Reshape((30, 4)), L.Conv1D(3, 2)],
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name):
    check(sequential(IMAGE, *IMAGES[name]()))


LAST_ONLY = {
    "layer norm": lambda: [L.Conv2D(4, 3), L.LayerNormalization()],
    "softmax": lambda: [L.Conv2D(4, 3), L.Softmax()],
    "softmax activation": lambda: [L.Conv2D(4, 3, activation="softmax")],
    "dense": lambda: [L.Conv2D(4, 3), L.Dense(5, activation="relu"), L.Dense(2)],
    "dense on the input": lambda: [L.Dense(5), L.Flatten(), L.Dense(2)],
    "up from vectors": lambda: [L.Flatten(), L.Dense(24), L.Reshape((3, 2, 4)), L.Conv2D(2, 2)],
}


@pytest.mark.parametrize("name", LAST_ONLY)
def test_images_with_channels_last(name):
    check(sequential(IMAGE, *LAST_ONLY[name]()))


FIRST = (3, 7, 6)
NOT_FIRST = ("batch norm", "flatten, softmax", "reshape of a map", "reshape of positions")


@pytest.fixture
def _channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.usefixtures("_channels_first")
@pytest.mark.parametrize("name", [name for name in IMAGES if name not in NOT_FIRST])
def test_images_with_channels_first(name):
    check(sequential(FIRST, *IMAGES[name]()))


FIRST_ONLY = {
    "batch norm": lambda: [L.Conv2D(4, 3), L.BatchNormalization(axis=1), L.ReLU()],
    "softmax": lambda: [L.Conv2D(4, 3), L.Softmax(axis=1)],
    "flatten, Keras's order": lambda: [L.Conv2D(4, 3), L.Flatten("channels_last"), L.Dense(5)],
    "flatten, batch norm": lambda: [
        L.Conv2D(4, 3),
        L.Flatten("channels_last"),
        L.BatchNormalization(),
        L.Dense(5),
    ],
    "flatten, softmax": lambda: [L.Conv2D(4, 3), L.Flatten("channels_last"), L.Softmax()],
    "flatten of the input": lambda: [L.Flatten("channels_last"), L.Dense(5)],
    "reshape of positions": lambda: [L.Conv2D(4, 2), L.Reshape((4, 30)), L.Conv1D(3, 2)],
}


@pytest.mark.usefixtures("_channels_first")
@pytest.mark.parametrize("name", FIRST_ONLY)
def test_channels_first_only(name):
    check(sequential(FIRST, *FIRST_ONLY[name]()))


SERIES_LAYERS = {
    "plain": lambda: [L.Conv1D(4, 3)],
    "causal": lambda: [L.Conv1D(4, 3, padding="causal", dilation_rate=2)],
    "causal, stride": lambda: [L.Conv1D(4, 3, padding="causal", strides=2)],
    "same": lambda: [L.Conv1D(4, 4, strides=2, padding="same", activation="relu")],
    "groups": lambda: [L.Conv1D(6, 3), L.Conv1D(4, 3, groups=2)],
    "depthwise": lambda: [L.DepthwiseConv1D(3, depth_multiplier=2)],
    "separable": lambda: [L.SeparableConv1D(5, 3, padding="same")],
    "transposed": lambda: [L.Conv1DTranspose(4, 3, strides=2, padding="same")],
    "max": lambda: [L.MaxPooling1D(3, 2, padding="same")],
    "average": lambda: [L.AveragePooling1D(2)],
    "global": lambda: [L.GlobalAveragePooling1D()],
    "global max": lambda: [L.GlobalMaxPooling1D(keepdims=True)],
    "zero padding": lambda: [L.ZeroPadding1D((1, 3)), L.Conv1D(4, 3)],
    "spatial dropout": lambda: [L.SpatialDropout1D(0.5), L.Conv1D(2, 2)],
    "cropping": lambda: [L.Cropping1D((1, 2))],
    "up": lambda: [L.UpSampling1D(3)],
    "dense": lambda: [L.Conv1D(4, 3), L.Flatten(), L.Dense(3)],
    "one channel": lambda: [L.Reshape((33, 1)), L.Conv1D(4, 5, strides=3)],
    "batch norm": lambda: [L.BatchNormalization(), L.Conv1D(4, 3)],
}


@pytest.mark.parametrize("name", SERIES_LAYERS)
def test_series(name):
    check(sequential(SERIES, *SERIES_LAYERS[name]()))


def test_average_of_an_edge_leaves_padding_out():
    # Keras on PyTorch repeats the border where padding is uneven; the rule is TensorFlow's.
    model = sequential((4, 1), L.AveragePooling1D(2, strides=1, padding="same"))
    lowered = lower(model, 1, training=False)
    outputs, _ = evaluate(lowered.forward, {lowered.inputs[0].name: [[1.0, 3.0, 5.0, 9.0]]}, {})
    np.testing.assert_allclose(outputs["predictions"], [[2.0, 4.0, 7.0, 9.0]])


def test_the_input_layer_folds_taps_into_channels():
    unfolding = {"unfold", "matmul"}
    for layers in (
        [L.Conv2D(4, 3, padding="same")],
        [L.Rescaling(1 / 255), L.Conv2D(4, 3, padding="same")],
        [L.Rescaling(1 / 255, -0.5), L.Conv2D(4, 3)],
        [L.ZeroPadding2D(1), L.Conv2D(4, 3)],
    ):
        lowered = check(sequential(IMAGE, *layers), unfolding, {"conv", "pool"})
        assert lowered.variables[0].layout.taps == 1
    for layers in (
        [
            L.Rescaling(1 / 255, -0.5),
            L.Conv2D(4, 3, padding="same"),
        ],  # the offset is not in the border
        [L.Conv2D(4, 5)],
        [L.MaxPooling2D(1), L.Conv2D(4, 3)],
    ):
        check(sequential(IMAGE, *layers), {"unfold", "conv"})


def test_a_reshaped_input_is_read_as_an_image():
    layers = [L.Reshape((7, 6, 1)), L.Rescaling(0.5), L.Conv2D(4, 3, padding="same")]
    check(sequential((42,), *layers), {"unfold", "matmul"}, {"unflatten", "conv"})


def test_dense_reads_a_flattened_map_where_it_lies():
    model = sequential(IMAGE, L.Conv2D(4, 3), L.Flatten(), L.ReLU(), L.Dense(5))
    lowered = check(model, {"conv"}, {"flatten"})
    assert [b.layout.taps for b in lowered.variables] == [1, 1, 5 * 4, 1]
    assert [node.attrs["blocks"] for node in lowered.forward.states] == [1, 1, 5 * 4, 1]


def test_an_mlp_on_images_has_no_maps():
    model = sequential((28, 28), L.Rescaling(1 / 255), L.Flatten(), L.Dense(5))
    lowered = check(model, {"matmul"}, {"unfold", "flatten", "unflatten"})
    assert not lowered.has_maps
    assert lower(sequential(IMAGE, L.Conv2D(2, 3)), 2, training=False).has_maps


def test_dropouts_of_functional_models():
    inputs = L.Input(IMAGE)
    x = L.SpatialDropout2D(0.5)(L.Conv2D(4, 3)(inputs))
    check(keras.Model(inputs, L.Dropout(0.5)(L.Flatten()(x))), {"dropout", "spatial_dropout"})


def block(x, first=False):
    """A residual block that has all merges; channels along the axis that the format says."""
    axis = 1 if first else -1
    a = L.BatchNormalization(axis=axis)(L.Conv2D(4, 3, padding="same")(x))
    b = L.Conv2D(4, 1)(x)
    gate = L.Conv2D(4, 1, activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(a))
    place = L.Conv2D(1, 1, activation="sigmoid")(a)
    merged = L.Multiply()([L.Add()([a, b]), gate, place])
    merged = L.Concatenate(axis=axis)([merged, L.Subtract()([a, b]), L.Average()([a, b])])
    merged = L.Concatenate(axis=axis)([merged, L.Maximum()([a, b]), L.Minimum()([a, b]), x])
    return L.Add()([L.Flatten()(merged), L.Flatten()(L.ReLU()(merged))])


def test_merges():
    inputs = L.Input(IMAGE)
    check(keras.Model(inputs, L.Dense(3)(block(inputs))), without={"flatten"})


@pytest.mark.usefixtures("_channels_first")
def test_merges_with_channels_first():
    inputs = L.Input(FIRST)
    check(keras.Model(inputs, L.Dense(3)(block(inputs, first=True))))


def test_concatenated_vectors_of_maps():
    inputs = L.Input(IMAGE)
    a = L.Conv2D(2, 3)(inputs)
    parts = [L.Flatten()(a), L.GlobalMaxPooling2D()(a), L.Flatten()(inputs)]
    check(keras.Model(inputs, L.Dense(3)(L.Concatenate()(parts))), {"flatten"})


def test_shared_and_nested():
    inner = L.Input((5, 5, 4))
    nested = keras.Model(inner, L.Conv2D(4, 3, padding="same", activation="tanh")(inner))
    left, right = L.Input((5, 5, 1)), L.Input((5, 5, 1))
    first = L.Conv2D(4, 3, padding="same")
    x = L.Add()([nested(first(left)), nested(nested(first(right)))])
    check(keras.Model([left, right], x))
