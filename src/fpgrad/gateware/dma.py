"""What the load and store units share: the port to external memory and the places of a transfer on chip.

The port is two pairs of streams. Reading: a request names rows, their words come back as beats; those
of index rows say so, and only beats that say the same come in the order of their requests. Writing: a
request names rows, the beats follow on a stream of their own, and a pulse tells that an instruction's
last beat is in external memory.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2, exact_log2

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import COUNT_BITS, DRAM_BITS, ROW_BITS, TILE_BITS, Transfer
from fpgrad.isa.registers import BASE_REGISTERS, WORD_BITS

STEP_BITS = 32

#: Of a kind of transfer.
KIND_BITS = bits_for(max(Transfer))

#: Instructions of a unit that may be taken and not yet have a place on chip to go on at.
IN_FLIGHT = 8

#: DRAM rows of a group: a block of 65535 tiles of side 32 is the largest.
GROUP_BITS = COUNT_BITS + 4

#: A row of tile memory.
PLACE_BITS = TILE_BITS + 5

Bases = data.ArrayLayout(DRAM_BITS, BASE_REGISTERS)

#: A request for ``rows`` rows from ``row`` on; ``index``: of numbers of groups.
ReadRows = data.StructLayout({"row": DRAM_BITS, "rows": GROUP_BITS, "index": 1})

#: A request to write; ``last``: the instruction's last.
WriteRows = data.StructLayout({"row": DRAM_BITS, "rows": GROUP_BITS, "last": 1})


def beat_layout(config: MachineConfig) -> data.ArrayLayout:
    """One beat of the memory port: ``dram_words_per_cycle`` words, the first lane's lowest."""
    return data.ArrayLayout(WORD_BITS, config.memory.dram_words_per_cycle)


def read_beat_layout(config: MachineConfig) -> data.StructLayout:
    """A beat that was read, and whether it is of an index row."""
    return data.StructLayout({"words": beat_layout(config), "index": 1})


def row_layout(config: MachineConfig) -> data.ArrayLayout:
    """A row of numbers, as codes: what cores send to the exchange and receive from it."""
    return data.ArrayLayout(config.vector.number.width, config.side)


def number_members(config: MachineConfig) -> dict[str, wiring.Member]:
    """``number``, that of the core, which is added to addresses. It never changes."""
    return {"number": In(ceil_log2(config.cores))} if config.cores > 1 else {}


def core_rows(owner: Any, config: MachineConfig, address: data.View) -> Value:
    """How far an address is from that of the first core, in DRAM rows; ``owner`` has :func:`number_members`."""
    return owner.number * address.core_stride if config.cores > 1 else Const(0, 1)


def group_rows(config: MachineConfig, kind: Value, rows: Value) -> Value:
    """DRAM rows of one group, see :func:`fpgrad.reference.dma.dram_rows`."""
    if not config.memory.tile_dma:
        return rows
    t = config.side
    tiles = ((rows + (4 * t - 1)) >> exact_log2(4 * t)) + (rows << (exact_log2(t) - 2))
    return Mux(kind == Transfer.TILES, tiles, rows)


def has_masks(config: MachineConfig) -> bool:
    """Whether transfers of masks exist."""
    return config.memory.tile_dma and config.memory.mask_rows > 0


#: The part of an instruction that says where it goes on chip.
Walk = data.StructLayout(
    {
        "kind": KIND_BITS,
        "count": COUNT_BITS,
        "rows": COUNT_BITS,
        "base": ROW_BITS,
        "group_stride": signed(ROW_BITS),
        "row_stride": signed(ROW_BITS),
    }
)

#: One row of a memory on chip, or one word of exponent memory. ``pads``: a group's last exponent;
#: ``last``: the instruction's last row.
Place = data.StructLayout(
    {"kind": KIND_BITS, "exponent": 1, "address": PLACE_BITS, "pads": 1, "last": 1}
)


class Places(wiring.Component):
    """Walks the places of transfers, one a cycle, without a pause between instructions.

    A walk that is taken in cycle c has its first place in c + 2 (the queue, then the counters).

    Members:
        walk: what to walk; as many as ``IN_FLIGHT`` wait.
        place: the places in order. Of a group of tiles first the exponents, then the rows.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {"walk": In(stream.Signature(Walk)), "place": Out(stream.Signature(Place))}
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Down counters of groups, rows and what is inside a row; addresses by addition."""
        m = Module()
        config, t = self._config, self._config.side
        m.submodules.queue = queue = fifo.SyncFIFO(width=Walk.size, depth=IN_FLIGHT)
        m.d.comb += [
            queue.w_data.eq(self.walk.payload),
            queue.w_en.eq(self.walk.valid),
            self.walk.ready.eq(queue.w_rdy),
        ]
        walk = data.View(Walk, queue.r_data)
        place = self.place.payload

        valid, exponent = Signal(), Signal()
        inner = Signal(5)
        kind = Signal(KIND_BITS)
        row_bits = COUNT_BITS + 2 * config.memory.bytes
        rows, left = Signal(row_bits), Signal(row_bits)
        groups = Signal(COUNT_BITS)
        group, row = Signal(ROW_BITS), Signal(ROW_BITS)
        group_stride, row_stride = Signal(ROW_BITS), Signal(ROW_BITS)

        tiles = Signal()
        m.d.comb += tiles.eq(config.memory.tile_dma & (kind == Transfer.TILES))
        inner_ends, group_ends = Signal(init=1), Signal()
        m.d.comb += [
            place.kind.eq(kind),
            place.exponent.eq(exponent),
            place.address.eq(row),
        ]
        with m.If(tiles & ~exponent):
            m.d.comb += inner_ends.eq(inner == t - 1)
            m.d.comb += place.address.eq(Cat(inner[: exact_log2(t)], row))
        if has_masks(config):
            with m.If(kind == Transfer.MASKS):
                m.d.comb += inner_ends.eq(inner.all())
                m.d.comb += place.address.eq((row + inner)[:ROW_BITS])
        m.d.comb += [
            self.place.valid.eq(valid),
            group_ends.eq(inner_ends & (left == 0)),
            place.pads.eq(exponent & group_ends),
            place.last.eq(group_ends & ~exponent & (groups == 0)),
        ]

        following_group = Signal(ROW_BITS)
        m.d.comb += following_group.eq(group + group_stride)
        with m.If(valid & self.place.ready):
            with m.If(~inner_ends):
                m.d.sync += inner.eq(inner + 1)
            with m.Else():
                m.d.sync += [inner.eq(0), left.eq(left - 1), row.eq(row + row_stride)]
            with m.If(group_ends):
                m.d.sync += left.eq(rows)
                with m.If(exponent):
                    m.d.sync += [exponent.eq(0), row.eq(group)]
                with m.Else():
                    m.d.sync += [
                        exponent.eq(tiles),
                        group.eq(following_group),
                        row.eq(following_group),
                        groups.eq(groups - 1),
                    ]
        with m.If(~valid | (self.place.ready & place.last)):
            count = Mux(
                config.memory.bytes & (walk.kind == Transfer.BYTES), walk.rows << 2, walk.rows
            )
            m.d.comb += queue.r_en.eq(1)
            m.d.sync += [
                valid.eq(queue.r_rdy),
                kind.eq(walk.kind),
                exponent.eq(config.memory.tile_dma & (walk.kind == Transfer.TILES)),
                inner.eq(0),
                rows.eq(count - 1),
                left.eq(count - 1),
                groups.eq(walk.count - 1),
                group.eq(walk.base),
                row.eq(walk.base),
                group_stride.eq(walk.group_stride),
                row_stride.eq(walk.row_stride),
            ]
        return m
