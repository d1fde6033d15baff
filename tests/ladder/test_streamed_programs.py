"""Networks whose programs stream in from external memory: the same bits on all executors, cycles of the cycle model.

External memory is as slow as its port is narrow and has the program, tiles and rows to bring at once.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.codegen.test_maps import deep
from tests.ladder.test_convolutions import MACHINE, compiled, run

from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import run_cycles
from fpgrad.flow.build import make_executor
from fpgrad.flow.estimate import dram_bytes, program_bytes
from fpgrad.isa.config import ControlConfig
from fpgrad.isa.instructions import Unit

STREAMED = replace(
    MACHINE,
    memory=replace(
        MACHINE.memory,
        dram_words_per_cycle=4,
        dram_bandwidth=2,
        dram_latency=40,
        dram_refresh_interval=780,
        dram_refresh_cycles=35,
    ),
    control=ControlConfig(8, 8, 16, 8, program_rows=1 << 15),
)
#: The largest difference, of the whole run: far less than what streaming costs.
TOLERANCE = 0.001


@pytest.mark.slow
def test_a_network_trains_on_a_streamed_program():
    net = deep(4, 12)
    program = compiled(net, Machine(STREAMED, fixed=True))
    # Many times what the rings hold.
    assert len(program.units[Unit.VECTOR]) > 4 * STREAMED.control.vector
    assert len(program.units[Unit.MATRIX]) > 4 * STREAMED.control.matrix
    assert program_bytes(program, "train") > dram_bytes(program, "train") / 4
    for backend in ("reference", "rtl"):
        result = run(net, program, backend, "emulator")
        assert result.differing == 0, str(result)
    rtl = make_executor("rtl", STREAMED)
    rtl.load_program(program)
    plain = compiled(net, Machine(replace(STREAMED, control=MACHINE.control), fixed=True))
    bases = [1000 * i for i in range(len(program.entries["train"].bases))]
    for steps in (1, 3, 10):
        wanted = rtl.run("train", steps, bases).cycles
        got = run_cycles(program, "train", steps)
        assert abs(got / wanted - 1) < TOLERANCE
        assert got > (1 + 10 * TOLERANCE) * run_cycles(plain, "train", steps)
