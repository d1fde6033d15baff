"""The port to external memory as AXI4, between the requests and beats of :mod:`fpgrad.gateware.dma`.

Reads have ID 0, those of index rows ID 1, of a streamed program ID 2, writes ID 0; nothing else is assumed about the order in which
reads are answered. Requests become incrementing bursts of whole beats that cross no boundary of
``min(4 KiB, 256 beats)``, nor one of ``read_burst`` or ``write_burst`` beats, see
:class:`fpgrad.isa.config.MachineConfig`. ``WRITES`` bursts of writes can be outstanding, and of reads as many as there
is room for.

**Nobody waits on the way to memory.** A burst of reads is asked for when the queue of ``read_queue`` beats has room for
all of it (credits), so that ``m_axi_rready`` is always 1. With several cores the beats of writes are collected in a queue
of ``write_queue``, and a burst goes when all of its beats are there. So a core that is slow, because a beat is several
rows of a tile, or waits for its vector unit, never keeps others from a port that all of them share.

All outputs come from registers, and all inputs go to registers through a gate or two: outside the chip's
core that helps timing, and in a simulation logic behind inputs is evaluated on both edges of the clock.

Timing, in clock cycles:

* A request that is on the unit's stream in cycle c is taken in c if no burst of the one before is left.
  Bursts of a streamed program go before those of requests, and are on AR in the cycle after they are taken.
  A request's first burst is on the AR or AW channel in c + 2, one more in each cycle: a channel's register and
  the spare register behind it stand still together when the channel does.
* A burst of reads with n beats can go if there is room for n more than are asked for or wait; a beat that the unit
  takes in cycle c makes room in c + 1. A request's next burst, and the request behind it, wait with it.
* A beat that is on the R channel in cycle c waits for the unit from c + 1 on. Beats of a streamed program need no
  room: they leave for the fetch unit in c.
* A beat that is taken from the unit's stream in cycle c is on the W channel in c + 1, behind a register
  and a spare one as above. Beats of a request that is taken in c are taken at the earliest in c + 2, those
  of its n-th burst in c + 1 + n. With several cores they are taken while fewer than ``write_queue`` wait; one that
  is taken in c counts from c + 1 on, when it is a burst's last that burst can go in c + 1, and its first beat to the
  register in c + 2.
* ``written`` is the cycle after the one in which the last burst is answered on B.
"""

from amaranth.hdl import Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from fpgrad.gateware.dma import GROUP_BITS, ReadRows, WriteRows, beat_layout, read_beat_layout
from fpgrad.gateware.queue import BeatQueue
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import DRAM_BITS
from fpgrad.isa.registers import WORD_BITS

#: Bursts of writes that memory has not answered.
WRITES = 16

#: The ID of a streamed program's bursts.
FETCH_ID = 2

#: AxBURST of incrementing bursts.
INCR = 1


def address_bits(config: MachineConfig) -> int:
    """Bits of a byte address."""
    return DRAM_BITS + exact_log2(4 * config.side)


def core_id_bits(config: MachineConfig) -> int:
    """Bits of an ID at a core's port."""
    return 2 if config.control.streamed else 1


def id_bits(config: MachineConfig) -> int:
    """Bits of an ID at the chip's port: of one core, with its number above it."""
    return core_id_bits(config) + ceil_log2(config.cores)


def ports(config: MachineConfig, ids: int | None = None) -> dict[str, tuple[wiring.Flow, int]]:
    """The signals of a port without their prefix, seen from the core: direction and width; IDs have ``ids`` bits, or
    those of a core's port."""
    ids = core_id_bits(config) if ids is None else ids
    bits = WORD_BITS * config.memory.dram_words_per_cycle
    out: dict[str, tuple[wiring.Flow, int]] = {}
    for channel in ("ar", "aw"):
        out |= {
            f"{channel}id": (Out, ids),
            f"{channel}addr": (Out, address_bits(config)),
            f"{channel}len": (Out, 8),
            f"{channel}size": (Out, 3),
            f"{channel}burst": (Out, 2),
            f"{channel}valid": (Out, 1),
            f"{channel}ready": (In, 1),
        }
    return out | {
        "rid": (In, ids),
        "rdata": (In, bits),
        "rresp": (In, 2),
        "rlast": (In, 1),
        "rvalid": (In, 1),
        "rready": (Out, 1),
        "wdata": (Out, bits),
        "wstrb": (Out, bits // 8),
        "wlast": (Out, 1),
        "wvalid": (Out, 1),
        "wready": (In, 1),
        "bid": (In, ids),
        "bresp": (In, 2),
        "bvalid": (In, 1),
        "bready": (Out, 1),
    }


class Axi(wiring.Signature):
    """A core's port, seen from the core."""

    def __init__(self, config: MachineConfig) -> None:
        super().__init__({name: flow(bits) for name, (flow, bits) in ports(config).items()})


class Buffer(wiring.Component):
    """A stream through a register and a spare one, so that neither direction passes in the same cycle."""

    def __init__(self, shape: Shape | data.Layout) -> None:
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """The spare register is filled when the first cannot move."""
        m = Module()
        spare = Signal.like(self.i.payload, reset_less=True)
        spare_full = Signal()
        m.d.comb += self.i.ready.eq(~spare_full)
        with m.If(self.o.ready | ~self.o.valid):
            m.d.sync += [
                self.o.valid.eq(spare_full | self.i.valid),
                self.o.payload.eq(Mux(spare_full, spare, self.i.payload)),
                spare_full.eq(0),
            ]
        with m.Elif(~spare_full):
            m.d.sync += [spare.eq(self.i.payload), spare_full.eq(self.i.valid)]
        return m


def burst_layout(config: MachineConfig) -> data.StructLayout:
    """One burst: its first beat, counted in beats, how many follow, and the request's flag, of reads the ID."""
    beat_bytes = 4 * config.memory.dram_words_per_cycle
    return data.StructLayout(
        {
            "beat": address_bits(config) - exact_log2(beat_bytes),
            "more": 8,
            "flag": core_id_bits(config),
            "last": 1,
        }
    )


def fetch_members(config: MachineConfig) -> dict[str, wiring.Member]:
    """Of the fetch unit: its bursts, and whether a beat comes for it in this cycle. Only where programs stream."""
    if not config.control.streamed:
        return {}
    return {
        "fetch_burst": Out(stream.Signature(burst_layout(config))),
        "fetched": In(1),
        "fetched_beat": In(beat_layout(config)),
    }


class Splitter(wiring.Component):
    """Makes bursts of requests.

    Args:
        largest: beats between the boundaries that bursts do not cross, a power of two.

    Members:
        request: rows; ``flag`` is the request's own.
        burst: its bursts; ``last``: the request's last.
    """

    def __init__(self, config: MachineConfig, largest: int) -> None:
        self._config, self._largest = config, largest
        request = data.StructLayout({"row": DRAM_BITS, "rows": GROUP_BITS, "flag": 1})
        super().__init__(
            {
                "request": In(stream.Signature(request)),
                "burst": Out(stream.Signature(burst_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """What is left of one request; a burst goes up to the next boundary."""
        m = Module()
        config = self._config
        row_beats = exact_log2(config.side // config.memory.dram_words_per_cycle)
        largest = exact_log2(self._largest)
        beat = Signal(address_bits(config) - exact_log2(4 * config.memory.dram_words_per_cycle))
        left = Signal(GROUP_BITS + row_beats)
        valid, flag = Signal(), Signal()
        to_boundary = Signal(largest + 1)
        m.d.comb += [
            to_boundary.eq((1 << largest) - beat[:largest]),
            self.burst.valid.eq(valid),
            self.burst.payload.beat.eq(beat),
            self.burst.payload.flag.eq(flag),
            self.burst.payload.last.eq(left <= to_boundary),
            self.burst.payload.more.eq(Mux(self.burst.payload.last, left, to_boundary) - 1),
            self.request.ready.eq(~valid | (self.burst.ready & self.burst.payload.last)),
        ]
        with m.If(self.request.ready):
            m.d.sync += [
                valid.eq(self.request.valid),
                beat.eq(self.request.payload.row << row_beats),
                left.eq(self.request.payload.rows << row_beats),
                flag.eq(self.request.payload.flag),
            ]
        with m.Elif(self.burst.ready):
            m.d.sync += [beat.eq(beat + to_boundary), left.eq(left - to_boundary)]
        return m


class AxiPort(wiring.Component):
    """The adapter.

    Members:
        read_request, read_beats, write_request, write_beats, written: the units' end, see
            :class:`fpgrad.gateware.core.Core`.
        error: pulses when memory answers with an error.
        fetch_burst, fetched, fetched_beat: see :func:`fetch_members`.
        m_axi_*: AXI4, see :func:`ports`; reads and writes of whole beats only.
    """

    def __init__(self, config: MachineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "read_request": In(stream.Signature(ReadRows)),
                "read_beats": Out(stream.Signature(read_beat_layout(config))),
                "write_request": In(stream.Signature(WriteRows)),
                "write_beats": In(stream.Signature(beat_layout(config))),
                "written": Out(1),
                "error": Out(1),
                **{name: member.flip() for name, member in fetch_members(config).items()},
                **{f"m_axi_{name}": flow(bits) for name, (flow, bits) in ports(config).items()},
            }
        )

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self._config

    def elaborate(self, platform: object) -> Module:
        """Reads and writes beside each other."""
        m = Module()
        read_error, write_error = self._reads(m), self._writes(m)
        m.d.comb += self.error.eq(read_error | write_error)
        return m

    def _bursts(self, m: Module, channel: str, flag: str) -> tuple[Splitter, Buffer]:
        """A splitter and the register before an address channel; what joins them is the caller's."""
        config = self._config
        request = getattr(self, {"ar": "read_request", "aw": "write_request"}[channel])
        largest = {"ar": config.read_burst, "aw": config.write_burst}[channel]
        m.submodules[f"{channel}_splitter"] = splitter = Splitter(config, largest)
        m.submodules[f"{channel}_buffer"] = buffer = Buffer(burst_layout(config))
        beat_bytes = 4 * config.memory.dram_words_per_cycle
        burst = buffer.o.payload
        m.d.comb += [
            splitter.request.valid.eq(request.valid),
            splitter.request.payload.row.eq(request.payload.row),
            splitter.request.payload.rows.eq(request.payload.rows),
            splitter.request.payload.flag.eq(request.payload[flag]),
            request.ready.eq(splitter.request.ready),
            buffer.i.payload.eq(splitter.burst.payload),
            buffer.o.ready.eq(self._axi(channel, "ready")),
            self._axi(channel, "valid").eq(buffer.o.valid),
            self._axi(channel, "addr").eq(burst.beat << exact_log2(beat_bytes)),
            self._axi(channel, "len").eq(burst.more),
            self._axi(channel, "size").eq(exact_log2(beat_bytes)),
            self._axi(channel, "burst").eq(INCR),
        ]
        return splitter, buffer

    def _axi(self, channel: str, name: str) -> Signal:
        return getattr(self, f"m_axi_{channel}{name}")

    def _reads(self, m: Module) -> Signal:
        """Bursts go while there is room for their beats."""
        splitter, buffer = self._bursts(m, "ar", "index")
        depth = self._config.memory.read_queue
        room, asks, taken = Signal(range(depth + 1), init=depth), Signal(), Signal()
        burst, fits = splitter.burst, Signal()
        m.d.comb += [
            fits.eq(burst.payload.more < room),
            buffer.i.valid.eq(burst.valid & fits),
            burst.ready.eq(buffer.i.ready & fits),
            asks.eq(burst.valid & burst.ready),
            self.m_axi_arid.eq(buffer.o.payload.flag),
        ]
        m.d.sync += room.eq(room + taken - Mux(asks, burst.payload.more + 1, 0))
        streamed = self._config.control.streamed
        if streamed:
            fetch = self.fetch_burst
            m.d.comb += fetch.ready.eq(buffer.i.ready)
            with m.If(fetch.valid):
                m.d.comb += [
                    buffer.i.payload.eq(fetch.payload),
                    buffer.i.valid.eq(1),
                    burst.ready.eq(0),
                ]
        layout = read_beat_layout(self._config)
        m.submodules.reads = queue = BeatQueue(layout, depth=depth)
        came, error = self.m_axi_rvalid, Signal()
        m.d.comb += [
            self.m_axi_rready.eq(1),
            queue.i.payload.words.eq(self.m_axi_rdata),
            queue.i.payload.index.eq(self.m_axi_rid[0]),
            queue.i.valid.eq(came & ~self.m_axi_rid[1] if streamed else came),
            taken.eq(queue.o.valid & queue.o.ready),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.read_beats))
        if streamed:
            m.d.comb += [
                self.fetched.eq(came & self.m_axi_rid[1]),
                self.fetched_beat.eq(self.m_axi_rdata),
            ]
        m.d.sync += error.eq(came & self.m_axi_rresp[1])
        return error

    def _writes(self, m: Module) -> Signal:
        """A burst's beats follow it; that it is a request's last one waits for its answer."""
        splitter, buffer = self._bursts(m, "aw", "last")
        m.submodules.lengths = lengths = fifo.SyncFIFO(width=8, depth=WRITES)
        m.submodules.ends = ends = fifo.SyncFIFO(width=1, depth=WRITES)
        burst, go, goes = splitter.burst, Signal(), Signal()
        there, source = self._collected(m, burst.payload.more, goes)
        m.d.comb += [
            go.eq(buffer.i.ready & lengths.w_rdy & ends.w_rdy & there),
            goes.eq(burst.valid & go),
            burst.ready.eq(go),
            buffer.i.valid.eq(goes),
            self.m_axi_awid.eq(0),
            lengths.w_en.eq(goes),
            lengths.w_data.eq(burst.payload.more),
            ends.w_en.eq(goes),
            ends.w_data.eq(burst.payload.flag & burst.payload.last),
        ]

        layout = data.StructLayout({"words": beat_layout(self._config), "last": 1})
        m.submodules.w_buffer = beats = Buffer(layout)
        sent, sends = Signal(8), Signal()
        m.d.comb += [
            sends.eq(source.valid & lengths.r_rdy & beats.i.ready),
            source.ready.eq(lengths.r_rdy & beats.i.ready),
            beats.i.valid.eq(source.valid & lengths.r_rdy),
            beats.i.payload.words.eq(source.payload),
            beats.i.payload.last.eq(sent == lengths.r_data),
            lengths.r_en.eq(sends & beats.i.payload.last),
            beats.o.ready.eq(self.m_axi_wready),
            self.m_axi_wvalid.eq(beats.o.valid),
            self.m_axi_wdata.eq(beats.o.payload.words),
            self.m_axi_wlast.eq(beats.o.payload.last),
            self.m_axi_wstrb.eq(Const(-1, len(self.m_axi_wstrb))),
            self.m_axi_bready.eq(1),
        ]
        with m.If(sends):
            m.d.sync += sent.eq(Mux(beats.i.payload.last, 0, sent + 1))

        answered, error = Signal(), Signal()
        m.d.sync += [
            answered.eq(self.m_axi_bvalid),
            error.eq(self.m_axi_bvalid & self.m_axi_bresp[1]),
        ]
        m.d.comb += [
            ends.r_en.eq(answered),
            self.written.eq(answered & ends.r_data),
        ]
        return error

    def _collected(
        self, m: Module, more: Value, goes: Value
    ) -> tuple[Value | int, wiring.PureInterface]:
        """Whether the next burst can go as far as its beats are concerned, and where they come from; ``more`` of them
        follow its first, ``goes``: it does."""
        config = self._config
        if config.cores == 1:
            return 1, self.write_beats
        depth = config.memory.write_queue
        m.submodules.collected = queue = BeatQueue(beat_layout(config), depth=depth)
        wiring.connect(m, wiring.flipped(self.write_beats), queue.i)
        # Those whose burst has not gone.
        waiting, comes = Signal(range(depth + 1)), Signal()
        m.d.comb += comes.eq(queue.i.valid & queue.i.ready)
        m.d.sync += waiting.eq(waiting + comes - Mux(goes, more + 1, 0))
        return more < waiting, queue.o


__all__ = [
    "WRITES",
    "Axi",
    "AxiPort",
    "Buffer",
    "address_bits",
    "id_bits",
    "ports",
]
