"""A link to a machine made of Python: registers that remember, a run that ends as it is told."""

from __future__ import annotations

import numpy as np

from fpgrad.isa.config import MachineConfig
from fpgrad.isa.registers import MAGIC, VERSION, Control, Register, Status
from fpgrad.link.base import Link


class FakeLink(Link):
    """What is written is kept in ``written``; what is read comes from ``registers``.

    Args:
        statuses: what STATUS says after START, one after the other; the last one stays.
    """

    def __init__(self, config: MachineConfig, statuses: list[Status]) -> None:
        self.written: dict[int, int] = {}
        self.statuses = list(statuses)
        self.cleared = 0
        self.dram = np.zeros((config.memory.dram_rows, config.side), np.uint32)
        self.registers: dict[int, int] = {Register.MAGIC: MAGIC, Register.VERSION: VERSION}
        digest = bytes.fromhex(config.digest)
        for n in range(8):
            self.registers[Register.DIGEST + n] = int.from_bytes(digest[4 * n : 4 * n + 4], "big")

    def write_registers(self, address, values):
        for n, value in enumerate(values):
            self.written[address + n] = int(value)

    def read_registers(self, address: int, count: int = 1) -> list[int]:
        if address == Register.STATUS:
            assert Register.CONTROL in self.written
            return [self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]]
        return [self.registers.get(address + n, 0) for n in range(count)]

    def write_memory(self, row, words):
        self.dram[row : row + len(words)] = words

    def read_memory(self, row, rows):
        return self.dram[row : row + rows].copy()

    def clear(self):
        self.cleared += 1
        self.dram[:] = 0

    def close(self):
        pass

    @property
    def started(self) -> bool:
        return self.written.get(Register.CONTROL) == Control.START
