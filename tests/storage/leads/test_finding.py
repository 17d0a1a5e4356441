"""A reference is the same in SQL as in Python, what waits is never called missing, and finding reads no whole table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import select
from sqlalchemy.dialects import postgresql

from service.errors import LeadInConflictError, StorageUnavailableError
from service.factories import new_id
from service.keys.encryption import EncryptionService
from service.lead import LeadOrder
from service.lead_sealer import LeadSealer
from service.storage import models
from service.storage.database.database import Database
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.leads.queries import CONDITIONS, LEAD, NOT_FOUND_BY_EMAIL, Filters
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from service.validation.reference import REFERENCE_BYTES, read_reference, reference_of
from tests.harness.faults import broken_spool, execute, value_of
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit


def by_reference(lead_id: UUID, **more: str) -> Filters:
    return {"reference": read_reference(reference_of(lead_id)), **more}


async def found(repository: LeadRepository, wanted: Filters) -> Sequence[UUID]:
    page = await repository.list_leads(wanted, LeadOrder.CREATED_DESC, after=None, limit=10)
    return [lead.id for _, lead in page]


def test_sql_and_python_find_the_same_end_of_every_id(database: TestDatabase) -> None:
    ids = [*(new_id() for _ in range(2000)), *(uuid4() for _ in range(2000)), UUID(int=0), UUID(int=2**128 - 1)]
    with psycopg.connect(database.serve_url) as connection:
        query = f"SELECT id, {models.reference_of('id')} FROM unnest(%s::uuid[]) AS given (id)"
        ends: dict[UUID, bytes] = dict(connection.execute(query.encode(), [ids]).fetchall())

    assert ends == {each: read_reference(reference_of(each)) for each in ids}
    assert {len(end) for end in ends.values()} == {REFERENCE_BYTES}


class TestWaiting:
    async def test_a_reference_of_what_waits_in_the_spool_is_not_called_missing(
        self, repository: LeadRepository, spool: Spool, submit: Submit
    ) -> None:
        waiting = submit()
        await spool.put([waiting, submit(), submit()])

        with pytest.raises(StorageUnavailableError):
            await found(repository, by_reference(waiting.id))
        with pytest.raises(StorageUnavailableError):
            await found(repository, by_reference(waiting.id, reader="bot"))
        assert await found(repository, by_reference(waiting.id, reader="another")) == []
        assert await found(repository, by_reference(new_id())) == []

    async def test_it_is_found_when_it_was_drained(
        self, repository: LeadRepository, spool: Spool, store: SubmissionStore, sealer: LeadSealer, submit: Submit
    ) -> None:
        waiting = submit(email="Late@example.com")
        await spool.put([waiting])
        [drained] = (await spool.oldest(10, sealer.resealed_and_reindexed)).submissions
        await store.create(drained)
        await spool.remove([waiting.id])

        assert await found(repository, by_reference(waiting.id)) == [waiting.id]
        assert await found(repository, {"email": sealer.email_indexes("late@example.com")}) == [waiting.id]

    async def test_what_the_database_has_is_found_while_the_spool_cannot_be_read(
        self,
        connected: Database,
        store: SubmissionStore,
        submit: Submit,
        encryption: EncryptionService,
        tmp_path: Path,
    ) -> None:
        stored = submit()
        await store.create(stored)
        broken_spool(tmp_path)
        spool = Spool(tmp_path / "spool", encryption, max_bytes=100_000_000)
        repository = LeadRepository(connected, spool, LeadWriter(store, spool, Outage(), RecentRequests()))
        try:
            assert await found(repository, by_reference(stored.id)) == [stored.id]
            with pytest.raises(StorageUnavailableError):
                await found(repository, by_reference(new_id()))
        finally:
            spool.close()

    async def test_a_copy_that_became_an_alias_finds_the_lead(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        first = submit(request_id="r-1")
        await store.create(first)
        copy = replace(first, id=new_id(), accepted_at=datetime.now(UTC))
        await store.create(copy)

        assert await found(repository, by_reference(copy.id)) == [first.id]

    async def test_what_repeats_a_conflict_names_the_conflict(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        first = submit()
        await store.create(first)
        late = submit(phone="+8801799000111", request_id="late")
        late = replace(late, indexes=replace(late.indexes, nid=first.indexes.nid), accepted_at=datetime.now(UTC))
        copy = replace(late, id=new_id())
        for each in (late, copy):
            await store.create(each)

        for each in (late, copy):
            with pytest.raises(LeadInConflictError) as refused:
                await found(repository, by_reference(each.id))
            assert refused.value.metadata == {"conflict_id": str(late.id)}


@pytest.fixture
def many(database: TestDatabase) -> TestDatabase:
    """A table of which no planner reads the whole, without statistics, as after `migrate`."""
    execute(
        database.admin_url,
        "INSERT INTO lead (id, name, phone, email, email_index, phone_index, created_by, content_digest)"
        " SELECT gen_random_uuid(), 'N', 'k.gAAAAAAAAAAA', 'k.gAAAAAAAAAAA', 'i1.' || n, sha256(n::text::bytea),"
        " 'b', '' FROM generate_series(1, 3000) n",
    )
    return database


def plan_of(connection: psycopg.Connection, wanted: Filters) -> str:
    """The plan that serves every value: the statement is prepared, and its parameters are not looked at."""
    query = select(LEAD.c.id).where(*(CONDITIONS[name](value) for name, value in wanted.items()))
    compiled = query.compile(dialect=postgresql.dialect(paramstyle="numeric_dollar"))  # type: ignore[no-untyped-call]
    rows = connection.execute(f"EXPLAIN (GENERIC_PLAN) {compiled}".encode())
    return "\n".join(line for (line,) in rows)


@pytest.mark.parametrize("analysed", [False, True])
def test_finding_uses_its_indexes(many: TestDatabase, analysed: bool) -> None:
    with psycopg.connect(many.admin_url, autocommit=True) as connection:
        connection.execute("ANALYZE lead" if analysed else "SELECT")
        by_email = plan_of(connection, {"email": ("i1.1", "i2.1")})
        by_id = plan_of(connection, by_reference(uuid4()))

    assert "ix_lead_email_index" in by_email
    assert "ix_lead_reference" in by_id
    assert "Seq Scan on lead " not in by_email + by_id


@pytest.mark.parametrize("analysed", [False, True])
def test_whether_every_email_is_indexed_is_found_without_reading_the_leads(many: TestDatabase, analysed: bool) -> None:
    execute(many.admin_url, "UPDATE lead SET email_index = NULL")
    if analysed:
        # The statistics go on saying that most leads lack it, when none does any more.
        execute(many.admin_url, "ANALYZE lead")
    execute(many.admin_url, "UPDATE lead SET email_index = 'i1.x'")

    plan = str(value_of(many.admin_url, f"EXPLAIN (FORMAT JSON) {NOT_FOUND_BY_EMAIL}"))

    assert "ix_lead_lacks_email_index" in plan
    assert "Seq Scan" not in plan
