"""What waits in the spools of all replicas is found there, and what was erased leaves them before anything drains."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service.errors import FieldUnreadableError, LeadNotFoundError, StartRefusedError
from service.keys.encryption import EncryptionService, IndexPlan, IndexScheme
from service.keys.keyring import Keyring, Purpose
from service.lead import SealedSubmission
from service.lead_sealer import LeadSealer
from service.rotation.key_service import KeyService
from service.storage.backup.backup import make_backup, restore_backup
from service.storage.backup.backup_manifest import DUMP
from service.storage.database.clock import ClockOffset, DatabaseClock
from service.storage.database.database import Database, Work
from service.storage.database.failures import RetryScope, retry_scope
from service.storage.intake import all_spools
from service.storage.intake.all_spools import AllSpools
from service.storage.intake.drain import DrainRound
from service.storage.keys.canary import confirm_canary
from service.storage.keys.rekeying import rekeying
from service.storage.keys.replicas import ReplicaReport
from service.storage.leads.erasing import ALONE
from service.storage.leads.persons import Match, MatchKind, Wanted
from service.storage.spool.file import SpoolError
from service.storage.spool.rows import FILE_NAME
from service.storage.spool.search import SearchKeys, Sought
from service.supervisor import Component
from service.validation import ValidationService
from tests.harness import faults
from tests.harness.postgres import TestDatabase, TestServer
from tests.harness.processes import until
from tests.harness.supervision import running
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import bytes_in, drain, erase, replica, spooled_forms, where

PERSON = {"phone": "+8801733000001", "nid": "3310000000001", "email": "person@example.com"}
LIMIT = 100


@pytest.fixture(scope="module")
def encryption() -> EncryptionService:
    """Of a confirmed database."""
    made = EncryptionService(Keyring.generate(now=datetime(2026, 1, 31, tzinfo=UTC)))
    scheme = IndexScheme(made.index_primary_id, ValidationService().normaliser_identity)
    made.plan = IndexPlan(1, (scheme, None))
    return made


@pytest.fixture(scope="module")
def sealer(encryption: EncryptionService) -> LeadSealer:
    return LeadSealer(encryption, ValidationService(), transcript_url=None, repeat_window=timedelta(hours=24))


class StoppedClock(DatabaseClock):
    """A machine's clock that stands still, and by how many seconds it may be wrong; None: it was never compared."""

    def __init__(self, at: datetime, error: int | None) -> None:
        super().__init__()
        self._now = at, None if error is None else ClockOffset(timedelta(0), timedelta(seconds=error))

    def now(self) -> tuple[datetime, ClockOffset | None]:
        return self._now


@dataclass
class Replicas:
    """Two replicas, and the spools of both as the first one asks for them."""

    here: World
    there: World
    spools: AllSpools
    sealer: LeadSealer
    encryption: EncryptionService

    async def heartbeat(self, state: str = "running") -> None:
        """Publish the status of both; the other one's state."""
        for world, name, reported in ((self.here, "here", "running"), (self.there, "there", state)):
            report = ReplicaReport(name, world.database, world.spool, self.encryption)
            await (report.announce if reported == "running" else report.withdraw)(world.database)

    def digests(self, *fields: str) -> Wanted:
        """The blind indexes by which the person is looked for."""
        return self.sealer.wanted({name: PERSON[name] for name in fields})

    def answering(self) -> Any:
        """The other replica answers meanwhile."""
        return running(Component(name="spool answers", run=self.there.spools.run))


@pytest.fixture
async def replicas(
    database: TestDatabase, tmp_path: Path, encryption: EncryptionService, sealer: LeadSealer
) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        worlds = []
        for name in ("here", "there"):
            opened = Database(database.serve_url)
            stack.push_async_callback(opened.close)
            worlds.append(await stack.enter_async_context(replica(opened, tmp_path / name, encryption, sealer)))
        here, there = worlds
        made = Replicas(here, there, here.spools, sealer, encryption)
        await made.heartbeat()
        yield made


@contextmanager
def rotated(encryption: EncryptionService) -> Iterator[None]:
    """Another index key makes the blind indexes; the one before is still in the keyring."""
    before, plan = encryption.keyring, encryption.plan
    keyring, fresh = before.with_new_key(Purpose.INDEX, now=datetime.now(UTC))
    encryption.take(keyring.with_primary(fresh.id))
    encryption.plan = IndexPlan(3, (None, IndexScheme(fresh.id, ValidationService().normaliser_identity)))
    yield
    encryption.take(before)
    encryption.plan = plan


def value(database: TestDatabase, query: str) -> object:
    return faults.value_of(database.admin_url, query)


def open_erasures(database: TestDatabase) -> object:
    return value(database, "SELECT array_agg(replica ORDER BY replica) FROM spool_erasure")


def leads(database: TestDatabase) -> object:
    return value(database, "SELECT array_agg(id ORDER BY id) FROM lead")


@pytest.mark.parametrize("name", ["phone", "nid", "email"])
async def test_what_waits_in_any_spool_is_found_by_each_identifier(
    replicas: Replicas, submit: Submit, database: TestDatabase, name: str
) -> None:
    ours, theirs, others = submit(**{name: PERSON[name]}), submit(**{name: PERSON[name]}), submit()
    await replicas.here.spool.put([ours, submit()])
    await replicas.there.spool.put([theirs, others])
    await replicas.there.spool.set_aside(theirs.id, "refused by the database (22000)")

    async with replicas.answering():
        found, unanswered = await replicas.spools.find(replicas.digests(name), limit=LIMIT)

    assert {(match.kind, match.id, match.fields) for match in found} == {
        (MatchKind.WAITING, each.id, (name,)) for each in (ours, theirs)
    }
    assert unanswered == ()
    assert value(database, "SELECT count(*) FROM spool_search") == 0


async def test_what_waits_elsewhere_is_exported_whole(replicas: Replicas, submit: Submit) -> None:
    theirs = submit(**PERSON, notes="a note")
    await replicas.there.spool.put([theirs, submit()])
    async with replicas.answering():
        [exported], unanswered = await replicas.spools.export([theirs.id])
    assert unanswered == ()
    assert (exported.id, exported.fields, exported.created_by) == (theirs.id, theirs.fields, theirs.created_by)


async def test_what_is_damaged_is_found_by_what_was_noted_of_it(replicas: Replicas, submit: Submit) -> None:
    theirs = submit(**PERSON)
    await replicas.there.spool.put([theirs])
    await replicas.there.spool.set_aside(theirs.id, "cannot be opened")
    with sqlite3.connect(replicas.there.spool.folder / FILE_NAME) as file:
        file.execute("UPDATE entry SET payload = 'damaged'")
    async with replicas.answering():
        [match], _ = await replicas.spools.find(replicas.digests("phone", "nid"), limit=LIMIT)
    assert (match.id, match.fields) == (theirs.id, ("phone", "nid"))


@pytest.mark.parametrize("state", ["running", "stopped"])
async def test_a_replica_that_does_not_answer_is_named(
    replicas: Replicas, submit: Submit, database: TestDatabase, state: str
) -> None:
    await replicas.there.spool.put([submit(**PERSON)])
    await replicas.heartbeat(state)
    retry_scope.set(RetryScope(time.monotonic() + 2, lambda _: None))
    assert await replicas.spools.find(replicas.digests("phone"), limit=LIMIT) == ([], ("there",))
    retry_scope.set(RetryScope(time.monotonic() + 2, lambda _: None))
    assert await replicas.spools.export([submit().id]) == ([], ("there",))
    assert value(database, "SELECT count(*) FROM spool_search") == 0


async def test_a_replica_that_stopped_with_an_empty_spool_is_not_asked(replicas: Replicas) -> None:
    await replicas.heartbeat("stopped")
    assert await replicas.spools.find(replicas.digests("phone"), limit=LIMIT) == ([], ())


async def test_a_replica_whose_own_spool_fails_is_named_itself(
    replicas: Replicas, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise SpoolError("the disk fails")

    await replicas.here.spool.put([submit(**PERSON)])
    await replicas.heartbeat("stopped")
    monkeypatch.setattr(replicas.here.spool, "look_through", fails)
    assert await replicas.spools.find(replicas.digests("phone"), limit=LIMIT) == ([], ("here",))


async def test_any_number_of_matches_is_found_page_by_page(replicas: Replicas, submit: Submit) -> None:
    waiting = {replicas.here: [submit(email=PERSON["email"]) for _ in range(4)]}
    waiting[replicas.there] = [submit(email=PERSON["email"]) for _ in range(7)]
    for world, entries in waiting.items():
        for entry in entries:
            await world.spool.put([entry])
    found: list[Match] = []
    async with replicas.answering():
        for _ in range(4):
            after = found[-1].place if found else None
            more, unanswered = await replicas.spools.find(replicas.digests("email"), after=after, limit=3)
            assert (len(more) <= 6, unanswered) == (True, ())
            found += sorted(more, key=lambda match: match.place)[:3]
    assert len(found) == 11
    assert {match.id for match in found} == {entry.id for entries in waiting.values() for entry in entries}


async def test_a_search_that_takes_too_long_ends_and_is_named(
    replicas: Replicas, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replicas.there.spool.put([submit(**PERSON)] + [submit() for _ in range(200)])
    keys, looked_at, go_on = replicas.there.make_keys, 0, threading.Event()

    def held(entry: SealedSubmission, schemes: Sequence[IndexScheme]) -> SearchKeys:
        nonlocal looked_at
        looked_at += 1
        go_on.wait(60)
        return keys(entry, schemes)

    monkeypatch.setattr(replicas.there, "make_keys", held)
    monkeypatch.setattr(all_spools, "ANSWER_SECONDS", 1.0)
    async with replicas.answering():
        found, unanswered = await replicas.spools.find(replicas.digests("phone"), limit=LIMIT)
        assert (found, "there" in unanswered) == ([], True)
        await asyncio.sleep(1.2)  # on the same clock: the other one's second is over, which began before ours ended
        go_on.set()
        monkeypatch.setattr(all_spools, "ANSWER_SECONDS", 60.0)
        [match], unanswered = await replicas.spools.find(replicas.digests("phone"), limit=LIMIT)
    assert (match.fields, unanswered) == (("phone",), ())
    assert looked_at < 2 * 201


async def test_leads_are_spooled_while_a_spool_is_searched(
    replicas: Replicas, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replicas.here.spool.put([submit() for _ in range(200)])
    keys, looked_at = replicas.here.make_keys, 0

    def counting(entry: SealedSubmission, schemes: Sequence[IndexScheme]) -> SearchKeys:
        nonlocal looked_at
        looked_at += 1
        time.sleep(0.001)  # else all are looked at before this task has its turn
        return keys(entry, schemes)

    monkeypatch.setattr(replicas.here, "make_keys", counting)
    searching = asyncio.create_task(replicas.spools.find(replicas.digests("phone"), limit=LIMIT))
    await until(lambda: looked_at > 0)
    await replicas.here.spool.put([submit()])
    assert looked_at < 200
    await searching


async def test_an_idle_look_is_one_statement(
    replicas: Replicas, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.execute(
        database.admin_url,
        "INSERT INTO spool_erasure (replica, erased_id, sought)"
        f" VALUES ('gone', gen_random_uuid(), '{Sought().to_json()}')",
    )
    there, statements = replicas.there, list[object]()
    read = there.database.read

    async def counted(work: Work[Any]) -> Any:
        statements.append(work)
        return await read(work)

    monkeypatch.setattr(there.database, "read", counted)
    monkeypatch.setattr(all_spools, "LOOK_SECONDS", 3600)
    async with replicas.answering():
        await until(lambda: bool(there.spools.waiting))
        await asyncio.sleep(0.2)
    assert [(each.replica, each.erasures) for each in there.spools.waiting] == [("gone", 1)]
    assert len(statements) == 1


async def test_a_question_holds_no_value_and_an_answer_opens_for_it_alone(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    theirs = submit(**PERSON, notes="a note that nobody reads")
    await replicas.there.spool.put([theirs])
    faults.execute(
        database.admin_url,
        "CREATE TABLE seen (id uuid, question jsonb, answer text)",
        "GRANT ALL ON seen TO leadkeep_app",
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO seen SELECT NEW.id, NEW.question, NEW.answer; RETURN NULL; END $$",
        "CREATE TRIGGER keep AFTER INSERT OR UPDATE ON spool_search FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    async with replicas.answering():
        await replicas.spools.find(replicas.digests("phone", "nid", "email"), limit=LIMIT)
        await replicas.spools.export([theirs.id])
    with psycopg.connect(database.admin_url) as connection:
        rows = connection.execute("SELECT id, question::text, answer FROM seen").fetchall()
    assert len(rows) == 4
    written = "".join(f"{question}{answer}" for _, question, answer in rows)
    assert not [each for each in (*PERSON.values(), "nobody", "Somebody", theirs.fields["phone"]) if each in written]
    (one, answer), (other, _) = [(row[0], row[2]) for row in rows if row[2]]
    assert replicas.encryption.open_spooled(one, answer)
    with pytest.raises(FieldUnreadableError):
        replicas.encryption.open_spooled(other, answer)


async def test_a_question_whose_caller_died_is_removed_with_its_answer(
    replicas: Replicas, database: TestDatabase
) -> None:
    faults.execute(
        database.admin_url,
        "INSERT INTO spool_search (id, replica, asked_at, question, answer)"
        f" SELECT gen_random_uuid(), 'gone', now() - interval '31 s', '{Sought().to_json()}', 'sealed'",
        f"INSERT INTO spool_search (id, replica, question) SELECT gen_random_uuid(), 'gone', '{Sought().to_json()}'",
    )
    async with replicas.answering():
        await until(lambda: value(database, "SELECT count(*) FROM spool_search") == 1)


async def test_an_erased_lead_takes_its_person_from_every_spool_and_nobody_else(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    lead, again = submit(**PERSON), submit(**PERSON)
    shares_phone, shares_nid, other = submit(phone=PERSON["phone"]), submit(nid=PERSON["nid"]), submit()
    await replicas.here.store.create(lead)
    await replicas.there.spool.put([again, other])
    await replicas.there.spool.put([shares_phone])
    await replicas.there.spool.put([shares_nid])

    await erase(replicas.here, lead.id)
    assert open_erasures(database) == ["there"]
    async with replicas.answering():
        assert await replicas.spools.erase([], leads=[lead.id]) == ()

    assert open_erasures(database) is None
    content = bytes_in(replicas.there.spool.folder)
    assert again.id.bytes not in content
    assert all(each.id.bytes in content for each in (shares_phone, shares_nid, other))
    assert value(database, f"SELECT lead_id FROM tombstone WHERE id = '{again.id}'") == lead.id
    await drain(replicas.there)
    assert leads(database) == sorted([other.id, shares_phone.id, shares_nid.id])


async def test_a_replica_that_was_away_erases_before_its_first_drained_lead(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    lead, first, again = submit(**PERSON), submit(), submit(**PERSON)
    await replicas.here.store.create(lead)
    await replicas.there.spool.put([first, again])
    await replicas.heartbeat("stopped")
    await erase(replicas.here, lead.id)
    assert await replicas.spools.erase([], leads=[lead.id]) == ("there",)

    assert await replicas.there.drain.step() is DrainRound.IDLE  # nothing was stored yet

    assert (open_erasures(database), leads(database)) == (None, None)
    assert [form for form in spooled_forms(again) if form in bytes_in(replicas.there.spool.folder)] == []
    await drain(replicas.there)
    assert leads(database) == [first.id]


async def test_an_erasure_that_was_cut_off_goes_on_with_the_next_start(
    replicas: Replicas, submit: Submit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead, again = submit(**PERSON), submit(**PERSON)
    await replicas.here.store.create(lead)
    await replicas.there.spool.put([again])
    await erase(replicas.here, lead.id)

    async def killed(*_: object, **__: object) -> None:
        raise KeyError

    for name in ("remove", "look_through"):
        with monkeypatch.context() as patch:
            patch.setattr(replicas.there.spool, name, killed)
            with pytest.raises(KeyError):
                await replicas.there.spools.apply_erasures()
        assert open_erasures(database) == ["there"]
    await drain(replicas.there)
    assert (open_erasures(database), leads(database), replicas.there.spool.size.waiting) == (None, None, 0)


async def test_a_submission_that_waits_elsewhere_is_erased_with_what_else_is_its_persons(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    """Nobody but the other replica knows whose it is."""
    theirs, lead = submit(**PERSON), submit(**PERSON)
    await replicas.there.spool.put([theirs])
    await replicas.here.spool.put([lead])
    with pytest.raises(LeadNotFoundError):
        await erase(replicas.here, theirs.id)
    await replicas.there.spools.apply_erasures()
    assert open_erasures(database) == ["here"]
    await drain(replicas.here)
    assert (open_erasures(database), leads(database)) == (None, None)
    assert (replicas.here.spool.size.waiting, replicas.there.spool.size.waiting) == (0, 0)


async def test_what_waits_is_erased_alone_where_it_waits(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    ours, theirs, same = submit(), submit(**PERSON), submit(**PERSON)
    await replicas.here.spool.put([ours, same])
    await replicas.there.spool.put([theirs])
    faults.execute(
        database.admin_url,
        *(
            f"INSERT INTO tombstone (id, lead_id, erased_by) VALUES ('{each.id}', '{ALONE}', 'boss')"
            for each in (ours, theirs)
        ),
    )
    async with replicas.answering():
        assert await replicas.spools.erase([ours.id, theirs.id], leads=[]) == ()
    assert value(database, "SELECT count(*) FROM tombstone WHERE created_at IS NOT NULL") == 2
    assert (replicas.here.spool.size.waiting, replicas.there.spool.size.waiting) == (1, 0)
    await drain(replicas.here)
    assert (open_erasures(database), leads(database)) == (None, [same.id])


@pytest.mark.parametrize(
    ("ahead", "error", "becomes"),
    [(-5, 1, "tombstone"), (5, 1, "lead"), (0, 60, "lead_conflict"), (0, None, "lead_conflict")],
    ids=["before", "after", "the clocks leave it open", "no clock"],
)
async def test_what_was_accepted_after_the_erasure_is_new(
    replicas: Replicas, submit: Submit, database: TestDatabase, ahead: int, error: int | None, becomes: str
) -> None:
    lead, again = submit(**PERSON), submit(**PERSON)
    await replicas.here.store.create(lead)
    await erase(replicas.here, lead.id)
    replicas.there.spool.clock = StoppedClock(datetime.now(UTC) + timedelta(seconds=ahead), error)
    await replicas.there.spool.put([again])
    await drain(replicas.there)
    assert where(database, again) == {becomes}
    assert open_erasures(database) is None


async def test_an_erasure_survives_a_rotation_of_the_index_key(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    lead = submit(**PERSON)
    await replicas.here.store.create(lead)
    await erase(replicas.here, lead.id)

    replicas.there.spool.clock = StoppedClock(datetime.now(UTC) - timedelta(seconds=5), 1)
    with rotated(replicas.encryption):
        # Nothing that was noted with it names the key of the erasure.
        await replicas.there.spool.put([submit(**PERSON)])
        await drain(replicas.there)
    assert (open_erasures(database), leads(database)) == (None, None)


async def test_without_the_key_of_an_erasure_nothing_drains(
    replicas: Replicas, submit: Submit, database: TestDatabase
) -> None:
    lead = submit(**PERSON)
    await replicas.here.store.create(lead)
    await replicas.there.spool.put([submit(**PERSON), submit()])
    await erase(replicas.here, lead.id)
    faults.execute(
        database.admin_url,
        """UPDATE spool_erasure SET sought = jsonb_set(sought, '{schemes,0,key_id}', '"gone"')""",
    )
    for _ in range(3):
        assert await replicas.there.drain.step() is DrainRound.IDLE
    assert (replicas.there.spool.size.waiting, open_erasures(database)) == (2, ["there"])


async def test_the_same_erasure_again_adds_nothing(replicas: Replicas, submit: Submit, database: TestDatabase) -> None:
    lead = submit(**PERSON)
    await replicas.here.store.create(lead)
    for _ in range(3):
        await erase(replicas.here, lead.id)
    assert open_erasures(database) == ["there"]


async def test_a_backup_holds_open_erasures_and_no_question(
    replicas: Replicas, submit: Submit, database: TestDatabase, postgres_server: TestServer, tmp_path: Path
) -> None:
    await confirm_canary(replicas.here.database, replicas.encryption, ValidationService().normaliser_identity)
    lead = submit(**PERSON)
    await replicas.here.store.create(lead)
    await erase(replicas.here, lead.id)
    faults.execute(
        database.admin_url,
        f"INSERT INTO spool_search (id, replica, question) SELECT gen_random_uuid(), 'gone', '{Sought().to_json()}'",
    )
    manifest = make_backup(database.admin_url, tmp_path / "backup", replicas.encryption)
    assert "spool_search" not in manifest.tables
    restored = postgres_server.empty_database()
    with (tmp_path / "backup" / DUMP).open("rb") as dump:
        restore_backup(restored.admin_url, dump, manifest)
    assert (open_erasures(restored), value(restored, "SELECT count(*) FROM spool_search")) == (["there"], 0)


async def test_an_index_key_that_an_open_erasure_needs_is_not_retired(
    replicas: Replicas, submit: Submit, database: TestDatabase, tmp_path: Path
) -> None:
    await confirm_canary(replicas.here.database, replicas.encryption, ValidationService().normaliser_identity)
    lead = submit(**PERSON)
    await replicas.here.store.create(lead)
    await erase(replicas.here, lead.id)
    faults.execute(database.admin_url, "UPDATE replica SET seals = '{}'")
    old = replicas.encryption.keyring.primary(Purpose.INDEX)
    async with rekeying(database.serve_url) as tables:
        keys = KeyService(
            database=replicas.here.database,
            rekeying=tables,
            encryption=replicas.encryption,
            on_wait=lambda _: None,
            on_progress=lambda _: None,
            spool=tmp_path,
            timeout=1.0,
            rate=0,
        )
        with pytest.raises(StartRefusedError, match="1 erasures that wait for the replica there: start it"):
            await keys.retire(old, files=dict)
