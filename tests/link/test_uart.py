"""A machine behind a pseudo-terminal, as a board would be behind a serial port."""

from __future__ import annotations

import os
import random
import select
import sys
import threading
import time

import numpy as np
import pytest
from tests.link.test_stream import SIDE, Line, Memory

from fpgrad.errors import InvalidArgumentError, LinkError
from fpgrad.isa.registers import MAGIC, Register
from fpgrad.link.stream.device import Device
from fpgrad.link.stream.host import Patience
from fpgrad.link.uart import SerialPort, candidates, connect

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")


class Board:
    """A device in a thread of its own, behind a pseudo-terminal.

    Args:
        rate: of bytes that are dropped, changed or repeated, each way.
        delay: of each piece of answers, at most, in seconds.
    """

    def __init__(self, rate=0.0, delay=0.0):
        import pty
        import tty

        self.machine = Memory()
        self.device = Device(self.machine, SIDE)
        self.line = Line(self.device, rate, seed=1)
        self.delay, self.random = delay, random.Random(2)
        self.near, far = pty.openpty()
        tty.setraw(far)
        self.port, self._far = os.ttyname(far), far
        self.going = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while self.going:
            if not select.select([self.near], [], [], 0.02)[0]:
                continue
            data = self.line.suffer(os.read(self.near, 4096))
            answer = self.line.suffer(self.device.feed(data))
            if self.delay:
                time.sleep(self.random.random() * self.delay)
            while answer:
                answer = answer[os.write(self.near, answer) :]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
        os.close(self.near)
        os.close(self._far)


@pytest.mark.parametrize(("rate", "delay"), [(0.0, 0.0), (0.001, 0.01), (0.01, 0.002)])
def test_memory_through_a_pseudo_terminal(rate, delay):
    with Board(rate, delay) as board:
        link = connect(board.port, patience=Patience(answer=0.05))
        rows = np.random.default_rng(0).integers(0, 1 << 32, (60, SIDE), dtype=np.uint32)
        for part in range(3):
            link.write_memory(0, rows + np.uint32(part))
            assert (link.read_memory(0, 60) == rows + np.uint32(part)).all()
            link.write_registers(Register.CONTROL, [1])
        assert link.read_registers(Register.MAGIC) == [MAGIC]
        assert board.machine.log == [(Register.CONTROL, [1])] * 3
        assert bool(link.sent_again) is bool(rate)
        link.close()


def test_a_port_is_one_programs():
    with Board() as board:
        link = connect(board.port)
        with pytest.raises(LinkError, match="cannot be opened"):
            SerialPort(board.port)
        link.close()
        connect(board.port).close()


def test_a_port_that_is_not_there():
    with pytest.raises(LinkError, match=r"(Ports that are there|No serial port is there)"):
        connect("/dev/ttyNothing")
    with pytest.raises(InvalidArgumentError, match="baud must be one of"):
        connect("/dev/ttyNothing", 9600)


def test_ports_are_looked_through(monkeypatch):
    assert isinstance(candidates(), list)
    with Board() as board:
        monkeypatch.setattr(
            "fpgrad.link.uart.port.candidates", lambda: ["/dev/ttyNothing", board.port]
        )
        assert connect().read_registers(Register.MAGIC) == [MAGIC]
    monkeypatch.setattr("fpgrad.link.uart.port.candidates", list)
    with pytest.raises(LinkError, match="no machine answers at any serial port"):
        connect()


def test_a_board_that_is_pulled_out():
    with Board() as board:
        link = connect(board.port, patience=Patience(answer=0.02, silence=0.2))
        board.going = False
        board.thread.join()
        with pytest.raises(LinkError, match="nobody has answered"):
            link.read_registers(5)
