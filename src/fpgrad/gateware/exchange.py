"""The exchange: rows that all cores send are added in the order of the cores, and every core receives the sums.

A chain of adders, one for each core but the first: a partial sum waits at the next adder for that core's row. So the
n-th rows need not come together: a core that is early waits, and the chain is at work on as many rows as it has
adders. With one core there is a queue, and the sums are the rows.

Timing, in clock cycles: a row a cycle in all streams. A row that is taken in cycle c can be added in c + 1; a sum is
at the next adder, or at the cores, ``LINK_LATENCY`` cycles after it was begun. Whatever is offered comes from
registers. The sum of the n-th rows leaves when all cores have taken it.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out, connect
from amaranth.utils import bits_for

from fpgrad.gateware.axi import Buffer
from fpgrad.gateware.dma import row_layout
from fpgrad.gateware.leave import COUNTER_BITS, ones
from fpgrad.gateware.smallfloat import ALU_LATENCY, AluPipeline, register
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Alu

#: Cycles from two rows to their sum.
LINK_LATENCY = ALU_LATENCY + 1

#: Sums in and behind an adder: enough for one a cycle.
LINK_QUEUE = 8


def partial_layout(config: MachineConfig) -> data.StructLayout:
    """The sum of some rows, and which of its numbers were clamped on the way."""
    return data.StructLayout({"row": row_layout(config), "clamped": config.side})


class Link(wiring.Component):
    """Adds a core's rows to the sums of those of the cores before it.

    Members:
        partial, row: the operands.
        total: the sums, in order.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        partial = stream.Signature(partial_layout(config))
        super().__init__(
            {
                "partial": In(partial),
                "row": In(stream.Signature(row_layout(config))),
                "total": Out(partial),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """An adder a lane, and a queue with room for all that is in them."""
        m = Module()
        number, layout = self._config.vector.number, partial_layout(self._config)
        room = Signal(range(LINK_QUEUE + 1), init=LINK_QUEUE)
        both, leaves, coming = Signal(), Signal(), Signal(ALU_LATENCY)
        m.submodules.queue = queue = fifo.SyncFIFO(width=layout.size, depth=LINK_QUEUE)
        came = data.View(layout, queue.w_data)
        m.d.comb += [
            both.eq(self.partial.valid & self.row.valid & (room != 0)),
            self.partial.ready.eq(self.row.valid & (room != 0)),
            self.row.ready.eq(self.partial.valid & (room != 0)),
            queue.w_en.eq(coming[-1]),
            queue.r_en.eq(self.total.ready),
            self.total.payload.eq(queue.r_data),
            self.total.valid.eq(queue.r_rdy),
            leaves.eq(self.total.valid & self.total.ready),
        ]
        m.d.sync += [coming.eq(Cat(both, coming)), room.eq(room - both + leaves)]

        clamped: Value = self.partial.payload.clamped
        for stage in range(ALU_LATENCY):
            clamped = register(m, clamped, f"clamped{stage + 1}")
        saturated = Signal(self._config.side)
        m.d.comb += came.clamped.eq(clamped | saturated)
        operands = zip(self.partial.payload.row, self.row.payload, strict=True)
        for lane, (product, addend) in enumerate(operands):
            m.submodules[f"lane{lane}"] = adder = AluPipeline(number)
            m.d.comb += [
                # Canonical, as the adder wants it: the first core's row may hold any code.
                adder.product.eq(Mux(_is_zero(self._config, product), 0, product)),
                adder.addend.eq(addend),
                adder.addend_zero.eq(_is_zero(self._config, addend)),
                adder.alu.eq(Const(Alu.ADD, 3)),
                came.row[lane].eq(adder.result),
                saturated[lane].eq(adder.saturated),
            ]
        return m


def _is_zero(config: MachineConfig, code: Value) -> Value:
    return ~code[config.vector.number.mantissa_bits : -1].any()


class Exchange(wiring.Component):
    """Sums of rows over the cores.

    Members:
        rows: each core's rows.
        sums: what each core receives.
        left: a row is here that not all cores have taken.
        saturated: numbers that an addition clamped; ``clear`` sets it to 0.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        rows = stream.Signature(row_layout(config))
        super().__init__(
            {
                "rows": In(rows).array(config.cores),
                "sums": Out(rows).array(config.cores),
                "left": Out(1),
                "clear": In(1),
                "saturated": Out(COUNTER_BITS),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """A chain of links, then the copies."""
        m = Module()
        config = self._config
        buffers = []
        for core in range(config.cores):
            m.submodules[f"buffer{core}"] = buffer = Buffer(row_layout(config))
            connect(m, wiring.flipped(self.rows[core]), buffer.i)
            buffers.append(buffer)
        if config.cores == 1:
            connect(m, buffers[0].o, wiring.flipped(self.sums[0]))
            m.d.comb += self.left.eq(buffers[0].o.valid)
            return m
        links = [Link(config) for _ in buffers[1:]]
        m.d.comb += [
            links[0].partial.payload.row.eq(buffers[0].o.payload),
            links[0].partial.valid.eq(buffers[0].o.valid),
            buffers[0].o.ready.eq(links[0].partial.ready),
        ]
        for core, link in enumerate(links, 1):
            m.submodules[f"link{core}"] = link
            connect(m, buffers[core].o, link.row)
            if core > 1:
                connect(m, links[core - 2].total, link.partial)
        self._copies(m, links[-1].total)
        waiting = [part.valid for part in (*(b.o for b in buffers), *(k.total for k in links))]
        m.d.comb += self.left.eq(Cat(waiting).any())
        return m

    def _copies(self, m: Module, total: wiring.PureInterface) -> None:
        """Every core takes a sum when it can; the last one takes it away."""
        taken, takes = Signal(self._config.cores), Signal(self._config.cores)
        m.d.comb += total.ready.eq((taken | takes).all())
        for core, sums in enumerate(self.sums):
            m.d.comb += [
                sums.payload.eq(total.payload.row),
                sums.valid.eq(total.valid & ~taken[core]),
                takes[core].eq(sums.ready),
            ]
        with m.If(total.valid):
            m.d.sync += taken.eq(Mux(total.ready, 0, taken | takes))
        clamped = Signal(bits_for(self._config.side))
        counts = total.valid & total.ready
        m.d.sync += clamped.eq(Mux(counts, ones(total.payload.clamped), 0))
        with m.If(self.clear):
            m.d.sync += self.saturated.eq(0)
        with m.Else():
            m.d.sync += self.saturated.eq(self.saturated + clamped)


__all__ = ["LINK_LATENCY", "LINK_QUEUE", "Exchange", "Link"]
