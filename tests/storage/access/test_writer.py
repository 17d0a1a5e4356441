"""The access record's writer: shared transactions, no look without an entry, and the limit of an hour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from service.errors import StorageUnavailableError, UnmaskLimitError
from service.factories import new_id
from service.keys.encryption import EncryptionService
from service.keys.keyring import Keyring
from service.replica import access_writing
from service.storage.access.check import check
from service.storage.access.record import Access, AccessRecords, Chain
from service.storage.access.writer import AccessWriter
from service.storage.database.database import Database
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase
from tests.harness.supervision import running

ENCRYPTION = EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))


def look(subject: str = "ann", lead_id: UUID | None = None) -> Access:
    return Access(subject=subject, operation="GetLead", fields=("phone", "nid"), lead_id=lead_id or uuid4())


@asynccontextmanager
async def writing(
    database: TestDatabase,
    *,
    limit: int | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    heard: list[Chain] | None = None,
    connections: type[Database] = Database,
    encryption: EncryptionService = ENCRYPTION,
) -> AsyncIterator[AccessWriter]:
    """A writer as a service has it. `heard` gets its chain at the beginning and at the end."""
    pool = connections(database.serve_url)
    begun: list[Chain] = heard if heard is not None else []
    writer = AccessWriter(
        pool,
        AccessRecords(pool, encryption),
        writer="test",
        new_id=new_id,
        limit=limit,
        on_chain=begun.append,
        now=now,
    )
    async with running(access_writing(writer)):
        yield writer
    if writer.chain is not None:
        begun.append(writer.chain)
    await pool.close()


def entries(database: TestDatabase) -> int:
    return int(str(value_of(database.admin_url, "SELECT count(*) FROM access_record")))


def transactions(database: TestDatabase) -> int:
    return int(str(value_of(database.admin_url, "SELECT count(DISTINCT xmin::text) FROM access_record")))


async def test_looks_that_wait_together_share_transactions(database: TestDatabase) -> None:
    async with writing(database) as writer:
        await asyncio.gather(*(writer.record([look()]) for _ in range(64)))
    assert entries(database) == 64
    assert transactions(database) <= 3


async def test_a_list_is_one_transaction(database: TestDatabase) -> None:
    async with writing(database) as writer:
        await writer.record([look() for _ in range(100)])
    assert (entries(database), transactions(database)) == (100, 1)


async def test_what_was_recorded_is_committed_when_it_is_answered(database: TestDatabase) -> None:
    async with writing(database) as writer:
        for number in range(1, 4):
            await writer.record([look()])
            assert entries(database) == number


async def test_a_chain_is_told_when_it_begins_and_when_it_ends(database: TestDatabase) -> None:
    heard: list[Chain] = []
    async with writing(database, heard=heard) as writer:
        await writer.record([look()])
        await writer.record([look()])
    assert [(chain.number, chain.head.number, chain.head.ended) for chain in heard] == [(1, 1, False), (1, 2, True)]


async def test_two_writers_have_chains_of_their_own(database: TestDatabase) -> None:
    async with writing(database) as one, writing(database) as other:
        await asyncio.gather(*(writer.record([look()]) for writer in (one, other) for _ in range(20)))
    findings = check(database.serve_url, ENCRYPTION)
    assert (findings.unchanged, findings.chains, findings.ended, findings.entries) == (True, 2, 2, 40)


async def test_a_record_that_is_refused_is_no_look_and_leaves_nothing(database: TestDatabase) -> None:
    execute(database.admin_url, "REVOKE INSERT ON access_record FROM leadkeep_app")
    async with writing(database) as writer:
        with pytest.raises(StorageUnavailableError):
            await writer.record([look()])
        execute(database.admin_url, "GRANT INSERT ON access_record TO leadkeep_app")
        await writer.record([look()])
    findings = check(database.serve_url, ENCRYPTION)
    assert (findings.unchanged, findings.entries, findings.chains) == (True, 1, 1)


async def test_a_busy_record_is_tried_again(database: TestDatabase) -> None:
    async with writing(database) as writer:
        with psycopg.connect(database.admin_url) as holder:
            holder.execute("LOCK TABLE access_record IN EXCLUSIVE MODE")
            waiting = asyncio.create_task(writer.record([look()]))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            holder.rollback()
        await waiting
    assert entries(database) == 1


async def test_a_look_that_can_wait_no_longer_fails_alone(database: TestDatabase) -> None:
    async with writing(database) as writer:
        await writer.record([look()])
        with psycopg.connect(database.admin_url) as holder:
            holder.execute("LOCK TABLE access_record IN EXCLUSIVE MODE")
            patient = asyncio.create_task(writer.record([look()]))
            with pytest.raises(StorageUnavailableError):
                await writer.record([look()], patience=0.3)
            assert not patient.done()
            # The last attempt failed just now: who would rather not wait is not let in.
            with pytest.raises(StorageUnavailableError):
                await writer.record([look()], patience=0.3)
            holder.rollback()
        await patient


async def test_after_a_commit_whose_end_is_not_known_a_new_chain_begins(database: TestDatabase) -> None:
    class LosesAnswers(Database):
        lost = 0

        async def write_once(self, work, *, alone=False):  # type: ignore[no-untyped-def]
            answer = await super().write_once(work, alone=alone)
            if LosesAnswers.lost == 1:
                LosesAnswers.lost = 2
                raise OperationalError("COMMIT", {}, psycopg.OperationalError("the connection was lost"))
            return answer

    async with writing(database, connections=LosesAnswers) as writer:
        await writer.record([look()])
        LosesAnswers.lost = 1
        await writer.record([look()])
    assert LosesAnswers.lost == 2
    findings = check(database.serve_url, ENCRYPTION)
    # The lost one is on record too: a look twice, never not at all.
    assert (findings.unchanged, findings.entries, findings.chains, findings.ended) == (True, 3, 2, 1)


async def test_an_entry_that_somebody_slipped_in_does_not_stop_the_record(database: TestDatabase) -> None:
    async with writing(database) as writer:
        await writer.record([look()])
        execute(
            database.admin_url,
            """INSERT INTO access_record (subject, operation, fields, chain_id, number, key_id, digest)
               SELECT subject, operation, fields, chain_id, number + 1, key_id, digest FROM access_record""",
        )
        with pytest.raises(StorageUnavailableError):
            await writer.record([look()])
        await writer.record([look()])
    assert [fault.kind for fault in check(database.serve_url, ENCRYPTION).faults] == ["changed"]


class TestLimit:
    async def test_a_subject_is_shown_so_many_leads_and_no_more(self, database: TestDatabase) -> None:
        async with writing(database, limit=10) as writer:
            await writer.record([look() for _ in range(9)])
            with pytest.raises(UnmaskLimitError):
                await writer.record([look(), look()])
            assert entries(database) == 9, "a list beyond the limit is refused whole"
            await writer.record([look()])
            with pytest.raises(UnmaskLimitError) as refusal:
                await writer.record([look()])
            await writer.record([look("joe")])
        assert refusal.value.metadata == {"limit": "10"}
        assert 3500 < refusal.value.retry_after <= 3600

    async def test_it_holds_for_all_replicas_and_calls_at_once(self, database: TestDatabase) -> None:
        async with writing(database, limit=25) as one, writing(database, limit=25) as other:
            looks = (writer.record([look()]) for _ in range(40) for writer in (one, other))
            done = await asyncio.gather(*looks, return_exceptions=True)
        assert [type(each).__name__ for each in done].count("UnmaskLimitError") == 55
        assert entries(database) == 25

    async def test_a_restart_does_not_reset_it(self, database: TestDatabase) -> None:
        async with writing(database, limit=2) as writer:
            await writer.record([look(), look()])
        async with writing(database, limit=2) as writer:
            with pytest.raises(UnmaskLimitError):
                await writer.record([look()])

    async def test_an_hour_later_there_is_room_again(self, database: TestDatabase) -> None:
        start = datetime.now(UTC)
        times = [start]
        async with writing(database, limit=2, now=lambda: times[0]) as writer:
            await writer.record([look()])
            times[0] = start + timedelta(minutes=20)
            await writer.record([look()])
            times[0] = start + timedelta(minutes=40)
            with pytest.raises(UnmaskLimitError) as refusal:
                await writer.record([look()])
            assert refusal.value.retry_after == pytest.approx(20 * 60, abs=1)
            times[0] = start + timedelta(minutes=61)
            await writer.record([look()])
            with pytest.raises(UnmaskLimitError):
                await writer.record([look()])

    async def test_room_can_be_asked_for_beforehand(self, database: TestDatabase) -> None:
        async with writing(database, limit=5) as writer:
            await writer.record([look()])
            await writer.require_room("ann", 4)
            with pytest.raises(UnmaskLimitError):
                await writer.require_room("ann", 5)
