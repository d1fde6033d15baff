"""The driver that simulations and boards share, on a link that only remembers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.link.machine import FakeLink

from fpgrad.errors import ExecutionError, ProgramError
from fpgrad.formats import TileFormat
from fpgrad.isa.config import MachineConfig, MatrixConfig, MemoryConfig
from fpgrad.isa.executor import RunResult
from fpgrad.isa.instructions import Load, Store, Tokens, Unit, Vector
from fpgrad.isa.layout import pack
from fpgrad.isa.program import Entry, Program
from fpgrad.isa.registers import (
    Register,
    Status,
    UnitStatus,
    instruction_address,
    instruction_words,
)
from fpgrad.link.driver import LinkExecutor

CONFIG = MachineConfig(
    matrix=MatrixConfig(tile=TileFormat(side=4)),
    memory=MemoryConfig(dram_rows=64, dram_words_per_cycle=4),
)
VECTORS = (Vector(), Vector(fence=1, wait=Tokens(load=3)))
PROGRAM = Program(
    CONFIG,
    {Unit.LOAD: (Load(rows=3),), Unit.VECTOR: VECTORS, Unit.STORE: (Store(rows=2),)},
    {
        "main": Entry(
            (0, 0, 1, 0), (1, 0, 2, 1), ((0, 1, 2, 3), (0,) * 4, (9, 0, 0, 0), (0,) * 4), ("x",)
        )
    },
)


def machine(*statuses: Status, timeout: float = 5.0) -> tuple[FakeLink, LinkExecutor]:
    link = FakeLink(CONFIG, list(statuses or [Status(0)]))
    return link, LinkExecutor(link, CONFIG, timeout=timeout)


def test_load_program_clears_and_writes_every_instruction():
    link, executor = machine()
    executor.load_program(PROGRAM)
    assert link.cleared == 1
    for unit, instructions in PROGRAM.units.items():
        for index, instruction in enumerate(instructions):
            first = instruction_address(unit, index)
            words = [link.written[first + n] for n in range(instruction_words(unit))]
            assert sum(w << (32 * n) for n, w in enumerate(words)) == pack(instruction)


def test_run_writes_the_entry_and_reads_the_counters():
    link, executor = machine(Status.RUNNING, Status.RUNNING, Status(0))
    executor.load_program(PROGRAM)
    link.registers |= {
        Register.CYCLES: 7,
        Register.CYCLES + 1: 1,
        Register.SATURATED_VECTOR: 3,
        Register.SATURATED_ACCUMULATOR: 2,
        Register.BUSY + 4: 5,
    }
    assert executor.run("main", 12, [17]) == RunResult((1 << 32) + 7, 3, 2)
    assert link.started
    assert link.written[Register.STEPS] == 12
    assert [link.written[Register.BASE + n] for n in range(3)] == [17, 0, 0]
    assert [link.written[Register.START + u] for u in Unit] == [0, 0, 1, 0]
    assert [link.written[Register.STOP + u] for u in Unit] == [1, 0, 2, 1]
    assert [link.written[Register.TOKENS + u] for u in Unit] == [0x03020100, 0, 9, 0]
    assert executor.counters()["vector"] == 5


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.ADDRESS_ERROR, "a load or store was outside the 64 rows of external memory"),
        (Status.TOKEN_OVERFLOW, "a token channel held more than 255 tokens"),
        (Status.ROWS_LEFT, "accumulator rows were never taken"),
        (
            Status.RUNNING | Status.QUIET,
            (
                "the units wait for each other: load waits at instruction 1 of step 4, "
                "vector works up to instruction 7 of step 5"
            ),
        ),
    ],
)
def test_a_run_that_fails_says_why(status, message):
    link, executor = machine(Status.RUNNING, status)
    executor.load_program(PROGRAM)
    link.registers |= {Register.AT + Unit.LOAD: 1, Register.AT + Unit.VECTOR: 7}
    link.registers |= {Register.STEP + Unit.LOAD: 4, Register.STEP + Unit.VECTOR: 5}
    states = (UnitStatus.WAITING, UnitStatus.FINISHED, UnitStatus.BUSY, UnitStatus.FINISHED)
    link.registers |= {Register.UNIT + u: states[u] for u in Unit}
    with pytest.raises(ExecutionError, match=f"^{message}$"):
        executor.run("main", 1, [0])


def test_a_run_that_takes_too_long_is_given_up_and_stopped():
    link, executor = machine(Status.RUNNING, timeout=0.01)
    executor.load_program(PROGRAM)
    link.registers[Register.CYCLES] = 1000
    with pytest.raises(ExecutionError, match="the run did not end within 1000 cycles: load works"):
        executor.run("main", 1, [0])
    assert link.written[Register.CONTROL] == 2
    with pytest.raises(ExecutionError, match="no program is loaded"):
        executor.run("main", 1, [0])


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (Register.MAGIC, "what answers is not an fpgrad machine: 0xbad instead of 0x66706772"),
        (Register.VERSION, "the machine speaks version 2989 of the register map, not 1"),
        (Register.DIGEST, f"made from configuration 00000bad.*, not from {CONFIG.digest[:12]}"),
    ],
)
def test_another_machine_is_refused(register, message):
    link = FakeLink(CONFIG, [Status(0)])
    link.registers[register] = 0xBAD
    with pytest.raises(ExecutionError, match=message):
        LinkExecutor(link, CONFIG)


def test_external_memory_is_written_and_read_inside_its_limits():
    _, executor = machine()
    words = np.arange(12, dtype=np.uint32).reshape(3, 4)
    executor.write(61, words)
    np.testing.assert_array_equal(executor.read(61, 3), words)
    with pytest.raises(ExecutionError, match="DRAM rows 62 to 64 are outside the 64 rows"):
        executor.write(62, words)
    with pytest.raises(ExecutionError, match="DRAM rows -1 to 0 are outside"):
        executor.read(-1, 2)


def test_what_cannot_be_run_is_refused():
    _, executor = machine()
    with pytest.raises(ExecutionError, match="no program is loaded"):
        executor.run("main", 1, [0])
    executor.load_program(PROGRAM)
    with pytest.raises(ProgramError, match=r"entry must be one of \['main'\], not 'other'"):
        executor.run("other", 1, [0])
    with pytest.raises(ExecutionError, match="steps must be 0 to 4294967295, not -1"):
        executor.run("main", -1, [0])
    with pytest.raises(ExecutionError, match="a machine has 16 base registers, not 17"):
        executor.run("main", 1, [0] * 17)
