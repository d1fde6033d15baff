"""The load and store units: rows between external memory and the buffers of the vector unit.

The port to external memory is two pairs of streams. Reading: a request names rows, their words come
back as beats in the order of the requests. Writing: a request names rows, the beats follow on a
stream of their own. Memory must answer reads that are requested after a write's last beat was taken
with what was written.
"""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import COUNT_BITS, DRAM_BITS, ROW_BITS, Unit
from fpgrad.isa.registers import BASE_REGISTERS, WORD_BITS

STEP_BITS = 32

#: Rows of the outbox that may be on their way to external memory's port.
STORE_QUEUE = 4

Bases = data.ArrayLayout(DRAM_BITS, BASE_REGISTERS)

#: A request for ``rows`` rows from ``row`` on.
Rows = data.StructLayout({"row": DRAM_BITS, "rows": COUNT_BITS})


def beat_layout(config: MachineConfig) -> data.ArrayLayout:
    """One beat of the memory port: ``dram_words_per_cycle`` words, the first lane's lowest."""
    return data.ArrayLayout(WORD_BITS, config.memory.dram_words_per_cycle)


class Load(wiring.Component):
    """Executes LOAD instructions one at a time.

    The address of group ``i`` is ``source + number*stride``. One multiplier makes these numbers, and
    before them the products of step and stride that the instruction's addresses contain, so that
    requests leave one per cycle. With ``gather`` the index rows are requested two ahead, between
    the groups, and wait in a buffer of two rows.

    Members:
        instruction, step: from the sequencer.
        bases: the base registers.
        done: pulses in the cycle after an instruction's last row was written to the inbox, so that
            what waits for its token reads the row.
        request, beats: the read half of the memory port.
        inbox_write, inbox_row, inbox_data: the inbox's write port; ``inbox_data`` are T codes.
        error: pulses when a request is outside external memory.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(unit_layout(Unit.LOAD))),
                "step": In(STEP_BITS),
                "bases": In(Bases),
                "done": Out(1),
                "request": Out(stream.Signature(Rows)),
                "beats": In(stream.Signature(beat_layout(config))),
                "inbox_write": Out(1),
                "inbox_row": Out(ROW_BITS),
                "inbox_data": Out(data.ArrayLayout(config.vector.number.width, config.side)),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Addresses and requests; :meth:`_take` sorts what comes back."""
        del platform
        m = Module()
        t, w = self._config.side, self._config.memory.dram_words_per_cycle
        lane_bits = exact_log2(t)
        i = Signal(unit_layout(Unit.LOAD), reset_less=True)
        step = Signal(STEP_BITS, reset_less=True)

        # The address pipeline: operands, product, sum. It moves when the request in front does.
        factor = Signal(WORD_BITS, reset_less=True)
        stride = Signal(DRAM_BITS, reset_less=True)
        product = Signal(WORD_BITS + DRAM_BITS, reset_less=True)
        source = Signal(WORD_BITS + DRAM_BITS, reset_less=True)
        index = Signal(WORD_BITS + DRAM_BITS, reset_less=True)
        address = Signal(WORD_BITS + DRAM_BITS, reset_less=True)
        request_rows = Signal(COUNT_BITS, reset_less=True)
        move = Signal()
        factor_valid, product_valid, request_valid = Signal(), Signal(), Signal()
        base = Array(self.bases[n] for n in range(BASE_REGISTERS))

        # Requests: groups asked for, and index rows asked for, counted in instructions.
        index_rows = Signal(COUNT_BITS)
        asked, asked_blocks, asked_index = (Signal(COUNT_BITS + 1) for _ in range(3))
        got_index, got_blocks = Signal(COUNT_BITS + 1), Signal(COUNT_BITS + 1)
        ask_index, ask_group = Signal(), Signal()
        factor_index, product_index = Signal(), Signal()

        # The index buffer: two rows.
        beat_bits = exact_log2(t // w)
        store = memory.Memory(shape=w * WORD_BITS, depth=2 * (t // w), init=[])
        m.submodules.indices = store
        fill, look = store.write_port(), store.read_port(domain="comb")
        number = Signal(WORD_BITS)
        m.d.comb += look.addr.eq(Cat(asked[lane_bits - beat_bits : lane_bits], asked_blocks[0]))
        words = Array(look.data.word_select(k, WORD_BITS) for k in range(w))
        m.d.comb += number.eq(
            Mux(i.gather, words[asked[: lane_bits - beat_bits]] if w > 1 else look.data, asked)
        )

        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.instruction.ready.eq(1)
                with m.If(self.instruction.valid):
                    m.d.sync += [
                        i.eq(self.instruction.payload),
                        step.eq(self.step),
                        asked.eq(0),
                        asked_blocks.eq(0),
                        asked_index.eq(0),
                        got_index.eq(0),
                        got_blocks.eq(0),
                    ]
                    m.next = "SOURCE"
            with m.State("SOURCE"):
                m.d.sync += [factor.eq(step), stride.eq(i.source.step_stride)]
                m.d.sync += index_rows.eq(Mux(i.gather, (i.count + (t - 1)) >> lane_bits, 0))
                m.next = "INDEX"
            with m.State("INDEX"):
                m.d.sync += [product.eq(factor * stride), stride.eq(i.index.step_stride)]
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += [
                    source.eq(base[i.source.register] + i.source.offset + product),
                    product.eq(factor * stride),
                ]
                m.next = "START"
            with m.State("START"):
                m.d.sync += index.eq(base[i.index.register] + i.index.offset + product)
                m.d.sync += stride.eq(i.stride)
                m.next = "RUN"
            with m.State("RUN"), m.If(self.done):
                m.next = "IDLE"
        running = Signal()
        m.d.comb += running.eq(fsm.ongoing("RUN"))

        block_ends = Signal()
        m.d.comb += [
            ask_index.eq(running & (asked_index < index_rows) & (asked_index <= asked_blocks + 1)),
            ask_group.eq(
                running & ~ask_index & (asked != i.count) & (~i.gather | (got_index > asked_blocks))
            ),
            block_ends.eq(asked[:lane_bits] == t - 1),
            move.eq(~request_valid | self.request.ready),
        ]
        with m.If(move & ask_index):
            m.d.sync += asked_index.eq(asked_index + 1)
        with m.If(move & ask_group):
            m.d.sync += asked.eq(asked + 1)
            with m.If(block_ends):
                m.d.sync += asked_blocks.eq(asked_blocks + 1)
        with m.If(move & running):
            m.d.sync += [
                factor.eq(Mux(ask_index, asked_index, number)),
                factor_index.eq(ask_index),
                factor_valid.eq(ask_index | ask_group),
                # An index row's number is added as it is.
                product.eq(Mux(factor_index, factor, factor * stride)),
                product_index.eq(factor_index),
                product_valid.eq(factor_valid),
                address.eq(Mux(product_index, index, source) + product),
                request_rows.eq(Mux(product_index, 1, i.rows)),
                request_valid.eq(product_valid),
            ]
        limit = self._config.memory.dram_rows
        m.d.comb += [
            self.request.valid.eq(request_valid),
            self.request.payload.row.eq(address),
            self.request.payload.rows.eq(request_rows),
            self.error.eq(
                request_valid & self.request.ready & (address + request_rows > Const(limit))
            ),
        ]
        self._take(m, i, running, index_rows, got_index, got_blocks, fill)
        return m

    def _take(
        self,
        m: Module,
        i: data.View,
        running: Signal,
        index_rows: Signal,
        got_index: Signal,
        got_blocks: Signal,
        fill: memory.WritePort,
    ) -> None:
        """Sorts what comes back: index rows to their buffer, groups to the inbox."""
        config = self._config
        t, w = config.side, config.memory.dram_words_per_cycle
        lane_bits, beats = exact_log2(t), t // w
        shift = WORD_BITS - config.vector.number.width

        # Beats are taken into a register first: in a simulation, logic behind inputs is expensive.
        arrived = Signal()
        words = Signal(beat_layout(config), reset_less=True)
        m.d.sync += arrived.eq(self.beats.valid & running)
        with m.If(self.beats.valid):
            m.d.sync += words.eq(self.beats.payload)

        beat = Signal(range(beats))
        got, in_group = Signal(COUNT_BITS), Signal(COUNT_BITS)
        next_row = Signal(ROW_BITS)
        is_index, last_beat, group_ends = Signal(), Signal(), Signal()
        writes, ends = Signal(), Signal()
        m.d.comb += [
            is_index.eq((got_index < index_rows) & (got_index <= got_blocks + 1)),
            self.beats.ready.eq(running),
            last_beat.eq(beat == beats - 1),
            group_ends.eq(in_group == i.rows - 1),
            fill.addr.eq(Cat(beat[: exact_log2(beats)], got_index[0])),
            fill.data.eq(words),
            self.inbox_write.eq(writes),
        ]
        m.d.sync += [writes.eq(0), ends.eq(0), self.done.eq(ends)]
        with m.If(~running):
            m.d.sync += [got.eq(0), in_group.eq(0), beat.eq(0), next_row.eq(i.inbox)]
        with m.Elif(arrived):
            m.d.comb += fill.en.eq(is_index)
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
            with m.If(is_index):
                m.d.sync += got_index.eq(got_index + last_beat)
            with m.Else():
                with m.Switch(beat):
                    for b in range(beats):
                        with m.Case(b):
                            m.d.sync += [
                                self.inbox_data[b * w + k].eq(words[k] >> shift) for k in range(w)
                            ]
                m.d.sync += [writes.eq(last_beat), self.inbox_row.eq(next_row)]
                with m.If(last_beat):
                    m.d.sync += next_row.eq(next_row + 1)
                    m.d.sync += in_group.eq(Mux(group_ends, 0, in_group + 1))
                with m.If(last_beat & group_ends):
                    m.d.sync += got.eq(got + 1)
                    m.d.sync += ends.eq(got == i.count - 1)
                    with m.If(got[:lane_bits] == t - 1):
                        m.d.sync += got_blocks.eq(got_blocks + 1)


class Store(wiring.Component):
    """Executes STORE instructions one at a time.

    Rows are read from the outbox as long as there is room for them in a short queue, and leave it
    beat by beat.

    Members:
        instruction, step: from the sequencer.
        bases: the base registers.
        done: pulses in the cycle after external memory took the last beat.
        request, beats: the write half of the memory port.
        outbox_read, outbox_row, outbox_data: the outbox's read port; data come 2 cycles later.
        error: pulses when a request is outside external memory.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(unit_layout(Unit.STORE))),
                "step": In(STEP_BITS),
                "bases": In(Bases),
                "done": Out(1),
                "request": Out(stream.Signature(Rows)),
                "beats": Out(stream.Signature(beat_layout(config))),
                "outbox_read": Out(1),
                "outbox_row": Out(ROW_BITS),
                "outbox_data": In(data.ArrayLayout(config.vector.number.width, config.side)),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A request, then outbox reads as the queue has room, then beats."""
        del platform
        m = Module()
        config = self._config
        t, w, width = config.side, config.memory.dram_words_per_cycle, config.vector.number.width
        shift, beats = WORD_BITS - width, t // w
        i = Signal(unit_layout(Unit.STORE), reset_less=True)
        step = Signal(STEP_BITS, reset_less=True)
        product = Signal(STEP_BITS + DRAM_BITS, reset_less=True)
        address = Signal(STEP_BITS + DRAM_BITS, reset_less=True)
        base = Array(self.bases[n] for n in range(BASE_REGISTERS))

        queue = fifo.SyncFIFO(width=t * width, depth=STORE_QUEUE)
        m.submodules.queue = queue
        room = Signal(range(STORE_QUEUE + 1), init=STORE_QUEUE)
        to_read, to_send = Signal(COUNT_BITS), Signal(COUNT_BITS)
        beat = Signal(range(beats))
        arriving = Signal(2)
        ends = Signal()
        m.d.sync += ends.eq(0)
        m.d.comb += self.done.eq(ends)

        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += self.instruction.ready.eq(1)
                with m.If(self.instruction.valid):
                    m.d.sync += [i.eq(self.instruction.payload), step.eq(self.step)]
                    m.next = "PRODUCT"
            with m.State("PRODUCT"):
                m.d.sync += product.eq(step * i.target.step_stride)
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += [
                    address.eq(base[i.target.register] + i.target.offset + product),
                    to_read.eq(i.rows),
                    to_send.eq(i.rows),
                    self.outbox_row.eq(i.outbox),
                ]
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += self.request.valid.eq(1)
                with m.If(self.request.ready):
                    m.d.comb += self.error.eq(address + i.rows > Const(config.memory.dram_rows))
                    m.next = "RUN"
            with m.State("RUN"), m.If(ends):
                m.next = "IDLE"
        m.d.comb += [
            self.request.payload.row.eq(address),
            self.request.payload.rows.eq(i.rows),
        ]

        moving = fsm.ongoing("REQUEST") | fsm.ongoing("RUN")
        m.d.comb += self.outbox_read.eq(moving & (to_read != 0) & (room != 0))
        m.d.sync += [
            arriving.eq(Cat(self.outbox_read, arriving[0])),
            room.eq(room - self.outbox_read + (queue.r_en & queue.r_rdy)),
        ]
        with m.If(self.outbox_read):
            m.d.sync += [to_read.eq(to_read - 1), self.outbox_row.eq(self.outbox_row + 1)]
        m.d.comb += [queue.w_en.eq(arriving[1]), queue.w_data.eq(self.outbox_data)]

        lanes = data.View(data.ArrayLayout(width, t), queue.r_data)
        m.d.comb += self.beats.valid.eq(queue.r_rdy & fsm.ongoing("RUN"))
        with m.Switch(beat):
            for b in range(beats):
                with m.Case(b):
                    m.d.comb += [
                        self.beats.payload[k].eq(Cat(Const(0, shift), lanes[b * w + k]))
                        for k in range(w)
                    ]
        with m.If(self.beats.valid & self.beats.ready):
            m.d.sync += beat.eq(Mux(beat == beats - 1, 0, beat + 1))
            with m.If(beat == beats - 1):
                m.d.comb += queue.r_en.eq(1)
                m.d.sync += to_send.eq(to_send - 1)
                m.d.sync += ends.eq(to_send == 1)
        return m


__all__ = ["Bases", "Load", "Rows", "Store", "beat_layout"]
