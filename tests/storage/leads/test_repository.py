from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import uuid_utils.compat
from sqlalchemy import insert, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ConversationNotFoundError, LeadNotFoundError, StorageUnavailableError
from service.lead import SENSITIVE_FIELDS, LeadEventType, LeadStatus, SealedLead, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage import models
from service.storage.database.database import Database, Work
from service.storage.database.failures import (
    LONGEST_RETRY,
    CommitNotDurableError,
    Retry,
    RetryScope,
    StorageFaultError,
    retry_scope,
)
from service.storage.leads import submissions
from service.storage.leads.changes import Correction, LeadHistory, Step
from service.storage.leads.decision import Created, DuplicateMatch, MatchedLead, Outcome, RequestIdReused
from service.storage.leads.look_up import find_duplicates
from service.storage.leads.queries import OTHER_LEADS_SHOWN, columns_of, index_columns
from service.storage.leads.repository import LeadRepository
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool
from tests.harness.postgres import TestDatabase
from tests.storage.conftest import Submit, Talk, everyone


def again(submission: SealedSubmission) -> SealedSubmission:
    """The same request, sent once more: it gets a new id before anybody can know that it is a repeat."""
    return replace(submission, id=uuid_utils.compat.uuid7())


def lead_of(outcome: Outcome) -> SealedLead:
    assert isinstance(outcome, Created), outcome
    return outcome.lead


def met_of(outcome: Outcome) -> DuplicateMatch:
    assert isinstance(outcome, DuplicateMatch), outcome
    return outcome


@contextmanager
def foreign(database: TestDatabase) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's transaction, undone at the end."""
    with psycopg.connect(database.admin_url) as connection:
        yield connection
        connection.rollback()


@contextmanager
def patience(seconds: float) -> Iterator[list[Retry]]:
    """A caller's time, and the retries that are reported to it."""
    heard: list[Retry] = []
    token = retry_scope.set(RetryScope(time.monotonic() + seconds, heard.append))
    yield heard
    retry_scope.reset(token)


def rows_of(database: TestDatabase, table: str = "lead") -> int:
    with psycopg.connect(database.admin_url) as connection:
        [found] = connection.execute(f"SELECT count(*) FROM {table}".encode())
        return int(found[0])


def contact(current: SealedLead) -> Step | None:
    del current
    return Step(column="status", to="contacted", actor="sam", reason=None)


def leave(current: SealedLead) -> None:
    del current


class TestCreate:
    async def test_a_submission_becomes_a_lead(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        submission = submit(email="a@example.com", conversation_id="talk-1")

        lead = lead_of(await store.create(submission))

        assert lead.id == submission.id
        assert dict(lead.sealed) == dict(submission.sealed)
        assert (lead.status, lead.version, lead.resubmissions) == (LeadStatus.NEW, 1, 0)
        assert await repository.get(submission.id, everyone) == lead

    async def test_its_times_know_their_zone_and_are_equal(self, store: SubmissionStore, submit: Submit) -> None:
        lead = lead_of(await store.create(submit()))

        assert lead.created_at == lead.updated_at
        assert lead.created_at.utcoffset() is not None

    async def test_a_field_that_was_not_given_is_absent(self, store: SubmissionStore, submit: Submit) -> None:
        lead = lead_of(await store.create(submit()))

        assert set(lead.sealed) == {"phone", "nid", "address"}

    async def test_an_unknown_id_is_nobody(self, repository: LeadRepository) -> None:
        with pytest.raises(LeadNotFoundError):
            await repository.get(uuid_utils.compat.uuid7(), everyone)


class TestRequestId:
    async def test_without_one_a_duplicate_locks_no_other_lead_of_its_subject(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        bystander = submit()
        await store.create(bystander)
        await store.create(submit(phone="+1234567"))

        with foreign(database) as elsewhere, patience(0.5) as heard:
            elsewhere.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", [bystander.id])
            await store.create(submit(phone="+1234567"))

        assert heard == []


class TestResubmissions:
    async def test_its_tokens_are_kept_as_they_were_sealed(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)
        came_back = submit(phone="+1234567", notes="back")
        await store.create(came_back)

        [kept] = await repository.resubmissions(lead.id, after=None, limit=100)

        assert dict(kept.sealed) == dict(came_back.sealed)
        assert (kept.submission_id, kept.actor, kept.verified) == (came_back.id, "bot", False)
        assert kept.submitted_at.utcoffset() is not None

    async def test_a_repeat_by_id_is_kept_once(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)
        came_back = submit(phone="+1234567")
        for _ in range(3):
            met_of(await store.create(came_back))

        assert len(await repository.resubmissions(lead.id, after=None, limit=100)) == 1

    async def test_a_repeat_by_request_id_is_kept_once(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)
        came_back = submit(phone="+1234567", request_id="r1")
        for _ in range(3):
            met_of(await store.create(again(came_back)))

        assert len(await repository.resubmissions(lead.id, after=None, limit=100)) == 1

    async def test_concurrent_repeats_are_kept_once(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)
        came_back = submit(phone="+1234567", request_id="r1")
        await asyncio.gather(*(store.create(again(came_back)) for _ in range(10)))

        assert len(await repository.resubmissions(lead.id, after=None, limit=100)) == 1

    async def test_of_two_matched_leads_each_keeps_it(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        one, other = submit(phone="+1234567"), submit(nid="1234567")
        await store.create(one)
        await store.create(other)
        crossed = submit(phone="+1234567", nid="1234567")
        await store.create(crossed)

        for lead in (one, other):
            [kept] = await repository.resubmissions(lead.id, after=None, limit=100)
            assert (kept.submission_id, kept.verified) == (crossed.id, False)


class TestConversations:
    async def test_a_new_lead_is_linked(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk
    ) -> None:
        lead = submit(conversation_id="talk")
        await store.create(lead)

        found, others = await repository.find_by_conversation(*talk, created_by=None)

        assert (found.id, others) == (lead.id, [])

    @pytest.mark.parametrize("field", ["phone", "nid"])
    async def test_one_matched_field_links_nothing(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk, field: str
    ) -> None:
        await store.create(submit(**{field: "1234567"}))
        await store.create(submit(**{field: "1234567", "conversation_id": "talk"}))

        with pytest.raises(ConversationNotFoundError):
            await repository.find_by_conversation(*talk, created_by=None)

    async def test_two_leads_matched_by_one_field_each_are_not_linked(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk
    ) -> None:
        await store.create(submit(phone="+1234567"))
        await store.create(submit(nid="1234567"))
        await store.create(submit(phone="+1234567", nid="1234567", conversation_id="talk"))

        with pytest.raises(ConversationNotFoundError):
            await repository.find_by_conversation(*talk, created_by=None)

    async def test_a_verified_submission_is_linked_once(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk, database: TestDatabase
    ) -> None:
        lead = submit(phone="+1234567", nid="1234567")
        await store.create(lead)
        for _ in range(2):
            await store.create(submit(phone="+1234567", nid="1234567", conversation_id="talk"))

        found, others = await repository.find_by_conversation(*talk, created_by=None)

        assert (found.id, others) == (lead.id, [])
        assert rows_of(database, "lead_conversation") == 1

    async def test_only_one_subjects_leads_are_found_when_asked(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk
    ) -> None:
        mine, theirs = (submit(conversation_id="talk", created_by=who) for who in ("me", "them"))
        await store.create(mine)
        await store.create(theirs)

        found, others = await repository.find_by_conversation(*talk, created_by="me")

        assert (found.id, others) == (mine.id, [])
        with pytest.raises(ConversationNotFoundError):
            await repository.find_by_conversation(*talk, created_by="nobody")

    async def test_the_other_leads_are_bounded(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, talk: Talk
    ) -> None:
        await asyncio.gather(*(store.create(submit(conversation_id="talk")) for _ in range(OTHER_LEADS_SHOWN + 5)))

        _, others = await repository.find_by_conversation(*talk, created_by=None)

        assert len(others) == OTHER_LEADS_SHOWN


class TestConcurrency:
    async def test_50_submissions_of_one_person_make_one_lead(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        outcomes = await asyncio.gather(*(store.create(submit(phone="+1234567", nid="1234567")) for _ in range(50)))

        assert Counter(type(outcome) for outcome in outcomes) == {Created: 1, DuplicateMatch: 49}
        assert rows_of(database) == 1
        [created] = [outcome.lead for outcome in outcomes if isinstance(outcome, Created)]
        stored = await repository.get(created.id, everyone)
        assert stored.resubmissions == 49

    @pytest.mark.parametrize("field", ["phone", "nid"])
    async def test_50_submissions_with_one_equal_field_make_one_lead(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase, field: str
    ) -> None:
        outcomes = await asyncio.gather(*(store.create(submit(**{field: "1234567"})) for _ in range(50)))

        assert Counter(type(outcome) for outcome in outcomes) == {Created: 1, DuplicateMatch: 49}
        assert rows_of(database) == 1

    async def test_50_repeats_of_one_request_are_one_lead(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        submission = submit(request_id="r1")

        outcomes = await asyncio.gather(*(store.create(again(submission)) for _ in range(50)))

        assert len({lead_of(outcome).id for outcome in outcomes}) == 1
        assert rows_of(database) == 1
        assert rows_of(database, "resubmission") == 0

    async def test_two_processes_make_one_lead(
        self, store: SubmissionStore, repository: LeadRepository, submit: Submit, database: TestDatabase
    ) -> None:
        second = Database(database.serve_url)
        rival = SubmissionStore(second)
        try:
            outcomes = await asyncio.gather(
                *(to.create(submit(phone="+1234567", nid="1234567")) for _ in range(25) for to in (store, rival))
            )
        finally:
            await second.close()

        assert Counter(type(outcome) for outcome in outcomes) == {Created: 1, DuplicateMatch: 49}
        assert rows_of(database) == 1

    async def test_crossed_duplicates_of_two_leads_end_without_an_error(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        one, other = submit(phone="+1111111", nid="1111111"), submit(phone="+2222222", nid="2222222")
        await store.create(one)
        await store.create(other)

        outcomes = await asyncio.gather(
            *(
                store.create(submit(phone=phone, nid=nid))
                for _ in range(20)
                for phone, nid in (("+1111111", "2222222"), ("+2222222", "1111111"))
            )
        )

        assert all({lead.id for lead in met_of(outcome).leads} == {one.id, other.id} for outcome in outcomes)
        for lead in (one, other):
            stored = await repository.get(lead.id, everyone)
            assert stored.resubmissions == 40

    async def test_crossed_newcomers_end_without_an_error_and_no_value_is_stored_twice(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        outcomes = await asyncio.gather(
            *(
                store.create(submit(phone=f"+777000{phone}", nid=f"777000{nid}"))
                for phone in range(6)
                for nid in range(6)
            )
        )

        assert not [outcome for outcome in outcomes if isinstance(outcome, RequestIdReused)]
        assert sum(isinstance(outcome, Created) for outcome in outcomes) == rows_of(database) <= 6

    async def test_changes_at_once_each_get_a_version_of_their_own(
        self, history: LeadHistory, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit()
        await store.create(lead)

        def assign(current: SealedLead) -> Step:
            return Step(column="assignee", to=f"sam-{current.version}", actor="boss", reason=None)

        await asyncio.gather(*(repository.change(lead.id, assign, everyone) for _ in range(20)))

        assert [change.version for change in await history.of_type(lead.id, LeadEventType.ASSIGNED)] == list(
            range(2, 22)
        )


class TestForeignLocks:
    async def test_a_duplicate_of_a_locked_lead_waits_no_longer_than_its_caller(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)

        with foreign(database) as elsewhere, patience(1.0) as heard:
            elsewhere.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", [lead.id])
            began = time.monotonic()
            with pytest.raises(StorageUnavailableError):
                await store.create(submit(phone="+1234567"))
            took = time.monotonic() - began

        assert took < LONGEST_RETRY - 2
        assert {retry.cause for retry in heard} == {"55P03"}

    async def test_it_is_settled_as_soon_as_the_lock_is_gone(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)

        with foreign(database) as elsewhere, patience(10) as heard:
            elsewhere.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", [lead.id])
            waiting = asyncio.create_task(store.create(submit(phone="+1234567")))
            while not heard:  # noqa: ASYNC110 # the listener is a plain callback
                await asyncio.sleep(0.01)
            elsewhere.rollback()

            assert met_of(await waiting).phone == MatchedLead(lead.id, "bot")

    async def test_a_rival_that_is_undone_leaves_the_way_free(
        self, store: SubmissionStore, submit: Submit, connected: Database
    ) -> None:
        rival = submit(phone="+1234567")
        newcomer = submit(phone="+1234567")

        async def begin_and_fail(connection: AsyncConnection) -> None:
            await submissions.store([rival], connection)
            waiting.append(asyncio.create_task(store.create(newcomer)))
            await asyncio.sleep(0.05)
            raise ValueError("undone")

        waiting: list[asyncio.Task[Outcome]] = []
        with pytest.raises(ValueError, match="undone"):
            await connected.write(begin_and_fail)

        assert lead_of(await waiting[0]).id == newcomer.id

    async def test_a_repeat_of_a_locked_lead_is_not_answered_before_the_lock_is_gone(
        self, store: SubmissionStore, submit: Submit, database: TestDatabase
    ) -> None:
        submission = submit(request_id="r1")
        await store.create(submission)

        with foreign(database) as elsewhere, patience(0.5):
            elsewhere.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", [submission.id])
            with pytest.raises(StorageUnavailableError):
                await store.create(again(submission))


async def assigned_transaction(connection: AsyncConnection) -> bool:
    """Whether the transaction wrote to the log, so that its commit waits for a synchronous standby."""
    found = await connection.execute(text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"))
    return bool(found.scalar_one())


class TestAnswersRestOnCommits:
    """A failover may lose what an answer rests on, unless the answer's own transaction waits for the standby."""

    @pytest.mark.parametrize("kind", ["own id", "request_id", "phone"])
    async def test_an_answer_that_rests_on_an_existing_lead_writes_to_the_log(
        self, store: SubmissionStore, submit: Submit, connected: Database, kind: str
    ) -> None:
        first = submit(request_id="r1", phone="+1234567")
        await store.create(first)
        second = {"own id": first, "request_id": again(first), "phone": submit(phone="+1234567")}[kind]

        async def work(connection: AsyncConnection) -> bool:
            await submissions.store([second], connection)
            return await assigned_transaction(connection)

        assert await connected.write(work)

    async def test_a_change_that_changes_nothing_writes_to_the_log(
        self,
        repository: LeadRepository,
        store: SubmissionStore,
        submit: Submit,
        connected: Database,
        database: TestDatabase,
    ) -> None:
        lead = submit()
        await store.create(lead)

        with foreign(database) as elsewhere, patience(0.5):
            elsewhere.execute("SELECT 1 FROM lead WHERE id = %s FOR UPDATE", [lead.id])
            with pytest.raises(StorageUnavailableError):
                await repository.change(lead.id, leave, everyone)

    async def test_a_refused_correction_locks_what_it_matched(
        self, connected: Database, store: SubmissionStore, submit: Submit
    ) -> None:
        lead, other = submit(), submit(phone="+1234567")
        await store.create(lead)
        await store.create(other)

        async def work(connection: AsyncConnection) -> bool:
            await find_duplicates(connection, other.indexes.phones, [], other_than=lead.id)
            return await assigned_transaction(connection)

        assert await connected.write(work)


def lose_commits(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, times: int = 1, committed: bool = True
) -> list[Exception]:
    """Let the answers of the next commits be lost, after they were made or before."""
    write_once = Database.write_once
    lost: list[Exception] = []

    async def lossy(database: Database, work: Work[Any], *, alone: bool = False) -> Any:
        async def undone(connection: AsyncConnection) -> None:
            if not alone:
                await work(connection)
            raise error

        if len(lost) == times:
            return await write_once(database, work, alone=alone)
        lost.append(error)
        await write_once(database, work if committed else undone, alone=alone)
        raise error

    monkeypatch.setattr(Database, "write_once", lossy)
    return lost


def lost_connection() -> OperationalError:
    return OperationalError("COMMIT", None, psycopg.OperationalError("server closed the connection"))


class TestUnknownOutcomes:
    @pytest.mark.parametrize("committed", [True, False])
    @pytest.mark.parametrize("error", [lost_connection(), CommitNotDurableError()], ids=["lost", "not durable"])
    async def test_a_create_is_settled_by_its_id(
        self,
        store: SubmissionStore,
        submit: Submit,
        database: TestDatabase,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        committed: bool,
    ) -> None:
        lost = lose_commits(monkeypatch, error, committed=committed)
        submission = submit(conversation_id="talk")

        lead = lead_of(await store.create(submission))

        assert lost
        assert lead.id == submission.id
        assert rows_of(database) == 1
        assert rows_of(database, "resubmission") == 0

    @pytest.mark.parametrize("committed", [True, False])
    async def test_a_refused_duplicate_is_kept_once(
        self,
        repository: LeadRepository,
        store: SubmissionStore,
        submit: Submit,
        monkeypatch: pytest.MonkeyPatch,
        committed: bool,
    ) -> None:
        lead = submit(phone="+1234567")
        await store.create(lead)
        lose_commits(monkeypatch, lost_connection(), committed=committed)

        met_of(await store.create(submit(phone="+1234567")))

        stored = await repository.get(lead.id, everyone)
        assert stored.resubmissions == 1
        assert len(await repository.resubmissions(lead.id, after=None, limit=100)) == 1

    async def test_a_step_that_was_decided_on_a_lost_state_is_decided_anew(
        self,
        history: LeadHistory,
        repository: LeadRepository,
        store: SubmissionStore,
        submit: Submit,
        database: TestDatabase,
    ) -> None:
        lead = submit()
        await store.create(lead)

        def decide(current: SealedLead) -> Step | None:
            if current.status is LeadStatus.NEW:
                # After a failover the same version may be of another step.
                with psycopg.connect(database.admin_url) as elsewhere:
                    elsewhere.execute("UPDATE lead SET status = 'converted' WHERE id = %s", [lead.id])
            return contact(current)

        await repository.change(lead.id, decide, everyone)

        [step] = await history.of_type(lead.id, LeadEventType.STATUS_CHANGED)
        assert step.from_status is LeadStatus.CONVERTED

    async def test_a_status_change_is_made_once_when_who_decides_looks_again(
        self,
        history: LeadHistory,
        repository: LeadRepository,
        store: SubmissionStore,
        submit: Submit,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        lead = submit()
        await store.create(lead)
        lose_commits(monkeypatch, lost_connection())

        changed = await repository.change(
            lead.id, lambda current: None if current.status is LeadStatus.CONTACTED else contact(current), everyone
        )

        assert (changed.status, changed.version) == (LeadStatus.CONTACTED, 2)
        assert len(await history.of_type(lead.id, LeadEventType.STATUS_CHANGED)) == 1


class TestChange:
    async def test_a_status_step_is_taken_and_recorded(
        self, history: LeadHistory, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit()
        created = lead_of(await store.create(lead))

        changed = await repository.change(lead.id, contact, everyone)

        [change] = await history.of_type(lead.id, LeadEventType.STATUS_CHANGED)
        assert (changed.status, changed.version) == (LeadStatus.CONTACTED, 2)
        assert (change.from_status, change.to_status, change.actor, change.version) == ("new", "contacted", "sam", 2)
        assert change.at.utcoffset() is not None
        assert changed.updated_at > created.updated_at
        assert changed.created_at == created.created_at

    async def test_no_step_changes_nothing(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit()
        created = lead_of(await store.create(lead))

        assert await repository.change(lead.id, leave, everyone) == created

    async def test_what_decide_raises_is_passed_on_and_undoes_everything(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit
    ) -> None:
        lead = submit()
        created = lead_of(await store.create(lead))

        def refuse(_current: SealedLead) -> Step:
            raise KeyError("decided")

        with pytest.raises(KeyError, match="decided"):
            await repository.change(lead.id, refuse, everyone)

        assert await repository.get(lead.id, everyone) == created

    async def test_an_unknown_lead_is_not_found(self, repository: LeadRepository) -> None:
        with pytest.raises(LeadNotFoundError):
            await repository.change(uuid_utils.compat.uuid7(), contact, everyone)
        with pytest.raises(LeadNotFoundError):
            await repository.correct(uuid_utils.compat.uuid7(), lambda _current: None, everyone)


class TestCorrect:
    async def test_a_correction_that_matches_another_lead_names_it_and_changes_nothing(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, sealer: LeadSealer
    ) -> None:
        lead, other = submit(), submit(phone="+1234567", created_by="other-bot")
        created = lead_of(await store.create(lead))
        await store.create(other)

        refused = await repository.correct(
            lead.id, lambda _: sealer.correction(lead.id, {"phone": "+1234567"}, actor="sam"), everyone
        )

        assert refused == DuplicateMatch(phone=MatchedLead(other.id, "other-bot"), nid=None)
        assert await repository.get(lead.id, everyone) == created

    async def test_a_correction_that_matches_two_leads_names_both(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, sealer: LeadSealer
    ) -> None:
        lead, one, other = submit(), submit(phone="+1234567"), submit(nid="1234567")
        for submission in (lead, one, other):
            await store.create(submission)

        refused = await repository.correct(
            lead.id,
            lambda _: sealer.correction(lead.id, {"phone": "+1234567", "nid": "1234567"}, actor="sam"),
            everyone,
        )

        assert refused == DuplicateMatch(phone=MatchedLead(one.id, "bot"), nid=MatchedLead(other.id, "bot"))

    async def test_corrections_to_one_phone_at_once_let_one_through(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, sealer: LeadSealer
    ) -> None:
        leads = [submit() for _ in range(8)]
        for lead in leads:
            await store.create(lead)

        def to_one_phone(lead: SealedSubmission) -> Callable[[SealedLead], Correction]:
            return lambda _: sealer.correction(lead.id, {"phone": "+1234567"}, actor="sam")

        outcomes = await asyncio.gather(
            *(repository.correct(lead.id, to_one_phone(lead), everyone) for lead in leads), return_exceptions=True
        )

        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DuplicateMatch"] * 7 + ["SealedLead"]

    async def test_submissions_and_corrections_of_one_phone_at_once_end_without_an_error(
        self,
        repository: LeadRepository,
        store: SubmissionStore,
        submit: Submit,
        sealer: LeadSealer,
        database: TestDatabase,
    ) -> None:
        lead = submit(phone="+7654321")
        await store.create(lead)

        outcomes = await asyncio.gather(
            *(store.create(submit(phone=phone)) for _ in range(10) for phone in ("+1234567", "+7654321")),
            repository.correct(
                lead.id, lambda _: sealer.correction(lead.id, {"phone": "+1234567"}, actor="sam"), everyone
            ),
            return_exceptions=True,
        )

        unexpected = [outcome for outcome in outcomes if not isinstance(outcome, Created | DuplicateMatch | SealedLead)]
        assert unexpected == []
        assert rows_of(database) == 2

    async def test_an_optional_field_is_removed(
        self, repository: LeadRepository, store: SubmissionStore, submit: Submit, sealer: LeadSealer
    ) -> None:
        lead = submit(notes="something")
        await store.create(lead)

        corrected = await repository.correct(
            lead.id, lambda _: sealer.correction(lead.id, {"notes": None}, actor="sam"), everyone
        )

        assert isinstance(corrected, SealedLead)
        assert "notes" not in corrected.sealed
        assert corrected.version == 2


class TestWhatTheDatabaseRefuses:
    """The last line of defence: faults of this service's own code."""

    @pytest.mark.parametrize("field", SENSITIVE_FIELDS)
    async def test_a_value_in_clear_is_not_stored_and_not_reported(
        self, connected: Database, submit: Submit, field: str
    ) -> None:
        submission = submit(email="a@example.com", notes="note")
        values = columns_of(submission) | index_columns(submission.indexes)
        values |= {"id": submission.id, "created_by": "bot", field: "clear-canary"}

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(models.lead).values(values))

        with pytest.raises(StorageFaultError) as refused:
            await connected.write(work)

        assert refused.value.cause == "23514"
        assert "canary" not in str(refused.value) + repr(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM lead",
            "DELETE FROM lead_event",
            "UPDATE lead_event SET actor = ''",
            "DELETE FROM lead_conversation",
            "DELETE FROM resubmission",
            "TRUNCATE lead CASCADE",
            "DROP TABLE lead CASCADE",
            "ALTER TABLE lead DROP CONSTRAINT ck_lead_sealed",
            "CREATE TABLE mine (id int)",
            "UPDATE key_canary SET database = gen_random_uuid()",
            "UPDATE alembic_version SET version_num = '9999'",
        ],
    )
    async def test_the_role_of_serve_may_not(self, connected: Database, statement: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(text(statement))

        with pytest.raises(StorageFaultError) as refused:
            await connected.write(work)

        assert refused.value.cause == "42501"


async def test_anothers_waiting_lead_is_missing_like_an_unknown_one(
    repository: LeadRepository, spool: Spool, submit: Submit, talk: Talk
) -> None:
    waiting = submit(created_by="bot", conversation_id="talk")
    await spool.put([waiting])

    def own_only(creator: str) -> bool:
        return creator == "another"

    def decide(_lead: SealedLead) -> Step:
        raise AssertionError("it was shown the lead")

    with pytest.raises(LeadNotFoundError):
        await repository.get(waiting.id, own_only)
    with pytest.raises(LeadNotFoundError):
        await repository.change(waiting.id, decide, own_only)
    with pytest.raises(ConversationNotFoundError):
        await repository.find_by_conversation(*talk, created_by="another")
    with pytest.raises(StorageUnavailableError):
        await repository.get(waiting.id, everyone)
    with pytest.raises(StorageUnavailableError):
        await repository.find_by_conversation(*talk, created_by="bot")
