"""One record per op: its shape rule and its float64 meaning, side by side.

The evaluation here is the definition that gradients, decompositions and (within their formats'
error) the compiled programs are checked against. `machine` marks the ops code generation accepts;
the others are rewritten into those by `fpgrad.transform.decompose`. The records of the ops on feature
maps are in `maps`, those on micro-batches in `batches`, those between cores in `bands`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fpgrad.errors import GraphError
from fpgrad.graph.bands import BAND_RECORDS
from fpgrad.graph.batches import BATCH_RECORDS
from fpgrad.graph.maps import MAP_RECORDS
from fpgrad.graph.node import Shape
from fpgrad.graph.record import Array, Attrs, OpRecord

# Values at the singular points, where the machine saturates: those of its default float (8 exponent
# and 15 mantissa bits).
LARGEST = (2.0 - 2.0**-15) * 2.0**127
LOG2_AT_ZERO = -127.0

SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)

ALL_SUM = "all_sum"
"""The only op whose result depends on other cores' numbers."""


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """NumPy's broadcasting rule for rank-2 shapes; GraphError when they do not fit."""
    result = [1, 1]
    for shape in shapes:
        for axis in (0, 1):
            if shape[axis] != 1:
                if result[axis] not in (1, shape[axis]):
                    raise GraphError(
                        f"shapes {' and '.join(map(str, shapes))} do not broadcast together"
                    )
                result[axis] = shape[axis]
    return result[0], result[1]


def _elementwise(shapes: Sequence[Shape], _: Attrs) -> Shape:
    return broadcast(shapes)


def _matmul_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    (a0, a1), (b0, b1) = shapes
    rows, inner_a = (a1, a0) if attrs["ta"] else (a0, a1)
    inner_b, cols = (b1, b0) if attrs["tb"] else (b0, b1)
    if inner_a != inner_b:
        raise GraphError(
            f"inner sizes of matmul must be equal, not {inner_a} and {inner_b}"
            f" (operands {shapes[0]}, {shapes[1]}, ta={attrs['ta']}, tb={attrs['tb']})"
        )
    return rows, cols


def _matmul(operands: Sequence[Array], attrs: Attrs) -> Array:
    a, b = operands
    return (a.T if attrs["ta"] else a) @ (b.T if attrs["tb"] else b)


def _reduce_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = shapes[0]
    if attrs["axis"] not in (0, 1):
        raise GraphError(f"axis must be 0 or 1, not {attrs['axis']!r}")
    return (1, cols) if attrs["axis"] == 0 else (rows, 1)


def _concat_shape(shapes: Sequence[Shape], _: Attrs) -> Shape:
    rows = {shape[0] for shape in shapes}
    if len(rows) != 1:
        raise GraphError(f"operands of concat must have equal rows, not {sorted(rows)}")
    return rows.pop(), sum(shape[1] for shape in shapes)


def _slice_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = shapes[0]
    start, stop = attrs["start"], attrs["stop"]
    if not 0 <= start < stop <= cols:
        raise GraphError(f"slice [{start}:{stop}] must lie in the {cols} columns of its operand")
    return rows, stop - start


def _uniform_shape(_: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = attrs["shape"]
    return rows, cols


def _uniform(operands: Sequence[Array], attrs: Attrs) -> Array:
    # Float64 evaluation has a generator of its own: which numbers come is the machine's business.
    seed = int(np.asarray(operands[0]).reshape(()))
    generator = np.random.default_rng([seed, int(attrs["stream"])])
    return 1.0 + generator.random(tuple(attrs["shape"]))


def _same(shapes: Sequence[Shape], _: Attrs) -> Shape:
    return shapes[0]


def _spatial(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    if shapes[0][0] % attrs["positions"]:
        raise GraphError(
            f"rows of the map must be a multiple of its {attrs['positions']} positions,"
            f" not {shapes[0][0]}"
        )
    return shapes[0]


def _row_parameters(shapes: Sequence[Shape], _: Attrs) -> Shape:
    rows, cols = shapes[0]
    for shape in shapes[1:]:
        if shape not in ((1, cols), (1, 1)):
            raise GraphError(f"per-feature operands must be (1, {cols}), not {shape}")
    return rows, cols


def _loss_shape(shapes: Sequence[Shape], _: Attrs) -> Shape:
    if shapes[0] != shapes[1]:
        raise GraphError(f"logits and targets must have one shape, not {shapes[0]} and {shapes[1]}")
    return shapes[0][0], 1


def _standardise_shape(shapes: Sequence[Shape], attrs: Attrs) -> Shape:
    rows, cols = shapes[0]
    if attrs["axis"] == 0:
        # One weight a row, or one a sample of a map, the same at each position.
        allowed, fits = (rows, 1), shapes[1][1] == 1 and rows % shapes[1][0] == 0
    else:
        allowed, fits = (1, cols), shapes[1] in ((1, cols), (1, 1))
    if not fits:
        raise GraphError(
            f"weights of standardise along axis {attrs['axis']} must be {allowed} or (1, 1),"
            f" not {shapes[1]}"
        )
    return rows, cols


def _saturating(
    function: Callable[[Array], Array], at_zero: float
) -> Callable[[Sequence[Array], Attrs], Array]:
    def evaluate(operands: Sequence[Array], _: Attrs) -> Array:
        x = operands[0]
        return np.where(x == 0.0, at_zero, function(np.where(x == 0.0, 1.0, x)))

    return evaluate


def sigmoid(x: Array) -> Array:
    """1/(1+exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


def normal_cdf(x: Array) -> Array:
    """Standard normal cumulative distribution, (1 + erf(x/sqrt 2))/2, to double precision."""
    return np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2.0)), otypes=[np.float64])(x)


def softmax(x: Array) -> Array:
    """Row-wise softmax, shifted by the row maximum."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _gelu(x: Array, approximate: bool) -> Array:
    if approximate:
        return 0.5 * x * (1.0 + np.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3)))
    return x * normal_cdf(x)


def standardise(x: Array, weights: Array, axis: int, epsilon: float) -> Array:
    """(x - mean)/sqrt(variance + epsilon), moments weighted along `axis`; weights sum to 1.

    Weights (N, 1) of a map (P*N, C) count at each of its positions.
    """
    if axis == 0:
        weights = np.tile(weights, (x.shape[0] // weights.shape[0], 1))
    weights = np.broadcast_to(weights, x.shape)
    centred = x - (x * weights).sum(axis=axis, keepdims=True)
    return centred / np.sqrt((centred**2 * weights).sum(axis=axis, keepdims=True) + epsilon)


def _huber(x: Array, delta: float) -> Array:
    clipped = np.minimum(np.abs(x), delta)
    return clipped * (np.abs(x) - 0.5 * clipped)


def _unary(name: str, function: Callable[[Array], Array], machine: bool = False) -> OpRecord:
    return OpRecord(
        name, 1, _elementwise, lambda x, _: function(x[0]), machine=machine, elementwise=True
    )


def _binary(
    name: str,
    function: Callable[[Array, Array], Array],
    machine: bool = True,
    commutative: bool = False,
) -> OpRecord:
    return OpRecord(
        name,
        2,
        _elementwise,
        lambda x, _: function(x[0], x[1]),
        machine=machine,
        commutative=commutative,
        elementwise=True,
    )


def _reduce(name: str, function: Callable[..., Array]) -> OpRecord:
    return OpRecord(
        name,
        1,
        _reduce_shape,
        lambda x, a: function(x[0], axis=a["axis"], keepdims=True),
        attrs=("axis",),
        machine=True,
    )


_RECORDS = (
    OpRecord("matmul", 2, _matmul_shape, _matmul, attrs=("ta", "tb"), machine=True, product=True),
    # To block floating point; in float64 evaluation the identity.
    OpRecord("quantise", 1, _same, lambda x, _: x[0], machine=True),
    # The sum over the cores of a machine; `evaluate` has one core, `evaluate_cores` any number.
    OpRecord(ALL_SUM, 1, _same, lambda x, _: x[0], machine=True),
    _binary("add", np.add, commutative=True),
    _binary("sub", np.subtract),
    _binary("mul", np.multiply, commutative=True),
    _binary("max", np.maximum, commutative=True),
    _binary("min", np.minimum, commutative=True),
    _binary("gt", lambda a, b: (a > b).astype(np.float64)),
    _binary("ge", lambda a, b: (a >= b).astype(np.float64)),
    _binary("eq", lambda a, b: (a == b).astype(np.float64), commutative=True),
    _binary("gate", lambda a, b: np.where(b > 0, a, 0.0)),
    _unary("relu", lambda x: np.maximum(x, 0.0), machine=True),
    _unary("exp2", np.exp2, machine=True),
    OpRecord(
        "log2", 1, _elementwise, _saturating(np.log2, LOG2_AT_ZERO), machine=True, elementwise=True
    ),
    OpRecord(
        "reciprocal",
        1,
        _elementwise,
        _saturating(np.reciprocal, LARGEST),
        machine=True,
        elementwise=True,
    ),
    OpRecord(
        "rsqrt",
        1,
        _elementwise,
        _saturating(lambda x: 1.0 / np.sqrt(x), LARGEST),
        machine=True,
        elementwise=True,
    ),
    _unary("tanh", np.tanh, machine=True),
    _unary("sigmoid", sigmoid, machine=True),
    _unary("phi", normal_cdf, machine=True),
    _reduce("reduce_sum", np.sum),
    _reduce("reduce_max", np.max),
    _reduce("reduce_min", np.min),
    OpRecord("concat", None, _concat_shape, lambda x, _: np.concatenate(x, axis=1), machine=True),
    OpRecord(
        "slice",
        1,
        _slice_shape,
        lambda x, a: x[0][:, a["start"] : a["stop"]],
        attrs=("start", "stop"),
        machine=True,
    ),
    OpRecord("uniform", 1, _uniform_shape, _uniform, attrs=("shape", "stream"), machine=True),
    # Ops below are decomposed before code generation.
    _unary("exp", np.exp),
    OpRecord(
        "log",
        1,
        _elementwise,
        _saturating(np.log, LOG2_AT_ZERO * math.log(2.0)),
        elementwise=True,
    ),
    _unary("sqrt", np.sqrt),
    _unary("square", np.square),
    _unary("abs", np.abs),
    _unary("neg", np.negative),
    _unary("sign", np.sign),
    _unary("silu", lambda x: x * sigmoid(x)),
    _unary("softplus", lambda x: np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))),
    _binary("div", np.divide, machine=False),
    OpRecord(
        "leaky_relu",
        1,
        _elementwise,
        lambda x, a: np.where(x[0] > 0, x[0], a["alpha"] * x[0]),
        attrs=("alpha",),
        elementwise=True,
    ),
    OpRecord(
        "elu",
        1,
        _elementwise,
        lambda x, a: np.where(x[0] > 0, x[0], a["alpha"] * np.expm1(np.minimum(x[0], 0.0))),
        attrs=("alpha",),
        elementwise=True,
    ),
    OpRecord(
        "gelu",
        1,
        _elementwise,
        lambda x, a: _gelu(x[0], a["approximate"]),
        attrs=("approximate",),
        elementwise=True,
    ),
    OpRecord(
        "huber",
        1,
        _elementwise,
        lambda x, a: _huber(x[0], a["delta"]),
        attrs=("delta",),
        elementwise=True,
    ),
    OpRecord("softmax", 1, _same, lambda x, _: softmax(x[0])),
    OpRecord("log_softmax", 1, _same, lambda x, _: _log_softmax(x[0])),
    # -sum(target * log_softmax(logits), axis 1); normalised says that target rows sum to 1.
    OpRecord(
        "softmax_cross_entropy",
        2,
        _loss_shape,
        lambda x, _: -(x[1] * _log_softmax(x[0])).sum(axis=1, keepdims=True),
        attrs=("normalised",),
    ),
    # Elementwise -t*log(sigmoid(z)) - (1-t)*log(1-sigmoid(z)) as in TensorFlow and PyTorch.
    _binary(
        "sigmoid_cross_entropy",
        lambda z, t: np.maximum(z, 0.0) - z * t + np.log1p(np.exp(-np.abs(z))),
        machine=False,
    ),
    OpRecord(
        "standardise",
        2,
        _standardise_shape,
        lambda x, a: standardise(x[0], x[1], a["axis"], a["epsilon"]),
        attrs=("axis", "epsilon"),
    ),
    # Operands x, gamma, beta.
    OpRecord(
        "layer_norm",
        3,
        _row_parameters,
        lambda x, a: (
            standardise(x[0], np.full((1, 1), 1.0 / x[0].shape[1]), 1, a["epsilon"]) * x[1] + x[2]
        ),
        attrs=("epsilon",),
    ),
    # Operands x, gamma, beta, moving mean, moving variance. Its meaning is that of inference; the
    # training form (batch statistics, moving updates) is put in by fpgrad.transform.modes.
    OpRecord(
        "batch_norm",
        5,
        _row_parameters,
        lambda x, a: (x[0] - x[3]) / np.sqrt(x[4] + a["epsilon"]) * x[1] + x[2],
        attrs=("epsilon", "momentum", "trainable"),
    ),
    # Identity at inference; fpgrad.transform.modes puts the mask in for training.
    OpRecord("dropout", 1, _same, lambda x, _: x[0], attrs=("rate",)),
    # The same for a map, all positions of a sample's channel dropped or kept together.
    OpRecord("spatial_dropout", 1, _spatial, lambda x, _: x[0], attrs=("rate", "positions")),
)

OPS: Mapping[str, OpRecord] = {
    record.name: record for record in (*_RECORDS, *MAP_RECORDS, *BATCH_RECORDS, *BAND_RECORDS)
}
"""Every op by name. The leaves `input`, `state` and `const` are not ops: they compute nothing."""

LEAF_ATTRS: Mapping[str, tuple[str, ...]] = {
    "input": ("kind", "octets"),
    "state": ("role", "trainable", "blocks"),
    "const": ("value",),
}
