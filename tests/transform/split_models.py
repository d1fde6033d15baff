"""Forward functions whose channels can be divided, and what divides and joins tensors by a function's parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tests.codegen.test_maps import Net
from tests.graph.models import dense, mlp

from fpgrad.graph import Function, Node, verify
from fpgrad.graph import builder as g

Values = dict[str, np.ndarray]


def normalised(rows: int = 4) -> Function:
    """A batch normalisation between layers, and a normalisation of each sample."""
    x = g.batch_input("x", (rows, 6))
    h, states = dense(x, 24, "dense0")
    parameters = [g.state(f"norm/{p}", (1, 24), trainable=True) for p in ("gamma", "beta")]
    moving = [g.state(f"norm/moving_{p}", (1, 24), role="moving") for p in ("mean", "variance")]
    states += [*parameters, *moving]
    h = g.batch_norm(h, *parameters, *moving, epsilon=1e-3, momentum=0.9, name="norm")
    h, new = dense(g.tanh(h, name="tanh"), 24, "dense1", "relu")
    states += new
    of_samples = [g.state(f"ln/{p}", (1, 24), trainable=True) for p in ("gamma", "beta")]
    h, new = dense(g.layer_norm(h, *of_samples, epsilon=1e-3, name="ln"), 24, "dense2", "relu")
    states += [*of_samples, *new]
    h, new = dense(h, 3, "classes", "softmax")
    return verify(Function("forward", (x,), (*states, *new), (("out", h),)), "forward")


def dropped(rows: int = 4) -> Function:
    """Dropout behind two layers, one of which is divided and the other whole."""
    x = g.batch_input("x", (rows, 6))
    h, states = dense(x, 24, "dense0", "relu")
    for i in (1, 2):
        h, new = dense(g.dropout(h, 0.5, name=f"drop{i}"), 24 if i == 1 else 3, f"dense{i}", "relu")
        states += new
    h = g.softmax(h, name="out")
    return verify(Function("forward", (x,), tuple(states), (("out", h),)), "forward")


def residual(n: int = 4) -> Function:
    """A block whose inside is divided, around which its input goes."""
    net = Net(n, 4, 4, 2).folded(12).relu()
    trunk = net.x
    net.conv(12).norm().relu().conv(12).norm()
    net.x = g.relu(g.add(net.x, trunk, name="sum"), name="relu")
    return net.global_pool("average").vector(3).done()


def joined(n: int = 4) -> Function:
    """Two divided maps side by side, and columns of them."""
    net = Net(n, 4, 4, 2).folded(6).relu()
    stem, h, w = net.x, net.h, net.w
    branches: list[Node] = []
    for kernel in (1, 3):
        net.x, net.h, net.w, net.c = stem, h, w, 6
        branches.append(net.conv(12, kernel).relu().x)
    net.x, net.c = g.concat(*branches, name="concat"), 24
    return net.pool("max").conv(6).relu().flat().vector(3).done()


MODELS: dict[str, Callable[[], Function]] = {
    "dense": lambda: mlp(4, (6, 24, 24, 12, 3)),
    "normalised": normalised,
    "convolutions": lambda: (
        Net(4, 4, 4, 2).folded(12).norm().relu().conv(12).relu().pool("max").conv(6).dense(3).done()
    ),
    "flattened": lambda: (
        Net(4, 4, 3, 2).folded(12).relu().pool("average").flat().vector(12).vector(3).done()
    ),
    "depthwise": lambda: (
        Net(4, 4, 4, 2).folded(12).conv(24, groups=12).norm().relu().conv(6, 1).dense(3).done()
    ),
    "transposed": lambda: (
        Net(4, 2, 2, 2).folded(12).relu().deconv(12).relu().conv(6).dense(3).done()
    ),
    "residual": residual,
    "joined": joined,
    "global maximum": lambda: (
        Net(4, 3, 3, 2).folded(6).conv(12).relu().global_pool("max").vector(3).done()
    ),
}


def part(function: Function, values: Mapping[str, np.ndarray], core: int) -> Values:
    """What one core has of tensors by name."""
    parts = function.parts
    return {k: v[parts[k].index(core)] if k in parts else v for k, v in values.items()}


def joined_parts(function: Function, each: list[Values]) -> Values:
    """The whole of tensors, of all cores' parts; what is whole must be the same on all."""
    found: Values = {}
    for name, value in each[0].items():
        if name in function.parts:
            found[name] = np.zeros(function.parts[name].whole)
            for core, mine in enumerate(each):
                found[name][function.parts[name].index(core)] = mine[name]
        else:
            found[name] = value
            for mine in each[1:]:
                np.testing.assert_array_equal(mine[name], value, name)
    return found
