"""What the Keras front end hands on: graph, names, bindings, descriptions of training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from fpgrad.errors import ModelNotCompiledError, UnsupportedModelError
from fpgrad.frontend.keras import lower, supported_layers
from fpgrad.frontend.lowered import Normaliser, TargetKind
from fpgrad.graph import evaluate, print_function, verify

L = keras.layers


def classifier(**options):
    model = keras.Sequential(
        [
            L.Input((3,), name="pixels"),
            L.Dense(4, activation="relu", name="hidden"),
            L.Dropout(0.5, name="drop"),
            L.Dense(2, activation="softmax", name="classes"),
        ],
        name="net",
    )
    settings = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", **options}
    model.compile(**settings)
    return model


def test_graph_of_a_classifier():
    lowered = lower(classifier(), 2)
    verify(lowered.forward, "forward")
    assert print_function(lowered.forward) == GOLDEN


GOLDEN = """\
function "forward" {
  %0 = input {"kind": "batch"} (2, 3) "pixels"
  %1 = state {"role": "parameter", "trainable": true} (3, 4) "hidden/kernel"
  %2 = state {"role": "parameter", "trainable": true} (1, 4) "hidden/bias"
  %3 = state {"role": "parameter", "trainable": true} (4, 2) "classes/kernel"
  %4 = state {"role": "parameter", "trainable": true} (1, 2) "classes/bias"
  %5 = matmul %0, %1 {"ta": false, "tb": false} (2, 4) "hidden"
  %6 = add %5, %2 (2, 4) "hidden"
  %7 = relu %6 (2, 4) "hidden"
  %8 = dropout %7 {"rate": 0.5} (2, 4) "drop"
  %9 = matmul %8, %3 {"ta": false, "tb": false} (2, 2) "classes"
  %10 = add %9, %4 (2, 2) "classes"
  %11 = softmax %10 (2, 2) "classes"
  output "predictions" %11
}
"""


def test_bindings_carry_the_users_names_in_the_order_of_the_models_weights():
    model = classifier()
    lowered = lower(model, 2)
    assert [(b.state, b.shape, b.trainable) for b in lowered.variables] == [
        ("hidden/kernel", (3, 4), True),
        ("hidden/bias", (1, 4), True),
        ("classes/kernel", (4, 2), True),
        ("classes/bias", (1, 2), True),
    ]
    assert [b.variable is w for b, w in zip(lowered.variables, model.weights, strict=True)] == [
        True
    ] * 4
    (pixels,) = lowered.inputs
    assert (pixels.name, pixels.shape, lowered.output_shape) == ("pixels", (3,), (2,))


def test_description_of_training():
    model = classifier(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.5),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1, reduction="sum"),
        metrics=["accuracy", "mse", keras.metrics.Precision()],
        weighted_metrics=["accuracy"],
    )
    training = lower(model, 2).training
    assert training is not None
    assert (training.loss.kind, training.loss.label_smoothing) == ("categorical_crossentropy", 0.1)
    assert training.normaliser is Normaliser.ONE
    assert (training.target.kind, training.target.bounds) == (TargetKind.VALUES, (0.0, 1.0))
    assert [(m.spec.kind, m.weighted) for m in training.metrics] == [
        ("categorical_accuracy", False),
        ("mean_squared_error", False),
        ("categorical_accuracy", True),
    ]
    assert [m.metric.name for m in training.host_metrics] == ["precision"]
    assert training.optimizer.kind == "sgd"
    assert training.optimizer.arguments == {
        "momentum": 0.5,
        "nesterov": False,
        "weight_decay": None,
        "clipvalue": None,
    }


def test_layers_of_nested_models_are_named_by_their_path():
    inner = keras.Sequential([L.Input((3,)), L.Dense(3, name="dense")], name="encoder")
    inputs = L.Input((3,))
    model = keras.Model(inputs, L.Dense(2, name="dense")(inner(inner(inputs))))
    states = [b.state for b in lower(model, 1, training=False).variables]
    assert states == ["encoder/dense/kernel", "encoder/dense/bias", "dense/kernel", "dense/bias"]


def test_weight_decay_exclusions_are_carried_over():
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = classifier(optimizer=optimizer)
    training = lower(model, 2).training
    assert training is not None
    assert training.optimizer.no_decay == {"hidden/bias", "classes/bias"}


def test_inference_needs_no_compile_and_training_does():
    model = keras.Sequential([L.Input((3,)), L.Dense(2)], name="net")
    assert lower(model, 2, training=False).training is None
    with pytest.raises(ModelNotCompiledError):
        lower(model, 2)


def test_graph_means_what_the_model_does():
    model = classifier()
    lowered = lower(model, 5, training=False)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    states = {
        b.state: b.layout.pack(keras.ops.convert_to_numpy(b.variable)) for b in lowered.variables
    }
    outputs, _ = evaluate(lowered.forward, {"pixels": x}, states)
    np.testing.assert_allclose(
        outputs["predictions"], model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def problems(layers, shape=(4,), **options):
    """What is reported of a Sequential, as (where, what); a remedy stands with each."""
    model = keras.Sequential([L.Input(shape), *layers], name="net")
    settings = {"optimizer": "sgd", "loss": "mse", **options}
    model.compile(**settings)
    with pytest.raises(UnsupportedModelError) as caught:
        lower(model, 2)
    assert all(problem.remedy for problem in caught.value.problems)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def dense(**options):
    return L.Dense(2, name="d", **options)


UNSUPPORTED = [
    ([dense(bias_constraint="max_norm")], {}, ["d: bias_constraint=MaxNorm is not supported"]),
    ([dense(activity_regularizer="l2")], {}, ["d: activity_regularizer=L2 is not supported"]),
    (
        [dense(kernel_regularizer=keras.regularizers.OrthogonalRegularizer())],
        {},
        ["d/kernel: regularizer OrthogonalRegularizer is not supported"],
    ),
    ([dense(dtype="mixed_bfloat16")], {}, ["d: dtype policy 'mixed_bfloat16' is not supported"]),
    ([dense(activation="mish")], {}, ["d: activation 'mish' is not supported"]),
    ([dense(activation=lambda x: x)], {}, ["d: activation '<lambda>' is not supported"]),
    (
        [L.Reshape((2, 2, 1, 1)), dense(), L.Flatten()],
        {},
        ["d: Dense on a tensor of shape (None, 2, 2, 1, 1) is not supported"],
    ),
    ([dense(), L.ReLU(threshold=1.0, name="r")], {}, ["r: threshold=1.0 is not supported"]),
    (
        [dense(), L.Dropout(0.5, noise_shape=(None, 1), name="o")],
        {},
        ["o: noise_shape=(None, 1) is not supported"],
    ),
    (
        [L.Reshape((2, 2, 1)), L.BatchNormalization(axis=2, name="b"), L.Flatten(), dense()],
        {},
        ["b: BatchNormalization of shape (None, 2, 2, 1) along axis 2 is not supported"],
    ),
    (
        [L.Reshape((2, 2)), L.LayerNormalization(axis=(1, 2), name="b"), L.Flatten(), dense()],
        {},
        ["b: LayerNormalization of shape (None, 2, 2) along axis (1, 2) is not supported"],
    ),
    ([dense()], {"loss": "kl_divergence"}, ["loss kl_divergence: is not supported"]),
    (
        [dense()],
        {"loss": "crossentropy"},
        ["loss crossentropy: depends on the shape of the labels"],
    ),
    ([dense()], {"loss": lambda y, _: y}, ["loss <lambda>: is not supported"]),
    (
        [dense()],
        {"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=1)},
        ["loss sparse_categorical_crossentropy: ignore_class is not supported"],
    ),
    (
        [dense()],
        {"loss": keras.losses.MeanSquaredError(reduction=None)},
        ["loss mean_squared_error: reduction=None is not supported"],
    ),
    ([dense()], {"optimizer": "lion"}, ["optimizer Lion: is not supported"]),
    (
        [dense()],
        {"optimizer": keras.optimizers.SGD(global_clipnorm=1.0)},
        ["optimizer SGD: global_clipnorm=1.0 is not supported"],
    ),
    (
        [dense()],
        {"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=4)},
        ["optimizer Adam: gradient_accumulation_steps=4 is not supported"],
    ),
    (
        [dense()],
        {"optimizer": keras.optimizers.RMSprop(loss_scale_factor=8.0)},
        ["optimizer RMSprop: loss_scale_factor=8.0 is not supported"],
    ),
    (
        [dense(trainable=False)],
        {},
        ["net: has no trainable weights"],
    ),
    (
        [L.Dense(1, activation="softmax", name="d")],
        {},
        ["d: softmax of a single number is the constant 1 and cannot be trained"],
    ),
]


@pytest.mark.parametrize(("layers", "options", "expected"), UNSUPPORTED)
def test_options_are_refused_by_name(layers, options, expected):
    assert problems(layers, **options) == expected


UNSUPPORTED_ON_MAPS = [
    (
        [L.UpSampling2D(interpolation="bilinear", name="u")],
        ["u: interpolation='bilinear' is not supported"],
    ),
    ([L.Permute((2, 1, 3), name="p")], ["p: layer Permute is not supported"]),
    (
        [L.Conv2D(2, 1, name="c", bias_constraint="max_norm")],
        ["c: bias_constraint=MaxNorm is not supported"],
    ),
    (
        [L.SeparableConv2D(2, 1, name="c", pointwise_constraint="max_norm")],
        ["c: pointwise_constraint=MaxNorm is not supported"],
    ),
    (
        [L.DepthwiseConv2D(1, name="c", activation="selu")],
        ["c: activation 'selu' is not supported"],
    ),
    (
        [L.Softmax(axis=2, name="s")],
        ["s: softmax of a tensor of shape (None, 4, 4, 2) along axis 2 is not supported"],
    ),
    (
        [L.LayerNormalization(axis=1, name="n")],
        ["n: LayerNormalization of shape (None, 4, 4, 2) along axis 1 is not supported"],
    ),
    (
        [L.Conv2D(2, 3, name="a"), L.BatchNormalization(axis=1, name="n")],
        [
            "n: data_format='channels_first' does not fit the order of its input of shape (None, 2, 2, 2)"
        ],
    ),
    (
        [L.Conv2D(2, 3, name="a"), L.Flatten("channels_first", name="f")],
        [
            "a: data_format='channels_last' does not fit the order of its input of shape (None, 4, 4, 2)",
            "f: data_format='channels_first' does not fit the order of its input of shape (None, 2, 2, 2)",
        ],
    ),
    (
        [
            L.Conv2D(2, 3, name="a"),
            L.Conv2D(2, 2, name="b", data_format="channels_first"),
        ],
        [
            "a: data_format='channels_last' does not fit the order of its input of shape (None, 4, 4, 2)",
            "b: data_format='channels_first' does not fit the order of its input of shape (None, 2, 2, 2)",
        ],
    ),
    (
        [L.Rescaling([1.0, 2.0], name="r")],
        ["r: scale of shape (2,) is not supported"],
    ),
]


@pytest.mark.parametrize(("layers", "expected"), UNSUPPORTED_ON_MAPS)
def test_options_on_maps_are_refused_by_name(layers, expected):
    assert problems([*layers, L.Flatten("channels_last"), dense()], (4, 4, 2)) == expected


def test_everything_unsupported_of_a_convolutional_network_is_reported_at_once():
    layers = [
        L.Conv2D(2, 1, name="c", kernel_constraint="max_norm", activation="selu"),
        L.Permute((2, 1, 3), name="p"),
        L.UpSampling2D(interpolation="bilinear", name="u"),
        L.MaxPooling2D(name="m"),
        L.Softmax(axis=1, name="s"),
        L.Flatten(name="f"),
        L.Dense(2, activation="mish", name="d"),
    ]
    assert problems(layers, (4, 4, 2)) == [
        "c: kernel_constraint=MaxNorm is not supported",
        "c: activation 'selu' is not supported",
        "p: layer Permute is not supported",
        "u: interpolation='bilinear' is not supported",
        "s: data_format='channels_first' does not fit the order of its input of shape (None, 4, 4, 2)",
        "d: activation 'mish' is not supported",
    ]


def test_sums_of_losses_over_positions_are_refused():
    layers = [L.Conv2D(2, 1, name="c")]
    options = {"loss": keras.losses.MeanSquaredError(reduction="sum")}
    assert problems(layers, (4, 4, 2), **options) == [
        "loss mean_squared_error: reduction='sum' of an output of shape (None, 4, 4, 2) is not supported"
    ]


def test_merges_of_maps_that_do_not_fit_are_refused():
    inputs = L.Input((4, 4, 2))
    rows, columns = L.Conv2D(2, (1, 4), name="a")(inputs), L.Conv2D(2, (4, 1), name="b")(inputs)
    joined = L.Concatenate(axis=1, name="j")(
        [L.Conv2D(2, 1)(inputs), L.Add(name="t")([rows, columns])]
    )
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(joined)), name="net")
    with pytest.raises(UnsupportedModelError) as caught:
        lower(model, 2, training=False)
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("t", "inputs of shapes [(None, 1, 4, 2), (None, 4, 1, 2)] are not supported"),
        ("j", "Concatenate of shape (None, 4, 4, 2) along axis 1 is not supported"),
    ]


def test_a_layer_on_the_input_and_on_a_map_is_refused():
    inputs = L.Input((4, 4, 2))
    layer = L.Conv2D(2, 3, padding="same", name="c")
    model = keras.Model(inputs, layer(layer(inputs)), name="net")
    with pytest.raises(UnsupportedModelError) as caught:
        lower(model, 2, training=False)
    (problem,) = caught.value.problems
    assert str(problem) == (
        "c/kernel: is used for maps of two kinds, which must store it in two ways; "
        "use one layer for each place"
    )


def test_two_outputs_are_refused():
    inputs = L.Input((3,))
    model = keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)], name="net")
    model.compile("sgd", ["mse", "mse"])
    with pytest.raises(UnsupportedModelError, match=r"net: 2 outputs \(.*\) are not supported"):
        lower(model, 2)


def test_models_with_code_of_their_own_are_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    own = Own(name="own")
    own.compile("sgd", "mse")
    with pytest.raises(UnsupportedModelError, match="own: the shape of its input is not known"):
        lower(own, 2)

    class Step(keras.Sequential):
        def train_step(self, data):
            return {}

    step = Step([L.Input((3,)), L.Dense(2)], name="step")
    step.compile("sgd", "mse")
    with pytest.raises(
        UnsupportedModelError, match=r"step: its own train_step \(of .*Step\) is not"
    ):
        lower(step, 2)


def test_the_list_of_supported_layers():
    assert {"Dense", "Flatten", "BatchNormalization", "Concatenate"} <= set(supported_layers())
