"""Compiled steps whose maps are divided by rows: against float64, and with little memory on the chip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.test_cores import send_together
from tests.codegen.test_maps import Net, deep
from tests.codegen.test_split import errors, fine, functions, many, start, trained
from tests.transform.band_models import MODELS, dropped, in_bands

from fpgrad.codegen.compile import compile_functions
from fpgrad.emulator import EmulatorExecutor
from fpgrad.flow.estimate import useful_macs
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.instructions import Load, Unit
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor
from fpgrad.transform import lower

COMPILED = [name for name in MODELS if name != "depthwise"]


def divided(model: Function, cores: int, lines: int = 2) -> dict[str, Function]:
    return in_bands(functions(model), cores, lines)


def agree(program: Program, other: Program | None = None, executor=ReferenceExecutor) -> None:
    """Two programs, or one on two executors, train to the same bits."""
    first = trained(program)[0]
    second = trained(other or program, executor)[0]
    for state, values in first.read_states().items():
        np.testing.assert_array_equal(second.read_states([state])[state], values, state)


@pytest.mark.parametrize("lines", [2, 8])
@pytest.mark.parametrize("cores", [2, 4])
@pytest.mark.parametrize("name", COMPILED)
def test_networks(name: str, cores: int, lines: int):
    """As near to float64 as one core is, and with as many multiplications together."""
    if name == "strided input":
        lines = min(lines, 4)
    model = MODELS[name]()
    alone = {k: lower(f) for k, f in functions(model).items()}
    some = divided(model, cores, lines)
    programs = compile_functions(alone, fine(1)), compile_functions(some, fine(cores))
    found = [errors(alone, programs[0], 1), errors(some, programs[1], cores)]
    assert found[0].keys() == found[1].keys()
    for state, (error, scale) in found[1].items():
        assert error < 2 * found[0][state][0] + 0.002 * scale, state
    one, several = (useful_macs(program, "train") for program in programs)
    assert abs(several - one) < 0.05 * one


@pytest.mark.parametrize("name", ["flattened", "residual", "upsampled", "global maximum"])
def test_reference_and_emulator_train_to_the_same_bits(name: str):
    agree(compile_functions(divided(MODELS[name](), 2), many(2)))


@pytest.mark.parametrize("name", ["flattened", "mean", "residual"])
def test_no_sum_has_to_wait_between_the_cores(name: str, monkeypatch: pytest.MonkeyPatch):
    program = compile_functions(divided(MODELS[name](), 2), many(2))
    free = trained(program, ReferenceExecutor)[0].read_states()
    send_together(monkeypatch)
    for state, values in trained(program, ReferenceExecutor)[0].read_states().items():
        np.testing.assert_array_equal(values, free[state], state)


def test_each_core_loads_its_part_of_an_image():
    """It begins with a row of external memory: 6 columns of 3 channels get zeros beside them."""
    some = divided(Net(4, 8, 6, 3).folded(4).relu().conv(4).relu().flat().vector(3).done(), 2)
    program = compile_functions(some, fine(2))
    image = next(i["image"] for i in program.meta["functions"]["train"]["inputs"] if "image" in i)
    assert (image["left"], image["right"]) == (1, 1)
    assert image["top"] == image["bottom"] == 1
    loads = [i for i in program.units[Unit.LOAD] if isinstance(i, Load) and i.gather]
    found = {(i.rows, i.stride, i.source.core_stride) for i in loads if i.source.core_stride}
    assert found == {(36, 60, 24)}


def test_images_of_bytes():
    """Their rows hold four times as many numbers, so that cores' parts begin elsewhere."""

    def outputs(octets: bool) -> np.ndarray:
        net = Net(4, 8, 5, 3, octets=octets).folded(4).relu().conv(4).relu().flat().vector(3)
        program = compile_functions(divided(net.done(), 2), fine(2))
        image = program.meta["functions"]["predict"]["inputs"][0]["image"]
        wide = image["left"] + 5 + image["right"]
        assert wide * 3 * 4 % (16 if octets else 4) == 0
        session = Session(program, EmulatorExecutor(program.config))
        session.write_states(start(program))
        values = np.random.default_rng(5).integers(0, 256, (4, 8 * 5 * 3))
        data = session.upload({"x": values.astype(np.uint8 if octets else np.float32)})
        return session.predict(data, np.arange(4)[None])["out"]

    np.testing.assert_array_equal(outputs(True), outputs(False))


def test_tiles_wait_in_external_memory():
    some = divided(deep(4, 12).done(), 2)
    free = compile_functions(some, replace(many(2), tiles=1 << 15))
    program = compile_functions(some, replace(many(2), tiles=free.config.memory.tiles * 9 // 10))
    assert program.meta["functions"]["train"]["spill"]
    agree(program, free, EmulatorExecutor)


def test_random_numbers_differ_between_bands():
    program = compile_functions(divided(dropped(), 2), many(2))
    assert program.meta["functions"]["train"]["seed"] == 3
    agree(program)


def test_numbers_of_the_cores():
    program = compile_functions(divided(MODELS["flattened"](), 2), many(2))
    session = trained(program)[0]
    vector = session.executor.dump()["vector"]
    for core, base in program.meta["cores"]:
        for other in range(2):
            assert np.all((vector[other, base] != 0) == (core == other))


def random_network(seed: int, cores: int) -> Function:
    """Layers of all kinds on maps of any height that is a multiple of the cores, at first."""
    rng = np.random.default_rng(seed)

    def some(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    net = Net(4, cores * some(1, 4), some(2, 8), some(1, 4)).folded(some(1, 6), some(0, 2) * 2 + 1)
    layers = {
        "convolution": lambda: net.conv(some(1, 7)),
        "of one tap": lambda: net.conv(some(1, 7), 1),
        "stride": lambda: net.conv(some(1, 6), stride=2),
        "valid": lambda: net.conv(some(1, 6), same=False),
        "norm": net.norm,
        "maximum": lambda: net.pool("max"),
        "average": lambda: net.pool("average", 3, 2, same=True),
    }
    for kind in rng.choice(list(layers), 3):
        if min(net.h, net.w) > 3 or kind in ("convolution", "of one tap", "norm"):
            layers[kind]()
    net.relu()
    return (net.flat() if some(0, 2) else net.global_pool("average")).vector(3).done()


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed: int):
    cores = 2 + seed % 3
    model = random_network(seed, cores)
    alone, some = ({k: lower(f) for k, f in functions(model).items()}, divided(model, cores))
    found = [
        errors(alone, compile_functions(alone, fine(1)), 1),
        errors(some, compile_functions(some, fine(cores)), cores),
    ]
    for state, (error, scale) in found[1].items():
        assert error < 3 * found[0][state][0] + 0.003 * scale, state
    agree(compile_functions(some, many(cores)))
