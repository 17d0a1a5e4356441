"""One step of a lead, of its status or its assignee, with its entry in the history: one statement."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedLead
from service.storage.database import Statement
from service.storage.lead_queries import COLUMNS, lead_of
from service.storage.requests import AssignmentStep, StatusStep, Step


class LeadSteps:
    """How steps are taken."""

    def __init__(self) -> None:
        self._status = _statement("status", "status_change")
        self._assignee = _statement("assignee", "assignment_change")

    async def take(self, seen: SealedLead, step: Step, connection: AsyncConnection) -> SealedLead | None:
        """The lead after the step; None, and nothing is done, if it is no longer as it was seen.

        The version alone does not tell: after a failover another step may have been numbered like one that was lost.
        """
        given: dict[str, Any] = {"id": seen.id, "version": seen.version, "actor": step.actor, "reason": step.reason}
        match step:
            case StatusStep():
                statement = self._status
                given |= {"before": seen.status.value, "after": step.to_status.value}
            case AssignmentStep():
                statement = self._assignee
                given |= {"before": seen.assignee, "after": step.to_assignee}
        moved = await statement.rows(connection, given)
        return lead_of(moved[0]) if moved else None


def _statement(column: str, history: str) -> Statement:
    columns = ", ".join(each.name for each in COLUMNS)
    return Statement(
        text(f"""
        WITH moved AS (
            UPDATE lead SET {column} = CAST(:after AS text), version = version + 1, updated_at = clock_timestamp()
            WHERE id = :id AND version = :version AND {column} IS NOT DISTINCT FROM CAST(:before AS text)
            RETURNING {columns}
        ), noted AS (
            INSERT INTO {history} (lead_id, version, actor, reason, from_{column}, to_{column})
            SELECT id, version, CAST(:actor AS text), CAST(:reason AS text), CAST(:before AS text), CAST(:after AS text)
            FROM moved
        )
        SELECT {columns} FROM moved
    """)  # noqa: S608 # our own names
    )
