"""A ring of instructions: what a streamed program has sent ahead of its unit.

Timing, in clock cycles: an instruction whose last beat is filled in cycle c can leave from c + 1 on, and is on
``instruction`` from the cycle after it left until the next one does.
"""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from fpgrad.isa.registers import WORD_BITS


class Ring(wiring.Component):
    """Beats become instructions.

    Who fills it must know that there is room.

    Args:
        width: bits of an instruction.
        depth: instructions, a power of two.
        beat_words: words of a beat.

    Members:
        clear: nothing is in it any more.
        fill, beat: the next beat. An instruction takes the beats of a power of two words that hold it.
        get: the oldest instruction leaves; it must be there.
        there: there is one.
        instruction: the one that left last.
    """

    def __init__(self, *, width: int, depth: int, beat_words: int) -> None:
        self._width, self._depth, self._beat_words = width, depth, beat_words
        super().__init__(
            {
                "clear": In(1),
                "fill": In(1),
                "beat": In(data.ArrayLayout(WORD_BITS, beat_words)),
                "get": In(1),
                "there": Out(1),
                "instruction": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A memory for each word of an instruction, as in the sequencer."""
        del platform
        m = Module()
        words = -(-self._width // WORD_BITS)
        beats = max(1, (1 << (words - 1).bit_length()) // self._beat_words)
        place_bits, beat_bits = exact_log2(self._depth), exact_log2(beats)
        # Places are counted with the beats of an instruction below them.
        write, read = Signal(place_bits + beat_bits), Signal(place_bits)
        level, full = Signal(range(self._depth + 1)), Signal()
        m.d.comb += full.eq(self.fill & write[:beat_bits].all() if beats > 1 else self.fill)
        with m.If(self.fill):
            m.d.sync += write.eq(write + 1)
        with m.If(self.get):
            m.d.sync += read.eq(read + 1)
        m.d.sync += level.eq(level + full - self.get)
        with m.If(full):
            m.d.sync += self.there.eq(1)
        with m.Elif(self.get & (level == 1)):
            m.d.sync += self.there.eq(0)
        with m.If(self.clear):
            m.d.sync += [write.eq(0), read.eq(0), level.eq(0), self.there.eq(0)]

        ports = []
        for word, offset in enumerate(range(0, self._width, WORD_BITS)):
            bits = min(WORD_BITS, self._width - offset)
            bank = memory.Memory(shape=bits, depth=self._depth, init=[])
            m.submodules[f"word_{word}"] = bank
            port, fill = bank.read_port(), bank.write_port()
            m.d.comb += [
                fill.addr.eq(write[beat_bits:]),
                fill.data.eq(self.beat[word % self._beat_words]),
                fill.en.eq(self.fill & (write[:beat_bits] == word // self._beat_words)),
                port.addr.eq(read),
                port.en.eq(self.get),
            ]
            ports.append(port)
        m.d.comb += self.instruction.eq(Cat(port.data for port in ports))
        return m


__all__ = ["Ring"]
