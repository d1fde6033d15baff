"""The fetch unit of a core: reads a streamed program from external memory into the rings of the four sequencers.

For each unit it walks the entry's range as often as the run has steps, as the unit itself does, and no further. A burst
is up to ``BURST`` instructions, to the next multiple of ``BURST`` or to the range's end. It is asked for when the unit's
ring has room for ``BURST``, so that what comes can always be taken; units that have room take turns.

Timing, in clock cycles:

* A burst is chosen in cycle c, the first one in cycle 1 of a run, in turns from LOAD on, while fewer than ``BURSTS`` are
  chosen and not yet complete. It is on ``burst`` from c + 2 on; both stages stand still while it is not taken.
* What left a ring in cycle c is room in c + 2.
* A beat that comes in cycle c is written into its ring in c + 1.
"""

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.gateware.axi import FETCH_ID, burst_layout
from fpgrad.gateware.dma import beat_layout
from fpgrad.gateware.sequencer import STEP_BITS, index_bits
from fpgrad.gateware.tokens import UNITS
from fpgrad.isa.area import slot_beats
from fpgrad.isa.config import BURST, MachineConfig
from fpgrad.isa.instructions import DRAM_BITS, Unit

#: Bursts that may be chosen and not yet complete.
BURSTS = 16

_BURST_BITS = exact_log2(BURST)

#: A burst: whose it is, and how many instructions follow its first.
Chosen = data.StructLayout({"unit": 2, "more": _BURST_BITS})


class Fetch(wiring.Component):
    """Fills the rings.

    Members:
        start, stop, steps, go, halt: as in :class:`fpgrad.gateware.sequencer.Sequencer`, for each unit.
        program: the row of each unit's instruction 0.
        burst: reads for the port.
        came, beat: a beat of what was read; it is taken in this cycle.
        fill, filled: ``filled`` is the next beat for the ring of the unit whose ``fill`` is set.
        got: an instruction left a ring in this cycle.
        idle: nothing is on its way.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        index = index_bits(config)
        super().__init__(
            {
                "start": In(index).array(UNITS),
                "stop": In(index).array(UNITS),
                "steps": In(STEP_BITS),
                "go": In(1),
                "halt": In(1),
                "program": In(DRAM_BITS).array(UNITS),
                "burst": Out(stream.Signature(burst_layout(config))),
                "came": In(1),
                "beat": In(beat_layout(config)),
                "fill": Out(1).array(UNITS),
                "filled": Out(beat_layout(config)),
                "got": In(1).array(UNITS),
                "idle": Out(1),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Walks, turns, addresses; then what comes."""
        del platform
        m = Module()
        index = index_bits(self._config)
        m.submodules.order = order = fifo.SyncFIFO(width=Chosen.size, depth=BURSTS)
        move, takes = Signal(), Signal(UNITS)
        wants = Signal(UNITS)
        nexts, mores = [], []
        for unit in Unit:
            at, more, want = self._walk(m, unit, takes[unit])
            nexts.append(at)
            mores.append(more)
            m.d.comb += wants[unit].eq(want)

        # Turns: of the units that want something the next after the last.
        last, chosen = Signal(range(UNITS)), Signal(range(UNITS))
        with m.Switch(last):
            for was in range(UNITS):
                with m.Case(was):
                    # Later statements win: from the last choice to the first.
                    for distance in reversed(range(1, UNITS + 1)):
                        n = (was + distance) % UNITS
                        with m.If(wants[n]):
                            m.d.comb += chosen.eq(n)
        go = Signal()
        m.d.comb += [go.eq(move & wants.any() & order.w_rdy), order.w_en.eq(go)]
        for unit in Unit:
            m.d.comb += takes[unit].eq(go & (chosen == unit))
        with m.If(go):
            m.d.sync += last.eq(chosen)
        with m.If(self.go):
            m.d.sync += last.eq(UNITS - 1)

        # Addresses, in two stages.
        first, first_valid = Signal(index, reset_less=True), Signal()
        picked = Signal(Chosen, reset_less=True)
        entry = data.View(Chosen, order.w_data)
        m.d.comb += [
            move.eq(~self.burst.valid | self.burst.ready),
            entry.unit.eq(chosen),
            entry.more.eq(Array(mores)[chosen]),
        ]
        beat = Signal(self.burst.payload.beat.shape())
        more = Signal(self.burst.payload.more.shape())
        row_beats = exact_log2(self._config.side // self._config.memory.dram_words_per_cycle)
        with m.Switch(picked.unit):
            for unit in Unit:
                shift = exact_log2(slot_beats(self._config, unit))
                with m.Case(unit):
                    m.d.comb += [
                        beat.eq((self.program[unit] << row_beats) + (first << shift)),
                        more.eq(((picked.more + 1) << shift) - 1),
                    ]
        with m.If(move):
            m.d.sync += [
                first_valid.eq(go),
                first.eq(Array(nexts)[chosen]),
                picked.eq(entry),
                self.burst.valid.eq(first_valid),
                self.burst.payload.beat.eq(beat),
                self.burst.payload.more.eq(more),
            ]
        m.d.comb += [
            self.burst.payload.last.eq(1),
            self.burst.payload.flag.eq(FETCH_ID),
            self.idle.eq(~order.r_rdy),
        ]
        self._fill(m, order)
        return m

    def _walk(self, m: Module, unit: Unit, takes: Value) -> tuple[Signal, Signal, Signal]:
        """A unit's range again and again: the next burst's first instruction, how many follow it, and whether it is
        wanted."""
        name, index = unit.name.lower(), index_bits(self._config)
        depth = getattr(self._config.control, name)
        at, left = Signal(index, name=f"{name}_at"), Signal(index, name=f"{name}_left")
        length = Signal(index, name=f"{name}_length")
        step, active = Signal(STEP_BITS, name=f"{name}_step"), Signal(name=f"{name}_active")
        room, got = Signal(range(depth + 1), name=f"{name}_room"), Signal(name=f"{name}_got")
        more, ends = Signal(_BURST_BITS, name=f"{name}_more"), Signal(name=f"{name}_ends")
        want, to_boundary = Signal(name=f"{name}_want"), Signal(_BURST_BITS)
        m.d.comb += [
            to_boundary.eq(~at[:_BURST_BITS]),
            ends.eq(left - 1 <= to_boundary),
            more.eq(Mux(ends, left - 1, to_boundary)),
            want.eq(active & room[_BURST_BITS:].any()),
        ]
        m.d.sync += [got.eq(self.got[unit]), room.eq(room + got - Mux(takes, more + 1, 0))]
        with m.If(takes):
            m.d.sync += [at.eq(at + more + 1), left.eq(left - more - 1)]
            with m.If(ends):
                m.d.sync += [at.eq(self.start[unit]), left.eq(length), step.eq(step + 1)]
                m.d.sync += active.eq(step + 1 != self.steps)
        with m.If(self.go):
            span = self.stop[unit] - self.start[unit]
            m.d.sync += [
                at.eq(self.start[unit]),
                left.eq(span),
                length.eq(span),
                step.eq(0),
                active.eq((self.start[unit] != self.stop[unit]) & (self.steps != 0)),
                room.eq(depth),
                got.eq(0),
            ]
        with m.If(self.halt):
            m.d.sync += active.eq(0)
        return at, more, want

    def _fill(self, m: Module, order: fifo.SyncFIFO) -> None:
        """Beats come in the order of their bursts."""
        there, beats = Signal(), Signal(8)
        head = data.View(Chosen, order.r_data)
        last = Signal(8)
        with m.Switch(head.unit):
            for unit in Unit:
                shift = exact_log2(slot_beats(self._config, unit))
                with m.Case(unit):
                    m.d.comb += [
                        self.fill[unit].eq(there),
                        last.eq(((head.more + 1) << shift) - 1),
                    ]
        m.d.sync += [there.eq(self.came), self.filled.eq(self.beat)]
        m.d.comb += order.r_en.eq(there & (beats == last))
        with m.If(there):
            m.d.sync += beats.eq(Mux(order.r_en, 0, beats + 1))


__all__ = ["BURSTS", "Fetch"]
