"""HTTP/1.1 requests over connections that are kept alive, one at a time on each. Success is a status of 2xx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Done = Callable[[bool], None]

_LENGTH = b"content-length:"


class HttpConnection(asyncio.Protocol):
    """One connection. Answers must carry a Content-Length, as both servers' do."""

    def __init__(self) -> None:
        self.usable = True
        self._done: Done | None = None
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 # the loop's signature
        self.usable = False
        done, self._done = self._done, None
        if done:
            done(False)

    def call(self, request: bytes, done: Done) -> None:
        """Send one whole request; `done` hears whether its answer was a success."""
        self._done = done
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length_at = head.lower().find(_LENGTH) + len(_LENGTH)
        if len(body) < int(head[length_at:].split(b"\r\n", 1)[0]):
            return
        done, self._done, self._received = self._done, None, b""
        if done:
            done(head[9:10] == b"2")
