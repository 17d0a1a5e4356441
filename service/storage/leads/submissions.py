"""PostgreSQL as a store of submissions: how they become leads, conflicts or resubmissions, however many they are.

The insert is one with ON CONFLICT DO NOTHING and no target, so that whichever unique index a rival holds, it waits for
that rival and then does nothing. New submissions are inserted at once, by a statement that commits by itself: most need
no more than that. For those for which it did nothing, and for what comes from the spool or from a file, a READ
COMMITTED transaction looks for their own ids, request_ids, phones and nids. `decide` names the outcome of each, in
their order and before any is inserted, so that of two that match the first becomes the lead; the inserts and the
outcomes are applied in the same transaction. When a rival was faster than an insert, all are looked up and decided
again. The look-up is a statement of its own because one statement cannot see a rival that committed while it waited.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import (
    CUSTOMER_FIELDS,
    SEALED_FORM,
    SENSITIVE_FIELDS,
    BlindIndexes,
    LeadEventType,
    SealedSubmission,
)
from service.storage import models
from service.storage.database.database import Database, Statement, Work
from service.storage.database.failures import NoStandbyError, NotStoredError, with_retries
from service.storage.leads.decision import Aliased, Created, DuplicateMatch, InConflict, Outcome, decide
from service.storage.leads.erasing import wait_for_erasures
from service.storage.leads.look_up import ATTEMPTS, look_up
from service.storage.leads.open_erasures import OpenErasures
from service.storage.leads.queries import columns_of, index_columns
from service.storage.leads.resubmissions import keep_refused

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
        INSERT INTO lead ({_COLUMNS}, created_at, updated_at)
        SELECT {_VALUES}, coalesce(accepted_at, now()), greatest(accepted_at, now())
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
_INSERT = Statement(_INSERT_SQL)
"""One parameter, `entries`, so that the statement is the same for every size of a batch: it is prepared once a
connection. JSON is written by compiled code; psycopg builds arrays of text in Python, which took a third of a large
batch's time."""

_STANDBYS = "current_setting('synchronous_standby_names')"
_INSERT_WITH_STANDBY = Statement(
    _INSERT_SQL.replace("WHERE true", f"WHERE {_STANDBYS} <> ''")
    + f"UNION ALL SELECT CAST(NULL AS uuid), now() WHERE {_STANDBYS} = ''"  # our own names
)
"""The same, for a server whose commits wait for a synchronous standby. Where they do not, nothing is inserted and a row
without an id comes back: no other statement could know what holds when this one runs."""

_ADD_ALIAS = Statement("""
    INSERT INTO lead_alias (id, lead_id, created_by) VALUES (:id,
        coalesce((SELECT lead_id FROM lead_alias WHERE id = :target), CAST(:target AS uuid)), :created_by)
    ON CONFLICT DO NOTHING
""")

# What leaves the spool must be in the database: a trigger of others may have dropped it without an error.
_COUNT_STORED = Statement("""
    SELECT count(*) FROM unnest(CAST(:ids AS uuid[])) AS given (id)
    WHERE EXISTS (SELECT FROM lead_alias a WHERE a.id = given.id)
        OR EXISTS (SELECT FROM lead_conflict c WHERE c.id = given.id)
""")

_WITHOUT_COMMIT = text("SET CONSTRAINTS ALL IMMEDIATE")
"""Runs the triggers that wait for a commit."""

# What a live lead is stored with is not counted for each one.
_IS_NOTED = Statement("""
    SELECT (SELECT count(*) FROM lead_event WHERE lead_id = :id) = 2
        AND (SELECT count(*) FROM lead_conversation WHERE lead_id = :id) = 1
        AND EXISTS (SELECT FROM lead_touch WHERE xmin = CAST(pg_current_xact_id() AS xid))
""")

ROLL_BACK = text("ROLLBACK")
"""Undoes a transaction whose work is only tried; the commit that follows finds nothing to do."""


@dataclass(slots=True)
class SubmissionStore:
    """The submissions of one database, each stored in a transaction of its own or together with others.

    With `require_standby`, only where commits wait for a synchronous standby: else NoStandbyError is raised. With
    `open_erasures`, what comes from the spool only while this replica has none: else OpenErasuresError is raised.
    """

    database: Database
    require_standby: bool = field(default=False, kw_only=True)
    open_erasures: OpenErasures | None = field(default=None, kw_only=True)

    async def create(self, submission: SealedSubmission) -> Outcome:
        """Store a submission, or find out what became of it or what it duplicates. Safe to repeat."""
        return (await with_retries(partial(self.create_all_once, [submission])))[submission.id]

    async def create_all_once(self, batch: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
        """Like `create` for many together, tried once: raises what went wrong, see failures.py.

        Some may be stored then. They are found by their ids when it is done again.
        """
        if any(submission.accepted_at for submission in batch):
            return await self.database.write_once(self._work(partial(store, open_erasures=self.open_erasures), batch))
        inserted = await self.database.write_once(self._work(_insert_new, batch), alone=True)
        left = [submission for submission in batch if submission.id not in inserted]
        return inserted | (await self.database.write_once(self._work(store, left)) if left else {})

    async def trial(self) -> Exception | None:
        """Store made-up submissions by the same statements and roll them back; what the database raised, None: nothing.

        None proves that the database accepts submissions now, so that one which it has just refused was refused for
        its own sake.
        """
        new, drained = _made_up_submissions()

        async def work(connection: AsyncConnection) -> None:
            await store(new, connection, require_standby=self.require_standby)
            await store(drained, connection)
            await connection.execute(_WITHOUT_COMMIT)
            ((is_noted,),) = await _IS_NOTED.rows(connection, {"id": new[0].id})
            if not is_noted:
                raise NotStoredError
            await connection.execute(ROLL_BACK)

        try:
            await self.database.write_once(work)
        except Exception as error:  # noqa: BLE001 # it is the result
            return error
        return None

    def _work(
        self, work: Callable[..., Awaitable[dict[UUID, T]]], batch: Sequence[SealedSubmission]
    ) -> Work[dict[UUID, T]]:
        return partial(work, batch, require_standby=self.require_standby)


async def store(
    submissions: Sequence[SealedSubmission],
    connection: AsyncConnection,
    *,
    require_standby: bool = False,
    open_erasures: OpenErasures | None = None,
    perhaps_erased: Mapping[UUID, UUID] | None = None,
) -> dict[UUID, Outcome]:
    """The outcome of each submission, applied in a transaction of the caller's; by id.

    Decided in their order: each sees what became of those before it. `perhaps_erased` names those whose person may have
    been erased after they were accepted, each with the erased lead. Raises NotStoredError, NoStandbyError with
    `require_standby`, and OpenErasuresError with `open_erasures`.
    """
    if any(submission.accepted_at for submission in submissions):
        # Before the look-up: its snapshot must hold what an erasure has made of them, or they are stored twice.
        await wait_for_erasures(connection)
        if open_erasures is not None:
            await open_erasures.require_none(connection)
    # What was refused already makes way.
    in_order = sorted(submissions, key=lambda entry: entry.refused)
    for attempt in range(ATTEMPTS):
        rows = await look_up(connection, in_order, again=attempt > 0, perhaps_erased=perhaps_erased or {})
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
    raise NotStoredError


def _with_stored_time(outcome: Outcome, created: Mapping[UUID, Created]) -> Outcome:
    """The outcome with the moment at which the database stored the lead, if it is a repeat of one of the same batch."""
    if isinstance(outcome, Created) and outcome.lead.id in created:
        return Created(created[outcome.lead.id].lead, is_new=False)
    return outcome


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


async def _apply(connection: AsyncConnection, decided: Sequence[tuple[SealedSubmission, Outcome]]) -> None:
    for entry, outcome in decided:
        match outcome:
            case Aliased(target_id):
                alias = {"id": entry.id, "target": target_id, "created_by": entry.created_by}
                await _ADD_ALIAS.rows(connection, alias)
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
    acknowledged = [entry.id for entry, outcome in decided if isinstance(outcome, Aliased | InConflict)]
    if acknowledged:
        ((stored,),) = await _COUNT_STORED.rows(connection, {"ids": acknowledged})
        if stored != len(acknowledged):
            raise NotStoredError
    await keep_refused(
        [(entry, outcome) for entry, outcome in decided if isinstance(outcome, DuplicateMatch)], connection
    )


def _entry(entry: SealedSubmission) -> dict[str, Any]:
    indexes = index_columns(entry.indexes)
    return {
        "id": str(entry.id),
        **{name: value.hex() if isinstance(value, bytes) else value for name, value in indexes.items()},
        "created_by": entry.created_by,
        "request_id": entry.request_id,
        "content_digest": entry.content_digest.hex(),
        "conversation_index": entry.indexes.conversation[0] if entry.indexes.conversation else None,
        "accepted_at": entry.accepted_at and entry.accepted_at.isoformat(),
        # Only an acknowledged submission can have been erased before; when it was accepted may be unknown.
        "accepted_from": entry.accepted_between[0].isoformat() if entry.accepted_between else "-infinity",
        **entry.fields,
    }


_FOUR_SIZES = "নমুনা Ж 例 😀"
"""Characters of one to four bytes: an encoding that lacks some of them refuses this like a customer's name."""

_EVERY_PLAN = 2**62
"""A plan of blind indexes that is never too old."""


def _made_up_submissions() -> tuple[list[SealedSubmission], list[SealedSubmission]]:
    """New submissions, and drained ones to be stored after them: a lead, a duplicate, an alias and a conflict.

    They share nothing with anybody, and their tokens name no key.
    """
    clear = dict.fromkeys(("name", "interested_policy", "preferred_contact_time", "source"), _FOUR_SIZES)
    lead = SealedSubmission(
        id=uuid4(),
        fields={**clear, **dict.fromkeys(SENSITIVE_FIELDS, f"trial{SEALED_FORM}")},
        created_by="leadkeep-trial",
        request_id=str(uuid4()),
        content_digest=secrets.token_bytes(32),
        indexes=BlindIndexes(
            epoch=_EVERY_PLAN,
            phone=(secrets.token_bytes(32), None),
            nid=(secrets.token_bytes(32), None),
            conversation=(f"trial.{uuid4()}",),
            email=f"trial.{uuid4()}",
        ),
    )
    duplicate = replace(lead, id=uuid4(), request_id=None)
    alias = replace(lead, id=uuid4(), accepted_at=datetime.now(UTC))
    other_nid = replace(lead.indexes, nid=(secrets.token_bytes(32), None))
    conflict = replace(alias, id=uuid4(), request_id=None, indexes=other_nid)
    return [lead, duplicate], [alias, conflict]
