"""The hub: what all cores of a chip share. The host's registers, the exchange, the way to external memory.

What goes out to the cores comes from registers, and so does what goes out of the chip: no path of logic goes through.
"""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.axi import Axi
from fpgrad.gateware.dma import row_layout
from fpgrad.gateware.exchange import Exchange
from fpgrad.gateware.interconnect import Interconnect, port_members
from fpgrad.gateware.registers import (
    HostPort,
    Registers,
    RunCounters,
    control_signature,
    core_status,
)
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Unit


class HubSignature(wiring.Signature):
    """Its ports.

    Members:
        host: the register port, behind a register: a word is on ``read_data`` two cycles after its address.
        running: a run is going on: from the cycle after START's pulse to the one after the last core's last.
        control: to all cores.
        status, rows, sums: of each core, see :class:`fpgrad.gateware.core.Core`.
        axi, m_axi_*: with several cores, see :class:`fpgrad.gateware.interconnect.Interconnect`.
    """

    def __init__(self, config: MachineConfig) -> None:
        rows, cores = stream.Signature(row_layout(config)), config.cores
        members = {
            "host": In(HostPort),
            "running": Out(1),
            "control": Out(control_signature(config)),
            "status": In(core_status(config)).array(cores),
            "rows": In(rows).array(cores),
            "sums": Out(rows).array(cores),
        }
        if cores > 1:
            members |= {"axi": In(Axi(config)).array(cores), **port_members(config)}
        super().__init__(members)


class Hub(wiring.Component):
    """The hub; its members are those of :class:`HubSignature`."""

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(HubSignature(config))

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Registers and counters of the run; what the cores say becomes one answer."""
        m = Module()
        m.submodules.registers = registers = Registers(self._config)
        m.submodules.counters = counters = RunCounters()
        m.submodules.exchange = exchange = Exchange(self._config)
        # In a simulation, logic behind inputs is evaluated on both edges of the clock.
        m.d.sync += [
            registers.host.address.eq(self.host.address),
            registers.host.write.eq(self.host.write),
            registers.host.data.eq(self.host.data),
        ]
        m.d.comb += self.host.read_data.eq(registers.host.read_data)
        connect(m, registers.control, wiring.flipped(self.control))
        for rows, there in zip(self.rows, exchange.rows, strict=True):
            connect(m, wiring.flipped(rows), there)
        for sums, there in zip(exchange.sums, self.sums, strict=True):
            connect(m, sums, wiring.flipped(there))
        go = registers.control.go
        if self._config.cores > 1:
            self._memory(m, go)

        runs, quiet, status = Signal(), Signal(), registers.status
        first = self.status[0]
        m.d.comb += [
            runs.eq(Cat(core.running for core in self.status).any()),
            quiet.eq(runs & Cat(core.quiet | ~core.running for core in self.status).all()),
        ]
        with m.If(go):
            m.d.sync += self.running.eq(1)
        with m.Elif(~runs):
            m.d.sync += self.running.eq(0)
        m.d.comb += [
            counters.clear.eq(go),
            counters.running.eq(runs),
            exchange.clear.eq(go),
            status.running.eq(self.running),
            status.quiet.eq(quiet),
            status.sums_left.eq(exchange.left),
            status.cycles.eq(counters.cycles),
        ]
        for name in ("rows_left", "token_overflow", "address_error"):
            every = Cat(getattr(core, name) for core in self.status)
            m.d.comb += getattr(status, name).eq(every.any())
        # All run the same program: where one is tells enough.
        for unit in Unit:
            m.d.comb += [
                counters.busy[unit].eq(first.state[unit].busy),
                status.busy_cycles[unit].eq(counters.busy_cycles[unit]),
                status.at[unit].eq(first.at[unit]),
                status.at_step[unit].eq(first.at_step[unit]),
                status.state[unit].eq(first.state[unit]),
            ]
        vector = [core.saturated_vector for core in self.status]
        if self._config.cores > 1:
            vector.append(exchange.saturated)
        accumulator = [core.saturated_accumulator for core in self.status]
        m.d.comb += [
            status.saturated_vector.eq(_total(m, vector, "vector")),
            status.saturated_accumulator.eq(_total(m, accumulator, "accumulator")),
        ]
        return m

    def _memory(self, m: Module, go: Value) -> None:
        m.submodules.interconnect = interconnect = Interconnect(self._config)
        m.d.comb += interconnect.clear.eq(go)
        for axi, there in zip(self.axi, interconnect.axi, strict=True):
            connect(m, wiring.flipped(axi), there)
        for name, member in port_members(self._config).items():
            outside, inside = getattr(self, name), getattr(interconnect, name)
            m.d.comb += outside.eq(inside) if member.flow is Out else inside.eq(outside)


def _total(m: Module, counters: list[Value], name: str) -> Value:
    """Their sum, two at a time with a register behind each."""
    while len(counters) > 1:
        pairs = [counters[n : n + 2] for n in range(0, len(counters), 2)]
        counters = []
        for pair in pairs:
            total = sum(pair[1:], pair[0])
            counters.append(Signal.like(total, name=f"{name}_of_{len(pairs)}_{len(counters)}"))
            m.d.sync += counters[-1].eq(total)
    return counters[0]
