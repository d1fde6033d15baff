"""What the frames say: numbered requests of the host, and the machine's answers.

The machine obeys requests in the order of their numbers, each once. A request that comes again (its answer was lost) is
answered again: a read is read again, a write is not repeated. The host sends several requests before it waits, of one
kind only: reads do not change what they read, so that reading twice is as good as once. Each sending of requests has a
round, which their answers repeat: bytes come in the order in which they were sent, so that an answer of the present
round tells at once which request or answer before it was lost, and one of an earlier round tells nothing new.

A machine that was reset obeys nothing but HELLO, so that the host hears of the reset instead of working with a machine that
has forgotten everything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CAPACITY",
    "HEADER",
    "MAX_WORDS",
    "NUMBERS",
    "PROTOCOL",
    "Answer",
    "Op",
    "Request",
    "State",
    "distance",
    "to_bytes",
]

#: Of this protocol; HELLO's answer says it.
PROTOCOL = 1

#: Requests are numbered modulo this.
NUMBERS = 256

#: Words of the largest payload of a request or an answer.
MAX_WORDS = 128

#: Number, operation or state, round, number of words, address.
_HEADER = struct.Struct("<BBBBI")

#: Bytes of the header.
HEADER = _HEADER.size

#: Bytes of the largest message.
CAPACITY = HEADER + 4 * MAX_WORDS


class Op(IntEnum):
    """What a request asks for."""

    HELLO = 0
    """Begin: the next request's number follows this one's. Answered with magic, protocol, T, and the words of a payload."""
    WRITE = 1
    """Write registers: a word each from the address on."""
    READ = 2
    """Read as many registers."""
    STORE = 3
    """Write external memory: words from the address on, which counts words."""
    LOAD = 4
    """Read as many words of external memory."""
    CLEAR = 5
    """Bring the machine to its first state."""


class State(IntEnum):
    """How a request was answered."""

    DONE = 0
    GAP = 1
    """A request before this one is missing; `Answer.address` is its number. Nothing was done."""
    RESET = 2
    """There was no HELLO since the machine was reset. Nothing was done."""
    REFUSED = 3
    """There is no such operation, or more words than a payload holds. Nothing was done, but the number is taken."""


@dataclass(frozen=True)
class Request:
    """One request.

    Args:
        number: modulo NUMBERS.
        turn: the round of sending, modulo 256.
        op: what is asked.
        address: of a register or a word of external memory.
        count: words to read or written.
        words: to write.
    """

    number: int
    turn: int
    op: Op
    address: int = 0
    count: int = 0
    words: bytes = b""

    def pack(self) -> bytes:
        """The payload of a frame."""
        return _HEADER.pack(self.number, self.op, self.turn, self.count, self.address) + self.words

    @classmethod
    def unpack(cls, payload: bytes) -> Request | None:
        """None if it is no request: too short, an unknown operation, or not as many words as it says."""
        if len(payload) < HEADER:
            return None
        number, op, turn, count, address = _HEADER.unpack_from(payload)
        words = payload[HEADER:]
        wanted = 4 * count if op in (Op.WRITE, Op.STORE) else 0
        if op not in set(Op) or len(words) != wanted:
            return None
        return cls(number, turn, Op(op), address, count, words)


@dataclass(frozen=True)
class Answer:
    """The answer to the request of the same number.

    Args:
        number, turn: of the request.
        state: how it was answered.
        address: for GAP the number of the request that is missing.
        words: that were read.
    """

    number: int
    turn: int
    state: State
    address: int = 0
    words: bytes = b""

    def pack(self) -> bytes:
        """The payload of a frame."""
        # The bit keeps an echo of the host's own frames from being taken for an answer.
        kind, count = 0x80 | self.state, len(self.words) // 4
        return _HEADER.pack(self.number, kind, self.turn, count, self.address) + self.words

    @classmethod
    def unpack(cls, payload: bytes) -> Answer | None:
        """None if it is no answer."""
        if len(payload) < HEADER:
            return None
        number, kind, turn, count, address = _HEADER.unpack_from(payload)
        words = payload[HEADER:]
        if kind & 0x7F not in set(State) or not kind & 0x80 or len(words) != 4 * count:
            return None
        return cls(number, turn, State(kind & 0x7F), address, words)

    @property
    def values(self) -> NDArray[np.uint32]:
        """The words that were read."""
        return np.frombuffer(self.words, "<u4").astype(np.uint32)


def distance(number: int, origin: int) -> int:
    """How far ``number`` is behind (negative) or ahead of ``origin``, -128 to 127."""
    half = NUMBERS // 2
    return (number - origin + half) % NUMBERS - half


def to_bytes(values: Sequence[int] | NDArray[np.uint32]) -> bytes:
    """Words, least significant byte first."""
    return np.ascontiguousarray(values, dtype="<u4").tobytes()
