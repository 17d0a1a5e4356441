"""What a gRPC library reads about retries beside an error: `grpc-retry-pushback-ms`.

test_error_table.py reads it beside the reasons that calls can provoke.
"""

from __future__ import annotations

import pytest

from service.errors import (
    DuplicateLimitError,
    KeysUnavailableError,
    LeadkeepError,
    LeadNotFoundError,
    QueueFullError,
    RetryableError,
    ServiceStoppingError,
    StorageUnavailableError,
    UnmaskLimitError,
)
from service.rpc.status import REASONS, pushback, status_of

RETRYABLE: list[RetryableError] = [
    UnmaskLimitError(1, 60),
    DuplicateLimitError(1, 60),
    QueueFullError(),
    StorageUnavailableError(),
    ServiceStoppingError(),
    KeysUnavailableError(),
]


@pytest.mark.parametrize(
    ("error", "seconds_left", "milliseconds"),
    [
        (QueueFullError(retry_after=1.5), 10, "1500"),
        (StorageUnavailableError(), 10, "2000"),
        (QueueFullError(retry_after=0.0001), 10, "1"),
        (QueueFullError(retry_after=1.5), 1.5, "-1"),
        (QueueFullError(retry_after=3600), 30, "-1"),
        (QueueFullError(retry_after=1.5), -2, "-1"),
        (StorageUnavailableError(retry_within_call=False), 10, "-1"),
    ],
)
def test_pushback_is_the_wait_of_retry_info_or_forbids_the_retry(
    error: LeadkeepError, seconds_left: float, milliseconds: str
) -> None:
    assert pushback(error, seconds_left) == {"grpc-retry-pushback-ms": milliseconds}


def test_an_error_without_retry_info_has_no_pushback() -> None:
    assert pushback(LeadNotFoundError(), 10) == {}


def test_every_error_with_a_wait_is_tried_here_and_may_be_repeated() -> None:
    assert {type(error) for error in RETRYABLE} == set(RetryableError.__subclasses__())
    assert all(REASONS[error.reason].repeat for error in RETRYABLE)


@pytest.mark.parametrize("error", RETRYABLE, ids=lambda error: error.reason)
@pytest.mark.parametrize("seconds_left", [0.1, 1000])
def test_wherever_retry_info_is_sent_pushback_is_sent(error: RetryableError, seconds_left: float) -> None:
    assert "google.rpc.RetryInfo" in str(status_of(error))
    assert pushback(error, seconds_left).keys() == {"grpc-retry-pushback-ms"}
