"""Compiled steps of convolutional networks against the graph's float64 meaning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.models import functions, g, losses, metrics, optimizers
from tests.codegen.test_training import check, labels

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.errors import DataError
from fpgrad.formats import TileFormat
from fpgrad.graph import Function, Node, Window, verify
from fpgrad.graph.maps import group_mask
from fpgrad.graph.window import all_positions, taps
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.instructions import Transfer, Unit
from fpgrad.reference import ReferenceExecutor

T = 4


def window(size: int, kernel: int, stride: int = 1, dilation: int = 1, same: bool = True) -> Window:
    """The window of a convolution as Keras pads it."""
    reach = (kernel - 1) * dilation + 1
    if not same:
        return Window(size, (size - reach) // stride + 1, kernel, stride, dilation)
    out = -(-size // stride)
    return Window(
        size, out, kernel, stride, dilation, max(0, (out - 1) * stride + reach - size) // 2
    )


class Net:
    """Builds a forward function layer by layer; ``x`` is the map or vector so far."""

    def __init__(self, n: int, height: int, width: int, channels: int, octets=False) -> None:
        self.n, self.h, self.w, self.c = n, height, width, channels
        self.input = g.batch_input("x", (n, height * width * channels), octets)
        self.x: Node = self.input
        self.states: list[Node] = []
        self.count = 0
        self.masks = {}

    def state(self, name: str, shape: tuple[int, int], blocks: int = 1, **kind) -> Node:
        state = g.state(name, shape, blocks=blocks, **(kind or {"trainable": True}))
        self.states.append(state)
        return state

    def unfold(self, kernel: int = 1, stride: int = 1) -> Net:
        windows = window(self.h, kernel, stride), window(self.w, kernel, stride)
        self.x = g.unfold(self.input, windows, self.c, name="input")
        self.h, self.w, self.c = windows[0].out, windows[1].out, kernel * kernel * self.c
        return self

    def bias(self, name: str, channels: int) -> None:
        self.x = g.add(self.x, self.state(f"{name}/bias", (1, channels)), name=name)

    def folded(self, channels: int, kernel: int = 3, stride: int = 1) -> Net:
        name = self.named("first")
        self.unfold(kernel, stride)
        w = self.state(f"{name}/kernel", (self.c, channels))
        self.x = g.matmul(self.x, w, name=name)
        self.bias(name, channels)
        self.c = channels
        return self

    def named(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def conv(self, channels, kernel=3, stride=1, dilation=1, same=True, groups=1) -> Net:
        name = self.named("conv")
        windows = tuple(window(s, kernel, stride, dilation, same) for s in (self.h, self.w))
        blocks = taps(windows)
        w = self.state(f"{name}/kernel", (blocks * self.c, channels), blocks=blocks)
        self.x = g.conv(self.x, w, windows, groups=groups, name=name)
        self.masks[w.name] = group_mask(w.shape, blocks, groups)
        self.h, self.w, self.c = windows[0].out, windows[1].out, channels
        self.bias(name, channels)
        return self

    def deconv(self, channels: int, kernel: int = 3, stride: int = 2) -> Net:
        name = self.named("deconv")
        windows = tuple(window(s * stride, kernel, stride).transposed for s in (self.h, self.w))
        w = self.state(f"{name}/kernel", (kernel**2 * channels, self.c), blocks=kernel**2)
        self.x = g.conv(self.x, w, windows, transposed_weights=True, name=name)
        self.h, self.w, self.c = windows[0].out, windows[1].out, channels
        self.bias(name, channels)
        return self

    def relu(self) -> Net:
        self.x = g.relu(self.x, name="relu")
        return self

    def pool(self, kind: str, size: int = 2, stride: int = 2, same: bool = False) -> Net:
        windows = tuple(window(s, size, stride, same=same) for s in (self.h, self.w))
        name = self.named(kind)
        if kind == "average":
            self.x = g.average_pool(self.x, windows, name=name)
        else:
            self.x = g.pool(self.x, windows, "max", name=name)
        self.h, self.w = windows[0].out, windows[1].out
        return self

    def norm(self) -> Net:
        name = self.named("norm")
        row = (1, self.c)
        self.x = g.batch_norm(
            self.x,
            self.state(f"{name}/gamma", row),
            self.state(f"{name}/beta", row),
            self.state(f"{name}/moving_mean", row, role="moving"),
            self.state(f"{name}/moving_variance", row, role="moving"),
            epsilon=1e-3,
            momentum=0.9,
            trainable=True,
            name=name,
        )
        return self

    def global_pool(self, kind: str) -> Net:
        windows = all_positions(self.h * self.w)
        make = g.average_pool if kind == "average" else lambda *a, **k: g.pool(*a, "max", **k)
        self.x = make(self.x, windows, name=self.named("global"))
        self.h = self.w = 1
        return self

    def flat(self) -> Net:
        self.x = g.flatten(self.x, self.h * self.w, name=self.named("flatten"))
        self.h, self.w, self.c = 1, 1, self.h * self.w * self.c
        return self

    def dense(self, units: int) -> Net:
        return (
            self.conv(units, self.h, same=False) if self.h == self.w else self.flat().vector(units)
        )

    def vector(self, units: int) -> Net:
        name = self.named("dense")
        self.x = g.matmul(self.x, self.state(f"{name}/kernel", (self.c, units)), name=name)
        self.c = units
        self.bias(name, units)
        return self

    def done(self) -> Function:
        return self.finished(g.softmax(self.x, name="out"))

    def finished(self, out: Node) -> Function:
        f = Function("forward", (self.input,), tuple(self.states), (("out", out),))
        return verify(f, "forward")


NETS = {
    "one convolution": lambda: Net(4, 4, 4, 1).folded(4).relu().dense(3),
    "plain input": lambda: Net(4, 4, 3, 2).unfold().conv(3).relu().flat().vector(3),
    "two convolutions": lambda: Net(4, 5, 5, 2).folded(5).relu().conv(6).relu().dense(3),
    "two sample tiles": lambda: Net(8, 4, 4, 1).folded(6).relu().conv(3).relu().dense(3),
    "stride": lambda: Net(8, 6, 6, 1).folded(4, stride=2).relu().conv(5, stride=2).relu().dense(2),
    "stride 2, kernel 1": lambda: Net(4, 5, 5, 1).folded(4).conv(5, kernel=1, stride=2).dense(2),
    "dilation": lambda: Net(4, 7, 7, 1).folded(4).relu().conv(5, dilation=2).relu().dense(2),
    "valid": lambda: Net(8, 6, 5, 1).folded(3).relu().conv(4, same=False).relu().flat().vector(2),
    "max pool": lambda: Net(4, 6, 6, 1).folded(5).relu().pool("max").conv(4).relu().dense(3),
    "max pool of odd size": lambda: Net(8, 5, 7, 1).folded(5).relu().pool("max").flat().vector(3),
    "overlapping max pool": lambda: Net(4, 7, 7, 1).folded(4).pool("max", 3, 2, True).dense(3),
    "average pool": lambda: Net(4, 6, 6, 1).folded(5).relu().pool("average").conv(4).dense(3),
    "average pool, same": lambda: Net(4, 5, 5, 1).folded(5).pool("average", 3, 2, True).dense(3),
    "global average": lambda: Net(8, 5, 4, 1).folded(5).relu().global_pool("average").vector(3),
    "global maximum": lambda: Net(4, 5, 4, 1).folded(5).relu().global_pool("max").vector(3),
    "batch norm": lambda: Net(8, 4, 4, 1).folded(5).norm().relu().conv(4).norm().relu().dense(3),
    "groups": lambda: Net(4, 4, 4, 1).folded(8).relu().conv(8, groups=2).relu().dense(3),
    "depthwise": lambda: Net(4, 4, 4, 1).folded(8).relu().conv(8, groups=8).relu().dense(3),
    "small groups": lambda: Net(4, 4, 4, 1).folded(6).relu().conv(9, groups=3).relu().dense(3),
    "transposed": lambda: Net(4, 3, 3, 1).folded(5).relu().deconv(3).relu().dense(3),
    "one channel": lambda: Net(4, 4, 4, 1).folded(1).relu().conv(1).relu().dense(2),
    "one channel, two sample tiles": lambda: (
        Net(8, 5, 5, 1).unfold().pool("max").conv(1).norm().relu().conv(3).dense(2)
    ),
    "one channel, flattened": lambda: (
        Net(4, 4, 3, 1).folded(3).relu().conv(1).relu().flat().vector(2)
    ),
    "one filter, strided": lambda: (
        Net(8, 5, 5, 1).folded(5).relu().conv(1, stride=2).pool("average").dense(3)
    ),
    "one filter, overlapping pool": lambda: (
        Net(4, 5, 5, 1).folded(1).pool("max", 3, 2, True).conv(2).dense(3)
    ),
}


def narrow() -> Machine:
    """A small machine with the default formats."""
    matrix = MatrixConfig(TileFormat(T, 8))
    return Machine(MachineConfig(matrix, memory=MemoryConfig(dram_words_per_cycle=T)))


def trained(program, net, steps: int = 3, images=None) -> dict[str, bytes]:
    """All states after some steps on the reference, bit for bit."""
    rng = np.random.default_rng(3)
    session = Session(program, ReferenceExecutor(program.config))
    start = {
        name: rng.normal(size=info["shape"]) * 0.4 + ("variance" in name)
        for name, info in program.meta["states"].items()
        if info["role"] != "metric"
    }
    session.write_states(start)
    samples = 2 * net.n
    data = {
        "x": rng.normal(size=(samples, net.input.shape[1])) if images is None else images,
        "y": rng.integers(0, net.c, samples).astype(float),
        "sample_weight": np.ones(samples),
        "valid": np.ones(samples),
    }
    known = {i["name"] for f in program.meta["functions"].values() for i in f["inputs"]}
    known |= {c for f in program.meta["functions"].values() for g in f["columns"] for c in g}
    uploaded = session.upload({k: v for k, v in data.items() if k in known})
    order = rng.integers(0, samples, (steps, net.n))
    wanted = program.meta["functions"]["train"]["scalars"]
    scalars = {k: np.full(steps, 1.0 / net.n if k == "inv_count" else 0.05) for k in wanted}
    session.train(uploaded, order, scalars)
    return {name: values.tobytes() for name, values in session.read_states().items()}


@pytest.mark.parametrize("name", NETS)
def test_networks(name):
    net = NETS[name]()
    sgd = optimizers.sgd(momentum=0.9)
    fs = functions(net.done(), optimizer=sgd, accuracy=metrics.SparseCategoricalAccuracy())
    features = net.input.shape[1]
    check(
        fs,
        sgd,
        net.n,
        features,
        side=T,
        target=labels(net.c),
        tolerance=0.03,
        steps=2,
        masks=net.masks,
    )


@pytest.mark.parametrize("n", [4, 8])
def test_one_output(n):
    net = Net(n, 6, 6, 1).folded(5).relu().conv(1, 6, same=False)
    forward = net.finished(g.sigmoid(net.x, name="out"))
    sgd = optimizers.sgd()
    fs = functions(forward, losses.BinaryCrossentropy(from_logits=False), optimizer=sgd)
    check(fs, sgd, n, 36, side=T, target=labels(2), tolerance=0.03, steps=2)


def deep(n: int, size: int) -> Net:
    """Many layers, whose tiles wait long for their gradients."""
    net = Net(n, size, size, 1).folded(4).relu()
    for _ in range(3):
        net.conv(4).relu()
    net.pool("max")
    for _ in range(2):
        net.conv(5).relu()
    return net.dense(3)


@pytest.mark.parametrize(("n", "size"), [(4, 12), (8, 8)])
def test_tiles_wait_in_external_memory(n, size):
    net = deep(n, size)
    sgd = optimizers.sgd()
    fs = functions(net.done(), optimizer=sgd)
    free = compile_functions(fs, replace(narrow(), tiles=1 << 15))
    tiles = free.config.memory.tiles * 7 // 8
    program = compile_functions(fs, replace(narrow(), tiles=tiles))
    assert program.config.memory.tiles <= tiles
    kinds = {i.kind for i in program.units[Unit.LOAD]} & {i.kind for i in program.units[Unit.STORE]}
    assert Transfer.TILES in kinds
    assert trained(program, net) == trained(free, net)


def test_bytes_are_sent_as_bytes():
    def net(octets: bool) -> Net:
        made = Net(4, 5, 6, 2, octets=octets).folded(4).relu()
        return made.dense(3) if made.h == made.w else made.flat().vector(3)

    programs = {}
    for octets in (False, True):
        made = net(octets)
        fs = functions(made.done(), optimizer=optimizers.sgd())
        programs[octets] = compile_functions(fs, narrow()), made
    program, made = programs[True]
    assert program.config.memory.bytes
    images = (
        np.random.default_rng(0)
        .integers(0, 256, (2 * made.n, made.input.shape[1]))
        .astype(np.uint8)
    )
    assert trained(program, made, images=images) == trained(*programs[False], images=images)
    with pytest.raises(
        DataError, match="x must hold whole numbers from 0 to 255: the model takes bytes"
    ):
        trained(program, made, images=images + 0.5)
