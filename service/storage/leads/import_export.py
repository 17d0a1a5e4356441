"""Leads that come in as files, and go out.

Those of a foreign file are stored by the rules of any other submission. Those of a daily file are put back as they
were: ids, versions, times, histories, links. There a lead that is present already stays as it is, so that repeating is
harmless; a lead comes in with all that belongs to it, in one transaction, or not at all; what was erased is not brought
back.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from psycopg.rows import namedtuple_row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import CUSTOMER_FIELDS, LeadEventType, SealedLead, SealedSubmission
from service.storage.database.database import Database, Statement, snapshot
from service.storage.leads.decision import Outcome
from service.storage.leads.erasing import wait_for_erasures
from service.storage.leads.queries import COLUMN_NAMES, lead_of_row
from service.storage.leads.submissions import ROLL_BACK, store

T = TypeVar("T")

_FIELDS = ", ".join(CUSTOMER_FIELDS)
_TYPED_FIELDS = ", ".join(f"{name} text" for name in CUSTOMER_FIELDS)
_LEAD_COLUMNS = f"""id, {_FIELDS}, status, created_at, updated_at, version, assignee, phone_shared, nid_shared,
    created_by, request_id"""
_GIVEN_COLUMNS = _LEAD_COLUMNS.replace("updated_at", "greatest(created_at, updated_at)")
_LEADS = f"""json_to_recordset(CAST(:leads AS json)) AS given (
    id uuid, {_TYPED_FIELDS}, status text, created_at timestamptz,
    updated_at timestamptz, version bigint, assignee text, resubmissions integer, phone_shared boolean,
    nid_shared boolean, created_by text, request_id text, content_digest text, phone_index text, nid_index text,
    phone_index_2 text, nid_index_2 text, index_epoch bigint, email_index text,
    conversations json, events json, kept_resubmissions json, aliases json)"""

_EVENT_COLUMNS = "type, version, fields, from_status, to_status, from_assignee, to_assignee, actor, reason, at"

_PRESENT = text(f"""
    SELECT given.id, lead.version, EXISTS (
        SELECT FROM json_to_recordset(kept_resubmissions) AS kept (submission_id uuid)
        WHERE NOT EXISTS (SELECT FROM resubmission here
                          WHERE here.submission_id = kept.submission_id AND here.lead_id = given.id)
          AND NOT EXISTS (SELECT FROM tombstone t WHERE t.id = kept.submission_id)) AS lacks_resubmissions
    FROM {_LEADS} JOIN lead USING (id)
    UNION ALL SELECT given.id, NULL, false FROM {_LEADS} JOIN lead_alias USING (id)
""")
# The lead's own id, one that shall lead to it, or that of a resubmission of it, is something else here: whoever asked
# for that would be shown, or would erase, this lead. What matched two leads is kept with both.
_TAKEN = text(f"""
    SELECT DISTINCT given.id
    FROM {_LEADS}, LATERAL (
        SELECT given.id, false AS is_kept
        UNION ALL SELECT alias.id, alias.id IN (
                SELECT submission_id FROM json_to_recordset(kept_resubmissions) AS kept (submission_id uuid)
            ) FROM json_to_recordset(aliases) AS alias (id uuid)
        UNION ALL SELECT kept.submission_id, true
            FROM json_to_recordset(kept_resubmissions) AS kept (submission_id uuid)
    ) AS its
    WHERE EXISTS (SELECT FROM lead WHERE lead.id = its.id)
       OR EXISTS (SELECT FROM lead_alias here WHERE here.id = its.id)
       OR EXISTS (SELECT FROM lead_conflict here WHERE here.id = its.id AND here.resolution IS NULL)
       OR (NOT is_kept AND EXISTS (SELECT FROM resubmission here WHERE here.submission_id = its.id))
""")
_ERASED = text("SELECT id FROM tombstone WHERE id = ANY(CAST(:ids AS uuid[]))")
# Oldest first, as they came to be; what another row stands in the way of is missing from the result. What is kept of
# the resubmissions is counted when it is stored.
_INSERT = text(f"""
    INSERT INTO lead ({_LEAD_COLUMNS}, resubmissions, index_epoch, email_index, content_digest, phone_index, nid_index,
        phone_index_2, nid_index_2)
    SELECT {_GIVEN_COLUMNS}, resubmissions - json_array_length(kept_resubmissions), index_epoch, email_index,
           decode(content_digest, 'base64'),
           decode(phone_index, 'base64'), decode(nid_index, 'base64'),
           decode(phone_index_2, 'base64'), decode(nid_index_2, 'base64')
    FROM {_LEADS} ORDER BY created_at, id
    ON CONFLICT DO NOTHING RETURNING id
""")
_MATCHED = text(f"""
    SELECT given.id,
           coalesce(
               (SELECT id FROM lead WHERE phone_index = decode(given.phone_index, 'base64') AND NOT phone_shared),
               (SELECT id FROM lead WHERE phone_index_2 = decode(given.phone_index_2, 'base64') AND NOT phone_shared)
           ) AS phone,
           coalesce(
               (SELECT id FROM lead WHERE nid_index = decode(given.nid_index, 'base64') AND NOT nid_shared),
               (SELECT id FROM lead WHERE nid_index_2 = decode(given.nid_index_2, 'base64') AND NOT nid_shared)
           ) AS nid,
           (SELECT lead.id FROM lead WHERE lead.created_by = given.created_by AND lead.request_id = given.request_id)
               AS request
    FROM {_LEADS}
""")

# Two imports of one file in another order would wait for each other in a circle, one for a phone and one for a nid. The
# turn of another import takes longer than a foreign lock on a row may be waited for.
_TAKE_TURN = Statement(f"""
    WITH before AS MATERIALIZED (SELECT current_setting('lock_timeout') AS value)
    SELECT set_config('lock_timeout', '20s', true) AS longer, pg_advisory_xact_lock({0x4C4B_494D}) AS turn,
        set_config('lock_timeout', value, true) AS again FROM before
""")  # "LKIM"

_HAND_OVER = text("SELECT claim_index_entries(ARRAY(SELECT id FROM lead WHERE phone_shared OR nid_shared))")

_DETAILS = tuple(
    text(statement)
    for statement in (  # our own names
        f"""INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index, linked_at)
            SELECT given.id, link.submission_id, link.conversation_id, link.conversation_index, link.linked_at
            FROM {_LEADS}, json_to_recordset(conversations) AS link (submission_id uuid, conversation_id text,
                conversation_index text, linked_at timestamptz)""",
        f"""INSERT INTO resubmission (lead_id, submission_id, {_FIELDS}, actor, request_id, content_digest,
                verified, submitted_at, phone_index, nid_index, email_index)
            SELECT given.id, kept.submission_id, {", ".join(f"kept.{name}" for name in CUSTOMER_FIELDS)},
                kept.actor, kept.request_id, decode(kept.content_digest, 'base64'), kept.verified, kept.submitted_at,
                kept.phone_index, kept.nid_index, kept.email_index
            FROM {_LEADS}, json_to_recordset(kept_resubmissions) AS kept (submission_id uuid,
                {_TYPED_FIELDS}, actor text, request_id text, content_digest text, verified boolean,
                submitted_at timestamptz, phone_index text, nid_index text, email_index text)
            WHERE NOT EXISTS (SELECT FROM tombstone t WHERE t.id = kept.submission_id)""",
        f"""INSERT INTO lead_alias (id, lead_id, created_by, created_at)
            SELECT other.id, given.id, other.created_by, other.created_at
            FROM {_LEADS}, json_to_recordset(aliases) AS other (id uuid, created_by text, created_at timestamptz)
            WHERE NOT EXISTS (SELECT FROM tombstone t WHERE t.id = other.id)
            ON CONFLICT DO NOTHING""",
        f"""INSERT INTO lead_event (lead_id, {_EVENT_COLUMNS})
            SELECT given.id, {", ".join(f"event.{name}" for name in _EVENT_COLUMNS.split(", "))}
            FROM {_LEADS}, ROWS FROM (json_to_recordset(events) AS (type smallint, version bigint, fields text[],
                from_status text, to_status text, from_assignee text, to_assignee text, actor text, reason text,
                at timestamptz)) WITH ORDINALITY AS event ({_EVENT_COLUMNS}, place)
            ORDER BY given.created_at, given.id, place""",
    )
)

ROWS_AHEAD = 500
"""Rows of an export that are fetched, and held in memory, at once."""

_SPAN = "FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s"


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one lead of a daily file."""

    inserted: bool
    erased: bool = False
    """It was erased, and is not brought back."""
    taken: bool = False
    """An id that belongs to it is another lead's."""
    present_version: int | None = None
    """The version that the database has already; 0 when the id leads to another lead there."""
    lacks_resubmissions: bool = False
    """The file has some that the database has not, though they were not erased."""
    phone_of: UUID | None = None
    nid_of: UUID | None = None
    request_of: UUID | None = None
    """The leads that stand in its way."""


async def import_leads(database: Database, batch: Sequence[SealedSubmission], *, dry_run: bool) -> dict[UUID, Outcome]:
    """Store submissions in one transaction; by id, what became of each. With `dry_run` nothing stays.

    Raises StorageUnavailableError, and StorageFaultError when the database refuses one of them.
    """

    async def work(connection: AsyncConnection) -> dict[UUID, Outcome]:
        await _TAKE_TURN.rows(connection, {})
        return await store(batch, connection)

    return await _in_transaction(database, work, dry_run=dry_run)


async def restore_leads(database: Database, leads: Sequence[dict[str, Any]], *, dry_run: bool) -> dict[UUID, Restored]:
    """Put leads of a daily file back; otherwise like `import_leads`."""
    return await _in_transaction(database, partial(_restore, leads), dry_run=dry_run)


async def hand_over_indexes(database: Database) -> None:
    """Let leads that share a phone or nid take it over where no lead has it: the one that had it was erased since.

    To be called when all files are restored: leads are not in the order in which they came to share something.
    """
    await database.write(lambda connection: connection.execute(_HAND_OVER))


async def _in_transaction(
    database: Database, work: Callable[[AsyncConnection], Awaitable[dict[UUID, T]]], *, dry_run: bool
) -> dict[UUID, T]:
    async def tried(connection: AsyncConnection) -> dict[UUID, T]:
        found = await work(connection)
        if dry_run:
            await connection.execute(ROLL_BACK)
        return found

    return await database.write(tried)


async def _restore(leads: Sequence[dict[str, Any]], connection: AsyncConnection) -> dict[UUID, Restored]:
    await wait_for_erasures(connection)
    by_id = {UUID(lead["id"]): lead for lead in leads}
    found = {
        row.id: Restored(inserted=False, present_version=row.version or 0, lacks_resubmissions=row.lacks_resubmissions)
        for row in await connection.execute(_PRESENT, _given(leads))
    }
    for lead_id in (await connection.execute(_ERASED, {"ids": list(by_id)})).scalars():
        found.setdefault(lead_id, Restored(inserted=False, erased=True))
    new = {lead_id: lead for lead_id, lead in by_id.items() if lead_id not in found}
    taken = {row.id for row in await connection.execute(_TAKEN, _given(list(new.values())))} if new else set()
    for lead_id in taken | _claimed_twice(new):
        found[lead_id] = Restored(inserted=False, taken=True)
        del new[lead_id]
    if not new:
        return found
    inserted = {row.id for row in await connection.execute(_INSERT, _given(list(new.values())))}
    found |= {lead_id: Restored(inserted=True) for lead_id in inserted}
    await _add_details(connection, [new[lead_id] for lead_id in new if lead_id in inserted])
    if refused := [new[lead_id] for lead_id in new if lead_id not in inserted]:
        for row in await connection.execute(_MATCHED, _given(refused)):
            found[row.id] = Restored(inserted=False, phone_of=row.phone, nid_of=row.nid, request_of=row.request)
    return found


def _claimed_twice(leads: dict[UUID, dict[str, Any]]) -> set[UUID]:
    """The leads one of whose other ids is something else in the same batch too.

    The tokens of a lead and of a resubmission prove its id; nothing proves an alias that is no resubmission of it.
    """
    taken = set(leads)
    for lead in leads.values():
        taken.update(_kept_ids(lead))
    claimed, aliased = set[UUID](), set[UUID]()
    for lead_id, lead in leads.items():
        kept = _kept_ids(lead)
        aliases = {UUID(each["id"]) for each in lead["aliases"]}
        if not (kept.isdisjoint(leads) and (aliases - kept).isdisjoint(taken) and aliases.isdisjoint(aliased)):
            claimed.add(lead_id)
        aliased |= aliases
    return claimed


def _kept_ids(lead: dict[str, Any]) -> set[UUID]:
    return {UUID(each["submission_id"]) for each in lead["kept_resubmissions"]}


async def _add_details(connection: AsyncConnection, leads: Sequence[dict[str, Any]]) -> None:
    given = _given([lead | {"events": _history(lead)} for lead in leads])
    for statement in _DETAILS:
        await connection.execute(statement, given)


def _history(lead: dict[str, Any]) -> list[dict[str, Any]]:
    """All events of a lead of a file, with the first one, which its other members show."""
    created = {"type": "created", "version": 1, "actor": lead["created_by"], "at": lead["created_at"]}
    return [each | {"type": LeadEventType[each["type"].upper()]} for each in (created, *lead["events"])]


def _given(leads: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {"leads": json.dumps(leads)}


def exported_leads(url: str, start: datetime, end: datetime) -> Iterator[SealedLead]:
    """The leads that were created from `start` on and before `end`, oldest first.

    One snapshot of the database; memory does not grow with the number of leads. Raises StorageFaultError.
    """
    query = f"SELECT {COLUMN_NAMES} {_SPAN} ORDER BY created_at, id"  # our own names
    with (
        snapshot(url, "leadkeep-export") as connection,
        connection.cursor("exported", row_factory=namedtuple_row) as cursor,
    ):
        cursor.itersize = ROWS_AHEAD
        for row in cursor.execute(query.encode(), {"start": start, "end": end}):
            yield lead_of_row(row)


def count_leads(url: str, start: datetime, end: datetime) -> int:
    """How many leads were created from `start` on and before `end`. Raises StorageFaultError."""
    with snapshot(url, "leadkeep-export") as connection:
        row = connection.execute(f"SELECT count(*) {_SPAN}".encode(), {"start": start, "end": end}).fetchone()
        return int(row[0]) if row else 0
