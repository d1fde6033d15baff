"""Compiled steps on several cores, against the graph's float64 meaning, and what all cores must agree on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.models import forward, functions, g, metrics, optimizers
from tests.codegen.test_maps import NETS, deep, narrow
from tests.codegen.test_training import check, labels, wide

from fpgrad.codegen.compile import compile_functions
from fpgrad.errors import GraphError
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.instructions import Instruction, Load, Store, Transfer, Unit
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor
from fpgrad.reference.executor import _Run, counts
from fpgrad.transform import L1L2, build_training, losses, lower

T = 4


def agree(session: Session) -> None:
    """Check that what persists, but metrics, is the same on all cores of the reference."""
    dump = session.executor.dump()  # type: ignore[attr-defined]
    metrics_from = session.meta["metrics"][0]
    rows = dump["vector"][:, :metrics_from]
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    for s in session.program.symbols:
        if s.space == "tile" and s.name in session.meta["states"]:
            for memory in ("mantissas", "exponents"):
                tiles = dump[memory][:, s.base : s.base + s.size]
                np.testing.assert_array_equal(tiles, np.broadcast_to(tiles[0], tiles.shape))


def sums(instructions: Iterable[Instruction]) -> list[int]:
    """Rows of the sums that some instructions send or receive, in order."""
    return [i.rows for i in instructions if isinstance(i, Load | Store) and i.kind is Transfer.SUM]


def part(program: Program, entry: str, unit: Unit) -> tuple[Instruction, ...]:
    """The instructions of an entry."""
    e = program.entries[entry]
    return program.units[unit][e.start[unit] : e.stop[unit]]


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize(("n", "dims"), [(2, (1, 3, 2)), (5, (3, 20, 7)), (8, (20, 5, 20))])
def test_dense(n, dims, cores):
    sgd = optimizers.sgd(momentum=0.9)
    accuracy = metrics.SparseCategoricalAccuracy()
    fs = functions(forward(n, dims), optimizer=sgd, accuracy=accuracy, cores=cores)
    session, data, order = check(
        fs, sgd, n, dims[0], side=T, target=labels(dims[-1]), tolerance=0.02, cores=cores
    )
    agree(session)
    outputs = session.predict(data, order)["out"]
    assert outputs.shape == ((order >= 0).sum(), dims[-1])
    np.testing.assert_allclose(outputs.sum(axis=1), 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.sgd(),
        optimizers.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
        optimizers.rmsprop(momentum=0.5, centered=True),
        optimizers.adam(amsgrad=True, epsilon_inside=False, epsilon=1e-3),
        optimizers.sgd(clipvalue=0.01),
    ],
    ids=lambda o: o.name,
)
def test_optimizers(optimizer):
    fs = functions(forward(4, (8, 20, 5)), optimizer=optimizer, cores=2)
    session, _, _ = check(fs, optimizer, 4, 8, side=T, target=labels(5), tolerance=0.03, cores=2)
    agree(session)


@pytest.mark.parametrize("name", NETS)
def test_maps(name):
    net = NETS[name]()
    sgd = optimizers.sgd(momentum=0.9)
    accuracy = metrics.SparseCategoricalAccuracy()
    fs = functions(net.done(), optimizer=sgd, accuracy=accuracy, cores=2)
    session, _, _ = check(
        fs,
        sgd,
        net.n,
        net.input.shape[1],
        side=T,
        target=labels(net.c),
        tolerance=0.03,
        steps=2,
        masks=net.masks,
        cores=2,
    )
    agree(session)


def test_penalties():
    sgd = optimizers.sgd()
    loss = losses.SparseCategoricalCrossentropy(from_logits=False)
    penalty = {"dense0/kernel": L1L2(0.01, 0.02)}
    train = lower(build_training(forward(3, (4, 6, 3)), loss, sgd, (), penalty), cores=3)
    check({"train": train}, sgd, 3, 4, side=T, target=labels(3), tolerance=0.02, cores=3)


def test_large_gradients_go_in_pieces_in_one_order():
    sgd = optimizers.sgd(momentum=0.9)
    fs = functions(forward(8, (40, 100, 60, 3)), optimizer=sgd, cores=2)
    session, _, _ = check(
        fs, sgd, 8, 40, side=T, target=labels(3), tolerance=0.03, steps=2, cores=2
    )
    agree(session)
    program = session.program
    sent = sums(part(program, "train", Unit.STORE))
    assert sent == sums(part(program, "train", Unit.LOAD))
    # Rows of 4 numbers: kernels of 40x100, 100x60 and 60x3, and 3 biases.
    assert sum(sent) == 10 * 25 * 4 + 25 * 15 * 4 + 15 * 1 * 4 + 25 + 15 + 1
    assert max(sent) <= 256
    assert not sums(part(program, "predict", Unit.STORE))
    memory = program.config.memory
    assert max(memory.inbox_rows, memory.outbox_rows) < sum(sent) * 2 // 3


@pytest.mark.parametrize("name", ["dense", "batch norm", "tiles wait"])
def test_no_sum_has_to_wait_between_the_cores(name, monkeypatch):
    """A part is sent only while LOAD takes its sum: the least that any queue between the cores holds."""
    nets = {"batch norm": NETS["batch norm"], "tiles wait": lambda: deep(4, 8)}
    machine = replace(narrow(), formats=replace(narrow().formats, cores=2))
    if name == "dense":
        model, features, classes = forward(8, (40, 100, 60, 3)), 40, 3
    else:
        net = nets[name]()
        model, features, classes = net.done(), net.input.shape[1], net.c
    fs = functions(model, optimizer=optimizers.sgd(), cores=2)
    if name == "tiles wait":
        free = compile_functions(fs, replace(machine, tiles=1 << 15)).config.memory.tiles
        machine = replace(machine, tiles=free * 9 // 10)
    program = compile_functions(fs, machine)
    free_run = trained(program, features, classes)
    send_together(monkeypatch)
    assert trained(program, features, classes) == free_run


def send_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference send a part only while LOAD takes its sum."""
    ready = _Run._ready

    def ready_together(run: _Run, unit: Unit) -> bool:
        if not ready(run, unit):
            return False
        instruction = run.program.units[unit][run.at[unit]]
        if not isinstance(instruction, Store) or instruction.kind is not Transfer.SUM:
            return True
        load = run.program.units[Unit.LOAD][run.at[Unit.LOAD]]
        assert isinstance(load, Load)
        tokens = all(
            run.channel[source][Unit.LOAD] >= n for source, n in enumerate(counts(load.wait))
        )
        return load.kind is Transfer.SUM and load.rows == instruction.rows and tokens

    monkeypatch.setattr(_Run, "_ready", ready_together)


def test_tiles_of_all_cores_wait_in_external_memory():
    net = deep(4, 8)
    fs = functions(net.done(), optimizer=optimizers.sgd(), cores=2)
    machine = replace(narrow(), formats=replace(narrow().formats, cores=2))
    free = compile_functions(fs, replace(machine, tiles=1 << 15))
    tiles = free.config.memory.tiles * 9 // 10
    program = compile_functions(fs, replace(machine, tiles=tiles))
    assert program.meta["functions"]["train"]["spill"]
    data = net.input.shape[1], net.c
    assert trained(program, *data) == trained(free, *data)


def trained(program: Program, features: int, classes: int, steps: int = 3) -> dict[str, bytes]:
    """All states after some steps on the reference, bit for bit."""
    rng = np.random.default_rng(3)
    session = Session(program, ReferenceExecutor(program.config))
    start = {
        name: rng.normal(size=info["shape"]) * 0.4 + ("variance" in name)
        for name, info in program.meta["states"].items()
        if info["role"] != "metric"
    }
    session.write_states(start)
    n = session.batch_size
    data = {
        "x": rng.normal(size=(2 * n, features)),
        "y": rng.integers(0, classes, 2 * n).astype(float),
        "sample_weight": np.ones(2 * n),
        "valid": np.ones(2 * n),
    }
    known = {i["name"] for f in program.meta["functions"].values() for i in f["inputs"]}
    known |= {
        c for f in program.meta["functions"].values() for group in f["columns"] for c in group
    }
    data = {name: values for name, values in data.items() if name in known}
    order = rng.integers(0, 2 * n, (steps, n))
    wanted = program.meta["functions"]["train"]["scalars"]
    scalars = {k: np.full(steps, 1.0 / n if k == "inv_count" else 0.05) for k in wanted}
    session.train(session.upload(data), order, scalars)
    agree(session)
    return {name: values.tobytes() for name, values in session.read_states().items()}


def dropped_out(n: int) -> dict[str, Function]:
    x = g.batch_input("x", (n, 6))
    w = g.state("dense/kernel", (6, 3), trainable=True)
    y = g.softmax(g.matmul(g.dropout(x, 0.5), w), name="out")
    model = Function("forward", (x,), (w,), (("out", y),))
    return functions(model, optimizer=optimizers.sgd(), cores=2)


def test_each_core_draws_random_numbers_of_its_own():
    program = compile_functions(dropped_out(4), wide(T, 2))
    weights = []
    for seed in (5, 5, 6):
        session = Session(program, ReferenceExecutor(program.config))
        session.write_states({"dense/kernel": np.ones((6, 3)) * np.arange(3)})
        data = session.upload({"x": np.ones((8, 6)), "y": np.zeros(8), "sample_weight": np.ones(8)})
        scalars = {"inv_count": [1 / 8], "sgd/step_size": [-0.1]}
        seeds = np.array([seed], np.uint64)
        session.train(data, np.arange(8)[None], scalars, seeds)
        agree(session)
        random = session.executor.dump()["random"]  # type: ignore[attr-defined]
        assert np.all(random[0] != random[1])
        weights.append(session.read_states(["dense/kernel"])["dense/kernel"])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.any(weights[0] != weights[2])


def test_metrics_of_single_samples_are_those_of_all_cores():
    sgd = optimizers.sgd()
    fs = functions(forward(5, (3, 4, 2)), optimizer=sgd, cores=3)
    program = compile_functions(fs, wide(T, 3))
    session = Session(program, ReferenceExecutor(program.config))
    values = np.arange(15.0).reshape(15, 1)
    session.write_states({"loss_sum": values})
    np.testing.assert_array_equal(session.read_states()["loss_sum"], values)


def test_functions_for_another_number_of_cores_are_refused():
    fs = functions(forward(4, (3, 4, 2)), optimizer=optimizers.sgd())
    with pytest.raises(GraphError) as error:
        compile_functions(fs, wide(T, 2))
    assert str(error.value) == (
        "train: matmul (3, 4) of 'dense0/kernel:grad' must be summed over the cores of the machine; lower the "
        "function with their number"
    )
