"""A TCP proxy in front of PostgreSQL's socket that can swallow a COMMIT or the reply to it, fall silent, or refuse."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
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


class Loss(Enum):
    """What of a commit is swallowed before its connection is closed; its caller cannot tell which it was."""

    COMMIT = "commit"
    REPLY = "reply"
    """The transaction is committed."""


class PostgresProxy:
    """Listens on a port of 127.0.0.1 and leads to a Unix socket. `mode` may be set from any thread."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._mode = Mode.FORWARD
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_lose: list[Loss] = []
        self.lost: Counter[Loss] = Counter()
        """How many of each were swallowed."""
        self.refused = 0
        """How many connections were refused."""
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

    def lose(self, losses: Sequence[Loss]) -> None:
        """Do this to the next commits, one each. From any thread."""
        self._to_lose = list(losses)

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if self._mode is Mode.REFUSE:
                self.refused += 1
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

    def next_loss(self) -> Loss | None:
        """What to swallow of the commit that was just seen."""
        return self._to_lose.pop(0) if self._to_lose else None

    @property
    def silent(self) -> bool:
        """Whether nothing goes through."""
        return self._mode is Mode.SILENT


class _Connection:
    def __init__(self, proxy: PostgresProxy) -> None:
        self._proxy = proxy
        self._loss: Loss | None = None
        self._tail = b""

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self._proxy.silent:
                continue
            if COMMIT in self._tail + data:
                self._loss = self._proxy.next_loss()
            if self._loss is Loss.COMMIT:
                self._proxy.lost[Loss.COMMIT] += 1
                return
            self._tail = data[1 - len(COMMIT) :]
            writer.write(data)
            await writer.drain()

    async def replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self._loss is Loss.REPLY:
                # The server has answered, so the commit is done; its caller never hears of it.
                self._proxy.lost[Loss.REPLY] += 1
                return
            if not self._proxy.silent:
                writer.write(data)
                await writer.drain()
