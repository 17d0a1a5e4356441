"""A lead's history: one event for each change, added by the statement or in the transaction that makes the change.

Promises: an event exists if and only if its change does, and holds no value of a customer field. Whoever adds one
holds a lock on the lead's row, or the one that keeps erasures out: of an erased lead's events only the last one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, func, literal, null, select, text, tuple_
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
    """How far a history was read: the last access, and the last event."""

    at: datetime
    access_id: int
    version: int
    event_id: int


_LARGEST = 2**63 - 1
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
BEGINNING, END = Place(_FIRST, 0, 0, 0), Place(_LAST, _LARGEST, _LARGEST, _LARGEST)
"""The places before and behind everything."""


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

        An access comes behind the events that had happened by then, and before those that a version puts behind one
        that had not: the moments of events need not be in the order of versions, because a submission keeps its own
        while it waits in a spool. So the order is total, events that are added later are behind all others, and newest
        first is its reverse.
        """
        place = after or (END if newest_first else BEGINNING)

        async def behind(listed: Select[Any], keys: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            row, last = tuple_(*keys), tuple_(*values)
            query = listed.where(row < last if newest_first else row > last)
            return await self._database.rows(
                query.order_by(*(key.desc() if newest_first else key for key in keys)).limit(limit)
            )

        found = [*await behind(_events(lead_id), (_EVENT.version, _EVENT.id), place[2:])]
        if with_accesses:
            found += await behind(_accesses(lead_id), (_ACCESS.recorded_at, _ACCESS.id), place[:2])
        found.sort(key=lambda row: (row.placed_at, row.is_access, row.version, row.id), reverse=newest_first)
        page = []
        for row in found[:limit]:
            if row.is_access:
                place = place._replace(at=row.at, access_id=row.id)
            else:
                place = place._replace(version=row.version, event_id=row.id)
            page.append((_event(row), place))
        return page


def _events(lead_id: UUID) -> Select[Any]:
    columns = [_EVENT[name] for name in (*_DETAILS, *_CHANGES)]
    placed_at = func.coalesce(_EVENT.placed_at, _EVENT.at).label("placed_at")
    return select(*columns, placed_at, literal(0).label("is_access")).where(_EVENT.lead_id == lead_id)


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
        **dict.fromkeys(_CHANGES, null()),
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
