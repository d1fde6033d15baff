"""What scheduling has to know of sums over the cores: they take time, and few of them may be on their way at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fpgrad.codegen.steps import Buffer, Exchange

if TYPE_CHECKING:
    from fpgrad.codegen.dependencies import Item

#: Cycles from the last row of a part to the first of its sum, and for each of its rows. Estimates, for ordering alone.
LATENCY = 100
ROW_CYCLES = 2

#: Sums of fewer rows are not counted.
SMALL = 64


@dataclass(frozen=True)
class Sums:
    """The sums of a step list.

    Args:
        exchanges: one by one.
        room: rows of large ones that may be on their way at once, about.
        behind: cycles in which LOAD fetches the next step's inputs; it can begin when the last sum has come.
    """

    exchanges: Sequence[Exchange] = ()
    room: int = 0
    behind: int = 0


def add_waits(items: Sequence[Item], sums: Sums) -> None:
    """Let the readers of sums come after the writers of their parts, by as much as the way takes; the inputs, too."""
    if not sums.exchanges:
        return
    writers: dict[Buffer, list[Item]] = defaultdict(list)
    readers: dict[Buffer, list[Item]] = defaultdict(list)
    for item in items:
        for buffer in item.step.writes():
            writers[buffer].append(item)
        for buffer in item.step.reads():
            readers[buffer].append(item)
    for e in sums.exchanges:
        latency = LATENCY + ROW_CYCLES * e.rows
        for reader in readers[e.into]:
            for writer in writers[e.out]:
                reader.before[writer] = max(reader.before.get(writer, 0), latency)
        for writer in writers[e.out]:
            writer.tail = latency + sums.behind


class Flight:
    """The large sums on their way: an item that would send one more waits until there is room.

    Args:
        items: of the schedule. sums: of its step list.
    """

    def __init__(self, items: Sequence[Item], sums: Sums) -> None:
        large = [e for e in sums.exchanges if e.rows >= SMALL]
        self._room = sums.room
        self._sent = {e.out: e for e in large}
        self._come = {e.into: e for e in large}
        self._unread: dict[Exchange, int] = dict.fromkeys(large, 0)
        for item in items:
            for e in self._read_by(item):
                self._unread[e] += 1
        self._flying: set[Exchange] = set()
        self._rows = 0

    def allows(self, item: Item) -> bool:
        """Whether there is room for what an item sends, or nothing else is on its way."""
        new = sum(e.rows for e in self._written_by(item) if e not in self._flying)
        return not new or not self._rows or self._rows + new <= self._room

    def note(self, item: Item) -> None:
        """An item has been given its place in the order."""
        for e in self._written_by(item):
            if e not in self._flying:
                self._flying.add(e)
                self._rows += e.rows
        for e in self._read_by(item):
            self._unread[e] -= 1
            if not self._unread[e]:
                self._rows -= e.rows

    def _written_by(self, item: Item) -> list[Exchange]:
        return [self._sent[b] for b in item.step.writes() if b in self._sent]

    def _read_by(self, item: Item) -> list[Exchange]:
        return [self._come[b] for b in item.step.reads() if b in self._come]
