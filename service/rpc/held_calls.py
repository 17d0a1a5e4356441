"""What calls of the gRPC endpoint hold: half-received messages, streams, answers that are not taken.

grpc.aio waits for the message of a unary call by itself, without end, and does not say so. Here each method is a stream
to it, so that the message is awaited in sight; on the wire both are the same, and a call costs no more.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from service.errors import DeadlineTooShortError, LeadkeepError, LeadValidationError, QueueFullError, Violation
from service.rpc.call import Call, answer_by
from service.rpc.connections import GrpcConnections, host_of
from service.rpc.limits import Held, Limits, RefusalReason, Refusals, peer_of, to_evict
from service.rpc.status import pushback, status_of

SWEEP_SECONDS = 1.0
"""Seconds between two looks for what takes too long."""

Context = grpc.aio.ServicerContext[Any, Any]

TAKING_SECONDS = 1.0
"""After this an answer counts as not taken: a client that reads has it within a round trip."""

CALL_BYTES = 16 * 1024
"""What a call costs that waits for its answer to be taken, apart from the answer."""

MOST_PEERS = 10_000
"""Connections that are remembered before those that are closed by now are forgotten."""

STATUS_DETAILS = "grpc-status-details-bin"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class _Untaken:
    """An answer that its caller has not taken yet; `leave` gives the places of its call back."""

    since: float
    size: int
    leave: Callable[[], None] | None


class HeldCalls:
    """The calls of the endpoint that wait for their caller. `run` keeps the limits of time."""

    def __init__(self, connections: GrpcConnections, limits: Limits, refusals: Refusals) -> None:
        self._limits = limits
        self._connections, self._refusals = connections, refusals
        self._arriving: dict[Context, float] = {}
        self._untaken: dict[Context, _Untaken] = {}
        """In the order of time: the oldest first."""
        self._untaken_bytes = 0
        self._not_reading: set[str] = set()
        """Connections that leave answers untaken, by gRPC's name of the peer: they get no others."""
        self._streams: dict[Context, tuple[float, asyncio.Task[Any] | None]] = {}
        self._ended: Counter[str] = Counter()
        """Calls that ended with an error, and streams, by gRPC's name of the peer."""
        self._ending: set[asyncio.Task[None]] = set()

    def bounded(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> dict[str, Any]:
        """The same methods, held to the limits."""
        return {name: self._bounded(handler) for name, handler in handlers.items()}

    async def run(self) -> None:
        """End what takes too long."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for context in [
                each for each, since in self._arriving.items() if now - since > self._limits.arrival_seconds
            ]:
                self._refuse(context, "message_late", DeadlineTooShortError())
            for context in [
                each for each, untaken in self._untaken.items() if now - untaken.since > self._limits.answer_seconds
            ]:
                self._cut(context, "answer_late")
            left = Counter(
                each.peer() for each, untaken in self._untaken.items() if now - untaken.since > TAKING_SECONDS
            )
            self._not_reading = {peer for peer, number in left.items() if number >= self._limits.untaken_answers}
            self._end_unclosed()

    def prove(self, peer: str) -> None:
        """Note that a token was accepted on the connection of a peer, by gRPC's name of it."""
        self._connections.proven[peer] = time.monotonic()

    def hold_answer(self, context: Context, call: Call, size: int) -> None:
        """Note an answer of so many bytes, which is about to be sent: its call is in flight until it is taken."""
        leave = call.keep_places(call) if call.keep_places is not None else None
        self._untaken[context] = _Untaken(time.monotonic(), size + CALL_BYTES, leave)
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
        await context.abort(_CODES[status.code], status.message, metadata)

    def _bounded(self, handler: Any) -> Any:
        serializers = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream_of(handler), *serializers)
        answer = handler.unary_unary

        async def respond(_requests: object, context: Context) -> Any:
            if self._not_reading and (peer := context.peer()) in self._not_reading:
                self._refusals.add("grpc", "answers_not_taken", peer_of(host_of(peer)))
                await self.abort(context, QueueFullError())
            return await answer(await self._message(context), context)

        return grpc.stream_unary_rpc_method_handler(respond, *serializers)

    def _stream_of(self, handler: Any) -> Callable[[Any, Context], Awaitable[None]]:
        async def stream(requests: Any, context: Context) -> None:
            self._streams[context] = (time.monotonic(), asyncio.current_task())
            if len(self._streams) > self._limits.streams:
                begun = {each: since for each, (since, _) in self._streams.items()}
                self._make_room(begun, self._limits.streams, "streams")
            try:
                if handler.request_streaming:
                    answering = handler.stream_stream(requests, context)
                else:
                    answering = handler.unary_stream(await self._message(context), context)
                if inspect.isasyncgen(answering):
                    async for response in answering:
                        await context.write(response)
                else:
                    await answering
            finally:
                self._streams.pop(context, None)
                self._ended[context.peer()] += 1

        return stream

    async def _message(self, context: Context) -> Any:
        """The one message of the caller."""
        self._arriving[context] = time.monotonic()
        if len(self._arriving) > self._limits.messages_arriving:
            self._make_room(self._arriving, self._limits.messages_arriving, "messages_arriving")
        try:
            message = await context.read()
        finally:
            self._arriving.pop(context, None)
        if message is grpc.aio.EOF:
            self._refusals.add("grpc", "message_missing", peer_of(host_of(context.peer())))
            await self.abort(context, LeadValidationError([Violation("request", "is missing: there was no message")]))
        return message

    def _on_taken(self, context: Context) -> None:
        if (untaken := self._untaken.pop(context, None)) is None:
            return
        self._untaken_bytes -= untaken.size
        if untaken.leave is not None:
            untaken.leave()

    def _cut(self, context: Context, reason: RefusalReason) -> None:
        # An answer that gRPC has cannot be taken back otherwise.
        self._on_taken(context)
        self._connections.cut(context.peer(), reason)

    def _make_room(self, held: Mapping[Context, float], limit: int, reason: RefusalReason) -> None:
        proven = self._connections.proven
        peers = ((context, context.peer(), since) for context, since in held.items())
        evictable = [Held(context, peer_of(host_of(peer)), peer in proven, since) for context, peer, since in peers]
        for each, _ in to_evict(evictable, limit, limit):
            self._refuse(each.item, reason, QueueFullError())

    def _refuse(self, context: Context, reason: RefusalReason, error: LeadkeepError) -> None:
        self._arriving.pop(context, None)
        _, serving = self._streams.pop(context, (0.0, None))
        self._refusals.add("grpc", reason, peer_of(host_of(context.peer())))
        ending = asyncio.create_task(self._end(context, serving, error))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, context: Context, serving: asyncio.Task[Any] | None, error: LeadkeepError) -> None:
        # What it raises is meant for the method that is being ended.
        with suppress(Exception):
            await self.abort(context, error)
        if serving is not None:
            serving.cancel()

    def _end_unclosed(self) -> None:
        """Bound the calls that ended and that gRPC cannot close, because their callers do not take the end.

        Nothing says whose they are. But each has a task of grpc.aio's, and its connection had calls that ended with an
        error, or streams: without a token nothing else can be had.
        """
        if len(self._ended) > MOST_PEERS:
            self._ended = Counter({peer: n for peer, n in self._ended.items() if self._connections.has(peer)})
        tasks = Counter(task.get_name().partition("[")[0] for task in asyncio.all_tasks())
        excess = tasks["rpc_task"] - tasks["HandleExceptions"] - self._limits.unclosed_calls
        if excess <= 0:
            return
        proven = self._connections.proven
        for peer, number in sorted(self._ended.items(), key=lambda each: (each[0] in proven, -each[1])):
            if excess > 0 and self._connections.has(peer):
                excess -= number
                self._connections.cut(peer, "answers_not_taken")
                del self._ended[peer]
