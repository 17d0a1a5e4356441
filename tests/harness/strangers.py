"""`python -m tests.harness.strangers KIND GRPC HTTP SECONDS [TOKEN]`: callers who hold what they can, from 127.0.0.2.

Each kind opens its connections, or its calls on 40 of them, and opens them again when they are closed, at a bounded
rate: the point is what is held, not how fast it is asked for. What it held at most is printed at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

SOURCE = "127.0.0.2"
CALLING_CONNECTIONS = 40
RATE = 300
"""Connections, or calls, opened a second at most."""

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4

CREATE_LEAD = b"/leadkeep.v1.LeadService/CreateLead"
LIST_LEADS = b"/leadkeep.v1.LeadService/ListLeads"
WATCH = b"/grpc.health.v1.Health/Watch"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    length = len(payload)
    return struct.pack(">BHBBL", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def preface(window: int = 65_535) -> bytes:
    """What a client's connection begins with; `window` is the bytes of an answer that it takes unasked."""
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, window))


def call_headers(path: bytes, token: str = "") -> bytes:
    """The headers of a call, none of them compressed."""
    fields = [(b":path", path), (b":authority", b"x"), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    if token:
        fields.append((b"authorization", b"Bearer " + token.encode()))
    return b"\x83\x86" + b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    length, rest = b"\x7f", len(text) - 127
    while rest >= 128:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return length + bytes([rest]) + text


@dataclass
class Calls:
    """Calls of one kind: what is sent of each, and whether its answer is taken."""

    path: bytes
    announced: int = 0
    """Bytes of the message by its own length; 0: there is no message."""
    sent: int = 0
    half_close: bool = False
    window: int = 65_535
    token: str = ""


class Count:
    """What is open now, what was open at most, and what was opened in all."""

    def __init__(self) -> None:
        self.now = self.most = self.opened = 0

    def add(self) -> None:
        self.now, self.opened = self.now + 1, self.opened + 1
        self.most = max(self.most, self.now)

    def remove(self, number: int = 1) -> None:
        self.now -= number


class Http2Connection:
    """A connection that keeps as many calls open as it may."""

    def __init__(self, calls: Calls, count: Count, address: tuple[str, int]) -> None:
        self._calls, self._count, self._address = calls, count, address
        self._unsent: dict[int, int] = {}
        self._window, self._most = 65_535, 100
        self._next = 1

    async def run(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Open calls until the connection is closed."""
        reader, writer = await asyncio.open_connection(*self._address, local_addr=(SOURCE, 0))
        writer.write(preface(self._calls.window))
        opening = asyncio.create_task(self._open_calls(writer, turn))
        try:
            await self._read(reader, writer)
        finally:
            opening.cancel()
            self._count.remove(len(self._unsent))
            writer.close()

    async def _open_calls(self, writer: asyncio.StreamWriter, turn: Callable[[], Awaitable[None]]) -> None:
        calls = self._calls
        while True:
            await turn()
            if len(self._unsent) >= self._most:
                continue
            stream, self._next = self._next, self._next + 2
            flags = _END_HEADERS | (_END_STREAM if calls.half_close and not calls.sent else 0)
            writer.write(frame(_HEADERS, flags, stream, call_headers(calls.path, calls.token)))
            self._unsent[stream] = calls.sent
            self._count.add()
            if calls.sent:
                self._send(writer, stream, self._window, struct.pack(">BL", 0, calls.announced))
            with suppress(ConnectionError):
                await writer.drain()

    def _send(self, writer: asyncio.StreamWriter, stream: int, window: int, head: bytes = b"") -> None:
        size = min(window, self._unsent[stream])
        self._unsent[stream] -= size
        last = _END_STREAM if self._calls.half_close and not self._unsent[stream] else 0
        data = head + b"x" * (size - len(head))
        for at in range(0, max(len(data), 1), 16_384):
            writer.write(frame(_DATA, last if at + 16_384 >= len(data) else 0, stream, data[at : at + 16_384]))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(9)
            high, low, kind, flags, stream = struct.unpack(">BHBBL", head)
            body = await reader.readexactly(high << 16 | low)
            if kind == _SETTINGS and not flags & _ACK:
                settings = dict(struct.unpack_from(">HL", body, at) for at in range(0, len(body), 6))
                self._window, self._most = settings.get(4, self._window), settings.get(3, 2**31)
                writer.write(frame(_SETTINGS, _ACK, 0))
            elif kind == _PING and not flags & _ACK:
                writer.write(frame(_PING, _ACK, 0, body))
            elif kind == _GOAWAY:
                return
            elif kind == _WINDOW_UPDATE and self._unsent.get(stream):
                self._send(writer, stream, struct.unpack(">L", body)[0])
            elif (kind == _RESET or (kind in (_HEADERS, _DATA) and flags & _END_STREAM)) and stream in self._unsent:
                del self._unsent[stream]
                self._count.remove()


@dataclass
class Connections:
    """Connections of one kind: what is sent on each, and what follows bit by bit."""

    first: bytes
    number: int
    at_http: bool
    trickle: bytes = b""
    reads: bool = True

    async def run(self, count: Count, address: tuple[str, int]) -> None:
        """Hold one until it is closed."""
        reader, writer = await asyncio.open_connection(*address, local_addr=(SOURCE, 0), limit=1024)
        count.add()
        try:
            writer.write(self.first)
            if self.trickle:
                while not reader.at_eof() and not writer.is_closing():
                    writer.write(self.trickle)
                    await asyncio.sleep(3)
            elif self.reads:
                while await reader.read(65_536):
                    pass
            else:
                # The stream's limit stops the reading of the socket.
                await writer.drain()
                while not writer.is_closing() and not reader.at_eof():
                    await asyncio.sleep(1)
                    writer.write(b"\r\n")
        finally:
            count.remove()
            writer.close()


_POST = b"POST /api/leads HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def kinds(token: str = "") -> dict[str, Calls | Connections]:
    """Every kind of stranger, by name. Only the unread lists have a token."""
    return {
        "half-sent messages": Calls(CREATE_LEAD, announced=200_000, sent=60_000),
        "watches": Calls(WATCH, announced=0, sent=5, half_close=True),
        "half-closed calls": Calls(CREATE_LEAD, half_close=True),
        "lists nobody reads": Calls(LIST_LEADS, announced=0, sent=5, half_close=True, window=0, token=token),
        "idle": Connections(preface(), 5000, at_http=False),
        "mute": Connections(b"", 5000, at_http=False),
        "garbage": Connections(random.Random(1).randbytes(400), 5000, at_http=False),
        "slow heads": Connections(b"GET /api/leads HTTP/1.1\r\n", 1000, at_http=True, trickle=b"x-a: b\r\n"),
        "slow bodies": Connections(
            _POST + b"content-length: 260000\r\n\r\n" + b" " * 200_000, 1000, at_http=True, trickle=b" "
        ),
        "idle at HTTP": Connections(b"", 1000, at_http=True),
        "pipelines nobody reads": Connections(
            b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200, 1000, at_http=True, reads=False
        ),
    }


async def besiege(kind: Calls | Connections, grpc: tuple[str, int], http: tuple[str, int], seconds: float) -> Count:
    """Hold what can be held of this kind for so long."""
    count = Count()
    allowed = asyncio.Semaphore(0)

    async def pace() -> None:
        while True:
            for _ in range(max(0, RATE // 20 - allowed._value)):  # noqa: SLF001 # no more than a turn is saved up
                allowed.release()
            await asyncio.sleep(0.05)

    async def turn() -> None:
        await allowed.acquire()

    async def again() -> None:
        while True:
            if isinstance(kind, Calls):
                with suppress(OSError, asyncio.IncompleteReadError):
                    await Http2Connection(kind, count, grpc).run(turn)
            else:
                await turn()
                with suppress(OSError):
                    await kind.run(count, http if kind.at_http else grpc)
            await asyncio.sleep(0.1)

    number = kind.number if isinstance(kind, Connections) else CALLING_CONNECTIONS
    tasks = [asyncio.create_task(each) for each in (pace(), *(again() for _ in range(number)))]
    try:
        await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return count


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(kind: str, grpc: str, http: str, seconds: str, token: str = "") -> None:
    """Be strangers of one kind."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.nice(5)
    count = asyncio.run(besiege(kinds(token)[kind], _address(grpc), _address(http), float(seconds)))
    sys.stdout.write(f"opened {count.opened}, held {count.most} at most\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
