"""What is erased alone goes alone, stays gone, and takes nothing of the lead beside which it was kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import text

from service.errors import IndexIncompleteError
from service.factories import new_id
from service.lead_sealer import LeadSealer
from service.scopes import ROLES, Caller
from service.storage import models
from service.storage.database.database import DIALECT, Database
from service.storage.leads.decision import Aliased, Erased
from service.storage.leads.erasing import Tombstone
from service.storage.leads.persons import Match, MatchKind, Ref, indexed_otherwise
from service.use_cases.person_service import ErasedPerson, PersonService
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, erased_with, stored_late, where

OPERATOR = Caller("operator", ROLES["admin"])
PHONE = "+8801799000001"
LEAD, RESUBMISSION, CONFLICT, WAITING = MatchKind

# What a resubmission calls otherwise than the conflict that it becomes.
RENAMED = {"submission_id": "id", "actor": "created_by", "submitted_at": "accepted_at"}


@pytest.fixture
def persons(world: World) -> PersonService:
    return world.persons


async def found(persons: PersonService, **wanted: str) -> list[Match]:
    matches, _, _ = await persons.find(wanted, page_token="", hidden=())
    return [each.match for each in matches]


async def forget(persons: PersonService, *refs: tuple[MatchKind, UUID]) -> ErasedPerson:
    return await persons.erase(OPERATOR, [Ref(*each) for each in refs], reason="asked for it")


def row_of(database: TestDatabase, table: str, column: str, wanted: UUID) -> dict[str, Any]:
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        row = connection.execute(f"SELECT * FROM {table} WHERE {column} = %s".encode(), [wanted]).fetchone()
    assert row is not None
    return row


async def test_a_kept_conflict_has_every_column_that_its_resubmission_had(
    world: World, database: TestDatabase, submit: Submit
) -> None:
    # Also one of which no part of Leadkeep knows.
    for table in ("resubmission", "lead_conflict"):
        faults.execute(database.admin_url, f"ALTER TABLE {table} ADD COLUMN trial text")
    full = {"email": "r@example.com", "notes": "n", "preferred_contact_time": "t", "source": "ad", "request_id": "r1"}
    lead, other = submit(phone=PHONE), submit(phone=PHONE, conversation_id="talk", **full)
    await world.store.create_all_once([lead])
    await world.store.create(other)
    faults.execute(database.admin_url, "UPDATE resubmission SET trial = 'kept'")
    before = row_of(database, "resubmission", "submission_id", other.id)

    await erase(world, lead.id)

    after = row_of(database, "lead_conflict", "id", other.id)
    left_behind = {"lead_id", "verified"}
    assert None not in before.values()
    assert {name for name in before if after.get(RENAMED.get(name, name)) != before[name]} == left_behind
    assert (after["found_at"] is not None, after["erased_lead_id"]) == (True, lead.id)


async def test_a_resubmission_goes_alone_and_the_lead_beside_it_is_whole(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    lead, first, last = submit(phone=PHONE), submit(phone=PHONE), submit(phone=PHONE)
    await world.store.create(lead)
    for each in (first, last):
        await world.store.create(each)

    done = await forget(persons, (RESUBMISSION, last.id))

    assert ([each.id for each in done.erased], done.not_found, done.kept) == ([last.id], [], [])
    assert (where(database, last), where(database, first)) == ({"tombstone"}, {"resubmission"})
    row = row_of(database, "lead", "id", lead.id)
    kept = row_of(database, "resubmission", "submission_id", first.id)
    assert (row["resubmissions"], row["resubmitted_at"], row["version"]) == (1, kept["submitted_at"], 1)
    assert [each.id for each in (await forget(persons, (RESUBMISSION, last.id))).erased] == [last.id]
    assert [(each.kind, each.id) for each in await found(persons, phone=PHONE)] == [
        (LEAD, lead.id),
        (RESUBMISSION, first.id),
    ]


async def test_no_copy_of_what_was_erased_alone_returns_from_a_spool_and_the_lead_stays(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    same = {"phone": PHONE, "nid": "1990000000007"}
    lead, refused = submit(**same, request_id="r0"), submit(**same, request_id="r1")
    copy = submit(**same, request_id="r1")
    await world.spool.put([copy])
    await world.store.create(lead)
    await world.store.create(refused)

    await forget(persons, (RESUBMISSION, refused.id))
    await drain(world)
    await world.store.create(refused)

    assert [where(database, each) for each in (copy, refused)] == [{"tombstone"}, {"tombstone"}]
    assert where(database, lead) == {"lead"}


async def test_what_was_erased_alone_and_comes_out_of_a_spool_once_more_takes_nothing_with_it(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    same = {"phone": PHONE, "nid": "1990000000007"}
    lead, refused = submit(**same), submit(**same)
    # As if the answer of its commit had been lost.
    await world.spool.put([refused])
    await world.store.create(lead)
    await world.store.create(refused)

    await forget(persons, (RESUBMISSION, refused.id))
    await drain(world)

    assert [where(database, each) for each in (lead, refused)] == [{"lead"}, {"tombstone"}]


async def test_a_conflict_goes_alone(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    lead, late, other = submit(phone=PHONE), submit(phone=PHONE), submit(phone=PHONE)
    await world.store.create(lead)
    await stored_late(world, late, other)

    done = await forget(persons, (CONFLICT, late.id))

    assert [each.id for each in done.erased] == [late.id]
    assert [where(database, each) for each in (lead, late, other)] == [{"lead"}, {"tombstone"}, {"lead_conflict"}]


async def test_a_resubmission_that_became_a_conflict_is_erased_where_it_is_now(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    lead, refused = submit(phone=PHONE), submit(phone=PHONE)
    await world.store.create(lead)
    await world.store.create(refused)

    done = await forget(persons, (LEAD, lead.id), (RESUBMISSION, refused.id))

    assert ([each.id for each in done.erased], done.kept) == ([lead.id, refused.id], [])
    assert await found(persons, phone=PHONE) == []
    assert [where(database, each) for each in (lead, refused)] == [{"tombstone"}, {"tombstone"}]


async def test_what_an_erasure_keeps_of_others_is_named(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    lead, refused = submit(phone=PHONE), submit(phone=PHONE)
    await world.store.create(lead)
    await world.store.create(refused)

    done = await forget(persons, (LEAD, lead.id))

    assert done.kept == [refused.id]
    assert erased_with(database, refused)[-1] == lead.id


async def test_what_waited_and_was_drained_since_is_erased_where_it_is_now(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    became_lead, became_conflict, unknown = submit(), submit(phone=PHONE), submit()
    await world.store.create(submit(phone=PHONE))
    await stored_late(world, became_lead, became_conflict)

    done = await forget(persons, *((WAITING, each.id) for each in (became_lead, became_conflict, unknown)))

    assert [each.id for each in done.erased] == [became_lead.id, became_conflict.id]
    assert [each.id for each in done.not_found] == [unknown.id]
    assert [where(database, each) for each in (became_lead, became_conflict)] == [{"tombstone"}, {"tombstone"}]
    # It may wait in a spool all the same.
    assert isinstance((await stored_late(world, unknown))[0], Erased)


async def test_the_conversation_of_an_erased_submission_leads_to_no_lead_any_more(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit, sealer: LeadSealer
) -> None:
    same = {"phone": PHONE, "nid": "1990000000008"}
    lead = submit(**same, conversation_id="own-talk")
    again = submit(**same, conversation_id="later-talk")
    await world.store.create(lead)
    await world.store.create(again)
    links = "SELECT count(*) FROM lead_conversation"
    before = faults.value_of(database.admin_url, links)
    faults.execute(database.admin_url, "DELETE FROM lead_touch")

    await forget(persons, (RESUBMISSION, again.id))

    assert (before, faults.value_of(database.admin_url, links)) == (2, 1)
    assert row_of(database, "lead_conversation", "lead_id", lead.id)["submission_id"] == lead.id
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead_touch")


async def test_tombstones_erase_alone_again_what_a_restore_has_brought_back(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    same = {"phone": PHONE, "nid": "1990000000009"}
    lead, refused = submit(**same), submit(**same)
    await world.store.create(lead)
    await world.store.create(refused)
    faults.execute(database.admin_url, "CREATE TABLE backup AS SELECT * FROM resubmission")
    await forget(persons, (RESUBMISSION, refused.id))
    stones = await world.erasures.page(None)
    faults.execute(
        database.admin_url,
        "DELETE FROM tombstone",
        "INSERT INTO resubmission SELECT * FROM backup",
        "DROP TABLE backup",
    )

    await world.erasures.erase_again(stones)

    assert [where(database, each) for each in (lead, refused)] == [{"lead"}, {"tombstone"}]
    assert [_known(each) for each in await world.erasures.page(None)] == [_known(each) for each in stones]


def _known(stone: Tombstone) -> tuple[object, ...]:
    return stone.id, stone.lead_id, stone.erased_at, stone.reason, stone.request_digest


async def test_the_alias_of_a_decided_conflict_outlives_it(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit
) -> None:
    lead = submit(request_id="r5")
    same = replace(lead, id=new_id())
    await world.store.create(lead)
    assert isinstance((await stored_late(world, same))[0], Aliased)

    done = await forget(persons, (WAITING, same.id))

    assert [each.id for each in done.erased] == [same.id]
    assert where(database, lead) == {"lead"}
    assert where(database, same) == {"lead_alias"}


@pytest.mark.parametrize("table", ["resubmission", "lead_conflict"])
@pytest.mark.parametrize(
    "index", ["NULL", "'k.other-rules.' || repeat('x', 44)", "'zz.other-rules.' || repeat('x', 44)"]
)
async def test_nothing_is_never_said_while_something_is_not_indexed(
    world: World, persons: PersonService, database: TestDatabase, submit: Submit, table: str, index: str
) -> None:
    await world.store.create(submit(phone=PHONE))
    await world.store.create(submit(phone=PHONE))
    await stored_late(world, submit(phone=PHONE))
    faults.execute(database.admin_url, f"UPDATE {table} SET phone_index = {index}, nid_index = {index}")

    with pytest.raises(IndexIncompleteError):
        await found(persons, phone="+8801799000009")


async def test_whether_all_is_indexed_is_read_from_an_index_whatever_the_statistics_are(
    connected: Database, database: TestDatabase
) -> None:
    faults.execute(
        database.admin_url,
        "SET session_replication_role = replica",
        """INSERT INTO resubmission (submission_id, lead_id, name, phone, nid, actor, verified, content_digest,
                phone_index, nid_index)
            SELECT gen_random_uuid(), gen_random_uuid(), 'N', token, token, 'bot', false, '', made, made
            FROM generate_series(1, 3000),
                (SELECT 'k.gAAAAAAAAAAA' AS token, 'k.r.' || repeat('x', 44) AS made) AS one""",
    )
    query = indexed_otherwise(models.resubmission, ["k.r."])
    plain = query.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
    for _ in range(2):
        plan = "\n".join(row[0] for row in await connected.rows(text(f"EXPLAIN {plain}")))
        assert plan.count("Index Scan using ix_resubmission_index_scheme") == 3, plan
        assert await connected.rows(query) == []
        faults.execute(database.admin_url, "ANALYZE resubmission")
