"""LOAD, STORE, their port and external memory, cycle by cycle and without data: when instructions are done.

Written from the rules in the gateware's docstrings and ``docs/rtl.md``; what is called here like a register there is
one. Nothing else of the machine moves, so writes to tile and mask memory never wait for the vector unit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Load, Store, Transfer

#: The first instruction is taken in this cycle, counted from START; a run's first cycle, by which memory counts, is 1.
FIRST = 3
OUTSTANDING = 16
IN_FLIGHT = 8
STORE_QUEUE = 4
WRITES = 16


@dataclass(frozen=True)
class Piece:
    """A unit: how many beats it is, or how many of it are a beat."""

    beats: int
    units: int
    exponent: bool = False
    pads: bool = False
    last: bool = False


def group_rows(i: Load | Store, t: int) -> int:
    if i.kind is Transfer.TILES:
        return -(-i.rows // (4 * t)) + i.rows * t // 4
    return i.rows


def pieces(config: MachineConfig, i: Load | Store) -> Iterator[Piece]:
    """The units of an instruction in order."""
    t, beat = config.side, 32 * config.memory.dram_words_per_cycle
    size = {Transfer.ROWS: 32 * t, Transfer.MASKS: t}.get(i.kind, 8 * t)
    units = group_rows(i, t) * 32 * t // size
    if i.kind is Transfer.TILES:
        units = i.rows * t
    for group in range(i.count):
        if i.kind is Transfer.TILES:
            for n in range(i.rows):
                yield Piece(1, beat // 8, exponent=True, pads=n == i.rows - 1)
        for n in range(units):
            last = group == i.count - 1 and n == units - 1
            yield Piece(max(1, size // beat), max(1, beat // size), last=last)


class Places:
    """A queue of walks, then counters."""

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.queue: deque[Iterator[Piece]] = deque()
        self.walk: Iterator[Piece] = iter(())
        self.place: Piece | None = None

    @property
    def ready(self) -> bool:
        return len(self.queue) < IN_FLIGHT

    def step(self, taken: bool, pushed: Load | Store | None) -> None:
        load = self.place is None or (taken and self.place.last)
        if taken and not load:
            self.place = next(self.walk)
        if load:
            self.place = None
            if self.queue:
                self.walk = self.queue.popleft()
                self.place = next(self.walk)
        if pushed:
            self.queue.append(pieces(self.config, pushed))


class Splitter:
    """Bursts of a request: a request's beats, its first beat, and its flag."""

    def __init__(self, config: MachineConfig, largest: int) -> None:
        w = config.memory.dram_words_per_cycle
        self.per_row = config.side // w
        self.largest = min(256, 1024 // w, largest)
        self.request: tuple[int, int, bool] | None = None

    def burst(self) -> tuple[int, bool, bool] | None:
        """Beats, whether it is the request's last, the request's flag."""
        if self.request is None:
            return None
        beat, left, flag = self.request
        room = self.largest - beat % self.largest
        return min(left, room), left <= room, flag

    def ready(self, leaves: bool) -> bool:
        burst = self.burst()
        return burst is None or (leaves and burst[1])

    def step(self, leaves: bool, request: tuple[int, int, bool] | None) -> None:
        if self.ready(leaves):
            self.request = None
            if request:
                row, rows, flag = request
                self.request = row * self.per_row, rows * self.per_row, flag
        elif leaves:
            assert self.request
            beat, left, flag = self.request
            room = self.largest - beat % self.largest
            self.request = beat + room, left - room, flag


class Memory:
    """External memory: what the C++ model does."""

    def __init__(self, config: MachineConfig) -> None:
        m, rate = config.memory, config.memory.dram_rate
        self.m = m
        self.beat, self.gain = m.dram_words_per_cycle * rate.denominator, rate.numerator
        self.budget = self.beat + self.gain
        self.write_next = False
        self.reads: deque[list] = deque()  # due, beats left, flag
        self.writes: deque[int] = deque()  # beats left
        self.answers = 0

    def serve(self, cycle: int, ar, aw, w: bool) -> tuple[bool | None, bool, bool]:
        """What is on AR, AW and W; returns the flag of the beat on R, WREADY, BVALID."""
        m = self.m
        self.budget = min(self.budget + self.gain, self.beat + self.gain)
        phase = (cycle - 1) % m.dram_refresh_interval if m.dram_refresh_interval else 0
        refreshing = (
            m.dram_refresh_interval and phase >= m.dram_refresh_interval - m.dram_refresh_cycles
        )
        read = bool(self.reads) and self.reads[0][0] <= cycle
        write = w and bool(self.writes)
        if refreshing or self.budget < self.beat:
            read = write = False
        elif read and write and self.budget < 2 * self.beat:
            read, write = not self.write_next, self.write_next
        answer = self.answers > 0
        self.answers -= answer
        taken: bool | None = None
        if read:
            self.reads[0][1] -= 1
            taken = self.reads[0][2]
            if not self.reads[0][1]:
                self.reads.popleft()
            self.write_next = True
            self.budget -= self.beat
        if write:
            self.writes[0] -= 1
            if not self.writes[0]:
                self.writes.popleft()
                self.answers += 1
            self.write_next = False
            self.budget -= self.beat
        if ar:
            self.reads.append([cycle + max(1, m.dram_latency), ar[0], ar[2]])
        if aw:
            self.writes.append(aw[0])
        return taken, write, answer


class Unit:
    """What is common to both: instructions to take, and the cycles in which they were done."""

    def __init__(self, config: MachineConfig, todo: Sequence[Load | Store]) -> None:
        self.config = config
        self.todo: deque[Any] = deque(todo)
        self.i: Any = None
        self.dones: list[int] = []
        self.running = 0
        self.start()

    def start(self) -> None:
        raise NotImplementedError

    def offer(self, cycle: int):
        """The sequencer's instruction."""
        return self.todo[0] if cycle >= FIRST and self.todo and self.running < OUTSTANDING else None


class LoadUnit(Unit):
    #: Whether gathered groups have the numbers from 0 on; else all are number 0, as external memory is all zeros.
    in_order = False

    def start(self) -> None:
        self.places = Places(self.config)
        self.credits = self.config.memory.read_queue
        self.splitter = Splitter(self.config, self.credits // 4)
        self.state = "IDLE"
        self.asked = self.asked_index = self.got_index = 0
        self.pipe: list[tuple[int, int, bool] | None] = [None, None, None]
        self.ar = None
        self.queue: deque[bool] = deque()  # beats; the flag says index
        self.index_beat, self.row_ends = 0, False
        self.piece, self.dropped, self.drop = 0, 0, False
        self.full: Piece | None = None
        self.done = False

    def step(self, cycle: int, came: bool | None) -> None:
        t = self.config.side
        per_row = t // self.config.memory.dram_words_per_cycle
        if self.done:
            self.dones.append(cycle)
        done_now = self.done
        self.done = bool(self.full and self.full.last)
        self.full = None  # Nothing else writes.

        # Beats become units.
        place, index_write, pop, taken = self.places.place, False, False, False
        if self.queue:
            if self.queue[0]:
                index_write = pop = True
            elif self.drop:
                pop = True
                self.dropped = (self.dropped + 1) % per_row
                self.drop = self.dropped != 0
            elif place:
                ends = self.piece == max(place.beats, place.units) - 1
                taken = ends if place.beats > 1 else True
                pop = place.pads or (ends if place.units > 1 else True)
                self.piece = 0 if taken and pop else self.piece + 1
                if taken:
                    self.full = place
                if pop and place.exponent:
                    self.dropped = (self.dropped + 1) % per_row
                    self.drop = place.pads and self.dropped != 0
        if pop:
            self.queue.popleft()
        if came is not None:
            self.queue.append(came)

        # Requests; a burst goes when there is room for it.
        request = self.pipe[2]
        burst = self.splitter.burst()
        fits = burst is None or burst[0] <= self.credits
        move = request is None or self.splitter.ready(fits)
        self.ar = burst if fits else None
        self.credits += pop - (self.ar[0] if self.ar else 0)
        self.splitter.step(fits, request)
        offer, state, i = self.offer(cycle), self.state, self.i
        pushed, ask = None, None
        asked, asked_index, got = self.asked, self.asked_index, self.got_index
        self.got_index += self.row_ends
        self.row_ends = index_write and self.index_beat == per_row - 1
        self.index_beat = (self.index_beat + index_write) % per_row
        if state == "IDLE":
            if offer and self.places.ready:
                pushed = self.i = self.todo.popleft()
                self.state = "SOURCE"
                self.asked = self.asked_index = self.got_index = 0
        elif move and state == "SOURCE":
            self.state = "INDEX" if i.gather else "RUN"
        elif move and state == "INDEX":
            self.state = "RUN"
        elif move:
            blocks = -(-i.count // t) if i.gather else 0
            if asked_index < blocks and asked_index <= asked // t + 1:
                ask = (i.index.offset + asked_index, 1, True)
                self.asked_index += 1
            elif not i.gather or got > asked // t:
                number = 0 if i.gather and not self.in_order else asked
                ask = (i.source.offset + number * i.stride, group_rows(i, t), False)
                self.asked += 1
                if self.asked == i.count:
                    self.state = "IDLE"
        if move:
            self.pipe = [ask, *self.pipe[:2]]
        self.places.step(taken, pushed)
        self.running += (pushed is not None) - done_now


class StoreUnit(Unit):
    def start(self) -> None:
        self.places = Places(self.config)
        self.splitter = Splitter(self.config, 256)
        self.state, self.left, self.row = "IDLE", 0, 0
        self.room = STORE_QUEUE
        self.pipe: list[Piece | None] = [None, None]
        self.queue: deque[Piece] = deque()
        self.piece, self.made, self.pad, self.full = 0, 0, False, False
        self.lengths: deque[int] = deque()
        self.ends: deque[bool] = deque()
        self.sent = 0
        self.w, self.spare = False, False
        self.aw = None
        self.answered = False

    def step(self, cycle: int, wready: bool, bvalid: bool) -> None:
        t = self.config.side
        per_row = t // self.config.memory.dram_words_per_cycle
        done = self.answered and self.ends[0]
        if done:
            self.dones.append(cycle)

        # Requests to bursts.
        burst = self.splitter.burst()
        go = burst is not None and len(self.lengths) < WRITES and len(self.ends) < WRITES
        self.aw = burst if go else None
        request = None
        ready = self.splitter.ready(go)
        offer, pushed, i = self.offer(cycle), None, self.i
        if self.state == "IDLE":
            if offer and self.places.ready:
                pushed = self.i = self.todo.popleft()
                self.state = "PRODUCT"
        elif self.state == "PRODUCT":
            self.state, self.left = "SUM", i.count - 1
        elif self.state == "SUM":
            self.state, self.row = "REQUEST", i.target.offset
        else:
            request = self.row, group_rows(i, t), self.left == 0
            if ready:
                self.row += i.stride
                self.state = "IDLE" if self.left == 0 else "REQUEST"
                self.left -= 1
        self.splitter.step(go, request)

        # Beats to W; a spare register behind it.
        sends = self.full and bool(self.lengths) and not self.spare
        if wready or not self.w:
            self.w, self.spare = self.spare or sends, False
        elif not self.spare:
            self.spare = sends
        if sends:
            self.sent += 1
            if self.sent == self.lengths[0]:
                self.lengths.popleft()
                self.sent = 0
        if self.answered:
            self.ends.popleft()
        self.answered = bvalid
        if go:
            assert burst
            self.lengths.append(burst[0])
            self.ends.append(burst[1] and burst[2])

        # Units to beats.
        leave = False
        free = not self.full or sends
        made = False
        if free and self.pad:
            made = True
            self.made = (self.made + 1) % per_row
            self.pad = self.made != 0
        elif free and self.queue:
            unit = self.queue[0]
            ends = self.piece == max(unit.beats, unit.units) - 1
            leave = ends if unit.beats > 1 else True
            made = unit.pads or (ends if unit.units > 1 else True)
            self.piece = 0 if leave and made else self.piece + 1
            if made and unit.exponent:
                self.made = (self.made + 1) % per_row
                self.pad = unit.pads and self.made != 0
        self.full = made or (self.full and not sends)

        # Reads.
        reads = self.places.place if self.room else None
        self.room += leave - (reads is not None)
        if leave:
            self.queue.popleft()
        if self.pipe[1]:
            self.queue.append(self.pipe[1])
        self.pipe = [reads, self.pipe[0]]
        self.places.step(reads is not None, pushed)
        self.running += (pushed is not None) - done


def done_cycles(
    config: MachineConfig,
    loads: Sequence[Load],
    stores: Sequence[Store],
    *,
    in_order: bool = False,
) -> tuple[list[int], list[int]]:
    """The cycles after START in which each of them is done, all of them free to run at once."""
    load = LoadUnit(config, loads)
    load.in_order = in_order
    store = StoreUnit(config, stores)
    memory = Memory(config)
    for cycle in range(1, 100000):
        came, wready, bvalid = memory.serve(cycle, load.ar, store.aw, store.w)
        load.step(cycle, came)
        store.step(cycle, wready, bvalid)
        if len(load.dones) == len(loads) and len(store.dones) == len(stores):
            return load.dones, store.dones
    raise AssertionError("never done")
