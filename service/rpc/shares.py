"""Keeps one caller from taking what all need: places of calls in flight, by subject; processor time, by connection."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial

from google.protobuf.message import Message

from service.errors import QueueFullError, TokenExpiredError, TokenInvalidError, TokenMissingError
from service.rpc.call import Call, Handler, Interceptor

SUBJECT_SHARE = 3
"""Calls that a subject may have in flight for each place that is free: a subject alone gets three quarters of the
places, two get three sevenths each, and a newcomer always finds one."""

PAGE_PLACES = 8
"""Places that a page of a list takes: it costs as much as so many calls for one lead. At most an eighth of all."""

PAGES_SHARE = SUBJECT_SHARE / 2
"""What a subject may have of places when it asks for a page: its other calls, such as new leads, still find some."""

FAILURES = 20
FAILURE_SECONDS = 1.0
"""Calls without a good token on a connection, within so many seconds, after which it is slowed down. A client whose
token expires may fail with many calls at once, and has a new one a second later."""

PROVEN_SECONDS = 60.0
"""For which a good token counts for its connection."""

HOLD_SECONDS = 0.5
"""Before the refusal is sent. It occupies one of the connection's own streams meanwhile: that slows the connection down
to 200 calls a second. A refusal at once would not help, because it costs a third of what a CreateLead costs."""

MOST_HELD = 1000
"""Refusals that are held at a time, about 15 kB each; further ones are sent at once."""

MOST_CONNECTIONS = 10_000
"""Connections that are remembered."""


class Places:
    """The calls in flight: `limit` in all, and of each subject a share of what is free.

    A call is in flight until its answer is taken, as far as its endpoint can see that: else a caller who takes none
    could have as many as it likes, on as many connections.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._of_subject: Counter[str] = Counter()

    def take(self) -> None:
        """Take a place for a caller who is not known yet. Raises QueueFullError when there is none."""
        if self._taken >= self._limit:
            raise QueueFullError
        self._taken += 1

    def claim(self, call: Call, request: Message) -> None:
        """Count the taken place, and those that the request needs besides, for the subject of a call.

        Raises QueueFullError when it has its share.
        """
        share: float = SUBJECT_SHARE
        if "page_token" in request.DESCRIPTOR.fields_by_name:
            call.places, share = max(1, min(PAGE_PLACES, self._limit // 8)), PAGES_SHARE
            self._taken += call.places - 1
        call.keep_places = self._keep
        subject = _subject(call)
        self._of_subject[subject] += call.places
        if self._of_subject[subject] > share * (self._limit - self._taken + 1):
            raise QueueFullError

    def leave(self, call: Call) -> None:
        """Give the places of a call back."""
        self._taken -= call.places
        if call.keep_places is not None:
            subject = _subject(call)
            self._of_subject[subject] -= call.places
            if not self._of_subject[subject]:
                del self._of_subject[subject]

    def _keep(self, call: Call) -> Callable[[], None]:
        self._taken += call.places
        self._of_subject[_subject(call)] += call.places
        return partial(self.leave, call)


def _subject(call: Call) -> str:
    return call.caller.subject if call.caller is not None else ""


def strangers() -> Interceptor:
    """Slow down connections that send calls without a good token, and refuse them before the token is looked at.

    A proxy may send the calls of many callers on one connection: where a good token came lately, every token is looked
    at.
    """
    failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
    proven: OrderedDict[str, float] = OrderedDict()
    held = 0

    async def hold() -> None:
        nonlocal held
        if held < MOST_HELD:
            held += 1
            try:
                await asyncio.sleep(HOLD_SECONDS)
            finally:
                held -= 1

    async def intercept(call: Call, request: Message, proceed: Handler) -> Message:
        failures, since = failed.get(call.peer, (0, -math.inf))
        now = time.monotonic()
        flooding = failures >= FAILURES and now <= since + FAILURE_SECONDS
        if flooding and now > proven.get(call.peer, -math.inf) + PROVEN_SECONDS:
            await hold()
            raise QueueFullError
        try:
            return await proceed(call, request)
        except (TokenMissingError, TokenInvalidError, TokenExpiredError):
            failures, since = failed.pop(call.peer, (0, -math.inf))
            failed[call.peer] = (failures + 1, since) if now <= since + FAILURE_SECONDS else (1, now)
            if len(failed) > MOST_CONNECTIONS:
                failed.popitem(last=False)
            if flooding:
                await hold()
            raise
        finally:
            if call.caller is not None and now > proven.get(call.peer, -math.inf) + PROVEN_SECONDS / 2:
                proven.pop(call.peer, None)
                proven[call.peer] = now
                if len(proven) > MOST_CONNECTIONS:
                    proven.popitem(last=False)

    return intercept
