"""A lead's history as it is stored: an event if and only if there is its change, and an order that pages can follow."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from service.errors import StorageUnavailableError
from service.factories import new_id
from service.lead import LeadEvent, LeadEventType, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.database.failures import StorageFaultError
from service.storage.leads.changes import LeadHistory, Place, Step
from service.storage.leads.decision import Created
from service.storage.leads.import_export import import_leads
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from tests.harness import histories
from tests.harness.faults import execute, value_of
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, everyone

CONTACTED = Step(column="status", to="contacted", actor="sam", reason=None)


def late(submission: SealedSubmission) -> SealedSubmission:
    """As it comes out of a spool."""
    accepted_at = datetime.now(UTC) - timedelta(hours=1)
    return replace(submission, accepted_at=accepted_at, accepted_between=(accepted_at, accepted_at))


async def events_of(history: LeadHistory, lead_id: UUID) -> list[LeadEvent]:
    page = await history.page(lead_id, after=None, limit=100, newest_first=False, with_accesses=False)
    return [event for event, _ in page]


async def test_every_way_in_leaves_one_event_of_a_creation(
    connected: Database, store: SubmissionStore, history: LeadHistory, submit: Submit, database: TestDatabase
) -> None:
    saved, drained = submit(), late(submit(request_id="r-1"))
    alias, repeated = late(replace(drained, id=new_id())), replace(saved, id=new_id())
    resubmitted = late(submit(phone="+8801711111111"))
    imported, tried = submit(created_by="import"), submit(created_by="import")
    await store.create_all_once([saved, submit(phone="+8801711111111")])
    for submission in (drained, alias, repeated, replace(resubmitted, refused=True)):
        await store.create(submission)
    await import_leads(connected, [imported], dry_run=False)
    await import_leads(connected, [tried], dry_run=True)

    assert value_of(database.admin_url, histories.WRONG) == 0
    assert value_of(database.admin_url, "SELECT count(*) FROM lead_event WHERE type = 1") == 4
    [created] = await events_of(history, imported.id)
    assert (created.type, created.actor, created.version) == (LeadEventType.CREATED, "import", 1)
    [created] = await events_of(history, drained.id)
    assert created.at == drained.accepted_at


async def test_without_its_event_nothing_is_stored(
    store: SubmissionStore,
    repository: LeadRepository,
    history: LeadHistory,
    sealer: LeadSealer,
    submit: Submit,
    database: TestDatabase,
) -> None:
    lead = submit(phone="+8801722222222")
    await store.create(lead)
    before = await repository.get(lead.id, everyone)
    execute(database.admin_url, "REVOKE INSERT ON lead_event FROM leadkeep_app")
    correction = sealer.correction(lead.id, {"name": "Rahima"}, actor="sam")

    for change in (
        lambda: store.create_all_once([submit()]),
        lambda: store.create_all_once([submit(phone="+8801722222222")]),
        lambda: repository.change(lead.id, lambda _: CONTACTED, everyone),
        lambda: repository.correct(lead.id, lambda _: correction, everyone),
    ):
        with pytest.raises((StorageFaultError, StorageUnavailableError, psycopg.Error)):
            await change()

    execute(database.admin_url, "GRANT INSERT ON lead_event TO leadkeep_app")
    assert await repository.get(lead.id, everyone) == before
    assert value_of(database.admin_url, "SELECT count(*) FROM lead") == 1
    assert value_of(database.admin_url, "SELECT count(*) FROM resubmission") == 0
    assert value_of(database.admin_url, histories.WRONG) == 0


async def test_a_duplicate_that_several_leads_match_is_an_event_of_each(
    store: SubmissionStore, history: LeadHistory, submit: Submit
) -> None:
    leads = [submit(phone="+8801733333333"), submit(nid="1990123456789")]
    for lead in leads:
        assert isinstance(await store.create(lead), Created)
    repeated = submit(phone="+8801733333333", nid="1990123456789", request_id="r-2")
    for _ in range(2):
        await store.create(replace(repeated, id=new_id()))

    for lead in leads:
        found = await events_of(history, lead.id)
        assert [event.type for event in found] == [LeadEventType.CREATED, LeadEventType.RESUBMITTED]


def insert_events(database: TestDatabase, lead_id: UUID, rng: random.Random) -> list[datetime]:
    """Events and looks whose moments are in no order, and repeat; the moments of the events."""
    start = datetime(2026, 1, 31, tzinfo=UTC)
    moments = [start + timedelta(seconds=rng.randrange(12)) for _ in range(12)]
    with psycopg.connect(database.admin_url) as connection:
        for number, moment in enumerate(moments):
            connection.execute(
                "INSERT INTO lead_event (lead_id, type, version, actor, at) VALUES (%s, 2, %s, 'sam', %s)",
                [lead_id, 1 + number // 2, moment],
            )
            connection.execute(
                "INSERT INTO access_record (recorded_at, subject, operation, lead_id, fields)"
                " VALUES (%s, 'ann', 'GetLead', %s, '{phone}')",
                [start + timedelta(seconds=rng.randrange(12)), lead_id],
            )
    return moments


async def paged(history: LeadHistory, lead_id: UUID, size: int, *, newest_first: bool) -> list[LeadEvent]:
    found: list[LeadEvent] = []
    after: Place | None = None
    while page := await history.page(lead_id, after=after, limit=size, newest_first=newest_first, with_accesses=True):
        found += [event for event, _ in page]
        after = page[-1][1]
    return found


@pytest.mark.parametrize("seed", range(2))
async def test_looks_have_one_place_among_events_whose_moments_go_back(
    history: LeadHistory, database: TestDatabase, seed: int
) -> None:
    lead_id = new_id()
    moments = insert_events(database, lead_id, random.Random(seed))

    whole = await paged(history, lead_id, 100, newest_first=False)

    events = [each for each in whole if each.type is LeadEventType.CORRECTED]
    looks = [each for each in whole if each.type is LeadEventType.REVEALED]
    assert [each.at for each in events] == moments
    assert [each.at for each in looks] == sorted(each.at for each in looks)
    for place, each in enumerate(whole):
        if each.type is LeadEventType.REVEALED:
            later = [event.at for event in whole[place:] if event.type is LeadEventType.CORRECTED]
            before = [event.at for event in whole[:place] if event.type is LeadEventType.CORRECTED]
            assert all(at <= each.at for at in before)
            assert not later or later[0] > each.at or max([*before, later[0]]) > each.at
    for size in (1, 7):
        assert await paged(history, lead_id, size, newest_first=False) == whole
        assert await paged(history, lead_id, size, newest_first=True) == whole[::-1]
