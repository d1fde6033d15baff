"""A queue of beats in a memory that is read with a clock, as block RAM is, and as quick as one of registers.

Timing, in clock cycles: what is taken in cycle c is offered from c + 1 on, and in every cycle one can be taken and
another leave.
"""

from amaranth.hdl import Module, Mux, Shape, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2


class BeatQueue(wiring.Component):
    """A stream through a memory.

    Args:
        shape: what it carries.
        depth: how many can wait; a power of two from 2 on.

    Members:
        i, o: its ends.
    """

    def __init__(self, shape: Shape | data.Layout, *, depth: int) -> None:
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """The oldest is on the memory's read port; what comes into an empty queue is kept beside it for a cycle."""
        m = Module()
        shape, bits = self.i.payload.shape(), exact_log2(self._depth)
        m.submodules.memory = beats = memory.Memory(shape=shape, depth=self._depth, init=[])
        write, read = beats.write_port(), beats.read_port()
        at, end, level = Signal(bits), Signal(bits), Signal(range(self._depth + 1))
        takes, leaves, empty, fresh = Signal(), Signal(), Signal(), Signal()
        kept = Signal(shape, reset_less=True)
        m.d.comb += [
            self.i.ready.eq(level != self._depth),
            self.o.valid.eq(level != 0),
            self.o.payload.eq(Mux(fresh, kept, read.data)),
            takes.eq(self.i.valid & self.i.ready),
            leaves.eq(self.o.valid & self.o.ready),
            empty.eq(Mux(leaves, level == 1, level == 0)),
            write.en.eq(takes),
            write.addr.eq(end),
            write.data.eq(self.i.payload),
            read.en.eq(leaves | fresh),
            read.addr.eq(at + leaves),
        ]
        m.d.sync += [
            at.eq(at + leaves),
            end.eq(end + takes),
            level.eq(level + takes - leaves),
            fresh.eq(takes & empty),
        ]
        with m.If(takes & empty):
            m.d.sync += kept.eq(self.i.payload)
        return m


__all__ = ["BeatQueue"]
