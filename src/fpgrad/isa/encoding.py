"""Instruction layouts for the gateware, from the same dataclasses that Python packs."""

import dataclasses

from amaranth.hdl import Shape
from amaranth.lib import data

from fpgrad.isa.instructions import CLASS_OF, Unit


def struct_layout(cls: type) -> data.StructLayout:
    """The layout of instruction class ``cls``: nested groups are nested structs, enums are plain integers."""
    members: dict[str, data.StructLayout | Shape] = {}
    for f in dataclasses.fields(cls):
        if "group" in f.metadata:
            members[f.name] = struct_layout(f.metadata["group"])
        else:
            members[f.name] = Shape(f.metadata["bits"], f.metadata["signed"])
    return data.StructLayout(members)


def unit_layout(unit: Unit) -> data.StructLayout:
    """The layout of one unit's instructions."""
    return struct_layout(CLASS_OF[unit])
