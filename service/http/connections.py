"""Connections of an HTTP endpoint: bounded in number, of one peer and in all, and in the time of each step.

When it is full, a newcomer gets in and older connections are closed: first those on which no token was ever accepted,
those that wait for their caller before those at work, the oldest first. Where a token was accepted and a request is at
work, the connection stays.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress
from email.utils import formatdate
from types import SimpleNamespace
from typing import Literal

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.http.problems import HttpProblemError
from service.rpc.limits import Held, Limits, RefusalReason, Refusals, peer_of, to_evict

LARGEST_HEAD = 16 * 1024
"""Bytes of a request's line and headers. A token is at most 8 kB."""

PIECE = 512
"""Bytes that are parsed at once: the parser cannot be stopped within, and each request that it finds takes 3 kB. So a
connection holds few requests that wait for the answer to the one before."""

LINGER_SECONDS = 5.0
LINGER_BYTES = 1024 * 1024
"""For how long, and how much, a closed connection is still read: four of the longest bodies, on a fair mobile line."""

# uvicorn prints the exceptions that reach it, and their texts may hold values. What can fail is caught and logged
# before, without texts.
_SILENT = logging.Logger("leadkeep.http.silent", logging.CRITICAL + 1)


class Handshake:
    """A connection whose TLS handshake is not over yet; it counts like any other."""

    is_proven = is_at_work = False
    bytes_untaken = 0

    def __init__(self, accepted: socket.socket, host: str) -> None:
        self.accepted, self.peer = accepted, peer_of(host)
        self.since = time.monotonic()

    @property
    def transport(self) -> Handshake:
        """What ends it."""
        return self

    def abort(self) -> None:
        """End it, as if the peer had hung up."""
        with suppress(OSError):
            self.accepted.shutdown(socket.SHUT_RDWR)


class HttpConnections:
    """The open connections of one endpoint."""

    def __init__(self, limits: Limits, refusals: Refusals) -> None:
        self.limits, self._refusals = limits, refusals
        self._open: set[HttpConnection | Handshake] = set()
        self._arriving: dict[HttpConnection, float] = {}
        # In the order of time: the oldest first.
        self._untaken: dict[HttpConnection, None] = {}

    def add(self, connection: HttpConnection | Handshake) -> None:
        """Take a new connection in, in place of others if need be."""
        self._open.add(connection)
        if not self._is_over(connection.peer):
            return
        held = [
            Held(each, each.peer, each.is_proven, each.since, each.is_at_work)
            for each in self._open
            if each is not connection and not (each.is_at_work and each.is_proven)
        ]
        limits, busy = self.limits, len(self._open) - len(held)
        for victim, reason in to_evict(held, limits.connections, limits.connections_of_peer, busy=busy):
            self.close(victim.item, reason)
        if self._is_over(connection.peer):
            self.close(connection, "connections")

    def _is_over(self, peer: str) -> bool:
        in_all, of_peer = self.limits.connections, self.limits.connections_of_peer
        return len(self._open) > in_all or (
            len(self._open) > of_peer and sum(each.peer == peer for each in self._open) > of_peer
        )

    def remove(self, connection: HttpConnection | Handshake) -> None:
        """Forget a connection that was closed."""
        self._open.discard(connection)
        if isinstance(connection, HttpConnection):
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

    def close(self, connection: HttpConnection | Handshake, reason: RefusalReason) -> None:
        """Close a connection at a limit."""
        self.remove(connection)
        self._refusals.add("http", reason, connection.peer)
        # Not close(), which waits for what the peer does not read.
        connection.transport.abort()


class HttpConnection(HttpToolsProtocol):
    """One connection; a request that does not arrive in time ends it, and so does an answer that is not taken."""

    def __init__(self, connections: HttpConnections, config: Config, state: ServerState) -> None:
        # What each request carries to whoever handles it.
        super().__init__(config, state, app_state={"connection": self})
        self.logger = _SILENT
        self._connections = connections
        self.peer = ""
        self.since = self._began = time.monotonic()
        """When its last request ended, or it began."""
        self.is_proven = False
        """Whether a token was accepted on it."""
        self._unparsed = memoryview(b"")
        self._owed: Literal["head", "body"] = "head"
        self._bytes_since_event = 0
        """What the parser holds of a head, of a chunk's head or of trailers, at most."""
        self._lingers = False
        self._bytes_dropped = 0
        self._waiting_for: object = None
        self._waits_since = 0.0
        self._watch: asyncio.TimerHandle | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether the service has a whole request of it, and its caller waits for an answer."""
        return self._owes_answer and not self.flow.write_paused

    @property
    def bytes_untaken(self) -> int:
        """Bytes of answers that wait for the peer."""
        return self.transport.get_write_buffer_size()

    @property
    def _answers(self) -> bool:
        """Whether the answer to the last request is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _owes_answer(self) -> bool:
        """Whether a whole request has no complete answer."""
        return bool(self.pipeline) or (self._answers and not self.cycle.more_body)

    @property
    def _arrives(self) -> bool:
        """Whether a part of a body is there, and the caller may send the rest."""
        return self._owed == "body" and not self.pipeline and not self._lingers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to check whether its requests arrive."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0]) if self.client else ""
        self._answers_to = SimpleNamespace(
            write=transport.write, is_closing=transport.is_closing, close=self._close_behind_answer
        )
        self._connections.add(self)
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the checks."""
        if self._watch is not None:
            self._watch.cancel()
        self._connections.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        if self._lingers:
            self._bytes_dropped += len(data)
            if self._bytes_dropped > LINGER_BYTES:
                self.transport.close()
            return
        self._unset_keepalive_if_required()
        self._unparsed = memoryview(bytes(self._unparsed) + data if self._unparsed else data)
        self._parse()

    def on_headers_complete(self) -> None:
        """Begin the request. Its target stays as it was sent: what it means is decided by the paths."""
        if self._declines_upgrade:
            return
        if not _is_accepted(self.parser.get_http_version(), self.url, self.headers):
            raise ValueError("the parser ends, and so does the connection")
        target, self.url = self.url, b"/"
        self.server_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        super().on_headers_complete()
        if self.parser.get_http_version() == "1.0":
            # It would take the 100 for its answer (RFC 9110, 10.1.1 and 15.2).
            self.cycle.waiting_for_100_continue = False
        self.cycle.transport = self._answers_to  # type: ignore[assignment] # nothing else of it is used
        self.scope["raw_path"], _, self.scope["query_string"] = target.partition(b"?")
        # Trailers, which come behind the body, are no headers.
        self.headers = []
        self._owed, self._bytes_since_event = "body", 0
        if (
            time.monotonic() - self._began > self._connections.limits.connection_seconds
            # CONNECT, the one upgrade that gets here: behind it stands no HTTP.
            or self.parser.should_upgrade()
        ):
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._bytes_since_event = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        if self._declines_upgrade:
            return
        self._owed, self._bytes_since_event = "head", 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Note that the caller does not take an answer as fast as it is sent."""
        super().pause_writing()
        self._connections.set_untaken(self, True)

    def resume_writing(self) -> None:
        """Note that it was taken."""
        super().resume_writing()
        self._connections.set_untaken(self, False)

    def on_response_complete(self) -> None:
        """Go on with what was sent behind the request, or close."""
        self.since = time.monotonic()
        # Requests that were sent before the answer to the first: without a token nobody gets many for one connection.
        # A client must be prepared for it (RFC 9112, 9.3.2), and proxies and browsers do not send so.
        if not self.is_proven and (self.pipeline or self._unparsed):
            self._close_behind_answer()
        if self._lingers:
            return
        super().on_response_complete()
        self._parse()

    @property
    def _declines_upgrade(self) -> bool:
        """Whether the request offers another protocol. The parser takes what stands behind its head for that one."""
        return self._owed == "head" and self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _without_upgrade(self) -> bytes:
        """The head anew without the offer, which is declined by not answering it (RFC 9110, 7.8)."""
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = (b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade")
        return b"\r\n".join((line, *headers, b"", b""))

    def _parse(self) -> None:
        """Parse what was received, until a request waits for the answer to the one before."""
        while self._unparsed and not self.pipeline and not self.transport.is_closing():
            piece = self._unparsed[:PIECE]
            self._bytes_since_event += len(piece)
            try:
                if self._bytes_since_event > LARGEST_HEAD + PIECE:
                    raise httptools.HttpParserError  # noqa: TRY301 # it ends as every other fault
                self.parser.feed_data(piece)
                self._unparsed = self._unparsed[PIECE:]
            except httptools.HttpParserUpgrade as upgrade:
                behind, self._unparsed = self._unparsed[upgrade.args[0] :], memoryview(b"")
                self._bytes_since_event = 0
                # Behind CONNECT stands no HTTP.
                if self._declines_upgrade:
                    self._unparsed = memoryview(self._without_upgrade() + bytes(behind))
                    self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                # What is wrong stands behind a request that is answered first.
                if self._owes_answer:
                    break
                self._refuse()
        if self._unparsed:
            # Whoever reads the body of the request that is answered has the socket read.
            self.flow.pause_reading()
        self._connections.set_arriving(self, self._arrives)

    def _refuse(self) -> None:
        """Refuse what is no HTTP, in the form of every other error."""
        if self._owed == "head" or not self.cycle.response_started:
            detail = (
                "this is not a valid HTTP request (one Host; one Content-Length, or Transfer-Encoding: chunked), "
                f"or its head is longer than {LARGEST_HEAD} bytes"
            )
            status = 431 if self._bytes_since_event > LARGEST_HEAD else 400
            refusal = HttpProblemError(status, detail, {"connection": "close"}).response()
            head = b"".join(b"%s: %s\r\n" % each for each in refusal.raw_headers)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + refusal.body)
        if self._answers:
            # A request that broke off half-way has its answer now; what reads it must not send a second one.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._close_behind_answer()

    def _close_behind_answer(self) -> None:
        """Close the connection behind its last answer. What the caller is still sending is read for a moment.

        Closed with bytes unread, the kernel would reset it, and the caller might lose the answer.
        """
        is_read = not (self._unparsed or self.pipeline or self._owed == "body")
        if is_read or self.transport.is_closing():
            self.transport.close()
            return
        self._lingers = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
        self.flow.resume_reading()
        self._connections.set_arriving(self, False)
        self._unparsed = memoryview(b"")
        self.pipeline.clear()

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
        """What the connection waits for, equal during one wait; why it is closed, and after how many seconds of it."""
        limits = self._connections.limits
        if self.bytes_untaken:
            return ("taking", self.cycle), "answer_late", limits.answer_seconds
        # Between two requests uvicorn's keep-alive timer has the watch.
        is_kept = self.timeout_keep_alive_task is not None
        arriving = self._arrives or not (is_kept or self._answers or self._lingers)
        return (self.cycle, self._owed) if arriving else None, "message_late", limits.arrival_seconds


def _is_accepted(version: str, target: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a head is short enough, and what stands between caller and service reads the same host, length and target
    in it (RFC 9112, 3.2 and 6.1)."""
    names = [name for name, _ in headers]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    return (
        len(target) + sum(len(name) + len(value) for name, value in headers) <= LARGEST_HEAD
        and version in ("1.0", "1.1")
        and target.isascii()
        and names.count(b"host") in ((0, 1) if version == "1.0" else (1,))
        and (not codings or (codings == [b"chunked"] and version == "1.1" and b"content-length" not in names))
    )
