"""One lane of the vector unit: operands, multiplier, alu, function, second multiplier, mask."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fpgrad.gateware.function import FUNCTION_LATENCY, FunctionPipeline
from fpgrad.gateware.gating import gated
from fpgrad.gateware.random import RandomGenerator
from fpgrad.gateware.smallfloat import (
    ALU_LATENCY,
    MULTIPLY_LATENCY,
    AluPipeline,
    Multiplier,
    register,
)
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Source

#: Cycle of a row, counted from its addresses, in which its operands are selected.
SELECT = 2
#: Cycle in which product and addend enter the alu.
ALU = SELECT + 1 + MULTIPLY_LATENCY
#: Cycle in which the alu's result is there.
RESULT = ALU + ALU_LATENCY

#: Rows whose operand d can wait for the second multiplier.
QUEUE_DEPTH = 16

OPERANDS = ("a", "b", "c", "d")


def delayed(m: Module, value: Value, cycles: int, name: str) -> Value:
    """``value`` some cycles later; data, so without reset."""
    for n in range(cycles):
        value = register(m, value, f"{name}_{n + 1}")
    return value


class Lane(wiring.Component):
    """A lane. Its control signals come from the vector unit, each in the cycle in which it acts.

    Members, by the cycle of the row (see the constants of this module):
        select: ``vector0``, ``vector1``, ``inbox0``, ``inbox1``, ``mask0``, ``mask1``,
            ``accumulated``: what was read; ``p0_inbox``, ``p1_inbox``, ``p0_mask``, ``p1_mask``:
            which memory a stream reads; ``a`` to ``d``: sources;
            ``a_constant`` to ``d_constant``: the operand if its source is not a lane's own;
            ``random_step``, ``seed``: as in :class:`RandomGenerator`; ``row0``: row of stream 0;
            ``d_write``, ``d_write_address``: put operand d into the queue.
        select + 2: ``negate_product``.
        alu: ``alu``, ``negate_c``, ``feedback``, ``hold``: as in :class:`AluPipeline`.
        result: ``relu``; ``function``.
        second multiplier: ``d_read``, ``d_read_address`` one cycle earlier; ``post_function``: its
            operand is the function's value, not the alu's.
        exit: ``take_function``, ``take_post``: where the row comes from (else from the alu);
            ``keep``: it is not masked; ``count``: its saturation counts.
        exit + 1: ``value``, ``saturated``; ``positive``: the value is greater than 0.

    Without a mask memory nothing is done with ``mask0`` to ``p1_mask``.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        width, pointer = config.vector.number.width, ceil_log2(QUEUE_DEPTH)
        members = {name: In(width) for name in ("vector0", "vector1", "inbox0", "inbox1")}
        members |= {"mask0": In(1), "mask1": In(1), "accumulated": In(width), "row0": Out(width)}
        members |= {name: In(3) for name in OPERANDS}
        members |= {f"{name}_constant": In(width) for name in OPERANDS}
        members |= {"function": In(4), "alu": In(3)}
        members |= {"d_write_address": In(pointer), "d_read_address": In(pointer)}
        controls = (
            "p0_inbox",
            "p1_inbox",
            "p0_mask",
            "p1_mask",
            "random_step",
            "seed",
            "d_write",
            "d_read",
        )
        controls += ("negate_product", "negate_c", "feedback", "hold", "relu", "post_function")
        controls += ("take_function", "take_post", "keep", "count")
        members |= {name: In(1) for name in controls}
        super().__init__(members | {"value": Out(width), "positive": Out(1), "saturated": Out(1)})

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """See the class."""
        m = Module()
        config = self._config
        fmt = config.vector.number

        second = Signal(fmt.width)
        drawn = Signal(fmt.width)
        m.d.comb += [
            self.row0.eq(Mux(self.p0_inbox, self.inbox0, self.vector0)),
            second.eq(Mux(self.p1_inbox, self.inbox1, self.vector1)),
        ]
        if config.memory.mask_rows:
            with m.If(self.p0_mask):
                m.d.comb += self.row0.eq(Mux(self.mask0, fmt.one, 0))
            with m.If(self.p1_mask):
                m.d.comb += second.eq(Mux(self.mask1, fmt.one, 0))
        if config.vector.random:
            m.submodules.random = random = RandomGenerator(fmt)
            m.d.comb += [
                random.step.eq(self.random_step),
                random.load.eq(self.seed),
                random.seed.eq(self.row0),
                drawn.eq(random.value),
            ]
        operands = {name: Signal(fmt.width, name=f"{name}_operand") for name in OPERANDS}
        for name, operand in operands.items():
            with m.Switch(getattr(self, name)):
                with m.Case(Source.P0):
                    m.d.comb += operand.eq(self.row0)
                with m.Case(Source.P1):
                    m.d.comb += operand.eq(second)
                with m.Case(Source.ACC):
                    m.d.comb += operand.eq(self.accumulated)
                if config.vector.random:
                    with m.Case(Source.RANDOM):
                        m.d.comb += operand.eq(drawn)
                with m.Default():
                    m.d.comb += operand.eq(getattr(self, f"{name}_constant"))

        multiplier, alu = Multiplier(fmt), AluPipeline(fmt)
        m.submodules.multiplier = gated(multiplier, platform, "multiplier")
        m.submodules.alu = gated(alu, platform, "alu")
        m.d.comb += [
            multiplier.a.eq(register(m, operands["a"], "a_register")),
            multiplier.b.eq(register(m, operands["b"], "b_register")),
            multiplier.negate.eq(self.negate_product),
        ]

        addend = delayed(m, operands["c"], MULTIPLY_LATENCY, "c")
        exponent = addend[fmt.mantissa_bits : -1]
        m.d.comb += [
            alu.product.eq(multiplier.product),
            alu.addend.eq(register(m, addend, "addend")),
            alu.addend_zero.eq(register(m, ~exponent.any(), "addend_zero")),
            alu.alu.eq(self.alu),
            alu.negate.eq(self.negate_c),
            alu.feedback.eq(self.feedback),
            alu.hold.eq(self.hold),
        ]
        result, result_flag, dropped = Signal(fmt.width), Signal(), Signal()
        positive = ~alu.result[-1] & alu.result[fmt.mantissa_bits : -1].any()
        product_flag = delayed(m, multiplier.saturated, ALU_LATENCY, "product_flag")
        m.d.comb += [
            dropped.eq(self.relu & ~positive),
            result.eq(Mux(dropped, 0, alu.result)),
            result_flag.eq(alu.saturated | product_flag),
        ]

        last, last_flag = Signal(fmt.width), Signal()
        m.d.comb += [last.eq(result), last_flag.eq(result_flag)]
        entering, entering_flag = Signal(fmt.width), Signal()
        clear = Signal()
        # Before a multiplier there is no time to make a zero: it is told of it instead.
        m.d.comb += [
            entering.eq(alu.result),
            entering_flag.eq(result_flag),
            clear.eq(dropped),
        ]
        if config.tables:
            function = FunctionPipeline(fmt, config.tables)
            m.submodules.function = gated(function, platform, "function")
            m.d.comb += [
                function.argument.eq(alu.result),
                function.function.eq(self.function),
            ]
            flag = Signal()
            earlier = delayed(m, result_flag, FUNCTION_LATENCY, "result_flag")
            m.d.comb += flag.eq(function.saturated | earlier)
            with m.If(self.take_function):
                m.d.comb += [last.eq(function.value), last_flag.eq(flag)]
            with m.If(self.post_function):
                m.d.comb += [
                    entering.eq(function.value),
                    entering_flag.eq(flag),
                    clear.eq(0),
                ]
        if config.vector.post_multiply:
            m.submodules.queue = queue = memory.Memory(shape=fmt.width, depth=QUEUE_DEPTH, init=())
            write, read = queue.write_port(), queue.read_port()
            post = Multiplier(fmt)
            m.submodules.post = gated(post, platform, "post")
            m.d.comb += [
                write.en.eq(self.d_write),
                write.addr.eq(self.d_write_address),
                write.data.eq(operands["d"]),
                read.en.eq(self.d_read),
                read.addr.eq(self.d_read_address),
                post.a.eq(entering),
                post.clear.eq(clear),
                post.b.eq(read.data),
            ]
            earlier = delayed(m, entering_flag, MULTIPLY_LATENCY, "entering_flag")
            with m.If(self.take_post):
                m.d.comb += [last.eq(post.product), last_flag.eq(post.saturated | earlier)]

        m.d.sync += [
            self.value.eq(Mux(self.keep, last, 0)),
            self.saturated.eq(last_flag & self.keep & self.count),
        ]
        exponent = self.value[fmt.mantissa_bits : -1]
        m.d.comb += self.positive.eq(~self.value[-1] & exponent.any())
        return m
