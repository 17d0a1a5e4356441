"""PostgreSQL as a store of submissions: how they become leads, conflicts or resubmissions, however many they are.

The insert is one with ON CONFLICT DO NOTHING and no target, so that whichever unique index a rival holds, it waits for
that rival and then does nothing. New submissions are inserted at once, by a statement that commits by itself: most need
no more than that. For those for which it did nothing, and for what comes from the spool or from a file, a READ
COMMITTED transaction looks for their own ids, request_ids, phones and nids. `decide` names the outcome of each, in
their order and before any is inserted, so that of two that match the first becomes the lead; the inserts and the
outcomes are applied in the same transaction. When a rival was faster than an insert, all are looked up and decided
again. The look-up is a statement of its own because one statement cannot see a rival that committed while it waited.

The look-up locks what it finds FOR KEY SHARE. That keeps the row while we answer for it, and it writes to the log: the
commit of every answer that rests on an existing row therefore waits for the synchronous standby. A plain look-up would
not, and could confirm a row that a failover then loses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.lead import CUSTOMER_FIELDS, LeadEventType, SealedSubmission
from service.storage import models
from service.storage.database.database import Database, Statement, Work
from service.storage.database.failures import NoStandbyError, with_retries
from service.storage.leads.decision import (
    Aliased,
    Created,
    DuplicateMatch,
    Earlier,
    Found,
    InConflict,
    MatchedLead,
    Outcome,
    decide,
)
from service.storage.leads.erasing import wait_for_erasures
from service.storage.leads.open_erasures import OpenErasures
from service.storage.leads.queries import ATTEMPTS, columns_of, lead_of_row
from service.storage.leads.resubmissions import keep_refused
from service.storage.leads.tombstones import ErasedAmong, erased_among
from service.storage.leads.trial import made_up_submissions

T = TypeVar("T")

_COLUMN_TYPES = {
    "id": "uuid",
    **dict.fromkeys(CUSTOMER_FIELDS, "text"),
    "phone_index": "bytea",
    "nid_index": "bytea",
    "phone_index_2": "bytea",
    "nid_index_2": "bytea",
    "index_epoch": "bigint",
    "email_index": "text",
    "created_by": "text",
    "request_id": "text",
    "content_digest": "bytea",
}
_COLUMNS = ", ".join(_COLUMN_TYPES)
_DIGESTS = tuple(name for name, kind in _COLUMN_TYPES.items() if kind == "bytea")
_GIVEN = ", ".join(f"{name} {'text' if name in _DIGESTS else kind}" for name, kind in _COLUMN_TYPES.items())
_VALUES = ", ".join(f"decode({name}, 'hex')" if name in _DIGESTS else name for name in _COLUMN_TYPES)

_INSERT_SQL = f"""
    WITH entry AS (
        SELECT * FROM ROWS FROM (json_to_recordset(CAST(:entries AS json)) AS ({_GIVEN}, conversation_index text,
            accepted_at timestamptz, accepted_from timestamptz))
            WITH ORDINALITY AS entry ({_COLUMNS}, conversation_index, accepted_at, accepted_from, place)
    ), inserted AS (
        INSERT INTO lead ({_COLUMNS}, created_at)
        SELECT {_VALUES}, coalesce(accepted_at, now())
        FROM entry
        WHERE true AND NOT EXISTS (SELECT FROM lead_conflict c WHERE c.id = entry.id)
          AND NOT EXISTS (SELECT FROM lead_alias a WHERE a.id = entry.id)
          AND NOT EXISTS (SELECT FROM tombstone t WHERE t.id = entry.id)
          AND (accepted_at IS NULL OR entry.request_id IS NULL OR NOT EXISTS (
              SELECT FROM tombstone t WHERE t.erased_at >= entry.accepted_from
                 AND t.request_digest = sha256(convert_to(entry.created_by || E'\\n' || entry.request_id, 'UTF8'))))
          AND (accepted_at IS NOT NULL OR NOT EXISTS (
              SELECT FROM lead_conflict c WHERE c.created_by = entry.created_by AND c.request_id = entry.request_id))
        ORDER BY place
        ON CONFLICT DO NOTHING
        RETURNING id, created_at, created_by
    ), noted AS (
        INSERT INTO lead_event (type, lead_id, version, actor, at)
        SELECT {LeadEventType.CREATED:d}, id, 1, created_by, created_at FROM inserted
    ), linked AS (
        INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)
        SELECT id, id, conversation_id, conversation_index FROM inserted JOIN entry USING (id)
        WHERE conversation_index IS NOT NULL
    )
    SELECT id, created_at FROM inserted
"""  # noqa: S608 # our own names
_INSERT = Statement(text(_INSERT_SQL))
"""One parameter, `entries`, so that the statement is the same for every size of a batch: it is prepared once a
connection. JSON is written by compiled code; psycopg builds arrays of text in Python, which took a third of a large
batch's time."""

_STANDBYS = "current_setting('synchronous_standby_names')"
_INSERT_WITH_STANDBY = Statement(
    text(
        _INSERT_SQL.replace("WHERE true", f"WHERE {_STANDBYS} <> ''")
        + f"UNION ALL SELECT CAST(NULL AS uuid), now() WHERE {_STANDBYS} = ''"  # our own names
    )
)
"""The same, for a server whose commits wait for a synchronous standby. Where they do not, nothing is inserted and a row
without an id comes back: no other statement could know what holds when this one runs."""

# Locked in the order of ids, so that two batches which match the same leads lock them in the same order.
_LOOK_UP = Statement(
    text("""
    SELECT *, now() AS looked_up_at FROM lead WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT l.id FROM lead l JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
        UNION
        SELECT l.id FROM lead l WHERE l.phone_index = ANY(CAST(:phones AS bytea[])) AND NOT l.phone_shared
        UNION
        SELECT l.id FROM lead l WHERE l.nid_index = ANY(CAST(:nids AS bytea[])) AND NOT l.nid_shared
        UNION
        SELECT l.id FROM lead l WHERE l.phone_index_2 = ANY(CAST(:phones AS bytea[])) AND NOT l.phone_shared
        UNION
        SELECT l.id FROM lead l WHERE l.nid_index_2 = ANY(CAST(:nids AS bytea[])) AND NOT l.nid_shared
    ) ORDER BY id FOR KEY SHARE
""")
)
_CONFLICTS = Statement(
    text("""
    SELECT * FROM lead_conflict WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT c.id FROM lead_conflict c JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
    ) ORDER BY accepted_at, id FOR KEY SHARE
""")
)
_ALIASES = Statement(
    text("""
    SELECT a.id, a.lead_id FROM lead_alias a JOIN lead l ON l.id = a.lead_id WHERE a.id = ANY(CAST(:id AS uuid[]))
    ORDER BY l.id FOR KEY SHARE OF l
""")
)


class SubmissionStore:
    """The submissions of one database, each stored in a transaction of its own or together with others.

    With `require_standby`, only where commits wait for a synchronous standby: else NoStandbyError is raised. With
    `open_erasures`, what comes from the spool only while this replica has none: else OpenErasuresError is raised.
    """

    def __init__(
        self, database: Database, *, require_standby: bool = False, open_erasures: OpenErasures | None = None
    ) -> None:
        self._database = database
        self._require_standby = require_standby
        self._open_erasures = open_erasures

    async def create(self, submission: SealedSubmission) -> Outcome:
        """Store a submission, or find out what became of it or what it duplicates. Safe to repeat."""
        return (await with_retries(partial(self.create_all_once, [submission])))[submission.id]

    async def create_all_once(self, batch: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
        """Like `create` for many together, tried once: raises what went wrong, see failures.py.

        Some may be stored then. They are found by their ids when it is done again.
        """
        if any(submission.accepted_at for submission in batch):
            return await self._database.write_once(self._work(partial(store, open_erasures=self._open_erasures), batch))
        inserted = await self._database.write_once(self._work(_insert_new, batch), alone=True)
        left = [submission for submission in batch if submission.id not in inserted]
        return inserted | (await self._database.write_once(self._work(store, left)) if left else {})

    async def trial(self) -> Exception | None:
        """Store made-up submissions by the same statements and roll them back; what the database raised, None: nothing.

        None proves that the database accepts submissions now, so that one which it has just refused was refused for
        its own sake.
        """
        new, drained = made_up_submissions()

        async def work(connection: AsyncConnection) -> None:
            await store(new, connection, require_standby=self._require_standby)
            await store(drained, connection)
            raise _PassedError  # ends the transaction without a commit

        try:
            await self._database.write_once(work)
        except _PassedError:
            return None
        except Exception as error:  # noqa: BLE001 # it is the result
            return error
        raise AssertionError("a trial was committed")

    def _work(
        self, work: Callable[..., Awaitable[dict[UUID, T]]], batch: Sequence[SealedSubmission]
    ) -> Work[dict[UUID, T]]:
        return partial(work, batch, require_standby=self._require_standby)


class _PassedError(Exception):
    """A trial got to its end."""


async def store(
    submissions: Sequence[SealedSubmission],
    connection: AsyncConnection,
    *,
    require_standby: bool = False,
    open_erasures: OpenErasures | None = None,
    perhaps_erased: Mapping[UUID, UUID] | None = None,
) -> dict[UUID, Outcome]:
    """The outcome of each submission, applied in a transaction of the caller's; by id.

    Each counts before the next. `perhaps_erased` names those whose person may have been erased after they were
    accepted, each with the erased lead. Raises StorageUnavailableError, NoStandbyError with `require_standby`, and
    OpenErasuresError with `open_erasures`.
    """
    if any(submission.accepted_at for submission in submissions):
        # Before the look-up: its snapshot must hold what an erasure has made of them, or they are stored twice.
        await wait_for_erasures(connection)
        if open_erasures is not None:
            await open_erasures.require_none(connection)
    # What was refused already makes way.
    in_order = sorted(submissions, key=lambda entry: entry.refused)
    for attempt in range(ATTEMPTS):
        rows = await _look_up(connection, in_order, again=attempt > 0, perhaps_erased=perhaps_erased or {})
        new: list[SealedSubmission] = []
        decided: list[tuple[SealedSubmission, Outcome]] = []
        for entry in in_order:
            if (outcome := decide(entry, rows.found(entry))) is not None:
                decided.append((entry, outcome))
            else:
                rows.add(entry)
                new.append(entry)
        created = await _insert_new(new, connection, require_standby=require_standby) if new else {}
        if len(created) == len(new):
            await _apply(connection, decided)
            return created | {entry.id: _with_stored_time(outcome, created) for entry, outcome in decided}
    raise StorageUnavailableError


def _with_stored_time(outcome: Outcome, created: Mapping[UUID, Created]) -> Outcome:
    """The outcome with the moment at which the database stored the lead, if it is a repeat of one of the same batch."""
    if isinstance(outcome, Created) and outcome.lead.id in created:
        return Created(created[outcome.lead.id].lead, is_new=False)
    return outcome


async def find_duplicates(
    connection: AsyncConnection, phones: Sequence[bytes], nids: Sequence[bytes], *, other_than: UUID
) -> DuplicateMatch | None:
    """The leads other than one that have one of these blind indexes of a phone or of a nid, locked."""
    keys: dict[str, list[Any]] = {"id": [], "created_by": [], "request_id": []}
    leads = await _LOOK_UP.rows(connection, keys | {"phones": list(phones), "nids": list(nids)})
    rows = _Rows([row for row in leads if row.id != other_than])
    return Found(phone=rows.with_phone(phones), nid=rows.with_nid(nids)).match


async def _insert_new(
    submissions: Sequence[SealedSubmission], connection: AsyncConnection, *, require_standby: bool = False
) -> dict[UUID, Created]:
    """Store in one statement the submissions that nothing stands in the way of; by id."""
    # By phone, so that rival batches wait for each other in one direction.
    ordered = sorted(submissions, key=lambda entry: entry.indexes.phones)
    entries = to_json([_entry(entry) for entry in ordered]).decode()
    statement = _INSERT_WITH_STANDBY if require_standby else _INSERT
    created_at = dict(await statement.rows(connection, {"entries": entries}))
    if None in created_at:
        raise NoStandbyError
    return {
        entry.id: Created(entry.as_lead(created_at[entry.id]), is_new=True)
        for entry in ordered
        if entry.id in created_at
    }


async def _look_up(
    connection: AsyncConnection,
    entries: Sequence[SealedSubmission],
    *,
    again: bool,
    perhaps_erased: Mapping[UUID, UUID],
) -> _Rows:
    keys: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry in entries] for name in ("id", "created_by", "request_id")
    }
    keys["phones"] = [index for entry in entries for index in entry.indexes.phones]
    keys["nids"] = [index for entry in entries for index in entry.indexes.nids]
    drained = any(entry.accepted_at for entry in entries)
    leads = await _LOOK_UP.rows(connection, keys)
    conflicts = await _CONFLICTS.rows(connection, keys)
    aliases = dict(await _ALIASES.rows(connection, keys)) if drained else {}
    # A new submission is erased only if an attempt to store it succeeded unnoticed. Most of those that were not
    # inserted are duplicates; it is asked when nothing else explains it.
    erased = await erased_among(connection, entries) if drained or again else ErasedAmong()
    return _Rows(leads, conflicts, aliases, replace(erased, perhaps_with={**perhaps_erased, **erased.perhaps_with}))


class _RowToBe(NamedTuple):
    """A submission that is about to be inserted, with what a row of the look-up has."""

    id: UUID
    created_by: str
    nid: str | None
    content_digest: bytes
    created_at: datetime
    looked_up_at: datetime
    submission: SealedSubmission


class _Rows:
    """The rows that match a batch; those of leads are locked."""

    def __init__(
        self,
        leads: Sequence[Any],
        conflicts: Sequence[Any] = (),
        aliases: Mapping[UUID, UUID] | None = None,
        erased: ErasedAmong | None = None,
    ) -> None:
        self._leads: dict[UUID, Any] = {row.id: row for row in leads}
        self._requests: dict[Any, Any] = {
            (row.created_by, row.request_id): row for row in leads if row.request_id is not None
        }
        # `phone_shared` marks a lead that an operator allowed to reuse another lead's phone, `nid_shared` likewise. A
        # duplicate matches the original lead, never this one.
        self._phones = {i: r for r in leads if not r.phone_shared for i in (r.phone_index, r.phone_index_2) if i}
        self._nids = {i: r for r in leads if not r.nid_shared for i in (r.nid_index, r.nid_index_2) if i}
        self._conflicts = {row.id: row for row in conflicts}
        # In reverse: they come oldest first, and the oldest counts.
        self._conflicts_of: dict[Any, Any] = {
            (row.created_by, row.request_id): row for row in reversed(conflicts) if row.request_id is not None
        }
        self._aliases = aliases or {}
        self._erased = erased or ErasedAmong()

    def add(self, entry: SealedSubmission) -> None:
        """Let a submission that is about to be inserted count as the lead that it will be."""
        now = datetime.now(UTC)  # the insert will name the moment
        row = _RowToBe(
            entry.id,
            entry.created_by,
            entry.fields.get("nid"),
            entry.content_digest,
            entry.accepted_at or now,
            now,
            entry,
        )
        self._leads[entry.id] = row
        if entry.request_id is not None:
            self._requests[entry.created_by, entry.request_id] = row
        self._phones |= dict.fromkeys(entry.indexes.phones, row)
        self._nids |= dict.fromkeys(entry.indexes.nids, row)

    def found(self, entry: SealedSubmission) -> Found:
        """What there is of one submission."""
        request = (entry.created_by, entry.request_id)
        phone, nid = _row_of(self._phones, entry.indexes.phones), _row_of(self._nids, entry.indexes.nids)
        has_both = phone is not None and (phone is nid if entry.indexes.nids else phone.nid is None)
        person = phone if phone is not None and has_both and phone.created_by == entry.created_by else None
        return Found(
            own=_earlier_lead(self._leads.get(entry.id)) or _earlier_conflict(self._conflicts.get(entry.id)),
            request=_earlier_lead(self._requests.get(request)),
            person=_earlier_lead(person),
            now=None if person is None else person.looked_up_at,
            conflict=_earlier_conflict(self._conflicts_of.get(request)),
            phone=_matched_lead(phone),
            nid=_matched_lead(nid),
            alias=self._aliases.get(entry.id),
            erased_created_at=self._erased.accepted_at.get(entry.id),
            perhaps_erased_with=self._erased.perhaps_with.get(entry.id),
        )

    def with_phone(self, indexes: Sequence[bytes]) -> MatchedLead | None:
        """The lead with one of these blind indexes of a phone."""
        return _matched_lead(_row_of(self._phones, indexes))

    def with_nid(self, indexes: Sequence[bytes]) -> MatchedLead | None:
        """The lead with one of these blind indexes of a nid."""
        return _matched_lead(_row_of(self._nids, indexes))


def _row_of(leads: Mapping[bytes, Any], indexes: Sequence[bytes]) -> Any | None:
    return next((leads[index] for index in indexes if index in leads), None)


def _matched_lead(row: Any | None) -> MatchedLead | None:
    return None if row is None else MatchedLead(row.id, row.created_by)


def _earlier_lead(row: Any | None) -> Earlier | None:
    if row is None:
        return None
    lead = row.submission.as_lead(row.created_at) if isinstance(row, _RowToBe) else lead_of_row(row)
    return Earlier(id=row.id, accepted_at=row.created_at, content_digest=row.content_digest, lead=lead)


def _earlier_conflict(row: Any | None) -> Earlier | None:
    if row is None:
        return None
    return Earlier(
        id=row.id,
        accepted_at=row.accepted_at,
        content_digest=row.content_digest,
        decided=row.resolution is not None,
        repeats=row.repeats,
    )


async def _apply(connection: AsyncConnection, decided: Sequence[tuple[SealedSubmission, Outcome]]) -> None:
    for entry, outcome in decided:
        match outcome:
            case Aliased(target_id):
                aliases = models.lead_alias
                leads_to = select(aliases.c.lead_id).where(aliases.c.id == target_id).scalar_subquery()
                lead_id = func.coalesce(leads_to, target_id)
                alias = {"id": entry.id, "lead_id": lead_id, "created_by": entry.created_by}
                await connection.execute(insert(aliases).values(alias).on_conflict_do_nothing())
            case InConflict(match, request_lead_id, repeats, erased) if match or request_lead_id or erased:
                conflict = columns_of(entry) | {
                    "id": entry.id,
                    "created_by": entry.created_by,
                    "accepted_at": entry.accepted_at,
                    "phone_lead_id": match.phone.id if match and match.phone else None,
                    "nid_lead_id": match.nid.id if match and match.nid else None,
                    "request_lead_id": request_lead_id,
                    "repeats": repeats,
                    "erased_lead_id": erased,
                    **entry.indexes.texts,
                }
                await connection.execute(insert(models.lead_conflict).values(conflict).on_conflict_do_nothing())
    await keep_refused(
        [(entry, outcome) for entry, outcome in decided if isinstance(outcome, DuplicateMatch)], connection
    )


def _entry(entry: SealedSubmission) -> dict[str, Any]:
    phone_index, phone_index_2 = entry.indexes.phone
    nid_index, nid_index_2 = entry.indexes.nid
    return {
        "id": str(entry.id),
        "phone_index": phone_index and phone_index.hex(),
        "nid_index": nid_index and nid_index.hex(),
        "phone_index_2": phone_index_2 and phone_index_2.hex(),
        "nid_index_2": nid_index_2 and nid_index_2.hex(),
        "index_epoch": entry.indexes.epoch,
        "email_index": entry.indexes.email,
        "created_by": entry.created_by,
        "request_id": entry.request_id,
        "content_digest": entry.content_digest.hex(),
        "conversation_index": entry.indexes.conversation[0] if entry.indexes.conversation else None,
        "accepted_at": entry.accepted_at and entry.accepted_at.isoformat(),
        # Only an acknowledged submission can have been erased before; when it was accepted may be unknown.
        "accepted_from": entry.accepted_between[0].isoformat() if entry.accepted_between else "-infinity",
        **entry.fields,
    }
