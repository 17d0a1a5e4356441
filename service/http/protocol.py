"""uvicorn, told to keep what callers send out of every log, to wait for nobody for ever, and to leave signals alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import h11
from uvicorn import Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.problems import MEDIA_TYPE, HttpProblemError

LARGEST_HEAD = 16 * 1024
"""Bytes of a request's line and headers. A token is at most 8 kB."""

ARRIVAL_PATIENCE = 10.0
"""Seconds between two looks at a connection: a request that has not arrived in full at the second look is given up. A
caller on a poor line sends the largest request in half of that."""

# uvicorn prints the exceptions that reach it, and their texts may hold values. What can fail is caught and logged
# before, without texts.
_SILENT = logging.Logger("leadkeep.http.silent", logging.CRITICAL + 1)


class DoorServer(Server):
    """uvicorn's server inside a process that handles its signals itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals to the process."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        self.up.set()


class DoorProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _SILENT
        self._arriving: object = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take a connection and watch how its requests arrive."""
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 # uvicorn's text is for people only
        """Refuse what is no HTTP, in the form of every other error."""
        # Once an answer has begun, another would raise, and asyncio would print what h11 could not read.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            detail = f"this is not a valid HTTP request, or its head is longer than {LARGEST_HEAD} bytes"
            body = HttpProblemError(400, detail).body
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            # A request that broke off half-way has its answer now; what reads it must not send a second one.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _look(self) -> None:
        # Between two requests uvicorn's keep-alive timer has the watch.
        waiting = self.timeout_keep_alive_task is None and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        arriving = (self.cycle, self.conn.their_state) if waiting else None
        if arriving is not None and arriving == self._arriving:
            self.transport.close()
            return
        self._arriving = arriving
        self._watch = self.loop.call_later(ARRIVAL_PATIENCE, self._look)
