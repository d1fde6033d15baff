"""Whether what the backward pass reads of the forward pass is kept or computed again.

Kept, it may have to wait in external memory. So everything is kept unless something has to wait there, or does not fit;
then a program that computes again what is cheaper to compute than to move is compiled too, and the one of fewer cycles is
taken, as the emulator's cycle model counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fpgrad.codegen.compile import Machine
from fpgrad.errors import ConfigError, InvalidArgumentError, MemoryCapacityError
from fpgrad.flow.schedules import Chosen, TooSmall, attempt, compared, may_wait, step_of
from fpgrad.graph import Function
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.program import Program
from fpgrad.transform import Recompute, recomputed

Wanted = Literal["auto", "never", "always"]

WANTED: tuple[Wanted, ...] = get_args(Wanted)

#: Layers that are listed one by one.
FEW = 6


@dataclass(frozen=True)
class Recomputation:
    """What is computed again for the backward pass.

    Args:
        layers: the layers, none if everything is kept.
        why: the reason for it.
    """

    layers: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        more = len(self.layers) - FEW
        named = ", ".join(self.layers[:FEW]) + (f" and {more} more" if more > 0 else "")
        return f"{named or 'nothing'}: {self.why}"


Found = tuple[Chosen, Recomputation]

Attempt = Callable[[Recompute | None], Chosen]
"""The schedule of a step, with its functions, where this is computed again."""


def check_recompute(recompute: str) -> None:
    """Raise unless there is such a way.

    Raises:
        InvalidArgumentError: naming those that there are.
    """
    if recompute not in WANTED:
        raise InvalidArgumentError(
            f"recompute must be one of {', '.join(WANTED)}, not {recompute!r}"
        )


def words_per_cycle(config: MachineConfig | Machine | None) -> float:
    """32-bit words that external memory moves in a cycle for each core."""
    formats = config.formats if isinstance(config, Machine) else config or MachineConfig()
    return float(formats.memory.dram_rate) / formats.cores


def choose_recompute(
    scheduled: Attempt,
    side: int,
    wanted: Wanted = "auto",
    config: MachineConfig | Machine | None = None,
    *,
    compiling: bool = True,
) -> Found:
    """Choose what is computed again.

    Args:
        scheduled: chooses the schedule of functions in which something is computed again.
        side: of the machine's tiles.
        wanted: "never" and "always" decide it, "auto" leaves it open.
        config: see :func:`~fpgrad.flow.build.compile_model`.
        compiling: whether programs may be made; without it "auto" keeps everything.

    Raises:
        MemoryCapacityError, ConfigError: the machine is too small either way.
    """
    check_recompute(wanted)
    if wanted == "always":
        chosen = scheduled(Recompute(side))
        layers = layers_of(chosen)
        return chosen, Recomputation(layers, "as asked for" if layers else "nothing can be")
    kept = tried(scheduled, None)
    trains = not isinstance(kept, Chosen) or "train" in kept.functions
    limited = trains and compiling and may_wait(config)
    first = program_of(kept, config) if limited else None
    if wanted == "never":
        for error in (kept, first):
            if isinstance(error, MemoryCapacityError):
                raise MemoryCapacityError(f'{error}, or allow recompute="auto"')
        return with_program(kept, first), Recomputation((), "as asked for")
    if first is None:
        return fitting(kept), Recomputation((), "everything is on the chip")
    if isinstance(first, Program):
        kept = with_program(kept, first)
        if not first.meta["functions"][step_of(kept.functions)]["spill"]:
            return kept, Recomputation((), "nothing has to wait in external memory")
    ways = [Recompute(side, words_per_cycle(config))]
    ways += [] if isinstance(first, Program) else [Recompute(side)]
    found = first_to_fit(scheduled, ways, config)
    if found is None:
        if not isinstance(first, Program):
            raise first
        return fitting(kept), Recomputation((), "moving takes fewer cycles")
    chosen, second = found
    entry = step_of(chosen.functions)
    why, better = compared(second, first, entry, "with all kept")
    if better or not isinstance(first, Program):
        return chosen, Recomputation(layers_of(chosen), why)
    return fitting(kept), Recomputation(
        (), compared(first, second, entry, "with some recomputed")[0]
    )


def tried(scheduled: Attempt, how: Recompute | None) -> Chosen | TooSmall:
    """A schedule, or why there is none."""
    try:
        return scheduled(how)
    except (MemoryCapacityError, ConfigError) as error:
        return error


def fitting(kept: Chosen | TooSmall) -> Chosen:
    """A schedule, if there is one."""
    if isinstance(kept, Chosen):
        return kept
    raise kept


def with_program(kept: Chosen | TooSmall, program: Program | TooSmall | None) -> Chosen:
    """A schedule with its program, if there are both."""
    chosen = fitting(kept)
    return replace(chosen, program=program) if isinstance(program, Program) else chosen


def program_of(
    chosen: Chosen | TooSmall, config: MachineConfig | Machine | None
) -> Program | TooSmall:
    """The program of a schedule, or why there is none."""
    if not isinstance(chosen, Chosen):
        return chosen
    return chosen.program or attempt(chosen.functions, config)


def first_to_fit(
    scheduled: Attempt, ways: list[Recompute], config: MachineConfig | Machine | None
) -> tuple[Chosen, Program] | None:
    """The first of some ways that computes something again and fits."""
    for way in ways:
        chosen = tried(scheduled, way)
        if not isinstance(chosen, Chosen) or not layers_of(chosen):
            continue
        program = program_of(chosen, config)
        if isinstance(program, Program):
            return replace(chosen, program=program), program
    return None


def layers_of(chosen: Chosen) -> tuple[str, ...]:
    """The layers of which something is computed again."""
    step: Function = chosen.functions[step_of(chosen.functions)]
    return tuple(recomputed(step))
