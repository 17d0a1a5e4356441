"""Phone and nid stay unique when the lead that had them goes or changes its own: one that shares them takes over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import psycopg
import pytest

from service.lead import LeadStatus, SealedLead, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.leads.decision import Created, DuplicateMatch, InConflict
from service.storage.leads.erasures import RetentionRule, erase_due
from service.storage.leads.import_export import hand_over_indexes
from service.storage.leads.repository import LeadRepository
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until
from tests.storage.conftest import Submit, everyone
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, own_lead, stored_late

SHARED = [{"phone": "+8801799000001"}, {"nid": "1990000000001"}]
ORPHANS = """
    SELECT count(*) FROM lead s WHERE
        (s.phone_shared AND NOT EXISTS (SELECT FROM lead h WHERE NOT h.phone_shared
            AND (h.phone_index = s.phone_index OR h.phone_index_2 = s.phone_index_2)))
        OR (s.nid_shared AND NOT EXISTS (SELECT FROM lead h WHERE NOT h.nid_shared
            AND (h.nid_index = s.nid_index OR h.nid_index_2 = s.nid_index_2)))
"""
"""How many leads share a phone or nid that no lead has in the unique index."""


@pytest.fixture
def repository(world: World) -> LeadRepository:
    return LeadRepository(world.database, world.spool, world.writer)


Leave = Callable[[SealedSubmission], Awaitable[object]]


@pytest.fixture(params=["erased", "too old", "corrected"])
def leave(request: pytest.FixtureRequest, world: World, repository: LeadRepository, sealer: LeadSealer) -> Leave:
    """How a lead gives its phone and nid up."""

    async def erased(lead: SealedSubmission) -> object:
        return await erase(world, lead.id)

    async def too_old(lead: SealedSubmission) -> object:
        rule = RetentionRule(LeadStatus.NEW, datetime.now(UTC) + timedelta(minutes=1))
        return await erase_due(world.database, rule, [lead.id], actor="cli:ops", reason=None)

    async def corrected(lead: SealedSubmission) -> object:
        values = {"phone": "+8801799000099", "nid": "1990000000099"}
        return await repository.correct(lead.id, lambda _: sealer.correction(lead.id, values, actor="sam"), everyone)

    return {"erased": erased, "too old": too_old, "corrected": corrected}[request.param]


async def beside(world: World, *submissions: SealedSubmission) -> None:
    """Make leads of submissions that share something with a lead."""
    for each in submissions:
        (outcome,) = await stored_late(world, each)
        assert isinstance(outcome, InConflict)
        await own_lead(world, each)


async def test_what_a_lead_shares_is_matched_with_the_first_lead_also_where_its_own_nid_matches(
    world: World, submit: Submit
) -> None:
    first, second = submit(**SHARED[0]), submit(**SHARED[0], **SHARED[1])
    await world.create(first)
    await beside(world, second)

    outcome = await world.create(submit(**SHARED[0], **SHARED[1]))

    assert isinstance(outcome, DuplicateMatch)
    assert (outcome.phone and outcome.phone.id, outcome.nid and outcome.nid.id) == (first.id, second.id)


@pytest.mark.parametrize("shared", SHARED)
async def test_the_lead_that_shared_it_refuses_duplicates_when_the_first_lead_is_gone(
    world: World, submit: Submit, leave: Leave, shared: dict[str, str]
) -> None:
    first, second = submit(**shared), submit(**shared)
    await world.create(first)
    await beside(world, second)

    await leave(first)

    outcome = await world.create(submit(**shared))
    assert isinstance(outcome, DuplicateMatch)
    assert [lead.id for lead in outcome.leads] == [second.id]


async def test_of_three_that_share_it_one_takes_over_each_time(
    world: World, submit: Submit, database: TestDatabase, leave: Leave
) -> None:
    leads = [submit(**SHARED[0]) for _ in range(3)]
    await world.create(leads[0])
    await beside(world, *leads[1:])
    for gone, next_one in ((leads[0], leads[1]), (leads[1], leads[2])):
        await leave(gone)
        outcome = await world.create(submit(**SHARED[0]))
        assert isinstance(outcome, DuplicateMatch)
        assert [lead.id for lead in outcome.leads] == [next_one.id]
        assert faults.value_of(database.admin_url, ORPHANS) == 0
        await erase(world, gone.id)  # where it was corrected: the next one is corrected to the same values


async def test_phone_and_nid_of_two_leads_are_handed_over_apart(
    world: World, submit: Submit, database: TestDatabase, leave: Leave
) -> None:
    with_phone, with_nid, both = submit(**SHARED[0]), submit(**SHARED[1]), submit(**SHARED[0], **SHARED[1])
    await world.create(with_phone)
    await world.create(with_nid)
    await beside(world, both)

    await leave(with_phone)

    found = await world.create(submit(**SHARED[0]))
    other = await world.create(submit(**SHARED[1]))
    assert isinstance(found, DuplicateMatch)
    assert isinstance(other, DuplicateMatch)
    assert (found.leads[0].id, other.leads[0].id) == (both.id, with_nid.id)
    assert faults.value_of(database.admin_url, ORPHANS) == 0


async def test_the_phone_is_free_when_the_last_lead_that_shared_it_is_gone(
    world: World, submit: Submit, leave: Leave
) -> None:
    first, second = submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await beside(world, second)
    await leave(second)
    await erase(world, first.id)
    assert isinstance(await world.create(submit(**SHARED[0])), Created)


async def test_an_insert_that_waits_for_the_entry_finds_it_taken_over(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    first, second = submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await beside(world, second)
    faults.execute(
        database.admin_url,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS"
        f" $$ BEGIN PERFORM pg_advisory_xact_lock_shared({faults.GATE}); RETURN NULL; END $$",
        # By its name it runs before the trigger that hands over.
        "CREATE TRIGGER a_gate AFTER DELETE ON lead FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    with faults.closed_gate(database.admin_url):
        erasing = asyncio.create_task(erase(world, first.id))
        await until(lambda: faults.waits_at_gate(database.admin_url))
        creating = asyncio.create_task(world.create(submit(**SHARED[0])))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        await until(lambda: faults.value_of(database.admin_url, waiting))
    await erasing
    outcome = await creating
    assert isinstance(outcome, DuplicateMatch)
    assert [lead.id for lead in outcome.leads] == [second.id]


async def test_a_decision_waits_for_the_lead_that_it_shares_with(
    world: World, submit: Submit, repository: LeadRepository, sealer: LeadSealer, database: TestDatabase
) -> None:
    """Else that lead gives its phone up, knows of nobody who shares it, and the new lead shares it with none."""
    first, second = submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await stored_late(world, second)
    with psycopg.connect(database.admin_url) as correcting:
        correcting.execute("SELECT FROM lead WHERE id = %s FOR UPDATE", [first.id])
        correcting.execute("UPDATE lead SET phone_index = %s WHERE id = %s", [bytes(32), first.id])
        deciding = asyncio.create_task(own_lead(world, second))
        await until(lambda: faults.value_of(database.admin_url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))
        correcting.commit()
    await deciding
    assert faults.value_of(database.admin_url, ORPHANS) == 0
    assert isinstance(await world.create(submit(**SHARED[0])), DuplicateMatch)


@pytest.fixture(params=["", "enable_seqscan", "enable_hashjoin enable_mergejoin", "enable_nestloop", "enable_sort"])
def other_plans(request: pytest.FixtureRequest, database: TestDatabase) -> None:
    """The database plans as for tables of other sizes."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        for setting in request.param.split():
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting} = off".encode())


@pytest.mark.usefixtures("other_plans")
async def test_a_correction_that_waited_for_another_one_finds_its_lead(
    database: TestDatabase, world: World, submit: Submit, repository: LeadRepository, sealer: LeadSealer
) -> None:
    for number in range(8):  # what PostgreSQL missed depended on the ids
        lead, sharing = (submit(phone=f"+880179900001{number}") for _ in range(2))
        await world.create(lead)
        await beside(world, sharing)
        correction = Mock(return_value=sealer.correction(lead.id, {"name": "Rahima"}, actor="sam"))
        with psycopg.connect(database.admin_url) as other:
            other.execute("UPDATE lead SET version = version + 1 WHERE id = %s", [lead.id])
            correcting = asyncio.create_task(repository.correct(lead.id, correction, everyone))
            await until(lambda: faults.value_of(database.admin_url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))
            other.commit()
        corrected = await correcting
        assert isinstance(corrected, SealedLead)
        assert corrected.version == 3


async def test_a_conflict_that_waits_meanwhile_becomes_a_lead_beside_the_one_that_took_over(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    first, second, waiting = submit(**SHARED[0]), submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await beside(world, second)
    await stored_late(world, waiting)
    await erase(world, first.id)
    await own_lead(world, waiting)
    shared = "SELECT array_agg(id ORDER BY id) FROM lead WHERE phone_shared"
    assert faults.value_of(database.admin_url, shared) == [waiting.id]
    assert faults.value_of(database.admin_url, ORPHANS) == 0


async def test_a_drained_submission_matches_the_lead_that_took_over(
    world: World, submit: Submit, leave: Leave, database: TestDatabase
) -> None:
    first, second, spooled = submit(**SHARED[0]), submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await beside(world, second)
    await leave(first)
    await world.spool.put([spooled])
    await drain(world)
    matched = f"SELECT phone_lead_id FROM lead_conflict WHERE id = '{spooled.id}'"
    assert faults.value_of(database.admin_url, matched) == second.id


async def test_leads_of_a_restored_file_take_over_what_nobody_has(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    """The lead that had it was erased since the file was written."""
    restored, both = submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(restored)
    faults.execute(database.admin_url, "UPDATE lead SET phone_shared = true")
    await hand_over_indexes(world.database)
    assert isinstance(await world.create(both), DuplicateMatch)


async def test_a_lead_whose_shared_index_is_emptied_takes_its_other_one_over(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    """Two phones that an old rule took for one are two by the new rule."""
    first, second = submit(**SHARED[0]), submit(**SHARED[0])
    await world.create(first)
    await beside(world, second)
    faults.execute(
        database.admin_url,
        "UPDATE lead SET phone_index_2 = sha256(id::text::bytea), nid_index_2 = sha256(nid_index)",
        f"UPDATE lead SET phone_index = NULL, nid_index = NULL WHERE id = '{second.id}'",
        "UPDATE lead SET phone_index = NULL, nid_index = NULL",
    )
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead WHERE phone_shared") == 0
