"""What a benchmark leaves behind: rows of figures, and the bars that they are held against."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.facts import Neighbours, machine_facts
from fpgrad.errors import FpgradError

RESULTS = Path(__file__).parent / "results"

Cell = str | int | float | bool | None


@dataclass
class Record:
    """Everything that one run of a benchmark found.

    Args:
        name: the benchmark's module.
        settings: what the run was asked to do.
        facts: the computer, see :mod:`benchmarks.facts`.
        notes: how it was measured: lines of a list in Markdown.
        tables: rows by the table's title; a row is its cells by column.
        bars: what the figures are held against.
    """

    name: str
    settings: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def row(self, table: str, **cells: Cell) -> None:
        """Add a row and say it on the terminal. Underscores in column names stand for spaces."""
        named = {key.replace("_", " "): value for key, value in cells.items()}
        self.tables.setdefault(table, []).append(named)
        say(f"{table}: " + ", ".join(f"{key} {show(value)}" for key, value in named.items()))

    def note(self, text: str) -> None:
        """Say how it was measured: a list in Markdown."""
        self.notes += text.splitlines()

    def bar(
        self, what: str, value: float, relation: Literal["≤", "≥"], limit: float, unit: str
    ) -> None:
        """Hold a figure against a bar."""
        holds = value <= limit if relation == "≤" else value >= limit
        bar = {"what": what, "value": float(value), "relation": relation, "limit": limit}
        self.bars.append(bar | {"unit": unit, "holds": bool(holds)})

    def failed(self, title: str, error: FpgradError) -> None:
        """Note a case that could not be measured; :meth:`count_failures` holds it against a bar."""
        self.row("Failed", case=title, error=f"{type(error).__name__}: {error}")

    def count_failures(self) -> None:
        """The bar that every case can be measured."""
        self.bar("cases that could not be run", len(self.tables.get("Failed", ())), "≤", 0, "")

    def save(self, folder: Path = RESULTS) -> Path:
        """Write ``<name>.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        text = json.dumps(vars(self), indent=1, ensure_ascii=False, default=_plain)
        path.write_text(text + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read what :meth:`save` wrote."""
        return cls(**json.loads(path.read_text()))


@contextmanager
def recording(name: str, **settings: Any) -> Iterator[Record]:
    """A record for the benchmark that runs in this block; facts are noted around it."""
    neighbours = Neighbours()
    record = Record(name, settings, machine_facts())
    yield record
    record.facts.update(neighbours.facts())
    for bar in record.bars:
        say(f"{'holds' if bar['holds'] else 'MISSED'}: {describe(bar)}")


def finish(record: Record, out: Path) -> None:
    """The end of every benchmark's command: save, and say where."""
    say(f"wrote {record.save(out).name}; others kept {record.facts['others_cores']} cores busy")


def describe(bar: dict[str, Any]) -> str:
    """A bar in words."""
    unit = f" {bar['unit']}" if bar["unit"] else ""
    return f"{bar['what']}: {show(bar['value'])}{unit}, bar {bar['relation']} {show(bar['limit'])}{unit}"


def spread(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Median, with least and greatest in brackets."""
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{show(float(middle))} ({show(float(low))} to {show(float(high))})"


def show(value: Cell) -> str:
    """A cell as text: whole numbers in groups of three digits, others with three that count."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            if abs(value) >= 1000:
                return f"{value:,.0f}"
            text = f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
            return f"{value:.6f}".rstrip("0") if "e" in text else text
        case _:
            return value


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
