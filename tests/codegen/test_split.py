"""Compiled steps whose channels are divided among cores: against float64, and with little memory on the chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.codegen.models import losses, optimizers
from tests.codegen.test_cores import send_together
from tests.codegen.test_maps import Net, deep, narrow
from tests.codegen.test_training import wide
from tests.transform.split_models import MODELS, dropped, joined_parts, part

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator import EmulatorExecutor
from fpgrad.errors import GraphError
from fpgrad.formats import TileFormat
from fpgrad.graph import Function, evaluate_cores
from fpgrad.graph.maps import group_mask
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor
from fpgrad.transform import build_evaluation, build_prediction, build_training, lower, lower_split

SGD = optimizers.sgd(momentum=0.9)
STEPS = 3


def functions(model: Function) -> dict[str, Function]:
    """A session's functions, of stage training."""
    loss = losses.SparseCategoricalCrossentropy(from_logits=False)
    return {
        "train": build_training(model, loss, SGD),
        "evaluate": build_evaluation(model, loss),
        "predict": build_prediction(model),
    }


def divided(model: Function, cores: int, side: int = 4) -> dict[str, Function]:
    """A session's functions, channels divided."""
    found = lower_split(functions(model), cores, side)
    assert found is not None
    return found


def many(cores: int) -> Machine:
    return replace(narrow(), formats=replace(narrow().formats, cores=cores))


def fine(cores: int) -> Machine:
    """With mantissas that leave little to rounding, which takes other ways on several cores."""
    matrix = MatrixConfig(TileFormat(4, 12))
    return Machine(MachineConfig(matrix, memory=MemoryConfig(dram_words_per_cycle=4), cores=cores))


def start(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    states: dict[str, np.ndarray] = {}
    for name, info in program.meta["states"].items():
        shape = info["split"]["whole"] if info["split"] else info["shape"]
        parameter = info["role"] == "parameter"
        # Outputs of a layer are about as large as its inputs.
        states[name] = rng.normal(size=shape) / shape[0] ** 0.5 if parameter else np.zeros(shape)
        if "variance" in name:
            states[name] = np.ones(shape)
        if name.startswith("conv2/kernel") and tuple(shape) == (9 * 12, 24):
            states[name] *= group_mask((9 * 12, 24), 9, 12)
    return states


def trained(program: Program, executor: Any = EmulatorExecutor, steps: int = STEPS) -> tuple:
    """Session, inputs of each step and its seeds, after some steps."""
    rng = np.random.default_rng(4)
    session = Session(program, executor(program.config))
    session.write_states(start(program))
    n, info = session.batch_size, program.meta["functions"]["train"]
    columns = next(i["columns"] for i in info["inputs"] if i["name"] == "x")
    data = {
        "x": rng.normal(size=(2 * n, columns)),
        "y": rng.integers(0, 3, 2 * n).astype(float),
        "sample_weight": np.ones(2 * n),
        "valid": np.ones(2 * n),
    }
    known = {i["name"] for f in program.meta["functions"].values() for i in f["inputs"]}
    known |= {c for f in program.meta["functions"].values() for some in f["columns"] for c in some}
    data = {name: values for name, values in data.items() if name in known}
    order = rng.integers(0, 2 * n, (steps, n))
    scalars = {k: np.full(steps, 1.0 / n if k == "inv_count" else -0.05) for k in info["scalars"]}
    sums = session.train(session.upload(data), order, scalars, np.arange(steps, dtype=np.uint64))
    inputs = [
        {k: v.reshape(2 * n, -1)[some] for k, v in data.items()}
        | {k: np.full((1, 1), v[i]) for k, v in scalars.items()}
        for i, some in enumerate(order)
    ]
    return session, sums, inputs


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_networks(name: str, cores: int):
    """As near to float64 as one core is."""
    model = MODELS[name]()
    alone = {k: lower(f) for k, f in functions(model).items()}
    some = divided(model, cores, 2 if name == "transposed" else 4)
    found = [
        errors(alone, compile_functions(alone, fine(1)), 1),
        errors(some, compile_functions(some, fine(cores)), cores),
    ]
    assert found[0].keys() == found[1].keys()
    for state, (error, scale) in found[1].items():
        assert error < 2 * found[0][state][0] + 0.002 * scale, state


def errors(
    functions: Mapping[str, Function], program: Program, cores: int
) -> dict[str, tuple[float, float]]:
    """How far each state is from float64 after a step, and its scale."""
    train = functions["train"]
    session, sums, inputs = trained(program, steps=1)
    states = start(program)
    for step in inputs:
        given = {n.name: step[n.name] for n in train.inputs}
        each = [
            {s.name: mine[s.name] for s in train.states}
            for mine in (part(train, states, core) for core in range(cores))
        ]
        results = evaluate_cores(train, [given] * cores, each)
        states |= joined_parts(train, [new for _, new in results])
    found: dict[str, tuple[float, float]] = {}
    for name, got in session.read_states().items():
        if program.meta["states"][name]["role"] == "metric":
            found[name] = abs(sums[name] - states[name].sum()), abs(states[name].sum())
        else:
            error = np.abs(got - states[name]).max()
            found[name] = float(error), max(0.1, np.abs(states[name]).max())
    return found


@pytest.mark.parametrize("name", ["depthwise", "joined"])
def test_reference_and_emulator_train_to_the_same_bits(name: str):
    program = compile_functions(divided(MODELS[name](), 2), many(2))
    first, second = (trained(program, e)[0] for e in (EmulatorExecutor, ReferenceExecutor))
    for state, values in first.read_states().items():
        np.testing.assert_array_equal(second.read_states([state])[state], values)


@pytest.mark.parametrize("name", ["normalised", "convolutions", "residual"])
def test_no_sum_has_to_wait_between_the_cores(name: str, monkeypatch: pytest.MonkeyPatch):
    """Sums in the forward pass follow from sums: none waits for itself."""
    program = compile_functions(divided(MODELS[name](), 2), many(2))
    free = trained(program, ReferenceExecutor)[0].read_states()
    send_together(monkeypatch)
    for state, values in trained(program, ReferenceExecutor)[0].read_states().items():
        np.testing.assert_array_equal(values, free[state], state)


def test_states_are_read_as_they_were_written():
    program = compile_functions(divided(MODELS["depthwise"](), 2), many(2))
    session = Session(program, EmulatorExecutor(program.config))
    states = {k: v.astype(np.float32) for k, v in start(program).items()}
    rounded = {
        k: (v.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32) for k, v in states.items()
    }
    session.write_states(rounded)
    for name, values in session.read_states().items():
        np.testing.assert_array_equal(values, rounded[name], name)


@pytest.mark.parametrize("cores", [1, 3])
def test_functions_for_another_number_of_cores_are_refused(cores: int):
    with pytest.raises(GraphError) as error:
        compile_functions(divided(MODELS["dense"](), 2), many(cores))
    assert str(error.value) == (
        f"train: 'dense_0/kernel' is in parts for 2 cores, the machine has {cores}; lower the functions with their "
        "number"
    )


def test_tiles_wait_in_external_memory():
    some = divided(deep(4, 12).done(), 2, 2)
    free = compile_functions(some, replace(many(2), tiles=1 << 15))
    tiles = free.config.memory.tiles * 9 // 10
    program = compile_functions(some, replace(many(2), tiles=tiles))
    assert program.meta["functions"]["train"]["spill"]
    little, much = trained(program)[0].read_states(), trained(free)[0].read_states()
    for name, values in much.items():
        np.testing.assert_array_equal(little[name], values, name)


def test_each_core_has_its_parts_of_kernels_in_external_memory():
    net = Net(4, 12, 12, 1).folded(8).relu().conv(16).relu().conv(8).relu().pool("max")
    some = divided(net.dense(3).done(), 2)
    free = compile_functions(some, replace(many(2), tiles=1 << 15))
    rows = free.config.memory.vector_rows // 3
    program = compile_functions(some, replace(many(2), tiles=1 << 15, rows=rows))
    states = program.meta["states"]
    far = {name for name, info in states.items() if info["base"] >= program.meta["outside"][0]}
    assert any(states[name]["split"] for name in far)
    little, much = trained(program)[0].read_states(), trained(free)[0].read_states()
    for name, values in much.items():
        np.testing.assert_array_equal(little[name], values, name)


def test_random_numbers_differ_between_parts_and_not_between_wholes():
    program = compile_functions(divided(dropped(), 2), wide(4, 2))
    assert program.meta["functions"]["train"]["seed"] == 3
    first, again = trained(program)[0], trained(program, ReferenceExecutor)[0]
    dump = first.executor.dump()
    # The last tensor drawn is whole.
    np.testing.assert_array_equal(dump["random"][0], dump["random"][1])
    for state, values in first.read_states().items():
        np.testing.assert_array_equal(again.read_states([state])[state], values)
