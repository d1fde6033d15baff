"""Programs: instructions for the four units, entry points, and the names that lead back to the user's model."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fpgrad.errors import ConfigError, ProgramError, ProgramFileError, ProgramMismatchError
from fpgrad.isa.area import check_room
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.instructions import CLASS_OF, Instruction, Unit
from fpgrad.isa.layout import pack, unpack, width

FILE_VERSION = 3


@dataclass(frozen=True)
class Symbol:
    """A tensor of the user's model in a memory of the machine.

    Args:
        space: "vector", "tile", "mask", "inbox", "outbox" or "dram".
        kind: how elements lie: "tiles" (row-major tiles of T rows), "row" (1, F: T elements a row),
            "column" (N, 1: T samples a row).
        transposed: each tile holds its transpose.
        first: which row (tile) of the tensor lies at ``base``, where only a piece of it does.
    """

    name: str
    space: str
    base: int
    size: int
    rows: int
    columns: int
    kind: str = "tiles"
    transposed: bool = False
    first: int = 0


@dataclass(frozen=True)
class Entry:
    """A part of a program that can be run: for each unit the instructions ``start <= i < stop``.

    One step runs every unit's range once; a run repeats it. ``tokens[source][destination]`` are in the channels
    before the first step.
    """

    start: tuple[int, int, int, int]
    stop: tuple[int, int, int, int]
    tokens: tuple[tuple[int, int, int, int], ...] = ((0, 0, 0, 0),) * 4
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """Where an instruction comes from: the user's layer, the phase of the step, and what it does."""

    layer: str = ""
    phase: str = ""
    text: str = ""
    useful_macs: int = 0


@dataclass(frozen=True)
class Program:
    """Everything an executor needs to run a model's training step.

    Args:
        config: the machine the program is for.
        units: the instructions of each unit.
        entries: entry points by name.
        symbols: tensors by place.
        notes: one for each instruction.
        meta: what the host needs to know, as JSON values (batch size, inputs, states, scalars...).

    Raises:
        ProgramError: more instructions than a memory holds. ConfigError: a streamed program has no room outside.
    """

    config: MachineConfig
    units: Mapping[Unit, tuple[Instruction, ...]]
    entries: Mapping[str, Entry]
    symbols: tuple[Symbol, ...] = ()
    notes: Mapping[Unit, tuple[Note, ...]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config.control.streamed:
            check_room(self.config, {u: len(self.units.get(u, ())) for u in Unit})
            return
        for unit in Unit:
            depth = getattr(self.config.control, unit.name.lower())
            if len(self.units.get(unit, ())) > depth:
                raise ProgramError(
                    f"the program has {len(self.units[unit])} {unit.name.lower()} instructions, "
                    f"the machine holds {depth}; raise control.{unit.name.lower()}"
                )

    def words(self, unit: Unit) -> list[int]:
        """The packed instructions of a unit."""
        return [pack(i) for i in self.units.get(unit, ())]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over configuration, instructions and entries: programs with equal digests do the same."""
        h = hashlib.sha256(self.config.digest.encode())
        for unit in Unit:
            size = (width(CLASS_OF[unit]) + 7) // 8
            h.update(b"".join(w.to_bytes(size, "little") for w in self.words(unit)))
        h.update(
            json.dumps({k: asdict(e) for k, e in self.entries.items()}, sort_keys=True).encode()
        )
        return h.hexdigest()

    def check_machine(self, config: MachineConfig) -> None:
        """Raise unless the program was made for ``config``.

        Raises:
            ProgramMismatchError: it was not; the message names the parameters that differ.
        """
        if config == self.config:
            return
        mine, theirs = _flat(asdict(self.config)), _flat(asdict(config))
        differing = [
            f"{k} = {mine[k]} (machine: {theirs.get(k)})" for k in mine if mine[k] != theirs.get(k)
        ]
        raise ProgramMismatchError("the program is for another machine: " + ", ".join(differing))

    def save(self, path: str | Path) -> None:
        """Write the program to a file (a zip archive of a manifest and one word list a unit)."""
        manifest = {
            "format": "fpgrad program",
            "version": FILE_VERSION,
            "digest": self.digest,
            "config": self.config.to_dict(),
            "entries": {k: asdict(e) for k, e in self.entries.items()},
            "symbols": [asdict(s) for s in self.symbols],
            "notes": {u.name: [asdict(n) for n in self.notes.get(u, ())] for u in Unit},
            "meta": dict(self.meta),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("manifest.json", json.dumps(manifest))
            for unit in Unit:
                size = (width(CLASS_OF[unit]) + 7) // 8
                data = b"".join(w.to_bytes(size, "little") for w in self.words(unit))
                archive.writestr(f"{unit.name.lower()}.bin", data)
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(buffer.getvalue())
        partial.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read a program file.

        Raises:
            ProgramFileError: the file is truncated, corrupted, of another version, or not a program.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                manifest = json.loads(archive.read("manifest.json"))
                binaries = {u: archive.read(f"{u.name.lower()}.bin") for u in Unit}
        except FileNotFoundError:
            raise
        except (
            zipfile.BadZipFile,
            zlib.error,
            KeyError,
            ValueError,
            EOFError,
            OSError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise ProgramFileError(f"{path} is not a whole program file: {error}") from error
        if manifest.get("format") != "fpgrad program" or manifest.get("version") != FILE_VERSION:
            raise ProgramFileError(
                f"{path} must be an fpgrad program of version {FILE_VERSION}, not "
                f"{manifest.get('format')!r} version {manifest.get('version')!r}; compile the model again"
            )
        try:
            units: dict[Unit, tuple[Instruction, ...]] = {}
            groups: dict[Any, Any] = {}
            for unit, data in binaries.items():
                size = (width(CLASS_OF[unit]) + 7) // 8
                words = (
                    int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)
                )
                units[unit] = tuple(unpack(CLASS_OF[unit], w, groups) for w in words)
            program = cls(
                MachineConfig.from_dict(manifest["config"]),
                units,
                {k: _entry(e) for k, e in manifest["entries"].items()},
                tuple(Symbol(**s) for s in manifest["symbols"]),
                {Unit[k]: tuple(map(_note, v)) for k, v in manifest["notes"].items()},
                manifest["meta"],
            )
        except (KeyError, TypeError, ValueError, ProgramError, ConfigError) as error:
            raise ProgramFileError(f"{path} is damaged: {error}") from error
        if program.digest != manifest["digest"]:
            raise ProgramFileError(f"{path} is damaged: its digest does not match its contents")
        return program


def _entry(values: dict[str, Any]) -> Entry:
    start, stop = tuple(values["start"]), tuple(values["stop"])
    tokens = tuple(tuple(row) for row in values["tokens"])
    return Entry(start, stop, tokens, tuple(values["bases"]))


def _note(values: dict[str, Any]) -> Note:
    """Layers and phases come again and again: each name is kept once."""
    note = Note(**values)
    return replace(note, layer=sys.intern(note.layer), phase=sys.intern(note.phase))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
