"""The one writer: who shares a transaction, who waits for whom, and what goes to the spool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from service.errors import StorageUnavailableError
from service.factories import new_id
from service.keys.encryption import EncryptionService
from service.lead import SealedSubmission
from service.lead_sealer import LeadSealer
from service.replica import lead_writing
from service.storage.database.database import Database
from service.storage.database.failures import LONGEST_RETRY, Retry, RetryScope, StorageFaultError, retry_scope
from service.storage.intake.all_spools import AllSpools
from service.storage.intake.drain import Drain
from service.storage.intake.outage import Outage, RecentRequests
from service.storage.intake.writer import LeadWriter
from service.storage.leads.changes import LeadHistory
from service.storage.leads.decision import Created, Delayed, DuplicateMatch, MatchedLead, Outcome, RequestIdReused
from service.storage.leads.erasures import Erasures
from service.storage.leads.open_erasures import OpenErasures
from service.storage.leads.persons import Persons
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool, SpoolOverlap
from service.supervisor import Supervisor
from service.use_cases.person_service import ErasureService, PersonService
from service.validation import ValidationService
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until
from tests.harness.refusals import REFUSALS, Refusal
from tests.harness.refusals import refusing as database_refusing
from tests.storage.conftest import Submit, everyone

POISONED = "Poisoned"


class World:
    """A replica's writer, spool and drain on the test's database."""

    def __init__(
        self, database: Database, spool: Spool, sealer: LeadSealer, encryption: EncryptionService, name: str = "here"
    ) -> None:
        self.supervisor = Supervisor(on_death=lambda: None)
        self.batches: list[int] = []
        self.retries: list[Retry] = []
        self.outage, self.spool, self.database = Outage(), spool, database
        self._sealer, self._encryption = sealer, encryption
        open_erasures = OpenErasures(name, encryption)
        self.store = SubmissionStore(database, open_erasures=open_erasures)
        self.recent = RecentRequests()
        self.reseal = sealer.resealed_and_reindexed
        self.erasures = Erasures(database, sealer.resealed_and_reindexed, open_erasures)
        self.make_keys = sealer.search_keys
        self.spools = AllSpools(
            database=database,
            spool=spool,
            encryption=encryption,
            open_erasures=open_erasures,
            erasures=self.erasures,
            recent=self.recent,
            make_keys=lambda entry, schemes: self.make_keys(entry, schemes),
        )
        self.writer = LeadWriter(self.store, spool, self.outage, self.recent, on_batch=self.batches.append)
        self.drain = Drain(
            submissions=self.store,
            spool=spool,
            outage=self.outage,
            recent=self.recent,
            erasures=self.erasures,
            apply_erasures=self.spools.apply_erasures,
            reseal=sealer.resealed_and_reindexed,
        )

    @property
    def erasing(self) -> ErasureService:
        """Erases from this replica."""
        return ErasureService(
            erasures=self.erasures,
            spool=self.spool,
            recent=self.recent,
            validation=ValidationService(),
            reseal=self.reseal,
        )

    @property
    def persons(self) -> PersonService:
        """Finds, exports and erases persons from this replica."""
        return PersonService(
            persons=Persons(self.database, self.reseal),
            history=LeadHistory(self.database),
            erasures=self.erasures,
            erasing=self.erasing,
            spools=self.spools,
            sealer=self._sealer,
            validation=ValidationService(),
            page_token_tags=self._encryption.page_token_tags,
        )

    def start(self) -> None:
        """Begin to write."""
        self.supervisor.start(lead_writing(self.writer))

    async def stop(self) -> None:
        """Write no more, as at the service's stop."""
        await self.supervisor.stop(10)

    async def create(self, submission: SealedSubmission, seconds: float = 8.0) -> Outcome:
        """As a caller with this deadline does it."""
        return await self.create_sealed_by(lambda: submission, seconds)

    async def create_sealed_by(self, seal: Callable[[], SealedSubmission], seconds: float = 8.0) -> Outcome:
        """As a caller with this deadline does it."""

        async def call() -> Outcome:
            retry_scope.set(RetryScope(time.monotonic() + seconds, self.retries.append))
            return await self.writer.create(seal)

        return await asyncio.create_task(call())

    async def create_all(self, submissions: list[SealedSubmission], seconds: float = 8.0) -> list[Outcome]:
        return await asyncio.gather(*(self.create(each, seconds) for each in submissions))


@pytest.fixture
async def world(
    connected: Database, spool: Spool, sealer: LeadSealer, encryption: EncryptionService
) -> AsyncIterator[World]:
    world = World(connected, spool, sealer, encryption)
    world.start()
    yield world
    await world.stop()


def saved(outcomes: list[Outcome]) -> bool:
    return all(isinstance(outcome, Created) for outcome in outcomes)


def stored(database: TestDatabase) -> int:
    return int(str(faults.value_of(database.admin_url, "SELECT count(*) FROM lead")))


@contextmanager
def refusing(database: TestDatabase, sqlstate: str) -> Iterator[None]:
    """A lead whose name is POISONED cannot be inserted."""
    faults.execute(
        database.admin_url,
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}'; END $$""",
        f"""CREATE TRIGGER refuse BEFORE INSERT ON lead FOR EACH ROW WHEN (NEW.name = '{POISONED}')
            EXECUTE FUNCTION refuse()""",
    )
    yield
    faults.execute(database.admin_url, "DROP TRIGGER refuse ON lead", "DROP FUNCTION refuse")


async def test_a_single_lead_is_written_alone(world: World, submit: Submit) -> None:
    assert saved([await world.create(submit()) for _ in range(2)])
    assert world.batches == [1, 1]


async def test_leads_that_come_together_share_a_transaction(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    await world.create(submit())
    assert saved(await world.create_all([submit() for _ in range(64)]))
    assert len(world.batches) <= 4
    assert stored(database) == 65


async def test_of_two_in_one_batch_that_match_the_first_is_saved(world: World, submit: Submit) -> None:
    await world.create(submit())
    pairs = [(submit(phone=f"+1234{number:04d}"), submit(phone=f"+1234{number:04d}")) for number in range(10)]
    outcomes = await world.create_all([each for pair in pairs for each in pair])
    for number, (first, _) in enumerate(pairs):
        assert isinstance(outcomes[2 * number], Created)
        assert outcomes[2 * number + 1] == DuplicateMatch(MatchedLead(first.id, "bot"), None)


@pytest.mark.parametrize("request_id", ["r", None])
async def test_a_repeat_in_one_batch_answers_the_first(world: World, submit: Submit, request_id: str | None) -> None:
    await world.create(submit())
    content = {"name": "Rahima Begum", "phone": "+8801899999999", "nid": "2099999999999"}
    first, repeat = (submit(request_id=request_id, **content) for _ in range(2))
    outcomes = await world.create_all([first, repeat])
    assert [outcome.lead.id for outcome in outcomes if isinstance(outcome, Created)] == [first.id, first.id]


@pytest.mark.parametrize("sqlstate", ["22001", "23514"])
async def test_a_poisoned_entry_costs_only_itself(
    world: World, submit: Submit, database: TestDatabase, sqlstate: str
) -> None:
    await world.create(submit())
    with refusing(database, sqlstate):
        healthy = asyncio.gather(*(world.create(submit()) for _ in range(20)))
        with pytest.raises(StorageFaultError, match=sqlstate):
            await world.create(submit(name=POISONED))
        assert saved(await healthy)
    assert stored(database) == 21


async def test_an_entry_that_is_refused_for_another_reason_than_its_content_is_spooled_alone(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    await world.create(submit())
    with refusing(database, "P0001"):
        healthy = asyncio.gather(*(world.create(submit()) for _ in range(20)))
        assert isinstance(await world.create(submit(name=POISONED)), Delayed)
        assert saved(await healthy)
    assert (stored(database), world.spool.size.waiting, world.outage.lasting) == (21, 1, False)


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_while_the_database_refuses_everything_every_lead_is_spooled(
    world: World, submit: Submit, database: TestDatabase, refusal: Refusal
) -> None:
    known = submit()
    await world.create(known)
    with database_refusing(database, refusal):
        duplicate = replace(submit(), indexes=known.indexes)
        outcomes = await world.create_all([*(submit(conversation_id="c") for _ in range(20)), duplicate])
        later = await world.create(submit())
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    assert isinstance(outcomes[-1], Delayed | DuplicateMatch)
    assert isinstance(later, Delayed | Created)


async def test_what_a_database_refuses_for_its_content_is_no_fault_of_content_while_made_up_ones_are_refused_too(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    with database_refusing(database, REFUSALS["a trigger raises as for content"]):
        assert {type(outcome) for outcome in await world.create_all([submit() for _ in range(20)])} == {Delayed}
    assert world.outage.refused


async def test_a_name_that_the_encoding_lacks_is_spooled(world: World, submit: Submit, database: TestDatabase) -> None:
    await world.create(submit())
    lacks = [
        statement.replace("FOR EACH ROW", "FOR EACH ROW WHEN (NEW.name ~ '[^ -~]')")
        for statement in REFUSALS["a trigger raises as for content"].begin
    ]
    with database_refusing(database, replace(REFUSALS["a trigger raises as for content"], begin=lacks)):
        assert isinstance(await world.create(submit(name="রহিমা")), Delayed)


async def test_a_trial_leaves_nothing_in_the_database(world: World, database: TestDatabase) -> None:
    assert await world.store.trial() is None
    tables = ("lead", "lead_conversation", "resubmission", "lead_alias", "lead_conflict", "tombstone", "lead_touch")
    counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    assert faults.value_of(database.admin_url, f"SELECT {counts}") == 0


class CannotBeSealedError(Exception):
    """A fault of the sealer's."""


def cannot_be_sealed() -> SealedSubmission:
    raise CannotBeSealedError


@pytest.mark.parametrize("outage", [False, True])
async def test_what_cannot_be_sealed_costs_only_itself(world: World, submit: Submit, outage: bool) -> None:
    if outage:
        world.outage.began("connection", since=time.monotonic() - 10)
    others = asyncio.gather(*(world.create(submit()) for _ in range(20)))
    with pytest.raises(CannotBeSealedError):
        await world.create_sealed_by(cannot_be_sealed)
    assert {type(outcome) for outcome in await others} == {Delayed if outage else Created}


@pytest.mark.parametrize("sqlstate", ["40P01", "40001"])
async def test_deadlocks_and_serialisation_failures_are_retried_unseen(
    world: World, submit: Submit, database: TestDatabase, sqlstate: str
) -> None:
    with faults.failing_inserts(database.admin_url, sqlstate, times=3):
        assert saved(await world.create_all([submit() for _ in range(10)]))
    assert {retry.cause for retry in world.retries} == {sqlstate}
    assert stored(database) == 10


async def test_an_endless_deadlock_of_one_entry_ends_in_the_spool_and_holds_up_nobody(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    await world.create(submit())
    with refusing(database, "40P01"):
        patient = asyncio.create_task(world.create(submit(name=POISONED), seconds=60))
        hurried = asyncio.create_task(world.create(submit(name=POISONED), seconds=2))
        assert saved(await world.create_all([submit() for _ in range(20)]))
        assert isinstance(await hurried, Delayed)
        assert not patient.done()
        assert world.spool.size.waiting == 1
    assert saved([await patient])


async def test_a_foreign_lock_on_what_one_entry_matches_holds_up_nobody(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    leads = [submit(phone=f"+123456{number}") for number in range(2)]
    await world.create_all(leads)
    one, other = (faults.locked_lead(database.admin_url, str(lead.id)) for lead in leads)
    with one, other:
        patient = asyncio.create_task(world.create(submit(phone="+1234560"), seconds=60))
        hurried = asyncio.create_task(world.create(submit(phone="+1234561"), seconds=2))
        await asyncio.sleep(0.1)
        assert saved(await world.create_all([submit() for _ in range(20)]))
        assert isinstance(await hurried, Delayed)
        assert not patient.done()
    assert isinstance(await patient, DuplicateMatch)


async def test_a_lock_on_a_table_is_an_outage_until_it_is_released(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    with psycopg.connect(database.admin_url) as operator:
        operator.execute("LOCK TABLE lead IN SHARE MODE")
        began = time.monotonic()
        waited = await asyncio.gather(*(world.create(submit(), seconds=20) for _ in range(20)))
        assert time.monotonic() - began < 10, "they waited for their whole time"
        assert {type(outcome) for outcome in waited} == {Delayed}
        assert world.outage.lasting
        assert world.outage.cause == "55P03"
        tried = len(world.retries)
        assert tried > 0
        assert isinstance(await world.create(submit()), Delayed)
        assert len(world.retries) == tried, "the database was asked"
    async with asyncio.timeout(20):
        while world.outage.lasting or world.spool.size.waiting:
            await world.drain.step()
    assert saved([await world.create(submit())])
    assert stored(database) == 22


async def test_a_lock_that_one_lead_waits_for_is_no_outage(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    lead = submit(phone="+1234567")
    await world.create(lead)
    with faults.locked_lead(database.admin_url, str(lead.id)):
        blocked = asyncio.create_task(world.create(submit(phone="+1234567"), seconds=20))
        await asyncio.sleep(3)
        assert world.outage.cause is None
        assert saved([await world.create(submit())])
    assert isinstance(await blocked, DuplicateMatch)


async def test_crossed_duplicates_of_two_replicas_end_in_time_and_each_person_is_one_lead(
    world: World,
    submit: Submit,
    database: TestDatabase,
    encryption: EncryptionService,
    sealer: LeadSealer,
    tmp_path: Path,
) -> None:
    second = Database(database.serve_url)
    spool = Spool(tmp_path / "second", encryption, max_bytes=10_000_000)
    other = World(second, spool, sealer, encryption, "second")
    other.start()
    people = [(f"+1999{number:05d}", f"A{number:05d}") for number in range(60)]
    ours = [submit(phone=phone, nid=nid) for phone, nid in people]
    # The phone of one and the nid of the next, in the other direction.
    crossed = [submit(phone=people[at][0], nid=people[(at + 1) % 60][1]) for at in reversed(range(60))]
    first, others = await asyncio.gather(world.create_all(ours), other.create_all(crossed))
    created = sum(isinstance(outcome, Created) for outcome in (*first, *others))
    met = sum(isinstance(outcome, DuplicateMatch) for outcome in (*first, *others))
    assert (created, created + met) == (stored(database), 120)
    await other.stop()
    spool.close()
    await second.close()


async def test_a_caller_in_a_hurry_is_spooled_alone(world: World, submit: Submit, database: TestDatabase) -> None:
    await world.create(submit())
    faults.gated_inserts(database.admin_url)
    with faults.closed_gate(database.admin_url):
        patient = asyncio.create_task(world.create(submit(name=faults.SLOW), seconds=60))
        await until(lambda: faults.waits_at_gate(database.admin_url))
        others = asyncio.gather(*(world.create(submit(), seconds=60) for _ in range(5)))
        assert isinstance(await world.create(submit(), seconds=0.4), Delayed)
        assert not patient.done()
    assert saved([await patient, *await others])
    assert world.spool.size.waiting == 1


async def test_what_was_saved_and_spooled_is_one_lead(world: World, submit: Submit, database: TestDatabase) -> None:
    faults.gated_inserts(database.admin_url)
    with faults.closed_gate(database.admin_url):
        slow = asyncio.create_task(world.create(submit(name=faults.SLOW), seconds=3))
        await until(lambda: faults.waits_at_gate(database.admin_url))
        assert isinstance(await slow, Delayed)
    await until(lambda: stored(database) == 1)
    await world.drain.step()
    assert (stored(database), world.spool.size.waiting) == (1, 0)
    assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead_conflict") == 0


async def test_a_lasting_outage_sends_everything_to_the_spool_at_once(world: World, submit: Submit) -> None:
    world.outage.began("connection", since=time.monotonic() - 10)
    async with asyncio.timeout(LONGEST_RETRY / 2):  # long before anybody's time is over
        outcomes = await world.create_all([submit() for _ in range(64)], seconds=60)
    assert all(isinstance(outcome, Delayed) for outcome in outcomes)
    assert world.spool.size.waiting == 64


async def test_the_end_of_an_outage_is_noticed_by_the_drain(world: World, submit: Submit) -> None:
    world.outage.began("connection", since=time.monotonic() - 10)
    await world.create(submit())
    await world.drain.step()
    assert not world.outage.lasting
    assert saved([await world.create(submit())])


async def test_with_a_spool_that_takes_nothing_a_lead_is_unavailable_and_never_ok(world: World, submit: Submit) -> None:
    world.outage.began("connection", since=time.monotonic() - 10)
    world.spool.identified = False
    with pytest.raises(StorageUnavailableError):
        await world.create(submit())


@asynccontextmanager
async def six_at_once(
    world: World, submit: Submit, database: TestDatabase
) -> AsyncIterator[list[asyncio.Task[Outcome]]]:
    """One in a transaction that ends with the block, and five that wait behind it."""
    faults.gated_inserts(database.admin_url)
    with faults.closed_gate(database.admin_url):
        slow = asyncio.create_task(world.create(submit(name=faults.SLOW), seconds=60))
        await until(lambda: faults.waits_at_gate(database.admin_url))
        yield [slow, *(asyncio.create_task(world.create(submit(), seconds=60)) for _ in range(5))]


async def test_what_waits_when_the_writer_stops_goes_to_the_spool(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    async with six_at_once(world, submit, database) as waiting:
        await asyncio.sleep(0.05)
        await world.stop()
        outcomes = await asyncio.gather(*waiting)
    assert all(isinstance(outcome, Delayed) for outcome in outcomes)
    assert world.spool.size.waiting == 6


async def test_what_cannot_be_sealed_when_the_writer_stops_costs_only_itself(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    async with six_at_once(world, submit, database) as others:
        unlucky = asyncio.create_task(world.create_sealed_by(cannot_be_sealed, seconds=60))
        await asyncio.sleep(0.05)
        await world.stop()
        with pytest.raises(CannotBeSealedError):
            await unlucky
        assert {type(outcome) for outcome in await asyncio.gather(*others)} == {Delayed}


async def test_a_repeat_of_a_saved_request_gets_the_same_answer_while_the_database_is_away(
    world: World, submit: Submit
) -> None:
    saved_one = submit(request_id="r", phone="+1234567")
    await world.create(saved_one)
    world.outage.began("connection", since=time.monotonic() - 10)
    await world.create(submit(phone="+1234567"))  # a rival that nobody can recognise now
    again = await world.create(replace(saved_one, id=new_id()))
    assert isinstance(again, Delayed)
    assert (again.id, again.decided) == (saved_one.id, True)
    assert await world.create(replace(submit(), request_id="r")) == RequestIdReused()


async def test_a_repeat_of_a_drained_request_gets_the_same_answer_while_the_database_is_away(
    world: World, submit: Submit
) -> None:
    first = submit(request_id="r")
    await world.spool.put([first])
    await world.drain.step()
    world.outage.began("connection", since=time.monotonic() - 10)
    again = await world.create(replace(first, id=new_id()))
    assert isinstance(again, Delayed)
    assert (again.id, again.decided) == (first.id, True)


async def test_a_repeat_that_is_answered_with_a_spooled_one_keeps_it_there(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that was left behind is refused by the database at the moment in which its repeat is spooled."""
    first = submit(request_id="r")
    repeat, other = replace(first, id=new_id()), submit()
    database_answers, other_is_spooled = asyncio.Event(), asyncio.Event()
    under_way, spooling = asyncio.Event(), asyncio.Event()
    put = world.spool.put

    async def refuse(_: SubmissionStore, batch: list[SealedSubmission]) -> dict[UUID, Outcome]:
        under_way.set()
        await database_answers.wait()
        return {each.id: RequestIdReused() for each in batch}

    async def put_while_the_database_answers(batch: list[SealedSubmission]) -> Any:
        kept = await put(batch)
        if other in batch:
            spooling.set()
            await other_is_spooled.wait()
        else:
            assert [each.id for each in batch] == [first.id, repeat.id]
            database_answers.set()
            assert await left_behind == RequestIdReused()
        return kept

    monkeypatch.setattr(SubmissionStore, "create_all_once", refuse)
    monkeypatch.setattr(world.spool, "put", put_while_the_database_answers)
    left_behind = asyncio.create_task(world.create(first, seconds=2))
    await under_way.wait()
    hurried = asyncio.create_task(world.create(other, seconds=0.2))
    await spooling.wait()
    repeated = asyncio.create_task(world.create(repeat, seconds=2))
    await asyncio.sleep(2)  # the spool writer is busy while the time of both is over
    other_is_spooled.set()
    answer = await repeated
    assert isinstance(answer, Delayed)
    assert answer.id == first.id
    assert await world.spool.holds(first.id, everyone)
    await hurried


@pytest.mark.parametrize("request_id", ["r", None])
async def test_one_that_repeats_a_spooled_one_is_answered_by_the_spool(
    world: World, submit: Submit, request_id: str | None
) -> None:
    first = submit(request_id=request_id)
    await world.spool.put([first])
    outcome = await world.create(replace(first, id=new_id()))
    assert isinstance(outcome, Delayed)
    assert outcome.id == first.id


@pytest.mark.parametrize("request_id", ["r", None])
async def test_a_repeat_is_answered_alike_when_what_it_repeats_is_drained_meanwhile(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch, request_id: str | None
) -> None:
    content = {"name": "Rahima Begum", "phone": "+8801899999999", "nid": "2099999999999"}
    first, repeat = (submit(request_id=request_id, **content) for _ in range(2))
    await world.spool.put([first])
    put = world.spool.put

    async def drained_before(submissions: list[SealedSubmission]) -> object:
        await world.drain.step()
        return await put(submissions)

    monkeypatch.setattr(world.spool, "put", drained_before)
    outcome = await world.create(repeat)
    assert isinstance(outcome, Delayed)
    assert outcome.id == first.id
    await until(lambda: world.spool.size.waiting == 0)


async def test_a_fault_of_ours_in_the_look_at_the_spool_costs_only_the_entry_that_it_is_about(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.spool.put([submit()])
    poisoned, overlap = submit(), world.spool.overlap

    async def overlap_or_fail(batch: list[SealedSubmission]) -> SpoolOverlap:
        if poisoned in batch:
            raise ZeroDivisionError
        return await overlap(batch)

    monkeypatch.setattr(world.spool, "overlap", overlap_or_fail)
    async with asyncio.timeout(30):  # long before anybody's time is over
        others = asyncio.gather(*(world.create(submit(), seconds=90) for _ in range(20)))
        with pytest.raises(ZeroDivisionError):
            await world.create(poisoned, seconds=90)
        assert saved(await others)
        assert saved([await world.create(submit(), seconds=90)])  # the writer goes on


async def test_a_fault_of_ours_in_the_spool_costs_only_the_entry_concerned(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.outage.began("connection", since=time.monotonic() - 10)
    poisoned, put = submit(), world.spool.put

    async def put_or_fail(batch: list[SealedSubmission]) -> dict[UUID, Outcome]:
        if poisoned in batch:
            raise ZeroDivisionError
        return await put(batch)

    monkeypatch.setattr(world.spool, "put", put_or_fail)
    async with asyncio.timeout(30):  # long before anybody's time is over
        others = asyncio.gather(*(world.create(submit(), seconds=90) for _ in range(20)))
        with pytest.raises(StorageUnavailableError):
            await world.create(poisoned, seconds=90)
        assert {type(outcome) for outcome in await others} == {Delayed}
        assert isinstance(await world.create(submit(), seconds=90), Delayed)  # the spool writer goes on


async def test_one_that_matches_a_spooled_one_waits_for_the_drain(world: World, submit: Submit) -> None:
    first = submit(phone="+1234567")
    await world.spool.put([first])
    rival = asyncio.create_task(world.create(submit(phone="+1234567")))
    await asyncio.sleep(0.2)
    assert not rival.done()
    await world.drain.step()
    assert await rival == DuplicateMatch(MatchedLead(first.id, "bot"), None)


async def test_one_that_matches_a_spooled_one_for_all_of_its_time_is_not_refused(world: World, submit: Submit) -> None:
    """Only the database knows whether it repeats an older lead, and the database is there."""
    await world.spool.put([submit(phone="+1234567")])
    with pytest.raises(StorageUnavailableError):
        await world.create(submit(phone="+1234567"), seconds=0.5)


async def test_a_database_that_loses_connections_is_tried_again_unseen(
    world: World, submit: Submit, database: TestDatabase
) -> None:
    await world.create(submit())
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'leadkeep'"
            " AND datname = current_database()"
        )
    assert saved(await world.create_all([submit() for _ in range(10)]))
