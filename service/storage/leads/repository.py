"""The store of leads: what the database holds, and what was acknowledged and waits in the spool.

Promises: a lead that waits in the spool is never called missing. What is answered is durable. The store handles sealed
leads only and has no policy: who may see what, and which change is allowed, is the caller's to decide. See decision.py
and submissions.py for how a submission becomes a lead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid, func, null, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from service.access import Scope
from service.errors import (
    ConversationNotFoundError,
    IndexIncompleteError,
    LeadInConflictError,
    LeadkeepError,
    LeadNotFoundError,
    ScopeMissingError,
    StorageUnavailableError,
)
from service.lead import LeadEventType, LeadOrder, SealedLead, SealedResubmission
from service.storage import models
from service.storage.database.batcher import Entry, OnDemandBatcher
from service.storage.database.database import Database, Statement
from service.storage.database.failures import with_retries
from service.storage.intake.writer import LeadWriter
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.history import is_creators_alone
from service.storage.leads.lists import LIST_SECONDS, Filters, find_page
from service.storage.leads.parameters import AssignmentStep, Correction, StatusStep, Step
from service.storage.leads.queries import (
    LEADS_OF_CONVERSATION,
    LEADS_OF_IDS,
    NOT_FOUND_BY_EMAIL,
    change_statement,
    lead_of,
    lock_lead,
    refers_to,
    update_lead,
    write_anew_if_taken,
)
from service.storage.leads.resubmissions import resubmission_of
from service.storage.leads.submissions import find_duplicates
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool

LARGEST_READ = 128
"""Ids in a statement: it takes a few milliseconds, which those behind it wait for."""

CREATORS_TIME = timedelta(hours=24)
"""For which its creator may correct a lead."""

MayRead = Callable[[str], bool]
"""Whether the caller may read leads that this subject created."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An id that was answered to `created_by` before the database had the submission."""

    created_by: str
    conflict_id: UUID | None
    """The conflict that an operator has yet to decide."""


class LeadRepository:
    """The leads of one service."""

    def __init__(self, database: Database, spool: Spool, writer: LeadWriter) -> None:
        self._database = database
        self._spool = spool
        self._reads = OnDemandBatcher[UUID, SealedLead | None](self._read, largest=LARGEST_READ)
        self.create = writer.create  # nothing is to be done between the caller and the writer

    async def get(self, lead_id: UUID, may_read: MayRead) -> SealedLead:
        """The lead with this id, or the one that the id leads to.

        Raises LeadNotFoundError, LeadInConflictError, ScopeMissingError, StorageUnavailableError.
        """
        await self._require_not_waiting(lead_id, may_read)
        lead = await self._stored(lead_id)
        if lead is None:
            raise await self._missing(lead_id, may_read)
        if may_read(lead.created_by):
            return lead
        known = await self._acknowledged(lead_id) if lead.id != lead_id else None
        # The caller was given this id; that it leads to somebody else's lead is no reason to deny it.
        raise ScopeMissingError(Scope.READ) if known and may_read(known.created_by) else LeadNotFoundError()

    async def _stored(self, lead_id: UUID) -> SealedLead | None:
        """Like `get`, of the database alone. Sees what was committed before it was called."""
        return await with_retries(partial(self._reads.submit, lead_id))

    async def _read(self, batch: list[Entry[UUID, SealedLead | None]]) -> None:
        wanted = {"ids": list({entry.item for entry in batch})}
        try:
            rows = await self._database.read_once(partial(LEADS_OF_IDS.rows, parameters=wanted))
            leads = {row[0]: lead_of(row[1:]) for row in rows}
        except Exception as error:  # noqa: BLE001 # each caller retries for its own time
            for entry in batch:
                entry.fail(error)
        else:
            for entry in batch:
                entry.resolve(leads.get(entry.item))

    async def _require_not_waiting(self, lead_id: UUID, may_read: MayRead) -> None:
        """To be called before the database is read: what is drained meanwhile is found there.

        Raises StorageUnavailableError.
        """
        with suppress(SpoolError):  # what the database has can be read without the spool
            if await self._spool.holds(lead_id, may_read):
                raise StorageUnavailableError

    async def _missing(self, lead_id: UUID, may_read: MayRead) -> LeadkeepError:
        """The error for an id that the database has no lead for."""
        try:
            await self._spool.holds(lead_id, may_read)
        except SpoolError:
            # No acknowledged lead is called missing because the spool cannot be read.
            return StorageUnavailableError()
        known = await self._acknowledged(lead_id)
        if known is not None and known.conflict_id and may_read(known.created_by):
            return LeadInConflictError(known.conflict_id)
        return LeadNotFoundError()

    async def _acknowledged(self, lead_id: UUID) -> Acknowledged | None:
        """How an id was acknowledged that is no lead's own: as a conflict's or an alias'."""
        alias, conflict = models.lead_alias.c, models.lead_conflict.c
        query = union_all(
            select(alias.created_by, null().cast(Uuid).label("conflict_id")).where(alias.id == lead_id),
            select(conflict.created_by, func.coalesce(conflict.repeats, conflict.id)).where(
                conflict.id == lead_id, conflict.resolution.is_(None)
            ),
        )
        for row in await self._database.rows(query):
            return Acknowledged(row.created_by, row.conflict_id)
        return None

    async def find_by_conversation(
        self, conversation_id: str, indexes: Sequence[str], *, created_by: str | None
    ) -> tuple[SealedLead, list[UUID]]:
        """The newest lead that is linked to a conversation, and the ids of the others, newest first.

        `indexes` are the blind indexes of its id. Raises ConversationNotFoundError, StorageUnavailableError.
        """
        wanted = {"conversation": conversation_id, "indexes": list(indexes), "created_by": created_by}
        try:
            waits = await self._spool.holds_conversation(conversation_id, lambda subject: created_by in (None, subject))
        except SpoolError:
            waits = True
        rows = await self._database.read(lambda connection: LEADS_OF_CONVERSATION.rows(connection, wanted))
        if not rows:
            raise StorageUnavailableError if waits else ConversationNotFoundError
        return lead_of(rows[0]), [row[0] for row in rows[1:]]

    async def list_leads(
        self, wanted: Filters, order: LeadOrder, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[tuple[datetime, SealedLead]]:
        """At most `limit` leads behind the place `after`, each with the time that the order runs by.

        Raises TooManyMatchesError, IndexIncompleteError, QueryTimeoutError, and, of a reference that no lead has,
        StorageUnavailableError and LeadInConflictError.
        """
        if "email" in wanted and await self._database.rows(NOT_FOUND_BY_EMAIL):
            raise IndexIncompleteError
        # Before the database is read: what is drained meanwhile is found there.
        waits = await self._reference_waits(wanted)
        find = partial(find_page, wanted=wanted, order=order, after=after, limit=limit)
        found = await self._database.read_within(LIST_SECONDS, find)
        if not found and after is None and "reference" in wanted:
            await self._require_unknown(wanted["reference"], wanted.get("reader"), waits=waits)
        return found

    async def _reference_waits(self, wanted: Filters) -> bool:
        """Whether a submission with the reference that is looked for waits in the spool, or may do so."""
        if "reference" not in wanted:
            return False
        reader = wanted.get("reader")
        try:
            return await self._spool.holds_reference(wanted["reference"], lambda subject: reader in (None, subject))
        except SpoolError:
            return True

    async def _require_unknown(self, reference: bytes, created_by: str | None, *, waits: bool) -> None:
        """Raise the error for a reference that the database has no lead for, unless it is nobody's."""
        if waits:
            raise StorageUnavailableError
        conflict = models.lead_conflict
        query = select(func.coalesce(conflict.c.repeats, conflict.c.id)).where(
            refers_to(conflict, reference), conflict.c.resolution.is_(None)
        )
        if created_by is not None:
            query = query.where(conflict.c.created_by == created_by)
        for (conflict_id,) in await self._database.rows(query):
            raise LeadInConflictError(conflict_id)

    async def change(self, lead_id: UUID, decide: Callable[[SealedLead], Step | None], may_read: MayRead) -> SealedLead:
        """Take the step that `decide` names when it is shown the lead; None changes nothing.

        A step is taken in one statement if the lead is as `decide` has seen it; else, and for an answer without a step,
        the lead is locked first. The answer waits for the synchronous standby even then, because taking the lock writes
        to the log. `decide` may be asked again, and what it raises is passed on. Raises like `get`.
        """
        await self._require_not_waiting(lead_id, may_read)
        seen = await self._stored(lead_id)
        if seen is None:
            raise await self._missing(lead_id, may_read)
        step = None
        with suppress(LeadkeepError):  # what is refused is refused of the locked lead
            step = decide(seen)
        if step is not None:
            moved = await self._database.write(partial(_take_step, seen, step), alone=True)
            if moved is not None:
                return moved

        async def work(connection: AsyncConnection) -> SealedLead:
            current = await lock_lead(connection, lead_id, key_share=True)
            step = decide(current)
            if step is None:
                return current
            moved = await _take_step(current, step, connection)
            if moved is None:
                raise AssertionError("a locked lead has changed")
            return moved

        try:
            return await self._database.write(work)
        except LeadNotFoundError:
            raise await self._missing(lead_id, may_read) from None

    async def correct(
        self,
        lead_id: UUID,
        decide: Callable[[SealedLead], Correction | None],
        may_read: MayRead,
        *,
        admit: Callable[[SealedLead, bool], None] | None = None,
    ) -> SealedLead | DuplicateMatch:
        """Like `change`, for customer fields; the leads that have the new phone or nid if there are any.

        `admit` raises what the caller is refused with, given the lead and whether it `is_creators_alone`, of a day.
        """

        async def work(connection: AsyncConnection, again: bool) -> SealedLead | DuplicateMatch:
            # A new phone or nid needs the strongest lock. Taking it at once, not on top of a weaker one, keeps a
            # submission that matches this lead from waiting for us while we wait for it.
            current = await lock_lead(connection, lead_id)
            if admit is not None:
                admit(current, await is_creators_alone(connection, current.id, within=CREATORS_TIME))
            correction = decide(current)
            if correction is None:
                return current
            return await correct_locked(connection, current, correction, again=again)

        await self._require_not_waiting(lead_id, may_read)
        try:
            return await write_anew_if_taken(self._database, work)
        except LeadNotFoundError:
            raise await self._missing(lead_id, may_read) from None

    async def resubmissions(
        self, lead_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[SealedResubmission]:
        """At most `limit` resubmissions of a lead behind the place `after`, newest first."""
        kept = models.resubmission
        query = select(kept).where(kept.c.lead_id == lead_id)
        if after is not None:
            query = query.where(tuple_(kept.c.submitted_at, kept.c.submission_id) < tuple_(*after))
        query = query.order_by(kept.c.submitted_at.desc(), kept.c.submission_id.desc()).limit(limit)
        return [resubmission_of(row) for row in await self._database.rows(query)]


async def correct_locked(
    connection: AsyncConnection, current: SealedLead, correction: Correction, *, again: bool
) -> SealedLead | DuplicateMatch:
    """A locked lead with its new values; the leads that have the new phone or nid if there are any.

    They are looked for `again`, after BlindIndexTakenError was raised.
    """
    phones, nids = correction.phones, correction.nids
    match = await find_duplicates(connection, phones, nids, other_than=current.id) if again else None
    return match or await update_lead(connection, current, correction)


async def _take_step(seen: SealedLead, step: Step, connection: AsyncConnection) -> SealedLead | None:
    """The lead after the step, with its event in the history; None, and nothing is done, if it is not as it was seen.

    The version alone does not show it: after a failover another step may have been numbered like one that was lost.
    """
    given: dict[str, Any] = {"id": seen.id, "version": seen.version, "actor": step.actor, "reason": step.reason}
    match step:
        case StatusStep():
            statement = _STATUS_STEP
            given |= {"before": seen.status.value, "after": step.to_status.value}
        case AssignmentStep():
            statement = _ASSIGNMENT_STEP
            given |= {"before": seen.assignee, "after": step.to_assignee}
    moved = await statement.rows(connection, given)
    return lead_of(moved[0]) if moved else None


def _step_statement(column: str, event_type: LeadEventType) -> Statement:
    before, after = "CAST(:before AS text)", "CAST(:after AS text)"
    return change_statement(
        f"{column} = {after}",
        f"id = :id AND version = :version AND {column} IS NOT DISTINCT FROM {before}",
        event_type,
        {f"from_{column}": before, f"to_{column}": after},
    )


_STATUS_STEP = _step_statement("status", LeadEventType.STATUS_CHANGED)
_ASSIGNMENT_STEP = _step_statement("assignee", LeadEventType.ASSIGNED)
