"""Instructions as the native module takes them: rows of leaf values in layout order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fpgrad.emulator import _native
from fpgrad.errors import ProgramError
from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import layout, values
from fpgrad.isa.program import Program


def leaves(
    program: Program, unit: Unit, start: int = 0, stop: int | None = None
) -> NDArray[np.int64]:
    """A unit's instructions from ``start`` to before ``stop``, shape (instructions, leaves).

    Raises:
        ProgramError: the native module does not know the layout.
    """
    cls = CLASS_OF[unit]
    names = [leaf.name for leaf in layout(cls)]
    if names != _native.field_names(int(unit)):
        raise ProgramError(
            f"the native module was built for another layout of {cls.__name__}; build the package again"
        )
    instructions = program.units.get(unit, ())[start:stop]
    out = np.empty((len(instructions), len(names)), np.int64)
    for row, instruction in zip(out, instructions, strict=True):
        row[:] = values(instruction)
    return out
