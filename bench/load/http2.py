"""Unary gRPC calls over HTTP/2, as few bytes of Python as they can be made with.

Headers are sent once with incremental indexing and then by their index, as gRPC's own clients do. A call succeeded when
its stream brought a message: gRPC sends none beside an error. What the error was is not looked at.

Caveat: it trusts the server to widen its receive window in time, and keeps few calls on a connection for that.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

Done = Callable[[bool], None]

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_WINDOW = 2**31 - 1
_PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + struct.pack(">BHBBLHL", 0, 6, _SETTINGS, 0, 0, 4, _WINDOW)  # no server waits for this client's window
    + struct.pack(">BHBBLL", 0, 4, 8, 0, 0, _WINDOW - 65_535)
)
_METHOD_POST, _SCHEME_HTTP = b"\x83", b"\x86"
_FIRST_DYNAMIC = 62
_STATIC_NAMES = {b":authority": 1, b":path": 4, b"content-type": 31, b"user-agent": 58, b"authorization": 23}


class GrpcConnection(asyncio.Protocol):
    """One connection on which every call has the same method and metadata."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._first_headers = _METHOD_POST + _SCHEME_HTTP + b"".join(_literal(*header) for header in headers)
        last = _FIRST_DYNAMIC + len(headers) - 1
        self._later_headers = _METHOD_POST + _SCHEME_HTTP + bytes(0x80 | (last - n) for n in range(len(headers)))
        self.usable = True
        self._next_stream = 1
        self._waiting: dict[int, Done] = {}
        self._with_message: set[int] = set()
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(_PREFACE)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # the loop's signature
        self.usable = False
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(False)

    def call(self, message: bytes, done: Done) -> None:
        """Send one call; `done` hears whether it was answered with a message."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = self._first_headers if stream == 1 else self._later_headers
        self._waiting[stream] = done
        length = len(message)
        self._transport.write(
            _frame(len(headers), _HEADERS, _END_HEADERS, stream)
            + headers
            + _frame(length + 5, _DATA, _END_STREAM, stream)
            + struct.pack(">BL", 0, length)
            + message
        )

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBL", data, at)
            length = high << 16 | low
            if end - at < 9 + length:
                break
            if kind == _DATA and length:
                self._with_message.add(stream)
            elif kind == _SETTINGS and not flags & _ACK:
                self._transport.write(_frame(0, _SETTINGS, _ACK, 0))
            elif kind == _PING and not flags & _ACK:
                self._transport.write(_frame(8, _PING, _ACK, 0) + data[at + 9 : at + 17])
            elif kind == _GOAWAY:
                self._transport.close()
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                answered = stream in self._with_message and kind != _RESET
                self._with_message.discard(stream)
                if done := self._waiting.pop(stream, None):
                    done(answered)
            at += 9 + length
        self._rest = data[at:]


def _frame(length: int, kind: int, flags: int, stream: int) -> bytes:
    return struct.pack(">BHBBL", length >> 16, length & 0xFFFF, kind, flags, stream)


def _literal(name: bytes, value: bytes) -> bytes:
    """A header with incremental indexing, without Huffman coding."""
    if index := _STATIC_NAMES.get(name):
        return bytes([0x40 | index]) + _string(value)
    return b"\x40" + _string(name) + _string(value)


def _string(value: bytes) -> bytes:
    """A length with a prefix of 7 bits, and the bytes."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    encoded, rest = b"\x7f", len(value) - 127
    while rest >= 128:
        encoded, rest = encoded + bytes([rest & 127 | 128]), rest >> 7
    return encoded + bytes([rest]) + value
