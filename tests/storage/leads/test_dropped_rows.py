"""A trigger or a rule of somebody else's drops rows without an error: nothing that was not stored is confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from unittest.mock import Mock

import pytest

from service.errors import StorageUnavailableError
from service.factories import new_id
from service.lead import ConflictResolution, LeadStatus, SealedLead, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.failures import StorageFaultError
from service.storage.intake.drain import DrainRound
from service.storage.leads.changes import Step
from service.storage.leads.conflicts import ConflictRepository, JoinLead
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.repository import LeadRepository
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.refusals import DROPPING, REFUSALS, dropping, refusing
from tests.storage.access.test_writer import look, writing
from tests.storage.conftest import Submit, everyone
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, own_lead, stored_late, where

SHARED = {"phone": "+8801799000001"}


@pytest.fixture
def repository(world: World) -> LeadRepository:
    return LeadRepository(world.database, world.spool, world.writer)


@pytest.mark.parametrize("table", ["lead_conflict", "lead_alias"])
async def test_what_was_acknowledged_stays_in_the_spool(
    world: World, submit: Submit, database: TestDatabase, table: str
) -> None:
    request = SHARED | {"nid": "1990000000001", "request_id": "r1", "name": "Rahima"}
    await world.create(submit(**request))
    late = submit(**SHARED) if table == "lead_conflict" else submit(**request)
    await world.spool.put([late])
    with refusing(database, DROPPING[table]):
        assert await world.drain.step() is DrainRound.UNREACHABLE
        assert world.outage.refused
        assert world.spool.size.waiting == 1
    await drain(world)
    assert where(database, late) == {table}


async def test_a_refused_duplicate_is_answered_only_when_it_is_kept(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    first, second = submit(**SHARED), submit(**SHARED)
    await world.create(first)
    with refusing(database, REFUSALS["a trigger drops what is inserted into resubmission"]):
        assert not isinstance(await world.create(second), DuplicateMatch)
    await drain(world)
    assert where(database, second) & {"resubmission", "lead_conflict"}


@pytest.mark.parametrize("table", ["lead", "resubmission", "tombstone", "lead_alias", "lead_conflict"])
async def test_nobody_is_called_erased_who_is_still_there(
    world: World, submit: Submit, database: TestDatabase, table: str
) -> None:
    first, second, third = (submit(**SHARED) for _ in range(3))
    await world.create(first)
    await world.create(second)
    await stored_late(world, third)
    faults.execute(
        database.admin_url,
        f"INSERT INTO lead_alias (id, lead_id, created_by) VALUES ('{new_id()}', '{first.id}', 'bot')",
        f"UPDATE lead_conflict SET nid_lead_id = phone_lead_id WHERE id = '{third.id}'",
    )
    operation = "INSERT" if table == "tombstone" else "DELETE"
    with refusing(database, dropping(operation, table)), pytest.raises(StorageFaultError) as failure:
        await erase(world, first.id)
    assert failure.value.is_refusal
    assert where(database, first) == {"lead"}
    await erase(world, first.id)
    assert where(database, first) == {"tombstone"}


Change = Callable[[SealedSubmission], Awaitable[object]]


@pytest.fixture(params=["correct", "change", "own lead", "join"])
def change(
    request: pytest.FixtureRequest, world: World, submit: Submit, repository: LeadRepository, sealer: LeadSealer
) -> Change:
    """A change of a lead, or a decision about a conflict with it."""

    async def correct(lead: SealedSubmission) -> object:
        correction = Mock(return_value=sealer.correction(lead.id, {"name": "Rahima"}, actor="sam"))
        return await repository.correct(lead.id, correction, everyone)

    async def move(lead: SealedSubmission) -> object:
        def decide(_: SealedLead) -> Step:
            return Step(column="status", to=LeadStatus.CONTACTED.value, actor="sam", reason=None)

        return await repository.change(lead.id, decide, everyone)

    async def own(lead: SealedSubmission) -> object:
        late = submit(**SHARED)
        await stored_late(world, late)
        await own_lead(world, late)
        return late.id

    async def join(lead: SealedSubmission) -> object:
        late = submit(**SHARED)
        await stored_late(world, late)
        conflicts = ConflictRepository(world.database)
        return await conflicts.resolve(
            late.id, ConflictResolution.KEEP_FIRST, lambda _: JoinLead(lead.id, late), actor="boss", reason=None
        )

    return {"correct": correct, "change": move, "own lead": own, "join": join}[request.param]


@pytest.mark.parametrize("drops", ["INSERT lead", "UPDATE lead", "INSERT lead_alias", "UPDATE OF reason lead_conflict"])
async def test_no_change_is_confirmed_that_was_dropped(
    world: World, submit: Submit, database: TestDatabase, change: Change, drops: str
) -> None:
    lead = submit(**SHARED)
    await world.create(lead)
    rows = (
        "SELECT array_agg(x ORDER BY x::text) FROM (SELECT row_to_json(l)::jsonb FROM lead l UNION ALL SELECT"
        " row_to_json(a)::jsonb FROM lead_alias a UNION ALL SELECT jsonb_build_object('r', resolution) FROM"
        " lead_conflict WHERE resolution IS NOT NULL) AS t (x)"
    )
    operation, _, table = drops.rpartition(" ")
    with refusing(database, dropping(operation, table)):
        before = faults.value_of(database.admin_url, rows)
        (outcome,) = await asyncio.gather(change(lead), return_exceptions=True)
        is_refused = isinstance(outcome, StorageFaultError) and outcome.is_refusal
        assert is_refused or faults.value_of(database.admin_url, rows) != before, outcome


@pytest.mark.parametrize("table", ["access_record", "access_head"])
async def test_nothing_is_shown_whose_record_was_dropped(database: TestDatabase, table: str) -> None:
    async with writing(database) as writer:
        await writer.record([look()])
        with refusing(database, dropping("INSERT", table)):
            with pytest.raises(StorageUnavailableError):
                await writer.record([look()])
            assert writer.refused == "not_stored"
        await writer.record([look()])
        assert writer.refused is None
