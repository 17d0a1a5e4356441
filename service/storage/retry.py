"""Storage calls are retried with full jitter until they succeed or the caller's time is over.

The caller's time and its wish to hear of every retry travel in a context variable: between the call and the database
nobody else has to know of them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import backoff

from service.errors import StorageUnavailableError
from service.storage.failures import Failure, StorageFaultError, cause_of, classify, is_driver_error

if TYPE_CHECKING:
    from backoff.types import Details

T = TypeVar("T")

FIRST_WAIT = 0.02
"""Seconds before the first retry, at most (full jitter): about the time in which a rival's transaction ends."""

LONGEST_WAIT = 1.0
"""Seconds between retries, at most: a database that comes back is noticed within a second."""

LONGEST_FORESEEN = 0.25
"""Seconds that another attempt is expected to take, at most: it may wait 200 ms for a lock. An attempt that took longer
hung on a server that has gone since, and says nothing of the next one."""

PATIENCE = 10.0
"""Seconds that a storage call goes on at most, however long its caller would wait: a database that did not come back
by then is an outage, and the caller is better told so."""


def longest_wait(failures: int, *, first: float = FIRST_WAIT, longest: float = LONGEST_WAIT) -> float:
    """Upper bound in seconds of the wait after so many failures in a row: doubles from `first` up to `longest`."""
    # The exponent is bounded as well: 2.0 ** 1024 overflows, and a task that fails for ever gets there.
    return min(longest, first * 2.0 ** min(failures, 32))


@dataclass(frozen=True, slots=True)
class Retry:
    """One repeated storage call: which attempt failed, how long we wait now (seconds), and why (SQLSTATE)."""

    attempt: int
    wait: float
    cause: str


@dataclass(frozen=True, slots=True)
class RetryScope:
    """How long the current call may retry (on the monotonic clock) and who hears of it."""

    deadline: float
    on_retry: Callable[[Retry], None]


retry_scope: ContextVar[RetryScope | None] = ContextVar("retry_scope", default=None)


async def with_retries(operation: Callable[[], Awaitable[T]]) -> T:
    """The operation's result, however often it takes.

    Raises StorageUnavailableError when the time is over, StorageFaultError for what no repetition can mend, and lets
    every other error through.
    """
    began = time.monotonic()
    try:
        return await operation()
    except Exception as error:  # noqa: BLE001 # judged below
        failed = error
    # Only now: the machinery of retries costs ten times what it costs to do without it.
    return await _tried_again(operation, failed, began)


async def _tried_again(operation: Callable[[], Awaitable[T]], first: Exception, began: float) -> T:
    scope = retry_scope.get()
    deadline = began + PATIENCE
    if scope is not None:
        deadline = min(deadline, scope.deadline)
    failed: Exception | None = first
    foreseen = 0.0

    def time_to_wait() -> float:
        # Another attempt must not only begin in time, it must end in time.
        return deadline - time.monotonic() - foreseen

    def waits() -> Generator[float, None, None]:
        longest = FIRST_WAIT
        yield longest  # backoff starts its generators with an empty send and throws this value away
        while True:
            yield max(0.0, min(longest, time_to_wait()))
            longest = min(longest * 2, LONGEST_WAIT)

    def hopeless(error: Exception) -> bool:
        nonlocal foreseen
        foreseen = min(time.monotonic() - began, LONGEST_FORESEEN)
        return classify(error) is Failure.PERMANENT or time_to_wait() <= 0

    def tell(details: Details) -> None:
        if scope is not None:
            error: BaseException = cast("dict[str, Any]", details)["exception"]
            scope.on_retry(Retry(details["tries"], details["wait"], cause_of(error)))

    @backoff.on_exception(waits, Exception, giveup=hopeless, on_backoff=tell, jitter=backoff.full_jitter, logger=None)
    async def attempt() -> T:
        nonlocal began, failed
        if failed is not None:
            error, failed = failed, None
            raise error
        began = time.monotonic()
        return await operation()

    try:
        return await attempt()
    except Exception as error:
        if classify(error) is Failure.RETRY:
            raise StorageUnavailableError from None
        if is_driver_error(error):
            raise StorageFaultError(cause_of(error)) from None
        raise
