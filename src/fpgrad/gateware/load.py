"""The load unit: from external memory to the inbox, tile memory and mask memory, from the exchange to the inbox.

Requests run ahead of what comes back: the unit takes an instruction as soon as the last request of
the one before is on its way, so that external memory's latency is paid once for many instructions.

Timing, in clock cycles, for an instruction that is taken in cycle s:

* It asks for one group (or index row) a cycle, the first in cycle s + 2, with ``gather`` in s + 3. What
  it asks for in cycle a is on ``request`` in a + 3, or later while requests are not taken: all stages
  then stand still, asking too.
* With ``gather``, index rows (the numbers of T groups each) are asked for before groups, but never more
  than two of which groups are still to be asked for. Groups of an index row can be asked for from the
  second cycle after the one in which its last beat was taken.
* The unit takes the next instruction at the earliest in the cycle after its last ask, and only while
  fewer than ``IN_FLIGHT`` instructions, besides the one whose beats are arriving, are in flight.
* Beats of index rows are taken in the cycle in which they are there. Other beats become units, one a
  cycle at most: ROWS: one row of T words; BYTES: T bytes; TILES: one exponent (a byte), then T bytes;
  MASKS: T bits. Where a unit is several beats, one beat is taken a cycle; where a beat is several units,
  it is taken with its last one, an exponent's with the last exponent of the group. The beats that follow
  in that exponent's DRAM row are taken one a cycle, as nothing.
* A unit that is made in cycle u is written in u + 1. Rows of tiles, exponents and masks wait as long as
  the vector unit writes to the same memory in that cycle (an exponent only for an exponent), and the next
  unit, or part of one, is made at the earliest in the cycle of the write.
* SUM asks for nothing. A row is taken from ``sums`` in the cycle in which it is there and its place is,
  and becomes a unit in that cycle. The unit takes the next instruction at the earliest in the cycle
  after its last row was taken: nothing that is asked for waits until other cores have sent their rows.
* ``done`` is the cycle after the last write.
"""

from amaranth.hdl import Module, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from fpgrad.gateware.asker import Asker
from fpgrad.gateware.dma import STEP_BITS, Bases, Places, ReadRows, number_members
from fpgrad.gateware.unpacker import Unpacker, write_members
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.encoding import unit_layout
from fpgrad.isa.instructions import Unit


class Load(wiring.Component):
    """Executes LOAD instructions: :class:`Asker` makes requests, :class:`Unpacker` writes what comes.

    Members:
        instruction, step: from the sequencer.
        bases: the base registers.
        number: the core's; there only if there are several.
        done: pulses in the cycle after an instruction's last row was written, so that what waits for
            its token reads the row.
        request, beats: the read half of the memory port.
        sums: rows from the exchange.
        starved: it has not sent what would be next.
        inbox: the inbox's write port.
        tiles, tiles_busy, exponents_busy: with ``memory.tile_dma``, the write port of tile memory and
            whether another writes a row, or an exponent, in this cycle.
        masks, masks_busy: the same for mask memory, where there is one.
        error: pulses when a request is outside external memory.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "instruction": In(stream.Signature(unit_layout(Unit.LOAD))),
                "step": In(STEP_BITS),
                "bases": In(Bases),
                **number_members(config),
                "request": Out(stream.Signature(ReadRows)),
                "error": Out(1),
                **write_members(config),
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Both halves; places are queued between them."""
        m = Module()
        m.submodules.asker = asker = Asker(self._config)
        m.submodules.places = places = Places(self._config)
        m.submodules.unpacker = unpacker = Unpacker(self._config)
        i, walk = self.instruction.payload, places.walk.payload
        m.d.comb += [
            asker.instruction.payload.eq(i),
            asker.instruction.valid.eq(self.instruction.valid & places.walk.ready),
            self.instruction.ready.eq(asker.instruction.ready & places.walk.ready),
            asker.step.eq(self.step),
            asker.bases.eq(self.bases),
            asker.summed.eq(unpacker.summed),
            places.walk.valid.eq(self.instruction.valid & asker.instruction.ready),
            walk.kind.eq(i.kind),
            walk.count.eq(i.count),
            walk.rows.eq(i.rows),
            walk.base.eq(i.target),
            walk.group_stride.eq(i.group_stride),
            walk.row_stride.eq(i.row_stride),
            asker.index_write.eq(unpacker.index_write),
            asker.index_words.eq(self.beats.payload.words),
            self.error.eq(asker.error),
        ]
        for name in number_members(self._config):
            m.d.comb += getattr(asker, name).eq(getattr(self, name))
        connect(m, asker.request, wiring.flipped(self.request))
        connect(m, places.place, unpacker.place)
        for name in write_members(self._config):
            _pass_on(m, getattr(self, name), getattr(unpacker, name), name)
        return m


def _pass_on(m: Module, outer: Value, inner: Value, name: str) -> None:
    """Passes a member of a part on as the same member of the whole."""
    if name.endswith("_busy"):
        m.d.comb += inner.eq(outer)
    elif isinstance(outer, Value):
        m.d.comb += outer.eq(inner)
    else:
        connect(m, wiring.flipped(outer), inner)
