"""The instruction set's reference manual, generated from the definitions (``docs/isa.md``)."""

from __future__ import annotations

import inspect
from enum import IntEnum

from fpgrad.formats import Function
from fpgrad.isa.instructions import CLASS_OF, Alu, Source, Space, Tokens, Transfer, Unit, VectorOp
from fpgrad.isa.layout import layout, width

HEAD = """\
# Instruction set

This page is generated from `fpgrad.isa` (`python -m fpgrad.isa.manual`) and a test checks that it is current. What
each instruction *means* is the code of `fpgrad.reference`, one unit a file; this page says how it is written down.

A machine has four units with their own instruction lists: LOAD (external memory to the chip), MATRIX (tile products),
VECTOR (passes over rows) and STORE (the chip to external memory). Each runs its list in order, again for every step,
without regard to the others except for tokens: an instruction starts when each channel from unit *s* to it holds at
least `wait.s` tokens, which it takes; when its last result has been written it puts `signal.d` tokens into its
channel to unit *d*. Rows that the matrix unit finished are a queue from which vector passes with an `ACC` operand
take one row an iteration.

A program's entry names a range of each list, the tokens that the channels hold at the start, and the base registers
that the host sets to places in external memory.
"""


def enum_table(enum: type[IntEnum]) -> str:
    """An enumeration as a line."""
    return ", ".join(f"{m.name} = {m.value}" for m in enum)


def manual() -> str:
    """The manual as Markdown."""
    parts = [HEAD]
    for unit in Unit:
        cls = CLASS_OF[unit]
        doc = inspect.cleandoc(cls.__doc__ or "")
        parts.append(
            f"## {unit.name}\n\n{doc}\n\n{width(cls)} bits.\n\n| field | bits | width | values |\n|---|---|---|---|"
        )
        rows = []
        for leaf in layout(cls):
            kind = leaf.enum.__name__ if leaf.enum is not None else f"{leaf.low} to {leaf.high}"
            high = leaf.offset + leaf.width - 1
            rows.append(f"| `{leaf.name}` | {high}:{leaf.offset} | {leaf.width} | {kind} |")
        parts[-1] += "\n" + "\n".join(rows) + "\n"
    parts.append("## Enumerations\n\n| name | values |\n|---|---|")
    for enum in (Unit, VectorOp, Space, Source, Alu, Function, Transfer):
        parts[-1] += f"\n| {enum.__name__} | {enum_table(enum)} |"
    parts[-1] += "\n"
    parts.append(f"`{Tokens.__name__}`: {inspect.cleandoc(Tokens.__doc__ or '')}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    import sys

    sys.stdout.write(manual())
