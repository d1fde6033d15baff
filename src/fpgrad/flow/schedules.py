"""Which way a step goes through its batch: layer by layer, or by micro-batches whose gradients are added up.

Layer by layer has the fewest passes; by micro-batches, less waits for the backward pass. So a step goes layer by layer
unless something would have to wait in external memory; then both are compiled, and the one of fewer cycles is taken, as
the emulator's cycle model counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fpgrad.codegen.compile import Machine
from fpgrad.emulator.timing import cycles_per_step
from fpgrad.errors import ConfigError, InvalidArgumentError, MemoryCapacityError
from fpgrad.flow.build import compile_model
from fpgrad.graph import Function
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.program import Program
from fpgrad.transform import coupling

Wanted = Literal["auto", "layers", "samples"]

WANTED: tuple[Wanted, ...] = get_args(Wanted)

Functions = Mapping[str, Function]

#: What says that a program does not fit a machine: its memories, or those for instructions.
TooSmall = MemoryCapacityError | ConfigError

#: Reasons that are listed one by one.
FEW = 3


@dataclass(frozen=True)
class Schedule:
    """How a step goes through the batch of a core.

    Args:
        parts: micro-batches, 1 layer by layer.
        samples: in each.
        why: the reason for it.
    """

    parts: int
    samples: int
    why: str

    def __str__(self) -> str:
        if self.parts == 1:
            return f"layer by layer: {self.why}"
        return f"{self.parts} micro-batches of {self.samples} samples: {self.why}"


@dataclass(frozen=True)
class Chosen:
    """A schedule, the functions for it, and the program if the choice took compiling them."""

    schedule: Schedule
    functions: Functions
    program: Program | None = None


def check_wanted(schedule: str) -> None:
    """Raise unless there is such a schedule.

    Raises:
        InvalidArgumentError: naming those that there are.
    """
    if schedule not in WANTED:
        raise InvalidArgumentError(f"schedule must be one of {', '.join(WANTED)}, not {schedule!r}")


def may_wait(config: MachineConfig | Machine | None) -> bool:
    """Whether something could have to wait in external memory, or find no room at all."""
    if isinstance(config, MachineConfig):
        return True
    return config is not None and (config.fixed or bool(config.limits.of()))


def choose(
    layers: Functions,
    micro_batches: Callable[[int], Functions],
    rows: int,
    side: int,
    wanted: Wanted = "auto",
    config: MachineConfig | Machine | None = None,
    *,
    compiling: bool = True,
) -> Chosen:
    """Choose how a step goes through its batch.

    Args:
        layers: the functions of a model by name, for the whole batch of a core.
        micro_batches: makes them for a number of equal micro-batches.
        rows: samples of a core's batch. side: of the machine's tiles.
        wanted: "layers" or "samples" decides it, "auto" leaves it open.
        config: see :func:`~fpgrad.flow.build.compile_model`.
        compiling: whether programs may be made; without it "auto" goes layer by layer, and micro-batches are one tile.

    Raises:
        InvalidArgumentError: "samples" is wanted, and something couples samples; the message names the layers.
        MemoryCapacityError, ConfigError: the machine is too small either way.
    """
    check_wanted(wanted)

    def by_layers(why: str, program: Program | None = None) -> Chosen:
        return Chosen(Schedule(1, rows, why), layers, program)

    numbers = divisions(rows, side)

    reasons = [x for f in layers.values() for x in coupling(f)]
    if wanted == "samples" and reasons:
        raise InvalidArgumentError(
            f'schedule="samples" is not possible for this model: {listed(reasons)}. Use schedule="auto" or "layers"'
        )
    if wanted == "layers":
        return by_layers("as asked for")
    if reasons:
        return by_layers(listed(reasons))
    if not numbers:
        return by_layers(f"the {rows} samples of a core are not several whole tiles")
    if wanted == "samples" and not compiling:
        parts = numbers[0]
        return Chosen(Schedule(parts, rows // parts, "as asked for"), micro_batches(parts))
    if wanted == "samples":
        made = first_to_fit(numbers, micro_batches, config)
        if isinstance(made, TooSmall):
            raise made
        parts, functions, program = made
        return Chosen(Schedule(parts, rows // parts, "as asked for"), functions, program)
    if not compiling or not may_wait(config):
        return by_layers("everything is on the chip")
    first = attempt(layers, config)
    if isinstance(first, Program) and not first.meta["functions"][step_of(layers)]["spill"]:
        return by_layers("nothing has to wait in external memory", first)
    made = first_to_fit(numbers, micro_batches, config)
    if isinstance(made, TooSmall):
        if isinstance(first, Program):
            return by_layers("by micro-batches it does not fit the chip", first)
        if isinstance(first, ConfigError):
            raise first
        raise MemoryCapacityError(f"{first} (layer by layer); {made} (by micro-batches)")
    parts, functions, second = made
    why, better = compared(second, first, step_of(layers), "layer by layer")
    if better or not isinstance(first, Program):
        return Chosen(Schedule(parts, rows // parts, why), functions, second)
    return by_layers(compared(first, second, step_of(layers), "by micro-batches")[0], first)


def divisions(rows: int, side: int) -> list[int]:
    """The numbers of equal micro-batches, of whole tiles of samples, that a batch can have; most of them first."""
    tiles, rest = divmod(rows, side)
    return [] if rest else [n for n in range(tiles, 1, -1) if tiles % n == 0]


def first_to_fit(
    numbers: Sequence[int],
    micro_batches: Callable[[int], Functions],
    config: MachineConfig | Machine | None,
) -> tuple[int, Functions, Program] | TooSmall:
    """The smallest micro-batches whose program fits: how many, their functions, the program; or why none does.

    Larger ones keep more, but have fewer instructions.
    """
    errors: list[TooSmall] = []
    for parts in numbers:
        functions = micro_batches(parts)
        program = attempt(functions, config)
        if isinstance(program, Program):
            return parts, functions, program
        errors.append(program)
    return errors[0]


def listed(reasons: Sequence[str]) -> str:
    """Reasons in a few words."""
    more = len(reasons) - FEW
    return "; ".join(reasons[:FEW]) + (f"; and {more} more" if more > 0 else "")


def step_of(functions: Functions) -> str:
    """The function that counts: training, if there is any."""
    return "train" if "train" in functions else next(iter(functions))


def attempt(functions: Functions, config: MachineConfig | Machine | None) -> Program | TooSmall:
    """The program, or why there is none."""
    try:
        return compile_model(functions, config)
    except (MemoryCapacityError, ConfigError) as error:
        return error


def compared(program: Program, other: Program | TooSmall, entry: str, how: str) -> tuple[str, bool]:
    """A program's cycles beside those of the other way, in words, and whether they are fewer."""
    if isinstance(other, TooSmall):
        return f"{how} it does not fit the chip", True
    mine, theirs = (cycles_per_step(p, entry) for p in (program, other))
    words = f"{mine:,} cycles a step by the cycle model, {theirs:,} {how}"
    return words, mine < theirs
