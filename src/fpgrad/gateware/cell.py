"""A cell: a core and its AXI4 port. A chip with several cores holds its module once and instantiates it for each.

What goes out comes from registers: no path of logic goes through.
"""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.axi import Axi, AxiPort, ports
from fpgrad.gateware.core import Core
from fpgrad.gateware.dma import number_members, row_layout
from fpgrad.gateware.registers import control_signature, core_status
from fpgrad.isa.config import MachineConfig


class CellSignature(wiring.Signature):
    """Its ports.

    Members:
        number, control, status, rows, sums: see :class:`fpgrad.gateware.core.Core`.
        axi: external memory, see :class:`fpgrad.gateware.axi.AxiPort`.
    """

    def __init__(self, config: MachineConfig) -> None:
        super().__init__(
            {
                **number_members(config),
                "control": In(control_signature(config)),
                "status": Out(core_status(config)),
                "rows": Out(stream.Signature(row_layout(config))),
                "sums": In(stream.Signature(row_layout(config))),
                "axi": Out(Axi(config)),
            }
        )


class Cell(wiring.Component):
    """A core and its port; its members are those of :class:`CellSignature`."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(CellSignature(config))

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Wires."""
        m = Module()
        m.submodules.core = core = Core(self._config)
        m.submodules.axi = axi = AxiPort(self._config)
        for name in number_members(self._config):
            m.d.comb += getattr(core, name).eq(getattr(self, name))
        connect(m, wiring.flipped(self.control), core.control)
        connect(m, core.status, wiring.flipped(self.status))
        connect(m, core.rows, wiring.flipped(self.rows))
        connect(m, wiring.flipped(self.sums), core.sums)
        for name in ("read_request", "read_beats", "write_request", "write_beats"):
            connect(m, getattr(core, name), getattr(axi, name))
        if self._config.control.streamed:
            connect(m, core.fetch_burst, axi.fetch_burst)
            m.d.comb += [core.fetched.eq(axi.fetched), core.fetched_beat.eq(axi.fetched_beat)]
        m.d.comb += [core.written.eq(axi.written), core.port_error.eq(axi.error)]
        for name, (flow, _) in ports(self._config).items():
            outside, inside = getattr(self.axi, name), getattr(axi, f"m_axi_{name}")
            m.d.comb += outside.eq(inside) if flow is Out else inside.eq(outside)
        return m
