"""A lead without a national ID: it waits, is stored, decided, handed over and erased like any other, and nobody who has
none either is taken for the same person."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from service.keys.encryption import EncryptionService, IndexScheme
from service.lead import SealedSubmission
from service.lead_sealer import LeadSealer
from service.rotation.workers import index
from service.storage.keys.rekeying import LEADS, lacks_index, rekeying
from service.storage.leads.decision import Created, DuplicateMatch, InConflict
from service.storage.leads.repository import LeadRepository
from service.storage.spool.file import SCHEMA
from service.storage.spool.rows import FILE_NAME
from service.storage.spool.spool import Spool
from service.validation import ValidationService
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, everyone
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, erased_with, own_lead, stored_late, where

PHONE, NID = "+8801799000001", "1990000000001"


def row_of(database: TestDatabase, submission: SealedSubmission) -> tuple[object, ...]:
    """Of a lead: its token and its blind indexes of a nid, and whether it shares one."""
    columns = "nid, nid_index, nid_index_2, nid_shared"
    with psycopg.connect(database.admin_url) as connection:
        return connection.execute(f"SELECT {columns} FROM lead WHERE id = %s".encode(), [submission.id]).fetchall()[0]


NO_NID = (None, None, None, False)


async def waiting(spool: Spool) -> list[UUID]:
    return [each.id for each in (await spool.oldest(10, lambda submission: submission)).submissions]


class TestSpool:
    async def test_two_people_without_one_wait_as_two(self, world: World, submit: Submit) -> None:
        one, other = submit(nid=None), submit(nid=None)
        await world.spool.put([one])

        assert (await world.spool.overlap([other])).rivals == set()
        await world.spool.put([other])
        assert await waiting(world.spool) == [one.id, other.id]

    async def test_its_row_holds_null(self, world: World, submit: Submit) -> None:
        await world.spool.put([submit(nid=None)])

        with closing(sqlite3.connect(world.spool.folder / FILE_NAME)) as file:
            assert file.execute("SELECT nid FROM entry").fetchall() == [(None,)]

    async def test_the_same_phone_is_refused_as_a_duplicate_of_what_waits(self, world: World, submit: Submit) -> None:
        first, again = submit(phone=PHONE, nid=None), submit(phone=PHONE, nid=None)

        outcomes = await world.spool.put([first, again])

        match = outcomes[again.id]
        assert isinstance(match, DuplicateMatch)
        assert (match.phone and match.phone.id, match.nid, match.verified) == (first.id, None, False)

    async def test_one_that_is_held_holds_nobody_else_who_has_none(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        held, other, same_phone = submit(phone=PHONE, nid=None), submit(nid=None), submit(phone=PHONE, nid=NID)
        await world.spool.put([held, other, same_phone])

        opened = await world.spool.oldest(10, world.reseal, held=frozenset({held.id}))

        assert [each.id for each in opened.submissions] == [other.id]

    async def test_it_is_drained_as_it_was_submitted(
        self, world: World, submit: Submit, repository: LeadRepository, database: TestDatabase
    ) -> None:
        leads = [submit(nid=None), submit(nid=None), submit()]
        await world.spool.put(leads)

        await drain(world)

        assert [row_of(database, lead) for lead in leads[:2]] == [NO_NID] * 2
        assert row_of(database, leads[2])[1] is not None
        stored = await repository.get(leads[0].id, everyone)
        assert stored.fields == leads[0].fields

    async def test_what_waits_in_a_file_of_the_format_before_is_drained_and_more_is_taken(
        self, tmp_path: Path, encryption: EncryptionService, submit: Submit
    ) -> None:
        spool = Spool(tmp_path / "old", encryption, max_bytes=10_000_000)
        spool.identified = True
        before, after = submit(), submit(nid=None)
        await spool.put([before])
        spool.close()
        with closing(sqlite3.connect(tmp_path / "old" / FILE_NAME, isolation_level=None)) as file:
            file.executescript(f"""
                PRAGMA writable_schema = ON;
                UPDATE sqlite_schema SET sql = replace(sql, 'nid BLOB', 'nid BLOB NOT NULL') WHERE name = 'entry';
                PRAGMA writable_schema = RESET;
                PRAGMA user_version = {SCHEMA - 1};
            """)

        spool = Spool(tmp_path / "old", encryption, max_bytes=10_000_000)
        spool.identified = True
        await spool.put([after])

        assert await waiting(spool) == [before.id, after.id]
        with closing(sqlite3.connect(tmp_path / "old" / FILE_NAME)) as file:
            assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert file.execute("PRAGMA user_version").fetchall() == [(SCHEMA,)]
        spool.close()


class TestStored:
    async def test_any_number_of_people_have_none(self, world: World, submit: Submit, database: TestDatabase) -> None:
        people = [submit(nid=None) for _ in range(26)]

        outcomes = [await world.create(each) for each in people]

        assert all(isinstance(outcome, Created) and outcome.is_new for outcome in outcomes)
        assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead WHERE nid IS NULL") == 26

    @pytest.mark.parametrize(("first", "second"), [(None, None), (None, NID), (NID, None)])
    async def test_the_same_phone_is_a_duplicate_that_proves_nothing(
        self, world: World, submit: Submit, database: TestDatabase, first: str | None, second: str | None
    ) -> None:
        lead, again = submit(phone=PHONE, nid=first), submit(phone=PHONE, nid=second, conversation_id="talk")
        await world.create(lead)

        match = await world.create(again)

        assert isinstance(match, DuplicateMatch)
        assert (match.phone and match.phone.id, match.nid, match.verified) == (lead.id, None, False)
        assert where(database, again) == {"resubmission"}
        assert faults.value_of(database.admin_url, "SELECT count(*) FROM lead_conversation") == 0

    async def test_a_repeat_of_its_request_is_its_lead(self, world: World, submit: Submit) -> None:
        sent = {"name": "Rahima", "phone": PHONE, "nid": None, "request_id": "r-1"}
        first = submit(**sent)
        await world.create(first)

        outcome = await world.store.create(submit(**sent))

        assert isinstance(outcome, Created)
        assert (outcome.lead.id, outcome.is_new) == (first.id, False)

    @pytest.mark.parametrize("value", ["nid = NULL", "nid_index = NULL"])
    async def test_no_lead_has_one_without_its_index_or_an_index_without_one(
        self, world: World, submit: Submit, database: TestDatabase, value: str
    ) -> None:
        await world.create(submit())

        with pytest.raises(psycopg.errors.CheckViolation):
            faults.execute(database.admin_url, f"UPDATE lead SET {value}")


class TestConflicts:
    @pytest.mark.parametrize(("first", "late"), [(None, None), (None, NID), (NID, None)])
    async def test_what_comes_late_with_the_same_phone_becomes_a_lead_of_its_own(
        self, world: World, submit: Submit, database: TestDatabase, first: str | None, late: str | None
    ) -> None:
        lead, second = submit(phone=PHONE, nid=first), submit(phone=PHONE, nid=late)
        await world.create(lead)
        [outcome] = await stored_late(world, second)
        assert isinstance(outcome, InConflict)
        nid = "SELECT nid FROM lead_conflict"
        assert (faults.value_of(database.admin_url, nid) is None) == (late is None)

        await own_lead(world, second)

        assert "lead" in where(database, second)
        assert (row_of(database, second) == NO_NID) == (late is None)

    async def test_who_shares_an_id_that_its_lead_gives_up_takes_it_over(
        self, world: World, submit: Submit, sealer: LeadSealer, repository: LeadRepository, database: TestDatabase
    ) -> None:
        holder, sharing = submit(nid=NID), submit(nid=NID)
        await world.create(holder)
        await stored_late(world, sharing)
        await own_lead(world, sharing)
        assert row_of(database, sharing)[3] is True

        await repository.correct(
            holder.id, lambda lead: sealer.correction(lead.id, {"nid": None}, actor="sam"), everyone
        )

        assert row_of(database, holder) == NO_NID
        assert row_of(database, sharing)[3] is False
        match = await world.create(submit(nid=NID))
        assert isinstance(match, DuplicateMatch)
        assert match.nid is not None
        assert match.nid.id == sharing.id


WITH_AND_WITHOUT = [(None, None), (None, NID), (NID, None)]


class TestErasure:
    """An erasure takes what shares phone and nid: who has no nid shares only the phone, so that it stays."""

    @pytest.mark.parametrize(("erased", "other"), WITH_AND_WITHOUT)
    async def test_a_resubmission_with_the_phone_alone_is_kept(
        self, world: World, submit: Submit, database: TestDatabase, erased: str | None, other: str | None
    ) -> None:
        x, relative = submit(phone=PHONE, nid=erased), submit(phone=PHONE, nid=other, source="web")
        for each in (x, relative):
            await world.create(each)

        assert await erase(world, x.id) == (relative.id,)

        assert (where(database, x), where(database, relative)) == ({"tombstone"}, {"lead_conflict"})
        assert erased_with(database, relative) == (None, None, None, x.id)
        kept = "SELECT (nid IS NULL)::text || ' ' || source FROM lead_conflict"
        assert faults.value_of(database.admin_url, kept) == f"{str(other is None).lower()} web"

    @pytest.mark.parametrize(("erased", "other"), WITH_AND_WITHOUT)
    async def test_a_conflict_with_the_phone_alone_is_kept(
        self, world: World, submit: Submit, database: TestDatabase, erased: str | None, other: str | None
    ) -> None:
        x, relative = submit(phone=PHONE, nid=erased), submit(phone=PHONE, nid=other)
        await world.create(x)
        await stored_late(world, relative)

        assert await erase(world, x.id) == (relative.id,)

        assert (where(database, x), where(database, relative)) == ({"tombstone"}, {"lead_conflict"})

    @pytest.mark.parametrize(("erased", "other"), WITH_AND_WITHOUT)
    async def test_what_waits_with_the_phone_alone_is_kept(
        self, world: World, submit: Submit, database: TestDatabase, erased: str | None, other: str | None
    ) -> None:
        x, relative, stranger = submit(phone=PHONE, nid=erased), submit(phone=PHONE, nid=other), submit(nid=None)
        await world.create(x)
        await world.spool.put([relative, stranger])

        assert await erase(world, x.id) == (relative.id,)

        assert (where(database, x), where(database, relative)) == ({"tombstone"}, {"lead_conflict"})
        await drain(world)
        assert where(database, stranger) == {"lead"}

    async def test_its_own_request_goes_wherever_it_is(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        sent = {"name": "Rahima", "phone": PHONE, "nid": None, "request_id": "r-1"}
        x, copy, reused = submit(**sent), submit(**sent), submit(nid=None, request_id="r-1")
        await world.create(x)
        await world.spool.put([copy])
        await stored_late(world, reused)

        assert await erase(world, x.id) == ()

        assert [where(database, each) for each in (x, copy, reused)] == [{"tombstone"}] * 3
        assert world.spool.size.waiting == 0

    async def test_it_is_erased_by_its_id_while_it_waits(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, stranger = submit(nid=None), submit(nid=None)
        await world.spool.put([x, stranger])

        assert await erase(world, x.id) == ()

        await drain(world)
        assert (where(database, x), where(database, stranger)) == ({"tombstone"}, {"lead"})


async def test_a_reindex_has_nothing_to_do_for_a_nid_that_is_not_there(
    world: World, submit: Submit, database: TestDatabase, encryption: EncryptionService
) -> None:
    without, other = submit(nid=None), submit()
    for each in (without, other):
        await world.create(each)
    faults.execute(
        database.admin_url, "INSERT INTO key_canary (id, sealed, digest, normaliser) VALUES (1, 's', 'd', 'n')"
    )
    scheme = IndexScheme(encryption.index_primary_id, ValidationService().normaliser_identity)

    async with rekeying(database.serve_url) as tables:
        rows = await tables.read(LEADS, lacks_index(2), None)
        found = {row.bound_to: index(scheme, encryption, row.bound_to, row.tokens) for row in rows}
        # Another key would make others; the unique indexes of both pairs hold the same here.
        assert await tables.fill_indexes(2, 0, [(row, found[row.bound_to]) for row in rows]) == 2

        assert found.keys() == {without.id, other.id}
        assert found[without.id][1] is None
        assert await tables.count(LEADS, lacks_index(2)) == 0
        await tables.clear_indexes(1)
    assert row_of(database, without) == NO_NID
