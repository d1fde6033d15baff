"""Cycles of networks whose tiles wait in external memory: the cycle model against the generated Verilog.

LOAD and STORE share a port that is slow and refreshed, and LOAD waits for the vector unit's writes to tile memory.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.codegen.test_maps import deep
from tests.ladder.test_convolutions import MACHINE, compiled

from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import run_cycles
from fpgrad.flow.build import make_executor
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Load, Store, Transfer, Unit

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
