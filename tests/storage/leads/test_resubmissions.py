"""Resubmissions in the database: all of them are kept, whichever way they come in, and counted on their lead."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.factories import new_id
from service.lead import SealedResubmission, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage import schema
from service.storage.database.database import Database
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase, TestServer
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import erase, own_lead, stored_late

PHONE, NID = "+8801799000001", "1990000000001"


async def kept_with(repository: LeadRepository, lead_id: UUID, *, page: int = 7) -> list[SealedResubmission]:
    """The resubmissions of a lead, read page by page."""
    found: list[SealedResubmission] = []
    after = None
    while rows := await repository.resubmissions(lead_id, after=after, limit=page):
        found += rows
        after = (rows[-1].submitted_at, rows[-1].submission_id)
    return found


def counted(database: TestDatabase, lead_id: UUID) -> object:
    return value_of(database.admin_url, f"SELECT resubmissions FROM lead WHERE id = '{lead_id}'")


def last_time(database: TestDatabase, lead_id: UUID) -> object:
    return value_of(database.admin_url, f"SELECT resubmitted_at FROM lead WHERE id = '{lead_id}'")


async def test_of_five_callers_at_once_nothing_is_lost(
    store: SubmissionStore, repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    first = submit(phone=PHONE)
    await store.create(first)
    sent = [submit(phone=PHONE) for _ in range(44)]

    async def send(mine: list[SealedSubmission]) -> None:
        for each in mine:
            assert isinstance(await store.create(each), DuplicateMatch)

    await asyncio.gather(*(send(sent[caller::5]) for caller in range(5)))

    kept = await kept_with(repository, first.id)
    assert {each.submission_id for each in kept} == {each.id for each in sent}
    assert [each.submitted_at for each in kept] == sorted((each.submitted_at for each in kept), reverse=True)
    assert (len(kept), counted(database, first.id)) == (44, 44)
    assert last_time(database, first.id) == kept[0].submitted_at


async def test_what_was_refused_in_the_spool_is_kept_when_it_is_drained_once(
    store: SubmissionStore, repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    first = submit(phone=PHONE)
    await store.create(first)
    accepted = datetime.now(UTC) - timedelta(minutes=5)
    sent = [
        replace(submit(phone=PHONE), accepted_at=accepted + timedelta(seconds=number), refused=True)
        for number in range(44)
    ]
    for batch in (sent[:30], sent[20:], sent):
        await store.create_all_once(batch)

    kept = await kept_with(repository, first.id)
    assert [each.submission_id for each in kept] == [each.id for each in reversed(sent)]
    assert [each.submitted_at for each in kept] == [each.accepted_at for each in reversed(sent)]
    assert counted(database, first.id) == 44
    assert last_time(database, first.id) == sent[-1].accepted_at


async def test_one_that_is_drained_late_does_not_come_after_a_later_one(
    store: SubmissionStore, submit: Submit, database: TestDatabase
) -> None:
    first = submit(phone=PHONE)
    await store.create(first)
    assert last_time(database, first.id) is None
    await store.create(submit(phone=PHONE))
    later = last_time(database, first.id)

    early = datetime.now(UTC) - timedelta(hours=1)
    await store.create_all_once([replace(submit(phone=PHONE), accepted_at=early, refused=True)])

    assert (counted(database, first.id), last_time(database, first.id)) == (2, later)


async def test_a_repeated_request_is_kept_once_however_many_came_since(
    store: SubmissionStore, repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    first = submit(phone=PHONE)
    await store.create(first)
    came_back = submit(phone=PHONE, request_id="r-1")
    for each in (came_back, *(submit(phone=PHONE) for _ in range(25)), replace(came_back, id=new_id())):
        await store.create(each)

    assert len(await kept_with(repository, first.id)) == 26
    assert counted(database, first.id) == 26


async def test_an_erasure_takes_what_its_person_submitted_and_the_count_follows(
    world: World, repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    husband, wife = submit(phone=PHONE), submit(phone=PHONE, nid=NID)
    await world.create(husband)
    await stored_late(world, wife)
    await own_lead(world, wife)
    hers = [submit(phone=PHONE, nid=NID) for _ in range(22)]
    others = [submit(phone=PHONE) for _ in range(22)]
    for each in (*hers, *others):
        await world.store.create(each)
    assert [counted(database, lead.id) for lead in (husband, wife)] == [44, 22]

    more = [submit(phone=PHONE) for _ in range(10)] + [submit(phone=PHONE, nid=NID) for _ in range(10)]
    await asyncio.gather(erase(world, wife.id), *(world.store.create(each) for each in more))

    kept = {each.submission_id for each in await kept_with(repository, husband.id)}
    assert {each.id for each in others} | {each.id for each in more[:10]} <= kept
    assert not kept & {each.id for each in hers}
    assert counted(database, husband.id) == len(kept)
    [newest, *_] = await kept_with(repository, husband.id)
    assert last_time(database, husband.id) == newest.submitted_at


async def test_calls_go_on_while_a_person_with_many_neighbours_is_erased(world: World, submit: Submit) -> None:
    first = submit(phone=PHONE)
    await world.create(first)
    await world.store.create_all_once([submit(phone=PHONE) for _ in range(300)])
    longest = 0.0
    begun = turn = time.thread_time()
    erasing = asyncio.create_task(erase(world, first.id))
    while not erasing.done():
        await asyncio.sleep(0)
        longest, turn = max(longest, time.thread_time() - turn), time.thread_time()
    # Opening them all is nearly all that this thread did, and it did not do it at once.
    assert longest < (turn - begun) / 4


async def test_the_rows_of_the_ring_survive_the_migration_in_their_order(
    postgres_server: TestServer, submit: Submit, sealer: LeadSealer, spool: Spool, store: SubmissionStore
) -> None:
    database = postgres_server.database_at("0006")
    lead, kept = submit(phone=PHONE), [submit(phone=PHONE) for _ in range(20)]
    columns = "name, phone, nid, address, interested_policy, content_digest"

    def values(each: SealedSubmission) -> str:
        fields = [each.fields[name] for name in ("name", "phone", "nid", "address", "interested_policy")]
        return ", ".join(f"'{value}'" for value in (*fields, f"\\x{each.content_digest.hex()}"))

    execute(
        database.admin_url,
        f"INSERT INTO lead (id, resubmissions, phone_index, nid_index, created_by, {columns}) VALUES"
        f" ('{lead.id}', 25, '\\x{'aa' * 32}', '\\x{'bb' * 32}', 'bot', {values(lead)})",
    )
    # The 21st to 25th have replaced the first 5.
    for number, each in enumerate(kept, start=5):
        execute(
            database.admin_url,
            f"INSERT INTO resubmission (lead_id, slot, submission_id, actor, verified, submitted_at, {columns}) VALUES"
            f" ('{lead.id}', {number % 20}, '{each.id}', 'bot', false, '2026-01-01 00:00:{number:02}Z',"
            f" {values(each)})",
        )
    schema.migrate(database.admin_url)

    connected = Database(database.serve_url)
    found = await kept_with(
        LeadRepository(connected, spool, LeadWriter(store, spool, Outage(), RecentRequests())), lead.id
    )
    await connected.close()
    assert [each.submission_id for each in found] == [each.id for each in reversed(kept)]
    assert [sealer.open_resubmission(each).phone for each in found] == [PHONE] * 20
    assert counted(database, lead.id) == 25
    assert last_time(database, lead.id) == datetime(2026, 1, 1, 0, 0, 24, tzinfo=UTC)
    assert value_of(database.admin_url, "SELECT count(*) > 0 FROM lead_touch"), "its day's file shows the slots"
