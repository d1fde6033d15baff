"""The matrix unit: sums of tile products, streamed one row a cycle.

Three parts walk through the products of the instructions, each as far ahead as it may:

* the **scanner** reads the exponents of all ``k2*k1*k0`` tile pairs of an output tile, one pair a
  cycle, for the largest, and keeps up to :data:`~fpgrad.gateware.scanner.TOPS` of these maxima ahead
  of the array;
* the **loader** reads the stationary tile of the next product into the array's shadow registers, T
  rows in T cycles, while the streamer is busy with the product before it;
* the **streamer** offers ``rows`` rows of the streamed tile to the array, one a cycle.

Timing, which the emulator's cycle count reproduces. An instruction is accepted in a cycle in which
its stream transfers. The unit is ready when the scanner has nothing left to read and no accepted
instruction waits for the loader, so while one instruction is being streamed another can be in the
loader and a third behind it.

* The loader turns to an instruction in the cycle after it was accepted if it was free, else in the
  cycle after the ``go`` of the last product of the instruction before. It reads a stationary row in
  each of T cycles. In the last of them, or later, comes the product's ``go``: when the streamer is
  free (it is in its last row, or idle), for a first product when the scanner has issued (or issues in
  this cycle) the last read of the output tile's exponents, and for a last product when the queue of
  finished rows has room for ``rows`` more (rows leave it when the vector unit takes them).
* With ``go`` in cycle g, streamed rows are read in g+1 ... g+rows; the loader reads the next stationary
  tile from g+1 on. So without waits products follow each other every T cycles, output tiles and
  instructions too, and the first row of an instruction accepted in cycle a by an idle unit is read in
  a+T+1.
* The scanner reads one pair a cycle from the cycle after acceptance, but not in the cycle in which
  the loader reads its first row (it reads the product's own exponents then), nor while TOPS maxima
  are kept or on their way. A maximum is given back when its tile's first row reaches the products'
  stage, in g+4.
* ``done`` comes in the cycle after the instruction's last row was read, g+rows+1.
* Row r (from 0) of an output tile whose last product has its go in g is valid at ``acc`` from cycle
  ``g + 1 + r + drain_latency(T)`` on, if the vector unit has taken the rows before.
"""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.errors import ConfigError
from fpgrad.gateware.accumulator import ACCUMULATOR_LATENCY, AccumulatorArray, largest_shift
from fpgrad.gateware.array import MultiplierArray, array_latency
from fpgrad.gateware.drain import (
    CONVERTER_LATENCY,
    QUEUE_LATENCY,
    AccQueue,
    AccSignature,
    Converter,
)
from fpgrad.gateware.gating import gate, gated
from fpgrad.gateware.memory import READ_LATENCY, RowReadSignature, WordReadSignature
from fpgrad.gateware.products import ProductWalker
from fpgrad.gateware.scanner import ExponentScanner
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import struct_layout, unit_layout
from fpgrad.isa.instructions import TILE_BITS, Tokens, Unit


def drain_latency(side: int) -> int:
    """Cycles from the read of a streamed row of a last product to the row at ``acc``."""
    return (
        READ_LATENCY + array_latency(side) + ACCUMULATOR_LATENCY + CONVERTER_LATENCY + QUEUE_LATENCY
    )


class MatrixUnit(wiring.Component):
    """Executes matrix instructions on tile memory; finished rows leave as a stream.

    Args:
        config: the machine.
        acc_rows: rows of the queue between matrix and vector unit, at least T.

    Members:
        instruction: stream of decoded :class:`~fpgrad.isa.instructions.Matrix`; ``wait`` is ignored.
        done, signal: a pulse for each instruction, in order, when it has read its last tile row; and
            the tokens it signals.
        streamed, stationary: row ports of tile memory (row ``tile * T + r``).
        streamed_exponent, stationary_exponent: ports of the tiles' exponents.
        acc: finished rows.
        busy: a row is being streamed in this cycle.
        idle: nothing is left to do, and every finished row was taken.

    Raises:
        ConfigError: the queue cannot hold an output tile.
    """

    instruction: Any
    done: Signal
    signal: Any
    streamed: Any
    stationary: Any
    streamed_exponent: Any
    stationary_exponent: Any
    acc: Any
    busy: Signal
    idle: Signal

    def __init__(self, config: MachineConfig, *, acc_rows: int | None = None) -> None:
        self.config = config
        self.acc_rows = config.matrix.queue_rows if acc_rows is None else acc_rows
        side, tiles, number = config.side, config.memory.tiles, config.vector.number
        if self.acc_rows < side:
            raise ConfigError(f"acc_rows must be at least the tile side {side}, not {acc_rows}")
        rows = RowReadSignature(
            width=config.matrix.tile.mantissa_bits, depth=tiles * side, side=side
        )
        words = WordReadSignature(width=number.exponent_bits, depth=tiles)
        super().__init__(
            {
                "instruction": In(stream.Signature(unit_layout(Unit.MATRIX))),
                "done": Out(1),
                "signal": Out(struct_layout(Tokens)),
                "streamed": Out(rows),
                "stationary": Out(rows),
                "streamed_exponent": Out(words),
                "stationary_exponent": Out(words),
                "acc": Out(AccSignature(width=number.width, side=side)),
                "busy": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Scanner, loader, streamer, and the pipeline behind them."""
        m = Module()
        side, number = self.config.side, self.config.vector.number
        layout = unit_layout(Unit.MATRIX)
        row_bits = exact_log2(side)
        pair_shape = unsigned(number.exponent_bits + 1)

        m.submodules.scanner = scanner = ExponentScanner(
            exponent_bits=number.exponent_bits, tiles=self.config.memory.tiles
        )
        m.submodules.walk = walk = ProductWalker()

        # Acceptance: into scanner and, past the waiting place when that is empty, loader.
        accept = Signal()
        waiting = Signal()
        held = Signal(layout, reset_less=True)
        incoming = Signal(layout)
        load_valid, load_free, load_start, go = (Signal() for _ in range(4))
        payload = self.instruction.payload
        m.d.comb += [
            load_free.eq(~load_valid | (go & walk.end)),
            self.instruction.ready.eq(~waiting & scanner.free),
            accept.eq(self.instruction.valid & self.instruction.ready),
            incoming.eq(Mux(waiting, held, payload)),
            load_start.eq(load_free & (waiting | accept)),
            walk.load.eq(load_start),
            walk.instruction.eq(incoming),
            walk.step.eq(go),
        ]
        with m.If(load_free):
            m.d.sync += [load_valid.eq(load_start), waiting.eq(0)]
        with m.Elif(accept):
            m.d.sync += [waiting.eq(1), held.eq(payload)]

        # Loader.
        load_rows = Signal(6, reset_less=True)
        load_signal = Signal(struct_layout(Tokens), reset_less=True)
        load_transposed, stream_transposed = Signal(reset_less=True), Signal(reset_less=True)
        with m.If(load_start):
            m.d.sync += [
                load_rows.eq(incoming.rows),
                load_signal.eq(incoming.signal),
                load_transposed.eq(incoming.stationary.transposed),
                stream_transposed.eq(incoming.streamed.transposed),
            ]
        load_row = Signal(row_bits)
        loaded, loading = Signal(), Signal()
        m.d.comb += [
            loading.eq(load_valid & ~loaded),
            self.stationary.en.eq(loading),
            self.stationary.address.eq(Cat(load_row, walk.stationary)),
            self.stationary.transposed.eq(load_transposed),
        ]
        with m.If(go):
            m.d.sync += [load_row.eq(0), loaded.eq(0)]
        with m.Elif(loading):
            m.d.sync += load_row.eq(load_row + 1)
            with m.If(load_row == side - 1):
                m.d.sync += loaded.eq(1)

        m.d.comb += [
            scanner.start.eq(accept),
            scanner.instruction.eq(payload),
            scanner.fetch.eq(loading & (load_row == 0)),
            scanner.fetch_streamed.eq(walk.streamed),
            scanner.fetch_stationary.eq(walk.stationary),
            scanner.begin.eq(go & walk.first),
        ]
        wiring.connect(m, wiring.flipped(self.streamed_exponent), scanner.streamed)
        wiring.connect(m, wiring.flipped(self.stationary_exponent), scanner.stationary)

        # Streamer.
        streaming, stream_last, stream_first, stream_end = (Signal() for _ in range(4))
        stream_row = Signal(row_bits)
        stream_rows = Signal(6, reset_less=True)
        stream_tile = Signal(TILE_BITS, reset_less=True)
        stream_pair = Signal(pair_shape, reset_less=True)
        row_transposed = Signal(reset_less=True)
        stream_signal = Signal(struct_layout(Tokens), reset_less=True)
        final_row = Signal()
        room = Signal(range(self.acc_rows + 1), init=self.acc_rows)
        queue_room = Signal()
        m.d.comb += [
            final_row.eq(streaming & (stream_row == (stream_rows - 1)[:row_bits])),
            queue_room.eq(room >= load_rows),
            go.eq(
                load_valid
                & (loaded | (load_row == side - 1))
                & (~streaming | final_row)
                & (~walk.first | scanner.known)
                & (~walk.last | queue_room)
            ),
            self.busy.eq(streaming),
            self.streamed.en.eq(streaming),
            self.streamed.address.eq(Cat(stream_row, stream_tile)),
            self.streamed.transposed.eq(row_transposed),
        ]
        taken = self.acc.valid & self.acc.ready
        m.d.sync += room.eq(room + taken - Mux(go & walk.last, load_rows, 0))
        with m.If(go):
            m.d.sync += [
                streaming.eq(1),
                stream_row.eq(0),
                stream_tile.eq(walk.streamed),
                row_transposed.eq(stream_transposed),
                stream_rows.eq(load_rows),
                stream_first.eq(walk.first),
                stream_last.eq(walk.last),
                stream_end.eq(walk.end),
                stream_pair.eq(scanner.pair),
                stream_signal.eq(load_signal),
            ]
        with m.Elif(streaming):
            m.d.sync += stream_row.eq(stream_row + 1)
            with m.If(final_row):
                m.d.sync += streaming.eq(0)
        m.d.sync += self.done.eq(final_row & stream_end)
        with m.If(final_row):
            m.d.sync += self.signal.eq(stream_signal)
        m.d.comb += self.idle.eq(
            ~waiting & ~load_valid & ~streaming & ~self.done & (room == self.acc_rows)
        )

        self._pipeline(
            m,
            {
                "valid": streaming,
                "row": stream_row,
                "start": stream_row == 0,
                "first": stream_first,
                "last": stream_last,
                "pair": stream_pair,
            },
            loading=loading,
            load_row=load_row,
            head=scanner.top,
            pop=scanner.pop,
            platform=platform,
        )
        return m

    def _pipeline(
        self,
        m: Module,
        tags: dict[str, Any],
        *,
        loading: Signal,
        load_row: Signal,
        head: Any,
        pop: Signal,
        platform: object,
    ) -> None:
        """Array, accumulators, converter and queue, and the facts about a row that travel along.

        ``tags`` are those of the row that is read in this cycle; ``head`` is the next output tile's
        largest exponent, ``pop`` says that it is being taken.
        """
        config = self.config
        tile, acc, number = config.matrix.tile, config.matrix.accumulator, config.vector.number
        side = config.side

        def delayed(value: Any, stages: int, name: str, *, reset_less: bool = True) -> list[Any]:
            """``value`` after 0 to ``stages`` cycles."""
            out = [value]
            for s in range(1, stages + 1):
                register = Signal.like(value, name=f"{name}_{s}", reset_less=reset_less)
                m.d.sync += register.eq(out[-1])
                out.append(register)
            return out

        sums_at = READ_LATENCY + array_latency(side)
        top_at = READ_LATENCY + 1
        valid = delayed(tags["valid"], sums_at, "valid", reset_less=False)
        row = delayed(tags["row"], sums_at, "row")
        first = delayed(tags["first"], sums_at, "first")
        last = delayed(tags["last"], sums_at, "last")
        start = Signal()
        m.d.comb += start.eq(tags["valid"] & tags["start"])
        starts = delayed(start, top_at, "start", reset_less=False)
        pair = delayed(tags["pair"], top_at, "pair")

        m.submodules.array = array = MultiplierArray(tile)
        shadow_en = delayed(loading, READ_LATENCY, "shadow_en", reset_less=False)
        shadow_row = delayed(load_row, READ_LATENCY, "shadow_row")
        m.d.comb += [
            array.row_en.eq(valid[READ_LATENCY]),
            array.swap.eq(starts[READ_LATENCY]),
            array.shadow_en.eq(shadow_en[READ_LATENCY]),
            array.shadow_index.eq(shadow_row[READ_LATENCY]),
            *(array.row[i].eq(self.streamed.data[i]) for i in range(side)),
            *(array.shadow[i].eq(self.stationary.data[i]) for i in range(side)),
        ]

        # The shift, in time for the sums.
        most = largest_shift(tile, acc)
        top, top_now = Signal.like(pair[0], reset_less=True), Signal.like(pair[0])
        difference = Signal.like(pair[0])
        shift, zero = Signal(range(most + 1), reset_less=True), Signal(reset_less=True)
        m.d.comb += [
            pop.eq(starts[top_at] & first[top_at]),
            top_now.eq(Mux(pop, head, top)),
            difference.eq(top_now - pair[top_at]),
        ]
        m.d.sync += [
            top.eq(top_now),
            zero.eq(pair[top_at] == 0),
            shift.eq(Mux(difference > most, most, difference)),
        ]
        to_sums = sums_at - top_at - 1
        to_converter = to_sums + ACCUMULATOR_LATENCY
        accumulators, converter = AccumulatorArray(tile, acc), Converter(tile, number, acc)
        m.submodules.accumulators = gated(accumulators, platform, "accumulators")
        m.submodules.converter = gated(converter, platform, "converter")
        for name, part, latency in (
            ("accumulators", accumulators, ACCUMULATOR_LATENCY),
            ("converter", converter, CONVERTER_LATENCY),
        ):
            gate(m, platform, name, part.valid, lingering=latency)
        m.submodules.queue = queue = AccQueue(width=number.width, side=side, rows=self.acc_rows)
        m.d.comb += [
            accumulators.valid.eq(valid[sums_at]),
            accumulators.row.eq(row[sums_at]),
            accumulators.first.eq(first[sums_at]),
            accumulators.last.eq(last[sums_at]),
            accumulators.zero.eq(delayed(zero, to_sums, "zero")[-1]),
            accumulators.shift.eq(delayed(shift, to_sums, "shift")[-1]),
            converter.valid.eq(accumulators.out_valid),
            converter.negative.eq(accumulators.negative),
            converter.saturated.eq(accumulators.saturated),
            converter.exponent.eq(delayed(top, to_converter, "top")[-1]),
            queue.write.eq(converter.out_valid),
            queue.saturated.eq(converter.out_saturated),
        ]
        for j in range(side):
            m.d.comb += [
                accumulators.sums[j].eq(array.sums[j]),
                converter.magnitude[j].eq(accumulators.magnitude[j]),
                queue.codes[j].eq(converter.codes[j]),
            ]
        wiring.connect(m, wiring.flipped(self.acc), queue.acc)
