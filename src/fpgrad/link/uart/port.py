"""Serial ports: which are there, and one as a stream of bytes that nobody else uses meanwhile."""

from __future__ import annotations

from contextlib import suppress
from types import ModuleType

from fpgrad.errors import InvalidArgumentError, LinkError, MissingExtraError
from fpgrad.link.stream.host import Patience, StreamLink

__all__ = ["BAUD_RATES", "SerialPort", "candidates", "connect"]

#: That the gateware's end is built for.
BAUD_RATES = (115_200, 230_400, 460_800, 921_600, 1_000_000, 2_000_000, 3_000_000)


class SerialPort:
    """A port as a :class:`fpgrad.link.stream.host.Bytes`.

    Args:
        name: such as ``/dev/ttyUSB0`` or ``COM3``, or a URL that pyserial knows.
        baud: bits a second; of BAUD_RATES.

    Raises:
        InvalidArgumentError: there is no such rate.
        LinkError: the port is not there, or another program has it. The message lists those that are.
        MissingExtraError: pyserial is not installed.
    """

    def __init__(self, name: str, baud: int = 3_000_000) -> None:
        if baud not in BAUD_RATES:
            raise InvalidArgumentError(f"baud must be one of {list(BAUD_RATES)}, not {baud}")
        serial = _pyserial()
        self.name = name
        try:
            # Two programs on one port would each take answers that are the other's.
            exclusive = None if "://" in name else True
            self._port = serial.serial_for_url(
                name, baudrate=baud, timeout=0, write_timeout=10, exclusive=exclusive
            )
        except (serial.SerialException, OSError, ValueError) as error:
            raise LinkError(f"{name} cannot be opened: {error}. {_there()}") from error
        self._error = serial.SerialException

    def write(self, data: bytes) -> None:
        """See :class:`fpgrad.link.stream.host.Bytes`.

        Raises:
            LinkError: the port is gone.
        """
        try:
            self._port.write(data)
        except (self._error, OSError) as error:
            raise LinkError(f"{self.name} is gone: {error}") from error

    def read(self, timeout: float) -> bytes:
        """See :class:`fpgrad.link.stream.host.Bytes`.

        Raises:
            LinkError: the port is gone.
        """
        try:
            self._port.timeout = timeout
            return self._port.read(max(1, self._port.in_waiting))
        except (self._error, OSError) as error:
            raise LinkError(f"{self.name} is gone: {error}") from error

    def close(self) -> None:
        """See :class:`fpgrad.link.stream.host.Bytes`."""
        with suppress(OSError):
            self._port.close()


def candidates() -> list[str]:
    """Names of this computer's serial ports, those on USB first.

    Raises:
        MissingExtraError: pyserial is not installed.
    """
    _pyserial()
    from serial.tools import list_ports

    ports = sorted(list_ports.comports(), key=lambda port: (port.vid is None, port.device))
    return [port.device for port in ports]


def connect(
    name: str | None = None, baud: int = 3_000_000, patience: Patience | None = None
) -> StreamLink:
    """The link to the machine at a port.

    Args:
        name: of the port; None: the first on USB at which an fpgrad machine answers.
        baud: of the bitstream.
        patience: with the machine.

    Raises:
        LinkError: nobody answers; what SerialPort and StreamLink raise.
    """
    if name is not None:
        return _open(name, baud, patience)
    tried = []
    for found in candidates():
        try:
            return _open(found, baud, Patience(silence=1.0) if patience is None else patience)
        except LinkError as error:
            tried.append(f"{found}: {error}")
    raise LinkError("\n  ".join(["no machine answers at any serial port", *(tried or [_there()])]))


def _open(name: str, baud: int, patience: Patience | None) -> StreamLink:
    port = SerialPort(name, baud)
    try:
        return StreamLink(port, patience, name)
    except BaseException:
        port.close()
        raise


def _there() -> str:
    found = candidates()
    return f"Ports that are there: {', '.join(found)}" if found else "No serial port is there"


def _pyserial() -> ModuleType:
    try:
        import serial
    except ImportError:
        raise MissingExtraError(
            "serial ports are used by pyserial, which is not installed: pip install 'fpgrad[board]'"
        ) from None
    return serial
