"""Row memories that read rows and columns at the same rate, and the plain memory of tile exponents.

A skewed memory is T banks; element (row r, lane l) is in bank ``(r + l) % T`` at address ``r``. A row
and a column of the T×T block around it then each touch every bank once, so both come out in one
cycle, rotated by the row's (column's) number modulo T. All three products of training read the same
tile, as it is and transposed, without a second copy.

Timing, in clock cycles: a read with ``en`` in cycle c has its data in cycle c+2, and the data is held
until two cycles after the next enabled read. A write with ``en`` in cycle w is seen by reads of cycle
w+2 and later; reads up to cycle w+1 see the old row. One read a port and one write a cycle.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.errors import ConfigError

#: Cycles from a read of a skewed memory to its data.
READ_LATENCY = 2
#: Cycles from a write of a skewed memory to the first read that sees it.
WRITE_LATENCY = 2


class RowReadSignature(wiring.Signature):
    """A port that reads rows of ``side`` lanes, seen from the reader.

    Members: ``en``; ``address``, a row; ``transposed``: the address q means column ``q % side`` of
    the rows from ``q - q % side`` on; ``stall`` freezes the port's registers (``en`` is then
    ignored); ``data``, one signal a lane.
    """

    def __init__(self, *, width: int, depth: int, side: int) -> None:
        super().__init__(
            {
                "en": Out(1),
                "address": Out(range(depth)),
                "transposed": Out(1),
                "stall": Out(1),
                "data": In(width).array(side),
            }
        )


class RowWriteSignature(wiring.Signature):
    """A port that writes rows of ``side`` lanes, seen from the writer."""

    def __init__(self, *, width: int, depth: int, side: int) -> None:
        super().__init__(
            {"en": Out(1), "address": Out(range(depth)), "data": Out(width).array(side)}
        )


class WordReadSignature(wiring.Signature):
    """A port that reads words, seen from the reader."""

    def __init__(self, *, width: int, depth: int) -> None:
        super().__init__({"en": Out(1), "address": Out(range(depth)), "data": In(width)})


class WordWriteSignature(wiring.Signature):
    """A port that writes words, seen from the writer."""

    def __init__(self, *, width: int, depth: int) -> None:
        super().__init__({"en": Out(1), "address": Out(range(depth)), "data": Out(width)})


class SkewedMemory(wiring.Component):
    """Rows of ``side`` lanes, read as rows or as columns of square blocks.

    Args:
        width: bits of a lane.
        depth: rows, a positive multiple of ``side``.
        side: lanes and banks, a power of two.
        read_ports: read ports; a synthesiser replicates the banks for each.

    Members:
        read: array of ports of :class:`RowReadSignature`.
        write: port of :class:`RowWriteSignature`.

    Raises:
        ConfigError: ``depth`` is not a positive multiple of ``side``.
    """

    read: Any
    write: Any

    def __init__(self, *, width: int, depth: int, side: int, read_ports: int = 1) -> None:
        if depth < side or depth % side:
            raise ConfigError(
                f"depth of a skewed memory must be a positive multiple of {side}, not {depth}"
            )
        self.width, self.depth, self.side, self.read_ports = width, depth, side, read_ports
        read = RowReadSignature(width=width, depth=depth, side=side)
        write = RowWriteSignature(width=width, depth=depth, side=side)
        super().__init__({"read": In(read).array(read_ports), "write": In(write)})

    def elaborate(self, platform: object) -> Module:
        """Banks, a registered rotation before their write ports and one after each read port."""
        del platform
        m = Module()
        side, bits = self.side, exact_log2(self.side)
        shape = unsigned(self.width)
        banks = [Memory(shape=shape, depth=self.depth, init=[]) for _ in range(side)]
        for b, bank in enumerate(banks):
            m.submodules[f"bank_{b}"] = bank

        write_en = Signal()
        write_address = Signal(range(self.depth), reset_less=True)
        m.d.sync += [write_en.eq(self.write.en), write_address.eq(self.write.address)]
        skewed = [Signal(shape, name=f"skewed_{b}", reset_less=True) for b in range(side)]
        with m.If(self.write.en), m.Switch(self.write.address[:bits]):
            for shift in range(side):
                with m.Case(shift):
                    m.d.sync += [
                        skewed[b].eq(self.write.data[(b - shift) % side]) for b in range(side)
                    ]
        for b, bank in enumerate(banks):
            port = bank.write_port()
            m.d.comb += [
                port.en.eq(write_en),
                port.addr.eq(write_address),
                port.data.eq(skewed[b]),
            ]

        for port in self.read:
            rotation = Signal(bits, reset_less=True)
            outputs = []
            fresh = Signal()
            with m.If(~port.stall):
                m.d.sync += fresh.eq(port.en)
                with m.If(port.en):
                    m.d.sync += rotation.eq(port.address[:bits])
            for b, bank in enumerate(banks):
                read = bank.read_port()
                low = Signal(bits)
                m.d.comb += low.eq(port.address[:bits])
                with m.If(port.transposed):
                    m.d.comb += low.eq(b - port.address[:bits])
                m.d.comb += [
                    read.en.eq(port.en & ~port.stall),
                    read.addr.eq(Cat(low, port.address[bits:])),
                ]
                outputs.append(read.data)
            rotated = [Signal(shape, name=f"rotated_{i}", reset_less=True) for i in range(side)]
            with m.If(fresh & ~port.stall), m.Switch(rotation):
                for shift in range(side):
                    with m.Case(shift):
                        m.d.sync += [
                            rotated[i].eq(outputs[(i + shift) % side]) for i in range(side)
                        ]
            m.d.comb += [port.data[i].eq(rotated[i]) for i in range(side)]
        return m


class ExponentMemory(wiring.Component):
    """One word a tile. A read in cycle c has its data in c+1; a write in w is seen by reads from w+1 on.

    Members:
        read: array of ports of :class:`WordReadSignature`.
        write: port of :class:`WordWriteSignature`.
    """

    read: Any
    write: Any

    def __init__(self, *, width: int, depth: int, read_ports: int = 2) -> None:
        self.width, self.depth, self.read_ports = width, depth, read_ports
        read = WordReadSignature(width=width, depth=depth)
        write = WordWriteSignature(width=width, depth=depth)
        super().__init__({"read": In(read).array(read_ports), "write": In(write)})

    def elaborate(self, platform: object) -> Module:
        """One memory with all ports."""
        del platform
        m = Module()
        m.submodules.words = words = Memory(shape=unsigned(self.width), depth=self.depth, init=[])
        write = words.write_port()
        m.d.comb += [
            write.en.eq(self.write.en),
            write.addr.eq(self.write.address),
            write.data.eq(self.write.data),
        ]
        for port in self.read:
            read = words.read_port()
            m.d.comb += [
                read.en.eq(port.en),
                read.addr.eq(port.address),
                port.data.eq(read.data),
            ]
        return m
