"""A TCP proxy in front of PostgreSQL's socket that can swallow the reply to a COMMIT, fall silent, or refuse."""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from pathlib import Path

CHUNK = 65536
COMMIT = b"COMMIT\0"
"""How psycopg ends a transaction, as a simple query or inside a Parse message."""


class Mode(Enum):
    """What becomes of bytes and of new connections."""

    FORWARD = "forward"
    SILENT = "silent"
    """Connections are taken and stay open, and nothing goes through in either direction."""
    REFUSE = "refuse"
    """Every connection is closed."""


class PostgresProxy:
    """Listens on a port of 127.0.0.1 and leads to a Unix socket. `mode` may be set from any thread."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._mode = Mode.FORWARD
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_drop = 0
        self.dropped = 0
        """How many replies to a COMMIT were swallowed."""
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self._close_all()

    async def set_mode(self, mode: Mode) -> None:
        """From now on, for open connections too."""
        self._mode = mode
        if mode is not Mode.SILENT:
            # What was swallowed while it was silent is missing in every connection of that time.
            self._close_all()

    def drop_replies(self, number: int) -> None:
        """Swallow the replies to the next `number` COMMITs, and close each one's connection."""
        self._to_drop = number

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self._mode is Mode.REFUSE:
                writer.close()
                return
            await self._connect(reader, writer)
        writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(self._socket))
        connection = _Connection(self)
        self._writers |= {writer, to_server}
        directions = {
            asyncio.create_task(connection.requests(reader, to_server)),
            asyncio.create_task(connection.replies(from_server, writer)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers -= {writer, to_server}
            to_server.close()
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)

    def take_drop(self) -> bool:
        """Whether the COMMIT that was just seen is one to lose the reply of."""
        if not self._to_drop:
            return False
        self._to_drop -= 1
        return True

    @property
    def silent(self) -> bool:
        """Whether nothing goes through."""
        return self._mode is Mode.SILENT


class _Connection:
    def __init__(self, proxy: PostgresProxy) -> None:
        self._proxy = proxy
        self._drop_reply = False
        self._tail = b""

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self._proxy.silent:
                continue
            if COMMIT in self._tail + data and self._proxy.take_drop():
                self._drop_reply = True
            self._tail = data[1 - len(COMMIT) :]
            writer.write(data)
            await writer.drain()

    async def replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self._drop_reply:
                # The server has answered, so the commit is done; its caller never hears of it.
                self._proxy.dropped += 1
                return
            if not self._proxy.silent:
                writer.write(data)
                await writer.drain()
