"""A replica's clock may be minutes wrong: nothing acknowledged is lost by it, and nobody who was erased returns."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from service.keys.encryption import EncryptionService
from service.lead import ConflictResolution, LeadOrder, SealedConflict, SealedLead, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.clock import DatabaseClock
from service.storage.database.database import Database
from service.storage.keys.replicas import ReplicaReport
from service.storage.leads.changes import Step, take_step
from service.storage.leads.conflicts import ConflictRepository, Decision, Drop, OwnLead
from service.storage.leads.decision import Created, Erased, InConflict
from service.storage.leads.queries import LIST_SECONDS, find_page
from service.storage.spool.rows import FILE_NAME
from service.storage.spool.spool import Spool
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, own_lead, twins, where

SKEWS = [-300.0, 300.0]


@dataclass
class Skew:
    """By how many seconds a replica's clock is ahead."""

    seconds: float

    def wall(self) -> float:
        return time.time() + self.seconds


@asynccontextmanager
async def skewed_replica(
    skew: Skew, database: Database, folder: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    """A replica whose clock is wrong, and was not measured yet."""
    spool = Spool(folder, encryption, max_bytes=10_000_000, clock=DatabaseClock(skew.wall))
    spool.identified = True
    world = World(database, spool, sealer, encryption)
    world.start()
    yield world
    await world.stop()
    spool.close()


@pytest.fixture
def skew() -> Skew:
    return Skew(0)


@pytest.fixture
async def world(
    skew: Skew, connected: Database, tmp_path: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[World]:
    async with skewed_replica(skew, connected, tmp_path / "spool", encryption, sealer) as world:
        yield world


async def heartbeat(world: World, encryption: EncryptionService) -> None:
    await ReplicaReport("here", world.database, world.spool, encryption).announce(world.database)


@pytest.mark.parametrize("seconds", SKEWS)
async def test_a_request_that_is_sent_again_after_its_erasure_is_a_new_lead(
    world: World,
    elsewhere: World,
    submit: Submit,
    database: TestDatabase,
    skew: Skew,
    encryption: EncryptionService,
    seconds: float,
) -> None:
    skew.seconds = seconds
    await heartbeat(world, encryption)
    saved, again = twins(submit)
    await elsewhere.create(saved)
    await erase(elsewhere, saved.id)
    await asyncio.sleep(0.5)  # more than a heartbeat takes, or nobody can know
    await world.spool.put([again])
    await drain(world)
    assert where(database, again) == {"lead"}
    age = faults.value_of(database.admin_url, "SELECT extract(epoch FROM now() - created_at)::float8 FROM lead")
    assert abs(float(str(age)) + seconds) < 60


@pytest.mark.parametrize("seconds", SKEWS)
async def test_a_copy_that_was_accepted_before_the_erasure_is_dropped(
    world: World,
    elsewhere: World,
    submit: Submit,
    database: TestDatabase,
    skew: Skew,
    encryption: EncryptionService,
    seconds: float,
) -> None:
    skew.seconds = seconds
    await heartbeat(world, encryption)
    saved, copy = twins(submit)
    await elsewhere.create(saved)
    await world.spool.put([copy])
    await asyncio.sleep(0.5)
    await erase(elsewhere, saved.id)
    skew.seconds = -seconds  # the clock is set while the copy waits
    await drain(world)
    assert where(database, copy) == {"tombstone"}


@pytest.mark.parametrize("seconds", SKEWS)
@pytest.mark.parametrize(("sent", "never"), [("before", "lead"), ("after", "tombstone")])
async def test_a_clock_that_is_set_in_the_outage_loses_nothing_and_brings_nobody_back(
    world: World,
    elsewhere: World,
    submit: Submit,
    database: TestDatabase,
    skew: Skew,
    encryption: EncryptionService,
    seconds: float,
    sent: str,
    never: str,
) -> None:
    await heartbeat(world, encryption)
    saved, copy = twins(submit)
    await elsewhere.create(saved)
    skew.seconds = seconds
    if sent == "before":
        await world.spool.put([copy])
    await erase(elsewhere, saved.id)
    if sent == "after":
        await world.spool.put([copy])
    await drain(world)
    # What the measurement and the clock both show is decided, the rest is a person's to decide.
    assert where(database, copy) in ({"lead"}, {"tombstone"}, {"lead_conflict"})
    assert where(database, copy) != {never}


class TestUnknownOffset:
    """A replica that started without the database, or whose spool an earlier release wrote."""

    @pytest.fixture
    async def kept(self, world: World, elsewhere: World, submit: Submit) -> tuple[SealedSubmission, SealedSubmission]:
        """An erased lead, and a copy of its request that may be older or newer than the erasure."""
        saved, copy = twins(submit)
        await elsewhere.create(saved)
        await world.spool.put([copy])
        await erase(elsewhere, saved.id)
        await drain(world)
        return saved, copy

    async def test_it_waits_for_a_person(
        self, kept: tuple[SealedSubmission, SealedSubmission], elsewhere: World, database: TestDatabase
    ) -> None:
        saved, copy = kept
        assert where(database, copy) == {"lead_conflict"}
        ((conflict, leads),) = await ConflictRepository(elsewhere.database).list_conflicts(
            resolved_too=False, after=None, limit=9
        )
        assert (conflict.met_fields, conflict.erased_lead_id, leads) == (("erased",), saved.id, [])
        assert await erase(elsewhere, saved.id) == (copy.id,)

    async def test_it_is_dropped_when_a_person_says_so(
        self, kept: tuple[SealedSubmission, SealedSubmission], elsewhere: World, database: TestDatabase
    ) -> None:
        saved, copy = kept

        def decide(_: SealedConflict) -> Decision:
            return Drop(saved.id)

        conflicts = ConflictRepository(elsewhere.database)
        await conflicts.resolve(copy.id, ConflictResolution.KEEP_FIRST, decide, actor="boss", reason=None)
        assert where(database, copy) == {"tombstone"}

    async def test_it_becomes_a_lead_when_a_person_says_so(
        self, kept: tuple[SealedSubmission, SealedSubmission], elsewhere: World, database: TestDatabase
    ) -> None:
        _, copy = kept

        def decide(_: SealedConflict) -> Decision:
            return OwnLead(copy)

        conflicts = ConflictRepository(elsewhere.database)
        await conflicts.resolve(copy.id, ConflictResolution.OWN_LEAD, decide, actor="boss", reason=None)
        assert where(database, copy) == {"lead", "lead_conflict"}

    async def test_what_nobody_erased_becomes_a_lead(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        await world.spool.put([submit(request_id="r")])
        await drain(world)
        assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead") == 1


async def test_a_spool_of_the_release_before_is_taken_over_in_place(
    tmp_path: Path, encryption: EncryptionService, submit: Submit
) -> None:
    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    old = submit(request_id="r")
    await spool.put([old])
    spool.close()
    with sqlite3.connect(tmp_path / "spool" / FILE_NAME) as file:
        for column in ("clock_ahead", "clock_error"):
            file.execute(f"ALTER TABLE entry DROP COLUMN {column}")
        file.execute("PRAGMA user_version = 2")
    file.close()

    spool = Spool(tmp_path / "spool", encryption, max_bytes=10_000_000)
    spool.identified = True
    spool.clock.measured(spool.clock.read(), datetime.now(UTC))
    new = submit(request_id="s")
    await spool.put([new])
    found = {each.id: each for each in (await spool.oldest(9, lambda each: each)).submissions}
    spool.close()
    assert found[old.id].accepted_between is None
    assert found[new.id].accepted_between is not None


MICROSECOND = timedelta(microseconds=1)


class TestAhead:
    """A lead keeps the moment of the machine in whose spool it waited, and lists find it all the same."""

    @pytest.mark.parametrize("is_moved", [False, True])
    async def test_a_drained_lead_is_listed(self, world: World, submit: Submit, skew: Skew, is_moved: bool) -> None:
        skew.seconds = 300
        kept = submit()
        await world.spool.put([kept])
        await drain(world)
        if is_moved:
            [(_, seen)] = await listed(world)
            step = Step(column="assignee", to="sam", actor="boss", reason=None)
            assert await world.database.write(partial(take_step, seen, step), alone=True)
        await require_listed_by_moments(world, kept.id)

    async def test_a_conflict_that_becomes_a_lead_is_listed(self, elsewhere: World, submit: Submit) -> None:
        first, second = (submit(phone="+8801799999999") for _ in range(2))
        await elsewhere.create(first)
        ahead = datetime.now(UTC) + timedelta(minutes=5)
        drained = replace(second, accepted_at=ahead, accepted_between=(ahead, ahead))
        outcomes = await elsewhere.store.create_all_once([drained])
        assert isinstance(outcomes[second.id], InConflict)
        await own_lead(elsewhere, second)
        await require_listed_by_moments(elsewhere, second.id)


async def listed(world: World, **filters: datetime) -> list[tuple[datetime, SealedLead]]:
    page = partial(find_page, wanted=filters, order=LeadOrder.CREATED_DESC, after=None, limit=9)
    return await world.database.read_within(LIST_SECONDS, page)


async def require_listed_by_moments(world: World, lead_id: UUID) -> None:
    """A lead is among those created or changed since it was, and before just after."""
    [lead] = [each for _, each in await listed(world) if each.id == lead_id]
    for name in ("created", "updated"):
        moment = getattr(lead, f"{name}_at")
        for bound in ({f"{name}_after": moment}, {f"{name}_before": moment + MICROSECOND}):
            assert lead_id in [each.id for _, each in await listed(world, **bound)], bound


@pytest.mark.parametrize(
    ("earliest", "latest", "becomes"),
    [
        (-10 * MICROSECOND, timedelta(0), Erased),
        (-10 * MICROSECOND, MICROSECOND, InConflict),
        (timedelta(0), 10 * MICROSECOND, InConflict),
        (MICROSECOND, 10 * MICROSECOND, Created),
    ],
)
async def test_the_moment_of_the_erasure_divides_copies_from_new_requests(
    elsewhere: World,
    submit: Submit,
    database: TestDatabase,
    earliest: timedelta,
    latest: timedelta,
    becomes: type,
) -> None:
    saved, copy = twins(submit)
    await elsewhere.create(saved)
    await erase(elsewhere, saved.id)
    erased_at = faults.value_of(database.admin_url, "SELECT erased_at FROM tombstone")
    assert isinstance(erased_at, datetime)
    between = (erased_at + earliest, erased_at + latest)
    drained = replace(copy, accepted_at=datetime.now(UTC), accepted_between=between)
    outcomes = await elsewhere.store.create_all_once([drained])
    assert isinstance(outcomes[copy.id], becomes)


@pytest.mark.parametrize("seconds", SKEWS)
async def test_a_replica_with_a_wrong_clock_notices_erasures_of_another_one(
    world: World, elsewhere: World, submit: Submit, skew: Skew, seconds: float
) -> None:
    """It asks for those since its last look by the database's clock."""
    skew.seconds = seconds
    _, looked_at = await world.erasures.erased_since(None)
    saved = submit(request_id="r")
    await elsewhere.create(saved)
    await erase(elsewhere, saved.id)
    erased, now = await world.erasures.erased_since(looked_at)
    assert erased == [saved.id]
    assert timedelta(0) < now - looked_at < timedelta(minutes=1)
