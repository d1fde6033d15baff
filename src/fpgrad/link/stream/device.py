"""The machine's end as software: what the gateware's end does, in front of any other link.

It stands in for a board where there is none: behind a pseudo-terminal in tests, in front of a simulated machine.
"""

from __future__ import annotations

import numpy as np

from fpgrad.isa.registers import MAGIC
from fpgrad.link.base import Link
from fpgrad.link.stream.frame import Deframer, frame
from fpgrad.link.stream.messages import (
    CAPACITY,
    MAX_WORDS,
    NUMBERS,
    PROTOCOL,
    Answer,
    Op,
    Request,
    State,
    distance,
    to_bytes,
)

__all__ = ["Device"]


class Device:
    """Obeys requests.

    Args:
        link: to the machine.
        side: T, the words of a row of its external memory.
    """

    def __init__(self, link: Link, side: int) -> None:
        self._link = link
        self._side = side
        self._deframer = Deframer(CAPACITY)
        self._expected: int | None = None

    def reset(self) -> None:
        """What a button or a loss of power does: the machine forgets everything."""
        self._link.clear()
        self._deframer = Deframer(CAPACITY)
        self._expected = None

    def feed(self, data: bytes) -> bytes:
        """Takes bytes from the host, and returns those that go back."""
        requests = map(Request.unpack, self._deframer.feed(data))
        return b"".join(frame(self._answer(r).pack()) for r in requests if r is not None)

    def _answer(self, request: Request) -> Answer:
        number, turn = request.number, request.turn
        if request.op is Op.HELLO:
            self._expected = (number + 1) % NUMBERS
            return Answer(
                number, turn, State.DONE, 0, to_bytes([MAGIC, PROTOCOL, self._side, MAX_WORDS])
            )
        if self._expected is None:
            return Answer(number, turn, State.RESET)
        ahead = distance(number, self._expected)
        if ahead > 0:
            return Answer(number, turn, State.GAP, self._expected)
        if ahead == 0:
            self._expected = (number + 1) % NUMBERS
        if request.count > MAX_WORDS:
            return Answer(number, turn, State.REFUSED)
        return Answer(number, turn, State.DONE, 0, self._obey(request, again=ahead < 0))

    def _obey(self, request: Request, *, again: bool) -> bytes:
        at, count = request.address, request.count
        if request.op is Op.READ:
            return to_bytes(self._link.read_registers(at, count))
        if request.op is Op.LOAD:
            return to_bytes(self._rows(at, count).reshape(-1)[at % self._side :][:count])
        if again:
            return b""
        words = np.frombuffer(request.words, "<u4")
        if request.op is Op.WRITE:
            self._link.write_registers(at, words)
        elif request.op is Op.STORE:
            rows = self._rows(at, count)
            rows.reshape(-1)[at % self._side :][:count] = words
            self._link.write_memory(at // self._side, rows)
        else:
            self._link.clear()
        return b""

    def _rows(self, at: int, count: int) -> np.ndarray:
        """The whole rows that have so many words from ``at`` on."""
        first, last = at // self._side, -(-(at + count) // self._side)
        return self._link.read_memory(first, last - first).copy()
