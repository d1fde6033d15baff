"""Clocks that stop in simulations: an edge at the end of each active cycle, and no trace of them in hardware."""

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Fragment, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from fpgrad.gateware.gating import Simulation, gate, gated

PATTERN = [0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]


class Edges(wiring.Component):
    """Counts its clock's edges."""

    count: Signal

    def __init__(self) -> None:
        super().__init__({"count": Out(8)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.count.eq(self.count + 1)
        return m


class Gated(wiring.Component):
    """Edges on a clock that runs with ``active``, and so many cycles on."""

    active: Signal
    count: Signal

    def __init__(self, lingering: int) -> None:
        self.lingering = lingering
        super().__init__({"active": In(1), "count": Out(8)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        edges = Edges()
        m.submodules.edges = gated(edges, platform, "part")
        gate(m, platform, "part", self.active, lingering=self.lingering)
        m.d.comb += self.count.eq(edges.count)
        # The clock exists in hardware, and without anything that lingers.
        seen = Signal()
        m.d.sync += seen.eq(self.active)
        return m


@pytest.mark.parametrize("lingering", [0, 1, 3])
def test_the_clock_has_an_edge_for_each_active_cycle(lingering: int):
    dut = Gated(lingering)
    wanted = [
        sum(any(PATTERN[max(0, c - lingering) : c + 1]) for c in range(end + 1))
        for end in range(len(PATTERN))
    ]
    found = []

    async def bench(ctx):
        for active in PATTERN:
            ctx.set(dut.active, active)
            await ctx.tick()
            found.append(ctx.get(dut.count))

    simulator = Simulator(Fragment.get(dut, Simulation()))
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == wanted


def test_hardware_has_one_clock():
    dut = Gated(3)
    ports = [dut.active, dut.count]
    assert "part" in rtlil.convert(Fragment.get(dut, Simulation()), ports=ports)
    assert "part" not in rtlil.convert(Fragment.get(dut, None), ports=ports)
