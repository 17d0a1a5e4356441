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

from service.lead import CustomerFields
from service.sealing import LeadSealer
from service.storage.database import Database
from service.storage.repository import LeadRepository
from tests.harness.postgres import TestDatabase


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
async def ids(faulty: FaultyDatabase, sealer: LeadSealer) -> list[UUID]:
    """Of some leads."""
    submissions = [
        sealer.seal(
            uuid7(),
            CustomerFields(name="A", phone=f"+88017{n:08d}", nid=f"19{n:011d}", address="B", interested_policy="C"),
            created_by="bot",
            request_id=None,
        )
        for n in range(20)
    ]
    await LeadRepository(faulty).create_all_once(submissions)
    return [each.id for each in submissions]


@pytest.fixture
def repository(faulty: FaultyDatabase) -> LeadRepository:
    return LeadRepository(faulty)


async def get_all(repository: LeadRepository, ids: list[UUID]) -> list[UUID | None]:
    return [lead.id if lead else None for lead in await asyncio.gather(*(repository.get(each) for each in ids))]


async def test_reads_that_arrive_together_share_a_statement_and_each_gets_its_own_lead(
    repository: LeadRepository, faulty: FaultyDatabase, ids: list[UUID]
) -> None:
    unknown = uuid7()
    assert await get_all(repository, [*ids, unknown, ids[0]]) == [*ids, None, ids[0]]
    assert faulty.reads == 1


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
    answers = await asyncio.gather(*(repository.get(each) for each in ids), return_exceptions=True)
    assert {type(answer) for answer in answers} == {KeyError}
    assert await get_all(repository, ids) == ids
