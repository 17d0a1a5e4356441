"""The retry loop of storage calls: exponential backoff with full jitter, bounded by the caller's deadline.

A lost reply to COMMIT is such a failure: nobody knows whether the transaction is stored. So every write that is retried
finds what an earlier attempt stored, a new lead by its own id (leads/decision.py), a change by its version.

The deadline and the listener for retries travel in a context variable, so that nothing between the call and the
database has to pass them on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from service.backoff_wait import jittered_wait
from service.errors import StorageUnavailableError
from service.storage.database.failures import StorageFaultError, cause_of, is_driver_error, is_refused, is_transient

T = TypeVar("T")

FIRST_WAIT = 0.02
"""Seconds before the first retry, at most (full jitter): about the time in which a rival's transaction ends."""

LONGEST_WAIT = 1.0
"""Seconds between retries, at most: a database that comes back is noticed within a second."""

LONGEST_FORESEEN = 0.25
"""Seconds that another attempt is expected to take, at most: it may wait 200 ms for a lock. An attempt that took longer
hung on a server that has gone since, and does not predict the next one."""

LONGEST_RETRY = 10.0
"""Seconds that storage is retried for one call, however long its caller would wait, unless callers who set no deadline
wait longer: a database that did not come back by then is in an outage, and its caller is better served by an error."""


@dataclass(frozen=True, slots=True)
class Retry:
    """One repeated storage call: which attempt failed, how long we wait now (seconds), and why (SQLSTATE)."""

    attempt: int
    wait: float
    cause: str


@dataclass(frozen=True, slots=True)
class RetryScope:
    """Until when the current call may retry (on the monotonic clock), and the listener for its retries."""

    deadline: float
    on_retry: Callable[[Retry], None]


retry_scope: ContextVar[RetryScope | None] = ContextVar("retry_scope", default=None)


async def with_retries(operation: Callable[[], Awaitable[T]]) -> T:
    """Return the operation's result, after as many attempts as the caller's time allows.

    Raises StorageUnavailableError when the time is over and StorageFaultError for what the database always refuses;
    lets every other error through.
    """
    scope = retry_scope.get()
    began = time.monotonic()
    deadline = began + LONGEST_RETRY if scope is None else scope.deadline
    failures = 0
    while True:
        try:
            return await operation()
        except Exception as error:
            if not is_transient(error):
                if is_driver_error(error):
                    raise StorageFaultError(cause_of(error), is_refusal=is_refused(error)) from None
                raise
            cause = cause_of(error)
        now = time.monotonic()
        # Another attempt must not only begin in time, it must end in time.
        left = deadline - now - min(now - began, LONGEST_FORESEEN)
        if left <= 0:
            raise StorageUnavailableError
        wait = jittered_wait(failures, first=FIRST_WAIT, longest=min(LONGEST_WAIT, left))
        failures += 1
        if scope is not None:
            scope.on_retry(Retry(failures, wait, cause))
        await asyncio.sleep(wait)
        began = time.monotonic()
