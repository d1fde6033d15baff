"""Several cores on the reference: what they read, what they send each other, and in which order it is summed."""

from __future__ import annotations

import numpy as np
import pytest

from fpgrad.errors import ConfigError, ExecutionError
from fpgrad.formats import smallfloat
from fpgrad.isa.config import MachineConfig, MemoryConfig
from fpgrad.isa.instructions import (
    DramAddress,
    Load,
    Loops,
    RowStream,
    Source,
    Space,
    Store,
    Target,
    Tokens,
    Transfer,
    Unit,
    Vector,
)
from fpgrad.isa.program import Entry, Program
from fpgrad.reference import ReferenceExecutor

ROWS = 5
T = 16


def machine(cores: int) -> MachineConfig:
    return MachineConfig(memory=MemoryConfig(vector_rows=T, tiles=1), cores=cores)


def sum_program(config: MachineConfig) -> Program:
    """Each core's rows are summed; each core writes what it received to a place of its own."""
    copy = Vector(
        loops=Loops(n0=ROWS),
        p0=RowStream(Space.INBOX, s0=1),
        a=Source.P0,
        target=Target(Space.OUTBOX, s0=1),
        wait=Tokens(load=1, store=1),
        signal=Tokens(load=1, store=1),
    )
    units = {
        Unit.LOAD: (
            Load(
                rows=ROWS, source=DramAddress(0, step_stride=128, core_stride=ROWS),
                wait=Tokens(vector=1), signal=Tokens(vector=1),
            ),
            Load(kind=Transfer.SUM, rows=ROWS, wait=Tokens(vector=1), signal=Tokens(vector=1)),
        ),
        Unit.VECTOR: (copy, Vector(
            loops=Loops(n0=ROWS), p0=RowStream(Space.INBOX, s0=1), a=Source.P0,
            target=Target(Space.OUTBOX, s0=1), wait=Tokens(load=1, store=1),
            signal=Tokens(store=1, load=1),
        )),
        Unit.STORE: (
            Store(kind=Transfer.SUM, rows=ROWS, wait=Tokens(vector=1), signal=Tokens(vector=1)),
            Store(
                rows=ROWS, target=DramAddress(1, step_stride=128, core_stride=ROWS),
                wait=Tokens(vector=1), signal=Tokens(vector=1),
            ),
        ),
    }  # fmt: skip
    stops = tuple(len(units.get(u, ())) for u in Unit)
    tokens = [[0] * 4 for _ in Unit]
    tokens[Unit.VECTOR][Unit.LOAD] = tokens[Unit.STORE][Unit.VECTOR] = 1
    return Program(config, units, {"sum": Entry((0,) * 4, stops, tuple(map(tuple, tokens)))})


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_all_cores_receive_the_sum_in_the_order_of_the_cores(cores):
    config = machine(cores)
    number = config.vector.number
    executor = ReferenceExecutor(config)
    executor.load_program(sum_program(config))
    rng = np.random.default_rng(cores)
    values = rng.normal(size=(2, cores, ROWS, T)) * 2.0 ** rng.integers(-9, 9, (2, cores, ROWS, T))
    codes = smallfloat.from_float(number, values)[0]
    words = (codes << (32 - number.width)).astype(np.uint32)
    for step in range(2):
        executor.write(step * 128, words[step].reshape(-1, T))
    executor.run("sum", 2, [0, 1000])
    for step in range(2):
        total = codes[step, 0]
        for core in range(1, cores):
            total = smallfloat.add(number, total, codes[step, core])[0]
        for core in range(cores):
            got = executor.read(1000 + step * 128 + core * ROWS, ROWS).astype(np.int64)
            np.testing.assert_array_equal(got >> (32 - number.width), total)


def test_the_sum_is_clamped_and_counted():
    config = machine(2)
    largest = config.vector.number.max_code << (32 - config.vector.number.width)
    executor = ReferenceExecutor(config)
    executor.load_program(sum_program(config))
    executor.write(0, np.full((2 * ROWS, T), largest, np.uint32))
    assert executor.run("sum", 1, [0, 1000]).saturated_vector == ROWS * T
    np.testing.assert_array_equal(executor.read(1000, 2 * ROWS), largest)


def test_dump_restore_and_poke_know_the_cores():
    config = machine(3)
    executor = ReferenceExecutor(config)
    executor.poke("vector", (2, 1, 4), 77)
    dump = executor.dump()
    assert dump["vector"].shape == (3, T, T)
    assert dump["vector"][2, 1, 4] == dump["vector"].sum() == 77
    other = ReferenceExecutor(config)
    other.restore(dump)
    assert all(np.array_equal(dump[name], values) for name, values in other.dump().items())


def test_a_core_that_waits_for_rows_that_nobody_sends_is_named():
    config = machine(2)
    program = Program(
        config, {Unit.LOAD: (Load(kind=Transfer.SUM),)}, {"wait": Entry((0,) * 4, (1, 0, 0, 0))}
    )
    executor = ReferenceExecutor(config)
    executor.load_program(program)
    with pytest.raises(ExecutionError, match="the units of core 0 wait for each other: load at"):
        executor.run("wait", 1, [0])


@pytest.mark.parametrize("cores", [0, 17])
def test_numbers_of_cores_that_no_machine_has(cores):
    with pytest.raises(ConfigError, match="cores must be 1 to 16"):
        MachineConfig(cores=cores)
