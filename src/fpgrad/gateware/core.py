"""The core: four units with their sequencers and the memories between them."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.axi import fetch_members
from fpgrad.gateware.dma import (
    ReadRows,
    WriteRows,
    beat_layout,
    number_members,
    read_beat_layout,
    row_layout,
)
from fpgrad.gateware.fetch import Fetch
from fpgrad.gateware.load import Load
from fpgrad.gateware.matrix import MatrixUnit
from fpgrad.gateware.memory import ExponentMemory, SkewedMemory
from fpgrad.gateware.registers import control_signature, core_status
from fpgrad.gateware.sequencer import Sequencer
from fpgrad.gateware.store import Store
from fpgrad.gateware.tokens import TokenChannels
from fpgrad.gateware.vector import VectorUnit
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Unit

#: A run in which every unit is stuck for 2**(QUIET_BITS - 1) cycles will never end: nothing that is
#: on its way inside a unit takes longer than the scan of the 2**16 exponents of one output tile.
QUIET_BITS = 18


class Core(wiring.Component):
    """One of the cores that a configuration describes.

    Members:
        number: which one; there only if there are several.
        control: what the host says to all of them.
        status: what it can know about this one.
        rows, sums: to and from the exchange.
        read_request, read_beats, write_request, write_beats, written: the port to external memory.
        port_error: external memory answered with an error.
        fetch_burst, fetched, fetched_beat: of a streamed program, see :class:`fpgrad.gateware.fetch.Fetch`.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                **fetch_members(config),
                **number_members(config),
                "control": In(control_signature(config)),
                "status": Out(core_status(config)),
                "rows": Out(stream.Signature(row_layout(config))),
                "sums": In(stream.Signature(row_layout(config))),
                "read_request": Out(stream.Signature(ReadRows)),
                "read_beats": In(stream.Signature(read_beat_layout(config))),
                "write_request": Out(stream.Signature(WriteRows)),
                "write_beats": Out(stream.Signature(beat_layout(config))),
                "written": In(1),
                "port_error": In(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """What the machine was made from."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Sequencers and token channels around the units, memories between them."""
        del platform
        m = Module()
        config = self._config
        control, status = self.control, self.status
        m.submodules.tokens = tokens = TokenChannels()

        m.submodules.load = load = Load(config)
        m.submodules.matrix = matrix = MatrixUnit(config)
        m.submodules.vector = vector = VectorUnit(config)
        m.submodules.store = store = Store(config)
        instructions = {
            Unit.LOAD: load.instruction,
            Unit.MATRIX: matrix.instruction,
            Unit.VECTOR: vector.instructions,
            Unit.STORE: store.instruction,
        }
        dones = {
            Unit.LOAD: load.done,
            Unit.MATRIX: matrix.done,
            Unit.VECTOR: vector.done,
            Unit.STORE: store.done,
        }
        finished: list[Signal] = []
        sequencers: dict[Unit, Sequencer] = {}
        # Units with nothing to do, or nothing that they can do before another unit does something.
        stuck: list[Value] = []
        for unit in Unit:
            name = unit.name.lower()
            streamed = config.control.streamed
            beat_words = config.memory.dram_words_per_cycle if streamed else 0
            sequencer = Sequencer(
                unit=unit, depth=getattr(config.control, name), beat_words=beat_words
            )
            sequencers[unit] = sequencer
            m.submodules[f"{name}_sequencer"] = sequencer
            if not streamed:
                m.d.comb += [
                    sequencer.write.eq(control.write[unit]),
                    sequencer.write_data.eq(control.write_data),
                ]
            m.d.comb += [
                sequencer.start.eq(control.start[unit]),
                sequencer.stop.eq(control.stop[unit]),
                sequencer.steps.eq(control.steps),
                sequencer.go.eq(control.go),
                sequencer.halt.eq(control.halt),
                sequencer.available.eq(tokens.available[unit]),
                sequencer.done.eq(dones[unit]),
                tokens.take[unit].eq(sequencer.take),
                tokens.signal[unit].eq(sequencer.signal),
                tokens.initial[unit].eq(control.tokens[unit]),
                status.at[unit].eq(sequencer.at),
                status.at_step[unit].eq(sequencer.at_step),
                status.state[unit].busy.eq(sequencer.busy),
                status.state[unit].waiting.eq(sequencer.waiting),
                status.state[unit].finished.eq(sequencer.finished),
            ]
            connect(m, sequencer.instruction, instructions[unit])
            finished.append(sequencer.finished)
            still = ~sequencer.busy & (sequencer.finished | sequencer.waiting)
            if unit is Unit.VECTOR:
                still |= vector.acc.ready & ~vector.acc.valid & matrix.idle
            elif unit is Unit.MATRIX:
                still |= matrix.acc.valid & ~matrix.acc.ready & ~matrix.busy
            elif unit is Unit.LOAD:
                still |= load.starved
            else:
                still |= store.rows.valid & ~store.rows.ready
            stuck.append(still)
            if unit in (Unit.LOAD, Unit.STORE):
                dma = load if unit is Unit.LOAD else store
                m.d.comb += [dma.step.eq(sequencer.step), dma.bases.eq(control.bases)]
                for name in number_members(config):
                    m.d.comb += getattr(dma, name).eq(getattr(self, name))

        at_rest: list[Value] = list(finished)
        if config.control.streamed:
            # What was asked for comes before the next run.
            at_rest.append(self._fetch(m, sequencers))
        self._memories(m, load, matrix, vector, store)
        connect(m, load.request, wiring.flipped(self.read_request))
        connect(m, wiring.flipped(self.read_beats), load.beats)
        connect(m, store.request, wiring.flipped(self.write_request))
        connect(m, store.beats, wiring.flipped(self.write_beats))
        connect(m, store.rows, wiring.flipped(self.rows))
        connect(m, wiring.flipped(self.sums), load.sums)
        m.d.comb += store.written.eq(self.written)

        # A run lasts from the cycle after go to the cycle in which every unit is finished.
        running, address_error = Signal(), Signal()
        with m.If(control.go):
            m.d.sync += [running.eq(1), address_error.eq(0)]
        with m.Elif(running & Cat(at_rest).all()):
            m.d.sync += running.eq(0)
        with m.If(load.error | store.error | self.port_error):
            m.d.sync += address_error.eq(1)
        quiet = Signal(QUIET_BITS)
        with m.If(~running | ~Cat(stuck).all()):
            m.d.sync += quiet.eq(0)
        with m.Elif(~quiet[-1]):
            m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += [
            tokens.go.eq(control.go),
            vector.clear.eq(control.go),
            status.running.eq(running),
            status.rows_left.eq(~matrix.idle),
            status.token_overflow.eq(tokens.overflow),
            status.address_error.eq(address_error),
            status.quiet.eq(quiet[-1]),
            status.saturated_vector.eq(vector.saturated_vector),
            status.saturated_accumulator.eq(vector.saturated_accumulator),
        ]
        return m

    def _fetch(self, m: Module, sequencers: dict[Unit, Sequencer]) -> Value:
        """Between the port and the rings; whether nothing is on its way."""
        control = self.control
        m.submodules.fetch = fetch = Fetch(self._config)
        connect(m, fetch.burst, wiring.flipped(self.fetch_burst))
        m.d.comb += [
            fetch.go.eq(control.go),
            fetch.halt.eq(control.halt),
            fetch.steps.eq(control.steps),
            fetch.came.eq(self.fetched),
            fetch.beat.eq(self.fetched_beat),
        ]
        for unit, sequencer in sequencers.items():
            m.d.comb += [
                fetch.start[unit].eq(control.start[unit]),
                fetch.stop[unit].eq(control.stop[unit]),
                fetch.program[unit].eq(control.program[unit]),
                fetch.got[unit].eq(sequencer.got),
                sequencer.fill.eq(fetch.fill[unit]),
                sequencer.beat.eq(fetch.filled),
            ]
        return fetch.idle

    def _memories(
        self, m: Module, load: Load, matrix: MatrixUnit, vector: VectorUnit, store: Store
    ) -> None:
        config = self._config
        number, tile, depth = config.vector.number, config.matrix.tile, config.memory
        t = config.side
        rows = SkewedMemory(width=number.width, depth=depth.vector_rows, side=t, read_ports=2)
        inbox = SkewedMemory(width=number.width, depth=depth.inbox_rows, side=t, read_ports=2)
        outbox = SkewedMemory(width=number.width, depth=depth.outbox_rows, side=t, read_ports=1)
        # Tiles that move to and from external memory are read through a port of their own.
        ports = 3 if depth.tile_dma else 2
        tiles = SkewedMemory(
            width=tile.mantissa_bits, depth=depth.tiles * t, side=t, read_ports=ports
        )
        exponents = ExponentMemory(width=number.exponent_bits, depth=depth.tiles, read_ports=ports)
        m.submodules.vector_memory = rows
        m.submodules.inbox = inbox
        m.submodules.outbox = outbox
        m.submodules.mantissas = tiles
        m.submodules.exponents = exponents

        def read(port: wiring.PureInterface, memory: wiring.PureInterface) -> None:
            m.d.comb += [
                memory.en.eq(port.en),
                memory.address.eq(port.address),
                memory.transposed.eq(port.transposed),
            ]
            m.d.comb += [a.eq(b) for a, b in zip(port.data, memory.data, strict=True)]

        def write(port: wiring.PureInterface, memory: wiring.PureInterface) -> None:
            m.d.comb += [memory.en.eq(port.en), memory.address.eq(port.address)]
            m.d.comb += [a.eq(b) for a, b in zip(memory.data, port.data, strict=True)]

        for n in range(2):
            read(vector.vector_read[n], rows.read[n])
            read(vector.inbox_read[n], inbox.read[n])
        write(vector.vector_write, rows.write)
        write(vector.outbox_write, outbox.write)
        write(vector.tile_write, tiles.write)
        if depth.mask_rows:
            mask = SkewedMemory(width=1, depth=depth.mask_rows, side=t, read_ports=ports)
            m.submodules.mask = mask
            for n in range(2):
                read(vector.mask_read[n], mask.read[n])
            write(vector.mask_write, mask.write)
            if depth.tile_dma:
                m.d.comb += load.masks_busy.eq(vector.mask_write.en)
                with m.If(load.masks.en):
                    write(load.masks, mask.write)
                connect(m, store.masks, mask.read[2])
        m.d.comb += [
            exponents.write.en.eq(vector.tile_write.exponent_en),
            exponents.write.address.eq(vector.tile_write.exponent_address),
            exponents.write.data.eq(vector.tile_write.exponent),
        ]
        connect(m, load.inbox, inbox.write)
        connect(m, store.outbox, outbox.read[0])
        if depth.tile_dma:
            self._tile_dma(m, load, vector, store, tiles, exponents)
        connect(m, matrix.streamed, tiles.read[0])
        connect(m, matrix.stationary, tiles.read[1])
        connect(m, matrix.streamed_exponent, exponents.read[0])
        connect(m, matrix.stationary_exponent, exponents.read[1])

        m.d.comb += [matrix.acc.ready.eq(vector.acc.ready), vector.acc.valid.eq(matrix.acc.valid)]
        m.d.comb += vector.acc.flags.eq(matrix.acc.saturated)
        m.d.comb += [a.eq(b) for a, b in zip(vector.acc.codes, matrix.acc.codes, strict=True)]

    def _tile_dma(
        self,
        m: Module,
        load: Load,
        vector: VectorUnit,
        store: Store,
        tiles: SkewedMemory,
        exponents: ExponentMemory,
    ) -> None:
        """LOAD writes in cycles in which the quantiser does not."""
        write = vector.tile_write
        m.d.comb += [load.tiles_busy.eq(write.en), load.exponents_busy.eq(write.exponent_en)]
        with m.If(load.tiles.en):
            m.d.comb += [tiles.write.en.eq(1), tiles.write.address.eq(load.tiles.address)]
            m.d.comb += [a.eq(b) for a, b in zip(tiles.write.data, load.tiles.data, strict=True)]
        with m.If(load.tiles.exponent_en):
            m.d.comb += [
                exponents.write.en.eq(1),
                exponents.write.address.eq(load.tiles.exponent_address),
                exponents.write.data.eq(load.tiles.exponent),
            ]
        connect(m, store.tiles, tiles.read[2])
        connect(m, store.exponents, exponents.read[2])
