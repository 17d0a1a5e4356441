"""A call, how long it waited, the chain of interceptors that it passes, the work that outlasts its caller, and the end
of all calls at a stop.

Nothing here knows a transport: each endpoint makes a `Call` and takes its methods from `chained`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any
from uuid import UUID

from google.protobuf.message import DecodeError, Message
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import LeadkeepError, ServiceStoppingError, invalid
from service.scopes import Caller
from service.supervisor import Supervisor

SERVICE = pb.DESCRIPTOR.services_by_name["LeadService"]

LARGEST_REQUEST = 256 * 1024
"""Bytes. The longest valid lead is about 25 kB; the answer to a longer one should still name the refused text."""

REASON = "leadkeep-reason"
"""The metadata, and header, of a reason. gRPC's metadata takes ASCII only."""

REASON_BIN = "leadkeep-reason-bin"
"""The same for any script: UTF-8 over gRPC, its base64 over HTTP."""

ANSWER_MARGIN = 0.15
"""Seconds before the caller's deadline at which the service answers, so that the answer arrives in time even from a
busy process; never more than a tenth of the time that the caller gave."""


PERIOD_SECONDS = 1.0
"""The last two periods are compared with what is usual."""

MANY = 50
"""Calls in two periods below which none has waited: a process that cannot keep up takes some hundreds a second."""

KEPT = 0.999
"""Of what is usual after each period. It is forgotten within an hour, which no overload should last."""

QUIET_SECONDS = 0.5
"""Without a new call for so long, each caller that waits for one answer before its next call has its answer, or is
held."""

KEPT_SECONDS = 1.0
"""Seconds of the grace that running calls do not get, for the stop of everything else; at most a quarter of it. When
callers who do not read have used it up, the rest gets as much once more."""

DRAIN_SECONDS = 2.0
"""For callers to notice that the service stops: each that waits for one answer before its next call does so sooner."""

ANSWERING_SHARE = 0.9
"""Of the time for running calls; in the rest, those that are not done are answered that the service stops."""


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
    """When the service must have answered, on the monotonic clock: the caller's deadline less a margin. Infinite for a
    caller who set none, until the chain sets it."""
    waited: float = 0.0
    """Seconds for which it waited for this process to take it, by estimate."""
    fault: LeadkeepError | None = None
    """Why the request could not be read. Shown only to callers who may make the call; `request` is empty then."""
    id: str = ""
    """Names the call in the log and in the trailing metadata `x-request-id`."""
    caller: Caller | None = None
    places: int = 1
    """Places among the calls in flight that it takes."""
    keep_places: Callable[[Call], Callable[[], None]] | None = None
    """Keeps its places while its answer is not taken yet, until the result is called; None before it has its own."""
    shown_lead_id: str = ""
    """Id of the lead in an answer whose messages do not name it; the request may have named an alias of it."""
    found: tuple[UUID, ...] = ()
    """Leads and submissions that a search by value found; also those of which the answer shows nothing else."""
    phones: tuple[str, ...] = ()
    """Phones that the answer does not hold, and that a conversation id in it may; "" for one that cannot be opened."""
    comparable: Collection[str] = ()
    """Sensitive fields whose values the answer to a correction may depend on: its caller may see them, and the look is
    recorded."""
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
    """When to answer, on the monotonic clock, given the seconds that the caller waits; None: the caller did not say."""
    if seconds is None:
        return math.inf
    return time.monotonic() + seconds - min(ANSWER_MARGIN, seconds / 10)


def decode(raw: bytes, message: Message) -> None:
    """Fill a message from binary protobuf. Raises LeadValidationError; the message is empty then."""
    try:
        message.MergeFromString(raw)
    except DecodeError:
        message.Clear()
        raise invalid(
            "request", f"is not a {message.DESCRIPTOR.name}: damaged, or a text in it is not valid UTF-8"
        ) from None


def joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Metadata or headers by name. A repeated name means a list (RFC 9110), so that two tokens are no token."""
    values: dict[str, str] = {}
    for key, value in fields:
        values[key] = f"{values[key]}, {value}" if key in values else value
    return values


@dataclass(slots=True)
class _Period:
    calls: int = 0
    longest: float = 0.0


class QueueWait:
    """Estimate of how long gRPC calls waited before this process took them; asked once for each that has a deadline.

    gRPC does not report it: a call that waited has little time left, like a call whose caller asked for little. But
    most callers ask for about the same time whenever they call. When many calls come, and even the one with the most
    time left has less than the usual, they have waited.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usual = 0.0
        self._last, self._this = _Period(), _Period()
        self._ends = 0.0

    def seconds(self, left: float) -> float:
        """How long the calls that come now have waited; `left` is the time left for one of them, in seconds."""
        if (now := self._clock()) >= self._ends:
            self._usual = max(self._usual * KEPT, self._this.longest)
            # Nothing of before a pause: what waited meanwhile comes now.
            self._last = self._this if now < self._ends + PERIOD_SECONDS else _Period()
            self._this = _Period()
            self._ends = now + PERIOD_SECONDS
        self._this.calls += 1
        self._this.longest = max(self._this.longest, left)
        if self._last.calls + self._this.calls < MANY:
            return 0.0
        return max(0.0, self._usual - max(self._last.longest, self._this.longest))


class Work:
    """What runs on behalf of callers, and goes on when they have gone; at a stop, what they are answered."""

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Message], asyncio.Future[None]] = {}
        """Each task, and what its caller waits for."""
        self._stopped = asyncio.Event()
        self._last_arrival = -math.inf
        self.stopping = False
        """Whether no call may begin any more."""

    def begin(self, coroutine: Coroutine[Any, Any, Message]) -> tuple[asyncio.Task[Message], asyncio.Future[None]]:
        """Run it in a task that nothing but the end of this process can cancel.

        Returns the task, and a future that is done when the task is or when its caller should wait no longer.

        Whoever waits for the task asks for its outcome, or sees to it that somebody does: asyncio prints an exception
        that nobody has asked for, and its text may hold values.
        """
        self._last_arrival = time.monotonic()
        task = asyncio.create_task(coroutine)
        # In place of asyncio.wait, which takes 8 µs more of each call (docs/performance.md).
        self._running[task] = wait = asyncio.get_running_loop().create_future()
        task.add_done_callback(lambda done: end_wait(self._running.pop(done)))
        return task, wait

    async def refuse(self) -> None:
        """Hold a call that came too late until `release`, then raise ServiceStoppingError.

        Answered at once, its caller would send the next one to this same connection, and gRPC cancels without a status
        what is on its way when the server goes.
        """
        self._last_arrival = time.monotonic()
        await self._stopped.wait()
        raise ServiceStoppingError

    async def drain(self, seconds: float) -> None:
        """Begin nothing from now on; wait until no caller calls any more, `seconds` at most."""
        self.stopping = True
        end = time.monotonic() + seconds
        while (left := min(end, self._last_arrival + QUIET_SECONDS) - time.monotonic()) > 0:  # noqa: ASYNC110 # nothing happens
            await asyncio.sleep(left)

    def release(self) -> None:
        """Answer the calls that came too late."""
        self._stopped.set()

    def give_up(self) -> None:
        """Answer every caller that still waits; the work itself goes on."""
        for wait in self._running.values():
            end_wait(wait)

    async def finish(self, seconds: float) -> None:
        """Wait until all is done, `seconds` at most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)


def end_wait(wait: asyncio.Future[None]) -> None:
    """End a wait, unless it has ended."""
    if not wait.done():
        wait.set_result(None)


Stop = Callable[[float], Coroutine[Any, Any, None]]
"""Must take no new calls from its first step on, and wait at most so many seconds for those that run."""


async def end_calls(stops: Sequence[Stop], work: Work, supervisor: Supervisor, grace: float) -> float:
    """End the calls of some endpoints in `grace` seconds, less what the rest of the stop needs.

    Returns the seconds that are left then.
    """
    end = time.monotonic() + grace
    calls_end = end - min(KEPT_SECONDS, grace / 4)
    if supervisor.died is not None:
        # Callers are answered at once: leads that wait for the database are spooled, accesses are refused.
        await supervisor.stop(_left(calls_end), in_order=False, vital_only=True)
    await work.drain(min(DRAIN_SECONDS, _left(calls_end)))
    stopping = [asyncio.create_task(stop(_left(calls_end))) for stop in stops]
    # They have begun now: clients know that this server goes.
    await asyncio.sleep(0)
    work.release()
    await asyncio.wait(stopping, timeout=_left(calls_end) * ANSWERING_SHARE)
    work.give_up()
    await asyncio.gather(*stopping)
    # A call whose caller has left is finished too: its lead may be half-way into the database.
    await work.finish(_left(calls_end))
    return _left(end)


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
