"""The vector unit: passes over rows, one row a cycle.

A row's cycles are counted from the one in which its addresses are on the memories' ports (its issue):
2 operands are selected; 3, 4 multiplier; 5 to 8 alu; 9 the alu's result is there. From there a row
takes one of four ways out: straight on; through the second multiplier (2 cycles); through the
function pipeline (6); through both (8). One cycle later it is masked and on the write port, so that
a pass's latency from addresses to write is 10, 12, 16 or 18 cycles (:func:`write_latency`). Nothing
behind the issue ever waits; what must wait, waits there:

* rows leave in the order in which they came: a pass with a shorter way waits for a longer one's last;
* a pass with ``fence`` waits until the last row of all earlier passes can be read back. It does not
  wait for tiles, which this unit cannot read; a pass's ``done`` does, and stays in order;
* a row with an operand ACC waits for the row; inside a reducing loop it then comes a multiple of
  4 cycles late, because partial sums come round every 4 cycles;
* first rows of quantised tiles leave at least T cycles apart.
"""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from fpgrad.gateware.address import AddressGenerator, LoopNest
from fpgrad.gateware.function import FUNCTION_LATENCY
from fpgrad.gateware.lane import ALU, OPERANDS, QUEUE_DEPTH, RESULT, SELECT, Lane
from fpgrad.gateware.memory import WRITE_LATENCY, RowReadSignature, RowWriteSignature
from fpgrad.gateware.quantise import Quantiser, TileWriteSignature
from fpgrad.gateware.smallfloat import MULTIPLY_LATENCY, register
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import Alu, Function, Source, Space, Unit, VectorOp

COUNTER_BITS = 32

#: Cycles from the row read of SCALARS or SEED to the next row's addresses, at least.
SETTLE = SELECT + 1

#: Rows on their way, at most, as a power of two.
_ROWS_LOG2 = 5


def write_latency(*, function: bool, post: bool) -> int:
    """Cycles from a row's addresses to its write, with a tabled function, with an operand d."""
    return RESULT + FUNCTION_LATENCY * function + MULTIPLY_LATENCY * post + 1


class AccumulatedRows(wiring.Signature):
    """Rows from the matrix unit, seen from it: a stream whose payload is a signal a lane."""

    def __init__(self, *, width: int, side: int) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "ready": In(1),
                "codes": Out(width).array(side),
                "flags": Out(side),
            }
        )


class VectorUnit(wiring.Component):
    """The vector unit of a machine.

    Members:
        instructions: passes; ``wait`` and ``signal`` are not looked at.
        done: once for each instruction, in order, when its last row and last tile are written.
        acc: rows of the matrix unit.
        vector_read, inbox_read: two read ports each; ``stall`` is never used.
        vector_write, outbox_write, tile_write: write ports.
        saturated_vector, saturated_accumulator: counters; ``clear`` sets them to 0.
        busy: an instruction is here and not complete.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        width, side, m = config.vector.number.width, config.side, config.memory
        vector = {"width": width, "depth": m.vector_rows, "side": side}
        inbox = {"width": width, "depth": m.inbox_rows, "side": side}
        outbox = {"width": width, "depth": m.outbox_rows, "side": side}
        super().__init__(
            {
                "instructions": In(stream.Signature(unit_layout(Unit.VECTOR))),
                "done": Out(1),
                "acc": In(AccumulatedRows(width=width, side=side)),
                "vector_read": Out(RowReadSignature(**vector)).array(2),
                "inbox_read": Out(RowReadSignature(**inbox)).array(2),
                "vector_write": Out(RowWriteSignature(**vector)),
                "outbox_write": Out(RowWriteSignature(**outbox)),
                "tile_write": Out(TileWriteSignature(config)),
                "saturated_vector": Out(COUNTER_BITS),
                "saturated_accumulator": Out(COUNTER_BITS),
                "clear": In(1),
                "busy": Out(1),
            }
        )
        memories = config.memory
        self._leaving = data.StructLayout(
            {
                "vector": 1,
                "outbox": 1,
                "address": bits_for(max(memories.vector_rows, memories.outbox_rows) - 1),
                "drop": 1,
                "lanes": 1,
                "limit": 6,
                "count": 1,
                "tile": 1,
                "row": exact_log2(side),
                "tile_last": 1,
                "tile_address": bits_for(memories.tiles - 1),
                "last": 1,
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Issue; follow the rows with their control; collect what leaves."""
        m = Module()
        self._issue(m)
        self._lanes(m)
        self._leave(m)
        return m

    def _issue(self, m: Module) -> None:
        """Hold one instruction, and put a row's addresses on the ports each cycle."""
        config, memories = self._config, self._config.memory
        given = self.instructions.payload
        load, issue, active = Signal(), Signal(), Signal()
        self.load, self.issue = load, issue

        m.submodules.nest = nest = LoopNest()
        special = Signal()
        m.d.comb += [
            special.eq(given.op != VectorOp.PASS),
            nest.load.eq(load),
            nest.single.eq(special),
            nest.n2.eq(given.loops.n2),
            nest.n1.eq(given.loops.n1),
            nest.n0.eq(given.loops.n0),
            nest.step.eq(issue),
        ]
        self.nest = nest
        last = Signal()
        m.d.comb += [
            last.eq(nest.last0 & nest.last1 & nest.last2),
            self.instructions.ready.eq(~active | (issue & last)),
            load.eq(self.instructions.valid & self.instructions.ready),
        ]
        self.last = last
        fresh = Signal()
        with m.If(load):
            m.d.sync += [active.eq(1), fresh.eq(1)]
        with m.Elif(issue):
            m.d.sync += fresh.eq(0)
            with m.If(last):
                m.d.sync += active.eq(0)

        # What the instruction says, as the issue wants to know it.
        def at_load(value: Value, name: str) -> Signal:
            held = Signal(Value.cast(value).shape(), name=name, reset_less=True)
            with m.If(load):
                m.d.sync += held.eq(value)
            return held

        self.at_load = at_load
        sources = [getattr(given, name) for name in OPERANDS]
        if not config.vector.post_multiply:
            sources.pop()

        def used(source: Source) -> Value:
            return ~special & Cat(s == source for s in sources).any()

        post = (given.d != Source.ONE) & bool(config.vector.post_multiply) & ~special
        function = (given.function > Function.RELU) & bool(config.tables) & ~special
        self.post, self.function = at_load(post, "post"), at_load(function, "function")
        latency = Signal(5)
        with m.Switch(Cat(post, function)):
            for code in range(4):
                with m.Case(code):
                    m.d.comb += latency.eq(write_latency(function=code > 1, post=bool(code & 1)))
        latency = at_load(latency, "latency")
        self.special = at_load(special, "special")
        fence = at_load(given.fence | special, "fence")
        takes = at_load(used(Source.ACC), "takes")
        tile = at_load(given.tile.enable & ~special, "tile")
        reduce = at_load(given.reduce & ~special, "reduce")
        self.takes, self.tile, self.reduce = takes, tile, reduce
        self.draws = at_load(used(Source.RANDOM), "draws")
        first0 = Signal()
        m.d.comb += first0.eq(nest.i0 == 0)

        # Cycles until a read would see the last row issued; until a tile may begin to leave.
        ahead, gap, settle = Signal(6), Signal(range(64)), Signal(2)
        with m.If(issue):
            m.d.sync += ahead.eq(latency + (WRITE_LATENCY - 1))
        with m.Elif(ahead.any()):
            m.d.sync += ahead.eq(ahead - 1)
        with m.If(issue & first0 & tile):
            m.d.sync += gap.eq(latency + (config.side - 1))
        with m.Elif(gap.any()):
            m.d.sync += gap.eq(gap - 1)
        with m.If(issue & self.special):
            m.d.sync += settle.eq(SETTLE - 1)
        with m.Elif(settle.any()):
            m.d.sync += settle.eq(settle - 1)
        # Partial sums come round every ALU_LATENCY cycles; a late row must meet its own.
        lag = Signal(2)
        looped = Signal()
        m.d.comb += looped.eq(reduce & ~first0)
        with m.If(load | issue):
            m.d.sync += lag.eq(0)
        with m.Elif(active & looped):
            m.d.sync += lag.eq(lag + 1)

        orderly, spaced, free = Signal(), Signal(), Signal()
        m.d.comb += [
            orderly.eq(
                ~fresh
                | ((ahead < latency + WRITE_LATENCY) & ~(fence & ahead.any()) & ~settle.any())
            ),
            spaced.eq(~tile | ~first0 | (gap <= latency)),
            free.eq(active & orderly & spaced & (~looped | ~lag.any())),
            self.acc.ready.eq(free & takes),
            issue.eq(free & (~takes | self.acc.valid)),
        ]
        self.hold = Signal()
        m.d.comb += self.hold.eq(looped & ~issue)
        self.first4 = Signal()
        m.d.comb += self.first4.eq(~nest.i0[2:].any())
        self.active, self.ahead = active, ahead

        # Addresses.
        transposed = [at_load(p.transposed & ~special, "transposed") for p in (given.p0, given.p1)]
        self.from_inbox: list[Signal] = []
        depth = max(memories.vector_rows, memories.inbox_rows)
        for n, (given_stream, source) in enumerate(((given.p0, Source.P0), (given.p1, Source.P1))):
            generator = self._generator(m, f"p{n}", given_stream, bits_for(depth - 1))
            needed = used(source) | special if n == 0 else used(source)
            inbox = given_stream.space == Space.INBOX
            reads_vector = at_load(needed & ~inbox, f"p{n}_reads_vector")
            reads_inbox = at_load(needed & inbox, f"p{n}_reads_inbox")
            self.from_inbox.append(reads_inbox)
            m.d.comb += [
                self.vector_read[n].en.eq(issue & reads_vector),
                self.vector_read[n].address.eq(generator.address),
                self.vector_read[n].transposed.eq(transposed[n]),
                self.inbox_read[n].en.eq(issue & reads_inbox),
                self.inbox_read[n].address.eq(generator.address),
                self.inbox_read[n].transposed.eq(transposed[n]),
            ]
        depth = max(memories.vector_rows, memories.outbox_rows)
        self.target = self._generator(m, "target", given.target, bits_for(depth - 1))
        m.d.comb += self.target.restart.eq(reduce & nest.i0[:2].all())
        self.tile_target = self._generator(
            m, "tile_target", given.tile, bits_for(memories.tiles - 1), inner=False
        )

    def _generator(
        self, m: Module, name: str, given: data.View, width: int, *, inner: bool = True
    ) -> AddressGenerator:
        m.submodules[f"{name}_address"] = generator = AddressGenerator(width=width)
        m.d.comb += [
            generator.load.eq(self.load),
            generator.base.eq(given.base),
            generator.s2.eq(given.s2),
            generator.s1.eq(given.s1),
            generator.s0.eq(given.s0 if inner else 0),
            generator.step.eq(self.issue),
            generator.last0.eq(self.nest.last0),
            generator.last1.eq(self.nest.last1),
        ]
        return generator

    def _lanes(self, m: Module) -> None:
        """The control of a row follows it from stage to stage."""
        config, side = self._config, self._config.side
        fmt, pointer_bits = config.vector.number, exact_log2(QUEUE_DEPTH)
        given, at_load = self.instructions.payload, self.at_load

        # A row that was issued, and which way it goes, in each cycle of its life.
        lifetime = write_latency(function=True, post=True)
        rows = [self.issue]
        for cycle in range(1, lifetime):
            row = Signal(name=f"row{cycle}")
            m.d.sync += row.eq(rows[-1])
            rows.append(row)

        def later(value: Value, cycles: int, name: str) -> Value:
            for n in range(cycles):
                value = register(m, value, f"{name}{n + 1}")
            return value

        ways: list[Value] = [Cat(self.post, self.function)]
        for cycle in range(1, lifetime):
            ways.append(register(m, ways[-1], f"way{cycle}"))

        def passing(cycle: int, *, function: bool, post: bool) -> Value:
            if (function and not config.tables) or (post and not config.vector.post_multiply):
                return Const(0, 1)
            return rows[cycle] & (ways[cycle] == (post | function << 1))

        # Immediates and scalars become one constant for each operand.
        scalars = Array(Signal(fmt.width, name=f"scalar{n}") for n in range(side))
        immediates: list[Value] = []
        for n, immediate in enumerate((given.i0, given.i1)):
            value = at_load(immediate.value[: fmt.width], f"immediate{n}")
            named = at_load(immediate.scalar, f"named{n}")
            chosen = Mux(named, scalars[value[: exact_log2(side)]], value)
            immediates.append(register(m, chosen, f"immediate{n}_1"))
        special2 = later(self.special, SELECT, "special")
        scalars2 = rows[SELECT] & later(
            at_load(given.op == VectorOp.SCALARS, "scalars"), SELECT, "scalars"
        )
        seed2 = rows[SELECT] & special2 & ~scalars2
        controls: dict[str, Value] = {
            "random_step": rows[SELECT] & later(self.draws, SELECT, "draws"),
            "seed": seed2,
            "p0_inbox": later(self.from_inbox[0], SELECT, "p0_inbox"),
            "p1_inbox": later(self.from_inbox[1], SELECT, "p1_inbox"),
        }
        for name in OPERANDS:
            source = register(m, at_load(getattr(given, name), name), f"{name}1")
            constant = Signal(fmt.width, name=f"{name}_constant")
            with m.Switch(source):
                with m.Case(Source.ONE):
                    m.d.comb += constant.eq(fmt.one)
                with m.Case(Source.I0):
                    m.d.comb += constant.eq(immediates[0])
                with m.Case(Source.I1):
                    m.d.comb += constant.eq(immediates[1])
            controls[name] = register(m, source, f"{name}2")
            controls[f"{name}_constant"] = register(m, constant, f"{name}_constant2")

        controls["negate_product"] = later(
            at_load(given.negate_product, "negate_product"), SELECT + 2, "negate_product"
        )
        alu = Mux(self.reduce & self.first4, Alu.PASS, at_load(given.alu, "alu"))
        controls["alu"] = later(alu, ALU, "alu")
        controls["negate_c"] = later(at_load(given.negate_c, "negate_c"), ALU, "negate_c")
        controls["feedback"] = later(self.reduce & (~self.first4 | self.hold), ALU, "feedback")
        controls["hold"] = later(self.hold, ALU, "hold")
        controls["relu"] = later(at_load(given.function == Function.RELU, "relu"), RESULT, "relu")
        controls["function"] = later(
            at_load(given.function, "function_code"), RESULT, "function_code"
        )

        # The second multiplier, and where rows leave.
        by_function = RESULT + FUNCTION_LATENCY
        read, write = Signal(pointer_bits), Signal(pointer_bits)
        d_write = rows[SELECT] & ways[SELECT][0]
        d_read = passing(RESULT - 1, function=False, post=True) | passing(
            by_function - 1, function=True, post=True
        )
        with m.If(d_write):
            m.d.sync += write.eq(write + 1)
        with m.If(d_read):
            m.d.sync += read.eq(read + 1)
        controls |= {
            "d_write": d_write,
            "d_write_address": write,
            "d_read": d_read,
            "d_read_address": read,
            "post_function": passing(by_function, function=True, post=True),
            "take_function": passing(by_function, function=True, post=False),
            "take_post": passing(RESULT + MULTIPLY_LATENCY, function=False, post=True)
            | passing(by_function + MULTIPLY_LATENCY, function=True, post=True),
        }
        # In this cycle a row leaves, in the next.
        leaves, leaves_next = Signal(), Signal()
        ends = [
            (write_latency(function=f, post=p) - 1, {"function": f, "post": p})
            for f in (False, True)
            for p in (False, True)
        ]
        m.d.comb += [
            leaves.eq(Cat(passing(end, **way) for end, way in ends).any()),
            leaves_next.eq(Cat(passing(end - 1, **way) for end, way in ends).any()),
        ]
        self.leaves = leaves

        leaving = self._follow(m, leaves_next)
        self.leaving = leaving
        controls["count"] = leaving.count & leaves

        lanes = [Lane(config) for _ in range(side)]
        self.lanes = lanes
        for n, lane in enumerate(lanes):
            m.submodules[f"lane{n}"] = lane
            accumulated = later(self.acc.codes[n], SELECT, f"accumulated{n}_")
            m.d.comb += [
                lane.vector0.eq(self.vector_read[0].data[n]),
                lane.vector1.eq(self.vector_read[1].data[n]),
                lane.inbox0.eq(self.inbox_read[0].data[n]),
                lane.inbox1.eq(self.inbox_read[1].data[n]),
                lane.accumulated.eq(accumulated),
                lane.keep.eq(~(leaving.drop | (leaving.lanes & (leaving.limit <= n)))),
            ]
            m.d.comb += [getattr(lane, name).eq(value) for name, value in controls.items()]
            with m.If(scalars2):
                m.d.sync += scalars[n].eq(lane.row0)

    def _follow(self, m: Module, leaves_next: Value) -> data.View:
        """What happens to a row when it leaves is written down at its issue."""
        given, at_load, nest = self.instructions.payload, self.at_load, self.nest
        m.submodules.following = following = memory.Memory(
            shape=self._leaving, depth=1 << _ROWS_LOG2, init=()
        )
        write, read = following.write_port(), following.read_port()
        entry, exit_ = Signal(_ROWS_LOG2), Signal(_ROWS_LOG2)
        with m.If(self.issue):
            m.d.sync += entry.eq(entry + 1)
        with m.If(leaves_next):
            m.d.sync += exit_.eq(exit_ + 1)

        def masks(mask: data.View, name: str) -> Value:
            by1 = at_load(mask.loop == 1, f"{name}1")
            by2 = at_load(mask.loop > 1, f"{name}2")
            return (by1 & nest.last1) | (by2 & nest.last2)

        row_limit = at_load(given.row_mask.limit, "row_limit")
        space = at_load(Mux(given.op == VectorOp.PASS, given.target.space, Space.NONE), "space")
        written = ~self.reduce | nest.tail
        now = data.View(self._leaving, Signal(self._leaving, name="now"))
        m.d.comb += [
            now.vector.eq((space == Space.VECTOR) & written),
            now.outbox.eq((space == Space.OUTBOX) & written),
            now.address.eq(self.target.address),
            now.drop.eq(masks(given.row_mask, "row_mask") & (nest.i0 >= row_limit)),
            now.lanes.eq(masks(given.lane_mask, "lane_mask")),
            now.limit.eq(at_load(given.lane_mask.limit, "lane_limit")),
            now.count.eq(~self.special),
            now.tile.eq(self.tile),
            now.row.eq(nest.i0),
            now.tile_last.eq(nest.last0),
            now.tile_address.eq(self.tile_target.address),
            now.last.eq(self.last),
            write.en.eq(self.issue),
            write.addr.eq(entry),
            write.data.eq(now),
            read.en.eq(leaves_next),
            read.addr.eq(exit_),
        ]
        return read.data

    def _leave(self, m: Module) -> None:
        """Write rows and tiles, count, and say what is complete."""
        config, leaving, leaves = self._config, self.leaving, self.leaves
        out: dict[str, Signal] = {}
        for name in ("vector", "outbox", "tile", "last"):
            out[name] = Signal(name=f"leaving_{name}")
            m.d.sync += out[name].eq(leaves & leaving[name])
        address = register(m, leaving.address, "leaving_address")
        m.d.comb += [
            self.vector_write.en.eq(out["vector"]),
            self.vector_write.address.eq(address),
            self.outbox_write.en.eq(out["outbox"]),
            self.outbox_write.address.eq(address),
        ]
        m.submodules.quantiser = quantiser = Quantiser(config)
        for n, lane in enumerate(self.lanes):
            m.d.comb += [
                self.vector_write.data[n].eq(lane.value),
                self.outbox_write.data[n].eq(lane.value),
                quantiser.lanes[n].eq(lane.value),
            ]
        m.d.comb += [
            quantiser.valid.eq(out["tile"]),
            quantiser.row.eq(register(m, leaving.row, "leaving_row")),
            quantiser.last.eq(register(m, leaving.tile_last, "leaving_tile_last")),
            quantiser.tile.eq(register(m, leaving.tile_address, "leaving_tile_address")),
        ]
        wiring.connect(m, wiring.flipped(self.tile_write), quantiser.write)

        self._complete(m, out["last"], out["tile"], quantiser)

        saturated = register(m, self._ones([lane.saturated for lane in self.lanes]), "saturated")
        taken = Signal()
        m.d.sync += taken.eq(self.issue & self.takes)
        flags = register(m, self._ones(list(self.acc.flags)), "flags")
        with m.If(self.clear):
            m.d.sync += [self.saturated_vector.eq(0), self.saturated_accumulator.eq(0)]
        with m.Else():
            m.d.sync += self.saturated_vector.eq(self.saturated_vector + saturated)
            with m.If(taken):
                m.d.sync += self.saturated_accumulator.eq(self.saturated_accumulator + flags)

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
        m.d.comb += self.done.eq(owed.any())
        m.d.sync += owed.eq(owed + finished + (ends & ~tile & ~late) - self.done)
        m.d.comb += self.busy.eq(
            self.active | self.ahead.any() | self.done | (collected != written)
        )

    @staticmethod
    def _ones(flags: list[Value]) -> Value:
        total: Value = Const(0, 1)
        for flag in flags:
            total = total + flag
        return total[: bits_for(len(flags))]
