"""A lead's history: one event for each change, added by the statement or in the transaction that makes the change.

Promises: an event exists if and only if its change does, and holds no value of a customer field. Whoever adds one
holds a lock on the lead's row, or the one that keeps erasures out: of an erased lead's events only the last one stays.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    Select,
    String,
    cast,
    func,
    literal,
    null,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import LeadEvent, LeadEventType, LeadStatus
from service.storage import models
from service.storage.database.database import Database

_EVENT, _ACCESS = models.lead_event.c, models.access_record.c
_DETAILS = ("version", "id", "lead_id", "type", "actor", "reason", "fields", "at")
_CHANGES = ("from_status", "to_status", "from_assignee", "to_assignee")


CREATED = text(f"""
    INSERT INTO lead_event (type, lead_id, version, actor, at)
    SELECT {LeadEventType.CREATED:d}, id, version, created_by, created_at FROM lead WHERE id = :id
""")  # noqa: S608 # our own number
"""Adds the event of the creation of a lead."""

DECIDED = text(f"""
    INSERT INTO lead_event (type, lead_id, version, actor, reason)
    SELECT {LeadEventType.CONFLICT_DECIDED:d}, id, version, :actor, :reason FROM lead WHERE id = ANY(:ids) ORDER BY id
""")  # noqa: S608 # our own number
"""Adds the event of a decided conflict to the leads that it was about."""


_CREATORS_ALONE = text(f"""
    SELECT created_at > now() - CAST(:within AS interval) AND version = 1 + (
        SELECT count(DISTINCT version) FROM lead_event
        WHERE lead_id = lead.id AND version > 1 AND actor = lead.created_by
            AND type IN ({LeadEventType.CORRECTED:d}, {LeadEventType.ASSIGNED:d})
    ) FROM lead WHERE id = :id
""")  # noqa: S608 # our own numbers


async def is_creators_alone(connection: AsyncConnection, lead_id: UUID, *, within: timedelta) -> bool:
    """Whether a lead was created so lately, and each of its changes was made by who created it.

    A change from before there were events counts as somebody else's.
    """
    found = await connection.execute(_CREATORS_ALONE, {"id": lead_id, "within": within})
    return bool(found.scalar_one())


class Place(NamedTuple):
    """The place of an event in a history; see `LeadHistory.page`."""

    at: datetime
    """The latest moment of it and all events before it; that of an access is its own."""
    is_access: int
    version: int
    id: int


class LeadHistory:
    """The histories of the leads of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_type(self, lead_id: UUID, event_type: LeadEventType) -> list[LeadEvent]:
        """All events of one type of a lead, oldest first."""
        query = _events(lead_id).where(_EVENT.type == event_type.value).order_by(_EVENT.version, _EVENT.id)
        return [_event(row) for row in await self._database.rows(query)]

    async def page(
        self, lead_id: UUID, *, after: Place | None, limit: int, newest_first: bool, with_accesses: bool
    ) -> list[tuple[LeadEvent, Place]]:
        """At most `limit` events of a lead behind a place, in the order of its versions.

        An access comes behind the events that had happened by then, and behind those that a version puts before one of
        them: their moments need not be in the order of versions, because a submission keeps its own while it waits in a
        spool. So the order is total, events that are added later are behind all others, and newest first is its
        reverse.
        """
        order = ("placed_at", "is_access", "version", "id") if with_accesses else ("version", "id")

        def behind(listed: Select[Any]) -> Select[Any]:
            rows = listed.subquery()
            columns = [rows.c[name] for name in order]
            query = select(rows).order_by(*(column.desc() if newest_first else column for column in columns))
            if after is not None:
                place = tuple_(*columns), tuple_(*after[-len(order) :])
                query = query.where(place[0] < place[1] if newest_first else place[0] > place[1])
            return query.limit(limit)

        if not with_accesses:
            query = behind(_events(lead_id))
        else:
            latest = func.max(_EVENT.at).over(order_by=(_EVENT.version, _EVENT.id))
            query = behind(select(union_all(behind(_events(lead_id, latest)), behind(_accesses(lead_id))).subquery()))
        return [
            (_event(row), Place(row.placed_at, row.is_access, row.version, row.id))
            for row in await self._database.rows(query)
        ]


def _events(lead_id: UUID, placed_at: Any = _EVENT.at) -> Select[Any]:
    columns = [_EVENT[name] for name in (*_DETAILS, *_CHANGES)]
    return select(*columns, placed_at.label("placed_at"), literal(0).label("is_access")).where(
        _EVENT.lead_id == lead_id
    )


def _accesses(lead_id: UUID) -> Select[Any]:
    columns = {
        "version": literal(0),
        "id": _ACCESS.id,
        "lead_id": _ACCESS.lead_id,
        "type": literal(LeadEventType.REVEALED.value),
        "actor": _ACCESS.subject,
        "reason": _ACCESS.reason,
        "fields": _ACCESS.fields,
        "at": _ACCESS.recorded_at,
        **dict.fromkeys(_CHANGES, cast(null(), String)),
        "placed_at": _ACCESS.recorded_at,
        "is_access": literal(1),
    }
    return select(*(column.label(name) for name, column in columns.items())).where(_ACCESS.lead_id == lead_id)


def _event(row: Any) -> LeadEvent:
    return LeadEvent(
        id=row.id,
        type=LeadEventType(row.type),
        lead_id=row.lead_id,
        version=row.version,
        fields=tuple(row.fields or ()),
        from_status=LeadStatus(row.from_status) if row.from_status else None,
        to_status=LeadStatus(row.to_status) if row.to_status else None,
        from_assignee=row.from_assignee,
        to_assignee=row.to_assignee,
        actor=row.actor,
        reason=row.reason,
        at=row.at,
    )
