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
* first rows of quantised tiles leave at least T cycles apart. A tile's rows are those of one turn of
  i0; with ``flow`` a tile takes the rows as they come, until it is full or i1 and i0 are at their
  end, so that only a tile after one that is not full waits.

A tile's last row is written :func:`~fpgrad.gateware.quantise.quantise_latency` cycles after the write
of its last row of numbers would be, or T cycles after the last row of the tile before it if that is
later: as when ``flow`` ends with a tile that is not full. A pass is done one cycle after its last row
and last tile are written, and at least one cycle after the pass before it. Mask memory has the
latencies of the other row memories.
"""

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.gateware.function import FUNCTION_LATENCY
from fpgrad.gateware.gating import gate, gated
from fpgrad.gateware.issue import Issue, write_latency
from fpgrad.gateware.lane import ALU, OPERANDS, QUEUE_DEPTH, RESULT, SELECT, Lane
from fpgrad.gateware.leave import COUNTER_BITS, Leave
from fpgrad.gateware.memory import RowReadSignature, RowWriteSignature
from fpgrad.gateware.quantise import TileWriteSignature
from fpgrad.gateware.smallfloat import ALU_LATENCY, MULTIPLY_LATENCY, register
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import Alu, Source, Unit


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
        vector_read, inbox_read, mask_read: two read ports each; ``stall`` is never used.
        vector_write, outbox_write, mask_write, tile_write: write ports. There are ports to mask
            memory only if the machine has one.
        saturated_vector, saturated_accumulator: counters; ``clear`` sets them to 0.
        busy: an instruction is here and not complete.
    """

    instructions: Any
    done: Signal
    acc: Any
    vector_read: Any
    inbox_read: Any
    mask_read: Any
    vector_write: Any
    outbox_write: Any
    mask_write: Any
    tile_write: Any
    saturated_vector: Signal
    saturated_accumulator: Signal
    clear: Signal
    busy: Signal

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        width, side, m = config.vector.number.width, config.side, config.memory
        vector = {"width": width, "depth": m.vector_rows, "side": side}
        inbox = {"width": width, "depth": m.inbox_rows, "side": side}
        outbox = {"width": width, "depth": m.outbox_rows, "side": side}
        ports = {
            "vector_read": Out(RowReadSignature(**vector)).array(2),
            "inbox_read": Out(RowReadSignature(**inbox)).array(2),
            "vector_write": Out(RowWriteSignature(**vector)),
            "outbox_write": Out(RowWriteSignature(**outbox)),
        }
        self._spaces = ["vector", "inbox"]
        if m.mask_rows:
            mask = {"width": 1, "depth": m.mask_rows, "side": side}
            ports["mask_read"] = Out(RowReadSignature(**mask)).array(2)
            ports["mask_write"] = Out(RowWriteSignature(**mask))
            self._spaces.append("mask")
        super().__init__(
            {
                "instructions": In(stream.Signature(unit_layout(Unit.VECTOR))),
                "done": Out(1),
                "acc": In(AccumulatedRows(width=width, side=side)),
                **ports,
                "tile_write": Out(TileWriteSignature(config)),
                "saturated_vector": Out(COUNTER_BITS),
                "saturated_accumulator": Out(COUNTER_BITS),
                "clear": In(1),
                "busy": Out(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Issue; lanes and the control that follows the rows through them; what leaves."""
        m = Module()
        m.submodules.issue = issue = Issue(self._config)
        m.submodules.leave = leave = Leave(self._config)
        wiring.connect(m, wiring.flipped(self.instructions), issue.instructions)
        m.d.comb += [
            issue.acc_valid.eq(self.acc.valid),
            self.acc.ready.eq(issue.acc_ready),
            leave.issue.eq(issue.issue),
            leave.row.eq(issue.row),
            leave.takes.eq(issue.issue & issue.takes),
            leave.flags.eq(self.acc.flags),
            leave.clear.eq(self.clear),
            self.done.eq(leave.done),
            self.busy.eq(issue.busy | leave.busy),
            self.saturated_vector.eq(leave.saturated_vector),
            self.saturated_accumulator.eq(leave.saturated_accumulator),
        ]
        for n, read in enumerate(issue.reads):
            for space in self._spaces:
                port = getattr(self, f"{space}_read")[n]
                m.d.comb += [
                    port.en.eq(read[space]),
                    port.address.eq(read.address),
                    port.transposed.eq(read.transposed),
                ]
        lanes = self._lanes(m, issue, leave, platform)
        values = {
            "vector": [lane.value for lane in lanes],
            "outbox": [lane.value for lane in lanes],
        }
        if self._config.memory.mask_rows:
            values["mask"] = [lane.positive for lane in lanes]
        for space, data in values.items():
            port = getattr(self, f"{space}_write")
            m.d.comb += [port.en.eq(getattr(leave, space)), port.address.eq(leave.address)]
            m.d.comb += [a.eq(b) for a, b in zip(port.data, data, strict=True)]
        m.d.comb += leave.saturated.eq(Cat(lane.saturated for lane in lanes))
        m.d.comb += [a.eq(lane.value) for a, lane in zip(leave.values, lanes, strict=True)]
        wiring.connect(m, wiring.flipped(self.tile_write), leave.tile_write)
        return m

    def _lanes(self, m: Module, issue: Issue, leave: Leave, platform: object) -> list[Lane]:
        """The control of a row follows it from stage to stage."""
        config, side = self._config, self._config.side
        fmt, work, pointer_bits = config.vector.number, issue.work, exact_log2(QUEUE_DEPTH)

        # A row that was issued, and which way it goes, in each cycle of its life.
        lifetime = write_latency(function=True, post=True)
        rows: list[Value] = [issue.issue]
        for cycle in range(1, lifetime):
            row = Signal(name=f"row{cycle}")
            m.d.sync += row.eq(rows[-1])
            rows.append(row)

        def later(value: Value, cycles: int, name: str) -> Value:
            for n in range(cycles):
                value = register(m, value, f"{name}{n + 1}")
            return value

        ways: list[Value] = [Cat(work.post, work.function)]
        for cycle in range(1, lifetime):
            ways.append(register(m, ways[-1], f"way{cycle}"))

        def passing(cycle: int, *, function: bool, post: bool) -> Value:
            if (function and not config.tables) or (post and not config.vector.post_multiply):
                return Const(0, 1)
            return rows[cycle] & (ways[cycle] == (post | function << 1))

        # Immediates and scalars become one constant for each operand.
        scalars = Array(Signal(fmt.width, name=f"scalar{n}") for n in range(side))
        immediates: list[Value] = []
        for n in range(2):
            value = work[f"i{n}"].value[: fmt.width]
            chosen = Mux(work[f"i{n}"].scalar, scalars[value[: exact_log2(side)]], value)
            immediates.append(register(m, chosen, f"immediate{n}"))
        special2 = later(work.special, SELECT, "special")
        scalars2 = rows[SELECT] & later(work.scalars, SELECT, "scalars")
        controls: dict[str, Value] = {
            "random_step": rows[SELECT] & later(work.draws, SELECT, "draws"),
            "seed": rows[SELECT] & special2 & ~scalars2,
        }
        for stream_memory in ("p0_inbox", "p1_inbox", "p0_mask", "p1_mask"):
            controls[stream_memory] = later(work[stream_memory], SELECT, stream_memory)
        for name in OPERANDS:
            source = register(m, work[name], f"{name}1")
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

        alu = Mux(work.reduce & issue.first4, Alu.PASS, work.alu)
        feedback = work.reduce & (~issue.first4 | issue.hold)
        controls |= {
            "negate_product": later(work.negate_product, SELECT + 2, "negate_product"),
            "alu": later(alu, ALU, "alu"),
            "negate_c": later(work.negate_c, ALU, "negate_c"),
            "feedback": later(feedback, ALU, "feedback"),
            "hold": later(issue.hold, ALU, "hold"),
            "relu": later(work.relu, RESULT, "relu"),
            "function": later(work.function_code, RESULT, "function_code"),
        }

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
        m.d.comb += [leave.leaves.eq(leaves), leave.leaves_next.eq(leaves_next)]
        leaving = leave.leaving
        controls["count"] = leaving.count & leaves

        # Each unit works where a row is in it, and the alu where partial sums pass through it too.
        tabled = passing(RESULT, function=True, post=False) | passing(
            RESULT, function=True, post=True
        )
        again = passing(RESULT, function=False, post=True) | passing(
            by_function, function=True, post=True
        )
        for name, enters, latency in (
            ("multiplier", rows[SELECT + 1], MULTIPLY_LATENCY),
            ("alu", rows[ALU] | controls["hold"], ALU_LATENCY),
            ("function", tabled, FUNCTION_LATENCY),
            ("post", again, MULTIPLY_LATENCY),
            # Until a saturation that was counted is away again.
            ("lane", rows[0], lifetime + 1),
        ):
            gate(m, platform, name, enters, lingering=latency - 1)

        lanes = [Lane(config) for _ in range(side)]
        for n, lane in enumerate(lanes):
            m.submodules[f"lane{n}"] = gated(lane, platform, "lane")
            accumulated = later(self.acc.codes[n], SELECT, f"accumulated{n}_")
            m.d.comb += [
                lane.accumulated.eq(accumulated),
                lane.keep.eq(~(leaving.drop | (leaving.lanes & (leaving.limit <= n)))),
            ]
            for space in self._spaces:
                for k, port in enumerate(getattr(self, f"{space}_read")):
                    m.d.comb += getattr(lane, f"{space}{k}").eq(port.data[n])
            m.d.comb += [getattr(lane, name).eq(value) for name, value in controls.items()]
            with m.If(scalars2):
                m.d.sync += scalars[n].eq(lane.row0)
        return lanes
