"""The link over a serial port."""

from fpgrad.link.uart.port import BAUD_RATES, SerialPort, candidates, connect

__all__ = ["BAUD_RATES", "SerialPort", "candidates", "connect"]
