"""The sequencer of a unit: instruction memory, prefetch, steps, and the tokens of what is issued.

All four units have the same one. The memory holds all instructions, or those that a streamed program has sent ahead
(:mod:`fpgrad.gateware.ring`). Two registers stand between the memory and the unit (the memory's
output and the instruction itself), so that a unit that is ready takes an instruction every cycle and
neither a block RAM's slow output nor the token comparison is in the unit's own timing.
"""

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fpgrad.gateware.ring import Ring
from fpgrad.gateware.tokens import UNITS, Channels, Fields
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import Unit
from fpgrad.isa.registers import (
    INSTRUCTION_WORDS_LOG2,
    MAX_INSTRUCTIONS,
    STREAMED_BITS,
    WORD_BITS,
)

INDEX_BITS = ceil_log2(MAX_INSTRUCTIONS) + 1
STEP_BITS = 32


def index_bits(config: MachineConfig) -> int:
    """Bits of an instruction's number and of the number behind the last."""
    return STREAMED_BITS if config.control.streamed else INDEX_BITS


#: Instructions of one unit that may be started and not yet complete.
OUTSTANDING = 16

#: One word of an instruction, from the host.
InstructionWrite = data.StructLayout(
    {
        "index": INDEX_BITS - 1,
        "word": INSTRUCTION_WORDS_LOG2,
        "data": WORD_BITS,
    }
)


class Sequencer(wiring.Component):
    """Issues one unit's instructions.

    The first instruction is offered three cycles after ``go``; ``done`` pulses once for each
    instruction that was taken, in order, at the earliest in the cycle after it was taken.

    Args:
        unit: whose instructions.
        depth: instructions in the memory.
        beat_words: of a streamed program, the words that come at once; 0: the memory holds all of it.

    Members:
        write, write_data: writes one word of an instruction.
        fill, beat, got: instead of these in a streamed program: the next beat of an instruction; an instruction left
            the ring.
        start, stop: the entry's range, stable during a run.
        steps: how often the range is repeated, stable during a run.
        go, halt: begins a run; ends it after the instructions already taken.
        available: tokens in the channels to this unit.
        take, signal: tokens to remove and to add in this cycle.
        instruction: the stream to the unit; ``step`` is the step that its payload belongs to.
        done: the oldest instruction that was taken is complete.
        busy: an instruction was taken and is not complete.
        waiting: an instruction is there, its tokens are not.
        finished: the last step is complete.
        at, at_step: where the unit is, for diagnosis.
    """

    def __init__(self, *, unit: Unit, depth: int, beat_words: int = 0) -> None:
        if not 1 <= depth <= MAX_INSTRUCTIONS:
            raise ValueError(f"depth must be 1 to {MAX_INSTRUCTIONS}, not {depth!r}")
        self._unit = unit
        self._depth = depth
        self._beat_words = beat_words
        self._index_bits = index = STREAMED_BITS if beat_words else INDEX_BITS
        memory: dict[str, wiring.Member] = {"write": In(1), "write_data": In(InstructionWrite)}
        if beat_words:
            memory = {
                "fill": In(1),
                "beat": In(data.ArrayLayout(WORD_BITS, beat_words)),
                "got": Out(1),
            }
        super().__init__(
            {
                **memory,
                "start": In(index),
                "stop": In(index),
                "steps": In(STEP_BITS),
                "go": In(1),
                "halt": In(1),
                "available": In(Channels),
                "take": Out(Fields),
                "signal": Out(Fields),
                "instruction": Out(stream.Signature(unit_layout(unit))),
                "step": Out(STEP_BITS),
                "done": In(1),
                "busy": Out(1),
                "waiting": Out(1),
                "finished": Out(1),
                "at": Out(index),
                "at_step": Out(STEP_BITS),
            }
        )

    @property
    def unit(self) -> Unit:
        """Whose instructions these are."""
        return self._unit

    @property
    def depth(self) -> int:
        """Instructions in the memory."""
        return self._depth

    def elaborate(self, platform: object) -> Module:
        """Fetch, hold, issue; signals wait in a queue."""
        del platform
        m = Module()
        layout = unit_layout(self._unit)

        # Fetch: program counter -> memory output (fetched) -> current.
        index = self._index_bits
        pc, pc_step, fetching = Signal(index), Signal(STEP_BITS), Signal()
        fetched, fetched_at, fetched_step = Signal(), Signal(index), Signal(STEP_BITS)
        valid, at, step = Signal(), Signal(index), Signal(STEP_BITS)
        current = Signal(layout, reset_less=True)

        if self._beat_words:
            ring = self._ring(m, layout.size)
            there, came, enables = fetching & ring.there, ring.instruction, [ring.get]
        else:
            words = self._memory(m, layout.size, pc)
            there, came = fetching, Cat(port.data for port in words)
            enables = [port.en for port in words]

        taken = Signal()
        to_current, to_fetched = Signal(), Signal()
        m.d.comb += [
            to_current.eq(~valid | taken),
            to_fetched.eq(~fetched | to_current),
        ]
        get = to_fetched & there
        for enable in enables:
            m.d.comb += enable.eq(get)
        if self._beat_words:
            m.d.comb += self.got.eq(get)
        last = pc + 1 == self.stop
        with m.If(to_fetched):
            m.d.sync += [fetched.eq(there), fetched_at.eq(pc), fetched_step.eq(pc_step)]
            with m.If(there):
                m.d.sync += pc.eq(pc + 1)
                with m.If(last):
                    m.d.sync += [pc.eq(self.start), pc_step.eq(pc_step + 1)]
                    m.d.sync += fetching.eq(pc_step + 1 != self.steps)
        with m.If(to_current):
            m.d.sync += valid.eq(fetched)
        with m.If(to_current & fetched):
            m.d.sync += [at.eq(fetched_at), step.eq(fetched_step)]
            m.d.sync += current.eq(came)
        with m.If(self.go):
            m.d.sync += [
                pc.eq(self.start),
                pc_step.eq(0),
                at.eq(self.start),
                step.eq(0),
                fetching.eq((self.start != self.stop) & (self.steps != 0)),
            ]
        with m.If(self.go | self.halt):
            m.d.sync += [fetched.eq(0), valid.eq(0)]
        with m.If(self.halt):
            m.d.sync += fetching.eq(0)

        # Issue: what an instruction will signal waits in a queue until it is complete.
        signals = fifo.SyncFIFO(width=Fields.size, depth=OUTSTANDING)
        m.submodules.signals = signals
        tokens_there = Cat(
            self.available[source] >= current.wait[name] for source, name in enumerate(_NAMES)
        ).all()
        m.d.comb += [
            self.instruction.payload.eq(current),
            self.instruction.valid.eq(valid & tokens_there & signals.w_rdy),
            self.step.eq(step),
            taken.eq(self.instruction.valid & self.instruction.ready),
            signals.w_data.eq(Cat(current.signal[name] for name in _NAMES)),
            signals.w_en.eq(taken),
            signals.r_en.eq(self.done),
        ]
        for source, name in enumerate(_NAMES):
            with m.If(taken):
                m.d.comb += self.take[source].eq(current.wait[name])
        with m.If(self.done):
            m.d.comb += self.signal.eq(signals.r_data)
        m.d.comb += [
            self.busy.eq(signals.r_rdy),
            self.waiting.eq(valid & ~tokens_there),
            self.finished.eq(~fetching & ~fetched & ~valid & ~signals.r_rdy),
            self.at.eq(at),
            self.at_step.eq(step),
        ]
        return m

    def _ring(self, m: Module, width: int) -> Ring:
        m.submodules.ring = ring = Ring(width=width, depth=self._depth, beat_words=self._beat_words)
        m.d.comb += [
            ring.clear.eq(self.go),
            ring.fill.eq(self.fill),
            ring.beat.eq(self.beat),
        ]
        return ring

    def _memory(self, m: Module, width: int, address: Signal) -> list[memory.ReadPort]:
        """One memory for each 32-bit word, because hosts write words and simulators like them."""
        ports = []
        bits = max(1, ceil_log2(self._depth))
        for word, offset in enumerate(range(0, width, WORD_BITS)):
            bank = memory.Memory(
                shape=min(WORD_BITS, width - offset), depth=max(2, self._depth), init=[]
            )
            m.submodules[f"word_{word}"] = bank
            write = bank.write_port()
            m.d.comb += [
                write.addr.eq(self.write_data.index[:bits]),
                write.data.eq(self.write_data.data),
                write.en.eq(self.write & (self.write_data.word == Const(word))),
            ]
            read = bank.read_port()
            m.d.comb += read.addr.eq(address[:bits])
            ports.append(read)
        return ports


_NAMES = tuple(unit.name.lower() for unit in Unit)
assert len(_NAMES) == UNITS
