"""The exponent scanner: the largest product exponent of an output tile, before its first product.

A block accumulator only ever shifts right because the largest exponent of its sum is known at the
start. Exponents are few: one pair a product, against T rows. The scanner reads one pair a cycle, and
leaves the ports to the loader in the cycles in which that wants the exponents of a single product.
"""

from typing import Any

from amaranth.hdl import Array, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fpgrad.gateware.memory import WordReadSignature
from fpgrad.gateware.products import ProductWalker
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import TILE_BITS, Unit

#: Output tiles whose largest exponent can be known ahead of the array; a power of two.
TOPS = 4


class ExponentScanner(wiring.Component):
    """Reads exponents: all those of an instruction for their maxima, and single pairs on demand.

    A pair's exponent is the sum of the two tiles' fields, or 0 when either is 0 (a tile of zeros).

    Members:
        start, instruction: scan this instruction; only when ``free``.
        free: the last instruction's last pair is being read in this cycle, or was.
        fetch, fetch_streamed, fetch_stationary: read this pair instead in this cycle.
        pair: its exponent, from three cycles after ``fetch`` until three after the next.
        known: an output tile that ``begin`` has not announced had its last pair read (or has it in
            this cycle); its maximum is at ``top`` three cycles later.
        begin: the next output tile's first product begins.
        top, pop: the oldest maximum, and that it was taken.
        streamed, stationary: ports of the tiles' exponents.
    """

    start: Signal
    instruction: Any
    free: Signal
    fetch: Signal
    fetch_streamed: Signal
    fetch_stationary: Signal
    pair: Signal
    known: Signal
    begin: Signal
    top: Signal
    pop: Signal
    streamed: Any
    stationary: Any

    def __init__(self, *, exponent_bits: int, tiles: int) -> None:
        self.exponent_bits = exponent_bits
        words = WordReadSignature(width=exponent_bits, depth=tiles)
        super().__init__(
            {
                "start": In(1),
                "instruction": In(unit_layout(Unit.MATRIX)),
                "free": Out(1),
                "fetch": In(1),
                "fetch_streamed": In(TILE_BITS),
                "fetch_stationary": In(TILE_BITS),
                "pair": Out(exponent_bits + 1),
                "known": Out(1),
                "begin": In(1),
                "top": Out(exponent_bits + 1),
                "pop": In(1),
                "streamed": Out(words),
                "stationary": Out(words),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Addresses, one adder, one comparator, and a small ring of maxima."""
        del platform
        m = Module()
        shape = unsigned(self.exponent_bits + 1)
        m.submodules.walker = walker = ProductWalker()
        valid, read, read_last, room = Signal(), Signal(), Signal(), Signal()
        # kept: maxima read or being read and not taken; ahead: those whose tile has not begun.
        kept, ahead = Signal(range(TOPS + 1)), Signal(range(TOPS + 1))
        m.d.comb += [
            walker.load.eq(self.start),
            walker.instruction.eq(self.instruction),
            walker.step.eq(read),
            room.eq((kept != TOPS) | ~walker.last),
            read.eq(valid & ~self.fetch & room),
            read_last.eq(read & walker.last),
            self.free.eq(~valid | (read & walker.end)),
            self.known.eq((ahead != 0) | read_last),
        ]
        m.d.sync += [
            kept.eq(kept + read_last - self.pop),
            ahead.eq(ahead + read_last - self.begin),
        ]
        with m.If(self.free):
            m.d.sync += valid.eq(self.start)
        for port, single, scanned in (
            (self.streamed, self.fetch_streamed, walker.streamed),
            (self.stationary, self.fetch_stationary, walker.stationary),
        ):
            m.d.comb += [
                port.en.eq(self.fetch | read),
                port.address.eq(Mux(self.fetch, single, scanned)),
            ]

        total = Signal(shape, reset_less=True)
        zero = (self.streamed.data == 0) | (self.stationary.data == 0)
        m.d.sync += total.eq(Mux(zero, 0, self.streamed.data + self.stationary.data))
        fetched, fetched2, read1, read2 = (Signal() for _ in range(4))
        first1, first2, last1, last2 = (Signal(reset_less=True) for _ in range(4))
        m.d.sync += [
            fetched.eq(self.fetch),
            fetched2.eq(fetched),
            read1.eq(read),
            read2.eq(read1),
            first1.eq(walker.first),
            first2.eq(first1),
            last1.eq(walker.last),
            last2.eq(last1),
        ]
        with m.If(fetched2):
            m.d.sync += self.pair.eq(total)

        tops = Array(Signal(shape, name=f"top_{i}", reset_less=True) for i in range(TOPS))
        place_in, place_out = Signal(ceil_log2(TOPS)), Signal(ceil_log2(TOPS))
        largest, candidate = Signal(shape, reset_less=True), Signal(shape)
        m.d.comb += [
            candidate.eq(Mux(first2 | (total > largest), total, largest)),
            self.top.eq(tops[place_out]),
        ]
        with m.If(read2):
            m.d.sync += largest.eq(candidate)
            with m.If(last2):
                m.d.sync += [tops[place_in].eq(candidate), place_in.eq(place_in + 1)]
        with m.If(self.pop):
            m.d.sync += place_out.eq(place_out + 1)
        return m
