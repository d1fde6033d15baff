"""The reference in other orders than its own: what overlapping units may do to a program, at its worst.

Units of all cores take turns at random, results of passes reach the memories as late as they may, and every two instructions that
touch the same place are checked to be ordered by tokens or by a fence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.programs.order import DISTANCE, issued
from tests.programs.places import Footprint, footprint, members

from fpgrad.isa.executor import RunResult
from fpgrad.isa.instructions import Instruction, Load, Matrix, Store, Unit, Vector
from fpgrad.reference import ReferenceExecutor, dma, matrix, vector
from fpgrad.reference.executor import counts
from fpgrad.reference.machine import Machine


class RaceError(AssertionError):
    """Two instructions touch the same place and nothing orders them."""


@dataclass
class _Done:
    """An instruction that was executed: its number among those of its unit."""

    unit: Unit
    number: int
    instruction: Instruction
    touches: Footprint
    #: Rows that passes have sent through the pipeline, this one's included.
    rows: int


@dataclass
class _State:
    """How far each unit of a core is, and what it knows of the others (by vector clocks)."""

    machine: Machine
    at: list[int]
    step: list[int] = field(default_factory=lambda: [0] * 4)
    #: ``clock[u][v]``: so many of v's instructions are finished when u's next one starts.
    clock: list[list[int]] = field(default_factory=lambda: [[0] * 4 for _ in range(4)])
    number: list[int] = field(default_factory=lambda: [0] * 4)
    channels: list[list[deque[list[int]]]] = field(default_factory=list)
    done: list[_Done] = field(default_factory=list)
    #: Rows that passes have sent through the pipeline.
    rows: int = 0
    #: What passes have computed and not written: ``rows`` after them, memory, addresses, values.
    late: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)


class DisorderlyReference(ReferenceExecutor):
    """A reference executor that runs units in a random order. Atomic instructions, late writes.

    Raises:
        RaceError: two instructions are not ordered and must be.
    """

    seed = 0

    def run(self, entry: str, steps: int, bases: Any) -> RunResult:
        assert self._program is not None
        e = self._program.entries[entry]
        rng = np.random.default_rng(self.seed)
        states = [_State(machine, list(e.start)) for machine in self.machines]
        for state in states:
            state.channels = [[deque([[0] * 4] * n) for n in row] for row in e.tokens]
        before = self._saturated()
        while True:
            ready = [
                (state, u)
                for state in states
                for u in Unit
                if e.start[u] < e.stop[u] and state.step[u] < steps and self._ready(state, u)
            ]
            if not ready:
                break
            state, unit = ready[rng.integers(len(ready))]
            self._execute(state, unit, bases)
            state.at[unit] += 1
            if state.at[unit] == e.stop[unit]:
                state.at[unit], state.step[unit] = e.start[unit], state.step[unit] + 1
        for state in states:
            self._write(state)
            for u in Unit:
                assert e.start[u] == e.stop[u] or state.step[u] == steps, f"{u.name} waits"
            assert not state.machine.accumulated
        assert not self.exchange.left()
        after = self._saturated()
        return RunResult(0, after[0] - before[0], after[1] - before[1])

    def _ready(self, state: _State, unit: Unit) -> bool:
        i = self._program.units[unit][state.at[unit]]
        if any(len(state.channels[s][unit]) < n for s, n in enumerate(counts(i.wait))):
            return False
        if isinstance(i, Load):
            return dma.ready(state.machine, i)
        return not isinstance(i, Vector) or len(state.machine.accumulated) >= vector.acc_rows(i)

    def _execute(self, state: _State, unit: Unit, bases: Any) -> None:
        i = self._program.units[unit][state.at[unit]]
        clock = state.clock[unit]
        for source, n in enumerate(counts(i.wait)):
            for _ in range(n):
                token = state.channels[source][unit].popleft()
                clock[:] = [max(a, b) for a, b in zip(clock, token, strict=True)]
        if not isinstance(i, Vector) or i.fence:
            clock[unit] = state.number[unit]
        if isinstance(i, Vector) and i.fence:
            self._write(state)
        touches = footprint(self._program.config, i)
        self._check(state, unit, i, touches)
        step = state.step[unit]
        match i:
            case Vector():
                self._pass(state, i, touches)
            case Matrix():
                matrix.execute(state.machine, i)
            case Load():
                dma.load(state.machine, i, bases, step)
            case Store():
                dma.store(state.machine, i, bases, step)
        state.done.append(_Done(unit, state.number[unit], i, touches, state.rows))
        state.number[unit] += 1
        finished = [*clock]
        finished[unit] = state.number[unit]
        signals = counts(i.signal)
        if any(signals) and unit is Unit.VECTOR:
            self._write(state)
        for destination, n in enumerate(signals):
            state.channels[unit][destination].extend([finished] * n)

    def _check(self, state: _State, unit: Unit, i: Instruction, touches: Footprint) -> None:
        for d in state.done:
            if d.number < state.clock[unit][d.unit]:
                continue
            if d.unit is unit and state.rows - d.rows >= DISTANCE:
                continue
            # Passes follow each other through one pipeline: only what is read too early matters.
            clash = (
                d.touches.writes & touches.reads if d.unit is unit else d.touches.conflicts(touches)
            )
            if clash:
                raise RaceError(f"{unit.name} {i} is not ordered after {d.unit.name} {d.number}")

    def _pass(self, state: _State, i: Vector, touches: Footprint) -> None:
        """Execute a pass, but keep what it writes for later."""
        self._write(state, DISTANCE)
        rows = [(memory, at) for memory, at in self._places(state, touches.writes) if len(at)]
        old = [memory[at].copy() for memory, at in rows]
        vector.execute(state.machine, i)
        state.rows += issued(i)
        for (memory, at), values in zip(rows, old, strict=True):
            state.late.append((state.rows, memory, at, memory[at].copy()))
            memory[at] = values

    def _places(self, state: _State, places: int) -> list[tuple[np.ndarray, np.ndarray]]:
        machine = state.machine
        at = members(machine.config, places)
        return [
            (machine.vector, at["vector"]),
            (machine.outbox, at["outbox"]),
            (machine.mask, at["mask"]),
            (machine.mantissas, at["tile"]),
            (machine.exponents, at["tile"]),
        ]

    def _write(self, state: _State, distance: int = 0) -> None:
        """Write what passes computed at least ``distance`` rows ago."""
        while state.late and state.rows - state.late[0][0] >= distance:
            _, memory, at, values = state.late.pop(0)
            memory[at] = values
