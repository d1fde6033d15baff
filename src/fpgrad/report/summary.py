"""What one training step costs on one machine, as records and as text.

The records are plain numbers, so that whoever has them can make a report: the compiler before
anything ran, or a session from what its executor counted. They know no graph and no program; the
names in them are the user's own layer names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fpgrad.errors import InvalidArgumentError

Phase = Literal["forward", "recompute", "backward", "gradient", "update", "other"]
"""What a layer's cycles are spent on.

``forward``: its outputs; ``recompute``: those again, for the backward pass; ``backward``: the gradient of its inputs; ``gradient``: the gradient of
its weights; ``update``: the optimizer on its weights; ``other``: loss, metrics and moves.
"""

PHASES: tuple[Phase, ...] = get_args(Phase)


def _check_counts(owner: object, **counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise InvalidArgumentError(
                f"{type(owner).__name__}.{name} must not be negative, not {value!r}"
            )


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """Cycles in which a layer keeps each unit busy, in one phase of one training step.

    The units work at the same time, so rows add up for each unit but not across units.
    """

    name: str
    phase: Phase
    matrix_cycles: int = 0
    vector_cycles: int = 0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise InvalidArgumentError(
                f"LayerRow.phase must be one of {', '.join(PHASES)}, not {self.phase!r}"
            )
        _check_counts(self, matrix_cycles=self.matrix_cycles, vector_cycles=self.vector_cycles)


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """How much of one memory of the machine a program uses, in bits.

    ``used_bits`` may exceed ``capacity_bits`` in an estimate: then the program does not fit.
    """

    name: str
    used_bits: int
    capacity_bits: int

    def __post_init__(self) -> None:
        _check_counts(self, used_bits=self.used_bits, capacity_bits=self.capacity_bits)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a chip must have for the machine.

    ``mac_lanes`` is the number of multipliers of the matrix unit, ``on_chip_bits`` all memories of
    the machine together, ``dsp_blocks`` an estimate of hardware multipliers, and ``dsp_note`` says
    of which kind and on what the estimate rests.
    """

    mac_lanes: int
    on_chip_bits: int
    dsp_blocks: int
    dsp_note: str = ""

    def __post_init__(self) -> None:
        _check_counts(
            self,
            mac_lanes=self.mac_lanes,
            on_chip_bits=self.on_chip_bits,
            dsp_blocks=self.dsp_blocks,
        )


@dataclass(frozen=True, kw_only=True)
class StepSummary:
    """The cost of one training step.

    ``cycles`` is the whole step, from its first to its last cycle; ``useful_macs`` are the
    multiply-accumulates that the model's mathematics asks for, without padding; ``clock_hz`` is an
    assumption, stated wherever a time is derived from it. ``saturations`` are pairs of a unit's
    name and how many numbers it has clipped so far, ``notes`` sentences about this step.
    """

    model: str
    machine: str
    batch_size: int
    cycles: int
    useful_macs: int
    clock_hz: float
    layers: tuple[LayerRow, ...]
    memories: tuple[MemoryUse, ...]
    needs: Needs
    saturations: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_counts(self, useful_macs=self.useful_macs)
        for name in ("batch_size", "cycles", "clock_hz"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(
                    f"StepSummary.{name} must be positive, not {getattr(self, name)!r}"
                )

    @property
    def matrix_cycles(self) -> int:
        """Cycles of the step in which the matrix unit is busy."""
        return sum(row.matrix_cycles for row in self.layers)

    @property
    def vector_cycles(self) -> int:
        """Cycles of the step in which the vector unit is busy."""
        return sum(row.vector_cycles for row in self.layers)

    @property
    def utilisation(self) -> float:
        """Useful multiply-accumulates over those the array could do in the step, 0 to 1."""
        possible = self.needs.mac_lanes * self.cycles
        return self.useful_macs / possible if possible else 0.0

    @property
    def seconds(self) -> float:
        """Time of one step at ``clock_hz``, in seconds."""
        return self.cycles / self.clock_hz

    @property
    def samples_per_second(self) -> float:
        """Training samples per second at ``clock_hz``."""
        return self.batch_size / self.seconds


def render(summary: StepSummary, *, width: int = 100) -> str:
    """Returns ``summary`` as text of at most ``width`` columns, without colour codes.

    The same summary gives the same text on every terminal and in every environment.
    """
    if width < 60:
        raise InvalidArgumentError(f"width must be at least 60 columns, not {width!r}")
    out = io.StringIO()
    # An empty environment: rich would take width and colour from COLUMNS and FORCE_COLOR. No
    # markup: a layer may be called "[bold]".
    console = Console(
        file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False,
        legacy_windows=False, _environ={},
    )  # fmt: skip
    console.print(f"{summary.model} on {summary.machine}")
    console.print(_layer_table(summary))
    console.print(_memory_table(summary.memories))
    for line in _closing_lines(summary):
        console.print(line)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _layer_table(summary: StepSummary) -> Table:
    table = Table(box=SIMPLE, show_footer=True)
    table.add_column("layer", footer="busy cycles", overflow="fold")
    table.add_column("phase")
    for unit, total in (("matrix", summary.matrix_cycles), ("vector", summary.vector_cycles)):
        table.add_column(f"{unit} unit", footer=f"{total:,}", justify="right")
        table.add_column("of step", footer=_percent(total, summary.cycles), justify="right")
    previous = None
    for row in summary.layers:
        table.add_row(
            "" if row.name == previous else row.name,
            row.phase,
            *_cycles(row.matrix_cycles, summary.cycles),
            *_cycles(row.vector_cycles, summary.cycles),
        )
        previous = row.name
    return table


def _memory_table(memories: Iterable[MemoryUse]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("memory", overflow="fold")
    for heading in ("used KiB", "of KiB", "full"):
        table.add_column(heading, justify="right")
    for memory in memories:
        full = _percent(memory.used_bits, memory.capacity_bits)
        fits = memory.used_bits <= memory.capacity_bits
        table.add_row(
            memory.name,
            _kib(memory.used_bits),
            _kib(memory.capacity_bits),
            full if fits else f"{full}, does not fit",
        )
    return table


def _closing_lines(summary: StepSummary) -> Iterable[str]:
    needs = summary.needs
    yield (
        f"Step: {summary.cycles:,} cycles by the cycle model for {summary.batch_size} samples, "
        f"{100 * summary.utilisation:.1f} % of the array's multiply-accumulates useful"
    )
    yield (
        f"Time: {_duration(summary.seconds)} a step, "
        f"{summary.samples_per_second:,.0f} samples/s at {summary.clock_hz / 1e6:g} MHz"
    )
    note = f" ({needs.dsp_note})" if needs.dsp_note else ""
    yield (
        f"Chip: {needs.mac_lanes} MAC lanes, {_kib(needs.on_chip_bits)} KiB on chip, "
        f"about {needs.dsp_blocks} DSP blocks{note}"
    )
    yield from summary.notes
    if summary.saturations:
        counts = ", ".join(f"{name} {count:,}" for name, count in summary.saturations)
        yield f"Saturated numbers so far: {counts}"


def _cycles(cycles: int, step: int) -> tuple[str, str]:
    return (f"{cycles:,}", _percent(cycles, step)) if cycles else ("", "")


def _percent(part: int, whole: int) -> str:
    if not whole:
        return "" if not part else "> 100 %"
    return f"{100 * part / whole:.1f} %"


def _kib(bits: int) -> str:
    return f"{bits / 8192:,.1f}"


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
