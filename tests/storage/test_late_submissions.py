"""What was acknowledged before the database had it, when it comes out of the spool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from service.lead import ConflictResolution, SealedSubmission
from service.sealing import LeadSealer
from service.storage.conflicts import ConflictRepository, KeepFirst
from service.storage.database import Database
from service.storage.outcomes import Aliased, Created, InConflict, Met, MetLead, RequestIdReused, Waiting
from service.storage.repository import LeadRepository
from tests.harness.postgres import TestDatabase

ACCEPTED = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)

Submit = Callable[..., SealedSubmission]


@pytest.fixture
def submit(sealer: LeadSealer) -> Submit:
    """Submissions of different people; `late=True` for one that was acknowledged before."""
    from service.factories import new_id
    from service.lead import CustomerFields

    numbers = iter(range(1, 1000))

    def make(*, request_id: str | None = None, late: bool = False, subject: str = "bot", **fields: str) -> Any:
        number = next(numbers)
        made_up = {
            "name": "Somebody",
            "phone": f"+88017{number:08d}",
            "nid": f"19{number:011d}",
            "address": "1 Lake Road",
            "interested_policy": "Term Life",
        }
        details = CustomerFields(**(made_up | fields))
        sealed = sealer.seal(new_id(), details, created_by=subject, request_id=request_id)
        return replace(sealed, accepted_at=ACCEPTED) if late else sealed

    return make


def again(submission: SealedSubmission, sealer: LeadSealer, *, late: bool = True) -> SealedSubmission:
    """The same request once more, under another id, as a repeat is sealed."""
    from service.factories import new_id

    return replace(submission, id=new_id(), accepted_at=ACCEPTED if late else None)


def ask(database: TestDatabase, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.admin_url) as connection:
        return connection.execute(query.encode()).fetchall()


async def drained(repository: LeadRepository, *submissions: SealedSubmission) -> list[object]:
    outcomes = await repository.create_all_once(submissions)
    return [outcomes[each.id] for each in submissions]


async def test_it_becomes_a_lead_of_the_moment_of_its_acceptance(
    repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    late = submit(late=True)
    (outcome,) = await drained(repository, late)
    assert isinstance(outcome, Created)
    assert ask(database, "SELECT created_at, updated_at > created_at FROM lead") == [(ACCEPTED, True)]


async def test_drained_twice_it_is_one_lead(repository: LeadRepository, submit: Submit, database: TestDatabase) -> None:
    late = submit(late=True)
    await drained(repository, late)
    (outcome,) = await drained(repository, late)
    assert isinstance(outcome, Created)
    assert outcome.lead.id == late.id
    assert ask(database, "SELECT count(*) FROM lead") == [(1,)]


@pytest.mark.parametrize("field", ["phone", "nid"])
async def test_one_that_meets_a_lead_waits_for_a_person(
    repository: LeadRepository, submit: Submit, database: TestDatabase, field: str
) -> None:
    first = submit(phone="+1234567", nid="19990")
    await repository.create(first)
    late = submit(late=True, **{field: {"phone": "+1234567", "nid": "19990"}[field]})
    assert await drained(repository, late) == [InConflict()]
    query = f"SELECT id, {field}_lead_id, accepted_at, phone, resolution FROM lead_conflict"
    assert ask(database, query) == [(late.id, first.id, ACCEPTED, late.sealed["phone"], None)]
    assert ask(database, "SELECT resubmissions FROM lead") == [(0,)]


async def test_drained_twice_it_is_one_conflict(
    repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    await repository.create(submit(phone="+1234567"))
    late = submit(late=True, phone="+1234567")
    assert await drained(repository, late) == await drained(repository, late) == [InConflict()]
    assert ask(database, "SELECT count(*) FROM lead_conflict") == [(1,)]


async def test_of_two_that_meet_each_other_the_earlier_is_the_lead(
    repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    first, second = submit(late=True, phone="+1234567"), submit(late=True, phone="+1234567")
    outcomes = await drained(repository, first, second)
    assert isinstance(outcomes[0], Created)
    assert outcomes[1] == InConflict()


async def test_what_was_refused_in_the_spool_makes_way_and_is_kept_with_what_it_met(
    repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    for _ in range(20):  # the order must not be luck
        number = int(ask(database, "SELECT count(*) FROM lead")[0][0])
        first = submit(late=True, phone=f"+123456{number:03d}", nid=f"2{number:04d}")
        refused = replace(submit(late=True, nid=f"2{number:04d}"), refused=True)
        outcomes = await drained(repository, refused, first)
        assert isinstance(outcomes[1], Created)
        assert outcomes[0] == Met(None, MetLead(first.id, "bot"))
    assert ask(database, "SELECT count(*) FROM resubmission") == [(20,)]
    assert ask(database, "SELECT count(*) FROM lead_conflict") == [(0,)]


async def test_a_request_that_another_replica_saved_makes_an_alias(
    repository: LeadRepository, submit: Submit, sealer: LeadSealer
) -> None:
    saved = submit(request_id="r1")
    await repository.create(saved)
    late = again(saved, sealer)
    assert await drained(repository, late) == await drained(repository, late) == [Aliased()]
    found = await repository.get(late.id)
    assert found is not None
    assert found.id == saved.id


async def test_a_request_id_that_was_used_for_other_content_waits_for_a_person(
    repository: LeadRepository, submit: Submit, database: TestDatabase
) -> None:
    saved = submit(request_id="r1")
    await repository.create(saved)
    late = submit(request_id="r1", late=True)
    assert await drained(repository, late) == [InConflict()]
    assert ask(database, "SELECT request_lead_id, phone_lead_id FROM lead_conflict") == [(saved.id, None)]


async def test_a_repeat_of_a_request_in_conflict_hears_what_was_acknowledged(
    repository: LeadRepository, submit: Submit, sealer: LeadSealer
) -> None:
    await repository.create(submit(phone="+1234567"))
    late = submit(request_id="r1", late=True, phone="+1234567")
    await drained(repository, late)
    assert await repository.create(again(late, sealer, late=False)) == Waiting(late.id, ACCEPTED)
    assert await repository.create(submit(request_id="r1")) == RequestIdReused()


async def resolve(connected: Database, repository: LeadRepository, conflict: UUID, lead: UUID) -> None:
    conflicts = ConflictRepository(connected, repository)
    await conflicts.resolve(
        conflict, ConflictResolution.KEEP_FIRST, lambda _: KeepFirst(lead), actor="boss", reason=None
    )


async def test_a_request_that_was_spooled_twice_is_one_conflict_under_both_ids(
    repository: LeadRepository, submit: Submit, sealer: LeadSealer, connected: Database
) -> None:
    first = submit(phone="+1234567")
    await repository.create(first)
    late = submit(request_id="r1", late=True, phone="+1234567")
    repeated = again(late, sealer)
    assert await drained(repository, late) == await drained(repository, repeated) == [InConflict()]
    conflicts = ConflictRepository(connected, repository)
    listed = await conflicts.list_conflicts(resolved_too=False, after=None, limit=10)
    assert [conflict.id for conflict, _ in listed] == [late.id]
    known = await repository.acknowledged(repeated.id)
    assert known is not None
    assert known.conflict_id == late.id
    await resolve(connected, repository, repeated.id, first.id)
    for each in (late.id, repeated.id):
        found = await repository.get(each)
        assert found is not None
        assert found.id == first.id


async def test_a_request_whose_conflict_was_decided_leads_where_that_leads(
    repository: LeadRepository, submit: Submit, sealer: LeadSealer, connected: Database
) -> None:
    first = submit(phone="+1234567")
    await repository.create(first)
    late = submit(request_id="r1", late=True, phone="+1234567")
    await drained(repository, late)
    await resolve(connected, repository, late.id, first.id)
    repeated = again(late, sealer)
    assert await drained(repository, repeated) == [Aliased()]
    found = await repository.get(repeated.id)
    assert found is not None
    assert found.id == first.id
