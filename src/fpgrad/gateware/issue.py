"""The head of the vector unit: holds one instruction, and sends its rows off, one a cycle.

Everything that makes a row wait is here; see :mod:`fpgrad.gateware.vector` for the rules.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from fpgrad.gateware.address import AddressGenerator, LoopNest
from fpgrad.gateware.function import FUNCTION_LATENCY
from fpgrad.gateware.lane import OPERANDS, RESULT, SELECT
from fpgrad.gateware.leave import leaving_layout
from fpgrad.gateware.memory import WRITE_LATENCY
from fpgrad.gateware.smallfloat import MULTIPLY_LATENCY
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import struct_layout, unit_layout
from fpgrad.isa.instructions import Function, Immediate, Source, Space, Unit, VectorOp

#: Cycles from the row read of SCALARS or SEED to the next row's addresses, at least.
SETTLE = SELECT + 1

#: Loops of a pass.
LEVELS = 4


def write_latency(*, function: bool, post: bool) -> int:
    """Cycles from a row's addresses to its write, with a tabled function, with an operand d."""
    return RESULT + FUNCTION_LATENCY * function + MULTIPLY_LATENCY * post + 1


def read_layout(config: MachineConfig) -> data.StructLayout:
    """A read of one of the two memory streams: from which memory, if any, and where."""
    memories = config.memory
    depth = max(memories.vector_rows, memories.inbox_rows, memories.mask_rows)
    return data.StructLayout(
        {"vector": 1, "inbox": 1, "mask": 1, "address": bits_for(depth - 1), "transposed": 1}
    )


#: What the lanes do with a row, the same for all rows of an instruction. ``post``, ``function``: it goes through
#: the second multiplier, through the function pipeline; ``p0`` and ``p1``: the memory is not vector memory.
Work = data.StructLayout(
    {
        "special": 1,
        "scalars": 1,
        "draws": 1,
        "post": 1,
        "function": 1,
        "function_code": 4,
        "relu": 1,
        "reduce": 1,
        **dict.fromkeys(OPERANDS, 3),
        "alu": 3,
        "negate_product": 1,
        "negate_c": 1,
        "i0": struct_layout(Immediate),
        "i1": struct_layout(Immediate),
        "p0_inbox": 1,
        "p0_mask": 1,
        "p1_inbox": 1,
        "p1_mask": 1,
    }
)


class Issue(wiring.Component):
    """Holds one instruction, and issues its rows.

    Members:
        instructions: passes; ``wait`` and ``signal`` are not looked at.
        acc_valid, acc_ready: the stream of the matrix unit's rows.
        issue: a row is issued in this cycle; ``reads`` are its reads, ``row`` is what happens to it
            when it leaves.
        takes: with ``issue``, it takes a row of the matrix unit.
        work: what the lanes do with it.
        first4: it is one of the first four of the innermost loop.
        hold: no row is issued, and a partial sum waits for one.
        busy: a row is to be issued, or one that was cannot be read back yet.
    """

    instructions: Any
    acc_valid: Signal
    acc_ready: Signal
    issue: Signal
    takes: Signal
    reads: Any
    row: Any
    work: Any
    first4: Signal
    hold: Signal
    busy: Signal

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instructions": In(stream.Signature(unit_layout(Unit.VECTOR))),
                "acc_valid": In(1),
                "acc_ready": Out(1),
                "issue": Out(1),
                "takes": Out(1),
                "reads": Out(read_layout(config)).array(2),
                "row": Out(leaving_layout(config)),
                "work": Out(Work),
                "first4": Out(1),
                "hold": Out(1),
                "busy": Out(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Loops and the instruction; when a row may go; where it reads and writes."""
        del platform
        m = Module()
        given = self.instructions.payload
        load, active, fresh, special = (Signal() for _ in range(4))
        m.submodules.nest = nest = LoopNest(levels=LEVELS)
        m.d.comb += [
            special.eq(given.op != VectorOp.PASS),
            nest.load.eq(load),
            nest.single.eq(special),
            *(count.eq(given.loops[f"n{level}"]) for level, count in enumerate(nest.counts)),
            nest.step.eq(self.issue),
            self.instructions.ready.eq(~active | (self.issue & nest.end)),
            load.eq(self.instructions.valid & self.instructions.ready),
        ]
        with m.If(load):
            m.d.sync += [active.eq(1), fresh.eq(1)]
        with m.Elif(self.issue):
            m.d.sync += fresh.eq(0)
            with m.If(nest.end):
                m.d.sync += active.eq(0)

        # What the instruction says, as the unit wants to know it.
        def at_load(value: Any, name: str) -> Signal:
            held = Signal(Value.cast(value).shape(), name=name, reset_less=True)
            with m.If(load):
                m.d.sync += held.eq(value)
            return held

        sources = [given[name] for name in OPERANDS]
        if not self._config.vector.post_multiply:
            sources.pop()

        def used(source: Source) -> Value:
            return ~special & Cat(s == source for s in sources).any()

        work = self._work(given, special, used)
        for name, value in work.items():
            m.d.comb += self.work[name].eq(at_load(value, name))
        tile = at_load(given.tile.enable & ~special, "tile")
        flow = at_load(given.tile.flow, "flow")
        m.d.comb += self.takes.eq(at_load(used(Source.ACC), "takes"))

        # A tile's rows, counted by themselves: with flow, they come from several turns of i0.
        tile_row = Signal(exact_log2(self._config.side))
        tile_ends, rows_end = Signal(), Signal()
        m.d.comb += [
            rows_end.eq(nest.last[0] & nest.last[1]),
            tile_ends.eq(Mux(flow, rows_end | tile_row.all(), nest.last[0])),
        ]
        with m.If(load):
            m.d.sync += tile_row.eq(0)
        with m.Elif(self.issue):
            m.d.sync += tile_row.eq(Mux(tile_ends, 0, tile_row + 1))

        latency = Signal(5)
        with m.Switch(Cat(work["post"], work["function"])):
            for code in range(4):
                with m.Case(code):
                    m.d.comb += latency.eq(write_latency(function=code > 1, post=bool(code & 1)))
        self._wait(
            m,
            nest,
            load=load,
            active=active,
            fresh=fresh,
            latency=at_load(latency, "latency"),
            fence=at_load(given.fence | special, "fence"),
            tile_begins=tile & (tile_row == 0),
        )

        # Where it reads and writes.
        memories = self._config.memory
        for n, source in enumerate((Source.P0, Source.P1)):
            access, read = given[f"p{n}"], self.reads[n]
            needed = used(source) | special if n == 0 else used(source)
            inbox, mask = access.space == Space.INBOX, access.space == Space.MASK
            address = self._walk(m, f"p{n}", access, len(read.address), load, nest).address
            m.d.comb += [
                read.vector.eq(self.issue & at_load(needed & ~inbox & ~mask, f"p{n}_reads_vector")),
                read.inbox.eq(self.issue & at_load(needed & inbox, f"p{n}_reads_inbox")),
                read.mask.eq(self.issue & at_load(needed & mask, f"p{n}_reads_mask")),
                read.address.eq(address),
                read.transposed.eq(at_load(access.transposed & ~special, f"p{n}_transposed")),
            ]
        target = self._walk(m, "target", given.target, len(self.row.address), load, nest)
        m.d.comb += target.restart.eq(self.work.reduce & nest.i0[:2].all())
        m.submodules.tile_address = tiles = AddressGenerator(
            width=bits_for(memories.tiles - 1), levels=LEVELS - 1
        )
        m.d.comb += [
            tiles.load.eq(load),
            tiles.base.eq(given.tile.base),
            *(s.eq(given.tile[f"s{n}"]) for n, s in enumerate(tiles.strides, 1)),
            tiles.step.eq(self.issue & tile_ends),
            tiles.level.eq(Mux(rows_end, Mux(nest.last[2], 2, 1), 0)),
        ]

        def masked(mask: data.View, name: str) -> Value:
            loops = at_load(Cat(mask.loop == n for n in range(1, LEVELS)), f"{name}_loops")
            return (loops & nest.last[1:]).any()

        row = self.row
        written = ~self.work.reduce | nest.tail
        for space in (Space.VECTOR, Space.OUTBOX, Space.MASK):
            name = space.name.lower()
            chosen = at_load((given.target.space == space) & ~special, f"to_{name}")
            m.d.comb += row[name].eq(chosen & written)
        row_limit = at_load(given.row_mask.limit, "row_limit")
        m.d.comb += [
            row.address.eq(target.address),
            row.drop.eq(masked(given.row_mask, "row_mask") & (nest.i0 >= row_limit)),
            row.lanes.eq(masked(given.lane_mask, "lane_mask")),
            row.limit.eq(at_load(given.lane_mask.limit, "lane_limit")),
            row.count.eq(~self.work.special),
            row.tile.eq(tile),
            row.row.eq(tile_row),
            row.tile_last.eq(tile_ends),
            row.tile_address.eq(tiles.address),
            row.last.eq(nest.end),
        ]
        return m

    def _work(self, given: data.View, special: Value, used: Any) -> dict[str, Any]:
        """The fields of ``work`` of the instruction that is ``given``."""
        config = self._config
        memories = {
            f"p{n}_{space.name.lower()}": given[f"p{n}"].space == space
            for n in range(2)
            for space in (Space.INBOX, Space.MASK)
        }
        return {
            "special": special,
            "scalars": given.op == VectorOp.SCALARS,
            "draws": used(Source.RANDOM),
            "post": (given.d != Source.ONE) & bool(config.vector.post_multiply) & ~special,
            "function": (given.function > Function.RELU) & bool(config.tables) & ~special,
            "function_code": given.function,
            "relu": given.function == Function.RELU,
            "reduce": given.reduce & ~special,
            **{name: given[name] for name in (*OPERANDS, "alu", "negate_product", "negate_c")},
            "i0": given.i0,
            "i1": given.i1,
            **memories,
        }

    def _wait(
        self,
        m: Module,
        nest: LoopNest,
        *,
        load: Signal,
        active: Signal,
        fresh: Signal,
        latency: Signal,
        fence: Signal,
        tile_begins: Value,
    ) -> None:
        """When the row that ``nest`` is at may go; ``fresh``: it is its instruction's first."""
        first0, looped, orderly, spaced, free = (Signal() for _ in range(5))
        m.d.comb += [first0.eq(nest.i0 == 0), looped.eq(self.work.reduce & ~first0)]
        # Cycles until a read would see the last row issued; until a tile may begin to leave.
        ahead, gap, settle = Signal(6), Signal(range(64)), Signal(2)
        with m.If(self.issue):
            m.d.sync += ahead.eq(latency + (WRITE_LATENCY - 1))
        with m.Elif(ahead.any()):
            m.d.sync += ahead.eq(ahead - 1)
        with m.If(self.issue & tile_begins):
            m.d.sync += gap.eq(latency + (self._config.side - 1))
        with m.Elif(gap.any()):
            m.d.sync += gap.eq(gap - 1)
        with m.If(self.issue & self.work.special):
            m.d.sync += settle.eq(SETTLE - 1)
        with m.Elif(settle.any()):
            m.d.sync += settle.eq(settle - 1)
        # Partial sums come round every ALU_LATENCY cycles; a late row must meet its own.
        lag = Signal(2)
        with m.If(load | self.issue):
            m.d.sync += lag.eq(0)
        with m.Elif(active & looped):
            m.d.sync += lag.eq(lag + 1)
        m.d.comb += [
            orderly.eq(
                ~fresh
                | ((ahead < latency + WRITE_LATENCY) & ~(fence & ahead.any()) & ~settle.any())
            ),
            spaced.eq(~tile_begins | (gap <= latency)),
            free.eq(active & orderly & spaced & (~looped | ~lag.any())),
            self.acc_ready.eq(free & self.takes),
            self.issue.eq(free & (~self.takes | self.acc_valid)),
            self.hold.eq(looped & ~self.issue),
            self.first4.eq(~nest.i0[2:].any()),
            self.busy.eq(active | ahead.any()),
        ]

    def _walk(
        self, m: Module, name: str, given: data.View, width: int, load: Signal, nest: LoopNest
    ) -> AddressGenerator:
        """Row addresses of a stream or target."""
        m.submodules[f"{name}_address"] = walk = AddressGenerator(width=width, levels=LEVELS)
        m.d.comb += [
            walk.load.eq(load),
            walk.base.eq(given.base),
            *(stride.eq(given[f"s{n}"]) for n, stride in enumerate(walk.strides)),
            walk.step.eq(self.issue),
            walk.level.eq(nest.level),
        ]
        return walk
