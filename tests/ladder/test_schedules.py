"""Micro-batches on every rung: the same bits, with and without external memory, in as many cycles as the model says."""

from __future__ import annotations

import pytest
from tests.codegen.test_batches import functions
from tests.codegen.test_maps import Net
from tests.ladder.test_convolutions import MACHINE, run

from fpgrad.codegen.compile import Machine, compile_functions
from fpgrad.emulator.timing import run_cycles
from fpgrad.flow.build import make_executor
from fpgrad.isa.program import Program
from fpgrad.transform import optimizers

PARTS = 3


def micro_batches(size: int) -> tuple[Net, Program]:
    """A training step with momentum of two convolutions, by micro-batches."""
    net = Net(4, size, size, 1).folded(4).relu().pool("max").conv(5).relu().flat().vector(3)
    fs = functions(net.done(), PARTS, optimizers.sgd(momentum=0.5))
    return net, compile_functions({"train": fs["train"]}, Machine(MACHINE, fixed=True))


@pytest.mark.parametrize("size", [6, 12])
def test_bits(size):
    net, program = micro_batches(size)
    meta = program.meta["functions"]["train"]
    assert (meta["micro_batches"], meta["batch_size"]) == (PARTS, PARTS * net.n)
    for backend in ("reference", "rtl"):
        result = run(net, program, backend, "emulator")
        assert result.differing == 0, str(result)


def test_cycles():
    _, program = micro_batches(6)
    rtl = make_executor("rtl", program.config)
    rtl.load_program(program)
    bases = [1000 * i for i in range(len(program.entries["train"].bases))]
    for steps in (1, 3):
        assert run_cycles(program, "train", steps) == rtl.run("train", steps, bases).cycles
