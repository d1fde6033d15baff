"""Training steps of convolutional models, fully lowered: against PyTorch in float64, and golden."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.graph.models import dense, random_states, same_window, valid_window
from torch.nn import functional

from fpgrad.graph import Function, Node, Window, Windows, evaluate, print_function, verify
from fpgrad.graph import builder as g
from fpgrad.graph.maps import group_mask
from fpgrad.graph.window import all_positions, taps
from fpgrad.transform import (
    build_evaluation,
    build_prediction,
    build_training,
    losses,
    lower,
    optimizers,
)

ROWS, HEIGHT, WIDTH, CLASSES = 6, 6, 5, 3
STEPS = 4
LOSS = losses.SparseCategoricalCrossentropy()
STEM = (same_window(HEIGHT, 3), same_window(WIDTH, 3))
POOL = (valid_window(6, 2, 2), valid_window(5, 2, 2))
GROUPED = (same_window(3, 3), same_window(2, 3))
UP = (Window(3, 6, 2, dilation=-1, up=2), Window(2, 4, 2, dilation=-1, up=2))
AVERAGE = (same_window(6, 3, 2), same_window(4, 3, 2))
WHOLE = (valid_window(3, 3), valid_window(2, 2))


def convolution(
    x: Node, windows: Windows, outputs: int, name: str, groups: int = 1, turned: bool = False
) -> tuple[Node, list[Node]]:
    """A convolution with bias and its states."""
    count, channels = taps(windows), x.shape[1]
    shape = (count * outputs, channels) if turned else (count * channels, outputs)
    kernel = g.state(f"{name}/kernel", shape, trainable=True, blocks=count)
    bias = g.state(f"{name}/bias", (1, outputs), trainable=True)
    with g.naming(name):
        y = g.conv(x, kernel, windows, transposed_weights=turned, groups=groups)
        return g.add(y, bias), [kernel, bias]


def normalised(x: Node, name: str) -> tuple[Node, list[Node]]:
    """Batch normalisation and its states."""
    shape = (1, x.shape[1])
    states = [g.state(f"{name}/{p}", shape, trainable=True) for p in ("gamma", "beta")]
    states += [g.state(f"{name}/moving_{p}", shape, role="moving") for p in ("mean", "variance")]
    return g.batch_norm(x, *states, epsilon=1e-3, momentum=0.75, name=name), states


def model(rows: int = ROWS) -> Function:
    """Every op on maps once, from stem to classes."""
    x = g.batch_input("x", (rows, HEIGHT * WIDTH * 2))
    h, states = dense(g.unfold(x, STEM, 2, name="stem"), 8, "stem")
    h, new = normalised(h, "norm")
    states += new
    h = g.pool(g.relu(h, name="relu"), POOL, "max", name="max")
    h, new = convolution(h, GROUPED, 6, "grouped", groups=2)
    states += new
    h, new = convolution(g.relu(h, name="relu_1"), UP, 4, "up", turned=True)
    states += new
    h = g.average_pool(g.tanh(h, name="tanh"), AVERAGE, name="average")
    h = g.unflatten(g.flatten(h, 6, name="flat"), 6, name="unflat")
    h, new = convolution(h, WHOLE, CLASSES, "classes")
    states += new
    y = g.softmax(h, name="softmax")
    return verify(Function("cnn", (x,), tuple(states), (("output", y),)), "forward")


def kernel_of(rows: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Rows (taps*Cin, Cout) as PyTorch's (Cout, Cin, R, S)."""
    blocks = rows.reshape(windows[0].taps, windows[1].taps, -1, rows.shape[1])
    return blocks.permute(3, 2, 0, 1)


MASK = group_mask((72, 6), 9, 2)


def torch_model(
    p: dict[str, torch.Tensor], images: torch.Tensor, moving: dict[str, torch.Tensor]
) -> torch.Tensor:
    x = images.reshape(-1, HEIGHT, WIDTH, 2).permute(0, 3, 1, 2)
    h = functional.conv2d(x, kernel_of(p["stem/kernel"], STEM), p["stem/bias"][0], padding=1)
    mean, variance = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
    for name, value in (("mean", mean), ("variance", variance)):
        moving[name] = 0.75 * moving[name] + 0.25 * value.detach()
    h = (h - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-3)
    h = h * p["norm/gamma"][0, :, None, None] + p["norm/beta"][0, :, None, None]
    h = functional.max_pool2d(torch.relu(h), 2)
    grouped = kernel_of(p["grouped/kernel"] * torch.tensor(MASK), GROUPED)
    h = functional.conv2d(h, grouped, p["grouped/bias"][0], padding=1)
    up = kernel_of(p["up/kernel"], UP)
    h = functional.conv_transpose2d(torch.relu(h), up, p["up/bias"][0], stride=2)
    h = functional.avg_pool2d(torch.tanh(h), 3, 2, ceil_mode=True)
    h = functional.conv2d(h, kernel_of(p["classes/kernel"], WHOLE), p["classes/bias"][0])
    return h[:, :, 0, 0]


def initial(function: Function) -> dict[str, np.ndarray]:
    states = random_states(function, seed=3)
    if "grouped/kernel" in states:
        states["grouped/kernel"] *= MASK
    return states


def batches(function: Function):
    """Every other batch is short: its last rows are padding, with values that must not count."""
    generator = np.random.default_rng(8)
    names = {n.name for n in function.inputs}
    for step in range(STEPS):
        valid = np.ones((ROWS, 1))
        if step % 2:
            valid[ROWS - 2 :] = 0.0
        batch = {
            "x": generator.normal(size=(ROWS, HEIGHT * WIDTH * 2)),
            "y": generator.integers(0, CLASSES, size=(ROWS, 1)).astype(float),
            "sample_weight": generator.uniform(0.5, 2.0, size=(ROWS, 1)) * valid,
            "valid": valid,
            "inv_count": np.array([[1.0 / valid.sum()]]),
            **optimizers.sgd().host_scalars(0.2, step),
        }
        yield valid[:, 0] > 0, {k: v for k, v in batch.items() if k in names}


def test_trains_as_in_pytorch():
    function = lower(build_training(model(), LOSS, optimizers.sgd(0.5)))
    states = initial(function)
    names = [s.name for s in function.states if s.attrs["role"] == "parameter"]
    p = {n: torch.tensor(states[n], requires_grad=True) for n in names}
    moving = {n: torch.tensor(states[f"norm/moving_{n}"][0]) for n in ("mean", "variance")}
    optimizer = torch.optim.SGD(p.values(), lr=0.2, momentum=0.5)
    total = 0.0
    for rows, batch in batches(function):
        _, states = evaluate(function, batch, states)
        logits = torch_model(p, torch.tensor(batch["x"][rows]), moving)
        y = torch.tensor(batch["y"][rows, 0]).long()
        loss = functional.cross_entropy(logits, y, reduction="none")
        loss = loss * torch.tensor(batch["sample_weight"][rows, 0])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        total += loss.sum().item()
    for name, value in p.items():
        np.testing.assert_allclose(
            states[name], value.detach().numpy(), rtol=1e-8, atol=1e-11, err_msg=name
        )
    for name, value in moving.items():
        np.testing.assert_allclose(states[f"norm/moving_{name}"][0], value.numpy(), rtol=1e-9)
    assert states["loss_sum"].sum() == pytest.approx(total, rel=1e-9)
    # What the groups leave out stays zero.
    assert np.all(states["grouped/kernel"][MASK == 0.0] == 0.0)


def test_evaluation_and_prediction_are_those_of_the_forward_function():
    forward = model()
    states = initial(forward)
    _, batch = next(batches(build_evaluation(forward, LOSS)))
    expected = evaluate(forward, {"x": batch["x"]}, states)[0]["output"]
    outputs = evaluate(lower(build_prediction(forward)), {"x": batch["x"]}, states)[0]
    np.testing.assert_allclose(outputs["output"], expected, rtol=1e-10)
    function = lower(build_evaluation(forward, LOSS))
    _, after = evaluate(function, batch, states | {"loss_sum": np.zeros((ROWS, 1))})
    chosen = expected[np.arange(ROWS), batch["y"][:, 0].astype(int)]
    np.testing.assert_allclose(
        after["loss_sum"][:, 0], -np.log(chosen) * batch["sample_weight"][:, 0], rtol=1e-9
    )


def test_slots_have_the_blocks_of_their_parameter():
    function = build_training(model(), LOSS, optimizers.adam())
    blocks = {s.name: s.attrs["blocks"] for s in function.states}
    assert blocks["grouped/kernel:momentum"] == blocks["grouped/kernel"] == 9
    assert blocks["classes/kernel:velocity"] == 6
    assert blocks["stem/kernel:velocity"] == blocks["up/bias:velocity"] == 1


def test_dropout_of_a_map_has_a_mask_of_its_shape():
    x = g.batch_input("x", (2, 12))
    h = g.dropout(g.unfold(x, (Window(2, 2, 1), Window(3, 3, 1)), 2), 0.5, name="drop")
    kernel = g.state("kernel", (12, 1), trainable=True, blocks=6)
    y = g.conv(h, kernel, (valid_window(2, 2), valid_window(3, 3)))
    forward = Function("m", (x,), (kernel,), (("output", y),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    masks = [n for n in function.nodes() if n.op == "uniform"]
    assert [mask.shape for mask in masks] == [(12, 2)]
    data = np.random.default_rng(0).normal(size=(2, 12))
    inputs = {"x": data, "y": np.zeros((2, 1)), "sample_weight": np.ones((2, 1)), "inv_count": 0.5}
    inputs |= {"seed": 5, **optimizers.sgd().host_scalars(1.0, 0)}
    states = {"kernel": np.ones((12, 1)), "loss_sum": np.zeros((2, 1))}
    _, after = evaluate(function, inputs, states)
    kept = np.random.default_rng([5, 0]).random((12, 2)) >= 0.5
    dropped = data.reshape(2, 6, 2).transpose(1, 0, 2).reshape(12, 2) * kept * 2.0
    flat = dropped.reshape(6, 2, 2).transpose(1, 0, 2).reshape(2, 12)
    gradient = flat.T @ (2.0 * flat.sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(after["kernel"], 1.0 - gradient, rtol=1e-12)


def test_global_pooling_trains():
    x = g.batch_input("x", (2, 8))
    h = g.unfold(x, (Window(2, 2, 1), Window(2, 2, 1)), 2)
    y, states = dense(g.average_pool(h, all_positions(4)), 1, "dense")
    forward = Function("m", (x,), tuple(states), (("output", y),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    pooled = [n for n in function.nodes() if n.op == "pool"]
    assert [n.shape for n in pooled] == [(2, 2)]


def test_one_position_needs_no_pool():
    x = g.batch_input("x", (4, 3))
    h, states = normalised(x, "norm")
    forward = Function("m", (x,), tuple(states), (("output", h),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    assert "pool" not in {n.op for n in function.nodes()}


GOLDEN = """\
function "train" {
  %0 = input {"kind": "batch"} (2, 32) "x"
  %1 = input {"kind": "batch"} (2, 3) "y"
  %2 = input {"kind": "column"} (2, 1) "sample_weight"
  %3 = input {"kind": "scalar"} (1, 1) "inv_count"
  %4 = input {"kind": "scalar"} (1, 1) "sgd/step_size"
  %5 = state {"role": "parameter", "trainable": true} (18, 4) "stem/kernel"
  %6 = state {"role": "parameter", "trainable": true} (1, 4) "stem/bias"
  %7 = state {"role": "parameter", "trainable": true, "blocks": 4} (16, 3) "dense/kernel"
  %8 = state {"role": "parameter", "trainable": true} (1, 3) "dense/bias"
  %9 = state {"role": "metric", "trainable": false} (2, 1) "loss_sum"
  %10 = unfold %0 {"windows": ["4->4 taps 3 pad 1", "4->4 taps 3 pad 1"], "channels": 2} (32, 18) "stem"
  %11 = quantise %10 (32, 18) "stem"
  %12 = quantise %5 (18, 4) "stem/kernel"
  %13 = matmul %11, %12 {"ta": false, "tb": false} (32, 4) "stem"
  %14 = add %13, %6 (32, 4) "stem"
  %15 = pool %14 {"windows": ["4->2 taps 2 stride 2", "4->2 taps 2 stride 2"], "kind": "max"} (8, 4) "max"
  %16 = relu %15 (8, 4) "stem"
  %17 = quantise %16 (8, 4) "stem"
  %18 = quantise %7 (16, 3) "dense/kernel"
  %19 = conv %17, %18 {"windows": ["2->1 taps 2", "2->1 taps 2"], "transposed_weights": false, "groups": 1} (2, 3) "dense"
  %20 = add %19, %8 (2, 3) "dense"
  %21 = sub %20, %1 (2, 3) "loss"
  %22 = mul %21, %21 (2, 3) "loss"
  %23 = reduce_sum %22 {"axis": 1} (2, 1) "loss"
  %24 = const {"value": 0.3333333333333333} (1, 1) "loss"
  %25 = mul %23, %24 (2, 1) "loss"
  %26 = mul %25, %2 (2, 1) "loss"
  %27 = add %9, %26 (2, 1) "loss_sum"
  %28 = mul %2, %3 (2, 1) "loss"
  %29 = const {"value": 0.6666666666666666} (1, 1) "loss:grad"
  %30 = mul %28, %29 (2, 1) "loss:grad"
  %31 = mul %21, %30 (2, 3) "loss:grad"
  %32 = quantise %31 (2, 3) "loss:grad"
  %33 = conv %32, %18 {"windows": ["1->2 taps 2 dilation -1", "1->2 taps 2 dilation -1"], "transposed_weights": true, "groups": 1} (8, 4) "dense:grad"
  %34 = gate %33, %16 (8, 4) "stem:grad"
  %35 = pool_max_grad %14, %15, %34 {"windows": ["4->2 taps 2 stride 2", "4->2 taps 2 stride 2"]} (32, 4) "max:grad"
  %36 = quantise %35 (32, 4) "max:grad"
  %37 = matmul %11, %36 {"ta": true, "tb": false} (18, 4) "stem/kernel:grad"
  %38 = mul %37, %4 (18, 4) "stem/kernel"
  %39 = add %38, %5 (18, 4) "stem/kernel"
  %40 = const {"value": 1.0} (1, 32) "stem/bias:grad"
  %41 = quantise %40 (1, 32) "stem/bias:grad"
  %42 = matmul %41, %36 {"ta": false, "tb": false} (1, 4) "stem/bias:grad"
  %43 = mul %42, %4 (1, 4) "stem/bias"
  %44 = add %43, %6 (1, 4) "stem/bias"
  %45 = conv_weight %17, %32 {"windows": ["2->1 taps 2", "2->1 taps 2"], "groups": 1} (16, 3) "dense/kernel:grad"
  %46 = mul %45, %4 (16, 3) "dense/kernel"
  %47 = add %46, %7 (16, 3) "dense/kernel"
  %48 = const {"value": 1.0} (1, 2) "dense/bias:grad"
  %49 = quantise %48 (1, 2) "dense/bias:grad"
  %50 = matmul %49, %32 {"ta": false, "tb": false} (1, 3) "dense/bias:grad"
  %51 = mul %50, %4 (1, 3) "dense/bias"
  %52 = add %51, %8 (1, 3) "dense/bias"
  update %9 = %27
  update %5 = %39
  update %6 = %44
  update %7 = %47
  update %8 = %52
}
"""


def test_golden():
    x = g.batch_input("x", (2, 32))
    h, states = dense(
        g.unfold(x, (same_window(4, 3), same_window(4, 3)), 2, name="stem"), 4, "stem"
    )
    h = g.pool(g.relu(h, name="stem"), (valid_window(4, 2, 2), valid_window(4, 2, 2)), "max", "max")
    h, new = convolution(h, (valid_window(2, 2), valid_window(2, 2)), 3, "dense")
    forward = Function("cnn", (x,), (*states, *new), (("output", h),))
    training = build_training(forward, losses.MeanSquaredError(), optimizers.sgd())
    assert print_function(lower(training)) == GOLDEN


def test_spatial_dropout_drops_whole_channels():
    x = g.batch_input("x", (2, 12))
    h = g.unfold(x, (Window(2, 2, 1), Window(3, 3, 1)), 2)
    h = g.spatial_dropout(h, 0.5, 6, name="drop")
    kernel = g.state("kernel", (12, 1), trainable=True, blocks=6)
    y = g.conv(h, kernel, (valid_window(2, 2), valid_window(3, 3)))
    forward = Function("m", (x,), (kernel,), (("output", y),))
    function = lower(build_training(forward, losses.MeanSquaredError(), optimizers.sgd()))
    data = np.random.default_rng(0).normal(size=(2, 12))
    inputs = {"x": data, "y": np.zeros((2, 1)), "sample_weight": np.ones((2, 1)), "inv_count": 0.5}
    inputs |= {"seed": 5, **optimizers.sgd().host_scalars(1.0, 0)}
    states = {"kernel": np.ones((12, 1)), "loss_sum": np.zeros((2, 1))}
    _, after = evaluate(function, inputs, states)
    kept = np.random.default_rng([5, 0]).random((2, 2)) >= 0.5
    flat = (data.reshape(2, 6, 2) * kept[:, None] * 2.0).reshape(2, 12)
    gradient = flat.T @ (2.0 * flat.sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(after["kernel"], 1.0 - gradient, rtol=1e-12)
