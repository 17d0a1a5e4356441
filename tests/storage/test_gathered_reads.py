"""Reads that come while one is under way share the next statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.storage.database import Database
from service.storage.gathered_reads import LARGEST_BATCH, GatheredReads
from service.storage.gathering import Gathering
from tests.harness.postgres import TestDatabase


class Known:
    """What the ids lead to; its statements wait until they are let go, and the first of them may fail."""

    def __init__(self) -> None:
        self.names: dict[UUID, str] = {}
        self.batches: list[list[UUID]] = []
        self.failures = 0
        self.cancelled = False
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def read(self, ids: Sequence[UUID], _connection: AsyncConnection) -> Mapping[UUID, str]:
        self.batches.append(list(ids))
        self.asked.set()
        seen = {wanted: self.names[wanted] for wanted in ids if wanted in self.names}
        await self.go.wait()
        if self.cancelled:
            raise asyncio.CancelledError
        if self.failures:
            self.failures -= 1
            raise OperationalError("", {}, psycopg.OperationalError("the server went away"))
        return seen


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
async def reads(database: TestDatabase, known: Known) -> AsyncIterator[GatheredReads[str]]:
    patient = Database(database.serve_url, attempt_seconds=60)
    yield GatheredReads(patient, known.read)
    await patient.close()


async def begun(reads: GatheredReads[str], known: Known, ids: Sequence[UUID]) -> list[asyncio.Task[str | None]]:
    """Reads of these ids, begun while another one is under way."""
    held = asyncio.create_task(reads.get(uuid4()))
    await known.asked.wait()
    tasks = [asyncio.create_task(reads.get(each)) for each in ids]
    await asyncio.sleep(0)
    assert not held.done()
    return tasks


async def test_reads_that_come_together_share_statements(reads: GatheredReads[str], known: Known) -> None:
    ids = [uuid4() for _ in range(100)]
    known.names = {each: str(each) for each in ids}
    tasks = await begun(reads, known, ids)
    known.go.set()
    assert await asyncio.gather(*tasks) == [str(each) for each in ids]
    assert [len(batch) for batch in known.batches] == [1, 100]


async def test_a_statement_carries_a_bounded_number_of_ids(reads: GatheredReads[str], known: Known) -> None:
    tasks = await begun(reads, known, [uuid4() for _ in range(3 * LARGEST_BATCH)])
    known.go.set()
    await asyncio.gather(*tasks)
    assert max(map(len, known.batches)) == LARGEST_BATCH


async def test_an_id_that_leads_nowhere_is_answered(reads: GatheredReads[str], known: Known) -> None:
    known.go.set()
    assert await reads.get(uuid4()) is None


async def test_a_read_sees_what_was_stored_before_it_was_asked_for(reads: GatheredReads[str], known: Known) -> None:
    wanted = uuid4()
    (early,) = await begun(reads, known, [wanted])
    known.names[wanted] = "stored"
    late = asyncio.create_task(reads.get(wanted))
    await asyncio.sleep(0)
    known.go.set()
    assert await late == "stored"
    assert await early == "stored"  # it had waited and was not sent yet


async def test_a_caller_that_hangs_up_costs_the_others_nothing(reads: GatheredReads[str], known: Known) -> None:
    stays, goes = uuid4(), uuid4()
    known.names[stays] = "stays"
    gone, patient = await begun(reads, known, [goes, stays])
    gone.cancel()
    known.go.set()
    assert await patient == "stays"


async def test_what_fails_is_tried_again_for_each_caller(reads: GatheredReads[str], known: Known) -> None:
    ids = [uuid4() for _ in range(5)]
    known.names = {each: str(each) for each in ids}
    known.failures = 2
    tasks = await begun(reads, known, ids)
    known.go.set()
    assert await asyncio.gather(*tasks) == [str(each) for each in ids]


async def test_a_reader_that_is_idle_asks_at_once(reads: GatheredReads[str], known: Known) -> None:
    known.go.set()
    for _ in range(3):
        await reads.get(uuid4())
    assert [len(batch) for batch in known.batches] == [1, 1, 1]


async def test_a_read_that_comes_as_the_last_one_is_answered_is_answered(
    reads: GatheredReads[str], known: Known
) -> None:
    known.go.set()
    async with asyncio.timeout(5):
        # Asked before any other callback of the first one's end has run.
        await reads.get(uuid4())
        await reads.get(uuid4())


class Broken(Gathering):
    """A gathering with a fault of ours."""

    async def wait(self) -> None:
        raise KeyError("a fault of ours")


async def test_reads_whose_statement_is_never_sent_fail_and_hang_nobody(
    database: TestDatabase, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.storage.gathered_reads.Gathering", Broken)
    opened = Database(database.serve_url)
    reads = GatheredReads(opened, known.read)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(reads.get(uuid4()) for _ in range(3)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StorageUnavailableError}
    await opened.close()


async def test_reads_whose_statement_is_cancelled_fail_and_hang_nobody(reads: GatheredReads[str], known: Known) -> None:
    tasks = await begun(reads, known, [uuid4() for _ in range(3)])
    known.cancelled = True
    known.go.set()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StorageUnavailableError}
