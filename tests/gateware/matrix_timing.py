"""The matrix unit's timing as recurrences over events: the model that an emulator's cycle count follows.

All results are cycles. Written for exactness; the scan can be left out where 1 % is enough.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fpgrad.gateware.matrix import drain_latency
from fpgrad.gateware.scanner import TOPS
from fpgrad.isa.instructions import Matrix


@dataclass
class Schedule:
    accepted: list[int] = field(default_factory=list)
    go: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)


def schedule(
    instructions: list[Matrix],
    side: int,
    *,
    offer: Callable[[int], bool] = lambda _: True,
    ready: Callable[[int], bool] = lambda _: True,
    acc_rows: int | None = None,
) -> Schedule:
    """When things happen, if the source may offer and the sink takes in the cycles given."""
    capacity = max(32, 4 * side) if acc_rows is None else acc_rows
    out = Schedule()
    fetches: set[int] = set()
    first_goes: list[int] = []  # of all output tiles so far
    scans = 0  # output tiles scanned so far
    reserved = 0  # rows promised to the queue so far
    scan_end = load_start = last_go = streamer_free = -1
    for i in instructions:
        # Acceptance: the scanner is free, or reads its last pair; the loader took the one before.
        a = max(scan_end, load_start + 1, (out.accepted[-1] if out.accepted else -1) + 1)
        offered = (out.accepted[-1] if out.accepted else -1) + 1
        while not offer(offered):
            offered += 1
        a = max(a, offered)
        out.accepted.append(a)
        load_start = max(a, last_go)
        scan_end, load_from = a, load_start + 1
        for _ in range(i.outputs):
            for k in range(i.terms):
                fetches.add(load_from)
                go = max(load_from + side - 1, streamer_free)
                if k == 0:
                    for pair in range(i.terms):
                        scan_end += 1
                        while scan_end in fetches or (
                            pair == i.terms - 1
                            and scans >= TOPS
                            and scan_end < first_goes[scans - TOPS] + 5
                        ):
                            scan_end += 1
                    scans += 1
                    go = max(go, scan_end)
                    first_goes.append(go)
                if k == i.terms - 1:
                    reserved += i.rows
                    if reserved > capacity:
                        go = max(go, out.taken[reserved - capacity - 1] + 1)
                    if k == 0:
                        first_goes[-1] = go
                    for r in range(i.rows):
                        at = go + 1 + r + drain_latency(side)
                        if out.taken:
                            at = max(at, out.taken[-1] + 1)
                        while not ready(at):
                            at += 1
                        out.taken.append(at)
                out.go.append(go)
                out.busy.extend(range(go + 1, go + i.rows + 1))
                streamer_free = go + i.rows
                load_from = go + 1
                last_go = go
        out.done.append(last_go + i.rows + 1)
    return out
