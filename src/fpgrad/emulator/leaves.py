"""Instructions as the native module takes them: rows of leaf values in layout order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fpgrad.emulator import _native
from fpgrad.errors import ProgramError
from fpgrad.isa.instructions import CLASS_OF, Unit
from fpgrad.isa.layout import layout, values
from fpgrad.isa.program import Program


def leaves(program: Program, unit: Unit) -> NDArray[np.int64]:
    """A unit's instructions, shape (instructions, leaves).

    Raises:
        ProgramError: the native module does not know the layout.
    """
    cls = CLASS_OF[unit]
    names = [leaf.name for leaf in layout(cls)]
    if names != _native.field_names(int(unit)):
        raise ProgramError(
            f"the native module was built for another layout of {cls.__name__}; build the package again"
        )
    rows = [values(i) for i in program.units.get(unit, ())]
    return np.array(rows, np.int64).reshape(len(rows), len(names))
