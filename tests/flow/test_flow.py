"""From functions to sessions: machines given and made, costs, comparisons that can fail, files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.codegen.models import forward, functions, metrics, optimizers

import fpgrad.host.session
from fpgrad.codegen.compile import Machine
from fpgrad.emulator import EmulatorExecutor
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import (
    ConfigError,
    DataShapeError,
    InvalidArgumentError,
    MemoryCapacityError,
    ProgramMismatchError,
)
from fpgrad.flow import build
from fpgrad.flow.build import build_session, compile_model, make_executor, open_session
from fpgrad.flow.estimate import summarise, useful_macs
from fpgrad.flow.export import export_verilog
from fpgrad.flow.verify import verify
from fpgrad.formats import BF16, TileFormat
from fpgrad.host import pack
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig, VectorConfig
from fpgrad.isa.program import Program

SMALL = (8, 12, 3)


def program(**options) -> Program:
    return compile_model(functions(forward(16, SMALL), optimizer=optimizers.adam()), **options)


def test_a_machine_that_is_too_small_says_what_is_missing():
    config = MachineConfig(
        memory=MemoryConfig(vector_rows=16, tiles=2, inbox_rows=512, outbox_rows=512)
    )
    with pytest.raises(
        MemoryCapacityError,
        match=r"memory.vector_rows: \d+ needed, 16 there; memory.tiles: \d+ needed, 2 there\. A smaller batch size",
    ):
        program(config=config)


def test_instruction_memories_that_are_too_small_are_named():
    made = program().config
    short = dataclasses.replace(made, control=dataclasses.replace(made.control, vector=8))
    with pytest.raises(ConfigError, match=r"control.vector: \d+ needed, 8 there"):
        program(config=short)


def test_a_larger_machine_is_used_as_it_is():
    made = program().config
    larger = dataclasses.replace(made, memory=dataclasses.replace(made.memory, vector_rows=4096))
    assert program(config=larger).config == larger


def test_formats_without_sizes_give_the_smallest_machine():
    formats = MachineConfig(
        MatrixConfig(TileFormat(8, 6)), VectorConfig(BF16), MemoryConfig(dram_words_per_cycle=8)
    )
    config = program(config=Machine(formats)).config
    assert (config.side, config.matrix.tile.mantissa_bits, config.vector.number) == (8, 6, BF16)
    assert config.memory.vector_rows < 2048


def test_a_program_runs_only_on_its_machine():
    executor = EmulatorExecutor(MachineConfig())
    with pytest.raises(ProgramMismatchError, match="for another machine"):
        executor.load_program(program())


def test_unknown_backends_are_refused():
    with pytest.raises(
        InvalidArgumentError, match=r"^backend must be one of emulator, reference, rtl, not 'gpu'$"
    ):
        make_executor("gpu", MachineConfig())


def test_summary_adds_up():
    p = program()
    summary = summarise(p, model="small", clock_hz=1e8)
    assert summary.cycles == cycles_per_step(p, "train")
    assert summary.useful_macs == useful_macs(p, "train")
    # Forward and gradient of both layers, backward of the second, and the sums of the biases.
    assert summary.useful_macs == 16 * (2 * (8 * 12 + 12 * 3) + 12 * 3 + 12 + 3)
    assert 0 < summary.utilisation < 1
    assert summary.needs.mac_lanes == 256
    assert {row.phase for row in summary.layers} >= {"forward", "backward", "gradient", "update"}


def shared_program(cores: int) -> Program:
    """The same model and batch on several cores."""
    fs = functions(forward(16 // cores, SMALL), optimizer=optimizers.adam(), cores=cores)
    return compile_model(fs, Machine(MachineConfig(cores=cores)))


def test_summary_of_several_cores_counts_all_of_them():
    summary = summarise(shared_program(2), samples=16)
    alone = summarise(program())
    # Sums of the biases are of whole tiles: a row of ones for each core.
    assert summary.useful_macs == alone.useful_macs
    assert summary.batch_size == 16
    assert summary.needs.mac_lanes == 512
    assert summary.machine.startswith("2 cores, 512 MAC lanes")
    # A tile row each of both kernels, and a row of each bias.
    assert summary.notes[1].startswith("Cores: each sends the others 34 rows of 16 numbers a step")


def workload() -> dict:
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(32, 8)),
        "y": rng.integers(0, 3, 32),
        "sample_weight": np.ones(32),
    }
    host = [optimizers.adam().host_scalars(0.01, i) for i in range(2)]
    scalars = {k: [h[k] for h in host] for k in host[0]} | {"inv_count": [1 / 16] * 2}
    states = {"dense0/kernel": rng.normal(size=(8, 12)), "dense1/kernel": rng.normal(size=(12, 3))}
    return {
        "data": data,
        "order": np.arange(32).reshape(2, 16),
        "scalars": scalars,
        "states": states,
    }


def test_verify_finds_no_difference():
    outcome = verify(program(), **workload(), backend="reference")
    assert outcome.differing == 0
    assert outcome.first is None
    assert (
        str(outcome)
        == f"reference against emulator, 2 training steps: 0 of {outcome.words} words differ"
    )


def test_verify_decodes_the_first_difference(monkeypatch: pytest.MonkeyPatch):
    p = program()
    row = p.meta["states"]["dense0/kernel"]["base"] + 2

    class Faulty(EmulatorExecutor):
        def run(self, entry, steps, bases):
            result = super().run(entry, steps, bases)
            if entry == "train":
                self.poke("vector", (row, 5), int(self.dump()["vector"][row, 5]) ^ 4)
            return result

    monkeypatch.setitem(build.BACKENDS, "rtl", Faulty)
    outcome = verify(p, **workload(), backend="rtl")
    assert outcome.differing >= 1
    assert outcome.steps == 1
    assert outcome.first is not None
    assert "after step 0: vector row" in outcome.first
    assert "dense0/kernel[2, 5]" in outcome.first


def test_verify_compares_the_cores_with_each_other(monkeypatch: pytest.MonkeyPatch):
    p = shared_program(2)
    assert verify(p, **workload(), backend="reference").differing == 0
    row = p.meta["states"]["dense0/kernel"]["base"] + 2

    class Faulty(EmulatorExecutor):
        def run(self, entry, steps, bases):
            result = super().run(entry, steps, bases)
            if entry == "train":
                self.poke("vector", (1, row, 5), int(self.dump()["vector"][1, row, 5]) ^ 4)
            return result

    monkeypatch.setitem(build.BACKENDS, "emulator", Faulty)
    outcome = verify(p, **workload(), backend="emulator")
    assert outcome.differing == 1
    assert outcome.first == (
        "first mismatch, after step 0: dense0/kernel is not the same on core 0 and core 1"
    )


def test_sessions_refuse_what_they_do_not_know():
    session = build_session(
        functions(forward(16, SMALL), accuracy=metrics.SparseCategoricalAccuracy())
    )
    with pytest.raises(InvalidArgumentError, match="state must be one of"):
        session.read_states(["dense9/kernel"])
    with pytest.raises(InvalidArgumentError, match=r"not \['z'\]"):
        session.upload({"x": np.zeros((4, 8)), "z": np.zeros(4)})


def test_a_plan_is_followed_in_parts_until_there_is_another():
    work = workload()
    order = np.tile(work["order"], (160, 1))  # beyond a window of sums
    scalars = {name: np.tile(values, 160) for name, values in work["scalars"].items()}
    sessions = [open_session(program()) for _ in range(2)]
    for session in sessions:
        session.write_states(work["states"])
    data = [session.upload(work["data"]) for session in sessions]
    plan = sessions[0].plan(data[0], order, scalars)
    parts = sessions[0].follow(plan, 0, 20)
    parts += sessions[0].follow(plan, 20, 100, parts=3)
    at = 0
    for part, steps in zip(parts, (20, 100, 100, 100), strict=True):
        some = slice(at, at + steps)
        mine = {name: values[some] for name, values in scalars.items()}
        assert part.sums == sessions[1].train(data[1], order[some], mine)
        at += steps
    for name, value in sessions[0].read_states().items():
        np.testing.assert_array_equal(value, sessions[1].read_states()[name])
    with pytest.raises(InvalidArgumentError, match=r"^steps must be among the plan's 320, not 300"):
        sessions[0].follow(plan, 300, 7, parts=3)
    sessions[0].predict(data[0], order[:1])
    with pytest.raises(InvalidArgumentError, match=r"^plan must be the last one"):
        sessions[0].follow(plan, 0, 1)


def test_memory_is_given_back_when_data_are_released():
    p = program()
    tight = dataclasses.replace(
        p.config, memory=dataclasses.replace(p.config.memory, dram_rows=700)
    )
    session = open_session(program(config=tight))
    for _ in range(20):
        session.release(session.upload({"x": np.ones((100, 8)), "y": np.zeros(100)}))
    with pytest.raises(MemoryCapacityError, match="device memory holds"):
        session.upload({"x": np.ones((1000, 8)), "y": np.zeros(1000)})


def test_nothing_is_kept_of_an_upload_that_is_refused():
    session = open_session(program())
    rows = dict(session._memory._used)
    with pytest.raises(DataShapeError, match="8 features a sample, not 9"):
        session.upload({"y": np.zeros(3), "x": np.ones((3, 9))})
    with pytest.raises(InvalidArgumentError, match="inputs must be among"):
        session.upload({"y": np.zeros(3), "x": np.ones((3, 8)), "z": np.zeros(3)})
    assert session._memory._used == rows


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("piece", [1, 100, 1 << 18])
def test_data_are_written_in_pieces(piece: int, cores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fpgrad.host.session, "PIECE", piece)
    session = open_session(shared_program(cores))
    kernel = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    session.write_states({"dense0/kernel": kernel})
    np.testing.assert_array_equal(session.read_states()["dense0/kernel"], kernel)
    x = np.random.default_rng(0).normal(size=(37, 8)).astype(np.float32)
    data = session.upload({"x": x, "y": np.arange(37)})
    words, _ = pack.to_words(session.number, np.pad(x, ((0, 1), (0, session.side - 8))))
    np.testing.assert_array_equal(session.executor.read(data.rows["x"], 38), words)


def test_export_writes_the_design_and_its_program(tmp_path):
    formats = MachineConfig(
        MatrixConfig(TileFormat(4)), memory=MemoryConfig(dram_words_per_cycle=4)
    )
    p = program(config=Machine(formats))
    files = export_verilog(p, tmp_path / "out")
    assert "module fpgrad_core" in files[0].read_text()
    assert Program.load(files[-1]).digest == p.digest
