"""The tail of the vector unit: writes rows and tiles, counts, and says what is complete.

What happens to a row when it leaves is written down at its issue, and read when it is there.
"""

from typing import Any

from amaranth.hdl import Array, Const, Module, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from fpgrad.gateware.quantise import Quantiser, TileWriteSignature
from fpgrad.gateware.smallfloat import register
from fpgrad.isa.config import MachineConfig

COUNTER_BITS = 32

#: Rows on their way, at most, as a power of two.
_ROWS_LOG2 = 5


def leaving_layout(config: MachineConfig) -> data.StructLayout:
    """What happens to a row when it leaves.

    ``vector``, ``outbox``, ``mask``: it is written there, at ``address``. ``drop``: it is masked, ``lanes``: its
    lanes from ``limit`` on are; ``count``: its saturation counts. ``tile``: it is row ``row`` of the tile at
    ``tile_address``, with ``tile_last`` its last one. ``last``: it is its instruction's last row.
    """
    memories = config.memory
    depth = max(memories.vector_rows, memories.outbox_rows, memories.mask_rows)
    return data.StructLayout(
        {
            "vector": 1,
            "outbox": 1,
            "mask": 1,
            "address": bits_for(depth - 1),
            "drop": 1,
            "lanes": 1,
            "limit": 6,
            "count": 1,
            "tile": 1,
            "row": exact_log2(config.side),
            "tile_last": 1,
            "tile_address": bits_for(memories.tiles - 1),
            "last": 1,
        }
    )


class Leave(wiring.Component):
    """Collects what leaves the lanes.

    Members:
        issue, row: a row is issued; what will happen to it.
        leaves_next, leaves: a row leaves in the next cycle, in this one.
        leaving: with ``leaves``, what happens to it.
        values, saturated: the lanes' results, one cycle later.
        vector, outbox, mask: a row is written there in this cycle, at ``address``.
        tile_write: the port to tile memory.
        takes, flags: a row of the matrix unit is taken; its saturation.
        saturated_vector, saturated_accumulator: counters; ``clear`` sets them to 0.
        done: once for each instruction, in order, when its last row and last tile are written.
        busy: a tile is not written, or ``done``.
    """

    issue: Signal
    row: Any
    leaves_next: Signal
    leaves: Signal
    leaving: Any
    values: Any
    saturated: Signal
    vector: Signal
    outbox: Signal
    mask: Signal
    address: Signal
    tile_write: Any
    takes: Signal
    flags: Signal
    saturated_vector: Signal
    saturated_accumulator: Signal
    clear: Signal
    done: Signal
    busy: Signal

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        leaving = leaving_layout(config)
        super().__init__(
            {
                "issue": In(1),
                "row": In(leaving),
                "leaves_next": In(1),
                "leaves": In(1),
                "leaving": Out(leaving),
                "values": In(config.vector.number.width).array(config.side),
                "saturated": In(config.side),
                "vector": Out(1),
                "outbox": Out(1),
                "mask": Out(1),
                "address": Out(leaving["address"].shape),
                "tile_write": Out(TileWriteSignature(config)),
                "takes": In(1),
                "flags": In(config.side),
                "saturated_vector": Out(COUNTER_BITS),
                "saturated_accumulator": Out(COUNTER_BITS),
                "clear": In(1),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """The notes on rows that are on their way; then the ways out."""
        del platform
        m = Module()
        m.submodules.following = following = memory.Memory(
            shape=leaving_layout(self._config), depth=1 << _ROWS_LOG2, init=()
        )
        write, read = following.write_port(), following.read_port()
        entry, exit_ = Signal(_ROWS_LOG2), Signal(_ROWS_LOG2)
        with m.If(self.issue):
            m.d.sync += entry.eq(entry + 1)
        with m.If(self.leaves_next):
            m.d.sync += exit_.eq(exit_ + 1)
        m.d.comb += [
            write.en.eq(self.issue),
            write.addr.eq(entry),
            write.data.eq(self.row),
            read.en.eq(self.leaves_next),
            read.addr.eq(exit_),
            self.leaving.eq(read.data),
        ]

        for name in ("vector", "outbox", "mask"):
            m.d.sync += getattr(self, name).eq(self.leaves & self.leaving[name])
        tile, ends = Signal(), Signal()
        m.d.sync += [
            tile.eq(self.leaves & self.leaving.tile),
            ends.eq(self.leaves & self.leaving.last),
        ]
        m.submodules.quantiser = quantiser = Quantiser(self._config)
        m.d.comb += [
            self.address.eq(register(m, self.leaving.address, "leaving_address")),
            *(a.eq(b) for a, b in zip(quantiser.lanes, self.values, strict=True)),
            quantiser.valid.eq(tile),
            quantiser.row.eq(register(m, self.leaving.row, "leaving_row")),
            quantiser.last.eq(register(m, self.leaving.tile_last, "leaving_tile_last")),
            quantiser.tile.eq(register(m, self.leaving.tile_address, "leaving_tile_address")),
        ]
        wiring.connect(m, wiring.flipped(self.tile_write), quantiser.write)
        self._complete(m, ends, tile, quantiser)

        saturated = register(m, ones(self.saturated), "saturated_lanes")
        taken = Signal()
        m.d.sync += taken.eq(self.takes)
        flags = register(m, ones(self.flags), "flagged_lanes")
        with m.If(self.clear):
            m.d.sync += [self.saturated_vector.eq(0), self.saturated_accumulator.eq(0)]
        with m.Else():
            m.d.sync += self.saturated_vector.eq(self.saturated_vector + saturated)
            with m.If(taken):
                m.d.sync += self.saturated_accumulator.eq(self.saturated_accumulator + flags)
        return m

    def _complete(self, m: Module, ends: Signal, tile: Signal, quantiser: Quantiser) -> None:
        """Instructions complete in order.

        One whose rows are written while an earlier one's last tile is not is counted with that
        tile. ``ends``: the row that was written is its instruction's last; ``tile``: of a tile.
        """
        dones = Array(Signal(8, name=f"dones{n}") for n in range(4))
        # Tiles collected and tiles written; at most three lie between.
        collected, written = Signal(2), Signal(2)
        owed, late, finished = Signal(8), Signal(), Signal(8)
        newest = Signal(2)
        m.d.comb += [newest.eq(collected - 1), late.eq(ends & ~tile & (collected != written))]
        with m.If(late):
            m.d.sync += dones[newest].eq(dones[newest] + 1)
        with m.If(tile & quantiser.last):
            m.d.sync += [collected.eq(collected + 1), dones[collected].eq(ends)]
        with m.If(quantiser.written):
            m.d.sync += written.eq(written + 1)
            m.d.comb += finished.eq(dones[written] + (late & (newest == written)))
        m.d.comb += [
            self.done.eq(owed.any()),
            self.busy.eq(self.done | (collected != written)),
        ]
        m.d.sync += owed.eq(owed + finished + (ends & ~tile & ~late) - self.done)


def ones(flags: Value) -> Value:
    """How many are set."""
    total: Value = Const(0, 1)
    for n in range(len(flags)):
        total = total + flags[n]
    return total[: bits_for(len(flags))]
