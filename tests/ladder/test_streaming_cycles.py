"""Cycles of networks whose tiles wait in external memory: the cycle model against the generated Verilog.

LOAD and STORE share a port that is slow and refreshed, and LOAD waits for the vector unit's writes to tile memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.codegen.models import functions, optimizers
from tests.codegen.test_maps import Net, deep
from tests.codegen.test_split import functions as undivided
from tests.ladder.test_convolutions import MACHINE, compiled

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator.timing import PIPELINE, run_cycles, timeline
from fpgrad.flow.build import make_executor
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.executor import Executor
from fpgrad.isa.instructions import Load, Store, Transfer, Unit
from fpgrad.isa.program import Program
from fpgrad.transform import lower_split

#: Words a cycle over a port of 1, 2 and 4 of them, and in which cycles external memory is refreshed.
MEMORIES = {
    "one word": {"dram_words_per_cycle": 1},
    "less than the port": {
        "dram_words_per_cycle": 4,
        "dram_bandwidth": 2,
        "dram_refresh_interval": 780,
        "dram_refresh_cycles": 35,
    },
    "both ways at once": {
        "dram_words_per_cycle": 4,
        "dram_bandwidth": 8,
        "dram_latency": 50,
        "dram_refresh_interval": 200,
        "dram_refresh_cycles": 20,
    },
}
#: The largest difference, of the whole run.
TOLERANCE = 0.03


def machine(name: str) -> MachineConfig:
    return replace(MACHINE, memory=replace(MACHINE.memory, **MEMORIES[name]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "less than the port",
        pytest.param("one word", marks=pytest.mark.long),
        pytest.param("both ways at once", marks=pytest.mark.long),
    ],
)
def test_cycles_of_streaming_networks(name: str):
    config = machine(name)
    rtl = make_executor("rtl", config)
    for net in (deep(4, 12), deep(4, 11)):
        program = compiled(net, Machine(config, fixed=True))
        loads, stores = (program.units[u] for u in (Unit.LOAD, Unit.STORE))
        moved = [i for i in (*loads, *stores) if isinstance(i, Load | Store)]
        assert any(i.kind is Transfer.TILES for i in moved)
        rtl.load_program(program)
        bases = [1000 * i for i in range(len(program.entries["train"].bases))]
        for steps in (1, 3, 10):
            wanted = rtl.run("train", steps, bases).cycles
            got = run_cycles(program, "train", steps)
            assert abs(got / wanted - 1) < TOLERANCE


def on_two_cores(net: Net, config: MachineConfig, tiles: int) -> Program:
    """The training step of a network, with so many tiles on the chip, for a machine that has more."""
    fs = functions(net.done(), optimizer=optimizers.sgd(momentum=0.5), cores=config.cores)
    program = compile_functions({"train": fs["train"]}, Machine(config, tiles=tiles))
    return replace(program, config=config)


def gather_in_order(
    program: Program, executor: Executor, steps: int, bases: Sequence[int], name: str = "train"
):
    """Write the numbers of groups as the model takes them to be."""
    side, entry = program.config.side, program.entries[name]
    for i in program.units[Unit.LOAD][entry.start[Unit.LOAD] : entry.stop[Unit.LOAD]]:
        if not isinstance(i, Load) or not i.gather:
            continue
        numbers = np.zeros((-(-i.count // side), side), np.uint32)
        numbers.reshape(-1)[: i.count] = np.arange(i.count)
        at = bases[i.index.register] + i.index.offset
        for step in range(steps):
            for core in range(program.config.cores):
                row = at + step * i.index.step_stride + core * i.index.core_stride
                executor.write(row, numbers)


def with_samples_divided(config: MachineConfig) -> Program:
    """What it has on the chip goes in and out."""
    program = on_two_cores(deep(4, 8), config, 650)
    moved = [i for u in (Unit.LOAD, Unit.STORE) for i in program.units[u]]
    assert any(isinstance(i, Load | Store) and i.kind is Transfer.TILES for i in moved)
    return program


def with_channels_divided(config: MachineConfig) -> Program:
    """All samples on both cores, which exchange activations."""
    net = Net(4, 4, 4, 1).folded(8).relu().conv(12).relu().conv(8).relu().pool("max").dense(3)
    fs = lower_split(undivided(net.done()), config.cores, config.side)
    assert fs is not None
    return compile_functions({"train": fs["train"]}, Machine(config, fixed=True))


@pytest.mark.slow
@pytest.mark.parametrize("build", [with_samples_divided, with_channels_divided])
def test_cycles_on_two_cores_are_equal(build: Callable[[MachineConfig], Program]):
    """Cores take turns at the port, and wait for each other's rows."""
    config = replace(machine("less than the port"), cores=2)
    rtl, program = make_executor("rtl", config), build(config)
    count = len(program.entries["train"].bases)
    for apart in (10_240, 10_000, 10_001):
        bases = [apart * i for i in range(count)]
        rtl.load_program(program)
        gather_in_order(program, rtl, 3, bases)
        for steps in (1, 3, 1):
            found = timeline(program, "train", steps, bases=bases)
            cycles = max(record.end for record in found) + PIPELINE.finish
            assert rtl.run("train", steps, bases).cycles == cycles
