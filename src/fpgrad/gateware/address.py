"""Loop nests and the addresses that walk them, by addition alone.

Loops are numbered from the inside: loop 0 is the innermost one, and stride 0 belongs to it.
"""

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.isa.instructions import COUNT_BITS, ROW_BITS


class LoopNest(wiring.Component):
    """Nested loops.

    Args:
        levels: how many.

    Members:
        load: take the trip ``counts`` (at least 1) and start.
        single: with ``load``, do one iteration whatever the trip counts.
        step: go on to the next iteration.
        last: for each loop, this iteration is the last one of it.
        level: the loop that the next step advances; those inside it start again.
        end: this iteration is the last one of all loops.
        i0: number of the iteration of the innermost loop; stays at 64 and above, its lowest two
            bits go on counting.
        tail: fewer than four iterations of the innermost loop follow.
    """

    def __init__(self, *, levels: int) -> None:
        self._levels = levels
        super().__init__(
            {
                "load": In(1),
                "single": In(1),
                "counts": In(COUNT_BITS).array(levels),
                "step": In(1),
                "last": Out(levels),
                "level": Out(range(levels)),
                "end": Out(1),
                "i0": Out(7),
                "tail": Out(1),
            }
        )

    @property
    def levels(self) -> int:
        """How many loops."""
        return self._levels

    def elaborate(self, platform: object) -> Module:
        """Down counters, whose ends are known one cycle ahead."""
        m = Module()
        # The loops inside this one are at their last iterations.
        inside: Value = Const(1, 1)
        m.d.comb += self.level.eq(self._levels - 1)
        for loop in range(self._levels):
            left = Signal(COUNT_BITS, name=f"left{loop}", reset_less=True)
            total = Signal(COUNT_BITS, name=f"total{loop}", reset_less=True)
            following = Signal(COUNT_BITS, name=f"following{loop}")
            m.d.comb += following.eq(Mux(self.last[loop], total, left - 1))
            with m.If(self.load):
                first = Mux(self.single, 0, self.counts[loop] - 1)[:COUNT_BITS]
                m.d.sync += [
                    left.eq(first),
                    total.eq(first),
                    self.last[loop].eq(self.single | (self.counts[loop] == 1)),
                ]
                if loop == 0:
                    m.d.sync += self.tail.eq(self.single | (self.counts[loop] <= 4))
            with m.Elif(self.step & inside):
                m.d.sync += [left.eq(following), self.last[loop].eq(following == 0)]
                if loop == 0:
                    m.d.sync += self.tail.eq(following < 4)
            with m.If(inside & ~self.last[loop]):
                m.d.comb += self.level.eq(loop)
            inside = inside & self.last[loop]
        m.d.comb += self.end.eq(inside)
        with m.If(self.load | (self.step & self.last[0])):
            m.d.sync += self.i0.eq(0)
        with m.Elif(self.step):
            m.d.sync += self.i0[:2].eq(self.i0[:2] + 1)
            with m.If(~self.i0[-1]):
                m.d.sync += self.i0.eq(self.i0 + 1)
        return m


class AddressGenerator(wiring.Component):
    """``base`` plus the sum of number times stride of each loop, for each iteration of a :class:`LoopNest`.

    Args:
        width: bits of the address; sums wrap, so only the final address must be in range.
        levels: how many loops.

    Members:
        load: take ``base`` and ``strides``; the address is ``base``.
        step, level: as in the loop nest.
        restart: with ``step`` inside the innermost loop, begin its addresses anew.
    """

    def __init__(self, *, width: int, levels: int) -> None:
        self._width, self._levels = width, levels
        super().__init__(
            {
                "load": In(1),
                "base": In(ROW_BITS),
                "strides": In(signed(ROW_BITS)).array(levels),
                "step": In(1),
                "level": In(range(levels)),
                "restart": In(1),
                "address": Out(width),
            }
        )

    @property
    def width(self) -> int:
        """Bits of the address."""
        return self._width

    @property
    def levels(self) -> int:
        """How many loops."""
        return self._levels

    def elaborate(self, platform: object) -> Module:
        """One adder; where each loop stands is kept, and advanced when that loop is."""
        m = Module()
        # Where the loops inside each loop begin; of the innermost one that is the address itself.
        starts = [self.address]
        starts += [
            Signal(self._width, name=f"start{loop}", reset_less=True)
            for loop in range(1, self._levels)
        ]
        origin, stride, following = (Signal(self._width) for _ in range(3))
        m.d.comb += following.eq(origin + stride)
        held = [
            Signal(self._width, name=f"stride{loop}", reset_less=True)
            for loop in range(self._levels)
        ]
        with m.Switch(self.level):
            for loop in range(self._levels):
                with m.Case(loop):
                    m.d.comb += [origin.eq(starts[loop]), stride.eq(held[loop])]
        with m.If(self.load):
            m.d.sync += [start.eq(self.base) for start in starts]
            m.d.sync += [s.eq(given) for s, given in zip(held, self.strides, strict=True)]
        with m.Elif(self.step):
            m.d.sync += self.address.eq(following)
            for loop, start in enumerate(starts[1:], 1):
                with m.If(self.level >= loop):
                    m.d.sync += start.eq(following)
            with m.If(self.restart & (self.level == 0)):
                m.d.sync += self.address.eq(starts[1])
        return m
