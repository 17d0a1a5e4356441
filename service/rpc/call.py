"""A call, the chain of interceptors that it passes, and the work that goes on when its caller has gone.

Nothing here knows a transport: each endpoint makes a `Call` and takes its methods from `chained`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any
from uuid import UUID

from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.access import Caller
from service.errors import LeadkeepError

SERVICE = pb.DESCRIPTOR.services_by_name["LeadService"]

DEFAULT_DEADLINE = 30.0
"""Seconds for the call of a caller who sets no deadline: longer than any healthy answer takes, and short enough that
nobody waits for ever."""

ANSWER_MARGIN = 0.15
"""Seconds before the caller's deadline at which the service answers, so that the answer arrives in time even from a
busy process; never more than a tenth of the time that the caller gave."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One call on its way through the chain."""

    rpc: str
    """The method's short name, such as `CreateLead`."""
    transport: str
    """`grpc` or `http`."""
    peer: str
    metadata: Mapping[str, str]
    """Metadata or headers, keys in lower case."""
    deadline: float
    """When the service must have answered, on the monotonic clock: the caller's deadline less a margin."""
    fault: LeadkeepError | None = None
    """Why the request could not be read. Shown only to callers who may make the call; `request` is empty then."""
    id: str = ""
    """Names the call in the log and in the trailing metadata `x-request-id`."""
    caller: Caller | None = None
    shown_lead_id: str = ""
    """Id of the lead in an answer whose messages do not name it; the request may have named an alias of it."""
    may_compare: bool = False
    """Whether the answer to a correction may depend on the values that the lead holds: its caller may see them, and the
    look is recorded."""
    compared: tuple[UUID, tuple[str, ...]] | None = None
    """The lead, and its sensitive fields, whose values decided the answer to a correction that changed nothing."""
    hidden: Collection[str] = ()
    """Sensitive fields that the answer's mask hides whole: they need not be opened."""
    retries: int = 0
    """Attempts that went before the answer: the client's own, and the service's on its storage."""

    def trailers(self) -> dict[str, str]:
        """What goes with the answer, as trailing metadata or headers."""
        return {"x-request-id": self.id, "leadkeep-retries": str(self.retries)}


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


def chained(interceptors: Sequence[Interceptor], servicer: object) -> dict[str, Handler]:
    """Each method of the contract, by name, behind the chain."""
    return {method.name: compose(interceptors, getattr(servicer, method.name)) for method in SERVICE.methods}


def answer_by(seconds: float | None) -> float:
    """When to answer, on the monotonic clock, given the seconds that the caller waits."""
    if seconds is None:
        return time.monotonic() + DEFAULT_DEADLINE
    return time.monotonic() + seconds - min(ANSWER_MARGIN, seconds / 10)


def joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Metadata or headers by name. A repeated name means a list (RFC 9110), so that two tokens are no token."""
    values: dict[str, str] = {}
    for key, value in fields:
        values[key] = f"{values[key]}, {value}" if key in values else value
    return values


class Work:
    """What runs on behalf of callers, and goes on when they have gone."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Message]] = set()

    def begin(self, coroutine: Coroutine[Any, Any, Message]) -> asyncio.Task[Message]:
        """Run it in a task that nothing but the end of this process can cancel.

        Whoever waits for the task asks for its outcome, or sees to it that somebody does: asyncio prints an exception
        that nobody has asked for, and its text may hold values.
        """
        task = asyncio.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self, seconds: float) -> None:
        """Wait until all is done, `seconds` at most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)
