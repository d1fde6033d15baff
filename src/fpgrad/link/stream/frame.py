"""Frames in a stream of bytes: HDLC's asynchronous framing with a CRC-32, as PPP has it (RFC 1662).

``FLAG`` begins and ends a frame, and stands nowhere else: inside, FLAG and ESCAPE are sent as ESCAPE and the byte with bit
5 flipped. So whatever happens to some bytes, the next frame begins at the next FLAG. Sender and receiver need no memory
but the CRC's, which is why hardware likes it.
"""

from __future__ import annotations

import zlib

__all__ = ["CRC_BYTES", "ESCAPE", "FLAG", "Deframer", "frame", "longest"]

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20

#: Behind the payload, least significant byte first.
CRC_BYTES = 4

_STUFFED = {
    bytes([byte]): bytes([ESCAPE, byte ^ FLIP])
    # ESCAPE first: those that it brings are not to be escaped again.
    for byte in (ESCAPE, FLAG)
}


def frame(payload: bytes) -> bytes:
    """The bytes of a frame."""
    body = payload + zlib.crc32(payload).to_bytes(CRC_BYTES, "little")
    for byte, pair in _STUFFED.items():
        body = body.replace(byte, pair)
    return bytes([FLAG]) + body + bytes([FLAG])


def longest(payload: int) -> int:
    """Bytes of the longest frame with so many bytes of payload."""
    return 2 * (payload + CRC_BYTES) + 2


class Deframer:
    """Finds the frames in a stream.

    Args:
        capacity: bytes of the largest payload; longer frames are dropped.

    Attributes:
        damaged: frames that were dropped: a wrong CRC, too long, too short, or an escape without a byte.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.damaged = 0
        self._body = bytearray()
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the frames that end in ``data``, which goes on where the last call's ended."""
        found: list[bytes] = []
        for byte in data:
            if byte == FLAG:
                self._end(found)
            elif byte == ESCAPE:
                self._escaped = True
            elif len(self._body) <= self.capacity + CRC_BYTES:
                self._body.append(byte ^ FLIP if self._escaped else byte)
                self._escaped = False
        return found

    def _end(self, found: list[bytes]) -> None:
        body, escaped = bytes(self._body), self._escaped
        self._body.clear()
        self._escaped = False
        if not body and not escaped:
            # Two frames may share a FLAG, and a line that stands still may send them.
            return
        payload, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
        whole = not escaped and CRC_BYTES <= len(body) <= self.capacity + CRC_BYTES
        if whole and zlib.crc32(payload).to_bytes(CRC_BYTES, "little") == crc:
            found.append(payload)
        else:
            self.damaged += 1
