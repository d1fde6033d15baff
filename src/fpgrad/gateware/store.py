"""The store unit: from the outbox, tile memory and mask memory to external memory, from the outbox to the exchange.

Rows are read on chip as long as there is room for them in a short queue, and leave it beat by beat.
Requests and reads of an instruction do not wait until the one before is complete.

Timing, in clock cycles, for an instruction that is taken in cycle s:

* Its first request is on ``request`` in cycle s + 3, one more in each cycle after one was taken. The
  unit takes the next instruction at the earliest in the cycle after its last request was taken, and
  only while fewer than ``IN_FLIGHT`` instructions, besides the one whose rows are read, are in flight.
* Units (as LOAD's: a row of T words; an exponent, T bytes of a tile; T bits of masks) are read in order,
  one a cycle, the first in s + 2, while the queue has room: in a cycle in which fewer than
  ``STORE_QUEUE`` units have been read and not left the queue. A unit that is read in cycle r can leave it
  in r + 3.
* Where a unit is several beats, one beat is made of it a cycle, and it leaves with the last. Where a beat
  is several units, one of them leaves a cycle, and the beat is made with the last one, or with the last
  exponent of a group; after that come the beats of zeros that fill the DRAM row, one a cycle.
* A beat that is made in cycle b is on ``beats`` in b + 1; the next one is made at the earliest in the cycle
  in which it is taken. Of a beat of several units, each of them waits for that.
* ``done`` is the cycle of ``written``.
* SUM makes no request. Its rows are units like others and leave the queue when they are taken on ``rows``.
  ``done`` is the cycle after the last was taken, or, if that is later, the one after ``written`` of all that
  was taken before. The unit takes the next instruction at the earliest in the cycle after it: no address
  goes to external memory whose data would wait for other cores.
"""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.gateware.dma import (
    GROUP_BITS,
    KIND_BITS,
    STEP_BITS,
    Bases,
    Place,
    Places,
    WriteRows,
    beat_layout,
    core_rows,
    group_rows,
    has_masks,
    number_members,
    row_layout,
)
from fpgrad.gateware.memory import RowReadSignature, WordReadSignature
from fpgrad.gateware.sequencer import OUTSTANDING
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import COUNT_BITS, DRAM_BITS, Transfer, Unit
from fpgrad.isa.registers import BASE_REGISTERS, WORD_BITS

#: Units that may be on their way from a memory on chip to the port.
STORE_QUEUE = 4

_ADDRESS_BITS = STEP_BITS + DRAM_BITS


class Store(wiring.Component):
    """Executes STORE instructions.

    Members:
        instruction, step: from the sequencer.
        bases: the base registers.
        number: the core's; there only if there are several.
        done: an instruction's last beat is in external memory, or its last row in the exchange.
        request, beats: the write half of the memory port.
        written: the beats of a request that was an instruction's last are in external memory.
        rows: rows for the exchange.
        outbox: the outbox's read port.
        tiles, exponents: with ``memory.tile_dma``, read ports of tile memory.
        masks: the same of mask memory, where there is one.
        error: pulses when a request is outside external memory.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        number, tile, depth, t = (
            config.vector.number,
            config.matrix.tile,
            config.memory,
            config.side,
        )
        members = {
            "instruction": In(stream.Signature(unit_layout(Unit.STORE))),
            "step": In(STEP_BITS),
            "bases": In(Bases),
            **number_members(config),
            "done": Out(1),
            "request": Out(stream.Signature(WriteRows)),
            "beats": Out(stream.Signature(beat_layout(config))),
            "written": In(1),
            "rows": Out(stream.Signature(row_layout(config))),
            "outbox": Out(RowReadSignature(width=number.width, depth=depth.outbox_rows, side=t)),
            "error": Out(1),
        }
        if depth.tile_dma:
            members["tiles"] = Out(
                RowReadSignature(width=tile.mantissa_bits, depth=depth.tiles * t, side=t)
            )
            members["exponents"] = Out(
                WordReadSignature(width=number.exponent_bits, depth=depth.tiles)
            )
        if has_masks(config):
            members["masks"] = Out(RowReadSignature(width=1, depth=depth.mask_rows, side=t))
        super().__init__(members)

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Requests beside reads; the queue; beats."""
        m = Module()
        m.submodules.places = places = Places(self._config)
        leave = Signal()
        unit, bits, there = self._read(m, places, leave)
        kind, is_sum, summed = data.View(UnitKind, bits), Signal(), Signal()
        m.submodules.packer = packer = Packer(self._config)
        m.d.comb += [
            is_sum.eq(kind.kind == Transfer.SUM),
            packer.unit.payload.bits.eq(unit),
            packer.unit.payload.kind.eq(kind),
            packer.unit.valid.eq(there & ~is_sum),
            self.rows.payload.eq(unit),
            self.rows.valid.eq(there & is_sum),
            leave.eq(there & Mux(is_sum, self.rows.ready, packer.unit.ready)),
            summed.eq(leave & is_sum & kind.last),
        ]
        self._requests(m, places, summed)
        wiring.connect(m, packer.beats, wiring.flipped(self.beats))
        return m

    def _requests(self, m: Module, places: Places, summed: Value) -> None:
        config = self._config
        i = Signal(unit_layout(Unit.STORE), reset_less=True)
        step = Signal(STEP_BITS, reset_less=True)
        product = Signal(_ADDRESS_BITS, reset_less=True)
        core = core_rows(self, config, i.target)
        start = Signal(max(DRAM_BITS, len(core)) + 2, reset_less=True)
        address = Signal(_ADDRESS_BITS, reset_less=True)
        rows = Signal(GROUP_BITS, reset_less=True)
        left = Signal(COUNT_BITS, reset_less=True)
        base = Array(self.bases[n] for n in range(BASE_REGISTERS))
        taken, valid, walk = self.instruction.payload, Signal(), places.walk.payload
        # Instructions that external memory has not answered.
        writes, takes, sent = Signal(range(OUTSTANDING + 1)), Signal(), Signal()
        m.d.sync += writes.eq(writes + takes - self.written)
        m.d.comb += [
            walk.kind.eq(taken.kind),
            walk.count.eq(taken.count),
            walk.rows.eq(taken.rows),
            walk.base.eq(taken.source),
            walk.group_stride.eq(taken.group_stride),
            walk.row_stride.eq(taken.row_stride),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [
                    self.instruction.ready.eq(places.walk.ready),
                    places.walk.valid.eq(self.instruction.valid),
                ]
                with m.If(self.instruction.valid & self.instruction.ready):
                    m.d.sync += [i.eq(taken), step.eq(self.step)]
                    m.d.comb += takes.eq(taken.kind != Transfer.SUM)
                    m.next = "PRODUCT"
                    with m.If(taken.kind == Transfer.SUM):
                        m.next = "SEND"
            with m.State("SEND"), m.If(summed):
                m.next = "SENT"
            with m.State("SENT"), m.If(writes == 0):
                m.d.comb += sent.eq(1)
                m.next = "IDLE"
            with m.State("PRODUCT"):
                m.d.sync += [
                    product.eq(step * i.target.step_stride),
                    start.eq(base[i.target.register] + i.target.offset + core),
                    rows.eq(group_rows(config, i.kind, i.rows)),
                    left.eq(i.count - 1),
                ]
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += address.eq(start + product)
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += valid.eq(1)
                with m.If(self.request.ready):
                    m.d.sync += [address.eq(address + i.stride), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.next = "IDLE"
        m.d.comb += [
            self.done.eq(self.written | sent),
            self.request.valid.eq(valid),
            self.request.payload.row.eq(address),
            self.request.payload.rows.eq(rows),
            self.request.payload.last.eq(left == 0),
        ]
        limit = Const(config.memory.dram_rows)
        m.d.sync += self.error.eq(valid & self.request.ready & (address + rows > limit))

    def _read(self, m: Module, places: Places, leave: Signal) -> tuple[Value, Value, Value]:
        """The queue's first unit, what it is, and whether it is there."""
        config = self._config
        t, width = config.side, config.vector.number.width
        place, go = places.place.payload, Signal()
        room = Signal(range(STORE_QUEUE + 1), init=STORE_QUEUE)
        m.d.comb += [
            places.place.ready.eq(room != 0),
            go.eq(places.place.valid & places.place.ready),
        ]
        m.d.sync += room.eq(room - go + leave)
        came = [Signal(name=f"came{stage}") for stage in (1, 2)]
        came_place = [Signal(Place, name=f"place{stage}", reset_less=True) for stage in (1, 2)]
        m.d.sync += [
            came[0].eq(go),
            came[1].eq(came[0]),
            came_place[0].eq(place),
            came_place[1].eq(came_place[0]),
        ]
        read = came_place[1]

        m.d.comb += [
            self.outbox.en.eq(go & ~place.kind[1]),
            self.outbox.address.eq(place.address),
        ]
        unit = Signal(max(width, 8) * t)
        m.d.comb += unit.eq(Cat(self.outbox.data))
        if config.memory.tile_dma:
            exponent = Signal(config.vector.number.exponent_bits, reset_less=True)
            is_tile = place.kind == Transfer.TILES
            m.d.sync += exponent.eq(self.exponents.data)
            m.d.comb += [
                self.tiles.en.eq(go & is_tile & ~place.exponent),
                self.tiles.address.eq(place.address),
                self.exponents.en.eq(go & is_tile & place.exponent),
                self.exponents.address.eq(place.address),
            ]
            with m.If(read.kind == Transfer.TILES):
                octets = Signal(8 * t)
                m.d.comb += unit.eq(Mux(read.exponent, exponent, octets))
                m.d.comb += [
                    octets.word_select(k, 8).eq(mantissa.as_signed())
                    for k, mantissa in enumerate(self.tiles.data)
                ]
        if has_masks(config):
            m.d.comb += [
                self.masks.en.eq(go & (place.kind == Transfer.MASKS)),
                self.masks.address.eq(place.address),
            ]
            with m.If(read.kind == Transfer.MASKS):
                m.d.comb += unit.eq(Cat(self.masks.data))

        kind = Signal(UnitKind)
        m.d.comb += [
            kind.kind.eq(read.kind),
            kind.exponent.eq(read.exponent),
            kind.pads.eq(read.pads),
            kind.last.eq(read.last),
        ]
        m.submodules.queue = queue = fifo.SyncFIFO(
            width=len(unit) + UnitKind.size, depth=STORE_QUEUE
        )
        m.d.comb += [
            queue.w_en.eq(came[1]),
            queue.w_data.eq(Cat(kind, unit)),
            queue.r_en.eq(leave),
        ]
        return queue.r_data[UnitKind.size :], queue.r_data[: UnitKind.size], queue.r_rdy


#: What a unit is; ``pads``: zeros up to the end of a DRAM row follow; ``last``: the instruction's last.
UnitKind = data.StructLayout({"kind": KIND_BITS, "exponent": 1, "pads": 1, "last": 1})


class Packer(wiring.Component):
    """Makes beats of units.

    Members:
        unit: its bits from the lowest on; of ROWS, codes.
        beats: the write half of the memory port.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        width = max(config.vector.number.width, 8) * config.side
        unit = data.StructLayout({"kind": UnitKind, "bits": width})
        super().__init__(
            {
                "unit": In(stream.Signature(unit)),
                "beats": Out(stream.Signature(beat_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A beat's register, filled at once or part by part."""
        m = Module()
        config = self._config
        t, w, width = config.side, config.memory.dram_words_per_cycle, config.vector.number.width
        bits, kind = self.unit.payload.bits, self.unit.payload.kind
        beat = Signal(beat_layout(config), reset_less=True)
        full, step, pad = Signal(), Signal(), Signal()
        piece = Signal(range(max(t // w, 32 * w)))
        unit_ends, beat_ends = Signal(), Signal()
        m.d.comb += [
            self.beats.valid.eq(full),
            self.beats.payload.eq(beat),
            step.eq(self.unit.valid & ~pad & (~full | self.beats.ready)),
            self.unit.ready.eq(step & unit_ends),
        ]
        with m.If(self.beats.ready):
            m.d.sync += full.eq(0)
        with m.If(step):
            m.d.sync += piece.eq(Mux(unit_ends & beat_ends, 0, piece + 1))
        with m.If(step & beat_ends):
            m.d.sync += full.eq(1)

        # For each word of the beat what the unit says, and whether it says anything.
        hit, value = Signal(w), [Signal(WORD_BITS, name=f"value_{k}") for k in range(w)]
        collected = Signal(WORD_BITS, reset_less=True)
        word = Signal(WORD_BITS)

        def pack(size: int, taken: Value) -> None:
            """Of a unit whose lowest ``size`` bits are ``taken``."""
            per_beat, per_unit = max(1, WORD_BITS * w // size), max(1, size // (WORD_BITS * w))
            last = piece == max(per_beat, per_unit) - 1
            m.d.comb += unit_ends.eq(last if per_unit > 1 else 1)
            m.d.comb += beat_ends.eq(last if per_beat > 1 else 1)
            if per_beat == 1:
                part = taken.word_select(piece, WORD_BITS * w) if per_unit > 1 else taken
                m.d.comb += hit.eq(Const(-1, w))
                m.d.comb += [value[k].eq(part.word_select(k, WORD_BITS)) for k in range(w)]
            elif size >= WORD_BITS:
                words = size // WORD_BITS
                m.d.comb += [hit[k].eq(piece == k // words) for k in range(w)]
                m.d.comb += [value[k].eq(taken.word_select(k % words, WORD_BITS)) for k in range(w)]
            else:
                # Parts of a word come together first.
                bits = exact_log2(WORD_BITS // size)
                for p in range(WORD_BITS // size):
                    kept = Mux(piece[:bits].any(), collected.word_select(p, size), 0)
                    m.d.comb += word.word_select(p, size).eq(Mux(piece[:bits] == p, taken, kept))
                m.d.comb += [hit[k].eq(piece[bits:] == k) for k in range(w)]
                m.d.comb += [value[k].eq(word) for k in range(w)]

        with m.If(step):
            m.d.sync += collected.eq(word)
        for k in range(w):
            # What a beat does not get any more is zero.
            with m.If(step & (hit[k] | (piece == 0))):
                m.d.sync += beat[k].eq(Mux(hit[k], value[k], 0))
        with m.Switch(kind.kind):
            with m.Case(Transfer.ROWS):
                rows = Cat(
                    Cat(Const(0, WORD_BITS - width), bits.word_select(k, width)) for k in range(t)
                )
                pack(WORD_BITS * t, rows)
            if config.memory.tile_dma:
                with m.Case(Transfer.TILES):
                    with m.If(kind.exponent):
                        pack(8, bits[:8])
                        with m.If(kind.pads):
                            m.d.comb += beat_ends.eq(1)
                    with m.Else():
                        pack(8 * t, bits[: 8 * t])
            if has_masks(config):
                with m.Case(Transfer.MASKS):
                    pack(t, bits[:t])
        if config.memory.tile_dma and t > w:
            beats = Signal(range(t // w))
            made = Signal()
            m.d.comb += made.eq(
                Mux(pad, ~full | self.beats.ready, step & beat_ends & kind.exponent)
            )
            with m.If(made):
                m.d.sync += beats.eq(beats + 1)
                with m.If(beats == t // w - 1):
                    m.d.sync += [beats.eq(0), pad.eq(0)]
                with m.Elif(~pad & kind.pads):
                    m.d.sync += pad.eq(1)
            with m.If(pad & made):
                m.d.sync += [full.eq(1), Value.cast(beat).eq(0)]
        return m


__all__ = ["STORE_QUEUE", "Store"]
