"""Programs as text, and text as programs.

One line is one instruction: the unit, then the fields that differ from their defaults, then what it is for::

    .entry train load 0:4 matrix 0:7 vector 0:58 store 0:0 tokens vector>load=4 bases scalars x order
    vector 4: loops.n2=2 loops.n1=4 loops.n0=16 a=ACC c=P0 alu=ADD function=RELU  ; dense | forward | relu

Text carries instructions, entries and notes; configuration, symbols and meta stay with the program it is for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from fpgrad.errors import ProgramError
from fpgrad.isa.instructions import CLASS_OF, Instruction, Unit
from fpgrad.isa.layout import from_values, layout, values
from fpgrad.isa.program import Entry, Note, Program

LINE = re.compile(r"^(?P<unit>\w+)\s+(?P<index>\d+):(?P<fields>[^;]*)(?:;(?P<note>.*))?$")


def instruction_text(instruction: Instruction) -> str:
    """The fields that differ from their defaults: ``name=value ...``; enumerations by name."""
    parts: list[str] = []
    for leaf, value in zip(layout(type(instruction)), values(instruction), strict=True):
        if value != leaf.default:
            shown = leaf.enum(value).name if leaf.enum is not None else str(value)
            parts.append(f"{leaf.name}={shown}")
    return " ".join(parts)


def parse_instruction(unit: Unit, text: str) -> Instruction:
    """The inverse of :func:`instruction_text`.

    Raises:
        ProgramError: an unknown field, or a value that the field does not have.
    """
    leaves = {leaf.name: (i, leaf) for i, leaf in enumerate(layout(CLASS_OF[unit]))}
    numbers = [leaf.default for leaf in layout(CLASS_OF[unit])]
    for part in text.split():
        name, equals, shown = part.partition("=")
        if not equals or name not in leaves:
            raise ProgramError(
                f"{unit.name.lower()} has no field {name!r}; its fields are {', '.join(leaves)}"
            )
        i, leaf = leaves[name]
        try:
            numbers[i] = int(leaf.enum[shown]) if leaf.enum is not None else int(shown, 0)
        except (KeyError, ValueError):
            wanted = ", ".join(leaf.enum.__members__) if leaf.enum is not None else "an integer"
            raise ProgramError(
                f"{unit.name.lower()} field {name} must be {wanted}, not {shown!r}"
            ) from None
    instruction = from_values(CLASS_OF[unit], tuple(numbers))
    values(instruction)  # checks the ranges
    return instruction


def entry_text(name: str, entry: Entry) -> str:
    """An entry's line."""
    ranges = " ".join(f"{u.name.lower()} {entry.start[u]}:{entry.stop[u]}" for u in Unit)
    tokens = [
        f"{s.name.lower()}>{d.name.lower()}={entry.tokens[s][d]}"
        for s in Unit
        for d in Unit
        if entry.tokens[s][d]
    ]
    text = f".entry {name} {ranges}"
    text += f" tokens {' '.join(tokens)}" if tokens else ""
    return text + (
        f" bases {' '.join(b.replace(' ', '~') for b in entry.bases)}" if entry.bases else ""
    )


def parse_entry(text: str) -> tuple[str, Entry]:
    """The inverse of :func:`entry_text`."""
    words = text.split()
    try:
        name, rest = words[1], words[2:]
        start, stop = [0] * 4, [0] * 4
        for u in Unit:
            at = rest.index(u.name.lower())
            low, high = rest[at + 1].split(":")
            start[u], stop[u] = int(low), int(high)
        bases: list[str] = []
        if "bases" in rest:
            bases = [b.replace("~", " ") for b in rest[rest.index("bases") + 1 :]]
            rest = rest[: rest.index("bases")]
        tokens = [[0] * 4 for _ in range(4)]
        if "tokens" in rest:
            for part in rest[rest.index("tokens") + 1 :]:
                source, destination, count = re.split(">|=", part)
                tokens[Unit[source.upper()]][Unit[destination.upper()]] = int(count)
    except (IndexError, KeyError, ValueError) as error:
        raise ProgramError(f"not an entry: {text!r} ({error})") from error
    grid = tuple((r[0], r[1], r[2], r[3]) for r in tokens)
    entry = Entry(
        (start[0], start[1], start[2], start[3]),
        (stop[0], stop[1], stop[2], stop[3]),
        grid,
        tuple(bases),
    )
    return name, entry


def disassemble(program: Program, entries: Iterable[str] | None = None) -> str:
    """A program, or some entries of it, as text."""
    lines: list[str] = []
    for name in entries if entries is not None else program.entries:
        entry = program.entries[name]
        lines.append(entry_text(name, entry))
        for u in Unit:
            for i in range(entry.start[u], entry.stop[u]):
                fields = instruction_text(program.units[u][i])
                notes = program.notes.get(u, ())
                note = notes[i] if i < len(notes) else Note()
                lines.append(
                    f"{u.name.lower()} {i}: {fields}  ; {note.layer} | {note.phase} | {note.text}".rstrip()
                )
    return "\n".join(lines) + "\n"


def assemble(text: str, program: Program) -> Program:
    """A program with the instructions and entries of ``text`` and the rest of ``program``.

    Raises:
        ProgramError: naming the line that is wrong.
    """
    units: dict[Unit, dict[int, Instruction]] = {u: {} for u in Unit}
    notes: dict[Unit, dict[int, Note]] = {u: {} for u in Unit}
    entries: dict[str, Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        try:
            if stripped.startswith(".entry"):
                name, entry = parse_entry(stripped)
                entries[name] = entry
                continue
            match = LINE.match(stripped)
            if match is None or match["unit"].upper() not in Unit.__members__:
                raise ProgramError(f"not an instruction: {stripped!r}")
            unit, index = Unit[match["unit"].upper()], int(match["index"])
            units[unit][index] = parse_instruction(unit, match["fields"])
            layer, phase, what = (
                [p.strip() for p in (match["note"] or "").split("|")] + ["", "", ""]
            )[:3]
            notes[unit][index] = Note(layer, phase, what)
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}") from error
    for unit, numbered in units.items():
        if sorted(numbered) != list(range(len(numbered))):
            raise ProgramError(
                f"{unit.name.lower()} instructions must be numbered from 0 without gaps"
            )
    return dataclasses.replace(
        program,
        units={
            u: tuple(numbered[i] for i in range(len(numbered))) for u, numbered in units.items()
        },
        notes={
            u: tuple(numbered[i] for i in range(len(numbered))) for u, numbered in notes.items()
        },
        entries=entries,
    )
