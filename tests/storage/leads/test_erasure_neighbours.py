"""An erasure takes one person, and nothing that only shares a phone, a nid or the want of a request_id with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.lead import ConflictResolution, LeadStatus, SealedSubmission
from service.storage.leads.conflicts import ConflictRepository, Decision, JoinLead
from service.storage.leads.decision import Erased, InConflict
from service.storage.leads.erasing import KnownTombstone, drop_within
from service.storage.leads.erasures import RetentionRule, erase_due
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spooled
from tests.harness import faults
from tests.harness.postgres import TestDatabase
from tests.harness.processes import until
from tests.storage.conftest import Submit
from tests.storage.intake.test_writer import World
from tests.storage.leads.replicas import drain, erase, erased_with, late, own_lead, stored_late, twins, where

PHONE, NID = "+8801799000001", "1990000000001"


def again(submission: SealedSubmission, **changes: object) -> SealedSubmission:
    """The same request under another id, as a repeat at another replica is sealed."""
    from service.factories import new_id

    return replace(submission, id=new_id(), **changes)  # type: ignore[arg-type]


async def drop(conflict_id: UUID, erased_with: UUID, connection: AsyncConnection) -> None:
    await drop_within(connection, conflict_id, KnownTombstone(lead_id=erased_with, erased_by="boss"))


async def erase_elsewhere(world: World, lead_id: UUID) -> None:
    """Erase an id that waits in another replica's spool."""
    with pytest.raises(LeadNotFoundError):
        await erase(world, lead_id)


class TestWithoutRequestIds:
    async def test_what_waits_beside_an_erased_submission_is_drained(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        x = submit(phone=PHONE, nid=NID)
        await world.create(x)
        a, b, c, d = submit(), submit(phone=PHONE), submit(), submit(nid=NID)
        await elsewhere.spool.put([a, b, c, d])
        await erase_elsewhere(world, a.id)

        await drain(elsewhere)

        found = [where(database, each) for each in (a, b, c, d)]
        assert found == [{"tombstone"}, {"lead_conflict"}, {"lead"}, {"lead_conflict"}]

    async def test_two_conflicts_of_one_subject_are_not_one_request(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x = submit(phone=PHONE, nid=NID)
        await world.create(x)
        one, other = submit(phone=PHONE), submit(phone=PHONE)
        assert {type(outcome) for outcome in await stored_late(world, one, other)} == {InConflict}

        await erase(world, one.id)

        assert (where(database, one), where(database, other)) == ({"tombstone"}, {"lead_conflict"})


class TestConflicts:
    @pytest.mark.parametrize("shared", [{"phone": PHONE}, {"nid": NID}])
    async def test_what_shares_only_one_value_stays_undecided_without_the_lead(
        self, world: World, submit: Submit, database: TestDatabase, shared: dict[str, str]
    ) -> None:
        x, relative = submit(phone=PHONE, nid=NID), submit(**shared)
        await world.create(x)
        await stored_late(world, relative)

        kept = await erase(world, x.id)

        assert kept == (relative.id,)
        assert where(database, relative) == {"lead_conflict"}
        assert erased_with(database, relative) == (None, None, None, x.id)
        assert where(database, x) == {"tombstone"}

    async def test_what_shares_both_goes(self, world: World, submit: Submit, database: TestDatabase) -> None:
        x, again_x = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        await world.create(x)
        await stored_late(world, again_x)
        assert await erase(world, x.id) == ()
        assert where(database, again_x) == {"tombstone"}

    async def test_what_has_the_request_goes(self, world: World, submit: Submit, database: TestDatabase) -> None:
        x, reused = submit(request_id="r1"), submit(request_id="r1")
        await world.create(x)
        await stored_late(world, reused)
        assert await erase(world, x.id) == ()
        assert where(database, reused) == {"tombstone"}

    async def test_one_that_matches_two_leads_keeps_the_other(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, y, both = submit(phone=PHONE), submit(nid=NID), submit(phone=PHONE, nid=NID)
        for each in (x, y):
            await world.create(each)
        await stored_late(world, both)
        assert await erase(world, x.id) == (both.id,)
        assert erased_with(database, both) == (None, y.id, None, x.id)

    async def test_what_was_kept_is_erased_by_its_own_id(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        await world.create(x)
        await stored_late(world, relative)
        await erase(world, x.id)
        await erase(world, relative.id)
        assert where(database, relative) == {"tombstone"}
        assert await erase(world, x.id) == ()

    async def test_the_same_person_kept_twice_goes_whole(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, one, other = submit(phone=PHONE), submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        stranger = submit(phone=PHONE)
        await world.create(x)
        await stored_late(world, one, other, stranger)
        await erase(world, x.id)
        await erase(world, one.id)
        assert [where(database, each) for each in (one, other)] == [{"tombstone"}] * 2
        assert where(database, stranger) == {"lead_conflict"}

    async def test_the_same_again_names_what_is_kept_again(self, world: World, submit: Submit) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        await world.create(x)
        await stored_late(world, relative)
        assert await erase(world, x.id) == await erase(world, x.id) == (relative.id,)

    async def test_a_decision_waits_for_an_erasure_that_may_take_its_conflict(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        await world.create(x)
        await stored_late(world, relative)
        with psycopg.connect(database.admin_url) as erasing:
            erasing.execute("SELECT pg_advisory_xact_lock(%s)", [0x4C4B_4552])  # as an erasure begins
            deciding = asyncio.create_task(own_lead(world, relative))
            assert await asyncio.wait({deciding}, timeout=0.5) == (set(), {deciding})
            erasing.rollback()
        await deciding
        assert "lead" in where(database, relative)


class TestResubmissions:
    @pytest.mark.parametrize("shared", [{"phone": PHONE}, {"nid": NID}])
    async def test_what_shares_only_one_value_becomes_a_conflict(
        self, world: World, submit: Submit, database: TestDatabase, shared: dict[str, str]
    ) -> None:
        x, relative = submit(phone=PHONE, nid=NID), submit(**shared)
        for each in (x, relative):
            await world.create(each)
        assert where(database, relative) == {"resubmission"}

        assert await erase(world, x.id) == (relative.id,)

        assert where(database, relative) == {"lead_conflict"}
        assert erased_with(database, relative) == (None, None, None, x.id)

    async def test_what_shares_both_goes(self, world: World, submit: Submit, database: TestDatabase) -> None:
        x, same = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        for each in (x, same):
            await world.create(each)
        assert await erase(world, x.id) == ()
        assert where(database, same) == {"tombstone"}

    async def test_one_that_is_kept_with_another_lead_stays_there_alone(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, y, both = submit(phone=PHONE), submit(nid=NID), submit(phone=PHONE, nid=NID)
        for each in (x, y, both):
            await world.create(each)
        assert await erase(world, x.id) == ()
        assert where(database, both) == {"resubmission"}
        assert faults.value_of(database.admin_url, "SELECT array_agg(lead_id) FROM resubmission") == [y.id]

    async def test_a_wifes_own_goes_also_where_it_is_kept_with_her_husband(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        husband, wife = submit(phone=PHONE), submit(phone=PHONE, nid=NID)
        await world.create(husband)
        await stored_late(world, wife)
        await own_lead(world, wife)
        back, child = submit(phone=PHONE, nid=NID), submit(phone=PHONE)
        for each in (back, child):
            await world.create(each)

        await erase(world, wife.id)

        assert where(database, back) == {"tombstone"}
        assert where(database, child) == {"resubmission"}
        assert where(database, husband) == {"lead"}

    async def test_an_erasure_that_waits_for_the_lead_which_counts_one_less_holds_none_of_a_later_id(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        """A correction of the husband's lead locks the wife's, too, which would take his phone over: his first."""
        husband, wife = submit(phone=PHONE), submit(phone=PHONE, nid=NID)
        await world.create(husband)
        await stored_late(world, wife)
        await own_lead(world, wife)
        await world.create(submit(phone=PHONE, nid=NID))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with psycopg.connect(database.admin_url) as other, faults.locked_lead(database.admin_url, str(husband.id)):
            other.autocommit = True
            erasing = asyncio.create_task(erase(world, wife.id))
            for _ in range(3):  # it waits 200 ms, and again
                await until(lambda: other.execute(waiting).fetchone() == (1,))
                other.execute("SELECT FROM lead WHERE id = %s FOR UPDATE NOWAIT", [wife.id])
                await until(lambda: other.execute(waiting).fetchone() == (0,))
        await erasing

    async def test_the_husbands_erasure_leaves_her_what_is_hers(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        husband, wife = submit(phone=PHONE), submit(phone=PHONE, nid=NID)
        await world.create(husband)
        await stored_late(world, wife)
        await own_lead(world, wife)
        back = submit(phone=PHONE, nid=NID)
        await world.create(back)

        await erase(world, husband.id)

        assert where(database, wife) == {"lead"}
        assert where(database, back) == {"resubmission"}

    async def test_retention_takes_what_came_back_to_an_old_lead_with_it(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        for each in (x, relative):
            await world.create(each)
        rule = RetentionRule(LeadStatus.NEW, datetime.now(UTC) + timedelta(minutes=1))
        assert await erase_due(world.database, rule, [x.id], actor="cli:ops", reason=None) == 1
        assert where(database, relative) == set()

    async def test_a_list_of_erasures_keeps_others_too(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        for each in (x, relative):
            await world.create(each)
        unknown = submit()
        await erase_elsewhere(world, unknown.id)
        (listed,) = await world.erasures.page(None)
        await world.erasures.erase_again([replace(listed, id=x.id, lead_id=x.id)])
        assert (where(database, x), where(database, relative)) == ({"tombstone"}, {"lead_conflict"})


class TestSpool:
    async def test_a_spool_that_cannot_be_read_refuses_before_anything_is_erased(
        self, world: World, submit: Submit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, same = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        await world.create(x)
        await world.spool.put([same])

        async def unreadable(*_: object) -> Spooled:
            raise SpoolError("the spool's file cannot be used (SQLITE_IOERR)")

        with monkeypatch.context() as broken:
            broken.setattr(world.spool, "of_person", unreadable)
            with pytest.raises(StorageUnavailableError):
                await erase(world, x.id)
        assert where(database, x) == {"lead"}
        await erase(world, x.id)
        assert where(database, same) == {"tombstone"}

    async def test_what_a_person_decided_to_drop_takes_nothing_else_when_its_copy_is_drained(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, y = submit(phone=PHONE), submit(nid=NID)
        dropped, kept = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        for each in (x, y):
            await world.create(each)
        await stored_late(world, dropped, kept)
        await elsewhere.spool.put([dropped])
        await world.database.write(partial(drop, dropped.id, x.id))
        await drain(elsewhere)
        assert (where(database, dropped), where(database, kept)) == ({"tombstone"}, {"lead_conflict"})

    @pytest.mark.parametrize("shared", [{"phone": PHONE}, {"nid": NID}])
    async def test_what_shares_only_one_value_with_a_saved_lead_is_stored_as_a_conflict(
        self, world: World, submit: Submit, database: TestDatabase, shared: dict[str, str]
    ) -> None:
        x, relative = submit(phone=PHONE, nid=NID), submit(**shared)
        await world.create(x)
        await world.spool.put([relative])

        assert await erase(world, x.id) == (relative.id,)

        assert world.spool.empty
        assert where(database, relative) == {"lead_conflict"}

    async def test_what_shares_only_one_value_with_a_spooled_lead_is_stored_as_a_conflict(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative, stranger = submit(phone=PHONE), submit(phone=PHONE), submit()
        for each in (x, relative, stranger):
            await world.spool.put([each])

        assert await erase(world, x.id) == (relative.id,)

        assert (where(database, x), where(database, relative)) == ({"tombstone"}, {"lead_conflict"})
        await drain(world)
        assert where(database, stranger) == {"lead"}
        assert where(database, relative) == {"lead_conflict"}

    async def test_what_shares_both_goes(self, world: World, submit: Submit, database: TestDatabase) -> None:
        x, same = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        await world.create(x)
        await world.spool.put([same])
        assert await erase(world, x.id) == ()
        assert world.spool.empty
        assert where(database, same) == {"tombstone"}

    async def test_what_has_the_request_goes(self, world: World, submit: Submit, database: TestDatabase) -> None:
        x, corrected = submit(phone=PHONE, request_id="r1"), submit(phone=PHONE, request_id="r1")
        await world.create(x)
        await world.spool.put([corrected])
        assert await erase(world, x.id) == ()
        assert where(database, corrected) == {"tombstone"}

    async def test_a_drain_at_the_same_moment_stores_nothing_twice(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        for number in range(20):
            phone = f"+88018{number:08d}"
            x, relative = submit(phone=phone), submit(phone=phone)
            await world.create(x)
            await world.spool.put([relative])
            await asyncio.gather(erase(world, x.id), drain(world))
            assert where(database, x) == {"tombstone"}
            assert where(database, relative) in ({"lead"}, {"lead_conflict"})

    async def test_a_drain_that_waits_for_an_erasure_sees_what_that_stored(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, relative = submit(phone=PHONE), submit(phone=PHONE)
        await world.create(x)
        await world.spool.put([relative])
        faults.execute(
            database.admin_url,
            """CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$""",
            "CREATE TRIGGER take_time AFTER DELETE ON lead FOR EACH ROW EXECUTE FUNCTION take_time()",
        )

        erasing = asyncio.create_task(erase(world, x.id))
        await asyncio.sleep(0.5)
        await drain(world)
        await erasing

        assert where(database, relative) == {"lead_conflict"}

    @pytest.mark.parametrize("first_drained", [0, 1])
    async def test_two_copies_of_a_request_in_two_other_spools_are_erased_by_one_id(
        self,
        world: World,
        elsewhere: World,
        submit: Submit,
        database: TestDatabase,
        first_drained: int,
    ) -> None:
        one, copy = twins(submit)
        await world.spool.put([one])
        await elsewhere.spool.put([copy])
        await world.erasures.erase(one.id, actor="boss", reason=None, spooled=Spooled())  # as a third replica does it

        for replica_of in (world, elsewhere) if first_drained == 0 else (elsewhere, world):
            await drain(replica_of)

        assert [where(database, each) for each in (one, copy)] == [{"tombstone"}, {"tombstone"}]

    async def test_what_a_person_left_here_goes_when_the_erased_submission_is_drained(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, erased, back = submit(phone=PHONE), submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        child = submit(phone=PHONE)
        for each in (x, back, child):
            await world.create(each)
        await elsewhere.spool.put([erased])
        await erase_elsewhere(world, erased.id)

        await drain(elsewhere)

        assert [where(database, each) for each in (erased, back)] == [{"tombstone"}] * 2
        assert where(database, child) == {"resubmission"}
        assert where(database, x) == {"lead"}

    async def test_what_the_person_submits_after_the_erasure_stays(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, erased, back = submit(phone=PHONE), submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        await world.create(x)
        await elsewhere.spool.put([erased])
        await erase_elsewhere(world, erased.id)
        await world.create(back)
        await drain(elsewhere)
        assert where(database, back) == {"resubmission"}

    async def test_a_spooled_submissions_erasure_takes_what_the_person_left_in_the_database(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        x, back, spooled = submit(phone=PHONE), submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID)
        for each in (x, back):
            await world.create(each)
        await world.spool.put([spooled])
        await erase(world, spooled.id)
        assert [where(database, each) for each in (spooled, back)] == [{"tombstone"}] * 2

    async def test_a_spooled_copys_erasure_takes_the_lead_that_another_replica_made_of_the_request(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        saved, copy = twins(submit)
        await elsewhere.spool.put([saved])
        await world.spool.put([copy])
        await drain(elsewhere)
        await erase(world, copy.id)
        assert [where(database, each) for each in (saved, copy)] == [{"tombstone"}] * 2

    async def test_a_copy_whose_insert_waited_for_the_erased_lead_does_not_take_its_place(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        """Its snapshot is from before the erasure, and its id has no tombstone."""
        saved, copy = twins(submit)
        await world.create(saved)
        drained = late(copy)
        with psycopg.connect(database.serve_url) as erasing:
            erasing.execute("SELECT lock_for_erasure(%s)", [saved.id])
            erase_it = "SELECT erase_lead(%s, %s, 'operator', NULL, '{}', '{}', true, NULL, NULL, NULL, NULL)"
            erasing.execute(erase_it, [saved.id] * 2)
            storing = asyncio.create_task(world.store.create(drained))
            await asyncio.sleep(0.1)
            erasing.commit()
        assert isinstance(await storing, Erased)
        assert where(database, copy) == {"tombstone"}

    async def test_a_refused_copy_in_another_spool_is_dropped(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        erased, copy = twins(submit)
        await world.spool.put([erased])
        await elsewhere.spool.put([submit(phone="+8801900000000"), copy])
        await erase(world, erased.id)
        await drain(elsewhere)
        assert where(database, copy) == {"tombstone"}

    async def test_a_refused_copy_that_is_drained_after_the_erasure_was_submitted_before_it(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase
    ) -> None:
        erased, copy = twins(submit)
        await world.spool.put([submit(phone="+8801900000000")])
        await world.spool.put([copy])
        await elsewhere.spool.put([erased])
        await world.erasures.erase(
            erased.id, actor="boss", reason=None, spooled=Spooled()
        )  # as a third replica does it
        await drain(world)
        assert where(database, copy) == {"resubmission"}
        await drain(elsewhere)
        assert where(database, copy) == {"tombstone"}

    @pytest.mark.parametrize("attempt", range(3))
    async def test_an_erasure_and_a_drain_of_one_id_at_two_replicas_leave_nothing(
        self, world: World, elsewhere: World, submit: Submit, database: TestDatabase, attempt: int
    ) -> None:
        """Else the drain finds no tombstone and makes a conflict, while the erasure finds no conflict."""
        late_ones = []
        for number in range(25):
            phone = f"+8801{attempt}{number:08d}"
            await world.create(submit(phone=phone))
            late_ones.append(submit(phone=phone))
        await elsewhere.spool.put(late_ones)

        async def erase_soon(each: SealedSubmission) -> None:
            await asyncio.sleep(Random(each.id.int).uniform(0, 0.05))
            try:
                await erase(world, each.id)
            except LeadNotFoundError:
                return  # it is dropped when it is drained

        await asyncio.gather(drain(elsewhere), *(erase_soon(each) for each in late_ones))

        assert [where(database, each) for each in late_ones] == [{"tombstone"}] * len(late_ones)


async def keep_first(world: World, conflict: SealedSubmission, lead: SealedSubmission) -> None:
    """Decide that a conflict's id leads to the lead that it matches."""
    conflicts = ConflictRepository(world.database)

    def decide(_: object) -> Decision:
        return JoinLead(lead.id, conflict)

    await conflicts.resolve(conflict.id, ConflictResolution.KEEP_FIRST, decide, actor="boss", reason=None)


class TestIdsThatMove:
    """An id is followed to what it stands for when the erasure holds its locks."""

    async def test_what_waits_of_a_lead_goes_when_the_id_begins_to_lead_to_it_meanwhile(
        self, world: World, submit: Submit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The conflict shares nothing with what waits, so that the first search of the spool does not find that.
        lead, conflict = submit(phone=PHONE, nid=NID, request_id="r"), submit(request_id="r")
        waiting = submit(phone=PHONE, nid=NID)
        await world.create(lead)
        await stored_late(world, conflict)
        await world.spool.put([waiting])
        search = world.spool.of_person

        async def decided_meanwhile(*about: Any) -> Spooled:
            found = await search(*about)
            if where(database, conflict) == {"lead_conflict"}:
                await keep_first(world, conflict, lead)
            return found

        monkeypatch.setattr(world.spool, "of_person", decided_meanwhile)
        await erase(world, conflict.id)

        assert [where(database, each) for each in (lead, conflict, waiting)] == [{"tombstone"}] * 3
        assert world.spool.empty

    @pytest.mark.parametrize("spooled", [False, True])
    async def test_a_submission_with_phone_and_nid_of_a_lead_takes_the_lead_with_it(
        self, world: World, submit: Submit, database: TestDatabase, spooled: bool
    ) -> None:
        lead, same, relative = submit(phone=PHONE, nid=NID), submit(phone=PHONE, nid=NID), submit(phone=PHONE)
        await world.create(lead)
        await world.create(relative)
        if spooled:
            await world.spool.put([same])
        else:
            await stored_late(world, same)

        assert await erase(world, same.id) == (relative.id,)

        assert [where(database, each) for each in (lead, same)] == [{"tombstone"}] * 2
        assert where(database, relative) == {"lead_conflict"}

    async def test_a_conflict_that_shares_only_the_phone_leaves_the_lead(
        self, world: World, submit: Submit, database: TestDatabase
    ) -> None:
        lead, conflict = submit(phone=PHONE, nid=NID), submit(phone=PHONE)
        await world.create(lead)
        await stored_late(world, conflict)
        await erase(world, conflict.id)
        assert (where(database, lead), where(database, conflict)) == ({"lead"}, {"tombstone"})
