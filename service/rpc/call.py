"""What every interceptor knows of a call, whichever door it came through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, cast

from google.protobuf.message import Message

from service.access import Caller
from service.errors import LeadkeepError


@dataclass(slots=True, kw_only=True)
class Call:
    """One call on its way through the chain."""

    rpc: str
    """The method's short name, such as `CreateLead`."""
    door: str
    """`grpc` or `http`."""
    peer: str
    metadata: Mapping[str, str]
    """Metadata or headers, keys in lower case."""
    deadline: float
    """When the service must have answered, on the monotonic clock: the caller's deadline less a margin."""
    fault: LeadkeepError | None = None
    """Why the request could not be read. It is told only to callers who may make the call; `request` is empty then."""
    id: str = ""
    """Names the call in the log and in the trailing metadata `x-request-id`."""
    caller: Caller | None = None
    shown_lead_id: str = ""
    """The lead that an answer is about, where its messages do not say so; the request may have named an alias of it."""
    retries: int = 0
    """Attempts that went before the answer: the client's own, and the service's on its storage."""
    trailing: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call, Message], Coroutine[Any, Any, Message]]
Interceptor = Callable[[Call, Message, Handler], Coroutine[Any, Any, Message]]


def compose(interceptors: Sequence[Interceptor], handler: Handler) -> Handler:
    """The handler behind all interceptors, the first one outermost."""

    def wrap(inner: Handler, interceptor: Interceptor) -> Handler:
        # Not a coroutine itself: each one more is passed through whenever a call goes on.
        def handle(call: Call, request: Message) -> Coroutine[Any, Any, Message]:
            return interceptor(call, request, inner)

        return handle

    return reduce(wrap, reversed(interceptors), handler)


def end_wait(over: asyncio.Future[None]) -> None:
    """Let who waits for `over` go on, unless it does already."""
    if not over.done():
        over.set_result(None)


class Work:
    """What runs on behalf of callers, and goes on when they have gone."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Message]] = set()

    def begin(self, coroutine: Coroutine[Any, Any, Message], over: asyncio.Future[None]) -> asyncio.Task[Message]:
        """Run it in a task that nobody but this process's end can cancel; `over` hears of its end.

        Whoever waits for `over` asks the task for its outcome, or sees to it that somebody does: asyncio prints an
        exception that nobody has asked for, and its text may hold values.
        """
        task = asyncio.create_task(self._run(coroutine, over))
        self._running.add(task)
        return task

    async def finish(self, seconds: float) -> None:
        """Wait until all is done, `seconds` at most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    async def _run(self, coroutine: Coroutine[Any, Any, Message], over: asyncio.Future[None]) -> Message:
        try:
            return await coroutine
        finally:
            # Here, not in a callback, which takes a turn of the loop more: the task is done before anybody who waits
            # can run.
            self._running.discard(cast("asyncio.Task[Message]", asyncio.current_task()))
            end_wait(over)
