"""What becomes of a submission: one contract for every store that decides about one.

A case says what was submitted before, what is submitted now, and what each store must answer. A store that cannot know
something answers for what it knows: the recent requests know only what repeats a lead, by its request_id or else by
its content, and only PostgreSQL is asked about submissions that were drained from a spool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import psycopg
import pytest

from service.factories import new_id
from service.lead import ConflictResolution, CustomerFields, SealedSubmission
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.intake.outage import RecentRequests
from service.storage.leads.conflicts import ConflictRepository, JoinLead
from service.storage.leads.decision import (
    Aliased,
    Created,
    Delayed,
    DuplicateMatch,
    Erased,
    InConflict,
    MatchedLead,
    Outcome,
    RequestIdReused,
)
from service.storage.leads.erasures import Erasures
from service.storage.leads.submissions import SubmissionStore
from service.storage.spool.spool import Spool, Spooled
from tests.harness.postgres import TestDatabase

WINDOW = timedelta(hours=24)
SOON = timedelta(microseconds=1)
"""A window that is over when the next submission is stored."""
BEFORE = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
"""When a drained submission was acknowledged, unless its case says otherwise."""


@dataclass(frozen=True)
class Draft:
    """A submission of a case, named by a letter; phone and nid are its own unless given."""

    label: str
    phone: str = ""
    nid: str = ""
    request: str | None = None
    subject: str = "bot"
    drained_from: datetime | None = None
    clock_known: bool = True
    """Whether its replica knew the offset of the database's clock."""
    refused: bool = False
    """Whether the spool that it was drained from had refused it."""
    id_of: str = ""
    """The earlier one whose attempt this repeats, under the same id."""
    stored: bool = True
    """Whether it becomes a lead; else no process remembers its request."""
    name: str = "Rahima Begum"
    window: timedelta = WINDOW


@dataclass(frozen=True)
class Erase:
    label: str


@dataclass(frozen=True)
class KeepTheFirst:
    """Decide that the id of a conflict leads to a lead."""

    conflict: str
    lead: str


Step = Draft | Erase | KeepTheFirst


@dataclass(frozen=True)
class Case:
    name: str
    earlier: tuple[Step, ...]
    now: Draft
    postgres: str
    rows: str
    """Afterwards: leads, conflicts, aliases, resubmissions."""
    spool: str = ""
    recent: str = ""


PHONE, NID = "+8801711000001", "1985000000001"
NO_NID = "-"
A = Draft("A", phone=PHONE, nid=NID)
A_REQUEST = replace(A, request="r")


def drained(draft: Draft, **changes: object) -> Draft:
    return replace(draft, drained_from=BEFORE, **changes)  # type: ignore[arg-type]


B_PHONE = Draft("B", phone=PHONE)
B_NID = Draft("B", nid=NID)
SAME = replace(A, label="B")
SAME_REQUEST = replace(A_REQUEST, label="B")
OTHER_CONTENT = Draft("B", request="r")
LATER = datetime(2126, 1, 1, tzinfo=UTC)

NEW = [
    Case("nothing is known", (), Draft("B"), "created B new", "1 0 0 0", "delayed B", "unknown"),
    Case("another person is known", (A,), Draft("B"), "created B new", "2 0 0 0", "delayed B", "unknown"),
    Case(
        "its own id is known",
        (A,),
        replace(A, id_of="A"),
        *("created A", "1 0 0 0", "delayed A", "delayed A decided"),
    ),
    Case(
        "its own id and request are known",
        (A_REQUEST,),
        replace(A_REQUEST, id_of="A"),
        *("created A", "1 0 0 0", "delayed A", "delayed A decided"),
    ),
    Case("its phone is known", (A,), B_PHONE, "duplicate phone A", "1 0 0 1", "duplicate phone A", "unknown"),
    Case("its nid is known", (A,), B_NID, "duplicate nid A", "1 0 0 1", "duplicate nid A", "unknown"),
    Case(
        "its phone and nid are of one person, with other content",
        (A,),
        replace(SAME, name="Rahima B."),
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case("it has the same content", (A,), SAME, "created A", "1 0 0 0", "delayed A", "delayed A decided"),
    Case(
        "it has the same content, without a nid",
        (replace(A, nid=NO_NID),),
        replace(SAME, nid=NO_NID),
        *("created A", "1 0 0 0", "delayed A", "delayed A decided"),
    ),
    Case(
        "it has the same content, but for a nid",
        (replace(A, nid=NO_NID),),
        SAME,
        *("duplicate phone A", "1 0 0 1", "duplicate phone A", "unknown"),
    ),
    Case(
        "it has the same content as one that was repeated",
        (A, replace(SAME, stored=False)),
        replace(A, label="C"),
        *("created A", "1 0 0 0", "delayed A", "delayed A decided"),
    ),
    Case(
        "it has the same content as one with a request_id",
        (A_REQUEST,),
        SAME,
        *("created A", "1 0 0 0", "delayed A", "unknown"),
    ),
    Case(
        "it has the same content and a request_id",
        (A,),
        SAME_REQUEST,
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case(
        "it has the same content and another request_id",
        (A_REQUEST,),
        replace(SAME, request="s"),
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case(
        "it has the same content of another subject",
        (A,),
        replace(SAME, subject="other"),
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case(
        "it has the same content as one of long ago",
        (A,),
        replace(SAME, window=SOON),
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case(
        "it has the same content, and repeats are not recognised",
        (A,),
        replace(SAME, window=timedelta(0)),
        *("duplicate phone A nid A", "1 0 0 1", "duplicate phone A nid A", "unknown"),
    ),
    Case(
        "it has the same content as one in conflict",
        (A, drained(B_PHONE)),
        replace(B_PHONE, label="C", nid="2000000000066"),
        *("duplicate phone A", "1 1 0 1", "duplicate phone A", "unknown"),
    ),
    Case(
        "its phone and nid are of two persons",
        (Draft("A", phone=PHONE, subject="other"), B_NID),
        Draft("C", phone=PHONE, nid=NID),
        *("duplicate phone A by other nid B", "2 0 0 2", "duplicate phone A by other nid B", "unknown"),
    ),
    Case(
        "its nid is somebody's phone",
        (Draft("A", phone="12345678"),),
        Draft("B", nid="12345678"),
        *("created B new", "2 0 0 0", "delayed B", "unknown"),
    ),
    Case(
        "its request is known",
        (A_REQUEST,),
        SAME_REQUEST,
        *("created A", "1 0 0 0", "delayed A", "delayed A decided"),
    ),
    Case(
        "its request had other content",
        (A_REQUEST,),
        OTHER_CONTENT,
        *("request id reused", "1 0 0 0", "request id reused", "request id reused"),
    ),
    Case(
        "its request had other content and its phone is known",
        (Draft("A", request="r"), Draft("B", phone=PHONE)),
        Draft("C", phone=PHONE, request="r"),
        *("request id reused", "2 0 0 0", "request id reused", "request id reused"),
    ),
    Case(
        "its request_id is another subject's",
        (A_REQUEST,),
        replace(OTHER_CONTENT, subject="other"),
        *("created B new", "2 0 0 0", "delayed B", "unknown"),
    ),
    Case(
        "its request was refused, and is refused again",
        (A, Draft("B", phone=PHONE, nid="2222", request="r", stored=False)),
        Draft("C", phone=PHONE, nid="2222", request="r"),
        *("duplicate phone A", "1 0 0 1", "duplicate phone A", "unknown"),
    ),
    Case(
        "it was refused, and is refused again without a request_id",
        (A, Draft("B", phone=PHONE, nid="2222", stored=False)),
        Draft("C", phone=PHONE, nid="2222"),
        *("duplicate phone A", "1 0 0 2", "duplicate phone A", "unknown"),
    ),
    Case(
        "its request was refused for a lead that was erased since",
        (A, Draft("B", phone=PHONE, nid="2222", request="r", stored=False), Erase("A")),
        Draft("C", phone=PHONE, nid="2222", request="r"),
        *("delayed B", "0 1 0 0", "delayed C", "unknown"),
    ),
    Case(
        "its own id was refused for a lead that was erased since",
        (A, replace(B_PHONE, stored=False), Erase("A")),
        replace(B_PHONE, id_of="B"),
        *("delayed B", "0 1 0 0", "delayed B", "unknown"),
    ),
    Case(
        "its nid is that of a refused one only",
        (A, Draft("B", phone=PHONE, nid="2222", stored=False)),
        Draft("C", nid="2222"),
        *("created C new", "2 0 0 1", "delayed C", "unknown"),
    ),
    Case("its own id was erased", (A, Erase("A")), replace(A, id_of="A"), "erased", "0 0 0 0", "delayed A", "unknown"),
    Case(
        "its request was erased",
        (A_REQUEST, Erase("A")),
        SAME_REQUEST,
        *("created B new", "1 0 0 0", "delayed B", "unknown"),
    ),
    Case("its phone and nid were erased", (A, Erase("A")), SAME, "created B new", "1 0 0 0", "delayed B", "unknown"),
    Case(
        "its request is in conflict",
        (A, drained(B_PHONE, request="r", nid="2222")),
        Draft("C", phone=PHONE, nid="2222", request="r"),
        *("delayed B", "1 1 0 0", "duplicate phone A", "unknown"),
    ),
    Case(
        "its request_id is in conflict with other content",
        (A, drained(B_PHONE, request="r")),
        Draft("C", request="r"),
        *("request id reused", "1 1 0 0", "delayed C", "unknown"),
    ),
    Case(
        "the conflict of its request was decided",
        (A, drained(B_PHONE, request="r", nid="2222"), KeepTheFirst("B", "A")),
        Draft("C", phone=PHONE, nid="2222", request="r"),
        *("delayed B decided", "1 1 1 0", "duplicate phone A", "unknown"),
    ),
    Case(
        "two requests of it are in conflict and the first counts",
        (A, drained(B_PHONE, request="r", nid="2222"), drained(B_PHONE, label="C", request="r", nid="2222")),
        Draft("D", phone=PHONE, nid="2222", request="r"),
        *("delayed B", "1 2 0 0", "duplicate phone A", "unknown"),
    ),
]
DRAINED = [
    Case("nothing is known", (), drained(A), "created A new", "1 0 0 0"),
    Case("it was drained before", (drained(A),), drained(A, id_of="A"), "created A", "1 0 0 0"),
    Case("its phone is known", (A,), drained(B_PHONE), "conflict phone A", "1 1 0 0"),
    Case("its nid is known", (A,), drained(B_NID), "conflict nid A", "1 1 0 0"),
    Case("its phone and nid are of one person", (A,), drained(SAME), "conflict phone A nid A", "1 1 0 0"),
    Case("it has the same content", (drained(A),), drained(SAME), "alias A", "1 0 1 0"),
    Case(
        "it has the same content, without a nid",
        (drained(A, nid=NO_NID),),
        drained(SAME, nid=NO_NID),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it has the same content and was accepted earlier",
        (drained(A),),
        replace(SAME, drained_from=BEFORE - timedelta(hours=1)),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it has the same content, just within the window",
        (drained(A),),
        replace(SAME, drained_from=BEFORE + WINDOW - SOON),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it has the same content, at the end of the window",
        (drained(A),),
        replace(SAME, drained_from=BEFORE + WINDOW),
        *("conflict phone A nid A", "1 1 0 0"),
    ),
    Case(
        "it has the same content as one with a request_id",
        (drained(A_REQUEST),),
        drained(SAME),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it has the same content and a request_id",
        (drained(A),),
        drained(SAME_REQUEST),
        *("conflict phone A nid A", "1 1 0 0"),
    ),
    Case(
        "it has the same content of another subject",
        (drained(A),),
        drained(SAME, subject="other"),
        *("conflict phone A nid A", "1 1 0 0"),
    ),
    Case(
        "its phone and nid are of one person, with other content",
        (drained(A),),
        drained(SAME, name="Rahima B."),
        *("conflict phone A nid A", "1 1 0 0"),
    ),
    Case(
        "it has the same content, and was refused in its spool",
        (drained(A),),
        drained(SAME, refused=True),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it has the same content as one that was erased",
        (drained(A), Erase("A")),
        drained(SAME),
        *("created B new", "1 0 0 0"),
    ),
    Case(
        "its phone and nid are of two persons",
        (Draft("A", phone=PHONE), B_NID),
        drained(A, label="C"),
        *("conflict phone A nid B", "2 1 0 0"),
    ),
    Case(
        "it was drained before and is in conflict",
        (A, drained(B_PHONE)),
        drained(B_PHONE, id_of="B"),
        *("conflict", "1 1 0 0"),
    ),
    Case(
        "two other replicas drained the same content",
        (drained(A), drained(SAME)),
        drained(A, label="C"),
        *("alias A", "1 0 2 0"),
    ),
    Case(
        "another replica drained another person of its subject, without request_ids",
        (drained(A),),
        drained(Draft("B")),
        *("created B new", "2 0 0 0"),
    ),
    Case(
        "another person of its subject was erased before it was drained, without request_ids",
        (Draft("A"), Erase("A"), Erase("X")),
        drained(Draft("B")),
        *("created B new", "1 0 0 0"),
    ),
    Case("its own id was erased while it waited", (Erase("B"),), drained(Draft("B")), "erased", "0 0 0 0"),
    Case("it was refused in its spool", (A,), drained(B_PHONE, refused=True), "duplicate phone A", "1 0 0 1"),
    Case(
        "it was refused in its spool, and its rival is gone",
        (A, Erase("A")),
        drained(B_PHONE, refused=True),
        *("created B new", "1 0 0 0"),
    ),
    Case("its request is known", (A_REQUEST,), drained(SAME_REQUEST), "alias A", "1 0 1 0"),
    Case(
        "its request is known, and it was refused in its spool",
        (A_REQUEST,),
        drained(SAME_REQUEST, refused=True),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it was drained before and is an alias",
        (A_REQUEST, drained(SAME_REQUEST)),
        drained(SAME_REQUEST, id_of="B"),
        *("alias A", "1 0 1 0"),
    ),
    Case(
        "it was drained before and its conflict was decided",
        (A, drained(B_PHONE), KeepTheFirst("B", "A")),
        drained(B_PHONE, id_of="B"),
        *("alias A", "1 1 1 0"),
    ),
    Case("its request had other content", (A_REQUEST,), drained(OTHER_CONTENT), "conflict request A", "1 1 0 0"),
    Case(
        "its request had other content, and its phone is known",
        (Draft("A", request="r"), B_PHONE),
        drained(Draft("C", phone=PHONE, request="r")),
        *("conflict phone B request A", "2 1 0 0"),
    ),
    Case(
        "its request_id is another subject's",
        (A_REQUEST,),
        drained(OTHER_CONTENT, subject="other"),
        *("created B new", "2 0 0 0"),
    ),
    Case(
        "its request is in conflict",
        (A, drained(B_PHONE, nid="2222", request="r")),
        drained(B_PHONE, label="C", nid="2222", request="r"),
        *("conflict phone A repeats B", "1 2 0 0"),
    ),
    Case(
        "its request is in conflict twice",
        (
            A,
            drained(B_PHONE, nid="2222", request="r"),
            replace(drained(B_PHONE, label="C", nid="2222", request="r"), drained_from=BEFORE - timedelta(minutes=1)),
        ),
        drained(B_PHONE, label="D", nid="2222", request="r"),
        *("conflict phone A repeats B", "1 3 0 0"),
    ),
    Case(
        "its request_id is in conflict with other content",
        (A, drained(B_PHONE, request="r")),
        drained(B_PHONE, label="C", request="r"),
        *("conflict phone A", "1 2 0 0"),
    ),
    Case(
        "the conflict of its request was decided",
        (A, drained(B_PHONE, nid="2222", request="r"), KeepTheFirst("B", "A")),
        drained(B_PHONE, label="C", nid="2222", request="r"),
        *("alias B", "1 1 2 0"),
    ),
    Case(
        "its request was erased after it was accepted",
        (A_REQUEST, Erase("A")),
        drained(SAME_REQUEST),
        "erased",
        "0 0 0 0",
    ),
    Case(
        "its request was erased before it was accepted",
        (A_REQUEST, Erase("A")),
        replace(SAME_REQUEST, drained_from=LATER),
        *("created B new", "1 0 0 0"),
    ),
    Case(
        "its request was erased, and nobody knows whether it was accepted before",
        (A_REQUEST, Erase("A")),
        drained(SAME_REQUEST, clock_known=False),
        *("conflict erased A", "0 1 0 0"),
    ),
    Case(
        "it is refused, its request was erased, and nobody knows whether it was accepted before",
        (A_REQUEST, Erase("A"), Draft("C", phone=PHONE)),
        drained(SAME_REQUEST, clock_known=False, refused=True),
        *("conflict phone C erased A", "1 1 0 0"),
    ),
    Case(
        "its request was erased and is saved again, and nobody knows which it is a copy of",
        (A_REQUEST, Erase("A"), replace(SAME_REQUEST, label="C")),
        drained(SAME_REQUEST, clock_known=False),
        *("alias C", "1 0 1 0"),
    ),
    Case(
        "two copies of an erased request, and nobody knows whether they were accepted before",
        (A_REQUEST, Erase("A"), drained(SAME_REQUEST, label="C", clock_known=False)),
        drained(SAME_REQUEST, clock_known=False),
        *("conflict erased A repeats C", "0 2 0 0"),
    ),
    Case(
        "another subject's request was erased",
        (A_REQUEST, Erase("A")),
        drained(SAME_REQUEST, subject="other"),
        *("created B new", "1 0 0 0"),
    ),
]


class Store(Protocol):
    """A store as the cases use it."""

    async def answer(self, submission: SealedSubmission, *, stored: bool) -> Outcome | None:
        """What becomes of a submission; None if nothing is known of it."""

    async def erase(self, lead_id: UUID) -> None: ...
    async def keep_first(self, conflict_id: UUID, lead_id: UUID) -> None: ...


@dataclass
class Postgres:
    database: Database
    sealer: LeadSealer

    async def answer(self, submission: SealedSubmission, *, stored: bool) -> Outcome | None:
        del stored
        return (await SubmissionStore(self.database).create_all_once([submission]))[submission.id]

    async def erase(self, lead_id: UUID) -> None:
        erasures = Erasures(self.database, self.sealer.resealed_and_reindexed)
        await erasures.erase(lead_id, actor="boss", reason=None, spooled=Spooled())

    async def keep_first(self, conflict_id: UUID, lead_id: UUID) -> None:
        await ConflictRepository(self.database).resolve(
            conflict_id, ConflictResolution.KEEP_FIRST, lambda kept: JoinLead(lead_id, kept), actor="boss", reason=None
        )


@dataclass
class SpoolFolder:
    spool: Spool

    async def answer(self, submission: SealedSubmission, *, stored: bool) -> Outcome | None:
        del stored
        if submission.accepted_at:
            return None  # it was in another spool
        return (await self.spool.put([submission]))[submission.id]

    async def erase(self, lead_id: UUID) -> None:
        await self.spool.remove([lead_id])

    async def keep_first(self, conflict_id: UUID, lead_id: UUID) -> None:
        """Conflicts are in the database."""


@dataclass
class Recent:
    requests: RecentRequests

    async def answer(self, submission: SealedSubmission, *, stored: bool) -> Outcome | None:
        outcome = self.requests.answer(submission)
        if stored and not submission.accepted_at:
            self.requests.remember(submission, submission.as_lead(datetime.now(UTC)))
        return outcome

    async def erase(self, lead_id: UUID) -> None:
        self.requests.forget([lead_id])

    async def keep_first(self, conflict_id: UUID, lead_id: UUID) -> None:
        """Conflicts are in the database."""


class Submissions:
    """The submissions of a case, by the letters that name them."""

    def __init__(self, sealer: LeadSealer) -> None:
        self._sealer = sealer
        self._ids: dict[str, UUID] = {}

    def id(self, label: str) -> UUID:
        return self._ids.setdefault(label, new_id())

    def sealed(self, draft: Draft) -> SealedSubmission:
        number = ord(draft.label)
        details = CustomerFields(
            name=draft.name,
            phone=draft.phone or f"+88018000000{number}",
            nid=None if draft.nid == NO_NID else draft.nid or f"20000000000{number}",
            address="1 Lake Road",
            interested_policy="Term Life",
        )
        lead_id = self.id(draft.id_of or draft.label)
        sealed = self._sealer.seal(lead_id, details, created_by=draft.subject, request_id=draft.request)
        moment = draft.drained_from
        known = (moment, moment) if moment and draft.clock_known else None
        return replace(
            sealed,
            accepted_at=moment,
            accepted_between=known,
            refused=draft.refused,
            repeat_window=draft.window,
        )

    def text(self, outcome: Outcome | None) -> str:
        """An outcome in the words of the cases."""
        labels: Mapping[UUID | None, str] = {each: label for label, each in self._ids.items()}
        match outcome:
            case None:
                return "unknown"
            case Created(lead, is_new):
                return f"created {labels[lead.id]}{' new' if is_new else ''}"
            case RequestIdReused():
                return "request id reused"
            case Delayed(delayed_id, _, decided):
                return f"delayed {labels[delayed_id]}{' decided' if decided else ''}"
            case Aliased(target_id):
                return f"alias {labels[target_id]}"
            case Erased():
                return "erased"
            case DuplicateMatch():
                return f"duplicate{_matched(outcome, labels)}"
            case InConflict(match, request_lead_id, repeats, erased):
                request = f" request {labels[request_lead_id]}" if request_lead_id else ""
                request += f" erased {labels[erased]}" if erased else ""
                return f"conflict{_matched(match, labels)}{request}{f' repeats {labels[repeats]}' if repeats else ''}"


def _matched(match: DuplicateMatch | None, labels: Mapping[UUID | None, str]) -> str:
    def text(name: str, lead: MatchedLead | None) -> str:
        by = "" if lead is None or lead.created_by == "bot" else f" by {lead.created_by}"
        return f" {name} {labels[lead.id]}{by}" if lead else ""

    return text("phone", match.phone) + text("nid", match.nid) if match else ""


async def play(case: Case, store: Store, sealer: LeadSealer) -> str:
    """Do what was done before; what the store answers now."""
    submissions = Submissions(sealer)
    for step in case.earlier:
        match step:
            case Draft():
                await store.answer(submissions.sealed(step), stored=step.stored)
            case Erase(label):
                await store.erase(submissions.id(label))
            case KeepTheFirst(conflict, lead):
                await store.keep_first(submissions.id(conflict), submissions.id(lead))
    return submissions.text(await store.answer(submissions.sealed(case.now), stored=False))


async def test_copies_that_are_drained_together_become_one_lead(
    connected: Database, sealer: LeadSealer, database: TestDatabase
) -> None:
    submissions = Submissions(sealer)
    copies = [submissions.sealed(drained(A, label=label)) for label in "ABC"]
    outcomes = await SubmissionStore(connected).create_all_once(copies)
    assert [submissions.text(outcomes[copy.id]) for copy in copies] == ["created A new", "alias A", "alias A"]
    with psycopg.connect(database.admin_url) as connection:
        assert connection.execute("SELECT count(*) FROM lead_conflict").fetchall() == [(0,)]


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.name)
async def test_a_spool_decides(case: Case, spool: Spool, sealer: LeadSealer) -> None:
    assert await play(case, SpoolFolder(spool), sealer) == case.spool


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.name)
async def test_recent_requests_decide(case: Case, sealer: LeadSealer) -> None:
    assert await play(case, Recent(RecentRequests()), sealer) == case.recent


@pytest.mark.parametrize(
    "case", [*NEW, *DRAINED], ids=lambda case: ("drained: " if case in DRAINED else "") + case.name
)
async def test_postgresql_decides(case: Case, connected: Database, sealer: LeadSealer, database: TestDatabase) -> None:
    assert await play(case, Postgres(connected, sealer), sealer) == case.postgres
    tables = ("lead", "lead_conflict", "lead_alias", "resubmission")
    with psycopg.connect(database.admin_url) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()[0][0] for table in tables]
    assert " ".join(map(str, counts)) == case.rows
