from __future__ import annotations

import asyncio
import itertools
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import OperationalError

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.storage.failures import CommitNotDurableError, StorageFaultError
from service.storage.retry import FIRST_WAIT, LONGEST_WAIT, Retry, RetryScope, longest_wait, retry_scope, with_retries

VALUE = "+8801712345678"
"""What must never leave with an error."""


@pytest.fixture
def heard() -> Iterator[list[Retry]]:
    """The retries of a caller who has two seconds."""
    retries: list[Retry] = []
    token = retry_scope.set(RetryScope(time.monotonic() + 2, retries.append))
    yield retries
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


def always(failure: Callable[[], Exception], *, after: float = 0.0) -> Callable[[], Awaitable[str]]:
    async def operation() -> str:
        await asyncio.sleep(after)
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


async def test_no_wait_is_longer_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def no_sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", no_sleep)

    await with_retries(failing(*(lock_not_available() for _ in range(40))))

    assert len(slept) == 40
    assert max(slept) <= LONGEST_WAIT


@pytest.mark.parametrize("attempt_takes", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("time_given", [0.3, 0.7])
async def test_it_ends_inside_the_callers_time(attempt_takes: float, time_given: float) -> None:
    began = time.monotonic()
    token = retry_scope.set(RetryScope(began + time_given, lambda _: None))

    with pytest.raises(StorageUnavailableError):
        await with_retries(always(lock_not_available, after=attempt_takes))

    retry_scope.reset(token)
    # The event loop may wake a sleeper a few milliseconds late.
    assert time.monotonic() - began < time_given + 0.02


async def test_an_attempt_that_hung_does_not_keep_the_next_one_from_being_made() -> None:
    token = retry_scope.set(RetryScope(time.monotonic() + 1.0, lambda _: None))
    left = iter([0.6])

    async def operation() -> str:
        for seconds in left:
            await asyncio.sleep(seconds)
            raise connection_lost()
        return "done"

    assert await with_retries(operation) == "done"

    retry_scope.reset(token)


async def test_one_attempt_is_made_even_when_the_time_is_over() -> None:
    token = retry_scope.set(RetryScope(time.monotonic() - 1, lambda _: None))

    assert await with_retries(failing()) == "done"
    with pytest.raises(StorageUnavailableError):
        await with_retries(failing(lock_not_available()))

    retry_scope.reset(token)


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
    token = retry_scope.set(RetryScope(time.monotonic() + 0.1, heard.append))

    with pytest.raises((StorageUnavailableError, StorageFaultError)) as raised:
        await with_retries(always(failure))

    retry_scope.reset(token)
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


def test_a_wait_doubles_up_to_its_bound_however_many_failures_went_before() -> None:
    assert [longest_wait(failures) for failures in (0, 1, 2)] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert longest_wait(100_000) == LONGEST_WAIT
