"""Steps that would take minutes to follow are followed twice, and take as long by that."""

from __future__ import annotations

from tests.codegen.models import functions, optimizers
from tests.codegen.test_maps import Net, narrow

from fpgrad.codegen.compile import compile_functions
from fpgrad.emulator import timing
from fpgrad.emulator.timing import CycleModel


def test_a_very_long_step_takes_what_it_took(monkeypatch):
    net = Net(4, 8, 8, 1).folded(4).relu().conv(6).relu().dense(3)
    program = compile_functions(functions(net.done(), optimizer=optimizers.sgd()), narrow())
    usual = CycleModel(program)
    wanted = usual.per_step("train"), usual.run("train", 5)
    monkeypatch.setattr(timing, "VERY_LONG", 1)
    model = CycleModel(program)
    # The last step has no other behind it.
    assert abs(model.per_step("train") - wanted[0]) <= wanted[0] // 100
    assert abs(model.run("train", 5) - wanted[1]) <= wanted[1] // 100
