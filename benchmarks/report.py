"""Renders the results as ``docs/benchmarks.md``, so that no figure there is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from benchmarks.facts import ROOT
from benchmarks.record import RESULTS, Cell, Record, say, show

PAGE = ROOT / "docs" / "benchmarks.md"

#: Benchmarks in the order of the page, with what each one asks.
QUESTIONS = {
    "parity": "Does the machine learn what fp32 learns?",
    "conv_parity": "Do convolutional networks learn what they learn in fp32?",
    "cycles": "How many cycles does a training step take?",
    "conv_cycles": "How many cycles does a convolutional network take?",
    "conv_machines": "How do several cores and little memory do?",
    "published": "How do they do beside published machines?",
    "recompute": "Are activations better kept or computed again?",
    "vgg": "How does a network of the size of VGG-16 do?",
    "few_samples": "What do several cores bring a small batch?",
    "emulator_speed": "How fast is the emulator?",
    "rtl_speed": "How fast is the generated hardware in simulation?",
    "compile_time": "How long does the compiler take?",
}

INTRODUCTION = """\
# Benchmarks

What fpgrad promises, and what was measured. Every figure on this page is rendered from
`benchmarks/results` by `python -m benchmarks.report`; each benchmark is a command of its own:

```bash
pip install torch==2.13.0 -e ".[bench]"
python -m benchmarks.parity          # --help lists a benchmark's options
python -m benchmarks.conv_parity     # --mnist: on MNIST as well
python -m benchmarks.cycles
python -m benchmarks.conv_cycles     # --rtl: a step in the generated hardware as well
python -m benchmarks.conv_machines
python -m benchmarks.published
python -m benchmarks.recompute       # --more: networks that take some minutes
python -m benchmarks.vgg             # some minutes
python -m benchmarks.few_samples
python -m benchmarks.emulator_speed
python -m benchmarks.rtl_speed
python -m benchmarks.compile_time
python -m benchmarks.report          # renders this page
```

Cycles and learned weights are the same on every computer. Times are not: below each heading stands
what they were measured on, and how many cores other programs kept busy meanwhile. What is compared
was measured in turn, in the same process.
"""


def render(records: Mapping[str, Record]) -> str:
    """The page for the records by name; benchmarks without one are left out."""
    found = [records[name] for name in QUESTIONS if name in records]
    parts = [INTRODUCTION, "## All bars\n", table(_bars(found))]
    for record in found:
        parts += [f"## {QUESTIONS[record.name]}\n", _facts(record)]
        parts += [f"### {title}\n\n{table(rows)}" for title, rows in record.tables.items()]
        parts += ["\n".join(record.notes) + "\n"]
    return "\n".join(parts)


def _bars(records: Sequence[Record]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for record in records:
        for bar in record.bars:
            unit = f" {bar['unit']}" if bar["unit"] else ""
            rows.append(
                {
                    "benchmark": f"`{record.name}`",
                    "what": bar["what"],
                    "bar": f"{bar['relation']} {show(bar['limit'])}{unit}",
                    "measured": f"{show(bar['value'])}{unit}",
                    "holds": "yes" if bar["holds"] else "**no**",
                }
            )
    return rows


def _facts(record: Record) -> str:
    facts = record.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    others = facts["others_cores"]
    quiet = "unknown" if others is None else f"{show(others)} cores"
    return (
        f"`python -m benchmarks.{record.name}` on {facts['date']}, commit {facts['commit']}, in "
        f"{show(facts['seconds'])} s.\n{facts['processor']}, {facts['cores']} cores, {facts['system']}; "
        f"{versions}.\nKept busy by others: {quiet}; load before {show(facts['load_before'])}.\n"
    )


def table(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows as a Markdown table; numbers stand on the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numbers = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    lines = [
        _line(columns),
        _line(["--:" if number else "---" for number in numbers]),
        *(_line([show(row.get(c)) for c in columns]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def load_all(folder: Path = RESULTS) -> dict[str, Record]:
    """All results in a folder by name."""
    records = (Record.load(path) for path in sorted(folder.glob("*.json")))
    return {record.name: record for record in records}


def main(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Render the results."""
    page.write_text(render(load_all(results)))
    say(f"wrote {page.name}")


if __name__ == "__main__":
    typer.run(main)
