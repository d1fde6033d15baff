"""The cycle model: when each instruction starts and ends on the machine, without its data.

Timing does not depend on data, so the emulator computes it once for an entry: a few steps are followed, until steps
repeat (``native/timing.cpp``). The matrix and vector units are followed instruction by instruction, row by row where
they wait for each other; LOAD, STORE, the fetch unit of a streamed program, the memory port and external memory, which
all cores share, cycle by cycle. The rules are those that the gateware's modules state. The constants are the pipelines'
depths; the gateware's tests compare them with the generated hardware.

What depends on data or on where the host puts things is assumed: that groups are gathered in order, which only decides
where a long burst is split, and that base registers are 0 unless they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpgrad.emulator import _native
from fpgrad.emulator.leaves import leaves
from fpgrad.errors import ExecutionError, ProgramError
from fpgrad.isa.area import slot_beats
from fpgrad.isa.config import BURST, MachineConfig
from fpgrad.isa.instructions import Matrix, Unit
from fpgrad.isa.program import Entry, Program

#: Steps that are followed before the rest is taken to repeat the last one, until the queues on the way to memory are as
#: full as they will be; fewer if they are so many cycles long.
FOLLOWED = 16
FEW, LONG = 3, 200_000

#: Instructions of a program from which on the form in which it is followed is not kept.
MANY = 1024

#: Cycles of products from which on a step takes minutes to follow, and one is followed before those that count.
VERY_LONG = 500_000_000

#: Where external memory is refreshed, steps are averaged: so many refreshes, but no more than so many steps.
REFRESHES = 20
MOST_AVERAGED = 40


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
        flight: instructions that LOAD, and STORE, may have in flight besides the one whose rows move.
        writes: bursts of writes that memory has not answered.
        store_queue: units that may be on their way from a memory on chip to the port.
        link: of the exchange, from two rows to their sum; link_queue: sums that may be in an adder or behind it.
        owners: bursts of writes of several cores whose beats are not yet all on the port.
        fetch_bursts: bursts of a streamed program that may be on their way.
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
    flight: int = 8
    writes: int = 16
    store_queue: int = 4
    link: int = 5
    link_queue: int = 8
    owners: int = 16
    fetch_bursts: int = 16

    def quantise(self, side: int) -> int:
        """From a tile's last row to its last write."""
        return side + (4 if side <= 4 else 5)

    def drain(self, side: int) -> int:
        """From the read of a streamed row to its arrival in the queue of finished rows."""
        return 13 if side <= 4 else 14


PIPELINE = Pipeline()


@dataclass(frozen=True)
class Record:
    """One instruction of one step on one core: the cycles in which it was issued and in which it was complete."""

    core: int
    unit: Unit
    index: int
    step: int
    start: int
    end: int


def _clockwork(config: MachineConfig, pipeline: Pipeline, entry: Entry) -> dict[str, int]:
    """What the native model has to know of a machine and where an entry begins, by the names of its Clockwork."""
    p, memory, side = pipeline, config.memory, config.side
    words, rate = memory.dram_words_per_cycle, memory.dram_rate
    names = (
        "offer", "outstanding", "vector", "function", "multiply", "visible", "done", "settle", "flight", "writes",
        "store_queue", "link", "link_queue", "owners", "fetch_bursts",
    )  # fmt: skip
    return {
        "side": side,
        "words": words,
        "cores": config.cores,
        "latency": memory.dram_latency,
        "beat_cost": words * rate.denominator,
        "budget_gain": rate.numerator,
        "refresh_interval": memory.dram_refresh_interval,
        "refresh_cycles": memory.dram_refresh_cycles,
        "ways": config.vector.ways,
        "quantise": p.quantise(side),
        "drain": p.drain(side),
        "queue": config.matrix.queue_rows,
        "read_queue": memory.read_queue,
        "write_queue": memory.write_queue,
        "read_burst": config.read_burst,
        "write_burst": config.write_burst,
        "streamed": int(config.control.streamed),
        "fetch_burst": BURST,
        **{f"ring_{u.name.lower()}": getattr(config.control, u.name.lower()) for u in Unit},
        **{f"slot_{u.name.lower()}": slot_beats(config, u) for u in Unit},
        **{f"phase_{u.name.lower()}": entry.start[u] % BURST for u in Unit},
        **{name: getattr(p, name) for name in names},
    }


class _Followed:
    """An entry in the form in which the native model takes it. Raises :class:`ProgramError` if there is none."""

    def __init__(self, program: Program, entry: str, pipeline: Pipeline) -> None:
        if entry not in program.entries:
            raise ProgramError(f"entry must be one of {sorted(program.entries)}, not {entry!r}")
        self.entry = entry
        e = program.entries[entry]
        self._start = np.array(e.start, np.int64)
        self._stop = [stop - start for start, stop in zip(e.start, e.stop, strict=True)]
        self._tokens = [list(row) for row in e.tokens]
        self._leaves = [leaves(program, unit, e.start[unit], e.stop[unit]) for unit in Unit]
        self._clockwork = _clockwork(program.config, pipeline, e)

    def records(self, steps: int, bases: Sequence[int] = ()) -> NDArray[np.int64]:
        """Core, unit, index, step, start and end of every instruction. Errors are those of :func:`timeline`."""
        load, matrix, vector, store = self._leaves
        registers = [*bases, *[0] * (16 - len(bases))]
        try:
            records = _native.follow(
                load, matrix, vector, store, [0] * len(Unit), self._stop, self._tokens, steps, registers,
                self._clockwork,
            )  # fmt: skip
        except _native.Fault as fault:
            raise ExecutionError(str(fault)) from None
        records[:, 2] += self._start[records[:, 1]]
        return records


def timeline(
    program: Program,
    entry: str,
    steps: int = 2,
    pipeline: Pipeline = PIPELINE,
    bases: Sequence[int] = (),
) -> list[Record]:
    """When each instruction of a run of ``steps`` steps was issued and complete; ``bases`` as for a run.

    Raises:
        ProgramError: no such entry. ExecutionError: the units wait for each other.
    """
    records = _Followed(program, entry, pipeline).records(steps, bases)
    return [Record(core, Unit(unit), *numbers) for core, unit, *numbers in records.tolist()]


class CycleModel:
    """Cycles of a program's runs. What was followed once is kept."""

    def __init__(self, program: Program, pipeline: Pipeline = PIPELINE) -> None:
        self.program = program
        self.pipeline = pipeline
        # Of a long program only while cycles of its entry are asked for: it takes much room.
        self._followed: _Followed | None = None
        self._long = sum(map(len, program.units.values())) > MANY
        self._settled_of: dict[str, int] = {}
        self._ends_of: dict[tuple[str, int], tuple[int, ...]] = {}
        self._steady: dict[str, float] = {}

    def _ends(self, entry: str, steps: int) -> tuple[int, ...]:
        """The cycle in which each step of a run of so many has ended."""
        if (entry, steps) not in self._ends_of:
            if self._followed is None or self._followed.entry != entry:
                self._followed = _Followed(self.program, entry, self.pipeline)
            ends = np.zeros(steps, np.int64)
            records = self._followed.records(steps)
            np.maximum.at(ends, records[:, 3], records[:, 5])
            self._ends_of[entry, steps] = tuple(np.maximum.accumulate(ends).tolist())
        return self._ends_of[entry, steps]

    def _settled(self, entry: str) -> int:
        """From which step on all are alike: of long ones few are followed, where a few cycles do not matter."""
        if entry not in self._settled_of:
            self._settled_of[entry] = self._first_settled(entry)
        return self._settled_of[entry]

    def _first_settled(self, entry: str) -> int:
        e, side = self.program.entries[entry], self.program.config.side
        matrices = self.program.units.get(Unit.MATRIX, ())[
            e.start[Unit.MATRIX] : e.stop[Unit.MATRIX]
        ]
        products = sum(i.products for i in matrices if isinstance(i, Matrix))
        if products * side > VERY_LONG:
            return 1
        return FOLLOWED if self._ends(entry, FEW)[0] < LONG else FEW

    def _step(self, entry: str) -> float:
        """Cycles of a step that has others before and behind it."""
        if entry not in self._steady:
            settled = self._settled(entry)
            ends = self._ends(entry, settled + 1)
            if settled < 2:  # nothing can be followed behind it in good time
                return self._steady.setdefault(entry, ends[-1] - ends[-2])
            steps = 1
            if interval := self.program.config.memory.dram_refresh_interval:
                # Over so many steps that it does not matter in how many of them memory is refreshed once more.
                last = max(1, ends[-2] - ends[-3])
                steps = min(MOST_AVERAGED, -(-REFRESHES * interval // last))
                ends = self._ends(entry, settled + steps)
            self._steady[entry] = (ends[-2] - ends[-2 - steps]) / steps
        return self._steady[entry]

    def run(self, entry: str, steps: int) -> int:
        """Cycles of a run of ``steps`` steps, from its start to the end of its last unit."""
        if steps <= 0:
            return 0
        settled = self._settled(entry)
        followed = self._ends(entry, min(steps, settled))[-1]
        if not followed:
            return 0
        more = steps - settled
        further = round(more * self._step(entry)) if more > 0 else 0
        self._let_go()
        return followed + further + self.pipeline.finish

    def per_step(self, entry: str) -> int:
        """Cycles that a step takes in the steady state of a long run."""
        cycles = round(self._step(entry))
        self._let_go()
        return cycles

    def _let_go(self) -> None:
        if self._long:
            self._followed = None


def run_cycles(program: Program, entry: str, steps: int) -> int:
    """See :meth:`CycleModel.run`."""
    return CycleModel(program).run(entry, steps)


def cycles_per_step(program: Program, entry: str) -> int:
    """See :meth:`CycleModel.per_step`."""
    return CycleModel(program).per_step(entry)
