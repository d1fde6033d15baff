"""The cycle model: when each instruction starts and ends on the machine, without its data.

Timing does not depend on data, so the emulator computes it once for an entry: a few steps are followed instruction by
instruction, row by row where units wait for each other, by the rules that the gateware's modules state, until steps
repeat (``native/timing.cpp``). The constants are the pipelines' depths; the gateware's tests compare them with the
generated hardware. External memory is taken to answer LOAD and STORE as if each were alone, without refresh, and
writes of LOAD to tile and mask memory are taken not to meet the vector unit's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpgrad.emulator import _native
from fpgrad.emulator.leaves import leaves
from fpgrad.errors import ExecutionError, ProgramError
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import Unit
from fpgrad.isa.program import Program

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
        flight: instructions that LOAD, and STORE, may have in flight besides the one whose rows move.
        load_ask, load_index: of a LOAD: from its start to the first request's group, and with gather so much later;
        load_request: from there to the request; load_arrive: from the request to its first beat, besides the memory's
            latency; load_ready: from an index row's last beat to requests that need it; load_end: from the cycle that
            makes the last row to the end.
        store_request, store_read: of a STORE: from its start to the first request, and to the first row read;
        store_leave: from a row's read to its first beat; store_queue: rows between the two; store_bursts: from a
            request to its first beat on the port; store_end: from the last beat in memory to the end.
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
    load_ask: int = 2
    load_index: int = 1
    load_request: int = 3
    load_arrive: int = 3
    load_ready: int = 2
    load_end: int = 2
    store_request: int = 3
    store_read: int = 2
    store_leave: int = 3
    store_queue: int = 4
    store_bursts: int = 2
    store_end: int = 2

    def quantise(self, side: int) -> int:
        """From a tile's last row to its last write."""
        return side + (4 if side <= 4 else 5)

    def drain(self, side: int) -> int:
        """From the read of a streamed row to its arrival in the queue of finished rows."""
        return 13 if side <= 4 else 14


PIPELINE = Pipeline()


@dataclass(frozen=True)
class Record:
    """One instruction of one step: the cycle in which it was issued and the one in which it was complete."""

    unit: Unit
    index: int
    step: int
    start: int
    end: int


def _clockwork(config: MachineConfig, pipeline: Pipeline) -> dict[str, int]:
    """What the native model has to know of a machine, by the names of its Clockwork."""
    p, memory, side = pipeline, config.memory, config.side
    words = memory.dram_words_per_cycle
    return {
        "side": side,
        "words": words,
        "latency": memory.dram_latency,
        "ways": config.vector.ways,
        "rate": min(1000, int(1000 * memory.dram_rate / words)),
        "quantise": p.quantise(side),
        "drain": p.drain(side),
        "queue": config.matrix.queue_rows,
        "burst": min(256, 4096 // (4 * words)),
        **{
            name: getattr(p, name)
            for name in (
                "offer", "outstanding", "vector", "function", "multiply", "visible", "done", "settle", "flight",
                "load_ask", "load_index", "load_request", "load_arrive", "load_ready", "load_end",
                "store_request", "store_read", "store_leave", "store_queue", "store_bursts", "store_end",
            )
        },
    }  # fmt: skip


def timeline(
    program: Program, entry: str, steps: int = 2, pipeline: Pipeline = PIPELINE
) -> list[Record]:
    """When each instruction of the first ``steps`` steps was issued and complete.

    Raises:
        ProgramError: no such entry. ExecutionError: the units wait for each other.
    """
    if entry not in program.entries:
        raise ProgramError(f"entry must be one of {sorted(program.entries)}, not {entry!r}")
    return [
        Record(Unit(u), index, step, start, end)
        for u, index, step, start, end in _follow(program, entry, steps, pipeline).tolist()
    ]


def _follow(program: Program, entry: str, steps: int, pipeline: Pipeline) -> NDArray[np.int64]:
    """Unit, index, step, start and end of each instruction, one a row."""
    e = program.entries[entry]
    load, matrix, vector, store = (
        leaves(program, unit, e.start[unit], e.stop[unit]) for unit in Unit
    )
    try:
        records = _native.follow(
            load,
            matrix,
            vector,
            store,
            [0] * len(Unit),
            [stop - start for start, stop in zip(e.start, e.stop, strict=True)],
            [list(row) for row in e.tokens],
            steps,
            _clockwork(program.config, pipeline),
        )
    except _native.Fault as fault:
        raise ExecutionError(str(fault)) from None
    records[:, 1] += np.array(e.start, np.int64)[records[:, 0]]
    return records


class CycleModel:
    """Cycles of a program's runs. What was followed once is kept."""

    def __init__(self, program: Program, pipeline: Pipeline = PIPELINE) -> None:
        self.program = program
        self.pipeline = pipeline
        self._ends: dict[str, tuple[int, ...]] = {}

    def _step_ends(self, entry: str) -> tuple[int, ...]:
        """The cycle in which each of the first steps has ended."""
        if entry not in self._ends:
            records = _follow(self.program, entry, FOLLOWED, self.pipeline)
            ends = np.zeros(FOLLOWED, np.int64)
            np.maximum.at(ends, records[:, 2], records[:, 4])
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
