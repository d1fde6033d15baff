"""A lane's random generator: the bits of :mod:`fpgrad.formats.random`."""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.formats import FloatFormat

STATE_BITS = 32


class RandomGenerator(wiring.Component):
    """One xorshift32: ``value`` is the number in [1, 2) that the next state gives.

    With ``step`` that state is taken at the end of the cycle; with ``load``, the code ``seed``
    becomes the upper end of the state, whose lowest bit is set (state 0 would stay 0).
    """

    def __init__(self, number: FloatFormat) -> None:
        self._number = number
        super().__init__(
            {
                "step": In(1),
                "load": In(1),
                "seed": In(number.width),
                "value": Out(number.width),
            }
        )

    @property
    def number(self) -> FloatFormat:
        """The format of ``value``."""
        return self._number

    def elaborate(self, platform: object) -> Module:
        """Three shifts, three exclusive-ors."""
        m = Module()
        fmt = self._number
        state = Signal(STATE_BITS, init=1)
        x1, x2, x3 = Signal(STATE_BITS), Signal(STATE_BITS), Signal(STATE_BITS)
        m.d.comb += [
            x1.eq(state ^ (state << 13)),
            x2.eq(x1 ^ (x1 >> 17)),
            x3.eq(x2 ^ (x2 << 5)),
            self.value.eq(
                Cat(x3[STATE_BITS - fmt.mantissa_bits :], Const(fmt.bias, fmt.exponent_bits))
            ),
        ]
        with m.If(self.load):
            m.d.sync += state.eq(Cat(Const(0, STATE_BITS - fmt.width), self.seed) | 1)
        with m.Elif(self.step):
            m.d.sync += state.eq(x3)
        return m
