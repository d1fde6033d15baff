"""Pipelined small-float arithmetic: the bits of :mod:`fpgrad.formats.smallfloat`, one result a cycle.

Stages are cut so that a multiplier block stands alone between two registers, and the adder so that
its result is an operand again exactly ``VectorConfig.ways`` = 4 cycles later.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fpgrad.formats import FloatFormat
from fpgrad.isa.instructions import Alu

#: Cycles from operands to product.
MULTIPLY_LATENCY = 2
#: Cycles from operands to result of :class:`AluPipeline`.
ALU_LATENCY = 4


def register(m: Module, value: Value, name: str) -> Signal:
    """``value`` one cycle later; data, so it has no reset."""
    stage = Signal(Value.cast(value).shape(), name=name, reset_less=True)
    m.d.sync += stage.eq(value)
    return stage


def leading_zeros(value: Value) -> Value:
    """How many bits above the highest set bit of ``value`` are zero; its length when none is set.

    A tree of two-way choices: its depth is the logarithm of the length.
    """
    n = len(value)
    if n == 1:
        return ~value
    k = (n - 1).bit_length() - 1
    half = 1 << k
    # The upper part is a whole power of two, so that "half + ..." is wiring.
    low, high = value[: n - half], value[n - half :]
    upper = leading_zeros(high)[:k] if k else Const(0, 1)
    return Mux(high.any(), upper, half + leading_zeros(low))[: n.bit_length()]


def shift_sticky(value: Value, amount: Value) -> Value:
    """``value >> amount`` whose lowest bit also holds whether any set bit was shifted out."""
    lost: Value = Const(0, 1)
    for k in range(len(amount)):
        step = min(1 << k, len(value))
        lost = lost | (amount[k] & value[:step].any())
        value = Mux(amount[k], value >> step, value)[: len(value)]
    return Cat(value[0] | lost, value[1:])


def round_up(kept_low: Value, rest: Value) -> Value:
    """Whether nearest-even adds one, from the lowest bit kept and the bits cut off."""
    if len(rest) == 0:
        return Const(0, 1)
    if len(rest) == 1:
        return rest[0] & kept_low
    return rest[-1] & (kept_low | rest[:-1].any())


def exceeds(fmt: FloatFormat, exponent: Value, kept: Value, up: Value) -> Value:
    """Whether a number's exponent, after rounding, is above the largest.

    Known beside the rounding instead of after its carry: ``up`` reaches the exponent only through
    a mantissa ``kept`` of ones. ``exponent`` is not negative where the answer matters.
    """
    e = fmt.exponent_bits
    carried = kept.all() & up & (exponent[:e] == fmt.max_exponent)
    return exponent[e:].any() | exponent[:e].all() | carried


def finish(fmt: FloatFormat, sign: Value, tiny: Value, over: Value, packed: Value) -> Value:
    """The code of a rounded number: ``packed`` is its mantissa below its exponent.

    ``tiny`` results are the code 0, ``over`` clamps the others to the largest.
    """
    body = Mux(over, fmt.max_code, packed[: fmt.width - 1])
    return Mux(tiny, 0, Cat(body, sign))


class Multiplier(wiring.Component):
    """``product`` is ``±(a*b)`` two cycles later; ``negate`` comes one cycle after the operands.

    ``clear`` comes with the operands: the product is then 0, as if an operand were.
    """

    def __init__(self, number: FloatFormat) -> None:
        self._number = number
        super().__init__(
            {
                "a": In(number.width),
                "b": In(number.width),
                "clear": In(1),
                "negate": In(1),
                "product": Out(number.width),
                "saturated": Out(1),
            }
        )

    @property
    def number(self) -> FloatFormat:
        """The format of operands and product."""
        return self._number

    def elaborate(self, platform: object) -> Module:
        """One stage multiplies the significands, the next rounds."""
        m = Module()
        fmt, bits, e_bits = self._number, self._number.mantissa_bits, self._number.exponent_bits
        ea, eb = self.a[bits:-1], self.b[bits:-1]

        product = Signal(2 * bits + 2, reset_less=True)
        m.d.sync += product.eq(Cat(self.a[:bits], Const(1, 1)) * Cat(self.b[:bits], Const(1, 1)))
        # Exponent of a product in [1, 2), and of one in [2, 4).
        low = Signal(signed(e_bits + 2), reset_less=True)
        high = Signal(signed(e_bits + 2), reset_less=True)
        m.d.sync += [low.eq(ea + eb - fmt.bias), high.eq(ea + eb - (fmt.bias - 1))]
        sign = register(m, self.a[-1] ^ self.b[-1], "sign")
        zero = register(m, self.clear | ~ea.any() | ~eb.any(), "zero")

        top = product[-1]
        kept = Signal(bits)
        up = Signal()
        m.d.comb += [
            kept.eq(Mux(top, product[bits + 1 : -1], product[bits:-2])),
            up.eq(
                Mux(
                    top,
                    round_up(product[bits + 1], product[: bits + 1]),
                    round_up(product[bits], product[:bits]),
                )
            ),
        ]
        exponent = Signal(signed(e_bits + 2))
        m.d.comb += exponent.eq(Mux(top, high, low))
        tiny = zero | (exponent < 1)
        packed = Signal(bits + e_bits + 2)
        m.d.comb += packed.eq(Cat(kept, exponent) + up)
        over = exceeds(fmt, exponent, kept, up)
        m.d.sync += [
            self.product.eq(finish(fmt, sign ^ self.negate, tiny, over, packed)),
            self.saturated.eq(over & ~tiny),
        ]
        return m


class AluPipeline(wiring.Component):
    """``result = alu(product, ±addend)`` four cycles later, every :class:`Alu` code.

    Args:
        number: format of operands and result.

    ``product`` must be canonical (zero only as the code 0), as :class:`Multiplier` makes it;
    ``addend`` may be any code, ``addend_zero`` says that its exponent field is 0. With
    ``feedback`` the addend is ``result``, that is the result of the operands four cycles ago;
    with ``hold`` too, ``result`` passes through as it is.
    """

    def __init__(self, number: FloatFormat) -> None:
        self._number = number
        super().__init__(
            {
                "product": In(number.width),
                "addend": In(number.width),
                "addend_zero": In(1),
                "alu": In(3),
                "negate": In(1),
                "feedback": In(1),
                "hold": In(1),
                "result": Out(number.width),
                "saturated": Out(1),
            }
        )

    @property
    def number(self) -> FloatFormat:
        """The format of operands and result."""
        return self._number

    def elaborate(self, platform: object) -> Module:
        """Order; align; add and count zeros; normalise and round."""
        m = Module()
        fmt, bits, e_bits = self._number, self._number.mantissa_bits, self._number.exponent_bits

        # 1: order the operands by magnitude. A zero addend's mantissa must not count.
        c = Signal(fmt.width)
        c_body = Signal(fmt.width - 1)
        m.d.comb += [
            c.eq(Mux(self.feedback, self.result, self.addend)),
            c_body.eq(
                Mux(
                    self.feedback,
                    self.result[:-1],
                    Mux(self.addend_zero, 0, self.addend[:-1]),
                )
            ),
        ]
        p_body = self.product[:-1]
        p_exponent, c_exponent = p_body[bits:], c_body[bits:]
        below = Signal()
        m.d.comb += below.eq(c_body > p_body)
        difference = Signal(signed(e_bits + 1))
        m.d.comb += difference.eq(p_exponent - c_exponent)
        distance = Signal(e_bits, reset_less=True)
        with m.If(difference < 0):
            m.d.sync += distance.eq(c_exponent - p_exponent)
        with m.Else():
            m.d.sync += distance.eq(difference[:e_bits])
        small = Signal(bits + 1, reset_less=True)
        m.d.sync += small.eq(
            Mux(
                below,
                Cat(p_body[:bits], p_exponent.any()),
                Cat(c_body[:bits], c_exponent.any()),
            )
        )
        swapped = register(m, below, "swapped")
        equal = register(m, c_body == p_body, "equal")
        p1 = register(m, self.product, "p1")
        c1 = register(m, c, "c1")
        c1_sign = register(m, c[-1] ^ (self.negate & ~self.hold), "c1_sign")
        c1_zero = register(m, ~c_exponent.any(), "c1_zero")
        alu1 = register(m, self.alu, "alu1")
        hold1 = register(m, self.hold, "hold1")

        # 2: align the smaller, and decide everything but a sum.
        reach = bits + 4
        far = Signal()
        m.d.comb += far.eq(distance >= reach)
        amount = distance[: min(e_bits, reach.bit_length())]
        aligned = Signal(reach, reset_less=True)
        with m.If(far):
            m.d.sync += aligned.eq(small.any())
        with m.Else():
            m.d.sync += aligned.eq(shift_sticky(Cat(Const(0, 3), small), amount))
        large = Mux(swapped, c1, p1)
        large_exponent = large[bits:-1]
        significand2 = register(m, Cat(large[:bits], large_exponent.any()), "significand2")
        exponent2 = register(m, large_exponent, "exponent2")
        sign2 = register(m, Mux(swapped, c1_sign, p1[-1]), "sign2")
        subtract2 = register(m, p1[-1] ^ c1_sign, "subtract2")
        other2 = Signal(fmt.width, reset_less=True)
        adds2 = register(m, (alu1 == Alu.ADD) & ~hold1, "adds2")
        c_negative = Signal()
        equals = Signal()
        greater = Signal()
        m.d.comb += [
            c_negative.eq(c1_sign & ~c1_zero),
            equals.eq(equal & (p1[-1] == c_negative)),
            greater.eq(
                Mux(p1[-1] == c_negative, ~equal & (swapped ^ ~p1[-1]), ~p1[-1]),
            ),
        ]
        c_value = Signal(fmt.width)
        # Only a negation makes a zero canonical: an addend that passes is what was read.
        m.d.comb += c_value.eq(Mux(c1_zero & (c1_sign != c1[-1]), 0, Cat(c1[:-1], c1_sign)))
        with m.If(hold1):
            m.d.sync += other2.eq(c1)
        with m.Else(), m.Switch(alu1):
            with m.Case(Alu.MAX):
                m.d.sync += other2.eq(Mux(greater | equals, p1, c_value))
            with m.Case(Alu.MIN):
                m.d.sync += other2.eq(Mux(greater, c_value, p1))
            with m.Case(Alu.GT):
                m.d.sync += other2.eq(Mux(greater, fmt.one, 0))
            with m.Case(Alu.GE):
                m.d.sync += other2.eq(Mux(greater | equals, fmt.one, 0))
            with m.Case(Alu.EQ):
                m.d.sync += other2.eq(Mux(equals, fmt.one, 0))
            with m.Case(Alu.GATE):
                m.d.sync += other2.eq(Mux(c1_zero | c1_sign, 0, p1))
            with m.Default():
                m.d.sync += other2.eq(p1)

        # 3: add. Three bits below the unit and the sticky one decide every rounding.
        sum_bits = bits + 5
        total = Signal(sum_bits)
        wide = Cat(Const(0, 3), significand2)
        m.d.comb += total.eq(Mux(subtract2, wide - aligned, wide + aligned))
        total3 = register(m, total, "total3")
        zeros3 = register(m, leading_zeros(total), "zeros3")
        sign3 = register(m, sign2, "sign3")
        other3 = register(m, other2, "other3")
        adds3 = register(m, adds2, "adds3")
        # Exponents of a sum with no, one, or two leading zeros.
        exponents3 = [
            Signal(signed(e_bits + 2), name=f"exponent3_{z}", reset_less=True) for z in range(3)
        ]
        m.d.sync += [exponents3[z].eq(exponent2 + (1 - z)) for z in range(3)]

        # 4: round. With three and more leading zeros both operands had the same exponent but for
        # one: nothing is below the last place, so that a shift is all there is to do.
        near = ~total3[-3:].any()
        rounded = Signal(bits + e_bits + 2)
        lifted = Signal(sum_bits)
        exponent = Signal(signed(e_bits + 2))
        with m.If(total3[-1]):
            m.d.comb += [lifted.eq(total3), exponent.eq(exponents3[0])]
        with m.Elif(total3[-2]):
            m.d.comb += [lifted.eq(total3 << 1), exponent.eq(exponents3[1])]
        with m.Else():
            m.d.comb += [lifted.eq(total3 << 2), exponent.eq(exponents3[2])]
        kept, up = lifted[4:-1], round_up(lifted[4], lifted[:4])
        m.d.comb += rounded.eq(Cat(kept, exponent) + up)
        near_exponent = Signal(signed(max(e_bits, len(zeros3)) + 2))
        near_packed = Signal(bits + e_bits + 2)
        m.d.comb += [
            near_exponent.eq(exponents3[0] - zeros3),
            near_packed.eq(Cat((total3 << zeros3)[4 : sum_bits - 1], near_exponent[: e_bits + 2])),
        ]
        tiny = Mux(near, ~total3.any() | (near_exponent < 1), exponent < 1)
        # A number with leading zeros is smaller than an operand: it never exceeds the largest, but
        # for exponents that no number has.
        over = Mux(
            near,
            exceeds(fmt, near_exponent, Const(0, 1), Const(0, 1)),
            exceeds(fmt, exponent, kept, up),
        )
        code = finish(fmt, sign3, tiny, over, Mux(near, near_packed, rounded))
        with m.If(adds3):
            m.d.sync += [self.result.eq(code), self.saturated.eq(over & ~tiny)]
        with m.Else():
            m.d.sync += [self.result.eq(other3), self.saturated.eq(0)]
        return m


def from_byte(m: Module, fmt: FloatFormat, byte: Value) -> Value:
    """The code of an unsigned byte, in the same cycle."""
    bits = fmt.mantissa_bits
    zeros = leading_zeros(byte)
    normal, exponent = Signal(8), Signal(fmt.exponent_bits + 3)
    m.d.comb += [normal.eq(byte << zeros), exponent.eq(fmt.bias + 7 - zeros)]
    packed = Signal(bits + len(exponent))
    if bits >= 7:
        m.d.comb += packed.eq(Cat(Const(0, bits - 7), normal[:7], exponent))
    else:
        kept, rest = normal[7 - bits : 7], normal[: 7 - bits]
        m.d.comb += packed.eq(Cat(kept, exponent) + round_up(kept[0], rest))
    over = packed[bits:] > fmt.max_exponent
    return finish(fmt, Const(0, 1), ~byte.any(), over, packed)
