"""The half of the load unit that makes requests. Its timing is described in :mod:`fpgrad.gateware.load`."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.gateware.dma import (
    GROUP_BITS,
    STEP_BITS,
    Bases,
    ReadRows,
    beat_layout,
    core_rows,
    group_rows,
    number_members,
)
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import struct_layout, unit_layout
from fpgrad.isa.instructions import COUNT_BITS, DRAM_BITS, DramAddress, Transfer, Unit
from fpgrad.isa.registers import BASE_REGISTERS, WORD_BITS

_ADDRESS_BITS = WORD_BITS + DRAM_BITS


class Asker(wiring.Component):
    """Makes the requests of instructions.

    Everything passes one pipeline of operands, product and sum, which moves when the request in front
    does: first the addresses, which contain the product of step and stride, then the numbers of the
    groups, ``source + number*stride``.

    Members:
        instruction, step, bases, number, request, error: as in :class:`fpgrad.gateware.load.Load`.
        summed: the last row of the SUM is here that was taken last.
        index_write, index_words: a beat of an index row.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(unit_layout(Unit.LOAD))),
                "step": In(STEP_BITS),
                "bases": In(Bases),
                "request": Out(stream.Signature(ReadRows)),
                **number_members(config),
                "summed": In(1),
                "index_write": In(1),
                "index_words": In(beat_layout(config)),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """States, then the pipeline."""
        m = Module()
        config = self._config
        t, w = config.side, config.memory.dram_words_per_cycle
        lane_bits, beats = exact_log2(t), t // w
        beat_bits = exact_log2(beats)
        i = Signal(unit_layout(Unit.LOAD), reset_less=True)
        step = Signal(STEP_BITS, reset_less=True)
        move = Signal()
        row_parity, row_ends = Signal(), Signal()

        # Groups and index rows asked for, and index rows that came, counted in instructions.
        index_rows = Signal(COUNT_BITS)
        asked, asked_blocks, asked_index = (Signal(COUNT_BITS + 1) for _ in range(3))
        got_index = Signal(COUNT_BITS + 1)
        ask_source, ask_start, ask_index, ask_group = (Signal() for _ in range(4))
        m.d.comb += index_rows.eq(Mux(i.gather, (i.count + (t - 1)) >> lane_bits, 0))

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
                        row_parity.eq(0),
                    ]
                    m.next = "SOURCE"
                    with m.If(self.instruction.payload.kind == Transfer.SUM):
                        m.next = "SUM"
            with m.State("SUM"), m.If(self.summed):
                m.next = "IDLE"
            with m.State("SOURCE"):
                m.d.comb += ask_source.eq(1)
                with m.If(move & i.gather):
                    m.next = "INDEX"
                with m.Elif(move):
                    m.next = "RUN"
            with m.State("INDEX"):
                m.d.comb += ask_start.eq(1)
                with m.If(move):
                    m.next = "RUN"
            with m.State("RUN"), m.If(move & ask_group & (asked == i.count - 1)):
                m.next = "IDLE"
        running = fsm.ongoing("RUN")
        m.d.comb += [
            ask_index.eq(running & (asked_index < index_rows) & (asked_index <= asked_blocks + 1)),
            ask_group.eq(running & ~ask_index & (~i.gather | (got_index > asked_blocks))),
        ]
        with m.If(move & ask_index):
            m.d.sync += asked_index.eq(asked_index + 1)
        with m.If(move & ask_group):
            m.d.sync += asked.eq(asked + 1)
            with m.If(asked[:lane_bits].all()):
                m.d.sync += asked_blocks.eq(asked_blocks + 1)

        # The index buffer: two rows. That a row is complete is known one cycle after its last beat.
        m.submodules.indices = indices = memory.Memory(
            shape=w * WORD_BITS, depth=2 * beats, init=[]
        )
        fill, look = indices.write_port(), indices.read_port(domain="comb")
        beat = Signal(range(beats))
        m.d.comb += [
            fill.en.eq(self.index_write),
            fill.addr.eq(Cat(beat[:beat_bits], row_parity)),
            fill.data.eq(self.index_words),
            look.addr.eq(Cat(asked[lane_bits - beat_bits : lane_bits], asked_blocks[0])),
        ]
        m.d.sync += row_ends.eq(self.index_write & (beat == beats - 1))
        with m.If(self.index_write):
            m.d.sync += beat.eq(Mux(beat == beats - 1, 0, beat + 1))
            with m.If(beat == beats - 1):
                m.d.sync += row_parity.eq(~row_parity)
        with m.If(row_ends):
            m.d.sync += got_index.eq(got_index + 1)
        words = Array(look.data.word_select(k, WORD_BITS) for k in range(w))
        number = Mux(i.gather, words[asked[: lane_bits - beat_bits]] if w > 1 else look.data, asked)

        kind = Cat(ask_source, ask_start, ask_index, ask_group)
        rows = Mux(ask_index, 1, group_rows(config, i.kind, i.rows))
        factor = Mux(ask_index, asked_index, Mux(ask_group, number, step))
        self._pipeline(m, i, move, kind, factor, rows)
        return m

    def _pipeline(
        self, m: Module, i: data.View, move: Signal, kind: Value, factor: Value, rows: Value
    ) -> None:
        base = Array(self.bases[n] for n in range(BASE_REGISTERS))
        kinds = [Signal(4, name=f"kind{stage}") for stage in (1, 2)]
        row_counts = [
            Signal(GROUP_BITS, name=f"rows{stage}", reset_less=True) for stage in (1, 2, 3)
        ]
        factor1 = Signal(WORD_BITS, reset_less=True)
        stride1 = Signal(DRAM_BITS, reset_less=True)
        base1 = Signal(DRAM_BITS, reset_less=True)
        offset1 = Signal(DRAM_BITS, reset_less=True)
        where = data.View(struct_layout(DramAddress), Mux(kind[1], i.index, i.source))
        core = core_rows(self, self._config, where)
        core1 = Signal(len(core), reset_less=True)
        product = Signal(_ADDRESS_BITS, reset_less=True)
        start = Signal(max(DRAM_BITS, len(core)) + 2, reset_less=True)
        source = Signal(_ADDRESS_BITS, reset_less=True)
        index = Signal(_ADDRESS_BITS, reset_less=True)
        address = Signal(_ADDRESS_BITS, reset_less=True)
        request_index, valid = Signal(), Signal()
        total = Signal(_ADDRESS_BITS)

        is_source, is_start, is_index, is_group = kinds[1]
        m.d.comb += [
            move.eq(~valid | self.request.ready),
            total.eq(Mux(is_group, source, Mux(is_index, index, start)) + product),
        ]
        with m.If(move):
            m.d.sync += [
                kinds[0].eq(kind),
                row_counts[0].eq(rows),
                factor1.eq(factor),
                stride1.eq(Mux(kind[3], i.stride, where.step_stride)),
                base1.eq(base[where.register]),
                offset1.eq(where.offset),
                core1.eq(core),
                kinds[1].eq(kinds[0]),
                row_counts[1].eq(row_counts[0]),
                # An index row's number is added as it is.
                product.eq(Mux(kinds[0][2], factor1, factor1 * stride1)),
                start.eq(base1 + offset1 + core1),
                row_counts[2].eq(row_counts[1]),
                address.eq(total),
                request_index.eq(is_index),
                valid.eq(is_index | is_group),
            ]
            with m.If(is_source):
                m.d.sync += source.eq(total)
            with m.If(is_start):
                m.d.sync += index.eq(total)
        m.d.comb += [
            self.request.valid.eq(valid),
            self.request.payload.row.eq(address),
            self.request.payload.rows.eq(row_counts[2]),
            self.request.payload.index.eq(request_index),
        ]
        limit = Const(self._config.memory.dram_rows)
        m.d.sync += self.error.eq(valid & self.request.ready & (address + row_counts[2] > limit))
