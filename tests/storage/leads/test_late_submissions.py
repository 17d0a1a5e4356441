"""What was acknowledged before the database had it, when it is drained: what is stored of it, and in which order.

See test_decision.py for what becomes of it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg

from service.factories import new_id
from service.lead import ConflictResolution, SealedSubmission
from service.storage.database.database import Database
from service.storage.leads.conflicts import ConflictRepository, JoinLead
from service.storage.leads.decision import Created, DuplicateMatch, InConflict, MatchedLead
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, everyone

ACCEPTED = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)


def late(submission: SealedSubmission, *, refused: bool = False) -> SealedSubmission:
    return replace(submission, accepted_at=ACCEPTED, refused=refused)


def ask(database: TestDatabase, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.admin_url) as connection:
        return connection.execute(query.encode()).fetchall()


async def drained(store: SubmissionStore, *submissions: SealedSubmission) -> list[object]:
    outcomes = await store.create_all_once(submissions)
    return [outcomes[each.id] for each in submissions]


async def test_it_becomes_a_lead_of_the_moment_of_its_acceptance(
    store: SubmissionStore, submit: Submit, database: TestDatabase
) -> None:
    (outcome,) = await drained(store, late(submit()))
    assert isinstance(outcome, Created)
    assert ask(database, "SELECT created_at, updated_at > created_at FROM lead") == [(ACCEPTED, True)]


async def test_a_conflict_holds_its_submission_and_the_lead_that_it_matches(
    store: SubmissionStore, submit: Submit, database: TestDatabase
) -> None:
    first, second = submit(phone="+1234567"), late(submit(phone="+1234567"))
    await store.create(first)
    await drained(store, second)
    query = "SELECT id, phone_lead_id, nid_lead_id, accepted_at, phone, resolution FROM lead_conflict"
    assert ask(database, query) == [(second.id, first.id, None, ACCEPTED, second.sealed["phone"], None)]
    assert ask(database, "SELECT resubmissions FROM lead") == [(0,)]


async def test_of_two_in_one_batch_that_match_each_other_the_earlier_is_the_lead(
    store: SubmissionStore, submit: Submit
) -> None:
    first, second = late(submit(phone="+1234567")), late(submit(phone="+1234567"))
    outcomes = await drained(store, first, second)
    assert isinstance(outcomes[0], Created)
    assert outcomes[1] == InConflict(DuplicateMatch(MatchedLead(first.id, "bot"), None))


async def test_what_was_refused_in_the_spool_makes_way_and_is_kept_with_what_it_matches(
    store: SubmissionStore, submit: Submit, database: TestDatabase
) -> None:
    for number in range(20):  # the order must not be luck
        nid = f"2{number:04d}"
        first, refused = late(submit(phone=f"+123456{number:03d}", nid=nid)), late(submit(nid=nid), refused=True)
        outcomes = await drained(store, refused, first)
        assert isinstance(outcomes[1], Created)
        assert outcomes[0] == DuplicateMatch(None, MatchedLead(first.id, "bot"))
    assert ask(database, "SELECT count(*) FROM resubmission") == [(20,)]
    assert ask(database, "SELECT count(*) FROM lead_conflict") == [(0,)]


async def test_a_request_that_was_spooled_twice_is_one_conflict_under_both_ids(
    repository: LeadRepository, store: SubmissionStore, submit: Submit, connected: Database
) -> None:
    first = submit(phone="+1234567")
    await store.create(first)
    second = late(submit(request_id="r1", phone="+1234567"))
    repeated = replace(second, id=new_id())
    await drained(store, second)
    await drained(store, repeated)
    conflicts = ConflictRepository(connected)
    listed = await conflicts.list_conflicts(resolved_too=False, after=None, limit=10)
    assert [conflict.id for conflict, _ in listed] == [second.id]
    await conflicts.resolve(
        repeated.id, ConflictResolution.KEEP_FIRST, lambda kept: JoinLead(first.id, kept), actor="boss", reason=None
    )
    for each in (second.id, repeated.id):
        assert (await repository.get(each, everyone)).id == first.id


async def test_an_id_whose_conflict_was_decided_before_leads_where_that_leads(
    repository: LeadRepository, store: SubmissionStore, submit: Submit, connected: Database
) -> None:
    first = submit(phone="+1234567")
    await store.create(first)
    second = late(submit(request_id="r1", phone="+1234567"))
    await drained(store, second)
    await ConflictRepository(connected).resolve(
        second.id, ConflictResolution.KEEP_FIRST, lambda kept: JoinLead(first.id, kept), actor="boss", reason=None
    )
    repeated = replace(second, id=new_id())
    await drained(store, repeated)
    assert (await repository.get(repeated.id, everyone)).id == first.id
