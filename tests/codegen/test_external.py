"""Tensors in external memory: the same bits as on a machine where everything fits, however little room there is."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.codegen.models import functions, optimizers
from tests.codegen.test_maps import Net, narrow
from tests.programs import places
from tests.programs.disorder import DisorderlyReference

from fpgrad.codegen import convolution
from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator import EmulatorExecutor
from fpgrad.errors import MemoryCapacityError
from fpgrad.host.session import Session
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import Executor, RunResult
from fpgrad.isa.instructions import Load, Matrix, Store, Transfer, Unit, Vector
from fpgrad.isa.program import Program
from fpgrad.reference import ReferenceExecutor, vector


def maps(n: int, size: int, norm: bool = False) -> Net:
    """Maps of several bands, wider and narrower."""
    net = Net(n, size, size, 1).folded(4)
    for layer in (lambda: net.conv(5), lambda: net.pool("max").conv(9), lambda: net.conv(6)):
        if norm:
            net.norm()
        net.relu()
        layer()
    return net.relu().dense(3)


def kernels(n: int, size: int) -> Net:
    """Kernels that are larger than the maps."""
    net = Net(n, size, size, 3).folded(8).norm().relu().conv(24).pool("max").relu()
    return net.conv(40).norm().relu().conv(24).relu().dense(3)


NETS = {
    "kernels": lambda: kernels(4, 12),
    "maps": lambda: maps(4, 16),
    "two sample tiles": lambda: maps(8, 12),
    "tiles of 16": lambda: maps(16, 24),
    "batch norm": lambda: maps(4, 16, norm=True),
}


def built(name: str, cores: int = 1):
    """A network's functions, the machine without limits, and what the network needs there."""
    fs = functions(NETS[name]().done(), optimizer=optimizers.sgd(momentum=0.9), cores=cores)
    formats = MachineConfig() if name == "tiles of 16" else narrow().formats
    machine = Machine(replace(formats, cores=cores))
    return fs, machine, compile_functions(fs, machine)


def limited(machine: Machine, free: Program, tiles: float, rows: float, masks: float) -> Machine:
    """A machine with a part of the memories that the program needs."""
    m = free.config.memory
    wanted = {"tiles": m.tiles * tiles, "rows": m.vector_rows * rows, "masks": m.mask_rows * masks}
    return replace(machine, **{k: int(v) for k, v in wanted.items() if v})


def moved(program: Program) -> set[Transfer]:
    """What LOAD and STORE move."""
    instructions = (i for u in (Unit.LOAD, Unit.STORE) for i in program.units[u])
    return {i.kind for i in instructions if isinstance(i, Load | Store)}


def test_a_plan_does_not_rest_on_more_than_the_port_takes():
    """Of eight cores, which wait for each other; external memory that reads and writes at once is no faster for loads."""
    fs, machine, free = built("maps", cores=8)
    little = limited(machine, free, 0.8, 0, 0)
    programs = []
    for words in (3, 4, 8):
        memory = replace(little.formats.memory, dram_bandwidth=words)
        formats = replace(little.formats, memory=memory)
        programs.append(compile_functions(fs, replace(little, formats=formats)))
    slow, port, both = programs
    assert Transfer.TILES in moved(port)
    assert port.units == both.units != slow.units


def trained(program: Program, net: Net, executor: Executor, steps: int = 3) -> dict[str, bytes]:
    """All states after some steps, bit for bit."""
    rng = np.random.default_rng(3)
    session = Session(program, executor)
    meta = program.meta["states"]
    session.write_states(
        {
            name: rng.normal(size=info["shape"]) * 0.4 + ("variance" in name)
            for name, info in meta.items()
            if info["role"] != "metric"
        }
    )
    n = session.batch_size
    data = {
        "x": rng.normal(size=(2 * n, net.input.shape[1])),
        "y": rng.integers(0, net.c, 2 * n).astype(float),
        "sample_weight": np.ones(2 * n),
        "valid": np.ones(2 * n),
    }
    train = program.meta["functions"]["train"]
    known = {i["name"] for i in train["inputs"]} | {c for some in train["columns"] for c in some}
    order = rng.integers(0, 2 * n, (steps, n))
    scalars = {k: np.full(steps, 1 / n if k == "inv_count" else 0.05) for k in train["scalars"]}
    session.train(session.upload({k: v for k, v in data.items() if k in known}), order, scalars)
    return {name: values.tobytes() for name, values in session.read_states().items()}


@pytest.mark.parametrize(
    ("name", "cores", "tiles", "rows", "masks", "kinds"),
    [
        ("maps", 1, 0.9, 0, 0, {Transfer.TILES}),
        ("maps", 1, 0, 0.5, 0, {Transfer.ROWS}),
        ("maps", 1, 0, 0, 0.6, {Transfer.MASKS}),
        ("maps", 2, 0.9, 0.7, 0.8, {Transfer.TILES, Transfer.MASKS, Transfer.SUM}),
        ("two sample tiles", 1, 0.8, 0.6, 0.6, {Transfer.TILES, Transfer.MASKS}),
        ("tiles of 16", 1, 0.65, 0, 0, {Transfer.TILES}),
        ("tiles of 16", 2, 0.7, 0.6, 0.6, {Transfer.TILES, Transfer.MASKS, Transfer.SUM}),
        ("batch norm", 1, 0, 0.4, 0.6, {Transfer.ROWS, Transfer.MASKS}),
        ("batch norm", 2, 0, 0.5, 0, {Transfer.ROWS, Transfer.SUM}),
    ],
)
def test_same_bits_with_less_room(name, cores, tiles, rows, masks, kinds):
    fs, machine, free = built(name, cores)
    small = limited(machine, free, tiles, rows, masks)
    program = compile_functions(fs, small)
    memory = program.config.memory
    for limit, used in (
        (small.tiles, memory.tiles),
        (small.rows, memory.vector_rows),
        (small.masks, memory.mask_rows),
    ):
        assert limit is None or used <= limit
    assert moved(program) >= kinds
    net = NETS[name]()
    results = [trained(p, net, EmulatorExecutor(p.config)) for p in (program, free)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("name", "cores", "inbox", "outbox"),
    [("maps", 1, 1200, 600), ("maps", 2, 1600, 700), ("tiles of 16", 1, 6000, 3000)],
)
def test_same_bits_with_little_room_on_the_way(name, cores, inbox, outbox):
    fs, machine, free = built(name, cores)
    roomy = limited(machine, free, 0, 0.5, 0)
    wide = compile_functions(fs, roomy).config.memory
    assert wide.inbox_rows > inbox
    assert wide.outbox_rows > outbox
    program = compile_functions(fs, replace(roomy, inbox=inbox, outbox=outbox))
    memory = program.config.memory
    assert memory.inbox_rows <= inbox
    assert memory.outbox_rows <= outbox
    net = NETS[name]()
    results = [trained(p, net, EmulatorExecutor(p.config)) for p in (program, free)]
    assert results[0] == results[1]


@pytest.mark.parametrize("place", ["inbox", "outbox"])
def test_what_is_on_its_way_is_said(place):
    fs, machine, free = built("batch norm")
    roomy = limited(machine, free, 0, 0.4, 0.6)
    with pytest.raises(
        MemoryCapacityError,
        match=rf"train: \S+ \(\w+\) needs \d+ rows of the {place} at once, in pieces of up to \d+ rows, .* raise {place}",
    ):
        compile_functions(fs, replace(roomy, **{place: 300}))


@pytest.mark.parametrize("cores", [1, 2])
def test_kernels_and_inputs_come_in_pieces(cores, monkeypatch):
    monkeypatch.setattr(convolution, "TURN", 200)
    monkeypatch.setattr("fpgrad.codegen.compile.STATES", 0.05)
    fs, machine, free = built("kernels", cores)
    program = compile_functions(fs, limited(machine, free, 0.8, 0.08, 0))
    sliced = {s.name for s in program.symbols if s.space == "tile"}
    assert "conv5/kernel" in {s.name for s in free.symbols if s.space == "tile"} - sliced
    loads = [i for i in program.units[Unit.LOAD] if isinstance(i, Load)]
    assert any(i.gather and i.source.offset for i in loads)
    net = NETS["kernels"]()
    results = [trained(p, net, EmulatorExecutor(p.config)) for p in (program, free)]
    assert results[0] == results[1]


SHARES = st.one_of(st.just(0.0), st.floats(0.3, 0.95))


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.sampled_from(sorted(NETS)), SHARES, SHARES, SHARES)
def test_same_bits_with_any_room(name, tiles, rows, masks):
    fs, machine, free = built(name)
    try:
        program = compile_functions(fs, limited(machine, free, tiles, rows, masks))
    except MemoryCapacityError:
        return  # what it says is tested below
    net = NETS[name]()
    results = [trained(p, net, EmulatorExecutor(p.config), 2) for p in (program, free)]
    assert results[0] == results[1]


class Disorderly(DisorderlyReference):
    """Runs training steps in any order that tokens allow, and checks that they order what touches the same place.

    Passes among themselves are ordered by fences, which ``test_hazards`` checks. That a product's last row was taken
    says that its tiles have been read.
    """

    def run(self, entry, steps, bases) -> RunResult:
        if entry != "train":
            return ReferenceExecutor.run(self, entry, steps, bases)
        self.made = [0]  # rows of all products up to each one
        self.taken = 0
        return super().run(entry, steps, bases)

    def _execute(self, state, unit, bases) -> None:
        instruction = self._program.units[unit][state.at[unit]]
        if isinstance(instruction, Matrix):
            self.made.append(self.made[-1] + instruction.outputs * instruction.rows)
        if isinstance(instruction, Vector):
            read = bisect_right(self.made, self.taken) - 1
            state.clock[unit][Unit.MATRIX] = max(state.clock[unit][Unit.MATRIX], read)
            self.taken += vector.acc_rows(instruction)
        super()._execute(state, unit, bases)

    def _check(self, state, unit, i, touches) -> None:
        mine = state.done
        state.done = [d for d in mine if d.unit is not unit]
        super()._check(state, unit, i, touches)
        state.done = mine


@pytest.mark.parametrize("seed", range(2))
def test_tokens_order_what_goes_out_and_comes_back(seed, monkeypatch):
    net = NETS["maps"]()
    fs, machine, free = built("maps")
    program = compile_functions(fs, limited(machine, free, 0.9, 0.6, 0.8))
    assert {Transfer.TILES, Transfer.ROWS, Transfer.MASKS} <= moved(program)
    executor = Disorderly(program.config)
    executor.seed = seed
    monkeypatch.setattr(places, "dram_rows", lambda _: 1 << 14)
    monkeypatch.setattr(places, "STEPS", 1)
    bases: list[int] = []
    monkeypatch.setattr(places, "bases", lambda _: bases)
    run = executor.run

    def noted(entry, steps, at):
        bases[:] = at
        return run(entry, steps, at)

    monkeypatch.setattr(executor, "run", noted)
    # What it computes is not compared: it delays whole passes, where hardware lets their rows follow each other.
    trained(program, net, executor, 1)


def test_what_is_missing_is_said():
    fs, machine, _ = built("maps")
    with pytest.raises(
        MemoryCapacityError,
        match=r"train: \S+ \(\w+\) needs \d+ tiles on the chip at once besides what persists, even with external memory",
    ):
        compile_functions(fs, replace(machine, tiles=60))
