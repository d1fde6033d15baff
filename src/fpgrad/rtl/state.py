"""The simulated machine's memories in the layout of the reference: what two executors are compared by.

Banks are un-skewed here: element (row r, lane l) of a row memory is in bank ``(r + l) % T`` at
address ``r``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import ExecutionError, InvalidArgumentError
from fpgrad.isa.config import MachineConfig
from fpgrad.rtl.link import VerilatedLink

#: Row memories: name in a dump, name of the instance in the design.
ROW_MEMORIES = {
    "vector": "vector_memory",
    "inbox": "inbox",
    "outbox": "outbox",
    "mask": "mask",
    "mantissas": "mantissas",
}

#: Registers of the vector unit, one a lane: name in a dump, pattern of their names in the design.
LANE_REGISTERS = {"scalars": r"vector\.scalar(\d+)", "random": r"lane(\d+)\.random\.state"}


class State:
    """Reads and writes the memories of a Verilated machine, as int64 codes and uint32 words.

    ``vector``, ``inbox``, ``outbox``, ``mask``: (rows, T); ``mantissas``: (tiles, T, T), signed;
    ``exponents``: (tiles,); ``scalars``, ``random``: (T,); ``dram``: (rows, T) words. With several cores, all but
    ``dram`` have an axis of cores before these.
    """

    def __init__(self, link: VerilatedLink, config: MachineConfig) -> None:
        self._link, self._config = link, config
        several = config.cores > 1
        scopes = [f"core{n}." for n in range(config.cores)] if several else [""]
        self._cores = [CoreState(link, config, scope) for scope in scopes]

    def dump(self) -> dict[str, NDArray[Any]]:
        """Copies of all memories; of external memory the rows up to the last that was written."""
        dumps = [core.dump() for core in self._cores]
        out = (
            dumps[0] if len(dumps) == 1 else {k: np.stack([d[k] for d in dumps]) for k in dumps[0]}
        )
        return {**out, "dram": self._link.read_memory(0, self._link.touched)}

    def restore(self, memories: Mapping[str, NDArray[Any]]) -> None:
        """Set memories from a dump, or from part of one.

        Raises:
            InvalidArgumentError: there is no such memory.
        """
        for name, values in memories.items():
            if name == "dram":
                self._link.write_memory(0, values.astype(np.uint32))
                continue
            each = [values] if len(self._cores) == 1 else values
            for core, value in zip(self._cores, each, strict=True):
                core.restore(name, value)
        self._link.settle()

    def poke(self, name: str, index: int | tuple[int, ...], value: int) -> None:
        """Set one element of a memory, named and indexed as in :meth:`dump`.

        Raises:
            InvalidArgumentError: there is no such memory, or no such element.
        """
        at = index if isinstance(index, tuple) else (index,)
        try:
            if name == "dram":
                *outer, lane = at
                if outer[0] >= self._config.memory.dram_rows:
                    raise IndexError(f"it has {self._config.memory.dram_rows} rows of data")
                words = self._link.read_memory(outer[0], 1)
                words[0, lane] = value
                self._link.write_memory(outer[0], words)
                return
            core = self._cores[0]
            if len(self._cores) > 1:
                core, at = self._cores[at[0]], at[1:]
            core.poke(name, at, value)
        except (IndexError, ValueError) as error:
            if isinstance(error, InvalidArgumentError):
                raise
            raise InvalidArgumentError(f"index {index} is outside {name}: {error}") from error
        self._link.settle()


class CoreState:
    """The memories of one core, whose names begin with ``scope``."""

    def __init__(self, link: VerilatedLink, config: MachineConfig, scope: str) -> None:
        self._link, self._config, self._scope = link, config, scope
        self._t = config.side

    def dump(self) -> dict[str, NDArray[Any]]:
        """Copies of all memories."""
        out: dict[str, NDArray[Any]] = {name: self._rows(name) for name in ROW_MEMORIES}
        t = self._t
        bits = self._config.matrix.tile.mantissa_bits
        mantissas = out["mantissas"].reshape(-1, t, t)
        out["mantissas"] = mantissas - ((mantissas >> (bits - 1)) << bits)
        out["exponents"] = self._find("exponents", "words")[0].astype(np.int64)
        out["scalars"] = self._lanes("scalars")
        out["random"] = self._lanes("random")
        return out

    def restore(self, name: str, values: NDArray[Any]) -> None:
        """Set a memory."""
        if name in ROW_MEMORIES:
            mask = (1 << self._config.matrix.tile.mantissa_bits) - 1
            rows = values.reshape(-1, self._t) & (mask if name == "mantissas" else -1)
            row = np.arange(len(rows))
            for number, bank in enumerate(self._banks(name)):
                bank[:] = rows[row, (number - row) % self._t]
        elif name == "exponents":
            self._find("exponents", "words")[0][:] = values
        else:
            for lane, value in enumerate(values):
                self.poke(name, (lane,), int(value))

    def poke(self, name: str, index: tuple[int, ...], value: int) -> None:
        """Set one element of a memory."""
        *outer, last = index
        if name == "mantissas":
            bits = self._config.matrix.tile.mantissa_bits
            row = outer[0] * self._t + outer[1]
            self._banks(name)[(row + last) % self._t][row] = value & ((1 << bits) - 1)
        elif name in ROW_MEMORIES:
            row = outer[0]
            self._banks(name)[(row + last) % self._t][row] = value
        elif name == "exponents":
            self._find("exponents", "words")[0][last] = value
        elif name in LANE_REGISTERS:
            if name == "scalars" or self._config.vector.random:
                self._registers(name)[last][0] = value
        else:
            known = ", ".join((*ROW_MEMORIES, "exponents", *LANE_REGISTERS, "dram"))
            raise InvalidArgumentError(f"memory must be one of {known}, not {name!r}")

    def _banks(self, name: str) -> list[NDArray[Any]]:
        if name == "mask" and not self._config.memory.mask_rows:
            return [np.zeros(0, np.uint8)] * self._t
        return self._find(ROW_MEMORIES[name], r"bank_(\d+)")

    def _rows(self, name: str) -> NDArray[np.int64]:
        banks = np.stack(self._banks(name)).astype(np.int64)
        row, lane = np.indices((banks.shape[1], self._t))
        return banks[(row + lane) % self._t, row]

    def _registers(self, name: str) -> list[NDArray[Any]]:
        return self._find("core", rf"(?:vector\.)?{LANE_REGISTERS[name]}")

    def _lanes(self, name: str) -> NDArray[np.int64]:
        if name == "random" and not self._config.vector.random:
            return np.ones(self._t, np.int64)
        return np.array([int(r[0]) for r in self._registers(name)], np.int64)

    def _find(self, instance: str, pattern: str) -> list[NDArray[Any]]:
        """The variables of an instance that match, in the order of the pattern's number."""
        wanted = re.compile(rf"{re.escape(instance)}\.{pattern}")
        found: list[tuple[int, NDArray[Any]]] = []
        for name, array in self._link.variables.items():
            # Names that Verilog has to escape are given back as "\name " by some versions.
            match = wanted.search(name) if name.startswith(self._scope) else None
            if match and match.end() == len(name):
                found.append((int(match.group(1)) if match.groups() else 0, array))
        if not found:
            raise ExecutionError(f"the simulation does not show the memory {instance}")
        return [array for _, array in sorted(found, key=lambda pair: pair[0])]
