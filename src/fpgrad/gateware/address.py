"""Loop nests and the addresses that walk them, by addition alone."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.isa.instructions import COUNT_BITS, ROW_BITS


class LoopNest(wiring.Component):
    """Three nested loops, ``i0`` innermost.

    Members:
        load: take the trip counts ``n2``, ``n1``, ``n0`` (at least 1) and start.
        single: with ``load``, do one iteration whatever the trip counts.
        step: go on to the next iteration.
        i0: number of the iteration of the innermost loop; stays at 64 and above, its lowest two
            bits go on counting.
        last0, last1, last2: this iteration is the last one of its loop.
        tail: fewer than four iterations of the innermost loop follow.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "load": In(1),
                "single": In(1),
                "n2": In(COUNT_BITS),
                "n1": In(COUNT_BITS),
                "n0": In(COUNT_BITS),
                "step": In(1),
                "i0": Out(7),
                "last0": Out(1),
                "last1": Out(1),
                "last2": Out(1),
                "tail": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Down counters, whose ends are known one cycle ahead."""
        m = Module()
        counts = (self.n0, self.n1, self.n2)
        ends = (self.last0, self.last1, self.last2)
        advance = (self.step, self.step & self.last0, self.step & self.last0 & self.last1)
        for loop in range(3):
            left = Signal(COUNT_BITS, name=f"left{loop}")
            total = Signal(COUNT_BITS, name=f"total{loop}")
            following = Signal(COUNT_BITS, name=f"following{loop}")
            m.d.comb += following.eq(Mux(ends[loop], total, left - 1))
            with m.If(self.load):
                first = Mux(self.single, 0, counts[loop] - 1)[:COUNT_BITS]
                m.d.sync += [
                    left.eq(first),
                    total.eq(first),
                    ends[loop].eq(self.single | (counts[loop] == 1)),
                ]
                if loop == 0:
                    m.d.sync += self.tail.eq(self.single | (counts[loop] <= 4))
            with m.Elif(advance[loop]):
                m.d.sync += [left.eq(following), ends[loop].eq(following == 0)]
                if loop == 0:
                    m.d.sync += self.tail.eq(following < 4)
        with m.If(self.load | (self.step & self.last0)):
            m.d.sync += self.i0.eq(0)
        with m.Elif(self.step):
            m.d.sync += self.i0[:2].eq(self.i0[:2] + 1)
            with m.If(~self.i0[-1]):
                m.d.sync += self.i0.eq(self.i0 + 1)
        return m


class AddressGenerator(wiring.Component):
    """``base + i2*s2 + i1*s1 + i0*s0`` for each iteration of a :class:`LoopNest`.

    Args:
        width: bits of the address; sums wrap, so only the final address must be in range.

    Members:
        load: take base and strides; the address is ``base``.
        step, last0, last1: as in the loop nest.
        restart: with ``step`` inside the innermost loop, begin its addresses anew.
    """

    def __init__(self, *, width: int) -> None:
        self._width = width
        super().__init__(
            {
                "load": In(1),
                "base": In(ROW_BITS),
                "s2": In(signed(ROW_BITS)),
                "s1": In(signed(ROW_BITS)),
                "s0": In(signed(ROW_BITS)),
                "step": In(1),
                "last0": In(1),
                "last1": In(1),
                "restart": In(1),
                "address": Out(width),
            }
        )

    @property
    def width(self) -> int:
        """Bits of the address."""
        return self._width

    def elaborate(self, platform: object) -> Module:
        """One adder; each loop's own start is kept, and advanced when that loop is."""
        m = Module()
        start1, start2 = Signal(self._width), Signal(self._width)
        s0, s1, s2 = Signal(self._width), Signal(self._width), Signal(self._width)
        following = Signal(self._width)
        m.d.comb += following.eq(
            Mux(self.last0, Mux(self.last1, start2, start1), self.address)
            + Mux(self.last0, Mux(self.last1, s2, s1), s0)
        )
        with m.If(self.load):
            m.d.sync += [
                self.address.eq(self.base),
                start1.eq(self.base),
                start2.eq(self.base),
                s0.eq(self.s0),
                s1.eq(self.s1),
                s2.eq(self.s2),
            ]
        with m.Elif(self.step):
            m.d.sync += self.address.eq(Mux(self.restart & ~self.last0, start1, following))
            with m.If(self.last0):
                m.d.sync += start1.eq(following)
                with m.If(self.last1):
                    m.d.sync += start2.eq(following)
        return m
