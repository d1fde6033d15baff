"""Networks of random convolutions: the same bits on every executor, all of them on one machine."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.codegen.models import functions, optimizers
from tests.codegen.test_maps import Net, deep

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator import available_levels
from fpgrad.flow.verify import Verification, verify
from fpgrad.formats import Function, TileFormat
from fpgrad.isa.config import (
    ControlConfig,
    MachineConfig,
    MatrixConfig,
    MemoryConfig,
    VectorConfig,
)
from fpgrad.isa.program import Program

SIDE = 4
MACHINE = MachineConfig(
    MatrixConfig(TileFormat(SIDE, 8), queue=32),
    VectorConfig(functions=(Function.EXP2, Function.LOG2, Function.RECIPROCAL, Function.RSQRT)),
    MemoryConfig(
        vector_rows=4096,
        tiles=1536,
        inbox_rows=1024,
        outbox_rows=256,
        mask_rows=4096,
        tile_dma=True,
        dram_words_per_cycle=SIDE,
    ),
    ControlConfig(load=64, matrix=1024, vector=2048, store=128),
)
"""One machine for all networks, so that its Verilog is built once."""


@st.composite
def networks(draw) -> Net:
    """Two or three layers of maps, then a dense one."""
    n, channels = draw(st.sampled_from([4, 8])), draw(st.integers(1, 3))
    net = Net(n, draw(st.integers(3, 6)), draw(st.integers(3, 6)), channels)
    net.folded(draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3])), draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(1, 2))):
        kind = draw(st.sampled_from(["conv", "conv", "group", "max", "average", "norm", "deconv"]))
        smallest = min(net.h, net.w)
        if kind == "conv":
            kernel = draw(st.integers(1, min(3, smallest)))
            dilation = draw(st.integers(1, 2))
            same = draw(st.booleans()) or (kernel - 1) * dilation + 1 > smallest
            net.conv(draw(st.integers(1, 9)), kernel, draw(st.integers(1, 2)), dilation, same)
        elif kind == "group":
            net.conv(net.c * draw(st.integers(1, 2)), 3, groups=net.c)
        elif kind == "deconv" and smallest <= 3:
            net.deconv(draw(st.integers(2, 5)), 2)
        elif kind == "norm":
            net.norm()
        elif kind in ("max", "average") and smallest > 1:
            size = draw(st.integers(2, min(3, smallest)))
            net.pool(kind, size, draw(st.integers(1, 2)), draw(st.booleans()))
        if draw(st.booleans()):
            net.relu()
    return net.flat().vector(3)


def compiled(net: Net, machine: Machine) -> Program:
    """The network's training step, with momentum."""
    fs = functions(net.done(), optimizer=optimizers.sgd(momentum=0.5))
    return compile_functions({"train": fs["train"]}, machine)


def run(net: Net, program: Program, backend: str, against: str, **options) -> Verification:
    """Two training steps from random weights on two executors."""
    rng = np.random.default_rng(1)
    steps, samples = 2, 12
    meta = program.meta["functions"]["train"]
    data = {
        "x": rng.normal(size=(samples, net.input.shape[1])),
        "y": rng.integers(0, 3, samples).astype(float),
        "sample_weight": np.ones(samples),
        "valid": np.ones(samples),
    }
    known = {i["name"] for i in meta["inputs"]} | {c for g in meta["columns"] for c in g}
    states = {
        name: rng.normal(size=info["shape"]) * 0.5 if info["role"] == "parameter"
        else np.full(info["shape"], float("variance" in name))
        for name, info in program.meta["states"].items()
    }  # fmt: skip
    scalars = {k: np.full(steps, 0.1) for k in meta["scalars"]}
    order = rng.integers(-1, samples, (steps, meta["batch_size"]))
    wanted = {k: v for k, v in data.items() if k in known}
    return verify(
        program, wanted, order, scalars, states, backend=backend, against=against, options=options
    )


EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@EXAMPLES
@given(networks())
def test_reference_and_emulator(net):
    program = compiled(net, Machine(MACHINE, fixed=True))
    for level in available_levels():
        result = run(net, program, "reference", "emulator", emulator={"level": level})
        assert result.differing == 0, str(result)


@settings(EXAMPLES, max_examples=6)
@given(networks())
def test_rtl_and_emulator(net):
    program = compiled(net, Machine(MACHINE, fixed=True))
    result = run(net, program, "rtl", "emulator")
    assert result.differing == 0, str(result)


def test_rtl_with_tiles_in_external_memory():
    net = deep(4, 12)
    program = compiled(net, Machine(MACHINE, fixed=True))
    assert program.meta["functions"]["train"]["spill"] > 0
    for backend in ("reference", "rtl"):
        result = run(net, program, backend, "emulator")
        assert result.differing == 0, str(result)
