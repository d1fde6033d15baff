"""Compiled steps by micro-batches: against float64, against the step of the whole batch, and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.models import forward, g, losses, metrics, optimizers
from tests.codegen.test_cores import agree
from tests.codegen.test_external import trained
from tests.codegen.test_maps import NETS, Net, narrow
from tests.codegen.test_training import check, labels, uniform, wide

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator import EmulatorExecutor
from fpgrad.errors import GraphError
from fpgrad.graph import Function
from fpgrad.host.session import Session
from fpgrad.isa.instructions import Load, Unit
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor
from fpgrad.transform import (
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
    coupling,
    lower,
)

T = 4
COUPLED = {"batch norm", "one channel, two sample tiles"}


def functions(
    model: Function, parts: int, optimizer=None, loss=None, accuracy=None, cores: int = 1
) -> dict[str, Function]:
    """train, evaluate and predict by so many micro-batches of the model's samples."""
    loss = loss or losses.SparseCategoricalCrossentropy(from_logits=False)
    terms = [MetricTerm("accuracy", accuracy or metrics.SparseCategoricalAccuracy())]
    made = {
        "train": build_training(model, loss, optimizer or optimizers.sgd(momentum=0.9), terms),
        "evaluate": build_evaluation(model, loss, terms),
        "predict": build_prediction(model),
    }
    return {name: lower(f, cores=cores, parts=parts) for name, f in made.items()}


@pytest.mark.parametrize(("parts", "cores"), [(2, 1), (5, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("dims", [(1, 3, 2), (3, 20, 7), (20, 5, 20)])
def test_dense(dims, parts, cores):
    sgd = optimizers.sgd(momentum=0.9)
    fs = functions(forward(T, dims), parts, cores=cores)
    session, data, order = check(
        fs, sgd, parts * T, dims[0], side=T, target=labels(dims[-1]), tolerance=0.02, cores=cores
    )
    if cores > 1:
        agree(session)
    outputs = session.predict(data, order)["out"]
    assert outputs.shape == ((order >= 0).sum(), dims[-1])
    np.testing.assert_allclose(outputs.sum(axis=1), 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
        optimizers.adam(amsgrad=True, epsilon_inside=False, epsilon=1e-3),
        optimizers.sgd(clipvalue=0.01),
    ],
    ids=lambda o: o.name,
)
def test_optimizers_come_once_for_all(optimizer):
    fs = functions(forward(2 * T, (8, 20, 5)), 2, optimizer)
    check(fs, optimizer, 4 * T, 8, side=T, target=labels(5), tolerance=0.03)


@pytest.mark.parametrize("name", sorted(set(NETS) - COUPLED))
def test_maps(name):
    net = NETS[name]()
    sgd = optimizers.sgd(momentum=0.9)
    check(
        functions(net.done(), 3),
        sgd,
        3 * net.n,
        net.input.shape[1],
        side=T,
        target=labels(net.c),
        tolerance=0.03,
        steps=2,
        masks=net.masks,
    )


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_statistics_of_a_batch_are_not_those_of_its_parts(name):
    model = NETS[name]().done()
    loss = losses.SparseCategoricalCrossentropy(from_logits=False)
    train = build_training(model, loss, optimizers.sgd())
    assert coupling(lower(train))


def test_one_class():
    loss = losses.BinaryCrossentropy(from_logits=False)
    accuracy = metrics.BinaryAccuracy(0.5)
    fs = functions(forward(T, (3, 5, 1), last=g.sigmoid), 3, loss=loss, accuracy=accuracy)
    sgd = optimizers.sgd(momentum=0.9)
    session, data, order = check(fs, sgd, 3 * T, 3, side=T, target=uniform(1), tolerance=0.03)
    assert session.predict(data, order)["out"].shape[1] == 1


def test_outputs_and_metrics_have_their_places_among_those_of_the_batch():
    """Bit for bit what the step of the whole batch computes of single samples."""
    parts, n = 3, 3 * T
    results = []
    for count in (1, parts):
        fs = functions(forward(n // count, (6, 9, 5)), count)
        program = compile_functions(fs, wide(T))
        session = Session(program, ReferenceExecutor(program.config))
        rng = np.random.default_rng(4)
        session.write_states(
            {
                name: rng.normal(size=info["shape"])
                for name, info in program.meta["states"].items()
                if info["role"] == "parameter"
            }
        )
        sums = {"loss_sum": np.arange(n * 1.0), "accuracy_sum": np.arange(n * 2.0, n * 3.0)}
        session.write_states(sums)
        data = session.upload(
            {
                "x": rng.normal(size=(2 * n, 6)),
                "y": rng.integers(0, 5, 2 * n),
                "sample_weight": rng.uniform(0.5, 1, 2 * n),
                "valid": np.ones(2 * n),
            }
        )
        order = rng.permutation(2 * n).reshape(2, n)
        order[1, 5:] = -1
        outputs = session.predict(data, order)["out"]
        evaluated = session.evaluate(data, order)
        kept = {name: session.read_states([name])[name] for name in sums}
        assert all(values.shape == (n, 1) for values in kept.values())
        results.append((outputs, evaluated, kept))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    for name, values in results[0][2].items():
        np.testing.assert_array_equal(values, results[1][2][name])


def built(name: str, parts: int, **limits: int) -> tuple[Program, Net]:
    """A network of maps for 4 tiles of samples, by so many micro-batches."""
    machine = Machine() if name == "tiles of 16" else narrow()
    net = maps(4 * machine.formats.side // parts, 8 if name == "small" else 16)
    return compile_functions(functions(net.done(), parts), replace(machine, **limits)), net


def maps(n: int, size: int) -> Net:
    net = Net(n, size, size, 1).folded(4)
    return net.relu().conv(5).relu().pool("max").conv(9).relu().conv(6).relu().dense(3)


@pytest.mark.parametrize("name", ["maps", "tiles of 16"])
def test_what_waits_for_the_backward_pass_is_that_of_one_micro_batch(name):
    whole, parts = built(name, 1)[0].config.memory, built(name, 4)[0].config.memory
    assert parts.tiles < 0.5 * whole.tiles
    assert parts.mask_rows < 0.5 * whole.mask_rows
    # Gradients of kernels are added where they are.
    assert parts.vector_rows <= whole.vector_rows


def test_reference_and_emulator_agree_with_and_without_room():
    free, net = built("small", 4)
    memory = free.config.memory
    tight, _ = built("small", 4, tiles=memory.tiles * 4 // 5, masks=memory.mask_rows * 4 // 5)
    assert tight.meta["functions"]["train"]["spill"]
    assert not free.meta["functions"]["train"]["spill"]
    specification = trained(tight, net, ReferenceExecutor(tight.config), 2)
    for program in (tight, free):
        assert trained(program, net, EmulatorExecutor(program.config), 2) == specification


def test_dropout_is_drawn_for_each_micro_batch():
    x = g.batch_input("x", (T, 6))
    w = g.state("dense/kernel", (6, 3), trainable=True)
    y = g.softmax(g.matmul(g.dropout(x, 0.5), w), name="out")
    fs = functions(Function("forward", (x,), (w,), (("out", y),)), 3)
    program = compile_functions(fs, wide(T))
    weights = []
    for executor in (ReferenceExecutor, EmulatorExecutor):
        session = Session(program, executor(program.config))
        session.write_states({"dense/kernel": np.ones((6, 3)) * np.arange(3)})
        n = 3 * T
        columns = {"sample_weight": np.ones(n), "valid": np.ones(n)}
        data = session.upload({"x": np.ones((n, 6)), "y": np.zeros(n)} | columns)
        scalars = {"inv_count": [1 / n], "sgd/step_size": [-0.1]}
        order, seeds = np.arange(n)[None], np.array([5], np.uint64)
        session.train(data, order, scalars, seeds)
        # The same sample with the same weights everywhere: losses differ by what is dropped.
        dropped = session.read_states(["loss_sum"])["loss_sum"].reshape(3, T)
        assert len({tuple(part) for part in dropped}) == 3
        weights.append(session.read_states(["dense/kernel"])["dense/kernel"])
    np.testing.assert_array_equal(*weights)


def test_inputs_come_by_micro_batches_in_the_order_of_the_batch():
    program, _ = built("small", 4)
    entry = program.entries["train"]
    loads = program.units[Unit.LOAD][entry.start[Unit.LOAD] : entry.stop[Unit.LOAD]]
    images = [i for i in loads if isinstance(i, Load) and i.gather and i.rows > 1]
    assert [(i.index.offset, i.count) for i in images] == [(k, T) for k in range(4)]


REFUSED: dict[str, tuple[Callable[[], Function], str]] = {
    "half a tile": (
        lambda: functions(forward(T // 2, (3, 2)), 2)["predict"],
        "x, samples from 0: micro-batches must be a multiple of 4 samples, not 2",
    ),
    "a part left out": (
        lambda: Function(
            "predict",
            (x := g.batch_input("x", (2 * T, 3), False),),
            (),
            (("y", g.relu(g.take_samples(x, T, T))),),
        ),
        "input (8, 3) of 'x' must be taken apart into equal micro-batches",
    ),
    "a state that is not joined": (
        lambda: Function(
            "predict",
            (x := g.batch_input("x", (2 * T, 1), False),),
            (m := g.state("m", (2 * T, 1), role="metric"),),
            (),
            (
                (m, g.add(m, x)),
                (g.state("p", (T, 1)), g.add(g.take_samples(m, 0, T), g.take_samples(m, T, T))),
            ),
        ),
        "the new value of state (8, 1) of 'm' must be joined from micro-batches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    build, message = REFUSED[case]
    with pytest.raises(GraphError) as error:
        compile_functions({"predict": build()}, wide(T))
    assert str(error.value) == message
