"""The half of the load unit that writes what comes back. Its timing is described in :mod:`fpgrad.gateware.load`."""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.gateware.dma import Place, has_masks, read_beat_layout, row_layout
from fpgrad.gateware.memory import RowWriteSignature
from fpgrad.gateware.quantise import TileWriteSignature
from fpgrad.gateware.smallfloat import from_byte
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Transfer
from fpgrad.isa.registers import WORD_BITS


def write_members(config: MachineConfig) -> dict[str, wiring.Member]:
    """The beats, the sums and where they go: what :class:`fpgrad.gateware.load.Load` passes on."""
    number, t, depth = config.vector.number, config.side, config.memory
    members = {
        "beats": In(stream.Signature(read_beat_layout(config))),
        "sums": In(stream.Signature(row_layout(config))),
        "starved": Out(1),
        "done": Out(1),
        "inbox": Out(RowWriteSignature(width=number.width, depth=depth.inbox_rows, side=t)),
    }
    if depth.tile_dma:
        members["tiles"] = Out(TileWriteSignature(config))
        members["tiles_busy"] = In(1)
        members["exponents_busy"] = In(1)
    if has_masks(config):
        members["masks"] = Out(RowWriteSignature(width=1, depth=depth.mask_rows, side=t))
        members["masks_busy"] = In(1)
    return members


class Unpacker(wiring.Component):
    """Makes units of beats and writes them to their places.

    Members:
        place: where the next unit goes.
        beats, sums, starved, done, inbox, tiles, masks and what is busy: as in
            :class:`fpgrad.gateware.load.Load`.
        summed: the last row of a SUM is here.
        index_write: a beat of an index row is there.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "place": In(stream.Signature(Place)),
                "index_write": Out(1),
                "summed": Out(1),
                **write_members(config),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """How beats and units correspond; then one register of each width before the memories."""
        m = Module()
        config = self._config
        t, w = config.side, config.memory.dram_words_per_cycle
        words, place = self.beats.payload.words, self.place.payload
        written = Signal(Place, reset_less=True)
        full, busy = Signal(), Signal()

        # Bits of a unit; a beat has 32*w.
        sizes = {Transfer.ROWS: WORD_BITS * t}
        if config.memory.bytes:
            sizes[Transfer.BYTES] = 8 * t
        if config.memory.tile_dma:
            sizes[Transfer.TILES] = 8 * t
        if has_masks(config):
            sizes[Transfer.MASKS] = t
        piece, last_piece = Signal(range(max(t // w, 32 * w))), Signal()
        unit_ends, beat_ends, is_sum = Signal(), Signal(), Signal()
        with m.Switch(place.kind):
            for kind, size in sizes.items():
                with m.Case(kind):
                    self._ratio(m, size, piece, last_piece, unit_ends, beat_ends)
            with m.Case(Transfer.SUM):
                m.d.comb += [is_sum.eq(1), unit_ends.eq(1), beat_ends.eq(1)]
        if config.memory.tile_dma:
            with m.If(place.exponent):
                self._ratio(m, 8, piece, last_piece, unit_ends, beat_ends)
            with m.If(place.pads):
                m.d.comb += beat_ends.eq(1)

        step, drop, room = Signal(), Signal(), Signal()
        there = Mux(is_sum, self.sums.valid, self.beats.valid & ~self.beats.payload.index)
        m.d.comb += [
            self.index_write.eq(self.beats.valid & self.beats.payload.index),
            room.eq(~drop & self.place.valid & (~full | ~busy)),
            step.eq(there & room),
            self.place.ready.eq(step & unit_ends),
            self.beats.ready.eq(self.index_write | drop | (step & beat_ends & ~is_sum)),
            self.sums.ready.eq(room & is_sum),
            self.summed.eq(step & is_sum & place.last),
            self.starved.eq(self.place.valid & is_sum & ~self.sums.valid),
        ]
        if config.memory.tile_dma:
            self._drop(m, step, beat_ends, drop)
        with m.If(step):
            m.d.sync += piece.eq(Mux(unit_ends & beat_ends, 0, piece + 1))
        with m.If(step & unit_ends):
            m.d.sync += [full.eq(1), written.eq(place)]
        with m.Elif(~busy):
            m.d.sync += full.eq(0)
        m.d.sync += self.done.eq(full & ~busy & written.last)

        row = self._row(m, step, words, piece)
        m.d.comb += [
            self.inbox.en.eq(full & ~written.kind[1]),  # ROWS, BYTES or SUM
            self.inbox.address.eq(written.address),
            *(self.inbox.data[k].eq(row[k]) for k in range(t)),
        ]
        octets = Const(0, 8 * t)
        if config.memory.bytes or config.memory.tile_dma:
            octets = self._collect(m, step, words, piece, 8 * t, "octets")
        if config.memory.bytes:
            with m.If(written.kind == Transfer.BYTES):
                m.d.comb += [
                    self.inbox.data[k].eq(
                        from_byte(m, config.vector.number, octets.word_select(k, 8))
                    )
                    for k in range(t)
                ]
        if config.memory.tile_dma:
            exponent = Signal(8, reset_less=True)
            with m.If(step):
                m.d.sync += exponent.eq(Value.cast(words).word_select(_low(piece, 4 * w), 8))
            is_tile = full & (written.kind == Transfer.TILES)
            with m.If(is_tile):
                m.d.comb += busy.eq(Mux(written.exponent, self.exponents_busy, self.tiles_busy))
            m.d.comb += [
                self.tiles.en.eq(is_tile & ~written.exponent & ~busy),
                self.tiles.address.eq(written.address),
                *(self.tiles.data[k].eq(octets.word_select(k, 8)) for k in range(t)),
                self.tiles.exponent_en.eq(is_tile & written.exponent & ~busy),
                self.tiles.exponent_address.eq(written.address),
                self.tiles.exponent.eq(exponent),
            ]
        if has_masks(config):
            bits = self._collect(m, step, words, piece, t, "bits")
            is_mask = full & (written.kind == Transfer.MASKS)
            with m.If(is_mask):
                m.d.comb += busy.eq(self.masks_busy)
            m.d.comb += [
                self.masks.en.eq(is_mask & ~busy),
                self.masks.address.eq(written.address),
                *(self.masks.data[k].eq(bits[k]) for k in range(t)),
            ]
        return m

    def _ratio(
        self,
        m: Module,
        size: int,
        piece: Signal,
        last_piece: Signal,
        unit_ends: Signal,
        beat_ends: Signal,
    ) -> None:
        """One unit of ``size`` bits is some beats, or one beat is some units."""
        beat = WORD_BITS * self._config.memory.dram_words_per_cycle
        m.d.comb += last_piece.eq(piece == max(size // beat, beat // size) - 1)
        m.d.comb += unit_ends.eq(last_piece if size > beat else 1)
        m.d.comb += beat_ends.eq(last_piece if beat > size else 1)

    def _drop(self, m: Module, step: Signal, beat_ends: Signal, drop: Signal) -> None:
        """After the last exponent of a block, the rest of its DRAM row."""
        t, w = self._config.side, self._config.memory.dram_words_per_cycle
        if w == t:
            return
        beat, place = Signal(range(t // w)), self.place.payload
        with m.If(
            (step & beat_ends & place.exponent) | (drop & self.beats.valid & ~self.index_write)
        ):
            m.d.sync += beat.eq(beat + 1)
            with m.If(beat == t // w - 1):
                m.d.sync += [drop.eq(0), beat.eq(0)]
            with m.Elif(place.pads):
                m.d.sync += drop.eq(1)

    def _row(self, m: Module, step: Signal, words: data.View, piece: Signal) -> list[Signal]:
        """Words lose their low bits to become codes; sums are codes."""
        t, w = self._config.side, self._config.memory.dram_words_per_cycle
        width = self._config.vector.number.width
        row = [Signal(width, name=f"row_{k}", reset_less=True) for k in range(t)]
        with m.If(step & (self.place.payload.kind == Transfer.ROWS)), m.Switch(piece):
            for b in range(t // w):
                with m.Case(b) if t > w else m.Default():
                    m.d.sync += [
                        row[b * w + k].eq(words[k] >> (WORD_BITS - width)) for k in range(w)
                    ]
        with m.If(self.sums.valid & self.sums.ready):
            m.d.sync += [lane.eq(code) for lane, code in zip(row, self.sums.payload, strict=True)]
        return row

    def _collect(
        self, m: Module, step: Signal, words: data.View, piece: Signal, size: int, name: str
    ) -> Signal:
        """A unit of ``size`` bits: a part of the beat, or beats in order."""
        unit = Signal(size, name=name, reset_less=True)
        beat = Value.cast(words)
        with m.If(step):
            if len(beat) >= size:
                m.d.sync += unit.eq(beat.word_select(_low(piece, len(beat) // size), size))
            else:
                with m.Switch(_low(piece, size // len(beat))):
                    for b in range(size // len(beat)):
                        with m.Case(b):
                            m.d.sync += unit.word_select(b, len(beat)).eq(beat)
        return unit


def _low(piece: Signal, pieces: int) -> Value:
    """The bits of ``piece`` that count to ``pieces``."""
    return piece[: exact_log2(pieces)] if pieces > 1 else Const(0, 1)
