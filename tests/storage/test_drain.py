"""How the spool is emptied: in order, once, and without being stopped by one bad entry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.encryption import NOT_CONFIRMED, EncryptionService
from service.lead import BlindIndexes
from service.sealing import LeadSealer
from service.storage import drain as drain_module
from service.storage.database import Database
from service.storage.drain import Step
from service.storage.spool import Spool
from service.storage.spool_file import SpoolError
from service.storage.spool_rows import peek
from service.supervisor import Component
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.supervision import running
from tests.storage.test_writer import POISONED, Submit, World, encryption, own_sealer, refusing, stored, submit

__all__ = ["encryption", "own_sealer", "submit"]  # fixtures


@pytest.fixture
async def world(
    connected: Database, tmp_path: Path, encryption: EncryptionService, own_sealer: LeadSealer
) -> AsyncIterator[World]:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    yield World(connected, spool, own_sealer)
    spool.close()


async def test_it_drains_everything_and_then_idles(world: World, submit: Submit, database: TestDatabase) -> None:
    await world.spool.put([submit() for _ in range(600)])
    steps = [await world.drain.step() for _ in range(4)]
    assert steps == [Step.DRAINED] * 3 + [Step.IDLE]
    assert (stored(database), world.spool.size.waiting) == (600, 0)


async def test_it_drains_the_oldest_first(
    world: World, submit: Submit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_module, "BATCH", 1)
    submissions = [submit() for _ in range(3)]
    for each in submissions:
        await world.spool.put([each])
    await world.drain.step()
    assert faults.value_of(database.admin_url, "SELECT array_agg(id) FROM lead") == [submissions[0].id]


async def test_a_crash_between_the_commit_and_the_removal_changes_nothing(
    world: World, submit: Submit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.spool.put([submit(phone="+1234567"), submit(), submit(phone="+1234567")])

    async def crash(_ids: object) -> None:
        raise SpoolError("crashed")

    with monkeypatch.context() as patched:
        patched.setattr(world.spool, "remove", crash)
        with pytest.raises(SpoolError):
            await world.drain.step()
    assert (stored(database), world.spool.size.waiting) == (2, 3)
    await world.drain.step()
    assert (stored(database), world.spool.size.waiting) == (2, 0)
    counts = "SELECT (SELECT count(*) FROM resubmission) || ' ' || (SELECT count(*) FROM lead_conflict)"
    assert faults.value_of(database.admin_url, counts) == "1 0"


async def test_what_the_database_refuses_for_good_is_set_aside_and_the_rest_drains(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    await world.spool.put([submit(), submit(name=POISONED), submit()])
    with refusing(database, "P0001"):
        await world.drain.step()
    assert stored(database) == 2
    assert [row.damage for row in peek(world.spool.folder)[1]] == ["refused by the database (P0001)"]


async def test_what_is_locked_stays_and_the_rest_drains(world: World, submit: Submit, database: TestDatabase) -> None:
    lead = submit(phone="+1234567")
    await world.spool.put([lead])
    await world.drain.step()
    await world.spool.put([submit(phone="+1234567"), submit()])
    with faults.locked_lead(database.admin_url, str(lead.id)):
        await world.drain.step()
        assert (stored(database), world.spool.size.waiting) == (2, 1)
    await world.drain.step()
    assert world.spool.size.waiting == 0
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead_conflict") == 1


async def test_blind_indexes_and_digest_are_computed_afresh(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    submission = submit()
    nothing = BlindIndexes(epoch=NOT_CONFIRMED, phone=(bytes(32), None), nid=(bytes(32), None))
    stale = replace(submission, indexes=nothing, content_digest=bytes(32))
    await world.spool.put([stale])
    await world.drain.step()
    query = "SELECT phone_index || nid_index || content_digest FROM lead"
    expected = b"".join((*submission.indexes.phones, *submission.indexes.nids, submission.content_digest))
    assert faults.value_of(database.admin_url, query) == expected


async def test_a_field_that_cannot_be_opened_sets_its_submission_aside(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    one, other = submit(), submit()
    await world.spool.put([replace(one, sealed={**one.sealed, "nid": other.sealed["nid"]}), other])
    await world.drain.step()
    assert (stored(database), world.spool.size.damaged) == (1, 1)


async def test_it_starts_by_itself_when_something_waits(world: World, submit: Submit, database: TestDatabase) -> None:
    async with running(Component(name="drain", run=world.drain.run)):
        await asyncio.sleep(0.1)
        await world.spool.put([submit()])
        for _ in range(100):
            if world.spool.empty:
                break
            await asyncio.sleep(0.05)
    assert stored(database) == 1


async def test_without_a_database_nothing_leaves_the_spool(world: World, submit: Submit) -> None:
    await world.spool.put([submit()])
    world.drain._database._guarded = True
    assert await world.drain.step() is Step.UNREACHABLE
    assert world.spool.size.waiting == 1
