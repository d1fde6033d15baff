"""The link to a simulated machine in this process: the C interface of ``model.cpp`` through ctypes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import ExecutionError
from fpgrad.isa.config import MachineConfig
from fpgrad.isa.registers import Register, Status
from fpgrad.link.base import Link

#: Cycles between two looks at the status of a run.
CHUNK = 1 << 17

#: Cycles that the machine runs on after a run, for the last rows to arrive in their memories.
SETTLE = 256

_WORD = np.dtype(np.uint32)


class VerilatedLink(Link):
    """A Verilated machine; its clock runs only inside these methods.

    Args:
        library: the shared library.
        config: what it was made from.
    """

    def __init__(self, library: Path, config: MachineConfig) -> None:
        self._c = _declare(ctypes.CDLL(str(library)))
        self._config = config
        self._handle: int | None = None
        self.clear()

    @property
    def handle(self) -> int:
        """The model.

        Raises:
            ExecutionError: the link is closed.
        """
        if self._handle is None:
            raise ExecutionError("the simulation is closed")
        return self._handle

    def clear(self) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        self.close()
        handle = self._c.fpgrad_open()
        rows = self._config.external_rows
        if not handle:
            raise ExecutionError(f"no memory on this computer for {rows} rows of external memory")
        self._handle = handle
        pointer = self._c.fpgrad_dram(handle)
        self._touched = 0
        self._dram = np.ctypeslib.as_array(pointer, (rows, self._config.side))
        self._variables: dict[str, NDArray[Any]] | None = None

    def close(self) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        if self._handle is not None:
            self._c.fpgrad_close(self._handle)
        self._handle = None
        self._dram = np.zeros((0, self._config.side), _WORD)
        self._variables = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def write_registers(self, address: int, values: Sequence[int] | NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        words = np.ascontiguousarray(values, dtype=np.uint32)
        self._c.fpgrad_write(
            self.handle, int(address), len(words), words.ctypes.data_as(POINTER(c_uint32))
        )

    def read_registers(self, address: int, count: int = 1) -> list[int]:
        """See :class:`fpgrad.link.base.Link`."""
        words = np.zeros(count, np.uint32)
        self._c.fpgrad_read(
            self.handle, int(address), count, words.ctypes.data_as(POINTER(c_uint32))
        )
        return [int(word) for word in words]

    def write_memory(self, row: int, words: NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        self._dram[row : row + len(words)] = words
        # A streamed program behind the data is none.
        if row < self._config.memory.dram_rows:
            self._touched = max(self._touched, row + len(words))

    def read_memory(self, row: int, rows: int) -> NDArray[np.uint32]:
        """See :class:`fpgrad.link.base.Link`."""
        return self._dram[row : row + rows].copy()

    def wait(self, timeout: float) -> Status:
        """See :class:`fpgrad.link.base.Link`; the clock runs here."""
        end = time.monotonic() + timeout
        chunk = CHUNK
        while True:
            # START takes three cycles to be seen in `running`.
            self._c.fpgrad_tick(self.handle, 3)
            used = int(self._c.fpgrad_run(self.handle, chunk))
            if used < chunk:
                self._c.fpgrad_tick(self.handle, SETTLE)
            status = Status(self.read_registers(Register.STATUS)[0])
            over = not status & Status.RUNNING or status & Status.QUIET
            if over or time.monotonic() > end:
                return status

    @property
    def touched(self) -> int:
        """Rows of data in external memory up to the last that host or machine wrote."""
        by_machine = int(self._c.fpgrad_written(self.handle))
        return max(self._touched, -(-by_machine // self._config.side))

    def tick(self, cycles: int) -> None:
        """Let the clock run."""
        self._c.fpgrad_tick(self.handle, cycles)

    def settle(self) -> None:
        """Let the design see what was written into its variables."""
        self._c.fpgrad_settle(self.handle)

    @property
    def variables(self) -> dict[str, NDArray[Any]]:
        """The design's public memories and registers by hierarchical name: views of the model itself."""
        if self._variables is None:
            self._variables = dict(self._list_variables())
        return self._variables

    def _list_variables(self) -> list[tuple[str, NDArray[Any]]]:
        out = []
        for n in range(self._c.fpgrad_variables(self.handle)):
            data, size, elements = c_void_p(), c_uint64(), c_uint64()
            name = self._c.fpgrad_variable(
                self.handle, n, byref(data), byref(size), byref(elements)
            )
            if size.value not in (1, 2, 4, 8) or not data.value:
                continue
            element = {1: c_uint8, 2: c_uint16, 4: c_uint32, 8: c_uint64}[size.value]
            pointer = ctypes.cast(data, POINTER(element))
            out.append((name.decode(), np.ctypeslib.as_array(pointer, (elements.value,))))
        return out


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    words = POINTER(c_uint32)
    for name, result, arguments in (
        ("open", c_void_p, []),
        ("close", None, [c_void_p]),
        ("dram", words, [c_void_p]),
        ("written", c_uint64, [c_void_p]),
        ("write", None, [c_void_p, c_uint32, c_uint64, words]),
        ("read", None, [c_void_p, c_uint32, c_uint64, words]),
        ("run", c_uint64, [c_void_p, c_uint64]),
        ("tick", None, [c_void_p, c_uint64]),
        ("variables", c_uint64, [c_void_p]),
        ("settle", None, [c_void_p]),
        (
            "variable",
            c_char_p,
            [c_void_p, c_uint64, POINTER(c_void_p), POINTER(c_uint64), POINTER(c_uint64)],
        ),
    ):
        function = getattr(library, f"fpgrad_{name}")
        function.restype, function.argtypes = result, arguments
    return library
