"""The cycle model: when each instruction starts and ends on the machine, without its data.

Timing does not depend on data, so the emulator computes it once for an entry: a few steps are followed instruction by
instruction and output tile by output tile, by the rules that the gateware's modules state, until steps repeat. The
constants are the pipelines' depths; the gateware's tests compare them with the generated hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from fpgrad.errors import ExecutionError, ProgramError
from fpgrad.formats.table import TABLED
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Load, Matrix, Source, Store, Tokens, Unit, Vector, VectorOp
from fpgrad.isa.program import Entry, Program

#: Steps that are followed before the rest is taken to repeat the last one.
FOLLOWED = 6


@dataclass(frozen=True)
class Pipeline:
    """Depths of the machine's pipelines, in cycles.

    Args:
        offer: from the start of a run to the first instruction that a sequencer can issue.
        outstanding: instructions that a unit may have begun and not finished.
        finish: from the last unit's last instruction to the end of the run.
        vector: from a row's addresses to its write, without function and second multiplier.
        function: what a tabled function adds; multiply: what a second multiplier adds.
        visible: from a row's write to the first read that sees it.
        done: from a pass's last write to its completion.
        settle: from SCALARS or SEED to the next row.
        load_start, load_request, load_index, load_end: of a LOAD: from its start to the first request; from a request
            to memory's port; from an index row's last beat to requests that need it; from the last beat to the end.
        store: of a STORE, besides its beats.
    """

    offer: int = 3
    outstanding: int = 16
    finish: int = 1
    vector: int = 10
    function: int = 6
    multiply: int = 2
    visible: int = 2
    done: int = 1
    settle: int = 3
    load_start: int = 5
    load_request: int = 2
    load_index: int = 2
    load_end: int = 3
    store: int = 6

    def quantise(self, side: int) -> int:
        """From a tile's last row to its last write."""
        return side + (4 if side <= 4 else 5)

    def drain(self, side: int) -> int:
        """From the read of a streamed row to its arrival in the queue of finished rows."""
        return 13 if side <= 4 else 14

    def queue(self, side: int) -> int:
        """Rows of the queue of finished rows."""
        return max(32, 4 * side)


PIPELINE = Pipeline()


@dataclass(frozen=True)
class Record:
    """One instruction of one step: the cycle in which it was issued and the one in which it was complete."""

    unit: Unit
    index: int
    step: int
    start: int
    end: int


Wait = Generator[None, None, None]


@dataclass
class _Run:
    """The state of a run: token channels as queues of the cycles from which tokens may be taken."""

    program: Program
    entry: Entry
    steps: int
    pipeline: Pipeline
    channels: list[list[deque[int]]] = field(init=False)
    records: list[Record] = field(default_factory=list)
    rows_ready: list[int] = field(default_factory=list)  # finished rows of the matrix unit
    rows_taken: list[int] = field(default_factory=list)
    progress: bool = False

    def __post_init__(self) -> None:
        self.channels = [[deque([0] * n) for n in row] for row in self.entry.tokens]
        self.config: MachineConfig = self.program.config
        self.t = self.config.side

    def go(self) -> list[Record]:
        """Follow all units to the end."""
        units = [self.unit(u) for u in Unit if self.entry.start[u] != self.entry.stop[u]]
        while units:
            self.progress = False
            still = []
            for unit in units:
                try:
                    next(unit)
                    still.append(unit)
                except StopIteration:
                    self.progress = True
            units = still
            if units and not self.progress:
                raise ExecutionError("the units of the program wait for each other")
        return self.records

    def unit(self, unit: Unit) -> Wait:
        """One unit: each instruction when the unit is free and its tokens are there."""
        follow = {
            Unit.LOAD: self.load,
            Unit.STORE: self.store,
            Unit.MATRIX: self.matrix,
            Unit.VECTOR: self.vector,
        }
        state: dict[str, int] = {}
        ends: deque[int] = deque(maxlen=self.pipeline.outstanding)
        issued = self.pipeline.offer - 1
        for step in range(self.steps):
            for index in range(self.entry.start[unit], self.entry.stop[unit]):
                instruction = self.program.units[unit][index]
                earliest = issued + 1
                if len(ends) == self.pipeline.outstanding:
                    earliest = max(earliest, ends[0] + 1)
                for source, count in enumerate(_counts(instruction.wait)):
                    channel = self.channels[source][unit]
                    while len(channel) < count:
                        yield
                    for _ in range(count):
                        earliest = max(earliest, channel.popleft())
                issued, end = yield from follow[unit](instruction, earliest, state)
                self.progress = True
                ends.append(end)
                self.records.append(Record(unit, index, step, issued, end))
                for destination, count in enumerate(_counts(instruction.signal)):
                    self.channels[unit][destination].extend([end + 1] * count)

    # Units: (instruction, earliest issue, state) -> (issue, completion) ---------------------

    def load(
        self, i: object, earliest: int, state: dict[str, int]
    ) -> Generator[None, None, tuple[int, int]]:
        """Requests leave one a cycle, beats come back one a cycle after the memory's latency.

        A block of T groups is requested when its row of the index is there; index rows are requested two blocks ahead.
        """
        assert isinstance(i, Load)
        p, memory, t = self.pipeline, self.config.memory, self.t
        beats = t // memory.dram_words_per_cycle
        start = max(earliest, state.get("free", 0))
        blocks = -(-i.count // t) if i.gather else 0
        arrived: list[int] = []  # when each row of the index is there
        ask, end = start + p.load_start, 0
        requests = [(-1, beats)] * min(2, blocks)
        for block in range(max(1, blocks)):
            groups = min(t, i.count - block * t) if i.gather else i.count
            requests += [(block, i.rows * beats)] * groups
            requests += [(-1, beats)] * (block + 2 < blocks)
        for block, length in requests:
            if block >= 0 and i.gather:
                ask = max(ask, arrived[block])
            ask += 1
            end = max(ask + p.load_request + memory.dram_latency, end + 1) + length - 1
            if block < 0:
                arrived.append(end + p.load_index)
        end += p.load_end
        state["free"] = end + 1
        return start, end
        yield

    def store(
        self, i: object, earliest: int, state: dict[str, int]
    ) -> Generator[None, None, tuple[int, int]]:
        """Beats leave one a cycle."""
        assert isinstance(i, Store)
        beats = self.t // self.config.memory.dram_words_per_cycle
        start = max(earliest, state.get("free", 0))
        end = start + self.pipeline.store + i.count * i.rows * beats
        state["free"] = end + 1
        return start, end
        yield

    def matrix(
        self, i: object, earliest: int, state: dict[str, int]
    ) -> Generator[None, None, tuple[int, int]]:
        """Products go every T cycles while the queue of finished rows has room."""
        assert isinstance(i, Matrix)
        p, t = self.pipeline, self.t
        last_go = state.get("go", -(10**9))
        # The unit takes an instruction when the one before is in the loader.
        start = max(earliest, state.get("loading", 0), state.get("scanned", 0))
        begin = max(start, last_go)  # the cycle before the loader's first row
        state["loading"] = begin + 1
        scan = start + i.terms + 1
        go = begin
        drain, room, queue = p.drain(t), i.rows, p.queue(t)
        for tile in range(i.outputs):
            for k in range(i.terms):
                go = max(go + t, last_go + t)
                if k == 0 and tile == 0:
                    go = max(go, scan)
                if k == i.terms - 1:
                    needed = len(self.rows_ready) + room - queue
                    if needed > 0:
                        while len(self.rows_taken) < needed:
                            yield
                        go = max(go, self.rows_taken[needed - 1] + 1)
                last_go = go
            first = go + 1 + drain
            self.rows_ready.extend(range(first, first + i.rows))
            self.progress = True
        state["go"], state["scanned"] = go, go - (i.terms - 1) * t
        return start, go + i.rows + 1

    def vector(
        self, i: object, earliest: int, state: dict[str, int]
    ) -> Generator[None, None, tuple[int, int]]:
        """A row a cycle; the first waits for fences and for slower passes before it."""
        assert isinstance(i, Vector)
        p, t = self.pipeline, self.t
        last, before = state.get("issue", -(10**9)), state.get("latency", p.vector)
        start = max(earliest, last)
        special = i.op is not VectorOp.PASS
        latency = p.vector
        if not special:
            latency += p.function * (i.function in TABLED) + p.multiply * (i.d is not Source.ONE)
        first = start + 1
        if i.fence or special:
            first = max(first, last + before + p.visible)
        first = max(first, last + 1 + before - latency, state.get("settled", 0))
        n0, rows = i.loops.n0, i.loops.count
        tile = bool(i.tile.enable) and not special
        if tile:
            first = max(first, state.get("tile", -(10**9)) - latency)
        if special:
            issue = np.array([first])
            state["settled"] = first + p.settle
        elif Source.ACC in (i.a, i.b, i.c, i.d):
            issue = yield from self.taken(first, rows)
        elif tile and n0 < t:
            issue = (first + np.arange(rows // n0)[:, None] * t + np.arange(n0)).reshape(-1)
        else:
            issue = np.arange(first, first + rows)
        end = int(issue[-1])
        state["issue"], state["latency"] = end, latency
        done = end + latency + p.done
        if tile:
            state["tile"] = int(issue[-n0]) + latency + t
            done = end + latency + p.quantise(t) + p.done
        state["done"] = max(done, state.get("done", 0) + 1)
        return start, state["done"]

    def taken(self, first: int, rows: int) -> Generator[None, None, np.ndarray]:
        """Issue cycles of rows that come from the matrix unit."""
        begin = len(self.rows_taken)
        done = 0
        issue = np.empty(rows, np.int64)
        at = first
        while done < rows:
            there = min(rows - done, len(self.rows_ready) - begin - done)
            if not there:
                yield
                continue
            ready = np.array(self.rows_ready[begin + done : begin + done + there])
            offsets = np.arange(there)
            some = np.maximum.accumulate(np.maximum(ready - offsets, at)) + offsets
            issue[done : done + there] = some
            self.rows_taken.extend(some.tolist())
            at, done = int(some[-1]) + 1, done + there
            self.progress = True
        return issue


def _counts(tokens: Tokens) -> tuple[int, int, int, int]:
    return tokens.load, tokens.matrix, tokens.vector, tokens.store


def timeline(
    program: Program, entry: str, steps: int = 2, pipeline: Pipeline = PIPELINE
) -> list[Record]:
    """When each instruction of the first ``steps`` steps was issued and complete.

    Raises:
        ProgramError: no such entry. ExecutionError: the units wait for each other.
    """
    if entry not in program.entries:
        raise ProgramError(f"entry must be one of {sorted(program.entries)}, not {entry!r}")
    return _Run(program, program.entries[entry], steps, pipeline).go()


class CycleModel:
    """Cycles of a program's runs. What was followed once is kept."""

    def __init__(self, program: Program, pipeline: Pipeline = PIPELINE) -> None:
        self.program = program
        self.pipeline = pipeline
        self._ends: dict[str, tuple[int, ...]] = {}

    def _step_ends(self, entry: str) -> tuple[int, ...]:
        """The cycle in which each of the first steps has ended."""
        if entry not in self._ends:
            ends = [0] * FOLLOWED
            for record in timeline(self.program, entry, FOLLOWED, self.pipeline):
                ends[record.step] = max(ends[record.step], record.end)
            self._ends[entry] = tuple(int(x) for x in np.maximum.accumulate(ends))
        return self._ends[entry]

    def run(self, entry: str, steps: int) -> int:
        """Cycles of a run of ``steps`` steps, from its start to the end of its last unit."""
        if steps <= 0:
            return 0
        ends = self._step_ends(entry)
        if not ends[-1]:
            return 0
        if steps <= FOLLOWED:
            return ends[steps - 1] + self.pipeline.finish
        return ends[-1] + (steps - FOLLOWED) * (ends[-1] - ends[-2]) + self.pipeline.finish

    def per_step(self, entry: str) -> int:
        """Cycles that a step takes in the steady state of a long run."""
        ends = self._step_ends(entry)
        return ends[-1] - ends[-2]


def run_cycles(program: Program, entry: str, steps: int) -> int:
    """See :meth:`CycleModel.run`."""
    return CycleModel(program).run(entry, steps)


def cycles_per_step(program: Program, entry: str) -> int:
    """See :meth:`CycleModel.per_step`."""
    return CycleModel(program).per_step(entry)
