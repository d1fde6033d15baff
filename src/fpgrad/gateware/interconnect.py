"""Several cores at one AXI4 port: their bursts take turns, and every answer goes to the core that asked.

Reads and writes are apart. On the AR and the AW channel the turn goes round (:class:`RoundRobin`). The data of writes
follow in the order of their addresses, a burst without a pause between beats of others. IDs are those of the core with
its number above them, by which answers find their way back: memory may answer different cores in any order.

No core lets another one wait: it takes what comes, and has the beats of a write when it asks for it
(:mod:`fpgrad.gateware.axi`).

Timing, in clock cycles: every input goes into a register, and every output comes from one. What a core has on AR, AW
or W in cycle c is on the port in c + 2, unless other cores go first; of W, at the earliest one cycle after its address
was. What is on R in cycle c is at its core in c + 1, and so is what is on B.
"""

from amaranth.hdl import Cat, Module, Shape, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fpgrad.gateware.axi import Axi, Buffer, core_id_bits, id_bits, ports
from fpgrad.isa.config import MachineConfig

#: Bursts of writes whose beats are not yet all on the port.
OWNERS = 16


class RoundRobin(wiring.Component):
    """Joins streams: of those that have something, the next after the one that was last.

    Args:
        shape: what the streams carry.
        count: how many there are, at least 2.

    Members:
        clear: the first stream was last, from the next cycle on.
        i: the streams.
        o: ``item``, and ``source``: the number of its stream. From a register.
    """

    def __init__(self, shape: Shape | data.Layout, count: int) -> None:
        self._count = count
        joined = data.StructLayout({"item": shape, "source": ceil_log2(count)})
        super().__init__(
            {
                "clear": In(1),
                "i": In(stream.Signature(shape)).array(count),
                "o": Out(stream.Signature(joined)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """For each stream that may have been last an order of the others."""
        m = Module()
        m.submodules.buffer = buffer = Buffer(self.o.payload.shape())
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        last, chosen = Signal(range(self._count)), Signal(range(self._count))
        with m.Switch(last):
            for was in range(self._count):
                with m.Case(was):
                    # Later statements win: from the last choice to the first.
                    for distance in reversed(range(1, self._count + 1)):
                        n = (was + distance) % self._count
                        with m.If(self.i[n].valid):
                            m.d.comb += chosen.eq(n)
        for n, source in enumerate(self.i):
            with m.If(chosen == n):
                m.d.comb += [
                    buffer.i.payload.item.eq(source.payload),
                    buffer.i.payload.source.eq(n),
                    buffer.i.valid.eq(source.valid),
                    source.ready.eq(buffer.i.ready),
                ]
        with m.If(buffer.i.valid & buffer.i.ready):
            m.d.sync += last.eq(chosen)
        with m.If(self.clear):
            m.d.sync += last.eq(0)
        return m


class Interconnect(wiring.Component):
    """Between the ports of the cores and the chip's.

    Members:
        clear: a run begins: turns are as in any other.
        axi: those of the cores, see :class:`fpgrad.gateware.axi.Axi`.
        m_axi_*: the chip's, with wider IDs.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {"clear": In(1), "axi": In(Axi(config)).array(config.cores), **port_members(config)}
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Address channels; data of writes; what comes back."""
        m = Module()
        self._addresses(m, "ar")
        m.submodules.owners = owners = fifo.SyncFIFO(
            width=ceil_log2(self._config.cores), depth=OWNERS
        )
        taken, source = self._addresses(m, "aw", owners.w_rdy)
        m.d.comb += [owners.w_en.eq(taken), owners.w_data.eq(source)]
        self._write_data(m, owners)
        self._read_data(m)
        self._answers(m)
        return m

    def _port(self, name: str) -> Signal:
        return getattr(self, f"m_axi_{name}")

    def _addresses(self, m: Module, channel: str, room: Value | int = 1) -> tuple[Value, Value]:
        """Joins the cores' addresses; whether one leaves for the port in this cycle, and whose it is."""
        names = ("id", "addr", "len", "size", "burst")
        layout = data.StructLayout(
            {name: len(getattr(self.axi[0], channel + name)) for name in names}
        )
        m.submodules[f"{channel}_turns"] = turns = RoundRobin(layout, self._config.cores)
        for core, port in enumerate(self.axi):
            m.submodules[f"{channel}_buffer{core}"] = buffer = Buffer(layout)
            for name in names:
                m.d.comb += buffer.i.payload[name].eq(getattr(port, channel + name))
            m.d.comb += [
                buffer.i.valid.eq(getattr(port, f"{channel}valid")),
                getattr(port, f"{channel}ready").eq(buffer.i.ready),
            ]
            wiring.connect(m, buffer.o, turns.i[core])
        m.d.comb += turns.clear.eq(self.clear)
        address, taken = turns.o.payload, Signal(name=f"{channel}_taken")
        for name in names[1:]:
            m.d.comb += self._port(channel + name).eq(address.item[name])
        m.d.comb += [
            self._port(f"{channel}id").eq(Cat(address.item.id, address.source)),
            self._port(f"{channel}valid").eq(turns.o.valid & room),
            turns.o.ready.eq(self._port(f"{channel}ready") & room),
            taken.eq(turns.o.valid & turns.o.ready),
        ]
        return taken, address.source

    def _write_data(self, m: Module, owners: fifo.SyncFIFO) -> None:
        """Whole bursts, in the order of their addresses."""
        names = ("data", "strb", "last")
        layout = data.StructLayout({name: len(getattr(self.axi[0], f"w{name}")) for name in names})
        m.submodules.w_buffer = out = Buffer(layout)
        for core, port in enumerate(self.axi):
            m.submodules[f"w_buffer{core}"] = buffer = Buffer(layout)
            m.d.comb += [buffer.i.payload[name].eq(getattr(port, f"w{name}")) for name in names]
            m.d.comb += [buffer.i.valid.eq(port.wvalid), port.wready.eq(buffer.i.ready)]
            with m.If(owners.r_rdy & (owners.r_data == core)):
                m.d.comb += [
                    out.i.payload.eq(buffer.o.payload),
                    out.i.valid.eq(buffer.o.valid),
                    buffer.o.ready.eq(out.i.ready),
                ]
        m.d.comb += owners.r_en.eq(out.i.valid & out.i.ready & out.i.payload.last)
        m.d.comb += [self._port(f"w{name}").eq(out.o.payload[name]) for name in names]
        m.d.comb += [self._port("wvalid").eq(out.o.valid), out.o.ready.eq(self._port("wready"))]

    def _read_data(self, m: Module) -> None:
        """A register; cores always take what is in it."""
        names = ("id", "data", "resp", "last")
        layout = data.StructLayout({name: len(self._port(f"r{name}")) for name in names})
        beat, there = Signal(layout, reset_less=True), Signal()
        m.d.comb += self._port("rready").eq(1)
        m.d.sync += there.eq(self._port("rvalid"))
        m.d.sync += [beat[name].eq(self._port(f"r{name}")) for name in names]
        own = core_id_bits(self._config)
        for core, port in enumerate(self.axi):
            m.d.comb += [getattr(port, f"r{name}").eq(beat[name]) for name in names[1:]]
            m.d.comb += [
                port.rid.eq(beat.id[:own]),
                port.rvalid.eq(there & (beat.id[own:] == core)),
            ]

    def _answers(self, m: Module) -> None:
        """Cores always take them."""
        own = core_id_bits(self._config)
        m.d.comb += self._port("bready").eq(1)
        for core, port in enumerate(self.axi):
            m.d.sync += [
                port.bvalid.eq(self._port("bvalid") & (self._port("bid")[own:] == core)),
                port.bresp.eq(self._port("bresp")),
                port.bid.eq(self._port("bid")[:own]),
            ]


def port_members(config: MachineConfig) -> dict[str, wiring.Member]:
    """The chip's port."""
    chip = ports(config, id_bits(config))
    return {f"m_axi_{name}": flow(bits) for name, (flow, bits) in chip.items()}


__all__ = ["OWNERS", "Interconnect", "RoundRobin", "port_members"]
