"""Conflicts: acknowledged submissions that matched a lead when they were drained, and what an operator decides.

A decision is taken once. It leaves the conflict's row as the record of who decided what, and gives the acknowledged id
a lead: the one that it matched, or one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import case, exists, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ConflictNotFoundError, ConflictResolvedError
from service.lead import ConflictResolution, SealedConflict, SealedLead, SealedSubmission
from service.storage import models
from service.storage.database.database import Database, Statement, page_of
from service.storage.database.failures import NotStoredError
from service.storage.leads.changes import CREATED, DECIDED, Correction, correct_locked, lock_lead, write_anew_if_taken
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.erasing import NO_INDEXES, KnownTombstone, drop_within, wait_for_erasures
from service.storage.leads.look_up import find_duplicates
from service.storage.leads.queries import (
    columns_of,
    fields_of,
    index_columns,
    lead_of_row,
)

_LEAD = models.lead
_CONFLICT = models.lead_conflict


# By an update of nothing: it waits for a rival, and the answer waits for the standby.
_LOCK = Statement("""
    UPDATE lead_conflict SET id = id
    WHERE id = coalesce((SELECT repeats FROM lead_conflict WHERE id = :id), CAST(:id AS uuid)) RETURNING *
""")
# Whether it went under the tombstone of another lead; locked, so that the answer waits for the standby.
_DROPPED = Statement("SELECT id FROM tombstone WHERE id = :id AND lead_id <> id FOR NO KEY UPDATE")
_RESOLVE = Statement("""
    WITH resolved AS (
        UPDATE lead_conflict SET resolution = CAST(:resolution AS text), resolved_by = CAST(:actor AS text),
            resolved_at = now(), reason = CAST(:reason AS text)
        WHERE id = :id OR repeats = :id RETURNING id, repeats, created_by
    ), aliased AS (
        INSERT INTO lead_alias (id, lead_id, created_by)
        SELECT id, CAST(:lead_id AS uuid), created_by FROM resolved WHERE repeats IS NOT NULL RETURNING id
    )
    SELECT count(*) FILTER (WHERE repeats IS NULL) = 1
        AND count(*) FILTER (WHERE repeats IS NOT NULL) = (SELECT count(*) FROM aliased) AS is_whole FROM resolved
""")
_LINK_CONVERSATION = text("""
    INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)
    SELECT :lead_id, :submission_id, :conversation_id, :conversation_index
    WHERE NOT EXISTS (SELECT FROM lead_conversation WHERE lead_id = :lead_id AND conversation_index = ANY(:indexes))
""")


@dataclass(frozen=True, slots=True)
class JoinLead:
    """The id of the submission leads to the lead `lead_id`, and so does its conversation."""

    lead_id: UUID
    submission: SealedSubmission
    correction: Callable[[SealedLead], Correction] | None = None
    """Makes the correction of the lead, which takes the submission's values; None: it stays as it is."""


@dataclass(frozen=True, slots=True)
class OwnLead:
    """The submission becomes a lead of its own."""

    submission: SealedSubmission


@dataclass(frozen=True, slots=True)
class Drop:
    """The submission goes under the tombstone of `erased_lead_id`, the lead that was kept in its place and erased."""

    erased_lead_id: UUID


Decision = JoinLead | OwnLead | Drop


@dataclass(frozen=True, slots=True)
class ConflictRepository:
    """The conflicts of one database."""

    database: Database

    async def list_conflicts(
        self, *, resolved_too: bool, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[tuple[SealedConflict, list[SealedLead]]]:
        """At most `limit` conflicts behind the place `after`, with the leads that each one matched; oldest first."""
        listed = select(_CONFLICT).where(_CONFLICT.c.repeats.is_(None))
        if not resolved_too:
            listed = listed.where(_CONFLICT.c.resolution.is_(None))
        query = page_of(listed, (_CONFLICT.c.accepted_at, _CONFLICT.c.id), after, limit=limit)

        async def work(connection: AsyncConnection) -> list[tuple[SealedConflict, list[SealedLead]]]:
            conflicts = [conflict_of(row) for row in await connection.execute(query)]
            ids = {lead_id for conflict in conflicts for lead_id in conflict.lead_ids}
            rows = await connection.execute(select(_LEAD).where(_LEAD.c.id.in_(ids)))
            leads = {row.id: lead_of_row(row) for row in rows}
            return [(each, [leads[lead_id] for lead_id in each.lead_ids if lead_id in leads]) for each in conflicts]

        return await self.database.read(work)

    async def resolve(
        self,
        conflict_id: UUID,
        resolution: ConflictResolution,
        decide: Callable[[SealedConflict], Decision],
        *,
        actor: str,
        reason: str | None,
    ) -> SealedLead | DuplicateMatch | None:
        """Apply the decision that `decide` makes of `resolution`; the lead that the id stands for now.

        None: the submission was dropped. A match: nothing was done, because new values belong to a third lead. The same
        decision again changes nothing. `decide` may be asked again, and what it raises is passed on. Raises
        ConflictNotFoundError, ConflictResolvedError.
        """

        async def work(connection: AsyncConnection, again: bool) -> SealedLead | DuplicateMatch | None:
            # An erasure may take this conflict without locking it, as another submission of its person.
            await wait_for_erasures(connection)
            about: dict[str, Any] = {"id": conflict_id, "actor": actor, "reason": reason}
            locked = await _LOCK.rows(connection, about)
            if not locked and resolution is ConflictResolution.KEEP_FIRST and await _DROPPED.rows(connection, about):
                return None
            if not locked:
                raise ConflictNotFoundError
            conflict = conflict_of(locked[0])
            if conflict.resolution is not None:
                if conflict.resolution is not resolution:
                    raise ConflictResolvedError(conflict.resolution.value)
                return await lock_lead(connection, conflict.id)
            decision = decide(conflict)
            if isinstance(decision, Drop):
                stone = KnownTombstone(lead_id=decision.erased_lead_id, erased_by=actor, reason=reason)
                await drop_within(connection, conflict.id, stone)
                return None
            lead = await self._apply(connection, conflict, decision, again=again)
            if isinstance(lead, DuplicateMatch):
                return lead
            about |= {"id": conflict.id, "resolution": resolution.value, "lead_id": lead.id}
            ((is_whole,),) = await _RESOLVE.rows(connection, about)
            if not is_whole:
                raise NotStoredError
            await connection.execute(DECIDED, about | {"ids": [lead.id, *conflict.lead_ids]})
            return lead

        return await write_anew_if_taken(self.database, work)

    async def _apply(
        self,
        connection: AsyncConnection,
        conflict: SealedConflict,
        decision: JoinLead | OwnLead,
        *,
        again: bool,
    ) -> SealedLead | DuplicateMatch:
        if isinstance(decision, OwnLead):
            return await self._insert(connection, conflict, decision.submission)
        lead = await lock_lead(connection, decision.lead_id)
        if decision.correction is not None:
            taken = await correct_locked(connection, lead, decision.correction(lead), again=again)
            if isinstance(taken, DuplicateMatch):
                return taken
            lead = taken
        alias = {"id": conflict.id, "lead_id": lead.id, "created_by": conflict.created_by}
        given = insert(models.lead_alias).values(alias).returning(models.lead_alias.c.id)
        if (await connection.execute(given)).one_or_none() is None:
            raise NotStoredError
        await _link_conversation(connection, decision.submission, lead.id)
        return lead

    async def _insert(
        self, connection: AsyncConnection, conflict: SealedConflict, submission: SealedSubmission
    ) -> SealedLead:
        # Locked until the commit: a lead that gives its phone or nid up meanwhile would not know of this one.
        indexes = submission.indexes
        held = await find_duplicates(connection, indexes.phones, indexes.nids, other_than=submission.id)
        requested = exists().where(
            _LEAD.c.created_by == submission.created_by, _LEAD.c.request_id == submission.request_id
        )
        values: dict[str, Any] = columns_of(submission) | index_columns(submission.indexes)
        values |= {
            "id": submission.id,
            "created_by": submission.created_by,
            "created_at": conflict.accepted_at,
            "updated_at": func.greatest(conflict.accepted_at, func.now()),
            "phone_shared": held is not None and held.phone is not None,
            "nid_shared": held is not None and held.nid is not None,
            "request_id": select(case((requested, None), else_=submission.request_id)).scalar_subquery(),
        }
        inserted = (await connection.execute(insert(_LEAD).values(values).returning(_LEAD))).one_or_none()
        if inserted is None:
            raise NotStoredError
        lead = lead_of_row(inserted)
        await connection.execute(CREATED, {"id": lead.id})
        await _link_conversation(connection, submission, submission.id)
        return lead


async def _link_conversation(connection: AsyncConnection, submission: SealedSubmission, lead_id: UUID) -> None:
    """Link a submission's conversation, if it has one, to a lead, which is locked."""
    if indexes := submission.indexes.conversation:
        link = {
            "lead_id": lead_id,
            "submission_id": submission.id,
            "conversation_id": submission.fields["conversation_id"],
            "conversation_index": indexes[0],
            "indexes": list(indexes),
        }
        await connection.execute(_LINK_CONVERSATION, link)


def conflict_of(row: Any) -> SealedConflict:
    """The conflict of a row of the table."""
    return SealedConflict(
        **{name: getattr(row, name) for name in _CLEAR},
        fields=fields_of(row),
        indexes=NO_INDEXES,
        resolution=ConflictResolution(row.resolution) if row.resolution is not None else None,
    )


_CLEAR = [each.name for each in fields(SealedConflict) if each.name in _CONFLICT.columns and each.name != "resolution"]
