"""The order of a matrix instruction's tile products, and where their tiles are."""

from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.gateware.address import AddressGenerator, LoopNest
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import TILE_BITS, Unit

#: The loops of an instruction from the inside, and the strides that belong to them.
COUNTS = ("k0", "k1", "k2", "n0", "n1", "n2")
STRIDES = ("t0", "t1", "t2", "s0", "s1", "s2")


class ProductWalker(wiring.Component):
    """The products of an instruction in order: the loops k over the terms of a sum inside the loops n.

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
        """One loop nest, an address for each operand."""
        del platform
        m = Module()
        new = self.instruction
        m.submodules.nest = nest = LoopNest(levels=len(COUNTS))
        m.d.comb += [
            nest.load.eq(self.load),
            nest.step.eq(self.step),
            *(count.eq(new[name]) for count, name in zip(nest.counts, COUNTS, strict=True)),
            self.last.eq(nest.last[:3].all()),
            self.end.eq(nest.end),
        ]
        with m.If(self.load):
            m.d.sync += self.first.eq(1)
        with m.Elif(self.step):
            m.d.sync += self.first.eq(self.last)
        for name in ("streamed", "stationary"):
            fields = new[name]
            m.submodules[name] = walk = AddressGenerator(width=TILE_BITS, levels=len(COUNTS))
            m.d.comb += [
                walk.load.eq(self.load),
                walk.base.eq(fields.base),
                *(s.eq(fields[stride]) for s, stride in zip(walk.strides, STRIDES, strict=True)),
                walk.step.eq(self.step),
                walk.level.eq(nest.level),
                getattr(self, name).eq(walk.address),
            ]
        return m
