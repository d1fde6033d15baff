"""The special functions of a lane: one table of linear segments, and the float arithmetic around it.

All functions share one shifter, one table, one multiplier and one rounding: what differs is which
argument is looked up and which exponent the result gets. Bits as :mod:`fpgrad.formats.table`.
"""

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from fpgrad.formats import FloatFormat, Function, Table
from fpgrad.formats.table import RANGE_LOG2
from fpgrad.gateware.smallfloat import exceeds, finish, leading_zeros, register, round_up

#: Cycles from the argument to the function's value.
FUNCTION_LATENCY = 6

#: Fraction bits of a table's argument and result.
_POINT = 15


@dataclass(frozen=True)
class _Contents:
    """The tables of all functions in one read-only memory: sets of segments, one after the other."""

    first_set: dict[Function, int]
    base: tuple[int, ...]
    slope: tuple[int, ...]

    @classmethod
    def of(cls, tables: tuple[Table, ...]) -> "_Contents":
        first: dict[Function, int] = {}
        base: tuple[int, ...] = ()
        slope: tuple[int, ...] = ()
        for table in tables:
            first[table.function] = len(base) // table.format.segments
            base, slope = base + table.base, slope + table.slope
        return cls(first, base, slope)

    @property
    def base_bits(self) -> int:
        return max(b.bit_length() for b in self.base)

    @property
    def slope_bits(self) -> int:
        return max(bits_for(s, require_sign_bit=True) for s in self.slope)

    @property
    def words(self) -> list[int]:
        mask = (1 << self.slope_bits) - 1
        return [b << self.slope_bits | s & mask for b, s in zip(self.base, self.slope, strict=True)]


class FunctionPipeline(wiring.Component):
    """``value = function(argument)`` six cycles later, for the functions of ``tables``.

    Args:
        number: format of argument and value.
        tables: at least one; other function codes give values without meaning.
    """

    def __init__(self, number: FloatFormat, tables: tuple[Table, ...]) -> None:
        if not tables:
            raise ValueError("tables must hold at least one function's table")
        self._number = number
        self._tables = tables
        super().__init__(
            {
                "argument": In(number.width),
                "function": In(4),
                "value": Out(number.width),
                "saturated": Out(1),
            }
        )

    @property
    def number(self) -> FloatFormat:
        """The format of argument and value."""
        return self._number

    @property
    def functions(self) -> frozenset[Function]:
        """The functions that exist."""
        return frozenset(t.function for t in self._tables)

    def _any(self, code: Value, *functions: Function) -> Value:
        """Whether ``code`` is one of those ``functions`` that exist; a constant if none does."""
        there = self.functions.intersection(functions)
        if not there:
            return Const(0, 1)
        if there == self.functions:
            return Const(1, 1)
        return Cat(code == f for f in sorted(there)).any()

    def elaborate(self, platform: object) -> Module:
        """Shift; negate; look up; multiply; add and count zeros; normalise and round."""
        m = Module()
        fmt, bits, e_bits = self._number, self._number.mantissa_bits, self._number.exponent_bits
        form = self._tables[0].format
        segment_bits, rest_bits = form.index_bits, _POINT - form.index_bits
        contents = _Contents.of(self._tables)
        symmetric = (Function.TANH, Function.SIGMOID, Function.PHI)

        # 1: the argument as a number with 15 fraction bits and e_bits integer bits, cut off.
        sign, exponent, fraction = self.argument[-1], self.argument[bits:-1], self.argument[:bits]
        there = exponent.any()
        whole_bits = _POINT + e_bits
        significand = Cat(fraction, there)
        padding = whole_bits - (bits + 1)
        aligned = Cat(Const(0, padding), significand) if padding >= 0 else significand[-padding:]
        masked = Mux(there, aligned, 0)
        # No wider than its value: with copies of its sign, a simulator sees a loop in it.
        farthest = e_bits - 1 + fmt.bias
        amount = Signal(range(farthest - (1 << e_bits), farthest + max(RANGE_LOG2.values()) + 1))
        m.d.comb += amount.eq(farthest - exponent)
        for function in self.functions.intersection(symmetric):
            with m.If(self.function == function):
                m.d.comb += amount.eq(farthest + RANGE_LOG2[function] - exponent)
        amount_bits = whole_bits.bit_length()
        fixed1 = Signal(whole_bits, reset_less=True)
        with m.If((amount < 0) | amount[amount_bits:].any()):
            m.d.sync += fixed1.eq(0)
        with m.Else():
            m.d.sync += fixed1.eq(masked >> amount[:amount_bits])
        big1 = register(m, amount < 0, "big1")
        unbiased1 = Signal(signed(e_bits + 1), reset_less=True)
        m.d.sync += unbiased1.eq(exponent - fmt.bias)
        mantissa = (
            Cat(Const(0, _POINT - bits), fraction) if bits <= _POINT else fraction[bits - _POINT :]
        )
        mantissa1 = register(m, Mux(there, mantissa, 0), "mantissa1")
        sign1, zero1 = register(m, sign, "sign1"), register(m, ~there, "zero1")
        function1 = register(m, self.function, "function1")

        # 2: where in the table, and the exponent of a value in [1, 2).
        argument = Signal(_POINT)
        whole = Signal(signed(e_bits + 2))
        one = Signal()
        scale = Signal(signed(e_bits + 2))
        m.d.comb += [argument.eq(mantissa1), scale.eq(fmt.bias)]
        table_set = Signal(range(max(2, len(contents.base) // form.segments)))
        with m.Switch(function1):
            for function in sorted(self.functions):
                with m.Case(function):
                    m.d.comb += table_set.eq(contents.first_set[function])
                    if function is Function.RECIPROCAL:
                        m.d.comb += scale.eq(fmt.bias - unbiased1)
                    elif function is Function.RSQRT:
                        m.d.comb += scale.eq(fmt.bias - (unbiased1 >> 1))
                        m.d.comb += table_set.eq(contents.first_set[function] + unbiased1[0])
                    elif function is Function.EXP2:
                        signed_fixed = Mux(sign1, -fixed1, fixed1)
                        m.d.comb += [
                            Cat(argument, whole).eq(signed_fixed),
                            scale.eq(fmt.bias + whole),
                        ]
                        with m.If(big1):
                            m.d.comb += scale.eq(Mux(sign1, 0, 2 << e_bits - 1))
                    elif function in symmetric:
                        m.d.comb += [
                            argument.eq(fixed1[:_POINT]),
                            one.eq(big1 | fixed1[_POINT:].any()),
                        ]
        address2 = register(m, Cat(argument[rest_bits:], table_set), "address2")
        rest2 = register(m, Mux(one, 0, argument[:rest_bits]), "rest2")
        one2, scale2 = register(m, one, "one2"), register(m, scale, "scale2")
        unbiased2, sign2 = register(m, unbiased1, "unbiased2"), register(m, sign1, "sign2")
        zero2, function2 = register(m, zero1, "zero2"), register(m, function1, "function2")

        # 3: look up.
        base_bits, slope_bits = contents.base_bits, contents.slope_bits
        # A block RAM's output would come too late to be multiplied in the next cycle.
        m.submodules.table = table = memory.Memory(
            shape=unsigned(base_bits + slope_bits),
            depth=len(contents.base),
            init=contents.words,
            attrs={"rom_style": "logic"},
        )
        port = table.read_port()
        m.d.comb += [port.en.eq(1), port.addr.eq(address2)]
        base3, slope3 = port.data[slope_bits:], port.data[:slope_bits].as_signed()
        rest3, one3 = register(m, rest2, "rest3"), register(m, one2, "one3")
        scale3, unbiased3 = register(m, scale2, "scale3"), register(m, unbiased2, "unbiased3")
        sign3, zero3 = register(m, sign2, "sign3"), register(m, zero2, "zero3")
        function3 = register(m, function2, "function3")

        # 4: multiply; beside it the constant part of "base + product" or "constant - product".
        logarithm = Function.LOG2 in self.functions
        value_bits = 17 + e_bits if logarithm else 17
        product4 = Signal(signed(slope_bits + rest_bits + 1), reset_less=True)
        m.d.sync += product4.eq(slope3 * rest3)
        base = Signal(17)
        m.d.comb += base.eq(Mux(one3, 1 << _POINT, base3 << (_POINT - form.coefficient_bits)))
        constant4 = Signal(value_bits, reset_less=True)
        minus4 = Signal(reset_less=True)
        negative4 = Signal(reset_less=True)
        m.d.sync += [constant4.eq(base), minus4.eq(0), negative4.eq(0)]
        complemented = self._any(function3, Function.SIGMOID, Function.PHI) & sign3
        with m.If(complemented):
            m.d.sync += [constant4.eq((1 << _POINT) - base), minus4.eq(1)]
        with m.If(self._any(function3, Function.TANH, Function.RECIPROCAL)):
            m.d.sync += negative4.eq(sign3)
        if logarithm:
            with m.If(self._any(function3, Function.LOG2)):
                total = Cat(base[:_POINT], unbiased3).as_signed()
                m.d.sync += [
                    constant4.eq(Mux(unbiased3 < 0, -total, total)),
                    minus4.eq(unbiased3 < 0),
                    negative4.eq(unbiased3 < 0),
                ]
        scale4 = register(m, scale3, "scale4")
        diverges = self._any(function3, Function.RECIPROCAL, Function.RSQRT)
        infinite4 = register(m, zero3 & diverges, "infinite4")

        # 5: add.
        term = Signal(signed(value_bits))
        m.d.comb += term.eq(product4 >> (form.coefficient_bits - segment_bits))
        total = Signal(value_bits)
        m.d.comb += total.eq(Mux(minus4, constant4 - term, constant4 + term))
        total5 = register(m, total, "total5")
        zeros5 = register(m, leading_zeros(total), "zeros5")
        scale5 = Signal(signed(e_bits + 3), reset_less=True)
        m.d.sync += scale5.eq(scale4 + (value_bits - 1 - _POINT))
        negative5 = register(m, negative4, "negative5")
        infinite5 = register(m, infinite4, "infinite5")

        # 6: normalise and round.
        lifted = Signal(value_bits)
        m.d.comb += lifted.eq(total5 << zeros5)
        below = lifted[:-1]
        cut = value_bits - 1 - bits
        kept = below[cut:] if cut >= 0 else Cat(Const(0, -cut), below)
        up = round_up(below[cut], below[:cut]) if cut > 0 else Const(0, 1)
        value_exponent = Signal(signed(e_bits + 4))
        m.d.comb += value_exponent.eq(scale5 - zeros5)
        packed = Signal(bits + e_bits + 4)
        m.d.comb += packed.eq(Cat(kept, value_exponent) + up)
        tiny = ~lifted[-1] | (value_exponent < 1)
        over = exceeds(fmt, value_exponent, kept, up)
        # The largest number stands for what has no limit.
        code = finish(fmt, negative5, tiny & ~infinite5, over | infinite5, packed)
        m.d.sync += [
            self.value.eq(code),
            self.saturated.eq(infinite5 | (over & ~tiny)),
        ]
        return m
