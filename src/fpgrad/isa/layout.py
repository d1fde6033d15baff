"""Bit layouts of instructions, derived from the dataclasses that Python uses.

There is one definition of an instruction: its frozen dataclass, whose fields carry widths. From it follow the
packed words of program files, the arrays that the emulator reads and the layout that the gateware decodes.
"""

from __future__ import annotations

import dataclasses
import functools
from enum import IntEnum
from typing import Any, TypeVar

from fpgrad.errors import ProgramError

I = TypeVar("I")


def bits(
    width: int, *, signed: bool = False, enum: type[IntEnum] | None = None, default: int = 0
) -> Any:
    """A field of ``width`` bits."""
    value = enum(default) if enum is not None else default
    return dataclasses.field(
        default=value, metadata={"bits": width, "signed": signed, "enum": enum, "default": default}
    )


def group(cls: type) -> Any:
    """A nested group of fields."""
    return dataclasses.field(default_factory=cls, metadata={"group": cls})


@dataclasses.dataclass(frozen=True)
class Bits:
    """One leaf of a layout: dotted name, place and meaning of its bits."""

    name: str
    offset: int
    width: int
    signed: bool
    enum: type[IntEnum] | None
    default: int

    @property
    def low(self) -> int:
        """Smallest value."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest value."""
        return (1 << (self.width - self.signed)) - 1


@functools.cache
def layout(cls: type) -> tuple[Bits, ...]:
    """The leaves of instruction class ``cls``, least significant first."""
    leaves: list[Bits] = []

    def walk(c: type, prefix: str) -> None:
        for f in dataclasses.fields(c):
            if "group" in f.metadata:
                walk(f.metadata["group"], f"{prefix}{f.name}.")
            else:
                offset = leaves[-1].offset + leaves[-1].width if leaves else 0
                m = f.metadata
                leaves.append(
                    Bits(prefix + f.name, offset, m["bits"], m["signed"], m["enum"], m["default"])
                )

    walk(cls, "")
    return tuple(leaves)


def width(cls: type) -> int:
    """Bits of a packed instruction."""
    last = layout(cls)[-1]
    return last.offset + last.width


def values(instruction: object) -> tuple[int, ...]:
    """The leaves' values in layout order.

    Raises:
        ProgramError: a value does not fit its field.
    """
    out: list[int] = []
    for leaf in layout(type(instruction)):
        obj: Any = instruction
        for part in leaf.name.split("."):
            obj = getattr(obj, part)
        if not leaf.low <= int(obj) <= leaf.high:
            raise ProgramError(
                f"{type(instruction).__name__}.{leaf.name} must be {leaf.low} to {leaf.high}, not {int(obj)}"
            )
        out.append(int(obj))
    return tuple(out)


def from_values(
    cls: type[I], leaf_values: tuple[int, ...], groups: dict[Any, Any] | None = None
) -> I:
    """The instruction of class ``cls`` whose leaves have these values.

    Args:
        cls: the class.
        leaf_values: in layout order.
        groups: nested groups made so far. Equal ones become one object, which saves most of a program's memory.
    """
    stream = iter(zip(layout(cls), leaf_values, strict=True))

    def build(c: type) -> Any:
        kwargs: dict[str, Any] = {}
        for f in dataclasses.fields(c):
            if "group" in f.metadata:
                made = build(f.metadata["group"])
                kwargs[f.name] = made if groups is None else groups.setdefault(made, made)
            else:
                leaf, value = next(stream)
                try:
                    kwargs[f.name] = leaf.enum(value) if leaf.enum is not None else value
                except ValueError as error:
                    raise ProgramError(
                        f"{cls.__name__}.{leaf.name} has no meaning for {value}"
                    ) from error
        return c(**kwargs)

    return build(cls)


def pack(instruction: object) -> int:
    """The instruction as one integer of ``width(type(instruction))`` bits."""
    word = 0
    for leaf, value in zip(layout(type(instruction)), values(instruction), strict=True):
        word |= (value & ((1 << leaf.width) - 1)) << leaf.offset
    return word


def unpack(cls: type[I], word: int, groups: dict[Any, Any] | None = None) -> I:
    """The inverse of :func:`pack`; ``groups`` as in :func:`from_values`."""
    out: list[int] = []
    for leaf in layout(cls):
        value = (word >> leaf.offset) & ((1 << leaf.width) - 1)
        if leaf.signed and value >> (leaf.width - 1):
            value -= 1 << leaf.width
        out.append(value)
    return from_values(cls, tuple(out), groups)
