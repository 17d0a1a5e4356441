"""Which leads are older than a policy, and their erasure in small transactions.

Promise: a lead is erased only if it is too old, and has the status, at the moment at which it is erased. What was begun
and broken off is gone on with by doing the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import LeadStatus
from service.storage.database import Database
from service.storage.erasing import erase_within, wait_for_drains
from service.storage.requests import Position

# `created_at` says nothing more than `updated_at`, but it is what the index of a status is ordered by.
# A person who came back, or about whom a decision is pending, is not forgotten.
_DUE = """
    lead.status = :status AND lead.updated_at < :before AND lead.created_at < :before
    AND NOT EXISTS (SELECT FROM resubmission kept WHERE kept.lead_id = lead.id AND kept.submitted_at >= :before)
    AND NOT EXISTS (SELECT FROM lead_conflict c WHERE c.resolution IS NULL
        AND (c.phone_lead_id = lead.id OR c.nid_lead_id = lead.id OR c.request_lead_id = lead.id))
"""
_COUNT = text(f"SELECT count(*) FROM lead WHERE {_DUE}")  # noqa: S608 # our own text
_NEXT = text(f"""
    SELECT id, created_at FROM lead
    WHERE {_DUE} AND (created_at, id) > (CAST(:created_at AS timestamptz), CAST(:id AS uuid))
    ORDER BY created_at, id LIMIT :limit
""")  # noqa: S608 # our own text
_LOCK = text("SELECT FROM lead WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")
_STILL = text(f"SELECT id FROM lead WHERE id = ANY(CAST(:ids AS uuid[])) AND {_DUE} ORDER BY id")  # noqa: S608 # our own text


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """Leads of a status that were last changed before a moment."""

    status: LeadStatus
    before: datetime

    @property
    def parameters(self) -> dict[str, Any]:
        """For the statements."""
        return {"status": self.status.value, "before": self.before}


async def count_due(database: Database, rule: RetentionRule) -> int:
    """How many leads a rule would erase now."""
    ((due,),) = await database.rows(_COUNT, rule.parameters)
    return int(due)


async def next_due(database: Database, rule: RetentionRule, after: Position | None, limit: int) -> list[Position]:
    """The first leads behind a position that a rule would erase."""
    position = {"created_at": "-infinity", "id": UUID(int=0)}
    if after is not None:
        position = {"created_at": after.created_at.isoformat(), "id": after.id}
    found = await database.rows(_NEXT, {**rule.parameters, **position, "limit": limit})
    return [Position(row.created_at, row.id) for row in found]


async def erase_due(
    database: Database, rule: RetentionRule, ids: Sequence[UUID], *, actor: str, reason: str | None
) -> int:
    """Erase those of the leads that the rule still selects, in one transaction; how many those were."""

    async def work(connection: AsyncConnection) -> int:
        await wait_for_drains(connection)
        # Locked first, looked at afterwards: whoever held one has committed what counts for the rule.
        await connection.execute(_LOCK, {"ids": list(ids)})
        due = (await connection.execute(_STILL, {**rule.parameters, "ids": list(ids)})).scalars().all()
        for lead_id in due:
            # What came back to a lead that is due is as old as the lead, whoever sent it.
            await erase_within(connection, lead_id, actor=actor, reason=reason, keeps_others=False)
        return len(due)

    return await database.write(work)
