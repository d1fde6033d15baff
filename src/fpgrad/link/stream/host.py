"""The host's end: requests in a window, sent again until they are answered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fpgrad.errors import BoardResetError, LinkError
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

__all__ = ["Bytes", "Patience", "StreamLink"]

#: Words of the smallest payload that a bad line is given, of the first ones, and by how many they grow with each that
#: arrives. A frame of 128 words has no chance on a line that changes one byte in a hundred.
FEWEST, FIRST, GROWTH = 4, 16, 2


class Bytes(Protocol):
    """A stream of bytes both ways, such as a serial port."""

    def write(self, data: bytes) -> None:
        """Sends bytes."""
        ...

    def read(self, timeout: float) -> bytes:
        """What has come, at least one byte unless ``timeout`` seconds pass without any."""
        ...

    def close(self) -> None:
        """Gives the stream up."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long the host waits.

    Args:
        answer: seconds without any answer after which what is open is sent again.
        silence: seconds without any answer after which the link is lost.
        window: requests that may be open.
    """

    answer: float = 0.25
    silence: float = 10.0
    window: int = 8


class StreamLink(Link):
    """A link over a stream.

    Args:
        stream: to the machine.
        patience: with it.
        name: of the stream, for messages.

    Attributes:
        sent_again: requests that were sent more than once.

    Raises:
        LinkError: nobody answers, or it is not fpgrad's protocol that is spoken.
    """

    def __init__(
        self, stream: Bytes, patience: Patience | None = None, name: str = "the link"
    ) -> None:
        self._stream = stream
        self._patience = patience or Patience()
        self._name = name
        self._deframer = Deframer(CAPACITY)
        self._answers: deque[Answer] = deque()
        self._next = int.from_bytes(np.random.default_rng().bytes(1), "little")
        self._words, self._most = FIRST, MAX_WORDS
        self._turn = 0
        self._lost = ""
        self.sent_again = 0
        (answer,) = self._all([Request(self._number(), 0, Op.HELLO)])
        magic, protocol, self.side, self._most = (int(v) for v in answer.values)
        if magic != MAGIC:
            raise LinkError(f"what answers at {name} is no fpgrad machine: {magic:#x}")
        if protocol != PROTOCOL:
            raise LinkError(
                f"the machine at {name} speaks version {protocol} of the link's protocol, not {PROTOCOL}: "
                "build its bitstream again with this fpgrad"
            )
        self._most = min(self._most, MAX_WORDS)

    # The four accesses -------------------------------------------------------------------------

    def write_registers(self, address: int, values: Sequence[int] | NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        self._write(Op.WRITE, address, np.ascontiguousarray(values, dtype=np.uint32))

    def read_registers(self, address: int, count: int = 1) -> list[int]:
        """See :class:`fpgrad.link.base.Link`."""
        return [int(word) for word in self._read(Op.READ, address, count)]

    def write_memory(self, row: int, words: NDArray[np.uint32]) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        flat = np.ascontiguousarray(words, dtype=np.uint32).reshape(-1)
        self._write(Op.STORE, row * self.side, flat)

    def read_memory(self, row: int, rows: int) -> NDArray[np.uint32]:
        """See :class:`fpgrad.link.base.Link`."""
        words = self._read(Op.LOAD, row * self.side, rows * self.side)
        return words.reshape(rows, self.side)

    def clear(self) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        self._all([Request(self._number(), 0, Op.CLEAR)])

    def close(self) -> None:
        """See :class:`fpgrad.link.base.Link`."""
        self._stream.close()

    # Requests ----------------------------------------------------------------------------------

    def _number(self) -> int:
        number, self._next = self._next, (self._next + 1) % NUMBERS
        return number

    def _write(self, op: Op, address: int, words: NDArray[np.uint32]) -> None:
        done = 0

        def produce() -> Request | None:
            nonlocal done
            some = words[done : done + self._words]
            if not len(some):
                return None
            at, done = address + done, done + len(some)
            return Request(self._number(), 0, op, at, len(some), to_bytes(some))

        self._exchange(produce, lambda _: None)

    def _read(self, op: Op, address: int, count: int) -> NDArray[np.uint32]:
        asked, parts = 0, []

        def produce() -> Request | None:
            nonlocal asked
            some = min(self._words, count - asked)
            if not some:
                return None
            at, asked = address + asked, asked + some
            return Request(self._number(), 0, op, at, some)

        self._exchange(produce, lambda answer: parts.append(answer.values))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def _all(self, requests: Sequence[Request]) -> list[Answer]:
        left, answers = deque(requests), list[Answer]()
        self._exchange(lambda: left.popleft() if left else None, answers.append)
        return answers

    # The window --------------------------------------------------------------------------------

    def _exchange(
        self, produce: Callable[[], Request | None], accept: Callable[[Answer], None]
    ) -> None:
        """Sends all requests, and gives their answers in order to ``accept``."""
        if self._lost:
            raise LinkError(f"{self._name} was lost: {self._lost}. Connect anew")
        try:
            self._work(produce, accept)
        except BaseException as error:
            # What was open may have been obeyed or not, so that numbers are out of step.
            self._lost = str(error) or type(error).__name__
            raise

    def _work(
        self, produce: Callable[[], Request | None], accept: Callable[[Answer], None]
    ) -> None:
        window, early = deque[Request](), dict[int, Answer]()
        heard, produced = time.monotonic(), True
        while True:
            while produced and len(window) < self._patience.window:
                request = produce()
                produced = request is not None
                if request is not None:
                    window.append(request)
                    self._send(request)
            if not window:
                return
            answer = self._answer(self._patience.answer)
            if answer is None:
                if time.monotonic() - heard > self._patience.silence:
                    raise LinkError(
                        f"nobody has answered at {self._name} for {self._patience.silence:g} s: look at cable, power and "
                        "port, and whether its bitstream is loaded"
                    )
                self._again([r for r in window if r.number not in early])
                continue
            if answer.state is State.RESET:
                raise BoardResetError(
                    f"the machine at {self._name} was reset, and has forgotten its program and data"
                )
            place = distance(answer.number, window[0].number)
            if not 0 <= place < len(window):
                continue  # of a request that came twice
            heard = time.monotonic()
            if answer.state is State.REFUSED:
                raise LinkError(f"the machine at {self._name} refused {window[place]}")
            if answer.state is State.DONE:
                early[answer.number] = answer
                while window and window[0].number in early:
                    accept(early.pop(window.popleft().number))
                    self._words = min(self._most, self._words + GROWTH)
            # Whatever was sent before what has just been answered, in the same round, is lost.
            if window and answer.turn == self._turn:
                place = distance(answer.number, window[0].number)
                lost = [r for r in list(window)[: max(0, place)] if r.number not in early]
                if answer.state is State.GAP:
                    if not 0 <= distance(answer.address, window[0].number) < len(window):
                        raise LinkError(
                            f"the machine at {self._name} waits for another request: somebody else uses it"
                        )
                    lost = [r for r in window if r.number not in early]
                if lost:
                    self._again(lost)

    def _again(self, requests: Sequence[Request]) -> None:
        self._words = max(FEWEST, self._words // 2)
        self._turn = (self._turn + 1) % 256
        self.sent_again += len(requests)
        for request in requests:
            self._send(request)

    def _send(self, request: Request) -> None:
        self._stream.write(frame(replace(request, turn=self._turn).pack()))

    def _answer(self, timeout: float) -> Answer | None:
        end = time.monotonic() + timeout
        while not self._answers:
            left = end - time.monotonic()
            if left <= 0:
                return None
            for payload in self._deframer.feed(self._stream.read(left)):
                answer = Answer.unpack(payload)
                if answer is not None:
                    self._answers.append(answer)
        return self._answers.popleft()
