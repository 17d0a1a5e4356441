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

from sqlalchemy import Row, case, exists, func, insert, literal, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ConflictNotFoundError, ConflictResolvedError
from service.lead import ConflictResolution, SealedConflict, SealedLead, SealedSubmission
from service.storage import models
from service.storage.database.database import Database
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.erasing import NO_INDEXES, drop_within, wait_for_erasures
from service.storage.leads.history import CREATED, DECIDED
from service.storage.leads.parameters import Correction
from service.storage.leads.queries import (
    columns_of,
    fields_of,
    index_columns,
    lead_of_row,
    link_conversation,
    lock_lead,
    write_anew_if_taken,
)
from service.storage.leads.repository import correct_locked
from service.storage.leads.submissions import find_duplicates

_LEAD = models.lead
_CONFLICT = models.lead_conflict


@dataclass(frozen=True, slots=True)
class KeepFirst:
    """The id of the submission leads to the lead `lead_id`, which stays as it is, and so does its conversation."""

    lead_id: UUID
    submission: SealedSubmission


@dataclass(frozen=True, slots=True)
class TakeNew:
    """The same, and the lead takes the submission's values: `correction` of the lead, when it is shown that."""

    lead_id: UUID
    submission: SealedSubmission
    correction: Callable[[SealedLead], Correction]


@dataclass(frozen=True, slots=True)
class OwnLead:
    """The submission becomes a lead of its own."""

    submission: SealedSubmission


@dataclass(frozen=True, slots=True)
class Drop:
    """The submission goes under the tombstone of `erased_lead_id`, the lead that was kept in its place and erased."""

    erased_lead_id: UUID


Decision = KeepFirst | TakeNew | OwnLead | Drop


class ConflictRepository:
    """The conflicts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_conflicts(
        self, *, resolved_too: bool, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[tuple[SealedConflict, list[SealedLead]]]:
        """At most `limit` conflicts behind the place `after`, with the leads that each one matched; oldest first."""
        query = select(_CONFLICT).where(_CONFLICT.c.repeats.is_(None))
        query = query.order_by(_CONFLICT.c.accepted_at, _CONFLICT.c.id).limit(limit)
        if not resolved_too:
            query = query.where(_CONFLICT.c.resolution.is_(None))
        if after is not None:
            query = query.where(tuple_(_CONFLICT.c.accepted_at, _CONFLICT.c.id) > tuple_(*after))

        async def work(connection: AsyncConnection) -> list[tuple[SealedConflict, list[SealedLead]]]:
            conflicts = [conflict_of(row) for row in await connection.execute(query)]
            ids = {lead_id for conflict in conflicts for lead_id in conflict.lead_ids}
            rows = await connection.execute(select(_LEAD).where(_LEAD.c.id.in_(ids)))
            leads = {row.id: lead_of_row(row) for row in rows}
            return [(each, [leads[lead_id] for lead_id in each.lead_ids if lead_id in leads]) for each in conflicts]

        return await self._database.read(work)

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
            # Locked by an update of nothing: it waits for a rival, and the answer waits for the standby.
            repeated = select(_CONFLICT.c.repeats).where(_CONFLICT.c.id == conflict_id).scalar_subquery()
            first = func.coalesce(repeated, conflict_id)
            lock = update(_CONFLICT).where(_CONFLICT.c.id == first).values(id=_CONFLICT.c.id).returning(_CONFLICT)
            row = (await connection.execute(lock)).one_or_none()
            if row is None and resolution is ConflictResolution.KEEP_FIRST and await _dropped(connection, conflict_id):
                return None
            if row is None:
                raise ConflictNotFoundError
            conflict = conflict_of(row)
            if conflict.resolution is not None:
                if conflict.resolution is not resolution:
                    raise ConflictResolvedError(conflict.resolution.value)
                return await lock_lead(connection, conflict.id)
            decision = decide(conflict)
            if isinstance(decision, Drop):
                erased_with = decision.erased_lead_id
                await drop_within(connection, conflict.id, actor=actor, reason=reason, erased_with=erased_with)
                return None
            lead = await self._apply(connection, conflict, decision, again=again)
            if isinstance(lead, DuplicateMatch):
                return lead
            record = {"resolution": resolution.value, "resolved_by": actor, "resolved_at": func.now(), "reason": reason}
            together = or_(_CONFLICT.c.id == conflict.id, _CONFLICT.c.repeats == conflict.id)
            await connection.execute(update(_CONFLICT).where(together).values(record))
            repeats = select(_CONFLICT.c.id, literal(lead.id), _CONFLICT.c.created_by)
            repeats = repeats.where(_CONFLICT.c.repeats == conflict.id)
            await connection.execute(insert(models.lead_alias).from_select(["id", "lead_id", "created_by"], repeats))
            about = {"ids": [lead.id, *conflict.lead_ids], "actor": actor, "reason": reason}
            await connection.execute(DECIDED, about)
            return lead

        return await write_anew_if_taken(self._database, work)

    async def _apply(
        self,
        connection: AsyncConnection,
        conflict: SealedConflict,
        decision: KeepFirst | TakeNew | OwnLead,
        *,
        again: bool,
    ) -> SealedLead | DuplicateMatch:
        if isinstance(decision, OwnLead):
            return await self._insert(connection, conflict, decision.submission)
        lead = await lock_lead(connection, decision.lead_id)
        if isinstance(decision, TakeNew):
            taken = await correct_locked(connection, lead, decision.correction(lead), again=again)
            if isinstance(taken, DuplicateMatch):
                return taken
            lead = taken
        alias = {"id": conflict.id, "lead_id": lead.id, "created_by": conflict.created_by}
        await connection.execute(insert(models.lead_alias).values(alias))
        await link_conversation(connection, decision.submission, lead.id)
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
            "phone_shared": held is not None and held.phone is not None,
            "nid_shared": held is not None and held.nid is not None,
            "request_id": select(case((requested, None), else_=submission.request_id)).scalar_subquery(),
        }
        lead = lead_of_row((await connection.execute(insert(_LEAD).values(values).returning(_LEAD))).one())
        await connection.execute(CREATED, {"id": lead.id})
        await link_conversation(connection, submission, submission.id)
        return lead


def conflict_of(row: Row[Any]) -> SealedConflict:
    """The conflict of a row of the table."""
    return SealedConflict(
        **{name: getattr(row, name) for name in _CLEAR},
        fields=fields_of(row),
        indexes=NO_INDEXES,
        resolution=ConflictResolution(row.resolution) if row.resolution is not None else None,
    )


async def _dropped(connection: AsyncConnection, conflict_id: UUID) -> bool:
    """Whether an id went under the tombstone of another lead. Locked, so that the answer waits for the standby."""
    stone = models.tombstone
    found = select(stone.c.id).where(stone.c.id == conflict_id, stone.c.lead_id != stone.c.id)
    return (await connection.execute(found.with_for_update(key_share=True))).one_or_none() is not None


_CLEAR = [each.name for each in fields(SealedConflict) if each.name in _CONFLICT.columns and each.name != "resolution"]
