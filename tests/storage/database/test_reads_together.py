"""Reads by id that arrive together share statements: see test_batcher.py for who shares one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import OperationalError
from uuid_utils.compat import uuid7

from service.errors import LeadNotFoundError
from service.lead import SealedLead
from service.storage.database.database import Database
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, everyone


class FaultyDatabase(Database):
    """Counts the statements that read; those fail that find a fault in `faults`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads = 0
        self.faults: list[Exception] = []

    async def read_once(self, work: Callable[..., Any]) -> Any:
        self.reads += 1
        if self.faults:
            raise self.faults.pop()
        return await super().read_once(work)


@pytest.fixture
async def faulty(database: TestDatabase) -> AsyncIterator[FaultyDatabase]:
    opened = FaultyDatabase(database.serve_url)
    yield opened
    await opened.close()


@pytest.fixture
async def ids(faulty: FaultyDatabase, submit: Submit) -> list[UUID]:
    """Of some leads."""
    submissions = [submit() for _ in range(20)]
    await SubmissionStore(faulty).create_all_once(submissions)
    return [each.id for each in submissions]


@pytest.fixture
def repository(faulty: FaultyDatabase, spool: Spool) -> LeadRepository:
    return LeadRepository(faulty, spool, LeadWriter(SubmissionStore(faulty), spool, Outage(), RecentRequests()))


async def get_all(repository: LeadRepository, ids: list[UUID]) -> list[Any]:
    """The id of each lead that was found, in the place of another one the error."""
    answers = await asyncio.gather(*(repository.get(each, everyone) for each in ids), return_exceptions=True)
    return [each.id if isinstance(each, SealedLead) else each for each in answers]


async def test_reads_that_arrive_together_share_a_statement_and_each_gets_its_own_lead(
    repository: LeadRepository, faulty: FaultyDatabase, ids: list[UUID]
) -> None:
    *found, unknown, again = await get_all(repository, [*ids, uuid7(), ids[0]])
    assert [*found, again] == [*ids, ids[0]]
    assert isinstance(unknown, LeadNotFoundError)
    assert faulty.reads == 2  # one for all of them, one for how the unknown id was acknowledged


async def test_what_fails_is_tried_again_for_each_caller(
    repository: LeadRepository, faulty: FaultyDatabase, ids: list[UUID]
) -> None:
    faulty.faults = [OperationalError("", {}, psycopg.OperationalError("the server went away")) for _ in range(2)]
    assert await get_all(repository, ids) == ids
    assert faulty.faults == []


async def test_what_always_fails_is_reported_to_each_caller(
    repository: LeadRepository, faulty: FaultyDatabase, ids: list[UUID]
) -> None:
    faulty.faults = [KeyError("a fault of ours")]
    assert {type(answer) for answer in await get_all(repository, ids)} == {KeyError}
    assert await get_all(repository, ids) == ids
