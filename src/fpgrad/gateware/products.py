"""The order of a matrix instruction's tile products, and where their tiles are."""

from typing import Any

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import COUNT_BITS, TILE_BITS, Unit


class ProductWalker(wiring.Component):
    """The products of an instruction in order: k innermost, then i0, then i1.

    Members:
        load, instruction: start with this instruction's first product.
        step: go to the next product (after the last one: undefined until loaded).
        streamed, stationary: tile addresses of the product.
        first, last: it is the output tile's first, last product.
        end: it is the instruction's last product.
    """

    load: Signal
    instruction: Any
    step: Signal
    streamed: Signal
    stationary: Signal
    first: Signal
    last: Signal
    end: Signal

    def __init__(self) -> None:
        super().__init__(
            {
                "load": In(1),
                "instruction": In(unit_layout(Unit.MATRIX)),
                "step": In(1),
                "streamed": Out(TILE_BITS),
                "stationary": Out(TILE_BITS),
                "first": Out(1),
                "last": Out(1),
                "end": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Counters that count down, and an address for each loop that ends."""
        del platform
        m = Module()
        new = self.instruction
        count = unsigned(COUNT_BITS)
        k, n0, k_left, n0_left, n1_left = (Signal(count, reset_less=True) for _ in range(5))
        last_column, last_row = Signal(), Signal()
        m.d.comb += [
            self.last.eq(k_left == 1),
            last_column.eq(n0_left == 1),
            last_row.eq(n1_left == 1),
            self.end.eq(self.last & last_column & last_row),
        ]
        with m.If(self.load):
            m.d.sync += [
                k.eq(new.k),
                n0.eq(new.n0),
                k_left.eq(new.k),
                n0_left.eq(new.n0),
                n1_left.eq(new.n1),
                self.first.eq(1),
            ]
        with m.Elif(self.step):
            m.d.sync += [k_left.eq(k_left - 1), self.first.eq(self.last)]
            with m.If(self.last):
                m.d.sync += [k_left.eq(k), n0_left.eq(n0_left - 1)]
                with m.If(last_column):
                    m.d.sync += [n0_left.eq(n0), n1_left.eq(n1_left - 1)]
        for fields, address in (
            (new.streamed, self.streamed),
            (new.stationary, self.stationary),
        ):
            # Where the i1 and the i0 loop stand.
            outer, inner, s1, s0, sk = (
                Signal(unsigned(TILE_BITS), reset_less=True) for _ in range(5)
            )
            with m.If(self.load):
                m.d.sync += [
                    s1.eq(fields.s1),
                    s0.eq(fields.s0),
                    sk.eq(fields.sk),
                    *(a.eq(fields.base) for a in (outer, inner, address)),
                ]
            with m.Elif(self.step):
                with m.If(~self.last):
                    m.d.sync += address.eq(address + sk)
                with m.Elif(~last_column):
                    m.d.sync += [a.eq(inner + s0) for a in (inner, address)]
                with m.Else():
                    m.d.sync += [a.eq(outer + s1) for a in (outer, inner, address)]
        return m
