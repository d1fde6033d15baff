"""No path of logic leads through the modules of which a chip with several cores is made.

The simulation evaluates each of them once a clock edge, in any order; on a chip such paths would be long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from amaranth.hdl import Elaboratable, Fragment, Module, Signal, Value, _ir, _nir
from amaranth.lib import wiring
from tests.gateware.test_top import CONFIG

from fpgrad.gateware.cell import Cell
from fpgrad.gateware.hub import Hub
from fpgrad.gateware.top import flat_ports


def paths(part: Elaboratable, ports: Mapping[str, tuple[Value, bool]]) -> set[tuple[str, str]]:
    """Pairs of an input and an output that depends on it in the same cycle.

    Args:
        ports: each port's signal, and whether it is an input.
    """
    directions = {True: _ir.PortDirection.Input, False: _ir.PortDirection.Output}
    netlist = _ir.build_netlist(
        Fragment.get(part, None),
        ports={name: (value, directions[is_input]) for name, (value, is_input) in ports.items()},
    )
    inputs = {
        _nir.Net.from_cell(0, start + bit): name
        for name, (start, width) in netlist.top.ports_i.items()
        for bit in range(width)
    }
    found = set()
    for name, value in netlist.top.ports_o.items():
        todo, seen = list(value), set()
        while todo:
            net = todo.pop()
            if net in seen or net.is_const:
                continue
            seen.add(net)
            if net in inputs:
                found.add((inputs[net], name))
            elif net.cell:
                todo += [source for source, _ in netlist.cells[net.cell].comb_edges_to(net.bit)]
    # Of a register these are what it depends on.
    return {(i, o) for i, o in found if i not in ("clk", "rst")}


@pytest.mark.parametrize("program_rows", [0, 512])
@pytest.mark.parametrize("kind", [Hub, Cell])
def test_no_path_leads_through(kind, program_rows):
    memory = dataclasses.replace(CONFIG.memory, tile_dma=True, bytes=True, mask_rows=8)
    control = dataclasses.replace(CONFIG.control, program_rows=program_rows)
    part = kind(dataclasses.replace(CONFIG, cores=3, memory=memory, control=control))
    ports = {name: (value, flow is wiring.In) for name, flow, value in flat_ports(part)}
    assert paths(part, ports) == set()


def test_a_path_is_found():
    m, a, b = Module(), Signal(2), Signal(2)
    through, kept = Signal(), Signal()
    m.d.comb += through.eq(a[0] ^ b[1])
    m.d.sync += kept.eq(a.all())
    ports = {"a": (a, True), "b": (b, True), "through": (through, False), "kept": (kept, False)}
    assert paths(m, ports) == {("a", "through"), ("b", "through")}
