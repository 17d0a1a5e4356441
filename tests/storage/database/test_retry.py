from __future__ import annotations

import asyncio
import itertools
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import OperationalError

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.storage.database.failures import (
    FIRST_WAIT,
    LONGEST_RETRY,
    LONGEST_WAIT,
    CommitNotDurableError,
    Retry,
    RetryScope,
    StorageFaultError,
    retry_scope,
    with_retries,
)

VALUE = "+8801712345678"
"""What must never leave with an error."""


@pytest.fixture
def heard() -> Iterator[list[Retry]]:
    """The retries of a caller who has two seconds."""
    retries: list[Retry] = []
    with deadline_at(time.monotonic() + 2, retries.append):
        yield retries


@contextmanager
def deadline_at(moment: float, on_retry: Callable[[Retry], None] = lambda _: None) -> Iterator[None]:
    token = retry_scope.set(RetryScope(moment, on_retry))
    yield
    retry_scope.reset(token)


def lock_not_available() -> OperationalError:
    return OperationalError("SELECT 1", {"phone": VALUE}, errors.LockNotAvailable(f"Key (phone)=({VALUE})"))


def connection_lost() -> OperationalError:
    return OperationalError("SELECT 1", {"phone": VALUE}, psycopg.OperationalError(f"lost at {VALUE}"))


def failing(*failures: Exception) -> Callable[[], Awaitable[str]]:
    """An operation that fails like this, one after the other, and then succeeds."""
    left = iter(failures)

    async def operation() -> str:
        for failure in left:
            raise failure
        return "done"

    return operation


def always(failure: Callable[[], Exception]) -> Callable[[], Awaitable[str]]:
    async def operation() -> str:
        raise failure()

    return operation


async def test_what_succeeds_is_not_repeated(heard: list[Retry]) -> None:
    assert await with_retries(failing()) == "done"
    assert heard == []


async def test_what_may_pass_is_repeated_until_it_succeeds(heard: list[Retry]) -> None:
    assert await with_retries(failing(lock_not_available(), connection_lost(), CommitNotDurableError())) == "done"

    assert [(retry.attempt, retry.cause) for retry in heard] == [(1, "55P03"), (2, "connection"), (3, "not_durable")]


async def test_the_waits_are_jittered_over_their_whole_and_doubling_range() -> None:
    async def waits_of_a_caller() -> list[float]:
        heard: list[Retry] = []
        retry_scope.set(RetryScope(time.monotonic() + 60, heard.append))
        await with_retries(failing(*(lock_not_available() for _ in range(3))))
        return [retry.wait for retry in heard]

    waits = await asyncio.gather(*(waits_of_a_caller() for _ in range(60)))

    for number, column in enumerate(zip(*waits, strict=True)):
        longest = FIRST_WAIT * 2**number
        assert 0 <= min(column) < longest / 4, "full jitter begins at nothing"
        assert longest * 3 / 4 < max(column) <= longest


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.storage.database.failures.time", clock)
    monkeypatch.setattr("service.storage.database.failures.asyncio", clock)
    return clock


@pytest.mark.parametrize("attempt_takes", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("time_given", [0.3, 0.7])
async def test_it_ends_inside_the_callers_time(clock: Clock, attempt_takes: float, time_given: float) -> None:
    deadline = clock.now + time_given
    attempts = 0

    async def operation() -> None:
        nonlocal attempts
        attempts += 1
        clock.now += attempt_takes or 0.001
        raise lock_not_available()

    with deadline_at(deadline), pytest.raises(StorageUnavailableError):
        await with_retries(operation)

    assert clock.now <= deadline + 1e-6
    assert (attempts > 1) == (time_given > 2 * attempt_takes)


async def test_without_a_deadline_it_ends_after_ten_seconds(clock: Clock) -> None:
    began = clock.now
    assert retry_scope.get() is None
    with pytest.raises(StorageUnavailableError):
        await with_retries(always(lock_not_available))
    assert LONGEST_RETRY - LONGEST_WAIT < clock.now - began <= LONGEST_RETRY + 1e-6


async def test_no_wait_is_longer_than_a_second(clock: Clock) -> None:
    waits: list[float] = []
    with deadline_at(clock.now + 60, lambda retry: waits.append(retry.wait)), pytest.raises(StorageUnavailableError):
        await with_retries(always(lock_not_available))
    assert len(waits) > 10
    assert max(waits) <= LONGEST_WAIT


async def test_an_attempt_that_hung_does_not_keep_the_next_one_from_being_made(clock: Clock) -> None:
    attempts = iter([0.6])

    async def operation() -> str:
        for seconds in attempts:
            clock.now += seconds
            raise connection_lost()
        return "done"

    with deadline_at(clock.now + 1.0):
        assert await with_retries(operation) == "done"


async def test_one_attempt_is_made_even_when_the_time_is_over() -> None:
    with deadline_at(time.monotonic() - 1):
        assert await with_retries(failing()) == "done"
        with pytest.raises(StorageUnavailableError):
            await with_retries(failing(lock_not_available()))


async def test_without_a_caller_it_is_repeated_too() -> None:
    assert retry_scope.get() is None
    assert await with_retries(failing(lock_not_available())) == "done"


async def test_what_no_repetition_mends_is_a_fault_at_once(heard: list[Retry]) -> None:
    fault = OperationalError("INSERT", {"phone": VALUE}, errors.CheckViolation(f"Failing row contains ({VALUE})"))

    with pytest.raises(StorageFaultError) as raised:
        await with_retries(failing(fault))

    assert raised.value.cause == "23514"
    assert heard == []


async def test_a_domain_error_passes_through_at_once(heard: list[Retry]) -> None:
    decided = LeadNotFoundError()

    with pytest.raises(LeadNotFoundError) as raised:
        await with_retries(failing(decided))

    assert raised.value is decided
    assert heard == []


async def test_cancelling_ends_it(heard: list[Retry]) -> None:
    task = asyncio.create_task(with_retries(always(lock_not_available)))
    while not heard:  # noqa: ASYNC110 # the listener is a plain callback
        await asyncio.sleep(0.001)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "failure", [lock_not_available, connection_lost, lambda: errors.CheckViolation(f"Failing row ({VALUE})")]
)
async def test_no_value_passes_on(
    failure: Callable[[], Exception], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[Retry] = []
    with (
        deadline_at(time.monotonic() + 0.1, heard.append),
        pytest.raises((StorageUnavailableError, StorageFaultError)) as raised,
    ):
        await with_retries(always(failure))

    printed = "".join(traceback.format_exception(raised.value))
    written = "".join(capfd.readouterr())
    assert VALUE not in printed + str(raised.value) + repr(raised.value) + repr(heard) + caplog.text + written


async def test_callers_at_once_hear_only_of_their_own_retries() -> None:
    async def caller(failures: int) -> int:
        heard: list[Retry] = []
        retry_scope.set(RetryScope(time.monotonic() + 5, heard.append))
        await with_retries(failing(*itertools.repeat(lock_not_available(), failures)))
        return len(heard)

    assert await asyncio.gather(*(caller(number) for number in range(4))) == [0, 1, 2, 3]
