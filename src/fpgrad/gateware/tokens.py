"""Token channels: the counters by which the four units wait for each other."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from fpgrad.isa.instructions import Unit

#: Bits of a channel's counter, and of an instruction's token fields.
CHANNEL_BITS = 8
FIELD_BITS = 4

UNITS = len(Unit)

Channels = data.ArrayLayout(CHANNEL_BITS, UNITS)
Fields = data.ArrayLayout(FIELD_BITS, UNITS)


class TokenChannels(wiring.Component):
    """``channel[source][destination]`` for all pairs of units.

    A channel takes what its source signals and gives what its destination takes, both in the same
    cycle if need be; what is signalled in a cycle can be taken from the next cycle on.

    Members:
        go: loads the channels with ``initial``.
        initial: ``initial[source]`` holds a count for each destination.
        signal: ``signal[source]`` are the tokens that a unit adds in this cycle, by destination.
        take: ``take[destination]`` are the tokens that a unit removes in this cycle, by source.
        available: ``available[destination]`` are the channels to a unit, by source.
        overflow: a channel ran over its counter since ``go``.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "go": In(1),
                "initial": In(Channels).array(UNITS),
                "signal": In(Fields).array(UNITS),
                "take": In(Fields).array(UNITS),
                "available": Out(Channels).array(UNITS),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """One counter for each pair of units."""
        del platform
        m = Module()
        over = []
        for source in range(UNITS):
            for destination in range(UNITS):
                count = Signal(CHANNEL_BITS, name=f"channel_{source}_{destination}")
                total = Signal(CHANNEL_BITS + 1, name=f"total_{source}_{destination}")
                m.d.comb += total.eq(
                    count + self.signal[source][destination] - self.take[destination][source]
                )
                m.d.sync += count.eq(Mux(self.go, self.initial[source][destination], total))
                m.d.comb += self.available[destination][source].eq(count)
                over.append(total[-1])
        with m.If(self.go):
            m.d.sync += self.overflow.eq(0)
        with m.Elif(Cat(over).any()):
            m.d.sync += self.overflow.eq(1)
        return m
