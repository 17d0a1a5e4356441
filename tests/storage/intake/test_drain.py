"""How the spool is emptied: in order, once, and without being stopped by one bad entry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import structlog

from service.keys.encryption import NOT_CONFIRMED, EncryptionService
from service.lead import BlindIndexes, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.intake import drain as drain_module
from service.storage.intake.drain import Drain, DrainRound
from service.storage.leads.decision import Outcome
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.file import SpoolError
from service.storage.spool.rows import peek
from service.storage.spool.spool import Spool
from service.supervisor import Component
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until
from tests.harness.refusals import REFUSALS, Refusal
from tests.harness.refusals import refusing as database_refusing
from tests.harness.supervision import running
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import POISONED, World, refusing, stored

Reseal = Callable[[SealedSubmission], SealedSubmission]


@pytest.fixture
async def world(
    connected: Database, tmp_path: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    yield World(connected, spool, sealer, encryption)
    spool.close()


async def test_it_drains_everything_and_then_idles(world: World, submit: Submit, database: TestDatabase) -> None:
    await world.spool.put([submit() for _ in range(600)])
    steps = [await world.drain.step() for _ in range(4)]
    assert steps == [DrainRound.DRAINED] * 3 + [DrainRound.IDLE]
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


async def test_an_outage_ends_while_the_spool_cannot_be_read(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: object) -> None:
        raise SpoolError("unreadable")

    await world.spool.put([submit()])
    monkeypatch.setattr(world.spool, "oldest", unreadable)
    world.outage.began("connection", refused=True)
    async with running(Component(name="drain", run=world.drain.run)):
        await until(lambda: not world.outage.lasting)


@pytest.mark.parametrize("sqlstate", ["22001", "23514"])
async def test_what_the_database_refuses_for_its_content_is_set_aside_and_the_rest_drains(
    world: World, submit: Submit, database: TestDatabase, sqlstate: str
) -> None:
    await world.spool.put([submit(), submit(name=POISONED), submit()])
    with refusing(database, sqlstate):
        await world.drain.step()
    assert stored(database) == 2
    assert [row.damage for row in peek(world.spool.folder)[1]] == [f"refused by the database ({sqlstate})"]


async def test_one_that_the_database_refuses_for_another_reason_stays_and_is_drained_when_it_is_mended(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain], clock: Clock
) -> None:
    drain = drain_with()
    await world.spool.put([submit(), submit(name=POISONED), submit()])
    with refusing(database, "P0001"):
        await drained(drain)
        assert (stored(database), world.spool.size.waiting, world.spool.size.damaged) == (2, 1, 0)
        assert drain.refused == "P0001"
        assert not world.outage.lasting
    clock.now += 30
    await drained(drain)
    assert (stored(database), world.spool.size.waiting) == (3, 0)
    assert drain.refused is None


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_while_the_database_refuses_everything_the_drain_stands_still_and_sets_nothing_aside(
    world: World, submit: Submit, database: TestDatabase, refusal: Refusal
) -> None:
    await world.drain.step()
    await world.spool.put([submit(conversation_id="c", phone="+1234567"), submit(), submit(phone="+1234567")])
    with database_refusing(database, refusal):
        for _ in range(3):
            assert await world.drain.step() is DrainRound.UNREACHABLE
        assert (world.spool.size.waiting, world.spool.size.damaged) == (3, 0)
        assert world.outage.cause is not None
    await drained(world.drain)
    assert (stored(database), world.spool.size.waiting) == (2, 0)
    assert not world.outage.lasting


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
    await world.spool.put([replace(one, fields={**one.fields, "nid": other.sealed["nid"]}), other])
    await world.drain.step()
    assert (stored(database), world.spool.size.damaged) == (1, 1)


async def test_it_starts_by_itself_when_something_waits(world: World, submit: Submit, database: TestDatabase) -> None:
    async with running(Component(name="drain", run=world.drain.run)):
        await asyncio.sleep(0.1)
        await world.spool.put([submit()])
        await until(lambda: world.spool.empty)
    assert stored(database) == 1


class FaultyStore(SubmissionStore):
    """A store that fails for some submissions."""

    def __init__(self, database: Database, *poisonous: SealedSubmission, error: Exception | None = None) -> None:
        super().__init__(database)
        self.poison = {each.id for each in poisonous}
        self.error = error or KeyError(VALUE)

    async def create_all_once(self, batch: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
        if self.poison & {each.id for each in batch}:
            raise self.error
        return await super().create_all_once(batch)


VALUE = "+8801711000028"
"""In the text of each fault; it must not reach a log."""


class Clock:
    """Stands still until it is put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drain_with(world: World, sealer: LeadSealer, clock: Clock) -> Callable[..., Drain]:
    def make(store: SubmissionStore | None = None, reseal: Reseal = sealer.resealed_and_reindexed) -> Drain:
        return Drain(
            submissions=store or world.store,
            spool=world.spool,
            outage=world.outage,
            recent=world.recent,
            erasures=world.erasures,
            apply_erasures=world.spools.apply_erasures,
            reseal=reseal,
            clock=clock,
        )

    return make


async def drained(drain: Drain) -> None:
    """Drain until there is nothing to do."""
    for _ in range(5):
        await drain.step()


async def waiting_in(world: World) -> list[UUID]:
    return [each.id for each in (await world.spool.oldest(1000, lambda each: each)).submissions]


async def test_what_fails_by_a_fault_of_ours_stays_and_the_rest_drains(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain]
) -> None:
    submissions = [submit() for _ in range(20)]
    poison = submissions[7]
    await world.spool.put(submissions)
    with structlog.testing.capture_logs() as lines:
        await drained(drain_with(FaultyStore(world.database, poison)))
    assert (stored(database), world.spool.size.waiting, world.spool.size.damaged) == (19, 1, 0)
    assert await waiting_in(world) == [poison.id]
    assert [line["error"] for line in lines if line.get("id") == str(poison.id)] == ["KeyError"]
    assert VALUE not in str(lines)


@pytest.mark.parametrize("shared", [{"phone": "+1234567"}, {"nid": "1234567890"}], ids=["phone", "nid"])
async def test_what_shares_something_with_what_stays_waits_behind_it(
    world: World,
    submit: Submit,
    database: TestDatabase,
    drain_with: Callable[..., Drain],
    clock: Clock,
    shared: dict[str, str],
) -> None:
    first, later, other = submit(**shared), submit(**shared), submit()
    store = FaultyStore(world.database, first)
    await world.spool.put([first, later, other])
    drain = drain_with(store)
    await drained(drain)
    assert await waiting_in(world) == [first.id, later.id]
    assert stored(database) == 1
    store.poison.clear()
    clock.now += 10
    await drained(drain)
    assert await waiting_in(world) == []
    assert faults.value_of(database.admin_url, "SELECT array_agg(id ORDER BY id) FROM lead") == sorted(
        [first.id, other.id]
    )


async def test_what_shares_something_with_what_waits_behind_another_waits_too(
    world: World, submit: Submit, drain_with: Callable[..., Drain]
) -> None:
    first = submit(phone="+1234567")
    second = submit(phone="+1234567", nid="1234567890")
    third = submit(nid="1234567890")
    await world.spool.put([first, second, third, submit()])
    await drained(drain_with(FaultyStore(world.database, first)))
    assert await waiting_in(world) == [first.id, second.id, third.id]


async def test_what_stays_is_tried_again_ever_more_seldom(
    world: World, submit: Submit, drain_with: Callable[..., Drain], clock: Clock
) -> None:
    poison = submit()
    await world.spool.put([poison])
    drain = drain_with(FaultyStore(world.database, poison))
    tried = []
    with structlog.testing.capture_logs() as lines:
        for second in range(2000):
            clock.now, before = float(second), len(lines)
            await drain.step()
            if len(lines) > before:
                tried.append(second)
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert pauses[:3] == [5, 10, 20]
    assert max(pauses) == 300


async def test_two_in_a_row_by_a_fault_of_ours_stop_the_drain_and_move_nothing(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain]
) -> None:
    submissions = [submit() for _ in range(50)]
    await world.spool.put(submissions)
    drain = drain_with(FaultyStore(world.database, *submissions))
    with pytest.raises(KeyError):
        await drained(drain)
    assert (stored(database), world.spool.size.waiting, world.spool.size.damaged) == (0, 50, 0)


async def test_a_drain_that_stopped_is_failing_and_goes_on_when_the_fault_is_gone(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain], clock: Clock
) -> None:
    submissions = [submit() for _ in range(50)]
    await world.spool.put(submissions)
    store = FaultyStore(world.database, *submissions)
    with structlog.testing.capture_logs() as lines:
        async with running(Component(name="drain", run=drain_with(store).run)) as supervisor, asyncio.timeout(20):
            while not supervisor.failing:  # noqa: ASYNC110 # there is no event to wait for
                await asyncio.sleep(0.01)
            assert supervisor.failing == ("drain",)
            store.poison.clear()
            clock.now += 300
            while world.spool.size.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert stored(database) == 50
    assert "KeyError" in {line.get("error") for line in lines if line.get("task") == "drain"}
    assert VALUE not in str(lines)


async def test_two_apart_by_a_fault_of_ours_stop_nothing(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain]
) -> None:
    submissions = [submit() for _ in range(10)]
    await world.spool.put(submissions)
    await drained(drain_with(FaultyStore(world.database, submissions[2], submissions[6])))
    assert (stored(database), world.spool.size.waiting) == (8, 2)


async def test_one_that_cannot_be_prepared_by_a_fault_of_ours_stays_and_the_rest_drains(
    world: World, submit: Submit, database: TestDatabase, sealer: LeadSealer, drain_with: Callable[..., Drain]
) -> None:
    submissions = [submit() for _ in range(20)]
    poison = submissions[7]

    def reseal(submission: SealedSubmission) -> SealedSubmission:
        if submission.id == poison.id:
            raise TypeError(VALUE)
        return sealer.resealed_and_reindexed(submission)

    await world.spool.put(submissions)
    with structlog.testing.capture_logs() as lines:
        await drained(drain_with(reseal=reseal))
    assert (stored(database), world.spool.size.waiting, world.spool.size.damaged) == (19, 1, 0)
    assert [line["error"] for line in lines if line.get("id") == str(poison.id)] == ["TypeError"]
    assert VALUE not in str(lines)


async def test_a_drain_that_can_prepare_nothing_stops_and_moves_nothing(
    world: World, submit: Submit, database: TestDatabase, drain_with: Callable[..., Drain]
) -> None:
    def reseal(_: SealedSubmission) -> SealedSubmission:
        raise TypeError(VALUE)

    await world.spool.put([submit() for _ in range(20)])
    with pytest.raises(TypeError):
        await drained(drain_with(reseal=reseal))
    assert (stored(database), world.spool.size.waiting, world.spool.size.damaged) == (0, 20, 0)


async def test_what_the_driver_refuses_and_not_the_database_is_a_fault_of_ours(
    world: World, submit: Submit, drain_with: Callable[..., Drain]
) -> None:
    poison = submit()
    await world.spool.put([poison, submit()])
    error = psycopg.ProgrammingError(VALUE)
    await drained(drain_with(FaultyStore(world.database, poison, error=error)))
    assert (world.spool.size.waiting, world.spool.size.damaged) == (1, 0)


async def test_before_the_database_is_identified_nothing_leaves_the_spool(
    world: World, submit: Submit, database: TestDatabase, sealer: LeadSealer, encryption: EncryptionService
) -> None:
    await world.spool.put([submit()])
    unidentified = Database(database.serve_url, guarded=True)
    assert await World(unidentified, world.spool, sealer, encryption).drain.step() is DrainRound.UNREACHABLE
    assert world.spool.size.waiting == 1
