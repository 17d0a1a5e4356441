"""What callers of the gRPC endpoint hold: connections, half-received messages, streams, answers that are not taken.

gRPC's core accepts connections itself, counts them only in all, and when it is full refuses the newcomer, whoever it
is. But they are descriptors of this process: each is found there, with its peer, and shut down as if the peer had hung
up. That costs calls nothing.

It gives its listener up after an error of accept() other than EMFILE and ECONNABORTED (such as ENFILE, when memory is
short), and leaves new callers in the kernel's queue. Nothing mends a running server: the process has to end.

grpc.aio waits for the message of a unary call by itself, without end, and does not say so. Here each method is a stream
to it, so that the message is awaited in sight; on the wire both are the same, and a call costs no more.

Caveat: grpc.aio frees a call when its method has ended, before it runs the call's callbacks. To ask the context for its
peer then, or to abort it, ends the process (SIGSEGV). So a context is used in the task of its own method alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc

from service.errors import DeadlineTooShortError, LeadkeepError, LeadValidationError, QueueFullError, Violation
from service.rpc.call import Call, answer_by
from service.rpc.limits import Held, Limits, RefusalReason, Refusals, peer_of, to_evict
from service.rpc.status import pushback, status_of

SCAN_SECONDS = 1.0
BUSY_SCAN_SECONDS = 0.1
"""Seconds between two counts of connections, and when more than three quarters of the limit are in use."""

DESCRIPTORS = "/dev/fd"

LISTENER_SECONDS = 1.0
LISTENER_LOOKS = 10
"""Seconds between two looks at what waits to be accepted, and looks in a row at which nothing was: a process that gets
little of a processor accepts some meanwhile."""

TCP_INFO = struct.Struct("8B5I")
"""Linux's `tcp_info` up to `tcpi_unacked`: of a listening socket, how many connections wait to be accepted."""

SWEEP_SECONDS = 1.0
"""Seconds between two looks for what takes too long."""

TAKING_SECONDS = 1.0
"""After this an answer counts as not taken: a client that reads has it within a round trip."""

PROOF_SECONDS = 1.0
"""For so long the token that proved a connection protects a call whose message is awaited: a message comes with its
headers. A proxy lends a proven connection to whoever calls next."""

CALL_BYTES = 16 * 1024
"""What a call costs that waits for its answer to be taken, apart from the answer."""

MOST_PEERS = 10_000
"""Connections that are remembered before those that are closed by now are forgotten."""

STATUS_DETAILS = "grpc-status-details-bin"

Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")

_CODES = {code.value[0]: code for code in grpc.StatusCode}

_Descriptor = tuple[int, int]
"""Number and inode: the same number may be another socket a moment later."""


class ListenerEndedError(Exception):
    """gRPC accepts no new connections any more."""


class GrpcConnections:
    """Connections of the gRPC endpoint at `port`, each by gRPC's name of its peer, such as `ipv4:127.0.0.1:4711`."""

    def __init__(self, port: int, limits: Limits, refusals: Refusals) -> None:
        self._port, self._limits, self._refusals = port, limits, refusals
        self._known: dict[_Descriptor, tuple[str, float]] = {}
        """Peer, "" for what is no connection of the endpoint, and since when."""
        self.proven: dict[str, float] = {}
        """When a token was last accepted on a connection."""
        self.open: dict[str, tuple[_Descriptor, float]] = {}
        """Those that were open when they were last counted."""
        self._listeners: set[_Descriptor] = set()
        self.stopping = False
        self._accepted = 0
        self._to_cut: dict[str, RefusalReason] = {}
        self._wanted = asyncio.Event()

    def cut(self, peer: str, reason: RefusalReason) -> None:
        """Close the connection of a peer soon."""
        self._to_cut[peer] = reason
        self._wanted.set()

    def count(self, peer: str, reason: RefusalReason) -> None:
        """Count what was refused to a peer."""
        self._refusals.add("grpc", reason, _address_of(peer))

    def held(self, item: T, peer: str, since: float) -> Held[T]:
        """What a peer holds open, as it is chosen from when something must be closed."""
        return Held(item, _address_of(peer), peer in self.proven, since)

    async def run(self) -> None:
        """Keep the limits."""
        while True:
            many = len(self._known) > self._limits.connections * 3 // 4
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), BUSY_SCAN_SECONDS if many else SCAN_SECONDS)
            self._wanted.clear()
            with suppress(OSError):  # no descriptor is free to look with: the next look makes up for it
                self._scan()

    async def watch_listeners(self) -> None:
        """Raises ListenerEndedError when gRPC closed its sockets before `stopping`, or accepts nothing any more.

        Only Linux shows the latter.
        """
        dead, waiting, accepted = 0, 0, 0
        while True:
            await asyncio.sleep(LISTENER_SECONDS)
            queues = [_waiting(listener) for listener in self._listeners]
            if queues and set(queues) == {None} and not self.stopping:
                raise ListenerEndedError
            waited, waiting = waiting, sum(filter(None, queues))
            before, accepted = accepted, self._accepted
            # Who hangs up stays in the queue: it shortens only when something is accepted.
            dead = dead + 1 if waiting and waiting >= waited and accepted == before else 0
            if dead == LISTENER_LOOKS:
                raise ListenerEndedError

    def _scan(self) -> None:
        now, known = time.monotonic(), self._known
        self._known = {key: known[key] if key in known else (self._peer(key), now) for key in _sockets()}
        self._accepted += sum(bool(peer) for key, (peer, _) in self._known.items() if key not in known)
        self.open = {peer: (key, since) for key, (peer, since) in self._known.items() if peer}
        self.proven = {peer: at for peer, at in self.proven.items() if peer in self.open}
        to_cut, self._to_cut = self._to_cut, {}
        for peer, reason in to_cut.items():
            self._shut(peer, reason)
        held = [self.held(peer, peer, self.proven.get(peer, since)) for peer, (_, since) in self.open.items()]
        for each, reason in to_evict(held, self._limits.connections, self._limits.connections_of_peer):
            self._shut(each.item, reason)

    def _peer(self, key: _Descriptor) -> str:
        with suppress(OSError), socket.socket(fileno=os.dup(key[0])) as connection:
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if connection.getsockname()[1] == self._port:
                    self._listeners.add(key)
                return ""
            return self._name(connection)
        return ""

    def _name(self, connection: socket.socket) -> str:
        """gRPC's name of the peer; "" when it is no connection of the endpoint. Raises OSError when it is closed."""
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return ""
        if connection.getsockname()[1] != self._port:
            return ""
        host, port = connection.getpeername()[:2]
        host = host.removeprefix("::ffff:")
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def _shut(self, peer: str, reason: RefusalReason) -> None:
        if peer not in self.open:
            return
        key, _ = self.open.pop(peer)
        with suppress(OSError), socket.socket(fileno=os.dup(key[0])) as connection:
            # gRPC may have closed it meanwhile, and something else may have its number.
            if self._name(connection) == peer:
                connection.shutdown(socket.SHUT_RDWR)
                self.count(peer, reason)


async def _send_headers(context: Context) -> None:
    """Begin the answer of a stream. A task that is cancelled meanwhile waits for it.

    gRPC ends no call amid its headers. They are sent alone, because a message beside them waits for its reader.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.gather(sending, return_exceptions=True)
        raise


def _address_of(peer: str) -> str:
    """Whom a peer counts for, by gRPC's name of it."""
    host = peer.partition(":")[2].rpartition(":")[0]
    return peer_of(host.removeprefix("%5B").removesuffix("%5D"))


def _sockets() -> Iterator[_Descriptor]:
    for name in os.listdir(DESCRIPTORS):  # noqa: PTH208 # a Path for each would cost more than the rest
        with suppress(OSError):  # closed since it was listed
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                yield int(name), status.st_ino


def _waiting(listener: _Descriptor) -> int | None:
    """How many connections wait to be accepted at a listening socket; None when it is closed."""
    number, inode = listener
    try:
        if os.fstat(number).st_ino != inode:
            return None
    except OSError:
        return None
    if sys.platform == "linux":
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as listening:
            return int(TCP_INFO.unpack(listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size))[-1])
    return 0


@dataclass(frozen=True, slots=True)
class _Untaken:
    """An answer that its caller has not taken yet; `leave` gives the places of its call back."""

    peer: str
    since: float
    size: int
    leave: Callable[[], None] | None


@dataclass(slots=True)
class _Waiting:
    """A call whose message is awaited, or a stream."""

    since: float
    task: asyncio.Task[Any] | None
    refused: LeadkeepError | None = None
    """With what it ends, once it was chosen to make room."""


class HeldCalls:
    """The calls of the endpoint that wait for their caller. `run` keeps the limits of time."""

    def __init__(self, connections: GrpcConnections, limits: Limits) -> None:
        self._connections, self._limits = connections, limits
        self._arriving: dict[Context, _Waiting] = {}
        self._untaken: dict[Context, _Untaken] = {}
        """In the order of time: the oldest first."""
        self._untaken_bytes = 0
        self._not_reading: set[str] = set()
        """Connections that leave answers untaken, by gRPC's name of the peer: they get no others."""
        self._streams: dict[Context, _Waiting] = {}
        self._ended: Counter[str] = Counter()
        """Calls that ended with an error, and streams, by gRPC's name of the peer."""
        self._ending = 0
        """Calls whose error is being sent: behind a message that nobody reads it waits without end."""

    async def run(self) -> None:
        """End what takes too long."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for context, waiting in list(self._arriving.items()):
                if now - waiting.since > self._limits.arrival_seconds:
                    self._refuse(context, waiting, "message_late", DeadlineTooShortError())
            for context in [
                each for each, untaken in self._untaken.items() if now - untaken.since > self._limits.answer_seconds
            ]:
                self._cut(context, "answer_late")
            left = Counter(each.peer for each in self._untaken.values() if now - each.since > TAKING_SECONDS)
            self._not_reading = {peer for peer, number in left.items() if number >= self._limits.untaken_answers}
            self._end_unclosed()

    def hold_answer(self, context: Context, call: Call, size: int) -> None:
        """Note an answer of so many bytes, which is about to be sent: its call is in flight until it is taken."""
        leave = call.keep_places(call) if call.keep_places is not None else None
        self._untaken[context] = _Untaken(call.peer, time.monotonic(), size + CALL_BYTES, leave)
        self._untaken_bytes += size + CALL_BYTES
        context.add_done_callback(self._on_taken)  # type: ignore[arg-type] # the stubs' context is another one
        while self._untaken_bytes > self._limits.untaken_bytes:
            self._cut(next(iter(self._untaken)), "answers_not_taken")

    async def abort(self, context: Context, error: LeadkeepError, call: Call | None = None) -> None:
        """Answer with an error, by raising in the method. The one place where a gRPC call is aborted.

        `call`: none when it did not reach the chain.
        """
        status = status_of(error)
        self._ended[context.peer()] += 1
        deadline = answer_by(context.time_remaining()) if call is None else call.deadline
        trailers = pushback(error, deadline - time.monotonic()) | ({} if call is None else call.trailers())
        metadata = (*trailers.items(), (STATUS_DETAILS, status.SerializeToString()))
        self._ending += 1
        try:
            await context.abort(_CODES[status.code], status.message, metadata)
        finally:
            self._ending -= 1

    def bounded(self, handler: Any) -> Any:
        """The same method, held to the limits."""
        serializers = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream_of(handler), *serializers)
        answer = handler.unary_unary

        async def respond(_requests: object, context: Context) -> Any:
            if self._not_reading and (peer := context.peer()) in self._not_reading:
                self._connections.count(peer, "answers_not_taken")
                await self.abort(context, QueueFullError())
            return await answer(await self._message(context), context)

        return grpc.stream_unary_rpc_method_handler(respond, *serializers)

    def _stream_of(self, handler: Any) -> Callable[[Any, Context], Awaitable[None]]:
        async def stream(requests: Any, context: Context) -> None:
            waiting = self._begin(context, self._streams, self._limits.streams, "streams")
            try:
                if handler.request_streaming:
                    answering = handler.stream_stream(requests, context)
                else:
                    answering = handler.unary_stream(await self._message(context), context)
                await _send_headers(context)
                async for response in answering:
                    await context.write(response)
            except asyncio.CancelledError:
                await self._end_refused(context, waiting)
                raise
            finally:
                self._streams.pop(context, None)
                self._ended[context.peer()] += 1

        return stream

    async def _message(self, context: Context) -> Any:
        """The one message of the caller."""
        waiting = self._begin(context, self._arriving, self._limits.messages_arriving, "messages_arriving")
        try:
            message = await context.read()
        except asyncio.CancelledError:
            await self._end_refused(context, waiting)
            raise
        finally:
            self._arriving.pop(context, None)
        if message is grpc.aio.EOF:
            self._connections.count(context.peer(), "message_missing")
            await self.abort(context, LeadValidationError([Violation("request", "is missing: there was no message")]))
        return message

    def _begin(self, context: Context, held: dict[Context, _Waiting], limit: int, reason: RefusalReason) -> _Waiting:
        """Note what a call holds from now on, and make room for it."""
        waiting = held[context] = _Waiting(time.monotonic(), asyncio.current_task())
        if len(held) > limit:
            for evicted, _ in to_evict(map(self._evictable, held.items()), limit, limit):
                self._refuse(*evicted.item, reason, QueueFullError())
        return waiting

    def _evictable(self, item: tuple[Context, _Waiting]) -> Held[tuple[Context, _Waiting]]:
        context, waiting = item
        held = self._connections.held(item, context.peer(), waiting.since)
        stays_away = context in self._arriving and time.monotonic() - waiting.since > PROOF_SECONDS
        return replace(held, is_proven=False) if stays_away else held

    def _on_taken(self, context: Context) -> None:
        if (untaken := self._untaken.pop(context, None)) is None:
            return
        self._untaken_bytes -= untaken.size
        if untaken.leave is not None:
            untaken.leave()

    def _cut(self, context: Context, reason: RefusalReason) -> None:
        # An answer that gRPC has cannot be taken back otherwise.
        peer = self._untaken[context].peer
        self._on_taken(context)
        self._connections.cut(peer, reason)

    def _refuse(self, context: Context, waiting: _Waiting, reason: RefusalReason, error: LeadkeepError) -> None:
        """Let a call that still waits end with an error."""
        self._arriving.pop(context, None)
        self._streams.pop(context, None)
        self._connections.count(context.peer(), reason)
        waiting.refused = error
        if waiting.task is not None:
            waiting.task.cancel()

    async def _end_refused(self, context: Context, waiting: _Waiting) -> None:
        """Abort a call if that is why its task was cancelled."""
        if waiting.refused is not None:
            await self.abort(context, waiting.refused)

    def _end_unclosed(self) -> None:
        """Bound the calls that ended but that gRPC cannot close, by closing the connections that may hold them.

        gRPC does not name their connections. But each call has a task of grpc.aio's, and its connection had calls that
        ended with an error, or streams: without a token nothing else can be had.
        """
        if len(self._ended) > MOST_PEERS:
            self._ended = Counter({peer: n for peer, n in self._ended.items() if peer in self._connections.open})
        tasks = Counter(task.get_name().partition("[")[0] for task in asyncio.all_tasks())
        at_work = tasks["HandleExceptions"] - self._ending
        excess = tasks["rpc_task"] - at_work - self._limits.unclosed_calls
        if excess <= 0:
            return
        proven = self._connections.proven
        for peer, number in sorted(self._ended.items(), key=lambda each: (each[0] in proven, -each[1])):
            if excess > 0 and peer in self._connections.open:
                excess -= number
                self._connections.cut(peer, "answers_not_taken")
                del self._ended[peer]
