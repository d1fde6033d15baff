"""The top level: hub and cores with flat port names, and their Verilog.

Names of ports hold single underscores only, because tools escape double ones.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import rtlil
from amaranth.hdl import (
    ClockDomain,
    ClockSignal,
    Const,
    Fragment,
    Instance,
    Module,
    ResetSignal,
    Value,
)
from amaranth.hdl._ir import PortDirection
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.axi import ports
from fpgrad.gateware.cell import Cell, CellSignature
from fpgrad.gateware.gating import Simulation
from fpgrad.gateware.hub import Hub, HubSignature
from fpgrad.gateware.interconnect import port_members
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.registers import ADDRESS_BITS, WORD_BITS

#: Clean-up before ``opt_dff``, or it finds no enables.
_TO_VERILOG = (
    "proc -norom",
    "opt_expr",
    "opt_clean",
    "opt_dff",
    "opt_clean",
    "memory_collect",
    "attrmap -remove generator -remove top -remove src",
    "write_verilog -norename -noattr",
)
#: In a simulation. Where some conditions clear some bits only, the other ``opt_dff`` cuts a register
#: into pieces, each with its own reset: good for hardware, an assignment with masks in C++.
_TO_SIMULATION = tuple("opt_dff -nosdff" if p == "opt_dff" else p for p in _TO_VERILOG)
#: A simulation's memories start at zero without one line for each word.
_ZEROS = re.compile(r"\n\s*\S+\[\d+\] = \d+'h0+;")

#: The name of the top module and of the file that holds it.
NAME = "fpgrad_core"

#: With several cores, modules of their own: what they share, and one for all of them.
HUB = "fpgrad_hub"
CELL = "fpgrad_cell"


def flat_ports(part: Any) -> Iterator[tuple[str, wiring.Flow, Value]]:
    """Ports as a module has them: each signal of an interface under the names on the way to it."""
    for path, member, value in part.signature.flatten(part):
        yield _flat(path), member.flow, Value.cast(value)


def _flat(path: tuple[str | int, ...]) -> str:
    return "_".join(str(part) for part in path)


def wires(config: MachineConfig) -> Iterator[tuple[int, str, str, bool]]:
    """What joins the modules of hub and cells: core, the hub's port, the cell's, whether the hub drives it."""
    cell = CellSignature(config).create()
    for core in range(config.cores):
        for path, member, _ in cell.signature.flatten(cell):
            name, *rest = path
            hub = path if name == "control" else (name, core, *rest)
            if name != "number":
                yield core, _flat(hub), _flat(path), member.flow is In


class Top(wiring.Component):
    """A chip whose ports are single signals; ``clk`` and ``rst`` (synchronous) are added to them.

    Args:
        config: the machine.
        reset: whether there is a ``rst``.

    Members:
        host_address, host_write, host_data, host_read_data: the register port; a word is on
            ``host_read_data`` two cycles after its address.
        running: high during a run.
        m_axi_*: external memory as AXI4, see :mod:`fpgrad.gateware.axi`.
    """

    def __init__(self, config: MachineConfig, *, reset: bool = True) -> None:
        self._config = config
        self._reset = reset
        super().__init__(
            {
                "host_address": In(ADDRESS_BITS),
                "host_write": In(1),
                "host_data": In(WORD_BITS),
                "host_read_data": Out(WORD_BITS),
                "running": Out(1),
                **port_members(config),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """What the machine was made from."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """The hub and the cells; of several cells, instances of one module."""
        m = Module()
        cores = self._config.cores
        if cores == 1:
            m.submodules.hub = hub = Hub(self._config)
            m.submodules.cell = cell = Cell(self._config)
            cells, memory = [cell], {name: getattr(cell.axi, name) for name in ports(self._config)}
        else:
            hub = HubSignature(self._config).create()
            m.submodules.hub = self._instance(HUB, hub)
            memory = {name: getattr(hub, f"m_axi_{name}") for name in ports(self._config)}
            cells = []
            for n in range(cores):
                cell = CellSignature(self._config).create()
                m.submodules[f"cell{n}"] = self._instance(CELL, cell)
                m.d.comb += cell.number.eq(Const(n))
                connect(m, cell.axi, hub.axi[n])
                cells.append(cell)
        for n, cell in enumerate(cells):
            # To all of them, which `connect` does not know.
            for (_, _, to), (_, _, of) in zip(
                cell.control.signature.flatten(cell.control),
                hub.control.signature.flatten(hub.control),
                strict=True,
            ):
                m.d.comb += to.eq(of)
            connect(m, cell.status, hub.status[n])
            connect(m, cell.rows, hub.rows[n])
            connect(m, hub.sums[n], cell.sums)
        m.d.comb += [
            hub.host.address.eq(self.host_address),
            hub.host.write.eq(self.host_write),
            hub.host.data.eq(self.host_data),
            self.host_read_data.eq(hub.host.read_data),
            self.running.eq(hub.running),
        ]
        for name, inside in memory.items():
            port = getattr(self, f"m_axi_{name}")
            is_out = self.signature.members[f"m_axi_{name}"].flow is Out
            m.d.comb += port.eq(inside) if is_out else inside.eq(port)
        return m

    def _instance(self, module: str, part: Any) -> Instance:
        """A module that is written elsewhere, with the signals of an interface at its ports."""
        wires = {
            f"{'i' if flow is In else 'o'}_{name}": value for name, flow, value in flat_ports(part)
        }
        wires["i_clk"] = ClockSignal()
        if self._reset:
            wires["i_rst"] = ResetSignal()
        return Instance(module, **wires)


def verilog_text(config: MachineConfig, *, reset: bool = True) -> str:
    """The machine as Verilog, in one text; equal configurations give equal texts."""
    modules: dict[str, wiring.Component] = {NAME: Top(config, reset=reset)}
    if config.cores > 1:
        modules |= {HUB: Hub(config), CELL: Cell(config)}
    return "".join(_module_text(name, part, reset=reset) for name, part in modules.items())


def _module_text(name: str, component: wiring.Component, *, reset: bool) -> str:
    """A component and all that is in it.

    Amaranth's own conversion leaves every register as a copy of a separate next value, which
    simulates up to twice as slowly; here Yosys turns them into registers with enables. A simulation
    starts from the registers' first values, without ``rst``, and is a third faster.
    """
    fragment, domain = (
        Fragment.get(component, None if reset else Simulation()),
        ClockDomain("sync", reset_less=not reset),
    )
    fragment.add_domains(domain)
    ports = {"clk": (domain.clk, PortDirection.Input)}
    if reset:
        ports["rst"] = (domain.rst, PortDirection.Input)
    for port, flow, value in flat_ports(component):
        ports[port] = (value, PortDirection.Input if flow is In else PortDirection.Output)
    text = rtlil.convert(fragment, name=name, ports=ports, emit_src=False)
    yosys = find_yosys(lambda version: version >= (0, 40))
    passes = _TO_VERILOG if reset else _TO_SIMULATION
    script = "\n".join(("read_rtlil <<rtlil", text, "rtlil", *passes))
    out = yosys.run(["-q", "-"], script, ignore_warnings=True)
    return out if reset else _ZEROS.sub("", out)


def write_verilog(
    config: MachineConfig, directory: str | Path, *, reset: bool = True
) -> list[Path]:
    """Write the machine's Verilog, headed by the digests of configuration and design.

    Args:
        directory: made if it is not there.
        reset: whether the top module has a synchronous ``rst``.

    Returns:
        the files, the Verilog first.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    text = verilog_text(config, reset=reset)
    header = (
        f"// fpgrad core, configuration {config.digest}\n"
        f"// design {hashlib.sha256(text.encode()).hexdigest()}\n"
    )
    source = folder / f"{NAME}.v"
    source.write_text(header + text)
    return [source]
