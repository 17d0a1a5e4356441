"""Connections of an HTTP endpoint: bounded in number, of one peer and in all, and in the time of each step.

When it is full, a newcomer gets in and older connections are closed: first those on which no token was ever accepted,
those that wait for their caller before those at work, the oldest first. Where a token was accepted and a request is at
work, the connection stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.calls import PROVEN
from service.http.problems import MEDIA_TYPE, HttpProblemError
from service.rpc.limits import Held, Limits, RefusalReason, Refusals, peer_of, to_evict

LARGEST_HEAD = 16 * 1024
"""Bytes of a request's line and headers. A token is at most 8 kB."""

# uvicorn prints the exceptions that reach it, and their texts may hold values. What can fail is caught and logged
# before, without texts.
_SILENT = logging.Logger("leadkeep.http.silent", logging.CRITICAL + 1)


class HttpConnections:
    """The open connections of one endpoint."""

    def __init__(self, limits: Limits, refusals: Refusals) -> None:
        self.limits, self._refusals = limits, refusals
        self._open: set[HttpConnection] = set()
        self._of_peer: dict[str, int] = {}
        self._arriving: dict[HttpConnection, float] = {}
        # In the order of time: the oldest first.
        self._untaken: dict[HttpConnection, None] = {}

    def add(self, connection: HttpConnection) -> None:
        """Take a new connection in, in place of others if need be."""
        peer = connection.peer
        self._open.add(connection)
        self._of_peer[peer] = self._of_peer.get(peer, 0) + 1
        if not self._is_over(peer):
            return
        held = [
            Held(each, each.peer, each.is_proven, each.since, each.is_at_work)
            for each in self._open
            if each is not connection and not (each.is_at_work and each.is_proven)
        ]
        busy = len(self._open) - len(held)
        for victim, reason in to_evict(held, self.limits.connections, self.limits.connections_of_peer, busy=busy):
            self.close(victim.item, reason)
        if self._is_over(peer):
            self.close(connection, "connections")

    def _is_over(self, peer: str) -> bool:
        return len(self._open) > self.limits.connections or self._of_peer.get(peer, 0) > self.limits.connections_of_peer

    def remove(self, connection: HttpConnection) -> None:
        """Forget a connection that was closed."""
        if connection in self._open:
            self._open.remove(connection)
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]
        self._arriving.pop(connection, None)
        self._untaken.pop(connection, None)

    def set_arriving(self, connection: HttpConnection, arriving: bool) -> None:
        """Note whether a part of a body is there and the rest is not."""
        if not arriving:
            self._arriving.pop(connection, None)
            return
        self._arriving.setdefault(connection, time.monotonic())
        limit = self.limits.messages_arriving
        if len(self._arriving) > limit:
            held = [Held(each, each.peer, each.is_proven, since) for each, since in self._arriving.items()]
            for victim, _ in to_evict(held, limit, limit):
                self.close(victim.item, "messages_arriving")

    def set_untaken(self, connection: HttpConnection, untaken: bool) -> None:
        """Note whether an answer waits for the caller to take it."""
        if not untaken:
            self._untaken.pop(connection, None)
            return
        self._untaken.setdefault(connection)
        while sum(each.bytes_untaken for each in self._untaken) > self.limits.untaken_bytes:
            self.close(next(iter(self._untaken)), "answers_not_taken")

    def close(self, connection: HttpConnection, reason: RefusalReason) -> None:
        """Close a connection at a limit."""
        self.remove(connection)
        self._refusals.add("http", reason, connection.peer)
        # Not close(), which waits for what the peer does not read.
        connection.transport.abort()


class HttpConnection(H11Protocol):
    """One connection; a request that does not arrive in time ends it, and so does an answer that is not taken."""

    def __init__(self, connections: HttpConnections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _SILENT
        # Its lines hold query strings; the chain logs calls.
        self.access_log = False
        self._connections = connections
        self.peer = ""
        self.since = self._began = time.monotonic()
        """When its last request ended, or it began."""
        self.is_proven = False
        """Whether a token was accepted on it."""
        self._waiting_for: object = None
        self._waits_since = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether the service has a whole request of it, and its caller waits for an answer."""
        if self.cycle is None or self.cycle.response_complete or self.flow.write_paused:
            return False
        return not self.cycle.more_body

    @property
    def bytes_untaken(self) -> int:
        """Bytes of answers that wait for the peer."""
        return self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to check whether its requests arrive."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0]) if self.client else ""
        self._connections.add(self)
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the checks."""
        if self._watch is not None:
            self._watch.cancel()
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived. An answer that an old connection has yet to begin is its last."""
        super().data_received(data)
        if self.cycle is not None and time.monotonic() - self._began > self._connections.limits.connection_seconds:
            self.cycle.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        self._connections.set_arriving(self, self.conn.their_state is h11.SEND_BODY)

    def pause_writing(self) -> None:
        """Note that the caller does not take an answer as fast as it is sent."""
        super().pause_writing()
        self._connections.set_untaken(self, True)

    def resume_writing(self) -> None:
        """Note that it was taken."""
        super().resume_writing()
        self._connections.set_untaken(self, False)

    def on_response_complete(self) -> None:
        """Note whether the call had a token that was accepted, and close what asks on without one."""
        self.is_proven |= self.scope["state"].get(PROVEN, False)
        self.since = time.monotonic()
        # Requests that were sent before the answer to the first: without a token nobody gets many for one connection.
        # A client must be prepared for it (RFC 9112, 9.3.2), and proxies and browsers do not send so.
        if not self.is_proven and self.conn.trailing_data[0].strip():
            self.transport.close()
        super().on_response_complete()

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

    def _check(self) -> None:
        waiting_for, reason, patience = self._awaited()
        now = time.monotonic()
        if waiting_for is None or waiting_for != self._waiting_for:
            self._waiting_for, self._waits_since = waiting_for, now
        elif now - self._waits_since >= patience:
            self._connections.close(self, reason)
            return
        self._watch = self.loop.call_later(self._connections.limits.arrival_seconds / 2, self._check)

    def _awaited(self) -> tuple[object, RefusalReason, float]:
        """What the caller owes, equal as long as it is the same; what it means to owe it longer than these seconds."""
        limits = self._connections.limits
        if self.bytes_untaken:
            return ("taking", self.cycle), "answer_late", limits.answer_seconds
        # Between two requests uvicorn's keep-alive timer has the watch.
        arriving = self.timeout_keep_alive_task is None and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return (self.cycle, self.conn.their_state) if arriving else None, "message_late", limits.arrival_seconds
