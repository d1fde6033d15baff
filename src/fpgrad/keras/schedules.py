"""A model's functions for a batch, by the schedule, and with the recomputation, that was asked for or chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fpgrad.flow import recomputing
from fpgrad.flow.schedules import (
    Chosen,
    Wanted,
    attempt,
    check_wanted,
    choose,
    compared,
    may_wait,
    step_of,
)
from fpgrad.frontend.lowered import Lowered
from fpgrad.graph import Function
from fpgrad.isa.program import Program
from fpgrad.keras.functions import Steps, build_steps
from fpgrad.transform import Recompute

__all__ = ["Scheduler"]


@dataclass(frozen=True)
class Scheduler:
    """Makes the functions of a batch.

    Args:
        side: of the machine's tiles. cores: how many it has.
        wanted: "auto", "layers" or "samples".
        config: the machine's configuration as `FPGA` takes it.
        compiling: whether programs may be compared.
        recompute: "auto", "never" or "always": whether activations are computed again for the backward pass.

    Raises:
        InvalidArgumentError: if there is no such schedule, or no such way to recompute.
    """

    side: int
    cores: int = 1
    wanted: Wanted = "layers"
    config: Any = None
    compiling: bool = False
    recompute: recomputing.Wanted = "auto"

    def __post_init__(self) -> None:
        check_wanted(self.wanted)
        recomputing.check_recompute(self.recompute)

    @property
    def limited(self) -> bool:
        """Whether the machine's memories are given, so that a program may have no room in them."""
        return may_wait(self.config)

    def fitting(self, steps: Steps) -> Steps | None:
        """The steps, with their program if it took making one to see whether the machine has room; None: it has not."""
        if not (self.limited and self.compiling):
            return steps
        program = attempt(steps.functions, self.config)
        return replace(steps, program=program) if isinstance(program, Program) else None

    def shorter(self, functions: Mapping[str, Function], others: Mapping[str, Function]) -> bool:
        """Whether functions take fewer cycles than others by the cycle model; yes, if nothing may be compiled."""
        if not self.compiling:
            return True
        program, other = (attempt(some, self.config) for some in (functions, others))
        if not isinstance(program, Program):
            return False
        return compared(program, other, step_of(functions), "")[1]

    @property
    def whole_tiles(self) -> bool:
        """Whether batches are padded to whole tiles of samples, so that they can be taken apart."""
        return self.wanted == "samples"

    def steps(self, lowered: Callable[[int], Lowered], rows: int) -> Steps:
        """Returns the functions for ``rows`` samples of a core.

        Args:
            lowered: the model for so many samples.
            rows: those of the batch; whole tiles, if `whole_tiles` says so.

        Raises:
            InvalidArgumentError: if the schedule that is wanted is not possible, with the layers that are in its way.
            MemoryCapacityError: if programs were compared and the machine is too small for all of them.
        """
        whole = build_steps(lowered(rows), self.cores)

        def scheduled(how: Recompute | None) -> Chosen:
            def by_micro_batches(parts: int) -> Mapping[str, Function]:
                return build_steps(lowered(rows // parts), self.cores, parts, how).functions

            layers = whole if how is None else build_steps(lowered(rows), self.cores, 1, how)
            return choose(
                layers.functions,
                by_micro_batches,
                rows,
                self.side,
                self.wanted,
                self.config,
                compiling=self.compiling,
            )

        chosen, recomputation = recomputing.choose_recompute(
            scheduled, self.side, self.recompute, self.config, compiling=self.compiling
        )
        return replace(
            whole,
            functions=chosen.functions,
            schedule=chosen.schedule,
            recomputation=recomputation,
            program=chosen.program,
        )
