"""Planning: the order of a function's steps, what of it waits in external memory, and the place of everything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

from fpgrad.codegen.allocate import Need, allocate, fullest, lifetimes, with_moves
from fpgrad.codegen.cores import input_cycles
from fpgrad.codegen.divide import Pieces, divide
from fpgrad.codegen.external import Mode, Pace
from fpgrad.codegen.flight import Sums
from fpgrad.codegen.schedule import products_first, schedule, soonest_first, steady
from fpgrad.codegen.split import split
from fpgrad.codegen.steps import Buffer, Place, StepList, VectorStep
from fpgrad.codegen.stream import Limits, Ordered, begin, fit, large
from fpgrad.codegen.timeline import Timeline
from fpgrad.errors import MemoryCapacityError
from fpgrad.isa.config import MachineConfig

#: Passes over maps are in pieces already: with more steps than this splitting gains nothing.
FEW = 250

#: With more steps than this, the first order is already made for what is large to be outside: others take long to make.
MANY = 3000

#: How early things are loaded that wait outside, and how long kept: less so where they fill the inbox or the outbox.
EARLY = (1, 1 / 2, 1 / 4, 1 / 8)

#: What is left free for places that do not fit each other: more where what was planned takes too much.
SPARE = (0, 1 / 16, 1 / 8, 1 / 4)


def plan_function(
    steps: StepList,
    config: MachineConfig,
    limits: Limits,
    floors: Mapping[Place, int],
    room: int,
    pace: Pace,
) -> tuple[Need, dict[Buffer, Pieces]]:
    """Order and place the steps of a function.

    Args:
        floors: what persists, by place.
        room: see :func:`best_order`.

    Returns:
        what it takes of each memory, and the pieces in which tensors lie.

    Raises:
        CrowdedError: those of inbox and outbox are too narrow for such bands.
        MemoryCapacityError: the others are.
    """
    begin(steps)
    reorder = partial(order_with, steps, config, room, pace)
    if len(steps.steps) <= MANY or limits == Limits():
        order = Ordered(best_order(steps, config, room))
        divided = divide(steps, config.side)
    else:
        divided = divide(steps, config.side)
        far: dict[Buffer, Mode] = {}
        for buffer in large(steps, floors, limits, pace):
            far[buffer] = "bands"
        order = Ordered(reorder(steps.steps, far), far)
    selection = steps.steps
    spares, hurries = iter(SPARE), iter(EARLY)
    spare, early = next(spares), next(hurries)
    while True:
        steps.steps = selection
        hurried = replace(pace, early=early)
        outside, order = fit(steps, order, floors, limits.less(spare), hurried, reorder)
        need = allocate(steps, floors["vector"], floors["tile"])
        crowded, fits = limits.crowded(need), limits.hold(need)
        if fits and not crowded:
            return need, {b: p.within(outside) for b, p in divided.items()} | outside
        if crowded and (early := next(hurries, None)) is None:
            raise CrowdedError(steps, crowded[0], limits)
        if not fits and (spare := next(spares, None)) is None:
            break
    raise MemoryCapacityError(
        f"{steps.name}: {need.tiles} tiles, {need.vector_rows} rows and {need.mask_rows} masks are taken with the gaps "
        f"between places, however much is left free; there is room for {limits.of()}. Use a smaller batch, or raise them"
    )


class CrowdedError(MemoryCapacityError):
    """Inbox or outbox is too small for the pieces that things come and go in.

    Attributes:
        piece: rows of the largest of them.
    """

    def __init__(self, steps: StepList, place: Literal["inbox", "outbox"], limits: Limits) -> None:
        at, rows = fullest(steps, place)
        step = steps.steps[min(at, len(steps.steps) - 1)]
        self.piece = max(
            b.size for b in with_moves(lifetimes(steps.steps), steps.moves) if b.place == place
        )
        room = limits.inbox if place == "inbox" else limits.outbox
        super().__init__(
            f"{steps.name}: {step.layer} ({step.phase}) needs {rows} rows of the {place} at once, in pieces of up to "
            f"{self.piece} rows, however late they are loaded; there is room for {room}. Use a smaller batch, or raise "
            f"{place}"
        )


def plan_housekeeping(steps: StepList, side: int, floors: Mapping[Place, int], pace: Pace) -> Need:
    """Place the steps of housekeeping, in their order; returns what they take of each memory."""
    begin(steps)
    order = Timeline.in_turn(steps.steps, side)
    fit(steps, Ordered(order), floors, Limits(), pace, partial(unchanged, order))
    return allocate(steps, floors["vector"], floors["tile"])


def best_order(steps: StepList, config: MachineConfig, room: int) -> Timeline:
    """The order of the steps, small ones whole or split in the list, that is estimated to take the fewest cycles; with
    about ``room`` rows of sums on their way at once."""
    side, queue = config.side, config.matrix.queue_rows
    sums = Sums(steps.exchanges, room, input_cycles(steps, config))
    if steps.turns > 1:
        return schedule(steps.steps, side, queue, steady, sums)
    if len(steps.steps) > FEW:
        return schedule(steps.steps, side, queue, products_first, sums)
    halves = split(steps).steps
    best = schedule(steps.steps, side, queue, soonest_first, sums)
    for policy in (soonest_first, products_first):
        other = schedule(halves, side, queue, policy, sums)
        if other.cycles < best.cycles - best.cycles // 100:
            steps.steps, best = halves, other
    return best


def unchanged(order: Timeline, selection: list[VectorStep], far: Collection[Buffer]) -> Timeline:
    """The order as it was, whatever is outside."""
    del selection, far
    return order


def order_with(
    steps: StepList,
    config: MachineConfig,
    room: int,
    pace: Pace,
    selection: list[VectorStep],
    far: Collection[Buffer],
) -> Timeline:
    """An order in which what is read of some tensors has the time to come back from external memory.

    Args:
        room: see :func:`best_order`.
        selection: the steps in the order of selection.
    """
    distance = {b: 2 * pace.cycles(b.place, pace.band_rows(b)) + pace.ahead for b in far}
    sums = Sums(steps.exchanges, room, input_cycles(steps, config))
    return schedule(
        selection, config.side, config.matrix.queue_rows, steady, sums, distance, pace.band
    )
