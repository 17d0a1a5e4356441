"""The store of leads: what the database holds, and what was acknowledged and waits in the spool.

Promises: a lead that waits in the spool is never called missing. What is answered is durable. The store handles sealed
leads only and has no policy: who may see what, and which change is allowed, is the caller's to decide. See decision.py
and submissions.py for how a submission becomes a lead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import (
    ConversationNotFoundError,
    IndexIncompleteError,
    LeadInConflictError,
    LeadkeepError,
    LeadNotFoundError,
    ScopeMissingError,
    StorageUnavailableError,
)
from service.lead import LeadOrder, SealedLead, SealedResubmission
from service.scopes import Scope
from service.storage import models
from service.storage.database.batcher import Entry, OnDemandBatcher
from service.storage.database.database import Database, page_of
from service.storage.database.failures import NotStoredError, with_retries
from service.storage.intake.writer import LeadWriter
from service.storage.leads.changes import (
    Correction,
    Step,
    correct_locked,
    is_creators_alone,
    lock_lead,
    take_step,
    write_anew_if_taken,
)
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.queries import (
    LEADS_OF_CONVERSATION,
    LEADS_OF_IDS,
    LIST_SECONDS,
    NOT_FOUND_BY_EMAIL,
    SOME_IN_CLEAR,
    Filters,
    find_page,
    lead_of,
)
from service.storage.leads.resubmissions import resubmission_of
from service.storage.spool.file import SpoolError
from service.storage.spool.spool import Spool

LARGEST_READ = 128
"""Ids in a statement: it takes a few milliseconds, which those behind it wait for."""

CREATORS_TIME = timedelta(hours=24)
"""For which its creator may correct a lead."""

_ACKNOWLEDGED = text("""
    SELECT created_by, CAST(NULL AS uuid) AS conflict_id FROM lead_alias WHERE id = :id
    UNION ALL
    SELECT created_by, coalesce(repeats, id) FROM lead_conflict WHERE id = :id AND resolution IS NULL
""")
_CONFLICT_OF_REFERENCE = text(f"""
    SELECT coalesce(repeats, id) FROM lead_conflict
    WHERE {models.reference_of("id")} = :reference AND resolution IS NULL
        AND (CAST(:created_by AS text) IS NULL OR created_by = :created_by)
""")  # noqa: S608 # our own text

MayRead = Callable[[str], bool]
"""Whether the caller may read leads that this subject created."""


class LeadRepository:
    """The leads of one service."""

    def __init__(self, database: Database, spool: Spool, writer: LeadWriter) -> None:
        self._database = database
        self._spool = spool
        self._reads = OnDemandBatcher[UUID, SealedLead | None](self._read, largest=LARGEST_READ)
        self._some_in_clear = True
        self.create = writer.create  # nothing is to be done between the caller and the writer

    async def get(self, lead_id: UUID, may_read: MayRead) -> SealedLead:
        """The lead with this id, or the one that the id leads to.

        Raises LeadNotFoundError, LeadInConflictError, ScopeMissingError, StorageUnavailableError.
        """
        lead = await self._found(lead_id, may_read)
        if may_read(lead.created_by):
            return lead
        known = await self._acknowledged(lead_id) if lead.id != lead_id else None
        # The caller was given this id; that it leads to somebody else's lead is no reason to deny it.
        raise ScopeMissingError(Scope.READ) if known and may_read(known.created_by) else LeadNotFoundError()

    async def _found(self, lead_id: UUID, may_read: MayRead) -> SealedLead:
        """Like `get`, whoever created the lead. Sees what was committed before it was called."""
        await self._require_not_waiting(lead_id, may_read)
        lead = await with_retries(partial(self._reads.submit, lead_id))
        if lead is None:
            raise await self._missing(lead_id, may_read)
        return lead

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
        if await _may_wait(self._spool.holds(lead_id, may_read)):
            return StorageUnavailableError()
        known = await self._acknowledged(lead_id)
        if known is not None and known.conflict_id and may_read(known.created_by):
            return LeadInConflictError(known.conflict_id)
        return LeadNotFoundError()

    async def _acknowledged(self, lead_id: UUID) -> Row[Any] | None:
        """How an id was acknowledged that is no lead's own: to whom, and as which conflict that is not decided yet."""
        rows = await self._database.rows(_ACKNOWLEDGED, {"id": lead_id})
        return rows[0] if rows else None

    async def find_by_conversation(
        self, conversation_id: str, indexes: Sequence[str], *, created_by: str | None
    ) -> tuple[SealedLead, list[UUID]]:
        """The newest lead that is linked to a conversation, and the ids of the others, newest first.

        `indexes` are the blind indexes of its id. Raises ConversationNotFoundError, StorageUnavailableError.
        """
        waits = await _may_wait(self._spool.holds_conversation(conversation_id, _of(created_by)))
        in_clear = await self._where_in_clear(conversation_id)
        wanted = {"conversation": in_clear, "indexes": list(indexes), "created_by": created_by}
        rows = await self._database.read(lambda connection: LEADS_OF_CONVERSATION.rows(connection, wanted))
        if not rows:
            raise StorageUnavailableError if waits else ConversationNotFoundError
        return lead_of(rows[0]), [row[0] for row in rows[1:]]

    async def _where_in_clear(self, conversation_id: str) -> str | None:
        """A conversation id to compare with those in clear, None once there is none: PostgreSQL may log what it gets.

        The database takes no new one in clear.
        """
        if self._some_in_clear:
            self._some_in_clear = bool(await self._database.rows(SOME_IN_CLEAR))
        return conversation_id if self._some_in_clear else None

    async def list_leads(
        self, wanted: Filters, order: LeadOrder, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[tuple[datetime, SealedLead]]:
        """At most `limit` leads behind the place `after`, each with the time that the order runs by.

        Raises TooManyMatchesError, IndexIncompleteError, QueryTimeoutError, and, of a reference that no lead has,
        StorageUnavailableError and LeadInConflictError.
        """
        if "email" in wanted and await self._database.rows(NOT_FOUND_BY_EMAIL):
            raise IndexIncompleteError
        if "conversation_id" in wanted:
            talk, indexes = wanted["conversation_id"]
            wanted = {**wanted, "conversation_id": (await self._where_in_clear(talk), indexes)}
        # Before the database is read: what is drained meanwhile is found there.
        reference, reader = wanted.get("reference"), wanted.get("reader")
        waits = reference and await _may_wait(self._spool.holds_reference(reference, _of(reader)))
        find = partial(find_page, wanted=wanted, order=order, after=after, limit=limit)
        found = await self._database.read_within(LIST_SECONDS, find)
        if reference and not found and after is None:
            if waits:
                raise StorageUnavailableError
            await self._require_unknown(reference, reader)
        return found

    async def _require_unknown(self, reference: bytes, created_by: str | None) -> None:
        """Raise LeadInConflictError if an undecided conflict has a reference that no lead has."""
        given = {"reference": reference, "created_by": created_by}
        for (conflict_id,) in await self._database.rows(_CONFLICT_OF_REFERENCE, given):
            raise LeadInConflictError(conflict_id)

    async def change(self, lead_id: UUID, decide: Callable[[SealedLead], Step | None], may_read: MayRead) -> SealedLead:
        """Apply the step that `decide(lead)` returns; None changes nothing.

        A step is taken in one statement if the lead is as `decide` has seen it; else, and for an answer without a step,
        the lead is locked first. The answer waits for the synchronous standby even then, because taking the lock writes
        to the log. `decide` may be asked again, and what it raises is passed on. Raises like `get`.
        """
        seen = await self._found(lead_id, may_read)
        step = None
        with suppress(LeadkeepError):  # what is refused is refused of the locked lead
            step = decide(seen)
        if step is not None:
            moved = await self._database.write(partial(take_step, seen, step), alone=True)
            if moved is not None:
                return moved

        async def work(connection: AsyncConnection) -> SealedLead:
            current = await lock_lead(connection, lead_id, key_share=True)
            step = decide(current)
            if step is None:
                return current
            moved = await take_step(current, step, connection)
            if moved is None:
                raise NotStoredError  # the lead is locked, so nobody has changed it
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
        listed = select(kept).where(kept.c.lead_id == lead_id)
        query = page_of(listed, (kept.c.submitted_at, kept.c.submission_id), after, limit=limit, newest_first=True)
        return [resubmission_of(row) for row in await self._database.rows(query)]


def _of(created_by: str | None) -> MayRead:
    """Of a caller who may read what this subject created; None: whatever anybody did."""
    return lambda subject: created_by in (None, subject)


async def _may_wait(looked: Awaitable[bool]) -> bool:
    """Whether the spool holds what was looked for, or cannot be read: nothing acknowledged is called missing then."""
    try:
        return await looked
    except SpoolError:
        return True
