"""Summaries take turns, and none takes the database longer than it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.errors import QueryTimeoutError, QueueFullError
from service.lead import LeadGroup
from service.storage.database.database import Database
from service.storage.leads import summaries
from service.storage.leads.submissions import SubmissionStore
from service.storage.leads.summaries import LeadSummaries
from tests.harness.faults import endless_summaries
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit

SPAN = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))


class Held:
    """A database that answers when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_answer = asyncio.Event()

    async def read_within(self, _seconds: float, _work: Callable[..., Any]) -> list[Any]:
        self.begun += 1
        await self.may_answer.wait()
        return []


async def test_a_summary_waits_for_the_one_before_it() -> None:
    held = Held()
    counting = LeadSummaries(held)  # type: ignore[arg-type] # all that it needs of a database
    calls = [asyncio.create_task(counting.by_day([SPAN[0]], SPAN[1], None)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert held.begun == 1
    held.may_answer.set()
    assert await asyncio.gather(*calls) == [[0]] * 3
    assert held.begun == 3


async def test_a_summary_that_waits_too_long_is_refused_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "TURN_SECONDS", 0.05)
    held = Held()
    counting = LeadSummaries(held)  # type: ignore[arg-type]
    first = asyncio.create_task(counting.by_day([SPAN[0]], SPAN[1], None))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as refused:
        await counting.by_day([SPAN[0]], SPAN[1], None)
    assert refused.value.retry_after > 0
    held.may_answer.set()
    assert await first == [0]
    assert await counting.by_day([SPAN[0]], SPAN[1], None) == [0]


async def test_one_that_takes_the_database_too_long_is_ended_and_the_next_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
    database: TestDatabase,
    connected: Database,
    store: SubmissionStore,
    submit: Submit,
) -> None:
    monkeypatch.setattr(summaries, "SUMMARY_SECONDS", 1)
    await store.create(submit())
    counting, span = LeadSummaries(connected), (datetime.now(UTC) - timedelta(days=1), datetime.now(UTC))
    with endless_summaries(database.admin_url):
        with pytest.raises(QueryTimeoutError):
            await counting.by_day([span[0]], span[1], None)
        counted = await counting.by_value(LeadGroup.STATUS, *span, None)
    assert counted.total == 1
    assert await counting.by_day([span[0]], span[1], None) == [1]
