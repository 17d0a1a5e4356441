"""Erasing one person within a transaction: what is that person's goes, what only shares a phone or a nid with it stays.

Promise: a tombstone stays in place of each id that goes, and what is another person's is lost with none of them. The
function `erase_lead` of the database carries it out with rights that the service's role does not have; see its
migration (0007) for the locks by which erasing and storing exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, or_, select, text, union
from sqlalchemy.ext.asyncio import AsyncConnection

from service.encryption import NOT_CONFIRMED
from service.errors import FieldUnreadableError
from service.lead import BlindIndexes, ConflictResolution, SealedSubmission
from service.storage import models

Refreshed = Callable[[SealedSubmission], SealedSubmission]
"""The submission with its blind indexes computed afresh. Raises FieldUnreadableError."""

_LEAD = models.table(models.Lead)
_ALIAS = models.table(models.LeadAlias)
_CONFLICT = models.table(models.LeadConflict)
_RESUBMISSION = models.table(models.Resubmission)

_LOCK = text("SELECT lock_for_erasure(:wanted)")
_ERASE = text(
    "SELECT erase_lead(:wanted, :target, :actor, :reason, CAST(:own_conflicts AS uuid[]),"
    " CAST(:own_submissions AS uuid[]), :keeps_others, :created_at, :erased_at, :erased_with, :request_digest)"
)
_NO_INDEXES = BlindIndexes(epoch=NOT_CONFIRMED, phone=(None, None), nid=(None, None))


@dataclass(frozen=True, slots=True)
class Person:
    """What one person's submissions are known by."""

    ids: frozenset[UUID]
    requests: frozenset[tuple[str, str]] = frozenset()
    """Subject and request_id of each request; one without request_id is known by its id alone."""
    phones: frozenset[bytes] = frozenset()
    nids: frozenset[bytes] = frozenset()

    def owns(self, submission: SealedSubmission) -> bool:
        """Whether a submission is this person's: by its id, its request, or both its phone and its nid.

        One that shares only the phone or only the nid is another person's: relatives share phones, and people mistype.
        """
        by_request = submission.request_id is not None and (
            (submission.created_by, submission.request_id) in self.requests
        )
        return submission.id in self.ids or by_request or self._shared(submission) == (True, True)

    def shares_with(self, submission: SealedSubmission) -> bool:
        """Whether a submission has this person's phone or nid."""
        return any(self._shared(submission))

    def and_of(self, submission: SealedSubmission) -> Person:
        """The same person, known by a submission of its own too."""
        request = {(submission.created_by, submission.request_id)} if submission.request_id is not None else set()
        return Person(
            self.ids | {submission.id},
            self.requests | request,
            self.phones | set(submission.indexes.phones),
            self.nids | set(submission.indexes.nids),
        )

    def _shared(self, submission: SealedSubmission) -> tuple[bool, bool]:
        phones, nids = submission.indexes.phones, submission.indexes.nids
        return not self.phones.isdisjoint(phones), not self.nids.isdisjoint(nids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a tombstone before it is put up; None: the database decides."""

    created_at: datetime | None = None
    erased_at: datetime | None = None
    lead_id: UUID | None = None
    request_digest: bytes | None = None


async def person_of(connection: AsyncConnection, wanted: UUID, refreshed: Refreshed | None) -> Person:
    """What is known here of the person that an id stands for: of its lead, or of its conflict."""
    target = func.coalesce(select(_ALIAS.c.lead_id).where(_ALIAS.c.id == wanted).scalar_subquery(), wanted)
    person = Person(frozenset({wanted}))
    if lead := (await connection.execute(select(_LEAD).where(_LEAD.c.id == target))).one_or_none():
        entry = _entry(lead, lead.id, lead.created_by)
        phones, nids = (lead.phone_index, lead.phone_index_2), (lead.nid_index, lead.nid_index_2)
        indexes = BlindIndexes(epoch=NOT_CONFIRMED, phone=phones, nid=nids)
        aliases = (await connection.execute(select(_ALIAS.c.id).where(_ALIAS.c.lead_id == lead.id))).scalars()
        return Person(person.ids | set(aliases)).and_of(replace(entry, indexes=indexes))
    if conflict := (await connection.execute(select(_CONFLICT).where(_CONFLICT.c.id == wanted))).one_or_none():
        return person.and_of(_opened(_entry(conflict, conflict.id, conflict.created_by), refreshed))
    return person


async def erase_within(
    connection: AsyncConnection,
    wanted: UUID,
    *,
    actor: str,
    reason: str | None,
    refreshed: Refreshed | None = None,
    keeps_others: bool = True,
    known: Known | None = None,
) -> frozenset[UUID]:
    """Erase what an id stands for in a transaction of the caller's; the ids that are gone, none for an unknown one.

    Without `refreshed`, what was noted when a submission was stored decides whose it is. Without `keeps_others`,
    resubmissions of others go with the lead that they are kept with.
    """
    target: UUID | None = (await connection.execute(_LOCK, {"wanted": wanted})).scalar_one()
    conflicts: list[UUID] = []
    submissions: list[UUID] = []
    if target is not None:
        person = await person_of(connection, wanted, refreshed)
        leads = await _neighbours(connection, target, person) if refreshed else [target]
        conflicts = await _own_conflicts(connection, target, leads, person, refreshed)
        submissions = await _own_submissions(connection, target, leads, person, refreshed)
    return await _erase(
        connection,
        wanted=wanted,
        target=target,
        actor=actor,
        reason=reason,
        own_conflicts=conflicts,
        own_submissions=submissions,
        keeps_others=keeps_others,
        known=known or Known(),
    )


async def drop_within(
    connection: AsyncConnection, conflict_id: UUID, *, actor: str, reason: str | None, erased_with: UUID
) -> None:
    """Erase one locked conflict, and what repeats it, under the tombstone of a lead that was erased before."""
    await _erase(
        connection,
        wanted=conflict_id,
        target=conflict_id,
        actor=actor,
        reason=reason,
        own_conflicts=[conflict_id],
        own_submissions=[],
        keeps_others=True,
        known=Known(lead_id=erased_with),
    )


async def _erase(connection: AsyncConnection, *, known: Known, **parameters: Any) -> frozenset[UUID]:
    given = {
        **parameters,
        "created_at": known.created_at,
        "erased_at": known.erased_at,
        "erased_with": known.lead_id,
        "request_digest": known.request_digest,
    }
    return frozenset((await connection.execute(_ERASE, given)).scalar_one() or ())


async def _neighbours(connection: AsyncConnection, target: UUID, person: Person) -> list[UUID]:
    """The lead, and those with the same phone or nid: what is the person's may be kept with one of them.

    One branch for each partial index, so that each is used.
    """
    branches = [
        select(_LEAD.c.id).where(column.in_(indexes), shared if is_shared else ~shared)
        for name, indexes in (("phone", person.phones), ("nid", person.nids))
        for column in (_LEAD.c[f"{name}_index"], _LEAD.c[f"{name}_index_2"])
        for shared in (_LEAD.c[f"{name}_shared"],)
        for is_shared in (True, False)
        if indexes
    ]
    found = (await connection.execute(union(*branches))).scalars() if branches else ()
    return [target, *(each for each in found if each != target)]


async def _own_conflicts(
    connection: AsyncConnection, target: UUID, leads: Sequence[UUID], person: Person, refreshed: Refreshed | None
) -> list[UUID]:
    # Two that are kept for the same erased lead may be one person's.
    kept_with = select(_CONFLICT.c.erased_lead_id).where(_CONFLICT.c.id == target).scalar_subquery()
    linked = or_(
        _CONFLICT.c.id.in_(person.ids),
        *(_CONFLICT.c[f"{name}_lead_id"].in_(leads) for name in ("phone", "nid", "request")),
        _CONFLICT.c.erased_lead_id == kept_with,
    )

    def is_own(row: Row[Any]) -> bool:
        matched = (row.phone_lead_id, row.nid_lead_id, row.request_lead_id)
        if row.resolution == ConflictResolution.OWN_LEAD and target in matched:
            return True  # nothing is lost with it: the lead that it became holds its values
        return matched[:2] == (target, target) or _is_own(row, row.id, row.created_by, person, refreshed)

    return [row.id for row in await connection.execute(select(_CONFLICT).where(linked)) if is_own(row)]


async def _own_submissions(
    connection: AsyncConnection, target: UUID, leads: Sequence[UUID], person: Person, refreshed: Refreshed | None
) -> list[UUID]:
    def is_own(row: Row[Any]) -> bool:
        noted = row.verified and row.lead_id == target
        return noted or _is_own(row, row.submission_id, row.actor, person, refreshed)

    kept = await connection.execute(select(_RESUBMISSION).where(_RESUBMISSION.c.lead_id.in_(leads)))
    return list(dict.fromkeys(row.submission_id for row in kept if is_own(row)))


def _is_own(row: Row[Any], row_id: UUID, subject: str, person: Person, refreshed: Refreshed | None) -> bool:
    entry = _entry(row, row_id, subject)
    # The first look costs nothing; opening a submission does.
    return person.owns(entry) or person.owns(_opened(entry, refreshed))


def _entry(row: Row[Any], row_id: UUID, subject: str) -> SealedSubmission:
    """A row that holds a submission, without its blind indexes."""
    columns = row._mapping  # noqa: SLF001 # public, named so that no column hides it
    return SealedSubmission(
        id=row_id,
        name=row.name,
        interested_policy=row.interested_policy,
        preferred_contact_time=row.preferred_contact_time,
        conversation_id=row.conversation_id,
        created_by=subject,
        request_id=row.request_id,
        content_digest=row.content_digest,
        indexes=_NO_INDEXES,
        sealed={name: token for name in models.SENSITIVE_COLUMNS if (token := columns[name]) is not None},
    )


def _opened(entry: SealedSubmission, refreshed: Refreshed | None) -> SealedSubmission:
    """With its blind indexes; without them when it cannot be opened: then only what was noted tells whose it is."""
    try:
        return refreshed(entry) if refreshed else entry
    except FieldUnreadableError:
        return entry
