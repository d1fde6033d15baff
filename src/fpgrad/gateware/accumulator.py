"""Block accumulators: integer lanes of one output tile, to which shifted products are added.

The largest product exponent of the output tile is known before its first product, so each product
only shifts right by the difference (with a floor) and the sum needs no normalisation. Sums that
leave the lane saturate and leave a mark, which stays with the element.

One row a cycle; the accumulators of a row may be used again after :data:`REUSE` cycles. Timing: sums
offered in cycle c are shifted and their accumulators read in c+1, added in c+2, written back at the
end of c+2, and rows of a last product come out as magnitudes in cycle c+3.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from fpgrad.formats import AccumulatorFormat, TileFormat

#: Cycles from sums to magnitudes.
ACCUMULATOR_LATENCY = 3
#: Cycles after which the same row can be added to again.
REUSE = 3


def largest_shift(tile: TileFormat, acc: AccumulatorFormat) -> int:
    """The shift from which on only a product's sign is left."""
    return tile.product_bits + acc.guard_bits - 1


class AccumulatorArray(wiring.Component):
    """``T`` lanes by ``T`` rows of accumulators.

    Members, all of the cycle in which the row's ``sums`` are valid:
        valid: there is a row.
        row: its number in the output tile.
        first, last: it is of the output tile's first, last product.
        zero: one of the tiles is zero: nothing is added.
        shift: largest exponent less the product's, at most ``largest_shift``.

    Members, :data:`ACCUMULATOR_LATENCY` cycles later:
        out_valid: a row of a last product.
        negative, magnitude: its elements, without the guard bits removed.
        saturated: elements that were clamped at any product.
    """

    sums: Any
    valid: Signal
    row: Signal
    first: Signal
    last: Signal
    zero: Signal
    shift: Signal
    out_valid: Signal
    negative: Signal
    magnitude: Any
    saturated: Signal

    def __init__(self, tile: TileFormat, acc: AccumulatorFormat) -> None:
        self.tile, self.acc = tile, acc
        side = tile.side
        super().__init__(
            {
                "sums": In(signed(tile.product_bits)).array(side),
                "valid": In(1),
                "row": In(range(side)),
                "first": In(1),
                "last": In(1),
                "zero": In(1),
                "shift": In(bits_for(largest_shift(tile, acc))),
                "out_valid": Out(1),
                "negative": Out(side),
                "magnitude": Out(acc.bits - 1).array(side),
                "saturated": Out(side),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A memory of T words a lane, and one of T×T flags."""
        del platform
        m = Module()
        side, bits, guard = self.tile.side, self.acc.bits, self.acc.guard_bits
        limit = (1 << (bits - 1)) - 1
        shifted_width = self.tile.product_bits + guard
        total_width = max(bits, shifted_width) + 1

        # Stage 1 shifts and reads, stage 2 holds the new total.
        valid1, first1, last1, valid2, last2 = (Signal() for _ in range(5))
        row1, row2 = (Signal(range(side), reset_less=True) for _ in range(2))
        m.d.sync += [
            valid1.eq(self.valid),
            first1.eq(self.first),
            last1.eq(self.last),
            row1.eq(self.row),
            valid2.eq(valid1),
            last2.eq(last1),
            row2.eq(row1),
            self.out_valid.eq(valid2 & last2),
        ]

        m.submodules.flags = flags = Memory(shape=unsigned(side), depth=side, init=[])
        flags_read, flags_write = flags.read_port(), flags.write_port()
        flags2, over = Signal(side, reset_less=True), Signal(side)
        m.d.comb += [
            flags_read.en.eq(self.valid),
            flags_read.addr.eq(self.row),
            flags_write.en.eq(valid2),
            flags_write.addr.eq(row2),
            flags_write.data.eq(flags2 | over),
        ]
        with m.If(valid1):
            m.d.sync += flags2.eq(Mux(first1, 0, flags_read.data))
        with m.If(valid2):
            m.d.sync += self.saturated.eq(flags2 | over)

        for j in range(side):
            lane = Memory(shape=signed(bits), depth=side, init=[])
            m.submodules[f"lane_{j}"] = lane
            read, write = lane.read_port(), lane.write_port()
            shifted = Signal(signed(shifted_width), name=f"shifted_{j}", reset_less=True)
            total = Signal(signed(total_width), name=f"total_{j}", reset_less=True)
            clamped = Signal(signed(bits), name=f"clamped_{j}")
            with m.If(self.valid):
                wide = Cat(*[0] * guard, self.sums[j]).as_signed() if guard else self.sums[j]
                m.d.sync += shifted.eq(Mux(self.zero, 0, wide >> self.shift))
            with m.If(valid1):
                m.d.sync += total.eq(shifted + Mux(first1, 0, read.data))
            # Outside ±limit: the upper bits are not all equal, or it is the most negative integer.
            upper = total[bits - 1 :]
            negative = total[-1]
            lowest = upper.all() & (total[: bits - 1] == 0)
            m.d.comb += [
                over[j].eq((upper.any() & ~upper.all()) | lowest),
                clamped.eq(total),
                read.en.eq(self.valid),
                read.addr.eq(self.row),
                write.en.eq(valid2),
                write.addr.eq(row2),
                write.data.eq(clamped),
            ]
            with m.If(over[j]):
                m.d.comb += clamped.eq(Mux(negative, -limit, limit))
            with m.If(valid2 & last2):
                m.d.sync += [
                    self.negative[j].eq(negative),
                    self.magnitude[j].eq(
                        Mux(over[j], limit, Mux(negative, -total, total))[: bits - 1]
                    ),
                ]
        return m
