"""Forward functions whose maps can be divided by rows, and their steps divided so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.codegen.test_maps import Net

from fpgrad.graph import Function, Window
from fpgrad.graph import builder as g
from fpgrad.transform.pipeline import LOWERING, run_pipeline
from fpgrad.transform.split import SplitChannels, found_layouts


def residual(n: int = 4) -> Function:
    """A block around which its input goes, with a stride and a kernel of one tap beside it."""
    net = Net(n, 8, 8, 2).folded(3).norm().relu()
    trunk, h, w = net.x, net.h, net.w
    net.conv(4, stride=2).norm().relu().conv(4).norm()
    inside = net.x
    net.x, net.h, net.w, net.c = trunk, h, w, 3
    net.conv(4, 1, stride=2)
    net.x = g.relu(g.add(net.x, inside, name="sum"), name="relu")
    return net.global_pool("average").vector(3).done()


def upsampled(n: int = 4) -> Function:
    """Maps that become smaller and larger again."""
    net = Net(n, 8, 4, 1).folded(3).relu().conv(4, stride=2).relu().deconv(3).relu()
    return net.conv(2).relu().flat().vector(3).done()


def joined(n: int = 4) -> Function:
    """Maps side by side, and channels of them."""
    net = Net(n, 8, 4, 2).folded(4).relu()
    stem = net.x
    net.conv(3)
    first = net.x
    net.x, net.c = stem, 4
    net.conv(5, 5).relu()
    net.x, net.c = g.concat(first, net.x, name="concat"), 8
    net.x, net.c = g.slice_cols(net.x, 1, 7, name="slice"), 6
    return net.conv(4).relu().global_pool("average").vector(3).done()


def dropped(n: int = 4) -> Function:
    """Dropout of numbers and of channels."""
    net = Net(n, 8, 4, 2).folded(4).relu()
    net.x = g.dropout(net.x, 0.5, name="drop1")
    net.conv(3).relu()
    net.x = g.spatial_dropout(net.x, 0.5, net.h * net.w, name="drop2")
    return net.conv(3).relu().pool("max").flat().vector(3).done()


MODELS: dict[str, Callable[[], Function]] = {
    "flattened": lambda: (
        Net(4, 8, 4, 2).folded(3).relu().conv(4).relu().pool("max").conv(5).norm().relu()
        .pool("average").flat().vector(3).done()
    ),
    "mean": lambda: (
        Net(4, 8, 8, 2).folded(3).norm().relu().conv(4).relu().pool("max").conv(3).relu()
        .global_pool("average").vector(3).done()
    ),
    "global maximum": lambda: (
        Net(4, 8, 5, 3).folded(2).relu().conv(1).relu().global_pool("max").vector(3).done()
    ),
    "overlapping pools": lambda: (
        Net(4, 8, 8, 2).folded(3).relu().pool("average", 3, 2, same=True).conv(3).relu()
        .pool("max", 3, 1, same=True).conv(2).relu().flat().vector(3).done()
    ),
    "depthwise": lambda: (
        Net(4, 8, 4, 2).folded(4).relu().conv(4, groups=4).norm().relu().conv(3, 1).relu()
        .pool("max").flat().vector(3).done()
    ),
    "wide kernels": lambda: (
        Net(4, 8, 4, 2).folded(3, 5).relu().conv(3, 5).relu().conv(3, dilation=2).relu()
        .flat().vector(3).done()
    ),
    "strided input": lambda: Net(4, 8, 8, 1).folded(4, 3, 2).relu().conv(3).relu().dense(3).done(),
    "residual": residual,
    "upsampled": upsampled,
    "joined": joined,
}  # fmt: skip


def in_bands(functions: Mapping[str, Function], cores: int, lines: int = 2) -> dict[str, Function]:
    """Functions of stage training with all maps of so many rows divided."""
    *before, last = LOWERING
    ready = {k: run_pipeline(before, f) for k, f in functions.items()}
    layouts = found_layouts(ready["predict"], {}, cores, lines)
    passes = (SplitChannels(layouts, cores, lines), last)
    return {k: run_pipeline(passes, f) for k, f in ready.items()}


def same(size: int, kernel: int, stride: int = 1, dilation: int = 1) -> Window:
    """A window padded as Keras does it."""
    reach, out = (kernel - 1) * dilation + 1, -(-size // stride)
    pad = max(0, (out - 1) * stride + reach - size) // 2
    return Window(size, out, kernel, stride, dilation, pad)
