"""Quantises rows of small floats to tiles: the bits of :func:`fpgrad.formats.blockfloat.quantise`.

Rows are collected in one of two buffers while the largest exponent is found; then the tile is read
back, shifted to that exponent, rounded and written, one row a cycle, while the other buffer fills.
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from fpgrad.gateware.gating import gate, gated
from fpgrad.gateware.smallfloat import register, round_up, shift_sticky
from fpgrad.isa.config import MachineConfig


class TileWriteSignature(wiring.Signature):
    """A port that writes tiles, seen from the writer.

    Members: ``en``, ``address`` (a row: tile times side plus row in the tile), ``data``: mantissas,
    one signal a lane; ``exponent_en``, ``exponent_address`` (a tile), ``exponent``: with the
    tile's last row.
    """

    def __init__(self, config: MachineConfig) -> None:
        tile, tiles = config.matrix.tile, config.memory.tiles
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(tiles * tile.side)),
                "data": Out(signed(tile.mantissa_bits)).array(tile.side),
                "exponent_en": Out(1),
                "exponent_address": Out(range(tiles)),
                "exponent": Out(config.vector.number.exponent_bits),
            }
        )


def tree_stages(side: int) -> int:
    """Cycles that the largest exponent of a row takes, at most 2.

    With more, a tile's address could be replaced while the tile is read back (see Quantiser).
    """
    return min(2, (exact_log2(side) + 1) // 2)


def quantise_latency(side: int) -> int:
    """Cycles from a tile's last row to its last row's write, unless the tile before is still being written.

    Writes of tiles are at least ``side`` cycles apart.
    """
    return tree_stages(side) + 3 + side


class Quantiser(wiring.Component):
    """Collects rows, writes tiles.

    The first rows of two tiles must come at least ``side`` cycles apart; there is no other limit.

    Members:
        valid, row, lanes: a row of a tile. Rows of a tile come in order, from 0.
        last: it is the last one; the tile's other rows are zero.
        tile: the tile's address; taken with the last row.
        write: the port to tile memory.
        written: in this cycle a tile's last row is written.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        side = config.side
        super().__init__(
            {
                "valid": In(1),
                "row": In(range(side)),
                "last": In(1),
                "lanes": In(config.vector.number.width).array(side),
                "tile": In(range(config.memory.tiles)),
                "write": Out(TileWriteSignature(config)),
                "written": Out(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """See the module."""
        m = Module()
        config, side = self._config, self._config.side
        fmt, rows = config.vector.number, exact_log2(self._config.side)
        stages = tree_stages(side)

        # Collect. The largest exponent of a row lags its row by the stages of the tree.
        collected = Signal()
        with m.If(self.valid & self.last):
            m.d.sync += collected.eq(~collected)
        level: list[Value] = [lane[fmt.mantissa_bits : -1] for lane in self.lanes]
        valid: Value = self.valid
        first: Value = self.row == 0
        buffer: Value = collected
        for stage in range(stages):
            for _ in range(-(-rows // stages)):
                if len(level) > 1:
                    level = [
                        self._larger(m, x, y) for x, y in zip(level[::2], level[1::2], strict=True)
                    ]
            level = [register(m, x, f"largest{stage}_{n}") for n, x in enumerate(level)]
            following = Signal(name=f"valid{stage}")
            m.d.sync += following.eq(valid)
            valid = following
            first = register(m, first, f"first{stage}")
            buffer = register(m, buffer, f"buffer{stage}")
        tops = [Signal(fmt.exponent_bits, name=f"top{b}", reset_less=True) for b in range(2)]
        for b in range(2):
            with m.If(valid & (buffer == b) & (first | (level[0] > tops[b]))):
                m.d.sync += tops[b].eq(level[0])

        # A tile may be read when its largest exponent will be there one cycle later.
        complete: Value = self.valid & self.last
        complete_buffer: Value = collected
        for stage in range(stages - 1):
            following = Signal(name=f"complete{stage}")
            m.d.sync += following.eq(complete)
            complete = following
            complete_buffer = register(m, complete_buffer, f"complete_buffer{stage}")
        full = Signal(2)
        tile = [
            Signal(range(config.memory.tiles), name=f"tile{b}", reset_less=True) for b in range(2)
        ]
        ends = [Signal(rows, name=f"end{b}", reset_less=True) for b in range(2)]
        for b in range(2):
            with m.If(self.valid & self.last & (collected == b)):
                m.d.sync += [tile[b].eq(self.tile), ends[b].eq(self.row)]

        # Read back. A full buffer is read from its row 0, one row a cycle.
        reader = Signal()
        reading = Signal()
        read_row = Signal(rows)
        m.d.comb += reading.eq(Mux(reader, full[1], full[0]))
        with m.If(reading):
            m.d.sync += read_row.eq(read_row + 1)
        last_read = Signal()
        m.d.comb += last_read.eq(reading & read_row.all())
        with m.If(last_read):
            m.d.sync += reader.eq(~reader)
        for b in range(2):
            with m.If(complete & (complete_buffer == b)):
                m.d.sync += full[b].eq(1)
            with m.Elif(last_read & (reader == b)):
                m.d.sync += full[b].eq(0)
        there = Signal()
        m.d.comb += there.eq(read_row <= Mux(reader, ends[1], ends[0]))

        there1 = register(m, there, "there1")
        first1 = register(m, read_row == 0, "first1")
        buffer1 = register(m, reader, "buffer1")
        held = Signal(fmt.exponent_bits, reset_less=True)
        top = Signal(fmt.exponent_bits)
        m.d.comb += top.eq(Mux(first1, Mux(buffer1, tops[1], tops[0]), held))
        m.d.sync += held.eq(top)

        gate(m, platform, "mantissa", reading, lingering=MANTISSA_LATENCY)
        for lane in range(side):
            m.submodules[f"buffer{lane}"] = rows_memory = memory.Memory(
                shape=fmt.width, depth=2 * side, init=()
            )
            write, read = rows_memory.write_port(), rows_memory.read_port()
            m.d.comb += [
                write.en.eq(self.valid),
                write.addr.eq(Cat(self.row, collected)),
                write.data.eq(self.lanes[lane]),
                read.en.eq(reading),
                read.addr.eq(Cat(read_row, reader)),
            ]
            mantissa = Mantissa(config)
            m.submodules[f"mantissa{lane}"] = gated(mantissa, platform, "mantissa")
            m.d.comb += [
                mantissa.code.eq(read.data),
                mantissa.there.eq(there1),
                mantissa.top.eq(top),
                self.write.data[lane].eq(mantissa.mantissa),
            ]

        # The write follows the read by the memory's and the mantissa's latency.
        en: Value = reading
        finish: Value = last_read
        address: Value = Cat(read_row, Mux(reader, tile[1], tile[0]))
        exponent: Value = top
        for stage in range(1 + MANTISSA_LATENCY):
            following, ending = Signal(name=f"en{stage}"), Signal(name=f"finish{stage}")
            m.d.sync += [following.eq(en), ending.eq(finish)]
            en, finish = following, ending
            address = register(m, address, f"address{stage}")
            if stage > 0:
                exponent = register(m, exponent, f"exponent{stage}")
        m.d.comb += [
            self.write.en.eq(en),
            self.write.address.eq(address),
            self.write.exponent_en.eq(finish),
            self.write.exponent_address.eq(address[rows:]),
            self.write.exponent.eq(exponent),
            self.written.eq(finish),
        ]
        return m

    @staticmethod
    def _larger(m: Module, x: Value, y: Value) -> Value:
        larger = Signal(len(x))
        m.d.comb += larger.eq(Mux(x > y, x, y))
        return larger


#: Cycles from a code to its mantissa.
MANTISSA_LATENCY = 3


class Mantissa(wiring.Component):
    """``mantissa`` of ``code`` in a tile whose largest exponent field is ``top``, 3 cycles later.

    Zero where ``there`` is not set.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        fmt = config.vector.number
        super().__init__(
            {
                "code": In(fmt.width),
                "there": In(1),
                "top": In(fmt.exponent_bits),
                "mantissa": Out(signed(config.matrix.tile.mantissa_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Distance; shift; round, clip and negate."""
        m = Module()
        fmt, tile = self._config.vector.number, self._config.matrix.tile
        bits = fmt.mantissa_bits
        exponent = self.code[bits:-1]
        cut = bits - (tile.mantissa_bits - 2)
        # Two bits below the mantissa's unit carry every rounding; the format may have fewer.
        padding = max(0, 2 - cut)
        cut += padding

        distance = Signal(signed(fmt.exponent_bits + 1))
        m.d.comb += distance.eq(self.top - exponent)
        amount = Signal(range(tile.mantissa_bits + 1), reset_less=True)
        # Shifted by all its bits, a mantissa is less than half a unit.
        with m.If(distance > tile.mantissa_bits):
            m.d.sync += amount.eq(tile.mantissa_bits)
        with m.Else():
            m.d.sync += amount.eq(distance[: bits_for(tile.mantissa_bits)])
        there = exponent.any() & self.there
        significand1 = register(
            m, Mux(there, Cat(self.code[:bits], Const(1, 1)), 0), "significand1"
        )
        sign1 = register(m, self.code[-1], "sign1")

        shifted2 = register(
            m, shift_sticky(Cat(Const(0, padding), significand1), amount), "shifted2"
        )
        sign2 = register(m, sign1, "sign2")

        magnitude = Signal(tile.mantissa_bits)
        m.d.comb += magnitude.eq(shifted2[cut:] + round_up(shifted2[cut], shifted2[:cut]))
        clipped = Signal(tile.mantissa_bits)
        m.d.comb += clipped.eq(Mux(magnitude[-1], tile.limit, magnitude))
        m.d.sync += self.mantissa.eq(Mux(sign2, -clipped, clipped))
        return m
