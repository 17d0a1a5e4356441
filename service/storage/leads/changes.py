"""Changes of a lead, and its history: one event for each, added by the statement or in the transaction of the change.

Promises: an event exists if and only if its change does, and holds no value of a customer field. Whoever adds one
holds a lock on the lead's row, or the one that keeps erasures out: of an erased lead's events only the last one stays.

A step is one statement, which does nothing when the lead is not as it was seen: an optimistic lock. A correction is
made of a locked lead; it is retried when the new phone or nid turns out to be taken, with the lead that has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Select, func, literal, null, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import LeadNotFoundError, StorageUnavailableError
from service.lead import CUSTOMER_FIELDS, LeadEvent, LeadEventType, LeadStatus, SealedLead
from service.storage import models
from service.storage.database.database import DIALECT, Database, Statement, page_of
from service.storage.database.failures import NotStoredError, violated_constraint
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.look_up import ATTEMPTS, find_duplicates
from service.storage.leads.queries import COLUMN_NAMES, LEAD, lead_of

T = TypeVar("T")

BLIND_INDEXES = ("uq_lead_phone_index", "uq_lead_nid_index", "uq_lead_phone_index_2", "uq_lead_nid_index_2")
"""The unique indexes that decide duplicates."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A change of status or assignee, and why."""

    column: Literal["status", "assignee"]
    to: str | None
    actor: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """New values of clear columns, new tokens of sealed ones (None: removed), new blind indexes; and why."""

    columns: Mapping[str, Any] = field(repr=False)
    actor: str
    reason: str | None
    also_named: Collection[str] = ()
    """Fields that have these values already, and that the history names all the same."""

    def indexes(self, name: Literal["phone", "nid"]) -> list[bytes]:
        """The new blind indexes of the phone or nid; none when it stays."""
        columns = (f"{name}_index", f"{name}_index_2")
        return [index for column in columns if (index := self.columns.get(column)) is not None]


class BlindIndexTakenError(Exception):
    """A lead with the phone or the nid was stored in the meantime."""


def _lock_statement(*, key_share: bool) -> Statement:
    # An array, never a join: PostgreSQL runs a join again for a row whose change was waited for, and where it makes the
    # ids distinct first it then misses the row.
    sharing = "" if key_share else "UNION ALL SELECT leads_sharing_with(wanted.id) FROM wanted"
    strength = "NO KEY UPDATE" if key_share else "UPDATE"
    return Statement(f"""
        WITH wanted AS MATERIALIZED (
            SELECT coalesce((SELECT lead_id FROM lead_alias WHERE id = CAST(:id AS uuid)), CAST(:id AS uuid)) AS id
        )
        SELECT {COLUMN_NAMES}, id = (SELECT id FROM wanted) AS is_wanted FROM lead
        WHERE id = ANY(ARRAY(SELECT id FROM wanted {sharing})) ORDER BY id FOR {strength}
    """)  # noqa: S608 # our own names


_LOCK, _LOCK_WITH_SHARING = _lock_statement(key_share=True), _lock_statement(key_share=False)


async def lock_lead(connection: AsyncConnection, lead_id: UUID, *, key_share: bool = False) -> SealedLead:
    """The lead that an id leads to, locked. With `key_share` others may still refer to it. Raises LeadNotFoundError.

    Without it, the leads that would take over its phone or nid are locked too: all in the order of ids.
    """
    for row in await (_LOCK if key_share else _LOCK_WITH_SHARING).rows(connection, {"id": lead_id}):
        *values, is_wanted = row
        if is_wanted:
            return lead_of(values)
    raise LeadNotFoundError


def _change_statement(new: str, condition: str, event_type: LeadEventType, event: Mapping[str, str]) -> Statement:
    """A statement that gives one lead `new` values, adds the event of that, and returns COLUMNS of the lead.

    `event` holds what the event has besides `actor` and `reason`, in SQL by column.
    """
    return Statement(f"""
        WITH changed AS (
            UPDATE lead SET {new}, version = version + 1, updated_at = greatest(clock_timestamp(), created_at)
            WHERE {condition}
            RETURNING {COLUMN_NAMES}
        ), noted AS (
            INSERT INTO lead_event (type, lead_id, version, actor, reason, {", ".join(event)})
            SELECT {event_type:d}, id, version, CAST(:actor AS text), CAST(:reason AS text), {", ".join(event.values())}
            FROM changed
        )
        SELECT {COLUMN_NAMES} FROM changed
    """)  # noqa: S608 # our own names


def _step_statement(column: str, event_type: LeadEventType) -> Statement:
    before, after = "CAST(:before AS text)", "CAST(:after AS text)"
    return _change_statement(
        f"{column} = {after}",
        f"id = :id AND version = :version AND {column} IS NOT DISTINCT FROM {before}",
        event_type,
        {f"from_{column}": before, f"to_{column}": after},
    )


_STEPS = {
    "status": _step_statement("status", LeadEventType.STATUS_CHANGED),
    "assignee": _step_statement("assignee", LeadEventType.ASSIGNED),
}


async def take_step(seen: SealedLead, step: Step, connection: AsyncConnection) -> SealedLead | None:
    """The lead after the step, with its event in the history; None, and nothing is done, if it is not as it was seen.

    The version alone does not show it: after a failover another step may have been numbered like one that was lost.
    """
    about = {"id": seen.id, "version": seen.version, "actor": step.actor, "reason": step.reason}
    values = {"before": getattr(seen, step.column), "after": step.to}
    moved = await _STEPS[step.column].rows(connection, about | values)
    return lead_of(moved[0]) if moved else None


@cache  # one for each set of columns that are corrected together
def _correction_statement(columns: tuple[str, ...]) -> Statement:
    new = ", ".join(f"{name} = CAST(:{name} AS {LEAD.c[name].type.compile(DIALECT)})" for name in columns)
    return _change_statement(new, "id = :id", LeadEventType.CORRECTED, {"fields": "CAST(:fields AS text[])"})


async def correct_locked(
    connection: AsyncConnection, current: SealedLead, correction: Correction, *, again: bool
) -> SealedLead | DuplicateMatch:
    """A locked lead with its new values, whose names its history gets; the leads that have the new phone or nid if any.

    Only within `write_anew_if_taken`; `again`: the phone or nid was taken at the first attempt.
    """
    if again:
        phones, nids = correction.indexes("phone"), correction.indexes("nid")
        if match := await find_duplicates(connection, phones, nids, other_than=current.id):
            return match
    about = {"id": current.id, "actor": correction.actor, "reason": correction.reason}
    fields = [name for name in CUSTOMER_FIELDS if name in correction.columns or name in correction.also_named]
    statement = _correction_statement(tuple(sorted(correction.columns)))
    corrected = await statement.rows(connection, {**about, "fields": fields, **correction.columns})
    if not corrected:
        raise NotStoredError
    return lead_of(corrected[0])


async def write_anew_if_taken(database: Database, work: Callable[[AsyncConnection, bool], Awaitable[T]]) -> T:
    """Run a transaction, and again with `again` if the new phone or nid was taken meanwhile; its result.

    Raises StorageUnavailableError when no duplicate is found and the phone or nid is taken all the same.
    """

    async def attempt(connection: AsyncConnection, *, again: bool) -> T:
        try:
            return await work(connection, again)
        except Exception as error:
            if violated_constraint(error) in BLIND_INDEXES:
                raise BlindIndexTakenError from None
            raise

    for number in range(ATTEMPTS):
        try:
            return await database.write(partial(attempt, again=number > 0))
        except BlindIndexTakenError:
            continue
    raise StorageUnavailableError


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


_HAD_OTHER_PHONES = Statement(f"""
    SELECT DISTINCT lead_id FROM lead_event
    WHERE lead_id = ANY(CAST(:ids AS uuid[])) AND type = {LeadEventType.CORRECTED:d} AND 'phone' = ANY(fields)
""")  # noqa: S608 # our own number


@dataclass(frozen=True, slots=True)
class LeadHistory:
    """The histories of the leads of one database."""

    database: Database

    async def had_other_phones(self, lead_ids: Collection[UUID]) -> list[UUID]:
        """Those of these leads whose phone was corrected."""
        ids = {"ids": list(lead_ids)}
        return [row[0] for row in await self.database.read(partial(_HAD_OTHER_PHONES.rows, parameters=ids))]

    async def of_type(self, lead_id: UUID, event_type: LeadEventType) -> list[LeadEvent]:
        """All events of one type of a lead, oldest first."""
        query = _events(lead_id).where(_EVENT.type == event_type.value).order_by(_EVENT.version, _EVENT.id)
        return [_event(row) for row in await self.database.rows(query)]

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

        behind = partial(page_of, limit=limit, newest_first=newest_first)
        events = behind(_events(lead_id), (_EVENT.version, _EVENT.id), place[2:])
        found = [*await self.database.rows(events)]
        if with_accesses:
            accesses = behind(_accesses(lead_id), (_ACCESS.recorded_at, _ACCESS.id), place[:2])
            found += await self.database.rows(accesses)
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
