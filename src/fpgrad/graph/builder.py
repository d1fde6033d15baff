"""Functions that make nodes, checked as they are made: `from fpgrad.graph import builder as g`.

Python numbers stand for (1, 1) constants in every operand position. A node made without a name
takes that of the enclosing `naming` block, so that rewrites keep the user's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fpgrad.errors import GraphError
from fpgrad.graph.bands import PICK, SPREAD, STACK
from fpgrad.graph.batches import JOIN, TAKE
from fpgrad.graph.maps import tap_counts
from fpgrad.graph.node import INPUT_KINDS, STATE_ROLES, Node, Shape
from fpgrad.graph.ops import ALL_SUM, OPS
from fpgrad.graph.window import Windows

Operand = Node | float | int

_current_name: ContextVar[str] = ContextVar("fpgrad_graph_name", default="")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Nodes made inside the block without a name of their own are called `name`."""
    token = _current_name.set(name)
    try:
        yield
    finally:
        _current_name.reset(token)


def make(op: str, inputs: Sequence[Operand], name: str = "", **attrs: Any) -> Node:
    """A node of any op, with its shape inferred; GraphError when the operands do not fit."""
    name = name or _current_name.get()
    record = OPS.get(op)
    if record is None:
        raise GraphError(f"op of {name!r} must be one of {', '.join(OPS)}, not {op!r}")
    operands = tuple(as_node(x) for x in inputs)
    if (record.arity is not None and len(operands) != record.arity) or not operands:
        raise GraphError(
            f"{op} {name!r} takes {record.arity or '1 or more'} operands, not {len(operands)}"
        )
    if set(attrs) != set(record.attrs):
        raise GraphError(
            f"{op} {name!r} has the attributes {sorted(record.attrs)}, not {sorted(attrs)}"
        )
    try:
        shape = record.shape([x.shape for x in operands], attrs)
    except GraphError as error:
        raise GraphError(f"{op} {name!r}: {error}") from None
    return Node(op, operands, attrs, shape, name)


def as_node(x: Operand) -> Node:
    """`x` itself, or a (1, 1) constant of a Python number."""
    return x if isinstance(x, Node) else const(float(x))


# Leaves


def _check_shape(what: str, name: str, shape: Shape) -> Shape:
    if len(shape) != 2 or any(int(size) != size or size < 1 for size in shape):
        raise GraphError(f"shape of {what} {name!r} must be two positive sizes, not {shape!r}")
    return int(shape[0]), int(shape[1])


def input_(name: str, shape: Shape, kind: str = "batch", octets: bool = False) -> Node:
    """An input of the step; `kind` is one of INPUT_KINDS."""
    if kind not in INPUT_KINDS:
        raise GraphError(f"kind of input {name!r} must be one of {INPUT_KINDS}, not {kind!r}")
    shape = _check_shape("input", name, shape)
    if (kind == "column" and shape[1] != 1) or (kind in ("scalar", "seed") and shape != (1, 1)):
        raise GraphError(f"shape of {kind} input {name!r} cannot be {shape}")
    return Node("input", (), {"kind": kind, "octets": octets}, shape, name)


def batch_input(name: str, shape: Shape, octets: bool = False) -> Node:
    """(N, F) data, one row a sample; octets: whole numbers of 0 to 255, which may come as bytes."""
    return input_(name, shape, "batch", octets)


def column_input(name: str, rows: int) -> Node:
    """(N, 1): one number a sample."""
    return input_(name, (rows, 1), "column")


def scalar_input(name: str) -> Node:
    """(1, 1): one number a step, computed by the host in float64."""
    return input_(name, (1, 1), "scalar")


def seed_input(name: str = "seed") -> Node:
    """(1, 1): the step's 64-bit seed for the device's generator."""
    return input_(name, (1, 1), "seed")


def state(
    name: str, shape: Shape, trainable: bool = False, role: str = "parameter", blocks: int = 1
) -> Node:
    """A tensor that persists between steps; `role` is one of STATE_ROLES.

    blocks: its rows are that many equal blocks (the taps of a kernel), each laid out by itself.
    """
    if role not in STATE_ROLES:
        raise GraphError(f"role of state {name!r} must be one of {STATE_ROLES}, not {role!r}")
    shape = _check_shape("state", name, shape)
    if blocks < 1 or shape[0] % blocks:
        raise GraphError(
            f"blocks of state {name!r} must divide its {shape[0]} rows, not {blocks!r}"
        )
    attrs = {"role": role, "trainable": bool(trainable), "blocks": int(blocks)}
    return Node("state", (), attrs, shape, name)


def const(value: ArrayLike, name: str = "") -> Node:
    """A constant: a number becomes (1, 1), a vector (1, F)."""
    array = np.array(value, dtype=np.float64, ndmin=2)
    if array.ndim != 2 or array.size == 0 or not np.all(np.isfinite(array)):
        raise GraphError(f"constant {name!r} must be a finite array of rank 2 or less")
    array.setflags(write=False)
    return Node("const", (), {"value": array}, array.shape, name or _current_name.get())


def iota(cols: int, name: str = "") -> Node:
    """The constant row 0, 1, ..., cols-1."""
    return const(np.arange(cols), name)


# Machine ops


def matmul(a: Operand, b: Operand, ta: bool = False, tb: bool = False, name: str = "") -> Node:
    """op(a) @ op(b), where op transposes if ta, tb say so."""
    return make("matmul", (a, b), name, ta=ta, tb=tb)


def quantise(x: Operand, name: str = "") -> Node:
    """Rounds x to block floating point tiles."""
    return make("quantise", (x,), name)


def all_sum(x: Operand, name: str = "") -> Node:
    """The sum of x over all cores of the machine."""
    return make(ALL_SUM, (x,), name)


def spread(x: Operand, places: tuple[int, int], rows: tuple[int, int], name: str = "") -> Node:
    """Some rows of x in a core's own place among those of the cores `places`, zeros in the others."""
    return make(SPREAD, (x,), name, places=places, rows=rows)


def pick(x: Operand, places: tuple[int, int], shift: int, name: str = "") -> Node:
    """Of the places of cores in x that of the core `shift` further; zeros where there is none."""
    return make(PICK, (x,), name, places=places, shift=shift)


def stack(parts: Sequence[Operand], name: str = "") -> Node:
    """The rows of all parts, one after the other."""
    return make(STACK, parts, name)


def add(a: Operand, b: Operand, name: str = "") -> Node:
    """Sum of a and b."""
    return make("add", (a, b), name)


def sub(a: Operand, b: Operand, name: str = "") -> Node:
    """Difference of a and b."""
    return make("sub", (a, b), name)


def mul(a: Operand, b: Operand, name: str = "") -> Node:
    """Elementwise product of a and b."""
    return make("mul", (a, b), name)


def maximum(a: Operand, b: Operand, name: str = "") -> Node:
    """Op `max`: the larger of a and b."""
    return make("max", (a, b), name)


def minimum(a: Operand, b: Operand, name: str = "") -> Node:
    """Op `min`: the smaller of a and b."""
    return make("min", (a, b), name)


def gt(a: Operand, b: Operand, name: str = "") -> Node:
    """1 where a > b, else 0."""
    return make("gt", (a, b), name)


def ge(a: Operand, b: Operand, name: str = "") -> Node:
    """1 where a >= b, else 0."""
    return make("ge", (a, b), name)


def eq(a: Operand, b: Operand, name: str = "") -> Node:
    """1 where a == b, else 0."""
    return make("eq", (a, b), name)


def gate(x: Operand, condition: Operand, name: str = "") -> Node:
    """Keeps x where condition > 0, else 0."""
    return make("gate", (x, condition), name)


def relu(x: Operand, name: str = "") -> Node:
    """max(x, 0)."""
    return make("relu", (x,), name)


def exp2(x: Operand, name: str = "") -> Node:
    """2**x."""
    return make("exp2", (x,), name)


def log2(x: Operand, name: str = "") -> Node:
    """Logarithm to base 2, saturating at 0."""
    return make("log2", (x,), name)


def reciprocal(x: Operand, name: str = "") -> Node:
    """1/x, saturating at 0."""
    return make("reciprocal", (x,), name)


def rsqrt(x: Operand, name: str = "") -> Node:
    """1/sqrt(x), saturating at 0."""
    return make("rsqrt", (x,), name)


def tanh(x: Operand, name: str = "") -> Node:
    """Hyperbolic tangent."""
    return make("tanh", (x,), name)


def sigmoid(x: Operand, name: str = "") -> Node:
    """1/(1 + exp(-x))."""
    return make("sigmoid", (x,), name)


def phi(x: Operand, name: str = "") -> Node:
    """Standard normal cumulative distribution."""
    return make("phi", (x,), name)


def reduce_sum(x: Operand, axis: int, name: str = "") -> Node:
    """Sum over rows (axis 0, giving (1, F)) or columns (axis 1, giving (N, 1))."""
    return make("reduce_sum", (x,), name, axis=axis)


def reduce_max(x: Operand, axis: int, name: str = "") -> Node:
    """Largest over rows (axis 0) or columns (axis 1)."""
    return make("reduce_max", (x,), name, axis=axis)


def reduce_min(x: Operand, axis: int, name: str = "") -> Node:
    """Smallest over rows (axis 0) or columns (axis 1)."""
    return make("reduce_min", (x,), name, axis=axis)


def concat(*parts: Operand, name: str = "") -> Node:
    """Parts side by side, along columns."""
    return make("concat", parts, name)


def slice_cols(x: Operand, start: int, stop: int, name: str = "") -> Node:
    """Op `slice`: columns start to stop of x."""
    return make("slice", (x,), name, start=start, stop=stop)


def uniform(seed: Node, shape: Shape, stream: int, name: str = "") -> Node:
    """Uniform numbers in [1, 2); `stream` tells apart the generators of one function."""
    return make("uniform", (seed,), name, shape=_check_shape("uniform", name, shape), stream=stream)


def take_samples(x: Node, first: int, count: int, name: str = "") -> Node:
    """Rows first to first + count of an input, or of a metric's state, with a row a sample."""
    return make(TAKE, (x,), name, first=first, count=count)


def join_samples(parts: Sequence[Operand], name: str = "") -> Node:
    """Micro-batches of equal size one after the other, as an output or a state's new value."""
    return make(JOIN, parts, name)


# Machine ops on feature maps (see fpgrad.graph.maps)


def conv(
    x: Operand,
    w: Operand,
    windows: Windows,
    transposed_weights: bool = False,
    groups: int = 1,
    name: str = "",
) -> Node:
    """Convolution of a map (Pin*N, Cin) with a kernel (taps*Cin, Cout), giving (Pout*N, Cout).

    With transposed_weights the kernel is (taps*Cout, Cin) and each tap's block used transposed.
    With groups the kernel is zero outside the blocks of `group_mask`.
    """
    attrs = {"windows": windows, "transposed_weights": transposed_weights, "groups": groups}
    return make("conv", (x, w), name, **attrs)


def conv_weight(x: Operand, dy: Operand, windows: Windows, groups: int = 1, name: str = "") -> Node:
    """Gradient (taps*Cin, Cout) of a kernel, from map and cotangent of the result.

    With groups, what lies outside the blocks of `group_mask` must not be used.
    """
    return make("conv_weight", (x, dy), name, windows=windows, groups=groups)


def unfold(x: Operand, windows: Windows, channels: int, name: str = "", *, cores: int = 1) -> Node:
    """The windows of a batch input (N, H*W*C) in HWC order, as a map (Pout*N, taps*C), or of `cores` each one's band of
    its rows."""
    return make("unfold", (x,), name, windows=windows, channels=channels, cores=cores)


def pool(x: Operand, windows: Windows, kind: str, name: str = "") -> Node:
    """Sum or maximum (`kind` "sum", "max") over the taps that are not padding; 0 if all are."""
    return make("pool", (x,), name, windows=windows, kind=kind)


def average_pool(x: Operand, windows: Windows, name: str = "") -> Node:
    """Mean over the taps that are not padding; 0 if all are."""
    counts = np.maximum(tap_counts(windows), 1)
    total = pool(x, windows, "sum", name)
    if np.all(counts == counts[0]):
        return mul(total, 1.0 / float(counts[0]), name)
    # Expensive, a number a row, but only where 'same' padding cuts windows at the edges.
    column = np.repeat(1.0 / counts, total.shape[0] // counts.size)[:, None]
    return mul(total, const(column, name), name)


def pool_max_grad(x: Operand, y: Operand, dy: Operand, windows: Windows, name: str = "") -> Node:
    """Gradient of a maximum y over the windows of x: dy where x equals it."""
    return make("pool_max_grad", (x, y, dy), name, windows=windows)


def flatten(x: Operand, positions: int, name: str = "") -> Node:
    """A map (P*N, C) as rows (N, P*C), columns in the order p*C + c."""
    return make("flatten", (x,), name, positions=positions)


def unflatten(x: Operand, positions: int, name: str = "") -> Node:
    """Rows (N, P*C) as a map (P*N, C)."""
    return make("unflatten", (x,), name, positions=positions)


# Composite ops


def unary(op: str, x: Operand, name: str = "") -> Node:
    """An op of one operand and no attributes: exp, log, sqrt, square, abs, neg, sign, silu, ..."""
    return make(op, (x,), name)


def neg(x: Operand, name: str = "") -> Node:
    """-x."""
    return make("neg", (x,), name)


def div(a: Operand, b: Operand, name: str = "") -> Node:
    """Quotient of a and b."""
    return make("div", (a, b), name)


def softmax(x: Operand, name: str = "") -> Node:
    """Softmax of each row."""
    return make("softmax", (x,), name)


def leaky_relu(x: Operand, alpha: float, name: str = "") -> Node:
    """Keeps x where x > 0, else alpha*x."""
    return make("leaky_relu", (x,), name, alpha=float(alpha))


def elu(x: Operand, alpha: float = 1.0, name: str = "") -> Node:
    """Keeps x where x > 0, else alpha*(exp(x) - 1)."""
    return make("elu", (x,), name, alpha=float(alpha))


def gelu(x: Operand, approximate: bool = False, name: str = "") -> Node:
    """x*phi(x), or its tanh approximation."""
    return make("gelu", (x,), name, approximate=bool(approximate))


def dropout(x: Operand, rate: float, name: str = "") -> Node:
    """Inverted dropout in training, x otherwise; 0 <= rate < 1."""
    return make("dropout", (x,), name, rate=_rate(rate, name))


def spatial_dropout(x: Operand, rate: float, positions: int, name: str = "") -> Node:
    """Dropout of whole channels of a map (positions*N, C), sample by sample."""
    return make("spatial_dropout", (x,), name, rate=_rate(rate, name), positions=positions)


def _rate(rate: float, name: str) -> float:
    if not 0.0 <= rate < 1.0:
        raise GraphError(f"rate of dropout {name!r} must be in [0, 1), not {rate!r}")
    return float(rate)


def batch_norm(
    x: Operand,
    gamma: Operand,
    beta: Operand,
    moving_mean: Node,
    moving_variance: Node,
    epsilon: float,
    momentum: float,
    trainable: bool = True,
    name: str = "",
) -> Node:
    """Batch normalisation of features; without scale or centre pass gamma=1.0, beta=0.0.

    With `trainable` False it uses the moving statistics in training too, as Keras does.
    """
    return make(
        "batch_norm",
        (x, gamma, beta, moving_mean, moving_variance),
        name,
        epsilon=float(epsilon),
        momentum=float(momentum),
        trainable=bool(trainable),
    )


def layer_norm(x: Operand, gamma: Operand, beta: Operand, epsilon: float, name: str = "") -> Node:
    """Normalisation of each row; without scale or centre pass gamma=1.0, beta=0.0."""
    return make("layer_norm", (x, gamma, beta), name, epsilon=float(epsilon))
