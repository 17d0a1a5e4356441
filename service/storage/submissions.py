"""How a submission becomes a lead, or meets one: two statements in one READ COMMITTED transaction.

First an insert with ON CONFLICT DO NOTHING and no target, so that whichever unique index a rival holds, the insert
waits for that rival and then does nothing. When it did nothing, a second statement looks the submission up by its own
id, its request_id, its phone and its nid. It is a statement of its own because one statement cannot see a rival that
committed while it waited.

The look-up locks what it finds FOR KEY SHARE. That keeps the row while we answer for it, and it writes to the log: the
commit of every answer that rests on an existing row therefore waits for the synchronous standby. A plain look-up would
not, and could confirm a row that a failover then loses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, and_, false, func, literal, or_, select, true, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.lead import SealedLead, SealedSubmission
from service.storage import models

INSERTS_TRIED = 3
"""A lead that stood in the way and was erased before we could look at it frees the way; this happens once at most in
practice, and the bound keeps a fault from turning into an endless loop."""

_LEAD = models.table(models.Lead)
_LINK = models.table(models.LeadConversation)
_KEPT = models.table(models.Resubmission)


@dataclass(frozen=True, slots=True)
class MetLead:
    """An existing lead that a submission meets."""

    id: UUID
    created_by: str


@dataclass(frozen=True, slots=True)
class Met:
    """Which lead the phone met and which one the nid met; both may be the same."""

    phone: MetLead | None
    nid: MetLead | None

    @property
    def verified(self) -> bool:
        """Whether phone and nid both met one and the same lead."""
        return self.phone is not None and self.phone == self.nid

    @property
    def leads(self) -> tuple[MetLead, ...]:
        """The leads that were met, each once."""
        return tuple(dict.fromkeys(lead for lead in (self.phone, self.nid) if lead is not None))


@dataclass(frozen=True, slots=True)
class Created:
    """The submission is the lead: stored now, or by an earlier attempt or repeat."""

    lead: SealedLead


@dataclass(frozen=True, slots=True)
class RequestIdReused:
    """The subject used the request_id for other content."""


Outcome = Created | Met | RequestIdReused


def columns_of(submission: SealedSubmission, sensitive: Sequence[str]) -> dict[str, Any]:
    """The submission's columns, alike in the tables of leads and of resubmissions."""
    sealed = {name: submission.sealed.get(name) for name in sensitive}
    return sealed | {
        "name": submission.name,
        "interested_policy": submission.interested_policy,
        "preferred_contact_time": submission.preferred_contact_time,
        "conversation_id": submission.conversation_id,
        "request_id": submission.request_id,
        "content_digest": submission.content_digest,
    }


async def submit(
    connection: AsyncConnection,
    submission: SealedSubmission,
    columns: dict[str, Any],
    lead_of: Callable[[Row[Any]], SealedLead],
) -> Outcome:
    """Store the submission as a lead, or say what it meets and keep it there as a resubmission."""
    for _ in range(INSERTS_TRIED):
        if row := await _insert(connection, submission, columns):
            return Created(lead_of(row))
        rows = (await connection.execute(_look_up_submission(submission))).all()
        if own := next((row for row in rows if row.id == submission.id), None):
            return Created(lead_of(own))
        if repeated := next((row for row in rows if _is_same_request(row, submission)), None):
            same = repeated.content_digest == submission.content_digest
            return Created(lead_of(repeated)) if same else RequestIdReused()
        if met := _met(rows, submission.phone_index, submission.nid_index):
            await _keep(connection, submission, columns, met)
            return met
    raise StorageUnavailableError


async def look_up(
    connection: AsyncConnection, phone_index: bytes | None, nid_index: bytes | None, *, other_than: UUID
) -> Met | None:
    """Which leads other than one have this phone or this nid; locks them."""
    wanted = [(_LEAD.c.phone_index, phone_index), (_LEAD.c.nid_index, nid_index)]
    equal = [column == value for column, value in wanted if value is not None]
    rows = (await connection.execute(_locked(select(_LEAD).where(or_(*equal), _LEAD.c.id != other_than)))).all()
    return _met(rows, phone_index, nid_index)


async def _insert(
    connection: AsyncConnection, submission: SealedSubmission, columns: dict[str, Any]
) -> Row[Any] | None:
    values = columns | {
        "id": submission.id,
        "created_by": submission.created_by,
        "phone_index": submission.phone_index,
        "nid_index": submission.nid_index,
    }
    inserted = insert(_LEAD).values(values).on_conflict_do_nothing().returning(_LEAD)
    row: Row[Any] | None = (await connection.execute(inserted)).one_or_none()
    if row is not None and submission.conversation_id is not None:
        await _link(connection, submission.conversation_id, submission.id)
    return row


async def _link(connection: AsyncConnection, conversation_id: str, lead_id: UUID) -> None:
    link = {"conversation_id": conversation_id, "lead_id": lead_id}
    await connection.execute(insert(_LINK).values(link).on_conflict_do_nothing())


def _look_up_submission(submission: SealedSubmission) -> Any:
    same_request = and_(_LEAD.c.created_by == submission.created_by, _is(_LEAD.c.request_id, submission.request_id))
    return _locked(
        select(_LEAD).where(
            or_(
                _LEAD.c.id == submission.id,
                same_request,
                _LEAD.c.phone_index == submission.phone_index,
                _LEAD.c.nid_index == submission.nid_index,
            )
        )
    )


def _is(request_id: ColumnElement[str | None], wanted: str | None) -> ColumnElement[bool]:
    # SQLAlchemy would make IS NULL of a comparison with None, and find everything that came without a request_id.
    return false() if wanted is None else request_id == wanted


def _locked(query: Any) -> Any:
    # In the order of ids, so that two submissions which meet the same two leads lock them in the same order.
    return query.order_by(_LEAD.c.id).with_for_update(read=True, key_share=True)


def _is_same_request(row: Row[Any], submission: SealedSubmission) -> bool:
    return (
        submission.request_id is not None
        and row.created_by == submission.created_by
        and row.request_id == submission.request_id
    )


def _met(rows: Sequence[Row[Any]], phone_index: bytes | None, nid_index: bytes | None) -> Met | None:
    phone = next((MetLead(row.id, row.created_by) for row in rows if row.phone_index == phone_index), None)
    nid = next((MetLead(row.id, row.created_by) for row in rows if row.nid_index == nid_index), None)
    return Met(phone, nid) if phone or nid else None


async def _keep(connection: AsyncConnection, submission: SealedSubmission, columns: dict[str, Any], met: Met) -> None:
    """Keep a refused duplicate with each lead that it met, and link its conversation if it is verified."""
    lead_ids = [lead.id for lead in met.leads]
    await connection.execute(
        select(_LEAD.c.id).where(_LEAD.c.id.in_(lead_ids)).order_by(_LEAD.c.id).with_for_update(key_share=True)
    )
    # With the leads locked, a repeat of this very submission is visible here and is neither kept nor counted twice.
    kept_before = select(_KEPT.c.lead_id).where(
        _KEPT.c.lead_id.in_(lead_ids),
        or_(
            _KEPT.c.submission_id == submission.id,
            and_(
                _KEPT.c.actor == submission.created_by,
                _is(_KEPT.c.request_id, submission.request_id),
                _KEPT.c.content_digest == submission.content_digest,
            ),
        ),
    )
    counted = (
        update(_LEAD)
        .where(_LEAD.c.id.in_(lead_ids), _LEAD.c.id.not_in(kept_before))
        .values(resubmissions=_LEAD.c.resubmissions + 1)
        .returning(_LEAD.c.id, ((_LEAD.c.resubmissions - 1) % models.RESUBMISSIONS_KEPT).label("slot"))
        .cte("counted")
    )
    values = columns | {
        "submission_id": submission.id,
        "actor": submission.created_by,
        "verified": met.verified,
    }
    names = list(values)
    rows = select(
        counted.c.id,
        counted.c.slot,
        func.now(),
        *(literal(values[name], _KEPT.c[name].type) for name in names),
    ).where(true())
    keep = insert(_KEPT).from_select(["lead_id", "slot", "submitted_at", *names], rows)
    replaced = {name: keep.excluded[name] for name in [*names, "submitted_at"]}
    await connection.execute(keep.on_conflict_do_update(index_elements=[_KEPT.c.lead_id, _KEPT.c.slot], set_=replaced))
    if met.verified and submission.conversation_id is not None:
        await _link(connection, submission.conversation_id, lead_ids[0])
