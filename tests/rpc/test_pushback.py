"""What a gRPC library reads about retries beside an error: `grpc-retry-pushback-ms`."""

from __future__ import annotations

import pytest

from service.errors import LeadkeepError, LeadNotFoundError, QueueFullError, StorageUnavailableError
from service.rpc.status import pushback


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
