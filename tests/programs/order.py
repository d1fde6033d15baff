"""Tokens and fences: as few as it takes to give what the instructions give one after the other.

Hardware overlaps the units' instructions, and the passes of the vector unit. Of two instructions of different units
that touch the same place the later waits for the earlier's token; a pass that reads what a pass shortly before it wrote
has a fence. The next step is ordered after the one before in the same way, so that steps overlap, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.programs.places import Footprint, footprint

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import (
    Instruction,
    Load,
    Matrix,
    Source,
    Store,
    Tokens,
    Transfer,
    Unit,
    Vector,
    VectorOp,
)
from fpgrad.isa.program import Entry, Program

UNIT_OF: dict[type, Unit] = {
    Load: Unit.LOAD,
    Matrix: Unit.MATRIX,
    Vector: Unit.VECTOR,
    Store: Unit.STORE,
}

#: Rows between a pass and one that reads what it wrote, from which on no fence is needed.
DISTANCE = 20


def queue(side: int) -> int:
    """Rows that the matrix unit can finish before they are taken."""
    return max(32, 4 * side)


@dataclass
class Item:
    """An instruction of a step in the making."""

    instruction: Instruction
    touches: Footprint
    wait: list[int] = field(default_factory=lambda: [0] * 4)
    signal: list[int] = field(default_factory=lambda: [0] * 4)

    @property
    def unit(self) -> Unit:
        """The unit that executes it."""
        return UNIT_OF[type(self.instruction)]

    def finished(self) -> Instruction:
        """The instruction with its tokens."""
        return replace(self.instruction, wait=Tokens(*self.wait), signal=Tokens(*self.signal))


def once() -> int:
    """One token at a time, and no fence more than needed."""
    return 1


def ordered(
    config: MachineConfig,
    chain: Sequence[Instruction],
    amount: Callable[[], int] = once,
    extra: Callable[[], Unit | None] = lambda: None,
) -> tuple[list[Item], list[list[int]]]:
    """The instructions of a step with their tokens and fences, and the tokens at the start.

    Args:
        amount: tokens to use for the next order of two instructions.
        extra: a unit for whose last instruction the next one shall wait without need, its own perhaps.
    """
    items = [Item(i, footprint(config, i)) for i in chain]
    _fences(items)
    more = [extra() if fits else None for fits in _fitting(items, config.side)]
    # Few rows may wait for a load of sums: it must not wait for the end of the store that sends them.
    more = [
        None if unit is Unit.STORE and _is_sum(item) else unit
        for item, unit in zip(items, more, strict=True)
    ]
    initial = [[0] * 4 for _ in range(4)]
    for source in Unit:
        for destination in Unit:
            initial[source][destination] = _channel(items, source, destination, amount, more)
    return items, initial


def _is_sum(item: Item) -> bool:
    return isinstance(item.instruction, Load) and item.instruction.kind is Transfer.SUM


def _fences(items: list[Item]) -> None:
    """Fences of the passes; in a second step, too."""
    passes = [i for i in items if i.unit is Unit.VECTOR]
    since: list[tuple[Item, int]] = []
    rows = 0
    for item in passes * 2:
        assert isinstance(item.instruction, Vector)
        near = [earlier for earlier, end in since if rows - end < DISTANCE]
        if any(earlier.touches.writes & item.touches.reads for earlier in near):
            item.instruction = replace(item.instruction, fence=1)
        if item.instruction.fence:
            since = []
        rows += issued(item.instruction)
        since.append((item, rows))


def issued(v: Vector) -> int:
    """Rows that a vector instruction sends through its unit's pipeline."""
    return v.loops.count if v.op is VectorOp.PASS else 0


def _must_wait(earlier: Item, later: Item) -> bool:
    """Whether tokens have to order the two."""
    return earlier.unit is not later.unit and earlier.touches.conflicts(later.touches)


def _fitting(items: list[Item], side: int) -> list[bool]:
    """Before which instructions the queue holds all rows that are not taken; elsewhere a needless wait may not end."""
    rows = 0
    out: list[bool] = []
    for item in items:
        i = item.instruction
        out.append(rows <= queue(side))
        if isinstance(i, Matrix):
            rows += i.outputs * i.rows
        elif isinstance(i, Vector) and Source.ACC in (i.a, i.b, i.c, i.d):
            rows -= i.loops.count
    return out


def _channel(
    items: list[Item],
    source: Unit,
    destination: Unit,
    amount: Callable[[], int],
    extra: list[Unit | None],
) -> int:
    """Order instructions of ``destination`` after those of ``source`` by tokens; how many are there at the start.

    Each token stands for one order of two instructions, and the orders have the same sequence in both units.
    """
    pairs: list[tuple[int, int]] = []
    latest = -1
    for j, item in enumerate(items):
        if item.unit is not destination:
            continue
        before = [i for i in range(j) if items[i].unit is source]
        if extra[j] is not source:
            before = [i for i in before if _must_wait(items[i], item)]
        if before and before[-1] > latest:
            latest = before[-1]
            pairs.append((latest, j))
    # What a step does early must wait for what the step before did late.
    late = [
        (i, j)
        for j, item in enumerate(items)
        for i in range(j, len(items))
        if (item.unit, items[i].unit) == (destination, source) and _must_wait(items[i], item)
    ]
    start = 0
    if late:
        # Before all other tokens of the channel are taken, and after they have been given: in their sequence.
        first = min(j for _, j in [*late, *pairs])
        last = max(i for i, _ in [*late, *pairs])
        start = amount()
        items[first].wait[source] += start
        items[last].signal[destination] += start
    for i, j in pairs:
        n = amount()
        items[i].signal[destination] += n
        items[j].wait[source] += n
    return start


def assembled(
    config: MachineConfig, parts: dict[str, tuple[list[Item], list[list[int]]]]
) -> Program:
    """A program whose entries are these, one after the other in each unit's list."""
    units: dict[Unit, list[Instruction]] = {unit: [] for unit in Unit}
    entries = {}
    for name, (items, initial) in parts.items():
        start = [len(units[u]) for u in Unit]
        for item in items:
            units[item.unit].append(item.finished())
        stop = [len(units[u]) for u in Unit]
        tokens = tuple(tuple(row) for row in initial)
        registers = tuple(f"r{n}" for n in range(16))
        entries[name] = Entry(tuple(start), tuple(stop), tokens, registers)
    return Program(config, {u: tuple(x) for u, x in units.items()}, entries)


def single(config: MachineConfig, *chain: Instruction) -> Program:
    """A program of these instructions, with the entry "run"."""
    return assembled(config, {"run": ordered(config, chain)})
