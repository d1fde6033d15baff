"""Frames and messages over a line that loses, changes, repeats and delays bytes."""

from __future__ import annotations

import random
import zlib
from collections import deque

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fpgrad.errors import BoardResetError, LinkError
from fpgrad.isa.registers import MAGIC, Register
from fpgrad.link.base import Link
from fpgrad.link.stream.device import Device
from fpgrad.link.stream.frame import ESCAPE, FLAG, Deframer, frame, longest
from fpgrad.link.stream.host import Patience, StreamLink
from fpgrad.link.stream.messages import CAPACITY, Answer, Op, Request, State, distance

SIDE = 4


class Memory(Link):
    """A machine of words, which counts what is written."""

    def __init__(self):
        self.registers = {Register.MAGIC: MAGIC}
        self.rows = np.zeros((64, SIDE), np.uint32)
        self.log: list[tuple[int, list[int]]] = []
        self.cleared = 0

    def write_registers(self, address, values):
        self.log.append((address, [int(v) for v in values]))
        self.registers |= {address + i: int(v) for i, v in enumerate(values)}

    def read_registers(self, address, count=1):
        return [self.registers.get(address + i, 0) for i in range(count)]

    def write_memory(self, row, words):
        self.rows[row : row + len(words)] = words

    def read_memory(self, row, rows):
        return self.rows[row : row + rows].copy()

    def clear(self):
        self.cleared += 1

    def close(self):
        pass


class Line:
    """A stream to a device in the same process, whose bytes suffer.

    Args:
        device: at the other end.
        rate: of bytes that are dropped, changed or repeated, each way.
        seed: of the accidents.
    """

    def __init__(self, device, rate=0.0, seed=0):
        self.device, self.rate, self.random = device, rate, random.Random(seed)
        self.back: deque[bytes] = deque()
        self.cut = False

    def suffer(self, data: bytes) -> bytes:
        if self.cut:
            return b""
        if not self.rate:
            return data
        out = bytearray()
        for byte in data:
            if self.random.random() >= self.rate:
                out.append(byte)
                continue
            kind = self.random.randrange(3)
            out += (
                b""
                if kind == 0
                else bytes([byte ^ 1 << self.random.randrange(8)] if kind == 1 else [byte] * 2)
            )
        return bytes(out)

    def write(self, data):
        came = self.suffer(data)
        # In pieces, as drivers hand them out.
        for start in range(0, len(came), 7):
            answer = self.suffer(self.device.feed(came[start : start + 7]))
            if answer:
                self.back.append(answer)

    def read(self, timeout):
        return self.back.popleft() if self.back else b""

    def close(self):
        pass


# No answer comes later in the same process, so that the host need not wait for one.
HASTY = Patience(answer=1e-4, silence=5.0)


def connect(rate=0.0, seed=0, patience=HASTY):
    machine = Memory()
    line = Line(Device(machine, SIDE), rate, seed)
    return StreamLink(line, patience), machine, line


@given(st.lists(st.binary(max_size=40)), st.data())
@example([bytes([FLAG, ESCAPE, 0x5E, 0x5D])], None)
def test_frames_come_out_as_they_went_in(payloads, data):
    stream = b"".join(map(frame, payloads))
    deframer, found = Deframer(40), []
    while stream:
        n = data.draw(st.integers(1, len(stream))) if data else len(stream)
        found += deframer.feed(stream[:n])
        stream = stream[n:]
    assert found == payloads
    assert deframer.damaged == 0


@given(st.binary(max_size=60), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_loses_that_frame_and_no_other(payload, at, flip):
    stream = bytearray(frame(payload))
    stream[at % len(stream)] ^= flip
    deframer = Deframer(60)
    found = deframer.feed(bytes(stream) + frame(b"next") + frame(b"last"))
    assert [p for p in found if p != payload][-1:] == [b"last"]
    assert set(found) <= {payload, b"next", b"last"}


def test_frames_that_are_too_long_or_short_are_dropped():
    deframer = Deframer(8)
    assert deframer.feed(
        frame(bytes(9)) + bytes([FLAG, 1, 2, FLAG, ESCAPE, FLAG]) + frame(b"x")
    ) == [b"x"]
    assert deframer.damaged == 3
    assert len(frame(bytes([FLAG]) * 20)) <= longest(20)


def test_the_check_is_that_of_zlib():
    assert frame(b"123456789")[-5:-1] == (0xCBF43926).to_bytes(4, "little")
    assert zlib.crc32(b"123456789") == 0xCBF43926


@given(
    st.builds(
        Request,
        number=st.integers(0, 255),
        turn=st.integers(0, 255),
        op=st.sampled_from([Op.READ, Op.LOAD, Op.CLEAR, Op.HELLO]),
        address=st.integers(0, (1 << 32) - 1),
        count=st.integers(0, 128),
    ),
    st.sampled_from(State),
    st.binary(max_size=32).map(lambda b: b[: len(b) // 4 * 4]),
)
def test_messages_are_read_as_they_were_written(request, state, words):
    assert Request.unpack(request.pack()) == request
    answer = Answer(request.number, request.turn, state, request.address, words)
    assert Answer.unpack(answer.pack()) == answer
    assert Request.unpack(answer.pack()) is None
    assert Answer.unpack(request.pack()) is None


@given(st.binary(max_size=40))
def test_no_bytes_break_either_end(data):
    device = Device(Memory(), SIDE)
    device.feed(frame(data) + data)
    Request.unpack(data)
    Answer.unpack(data)
    assert Request.unpack(device.feed(frame(Request(3, 0, Op.HELLO).pack()))) is None


def test_numbers_go_round():
    assert [distance(a, b) for a, b in ((1, 255), (255, 1), (128, 0), (127, 0))] == [
        2,
        -2,
        -128,
        127,
    ]


def test_a_good_line_sends_nothing_again():
    link, machine, _ = connect()
    words = np.arange(60 * SIDE, dtype=np.uint32).reshape(60, SIDE)
    link.write_memory(2, words)
    assert (link.read_memory(2, 60) == words).all()
    link.write_registers(5, [1, 2, 3])
    assert link.read_registers(5, 3) == [1, 2, 3]
    link.clear()
    assert machine.cleared == 1
    assert link.sent_again == 0
    assert len(machine.log) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0, 0.01),
    st.integers(0, 1 << 30),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
def test_a_bad_line_changes_nothing(rate, seed, actions):
    link, machine, _ = connect(rate, seed)
    rng = np.random.default_rng(seed)
    rows, written, started = np.zeros((64, SIDE), np.uint32), 0, 0
    for action in actions:
        if action == 0:
            at, n = int(rng.integers(40)), int(rng.integers(1, 20))
            rows[at : at + n] = rng.integers(0, 1 << 32, (n, SIDE), dtype=np.uint32)
            link.write_memory(at, rows[at : at + n])
        elif action == 1:
            at, n = int(rng.integers(40)), int(rng.integers(1, 20))
            assert (link.read_memory(at, n) == rows[at : at + n]).all()
        elif action == 2:
            # What is not to happen twice: starting a run.
            started += 1
            link.write_registers(Register.CONTROL, [1])
        else:
            written += 1
            link.write_registers(0x40, [written, FLAG, ESCAPE])
            assert link.read_registers(0x40, 3) == [written, FLAG, ESCAPE]
    assert (machine.rows == rows).all()
    assert [a for a, _ in machine.log].count(Register.CONTROL) == started
    assert [v[0] for a, v in machine.log if a == 0x40] == list(range(1, written + 1))


def test_a_cut_line_ends_with_an_error():
    link, _, line = connect(patience=Patience(answer=1e-3, silence=0.05))
    line.cut = True
    with pytest.raises(LinkError, match="nobody has answered"):
        link.write_registers(5, [1])
    line.cut = False
    # Whether that was done is not known.
    with pytest.raises(LinkError, match="Connect anew"):
        link.read_registers(5)
    assert StreamLink(line, HASTY).read_registers(5) in ([0], [1])


def test_a_short_cut_costs_time_alone():
    link, machine, line = connect(patience=Patience(answer=1e-3, silence=5))
    original, reads = line.read, 0

    def read(timeout):
        nonlocal reads
        reads += 1
        line.cut = reads < 50
        return original(timeout)

    line.cut, line.read = True, read
    link.write_registers(6, [2])
    assert machine.registers[6] == 2
    assert link.sent_again


def test_a_reset_is_noticed():
    link, _, line = connect()
    link.write_registers(5, [1])
    line.device.reset()
    with pytest.raises(BoardResetError, match="forgotten"):
        link.read_registers(5)
    # Whoever connects anew may work with it.
    assert StreamLink(line, HASTY).read_registers(Register.MAGIC) == [MAGIC]


def test_nobody_there_and_something_else_there():
    class Nobody(Line):
        def write(self, data): ...

    class Echo(Line):
        def write(self, data):
            self.back.append(data)

    for stream in (Nobody, Echo):
        with pytest.raises(LinkError, match="nobody"):
            StreamLink(stream(None), Patience(answer=1e-3, silence=0.01))


def test_the_largest_request_fits():
    assert len(Request(0, 0, Op.STORE, 0, 128, bytes(512)).pack()) == CAPACITY
