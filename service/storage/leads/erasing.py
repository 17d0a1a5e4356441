"""Erasing one person within a transaction: what is that person's goes, what only shares a phone or a nid with it stays.

Promises: a tombstone stays in place of each id that goes, and nothing that is another person's goes with them (but with
retention, see `keeps_others`). An id that has a tombstone never becomes a lead again, wherever a copy of it still lies,
and neither does a copy of the same request that was accepted before the erasure. The function `erase_lead` of the
database does it with rights that the service's role does not have; see migration 0020 for the locks by which
erasing and storing exclude each other, and docs/architecture.md for their order.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import FieldUnreadableError
from service.keys.encryption import NOT_CONFIRMED
from service.lead import BlindIndexes, ConflictResolution, SealedSubmission
from service.storage.database.database import Database, Statement, Work
from service.storage.database.failures import NotStoredError
from service.storage.leads.decision import Person
from service.storage.leads.queries import fields_of

T = TypeVar("T")

Reseal = Callable[[SealedSubmission], SealedSubmission]
"""The submission with its blind indexes computed afresh. Raises FieldUnreadableError."""

_ERASURE_LOCK = 0x4C4B_4552  # "LKER": erasures hold it alone, what stores drained submissions shares it
_ALONE = Statement(f"SELECT pg_advisory_xact_lock({_ERASURE_LOCK})")
_SHARED = Statement(f"SELECT pg_advisory_xact_lock_shared({_ERASURE_LOCK})")
_LOCK = Statement("SELECT lock_for_erasure(CAST(:wanted AS uuid))")
_ERASE = Statement("""
    SELECT erase_lead(CAST(:wanted AS uuid), CAST(:target AS uuid), :erased_by, CAST(:reason AS text),
        CAST(:own_conflicts AS uuid[]), CAST(:own_submissions AS uuid[]), :keeps_others,
        CAST(:created_at AS timestamptz), CAST(:erased_at AS timestamptz), CAST(:lead_id AS uuid),
        CAST(:request_digest AS bytea))
""")
_LEAD = Statement("""
    SELECT l.*, ARRAY(SELECT a.id FROM lead_alias a WHERE a.lead_id = l.id) AS aliases FROM lead l
    WHERE l.id = coalesce((SELECT a.lead_id FROM lead_alias a WHERE a.id = :wanted), CAST(:wanted AS uuid))
""")
_CONFLICT = Statement("SELECT * FROM lead_conflict WHERE id = CAST(:wanted AS uuid)")
# NULL equals nothing here: a submission without request_id has no copies.
_SAVED_COPIES = Statement("""
    SELECT id FROM lead WHERE created_by = CAST(:created_by AS text) AND request_id = CAST(:request_id AS text)
        AND (CAST(:until AS timestamptz) IS NULL OR created_at <= :until)
""")
# In the order of ids, as everything that locks leads does it, and with those that would take over a phone or nid.
_LOCK_LEADS = Statement("""
    SELECT FROM lead WHERE id = ANY(ARRAY(
        SELECT locked.id FROM unnest(CAST(:ids AS uuid[])) AS wanted (id)
        LEFT JOIN lead_alias a ON a.id = wanted.id,
        LATERAL (SELECT coalesce(a.lead_id, wanted.id)
                 UNION ALL SELECT leads_sharing_with(coalesce(a.lead_id, wanted.id))) AS locked (id)
    )) ORDER BY id FOR UPDATE
""")
# One branch for each partial index, so that each is used.
_NEIGHBOURS = Statement(
    " UNION ".join(
        f"SELECT id, created_at, '{name}' AS field FROM lead"  # noqa: S608 # our own names
        f" WHERE {name}_index{pair} = ANY(CAST(:{name}s AS bytea[])) AND {only} {name}_shared"
        for name in ("phone", "nid")
        for pair in ("", "_2")
        for only in ("", "NOT")
    )
)
# Two conflicts that are kept for the same erased lead may be one person's.
_CONFLICTS = Statement("""
    SELECT * FROM lead_conflict WHERE id IN (
        SELECT unnest(CAST(:ids AS uuid[]))
        UNION SELECT c.id FROM lead_conflict c WHERE c.phone_lead_id = ANY(CAST(:leads AS uuid[]))
        UNION SELECT c.id FROM lead_conflict c WHERE c.nid_lead_id = ANY(CAST(:leads AS uuid[]))
        UNION SELECT c.id FROM lead_conflict c WHERE c.request_lead_id = ANY(CAST(:leads AS uuid[]))
        UNION SELECT c.id FROM lead_conflict c JOIN unnest(CAST(:subjects AS text[]), CAST(:requests AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
        UNION SELECT c.id FROM lead_conflict c JOIN lead_conflict one USING (erased_lead_id)
            WHERE one.id = CAST(:target AS uuid)
    ) AND (CAST(:until AS timestamptz) IS NULL OR accepted_at <= :until)
""")
_RESUBMISSIONS = Statement("""
    SELECT * FROM resubmission WHERE lead_id = ANY(CAST(:leads AS uuid[]))
        AND (CAST(:until AS timestamptz) IS NULL OR submitted_at <= :until)
""")
_KEPT_WITH = Statement("SELECT lead_id FROM resubmission WHERE submission_id = ANY(CAST(:ids AS uuid[]))")
_LOCK_CONFLICTS = Statement("SELECT FROM lead_conflict WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")
# The rights of the role that erases are the owner's; what is left is seen as everybody else sees it.
_IS_LEFT = Statement("""
    SELECT EXISTS (SELECT FROM lead l WHERE l.id = CAST(:target AS uuid))
        OR EXISTS (SELECT FROM lead_alias a WHERE a.lead_id = CAST(:target AS uuid))
        OR EXISTS (SELECT FROM lead_conflict c WHERE c.id = ANY(CAST(:own_conflicts AS uuid[])))
        OR EXISTS (SELECT FROM resubmission kept WHERE kept.lead_id = CAST(:target AS uuid)
            OR kept.submission_id = ANY(CAST(:own_submissions AS uuid[])))
        OR NOT (:alone OR EXISTS (SELECT FROM tombstone t WHERE t.id = coalesce(CAST(:target AS uuid), :wanted)))
""")
ALONE = UUID(int=0)
"""In a tombstone, in place of the lead with which something was erased: it was erased alone, and a copy of it that
comes out of a spool says nothing about what else is its person's."""
NO_INDEXES = BlindIndexes(epoch=NOT_CONFIRMED, phone=(None, None), nid=(None, None))
"""Of a submission whose indexes are computed from its opened fields before they are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTombstone:
    """What a tombstone is to hold, as far as it is known before the erasure; None: the database decides."""

    lead_id: UUID | None = None
    created_at: datetime | None = None
    erased_at: datetime | None = None
    erased_by: str = ""
    reason: str | None = None
    request_digest: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone(KnownTombstone):
    """One erased id; see lead_models.py."""

    id: UUID
    lead_id: UUID
    erased_at: datetime


def request_digest(submission: SealedSubmission) -> bytes | None:
    """By what a tombstone knows a copy of the request; None for a submission without request_id."""
    if submission.request_id is None:
        return None
    return hashlib.sha256(f"{submission.created_by}\n{submission.request_id}".encode()).digest()


async def write_alone(database: Database, work: Work[T]) -> T:
    """Run `work`, which erases, in a transaction that sees all that drains have stored, and lets none store meanwhile.

    A drained submission becomes a conflict, an alias or a resubmission of a lead whose row the erasure does not lock.
    Raises like `Database.write`.
    """

    async def alone(connection: AsyncConnection) -> T:
        await _ALONE.rows(connection, {})
        return await work(connection)

    return await database.write(alone)


async def wait_for_erasures(connection: AsyncConnection) -> None:
    """Begin a transaction that stores drained submissions: see all tombstones, and let none come before it ends."""
    await _SHARED.rows(connection, {})


async def lock_leads(connection: AsyncConnection, ids: Iterable[UUID]) -> None:
    """Lock the leads that ids lead to, together: one after the other they might wait for each other in a circle."""
    await _LOCK_LEADS.rows(connection, {"ids": list(ids)})


async def lock_person(
    connection: AsyncConnection, wanted: UUID, others: Iterable[UUID], reseal: Reseal | None
) -> Person:
    """What is known of the person that an id stands for, with its leads and those of other ids locked.

    So are the leads that share its phone or nid: they may lose a resubmission, and count one less.
    """
    person = await person_of(connection, wanted, reseal)
    await lock_leads(connection, {wanted, *others, *(row.id for row in await _neighbours(connection, person))})
    return await person_of(connection, wanted, reseal)


async def person_of(connection: AsyncConnection, wanted: UUID, reseal: Reseal | None) -> Person:
    """What is known here of the person that an id stands for: of its lead, or of its conflict."""
    person = Person(frozenset({wanted}))
    for lead in await _LEAD.rows(connection, {"wanted": wanted}):
        phones, nids = (lead.phone_index, lead.phone_index_2), (lead.nid_index, lead.nid_index_2)
        indexes = BlindIndexes(epoch=NOT_CONFIRMED, phone=phones, nid=nids)
        entry = replace(_entry(lead, lead.id, lead.created_by), indexes=indexes)
        return Person(person.ids | set(lead.aliases)).extended_by(entry)
    for conflict in await _CONFLICT.rows(connection, {"wanted": wanted}):
        return person.extended_by(opened(_entry(conflict, conflict.id, conflict.created_by), reseal))
    return person


async def erase_within(
    connection: AsyncConnection,
    wanted: UUID,
    known: KnownTombstone,
    *,
    reseal: Reseal | None = None,
    itself: SealedSubmission | None = None,
    keeps_others: bool = True,
) -> frozenset[UUID]:
    """Erase what an id stands for in a transaction of the caller's; the ids that are gone, none for an unknown one.

    The transaction must be one of `write_alone`. `itself` is the submission of that id when it waits in a
    spool. Without `reseal`, what was noted when a submission was stored decides whose it is. Without `keeps_others`,
    resubmissions of others go with the lead that they are kept with. What was accepted after `known.erased_at` stays.
    """
    ((target,),) = await _LOCK.rows(connection, {"wanted": wanted})
    gone: frozenset[UUID] = frozenset()
    if target is None:
        gone = await _erase(connection, wanted, None, known)
        if itself is None:
            return gone
    person = await person_of(connection, wanted, reseal)
    person = person.extended_by(itself) if itself is not None else person
    if not await _LEAD.rows(connection, {"wanted": wanted}):
        # The lead that another replica made of the request, and those that the submission repeats.
        request = {"created_by": itself and itself.created_by, "request_id": itself and itself.request_id}
        copies = await _SAVED_COPIES.rows(connection, request | {"until": known.erased_at})
        buried = replace(known, created_at=None, request_digest=None, lead_id=known.lead_id or wanted)
        for copy in {row.id for row in copies} | await _leads_with_both(connection, person, until=known.erased_at):
            gone |= await erase_within(connection, copy, buried, reseal=reseal)
    own = await _rows_of(connection, person, target or wanted, reseal, until=known.erased_at)
    if target is not None or any(own):
        gone |= await _erase(connection, wanted, target or wanted, known, own, keeps_others=keeps_others)
    return gone


async def drop_within(connection: AsyncConnection, conflict_id: UUID, known: KnownTombstone) -> None:
    """Erase one locked conflict, and what repeats it, under the tombstone of the lead `known.lead_id`."""
    await _erase(connection, conflict_id, conflict_id, known, ([conflict_id], []))


async def erase_alone(connection: AsyncConnection, ids: Sequence[UUID], known: KnownTombstone) -> frozenset[UUID]:
    """Erase resubmissions and conflicts, and nothing else of their persons; the ids that got a tombstone.

    The leads beside which they are kept stay, and count them no more. The transaction must be one of `write_alone`.
    """
    await lock_leads(connection, [row.lead_id for row in await _KEPT_WITH.rows(connection, {"ids": list(ids)})])
    await _LOCK_CONFLICTS.rows(connection, {"ids": list(ids)})
    return await _erase(connection, ids[0], ALONE, replace(known, lead_id=ALONE), (ids, ids))


async def bury_alone(connection: AsyncConnection, wanted: UUID, known: KnownTombstone) -> bool:
    """Add a tombstone for this submission only, which may still be spooled; False: it is a lead by now.

    It gets none if its id leads to another lead. The transaction must be one of `write_alone`, and hold no lead: an
    id without a row waits for every writer, unless `erase_alone` has just put up its tombstone.
    """
    ((target,),) = await _LOCK.rows(connection, {"wanted": wanted})
    if target is None:
        await _erase(connection, wanted, None, replace(known, lead_id=ALONE))
    return target != wanted or not await _LEAD.rows(connection, {"wanted": wanted})


async def other_submissions(
    connection: AsyncConnection, lead_id: UUID, reseal: Reseal | None
) -> tuple[list[UUID], list[UUID]]:
    """The conflicts and the resubmissions of the person of a lead."""
    person = await person_of(connection, lead_id, reseal)
    return await _rows_of(connection, person, lead_id, reseal, until=None, with_kept_by_leads=False)


async def _erase(
    connection: AsyncConnection,
    wanted: UUID,
    target: UUID | None,
    known: KnownTombstone,
    own: tuple[Sequence[UUID], Sequence[UUID]] = ((), ()),
    *,
    keeps_others: bool = True,
) -> frozenset[UUID]:
    """Call the function `erase_lead` with the person's own conflicts and resubmissions; the ids that are gone."""
    conflicts, submissions = map(list, own)
    given = {"wanted": wanted, "target": target, "own_conflicts": conflicts, "own_submissions": submissions}
    ((gone,),) = await _ERASE.rows(connection, asdict(known) | given | {"keeps_others": keeps_others})
    ((is_left,),) = await _IS_LEFT.rows(connection, given | {"alone": target == ALONE})
    if is_left:
        raise NotStoredError
    return frozenset(gone or ())


async def _neighbours(connection: AsyncConnection, person: Person) -> list[Any]:
    return await _NEIGHBOURS.rows(connection, {"phones": list(person.phones), "nids": list(person.nids)})


async def _leads_with_both(connection: AsyncConnection, person: Person, *, until: datetime | None) -> set[UUID]:
    """The leads with both a phone and a nid of a person; of those created `until` a moment."""
    rows = [row for row in await _neighbours(connection, person) if until is None or row.created_at <= until]
    return {row.id for row in rows if row.field == "phone"} & {row.id for row in rows if row.field == "nid"}


async def _rows_of(
    connection: AsyncConnection,
    person: Person,
    target: UUID,
    reseal: Reseal | None,
    *,
    until: datetime | None,
    with_kept_by_leads: bool = True,
) -> tuple[list[UUID], list[UUID]]:
    """A person's conflicts, decided or not, and resubmissions, of whatever lead; of those accepted `until` a moment.

    `with_kept_by_leads`: also another person's conflict with the lead `target` that became a lead of its own.
    """

    def is_own(row: Any, row_id: UUID, subject: str) -> bool:
        entry = _entry(row, row_id, subject)
        # The first look costs nothing; opening a submission does.
        return person.owns(entry) or person.owns(opened(entry, reseal))

    def is_own_conflict(row: Any) -> bool:
        matched = (row.phone_lead_id, row.nid_lead_id, row.request_lead_id)
        # Nothing is lost with one that became a lead of its own: that lead holds its values.
        goes_along = with_kept_by_leads and row.resolution == ConflictResolution.OWN_LEAD and target in matched
        return goes_along or matched[:2] == (target, target) or is_own(row, row.id, row.created_by)

    def is_own_submission(row: Any) -> bool:
        return (row.verified and row.lead_id == target) or is_own(row, row.submission_id, row.actor)

    # What is the person's may be kept with another lead that has its phone or nid; opening shows whether it is.
    neighbours = await _neighbours(connection, person) if reseal else []
    keys = {"leads": [target, *(row.id for row in neighbours)], "until": until}
    requests = {
        "ids": list(person.ids),
        "subjects": [subject for subject, _ in person.requests],
        "requests": [request_id for _, request_id in person.requests],
        "target": target,
    }
    conflicts = await _own(await _CONFLICTS.rows(connection, keys | requests), is_own_conflict)
    submissions = await _own(await _RESUBMISSIONS.rows(connection, keys), is_own_submission)
    return [row.id for row in conflicts], list(dict.fromkeys(row.submission_id for row in submissions))


async def _own(rows: Iterable[Any], is_own: Callable[[Any], bool]) -> list[Any]:
    own = []
    for row in rows:
        if is_own(row):
            own.append(row)
        # Thousands may share a phone, and to open one takes most of a millisecond: calls go on in between.
        await asyncio.sleep(0)
    return own


def _entry(row: Any, row_id: UUID, subject: str) -> SealedSubmission:
    """A row that holds a submission, without its blind indexes."""
    return SealedSubmission(
        id=row_id,
        fields=fields_of(row),
        created_by=subject,
        request_id=row.request_id,
        content_digest=row.content_digest,
        indexes=NO_INDEXES,
    )


def opened(entry: SealedSubmission, reseal: Reseal | None) -> SealedSubmission:
    """With its blind indexes; without them when it cannot be opened: then what was noted decides whose it is."""
    try:
        return reseal(entry) if reseal else entry
    except FieldUnreadableError:
        return entry
