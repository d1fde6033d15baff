"""From accumulators to small floats, and the queue in which finished rows wait for the vector unit.

The conversion never stalls: the matrix unit streams the last product of an output tile only when the
queue has room for all of its rows, so the queue is the only place where the vector unit's pace is
felt, and it lets the matrix unit run ahead by a few tiles.

Timing: a row offered in cycle c is written to the queue at the end of cycle
``c + CONVERTER_LATENCY`` and, if the queue was empty, valid at its end
:data:`QUEUE_LATENCY` cycles later.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fpgrad.formats import AccumulatorFormat, FloatFormat, TileFormat

#: Cycles from a magnitude to its code.
CONVERTER_LATENCY = 3
#: Cycles from a row written to an empty queue to the row at its end.
QUEUE_LATENCY = 2


class AccSignature(wiring.Signature):
    """A stream of finished rows: a transfer happens when ``valid`` and ``ready``.

    The payload is ``codes``, one signal a lane, and ``saturated``, one bit a lane; both are held
    while ``valid & ~ready``.
    """

    def __init__(self, *, width: int, side: int) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "codes": Out(width).array(side),
                "saturated": Out(side),
            }
        )


class Converter(wiring.Component):
    """Integer lanes with one exponent to small floats, rounded to nearest even.

    Members:
        valid, negative, magnitude, saturated: a row of accumulators.
        exponent: their common exponent, the sum of two tiles' exponent fields.
        out_valid, codes, out_saturated: the same row as codes, 3 cycles later; ``out_saturated``
            also marks codes that were clamped to the largest number.
    """

    valid: Signal
    negative: Signal
    magnitude: Any
    saturated: Signal
    exponent: Signal
    out_valid: Signal
    codes: Any
    out_saturated: Signal

    def __init__(self, tile: TileFormat, number: FloatFormat, acc: AccumulatorFormat) -> None:
        self.tile, self.number, self.acc = tile, number, acc
        side = tile.side
        super().__init__(
            {
                "valid": In(1),
                "negative": In(side),
                "magnitude": In(acc.bits - 1).array(side),
                "saturated": In(side),
                "exponent": In(number.exponent_bits + 1),
                "out_valid": Out(1),
                "codes": Out(number.width).array(side),
                "out_saturated": Out(side),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Two stages normalise, one rounds."""
        del platform
        m = Module()
        side, number = self.tile.side, self.number
        width, fraction = self.acc.bits - 1, number.mantissa_bits
        steps = [1 << s for s in reversed(range(ceil_log2(width)))]
        coarse, fine = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        # The exponent field of a number whose magnitude has its leading one in the highest bit.
        offset = width - 1 - self.acc.guard_bits - number.bias - 2 * (self.tile.mantissa_bits - 2)
        low = offset - sum(steps)
        high = max(2 * number.max_exponent + offset, number.max_exponent) + 1
        exponent_shape = Shape.cast(range(min(low, -1), high + 1))

        valid1, valid2 = Signal(), Signal()
        negative1, negative2, saturated1, saturated2 = (
            Signal(side, reset_less=True) for _ in range(4)
        )
        exponent1 = Signal(exponent_shape, reset_less=True)
        m.d.sync += [
            valid1.eq(self.valid),
            valid2.eq(valid1),
            self.out_valid.eq(valid2),
        ]
        with m.If(self.valid):
            m.d.sync += [
                negative1.eq(self.negative),
                saturated1.eq(self.saturated),
                exponent1.eq(self.exponent + offset),
            ]
        with m.If(valid1):
            m.d.sync += [negative2.eq(negative1), saturated2.eq(saturated1)]
        with m.If(valid2):
            m.d.sync += self.out_saturated.eq(saturated2)

        for j in range(side):
            number1 = Signal(width, name=f"coarse_{j}", reset_less=True)
            zeros1 = Signal(range(sum(coarse) + 1), name=f"zeros_{j}", reset_less=True)
            number2 = Signal(width, name=f"normal_{j}", reset_less=True)
            exponent2 = Signal(exponent_shape, name=f"exponent_{j}", reset_less=True)
            with m.If(self.valid):
                shifted, zeros = self._normalise(m, self.magnitude[j], coarse, f"coarse_{j}")
                m.d.sync += [number1.eq(shifted), zeros1.eq(zeros)]
            with m.If(valid1):
                shifted, zeros = self._normalise(m, number1, fine, f"fine_{j}")
                m.d.sync += [number2.eq(shifted), exponent2.eq(exponent1 - zeros1 - zeros)]

            padded = Cat(Const(0, max(0, fraction + 1 - width)), number2)
            kept, rest = padded[-(fraction + 1) :], padded[: len(padded) - (fraction + 1)]
            up: Value = Const(0)
            if len(rest):
                up = rest[-1] & (rest[:-1].any() | kept[0])
            # A carry out of the fraction raises the exponent, which is what rounding up means.
            body = Signal(signed(fraction + exponent_shape.width), name=f"body_{j}")
            tiny, over = Signal(name=f"tiny_{j}"), Signal(name=f"over_{j}")
            m.d.comb += [
                body.eq(Cat(kept[:fraction], exponent2).as_signed() + up),
                tiny.eq(~number2[-1] | (exponent2 < 1)),
                # Unsigned: whatever is not tiny has a positive exponent.
                over.eq(~tiny & (body[fraction:-1] > number.max_exponent)),
            ]
            with m.If(valid2):
                magnitude = Mux(over, number.max_code, body[: number.width - 1])
                m.d.sync += self.codes[j].eq(Mux(tiny, 0, Cat(magnitude, negative2[j])))
                with m.If(over):
                    m.d.sync += self.out_saturated[j].eq(1)
        return m

    @staticmethod
    def _normalise(m: Module, value: Value, steps: list[int], name: str) -> tuple[Value, Value]:
        """``value`` shifted left by each step that only drops zeros, and the sum of those steps."""
        taken: list[Value] = []
        for step in steps:
            clear = Signal(name=f"{name}_clear_{step}")
            shifted = Signal(len(value), name=f"{name}_by_{step}")
            m.d.comb += [
                clear.eq(~value[-step:].any()),
                shifted.eq(Mux(clear, value << step, value)),
            ]
            taken.append(clear)
            value = shifted
        low = steps[-1]
        return value, Cat(Const(0, low.bit_length() - 1), *reversed(taken))


class AccQueue(wiring.Component):
    """Rows that wait for the vector unit.

    Args:
        rows: capacity; the writer keeps count and never writes to a full queue.

    Members:
        write, codes, saturated: a row to keep.
        acc: the stream of rows, in order.
    """

    write: Signal
    codes: Any
    saturated: Signal
    acc: Any

    def __init__(self, *, width: int, side: int, rows: int) -> None:
        self.width, self.side, self.rows = width, side, rows
        super().__init__(
            {
                "write": In(1),
                "codes": In(width).array(side),
                "saturated": In(side),
                "acc": Out(AccSignature(width=width, side=side)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """One memory a lane; the read ports' own registers are the end of the queue."""
        del platform
        m = Module()
        produce, consume = Signal(range(self.rows)), Signal(range(self.rows))
        level = Signal(range(self.rows + 1))
        read = Signal()
        m.d.comb += read.eq((level != 0) & (~self.acc.valid | self.acc.ready))
        m.d.sync += level.eq(level + self.write - read)
        with m.If(self.write):
            m.d.sync += produce.eq(Mux(produce == self.rows - 1, 0, produce + 1))
        with m.If(read):
            m.d.sync += [
                consume.eq(Mux(consume == self.rows - 1, 0, consume + 1)),
                self.acc.valid.eq(1),
            ]
        with m.Elif(self.acc.ready):
            m.d.sync += self.acc.valid.eq(0)

        lanes = [(self.codes[j], self.acc.codes[j]) for j in range(self.side)]
        for n, (source, sink) in enumerate([*lanes, (self.saturated, self.acc.saturated)]):
            memory = Memory(shape=unsigned(len(source)), depth=self.rows, init=[])
            m.submodules[f"memory_{n}"] = memory
            w, r = memory.write_port(), memory.read_port()
            m.d.comb += [
                w.en.eq(self.write),
                w.addr.eq(produce),
                w.data.eq(source),
                r.en.eq(read),
                r.addr.eq(consume),
                sink.eq(r.data),
            ]
        return m
