"""Where leads are kept and found.

It handles sealed leads only, and has no policy: who may see what, and which change is allowed, is the caller's to
decide. What it answers is durable. See submissions.py for how a submission becomes a lead or meets one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Row,
    Select,
    Uuid,
    func,
    null,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadkeepError, LeadNotFoundError, StorageUnavailableError
from service.lead import (
    AssignmentChange,
    LeadStatus,
    SealedLead,
    SealedResubmission,
    SealedSubmission,
    StatusChange,
)
from service.storage import models, submissions
from service.storage.batcher import Entry, OnDemandBatcher
from service.storage.database import Database, Statement
from service.storage.failures import violated_constraint
from service.storage.lead_queries import (
    LEAD,
    fields_of,
    filtered,
    is_or_leads_to,
    lead_of,
    lead_of_row,
    leads_of_conversation,
    leads_of_ids,
)
from service.storage.lead_steps import LeadSteps
from service.storage.outcomes import Met, Outcome
from service.storage.requests import (
    Correction,
    DuplicateFoundError,
    LeadFilter,
    Position,
    Step,
)
from service.storage.retry import with_retries

LARGEST_READ = 128
"""Ids in a statement: it takes a few milliseconds, which those behind it wait for."""

BLIND_INDEXES = ("uq_lead_phone_index", "uq_lead_nid_index", "uq_lead_phone_index_2", "uq_lead_nid_index_2")
"""The unique indexes that decide duplicates."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An id that was answered to `created_by` before the database had the submission."""

    created_by: str
    conflict_id: UUID | None
    """The conflict of which a person has yet to decide."""


class _BlindIndexTakenError(Exception):
    pass


class LeadRepository:
    """The leads of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leads_of_ids = Statement(leads_of_ids())
        self._leads_of_conversation = Statement(leads_of_conversation())
        self._steps = LeadSteps()
        self._reads = OnDemandBatcher[UUID, SealedLead | None](self._read, largest=LARGEST_READ)

    async def create(self, submission: SealedSubmission) -> Outcome:
        """Store a submission as a lead, or find out what it meets; a refused duplicate is kept. Safe to repeat."""
        return (await with_retries(partial(self.create_all_once, [submission])))[submission.id]

    async def create_all_once(self, batch: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
        """Like `create` for many together, tried once: raises what went wrong, see failures.py.

        Some may be stored then. They are found by their ids when it is done again.
        """

        async def insert_new(connection: AsyncConnection) -> dict[UUID, Outcome]:
            return await submissions.insert_new(connection, batch)

        async def settle(connection: AsyncConnection) -> dict[UUID, Outcome]:
            return await submissions.store(connection, left, self.lead_of, insert_first=False)

        outcomes = await self._database.write_once(insert_new, alone=True)
        left = [submission for submission in batch if submission.id not in outcomes]
        return outcomes | await self._database.write_once(settle) if left else outcomes

    async def store_within(self, batch: Sequence[SealedSubmission], connection: AsyncConnection) -> dict[UUID, Outcome]:
        """Like `create_all_once`, in a transaction of the caller's."""
        return await submissions.store(connection, batch, self.lead_of)

    async def get(self, lead_id: UUID) -> SealedLead | None:
        """The lead with this id, or the one that the id leads to. Sees what was committed before it was called."""
        return await with_retries(partial(self._reads.submit, lead_id))

    async def _read(self, batch: list[Entry[UUID, SealedLead | None]]) -> None:
        wanted = {"ids": list({entry.item for entry in batch})}
        try:
            rows = await self._database.read_once(partial(self._leads_of_ids.rows, parameters=wanted))
            leads = {row[0]: lead_of(row[1:]) for row in rows}
        except Exception as error:  # noqa: BLE001 # each caller retries for its own time
            for entry in batch:
                entry.fail(error)
        else:
            for entry in batch:
                entry.resolve(leads.get(entry.item))

    async def acknowledged(self, lead_id: UUID) -> Acknowledged | None:
        """How an id was acknowledged that is no lead's own: as a conflict's or an alias'."""
        alias, conflict = models.LeadAlias, models.LeadConflict
        query = union_all(
            select(alias.created_by, null().cast(Uuid).label("conflict_id")).where(alias.id == lead_id),
            select(conflict.created_by, func.coalesce(conflict.repeats, conflict.id)).where(
                conflict.id == lead_id, conflict.resolution.is_(None)
            ),
        )

        async def work(connection: AsyncConnection) -> Acknowledged | None:
            row = (await connection.execute(query)).first()
            return None if row is None else Acknowledged(row.created_by, row.conflict_id)

        return await self._database.read(work)

    async def find_by_conversation(
        self, conversation_id: str, *, created_by: str | None
    ) -> tuple[SealedLead | None, list[UUID]]:
        """The newest lead that is linked to a conversation, and the ids of the others, newest first."""
        wanted = {"conversation": conversation_id, "created_by": created_by}

        async def work(connection: AsyncConnection) -> tuple[SealedLead | None, list[UUID]]:
            rows = await self._leads_of_conversation.rows(connection, wanted)
            newest = lead_of(rows[0]) if rows else None
            return newest, [row[0] for row in rows[1:]]

        return await self._database.read(work)

    async def list_leads(self, lead_filter: LeadFilter, *, after: Position | None, limit: int) -> list[SealedLead]:
        """At most `limit` leads behind the position `after`, newest first."""
        query = filtered(lead_filter)
        if after is not None:
            query = query.where(tuple_(LEAD.c.created_at, LEAD.c.id) < tuple_(after.created_at, after.id))
        query = query.order_by(LEAD.c.created_at.desc(), LEAD.c.id.desc()).limit(limit)

        async def work(connection: AsyncConnection) -> list[SealedLead]:
            return [lead_of(row) for row in await connection.execute(query)]

        return await self._database.read(work)

    async def change(self, lead_id: UUID, decide: Callable[[SealedLead], Step | None]) -> SealedLead:
        """Take the step that `decide` names when it is shown the lead; None changes nothing.

        A step is taken in one statement if the lead is as `decide` has seen it; else, and for an answer without a step,
        the lead is locked first. The answer waits for the synchronous standby even then, because taking the lock writes
        to the log. `decide` may be asked again, and what it raises is passed on. Raises LeadNotFoundError.
        """

        seen = await self.get(lead_id)
        step = None
        if seen is not None:
            with suppress(LeadkeepError):  # what is refused is refused of the locked lead
                step = decide(seen)
        if seen is not None and step is not None:
            moved = await self._database.write(partial(self._steps.take, seen, step), alone=True)
            if moved is not None:
                return moved
        return await self._change_locked(lead_id, decide)

    async def _change_locked(self, lead_id: UUID, decide: Callable[[SealedLead], Step | None]) -> SealedLead:
        async def work(connection: AsyncConnection) -> SealedLead:
            current = await self.lock_within(connection, lead_id, key_share=True)
            step = decide(current)
            if step is None:
                return current
            moved = await self._steps.take(current, step, connection)
            if moved is None:
                raise AssertionError("a locked lead has changed")
            return moved

        return await self._database.write(work)

    async def correct(self, lead_id: UUID, decide: Callable[[SealedLead], Correction | None]) -> SealedLead:
        """Like `change`, for customer fields. Raises DuplicateFoundError when the new phone or nid meets a lead."""
        refused = Correction(columns={})

        async def work(connection: AsyncConnection) -> SealedLead:
            nonlocal refused
            # A new phone or nid needs the strongest lock. Taking it at once, not on top of a weaker one, keeps a
            # submission that meets this lead from waiting for us while we wait for it.
            current = await self.lock_within(connection, lead_id)
            correction = decide(current)
            if correction is None:
                return current
            refused = correction
            try:
                return await self.update_within(connection, current, correction.columns)
            except IntegrityError as error:
                if violated_constraint(error) in BLIND_INDEXES:
                    raise _BlindIndexTakenError from None
                raise

        for _ in range(submissions.INSERTS_TRIED):
            try:
                return await self._database.write(work)
            except _BlindIndexTakenError:
                if met := await self._met_by(lead_id, refused):
                    raise DuplicateFoundError(met) from None
                # The lead that it met has gone meanwhile: the way is free.
        raise StorageUnavailableError

    async def lock_within(self, connection: AsyncConnection, lead_id: UUID, *, key_share: bool = False) -> SealedLead:
        """The lead that an id leads to, locked in a transaction of the caller's. Raises LeadNotFoundError.

        With `key_share` others may still refer to it.
        """
        locked = select(LEAD).where(is_or_leads_to(lead_id)).with_for_update(key_share=key_share)
        row = (await connection.execute(locked)).one_or_none()
        if row is None:
            raise LeadNotFoundError
        return self.lead_of(row)

    async def update_within(
        self, connection: AsyncConnection, current: SealedLead, columns: Mapping[str, Any]
    ) -> SealedLead:
        """Give a locked lead new values in a transaction of the caller's."""
        values = {**columns, "version": current.version + 1, "updated_at": func.clock_timestamp()}
        changed = update(LEAD).where(LEAD.c.id == current.id).values(values).returning(LEAD)
        return self.lead_of((await connection.execute(changed)).one())

    async def _met_by(self, lead_id: UUID, refused: Correction) -> Met | None:
        async def work(connection: AsyncConnection) -> Met | None:
            return await submissions.look_up(connection, refused.phones, refused.nids, other_than=lead_id)

        return await self._database.write(work)

    async def status_changes(self, lead_id: UUID) -> list[StatusChange]:
        """A lead's status history, oldest first."""
        table = models.StatusChange
        return [
            StatusChange(
                from_status=LeadStatus(row.from_status),
                to_status=LeadStatus(row.to_status),
                actor=row.actor,
                reason=row.reason,
                changed_at=row.changed_at,
                version=row.version,
            )
            for row in await self._rows(select(table.__table__).where(table.lead_id == lead_id).order_by(table.version))
        ]

    async def assignments(self, lead_id: UUID) -> list[AssignmentChange]:
        """A lead's assignment history, oldest first."""
        table = models.AssignmentChange
        return [
            AssignmentChange(
                from_assignee=row.from_assignee,
                to_assignee=row.to_assignee,
                actor=row.actor,
                reason=row.reason,
                changed_at=row.changed_at,
                version=row.version,
            )
            for row in await self._rows(select(table.__table__).where(table.lead_id == lead_id).order_by(table.version))
        ]

    async def resubmissions(self, lead_id: UUID) -> list[SealedResubmission]:
        """The resubmissions that are kept with a lead, newest first."""
        table = models.Resubmission
        newest_first = (table.submitted_at.desc(), table.submission_id.desc())
        return [
            SealedResubmission(
                submission_id=row.submission_id,
                fields=fields_of(row),
                submitted_at=row.submitted_at,
                actor=row.actor,
                verified=row.verified,
            )
            for row in await self._rows(select(table.__table__).where(table.lead_id == lead_id).order_by(*newest_first))
        ]

    async def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return rows

        return await self._database.read(work)

    def lead_of(self, row: Any) -> SealedLead:
        """The lead of a row of its table."""
        return lead_of_row(row)
