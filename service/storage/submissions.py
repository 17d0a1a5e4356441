"""How submissions become leads, or meet one: two statements in one READ COMMITTED transaction, however many they are.

First an insert with ON CONFLICT DO NOTHING and no target, so that whichever unique index a rival holds, the insert
waits for that rival and then does nothing. For those for which it did nothing, a second statement looks for their own
ids, their request_ids, phones and nids. It is a statement of its own because one statement cannot see a rival that
committed while it waited. Submissions of one batch meet each other in the same way.

The look-up locks what it finds FOR KEY SHARE. That keeps the row while we answer for it, and it writes to the log: the
commit of every answer that rests on an existing row therefore waits for the synchronous standby. A plain look-up would
not, and could confirm a row that a failover then loses.

A submission that was acknowledged before (it waited in the spool) is never refused: what it meets makes it an alias of
the lead that its own request became elsewhere, or a conflict for a person to decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageUnavailableError
from service.lead import SealedLead, SealedSubmission
from service.storage import kept_resubmissions, models
from service.storage.outcomes import Aliased, Created, InConflict, Met, MetLead, Outcome, RequestIdReused, Waiting

INSERTS_TRIED = 3
"""A lead that stood in the way and was erased before we could look at it frees the way; this happens once at most in
practice, and the bound keeps a fault from turning into an endless loop."""

_COLUMN_TYPES = {
    "id": "uuid",
    "name": "text",
    "phone": "text",
    "nid": "text",
    "address": "text",
    "interested_policy": "text",
    "email": "text",
    "preferred_contact_time": "text",
    "notes": "text",
    "conversation_id": "text",
    "phone_index": "bytea",
    "nid_index": "bytea",
    "created_by": "text",
    "request_id": "text",
    "content_digest": "bytea",
}
_COLUMNS = ", ".join(_COLUMN_TYPES)
_DIGESTS = tuple(name for name, kind in _COLUMN_TYPES.items() if kind == "bytea")
_GIVEN = ", ".join(f"{name} {'text' if name in _DIGESTS else kind}" for name, kind in _COLUMN_TYPES.items())
_VALUES = ", ".join(f"decode({name}, 'hex')" if name in _DIGESTS else name for name in _COLUMN_TYPES)

# One parameter, so that the statement is the same for every size of a batch: it is prepared once a connection. JSON is
# written by C code; psycopg builds arrays of text in Python, which took a third of a large batch's time.
_INSERT = text(f"""
    WITH inserted AS (
        INSERT INTO lead ({_COLUMNS}, created_at)
        SELECT {_VALUES}, coalesce(accepted_at, now())
        FROM ROWS FROM (json_to_recordset(CAST(:entries AS json)) AS ({_GIVEN}, accepted_at timestamptz))
            WITH ORDINALITY AS entry ({_COLUMNS}, accepted_at, place)
        WHERE NOT EXISTS (SELECT FROM lead_conflict c WHERE c.id = entry.id)
          AND NOT EXISTS (SELECT FROM lead_alias a WHERE a.id = entry.id)
          AND (accepted_at IS NOT NULL OR NOT EXISTS (
              SELECT FROM lead_conflict c WHERE c.created_by = entry.created_by AND c.request_id = entry.request_id))
        ORDER BY place
        ON CONFLICT DO NOTHING
        RETURNING id, created_at, conversation_id
    ), linked AS (
        INSERT INTO lead_conversation (conversation_id, lead_id)
        SELECT conversation_id, id FROM inserted WHERE conversation_id IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT id, created_at FROM inserted
""")  # noqa: S608 # our own names

# Locked in the order of ids, so that two batches which meet the same leads lock them in the same order.
_LOOK_UP = text("""
    SELECT * FROM lead WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT l.id FROM lead l JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
        UNION
        SELECT l.id FROM lead l WHERE l.phone_index = ANY(CAST(:phone_index AS bytea[])) AND NOT l.phone_shared
        UNION
        SELECT l.id FROM lead l WHERE l.nid_index = ANY(CAST(:nid_index AS bytea[])) AND NOT l.nid_shared
    ) ORDER BY id FOR KEY SHARE
""")
_CONFLICTS = text("""
    SELECT * FROM lead_conflict WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT c.id FROM lead_conflict c JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
    ) ORDER BY accepted_at, id FOR KEY SHARE
""")
_ALIASES = text("""
    SELECT a.id FROM lead_alias a JOIN lead l ON l.id = a.lead_id WHERE a.id = ANY(CAST(:id AS uuid[]))
    ORDER BY l.id FOR KEY SHARE OF l
""")


def columns_of(submission: SealedSubmission, sensitive: Sequence[str]) -> dict[str, Any]:
    """The submission's columns, alike in the tables of leads, of resubmissions and of conflicts."""
    sealed = {name: submission.sealed.get(name) for name in sensitive}
    return sealed | {
        "name": submission.name,
        "interested_policy": submission.interested_policy,
        "preferred_contact_time": submission.preferred_contact_time,
        "conversation_id": submission.conversation_id,
        "request_id": submission.request_id,
        "content_digest": submission.content_digest,
    }


async def store(
    connection: AsyncConnection,
    submissions: Sequence[SealedSubmission],
    sensitive: Sequence[str],
    lead_of: Callable[[Row[Any]], SealedLead],
) -> dict[UUID, Outcome]:
    """Store each submission as a lead, or say what it meets and keep it there; by id, for every one of them."""
    outcomes: dict[UUID, Outcome] = {}
    # By phone, so that rival batches wait for each other in one direction; of two that meet the earlier one is first,
    # and what was refused already makes way.
    left = sorted(submissions, key=attrgetter("refused", "phone_index"))
    for _ in range(INSERTS_TRIED):
        inserted = await connection.execute(_INSERT, {"entries": _entries(left, sensitive)})
        created_at = {row.id: row.created_at for row in inserted}
        outcomes |= {entry.id: Created(entry.as_lead(created_at[entry.id])) for entry in left if entry.id in created_at}
        left = [entry for entry in left if entry.id not in created_at]
        if left:
            found = await _find(connection, left, lead_of)
            refused = []
            for entry in left:
                columns = columns_of(entry, sensitive)
                if outcome := await _settle(connection, entry, columns, found):
                    outcomes[entry.id] = outcome
                if isinstance(outcome, Met):
                    refused.append((entry, columns, outcome))
            await kept_resubmissions.keep(connection, refused)
            left = [entry for entry in left if entry.id not in outcomes]
        if not left:
            return outcomes
    raise StorageUnavailableError


def _entries(entries: Sequence[SealedSubmission], sensitive: Sequence[str]) -> str:
    plain = tuple(name for name in _COLUMN_TYPES if name not in sensitive and name not in (*_DIGESTS, "id"))
    return json.dumps(
        [
            {name: getattr(entry, name) for name in plain}
            | {name: getattr(entry, name).hex() for name in _DIGESTS}
            | {"id": str(entry.id), "accepted_at": entry.accepted_at and entry.accepted_at.isoformat()}
            | dict(entry.sealed)
            for entry in entries
        ]
    )


class _Found:
    """What stands in the way of a batch, by what may be met; all rows of leads are locked."""

    def __init__(
        self,
        leads: Sequence[Row[Any]],
        conflicts: Sequence[Row[Any]],
        aliases: frozenset[UUID],
        lead_of: Callable[[Row[Any]], SealedLead],
    ) -> None:
        self.leads = {row.id: row for row in leads}
        self.requests = {(row.created_by, row.request_id): row for row in leads if row.request_id is not None}
        # A lead that stands beside another one by decision is not met by what it shares: the other one is.
        self.phones = {row.phone_index: row for row in leads if not row.phone_shared}
        self.nids = {row.nid_index: row for row in leads if not row.nid_shared}
        self.conflicts = {row.id for row in conflicts}
        self.conflicts_of: dict[tuple[str, str], Row[Any]] = {}
        for row in conflicts:  # oldest first, and the oldest counts
            if row.request_id is not None:
                self.conflicts_of.setdefault((row.created_by, row.request_id), row)
        self.aliases = aliases
        self.lead_of = lead_of

    def met(self, phone_index: bytes | None, nid_index: bytes | None) -> Met | None:
        """Which leads have this phone and this nid."""
        phone = self.phones.get(phone_index) if phone_index is not None else None
        nid = self.nids.get(nid_index) if nid_index is not None else None
        if phone is None and nid is None:
            return None
        return Met(_met_lead(phone), _met_lead(nid))


def _met_lead(row: Row[Any] | None) -> MetLead | None:
    return None if row is None else MetLead(row.id, row.created_by)


async def _find(
    connection: AsyncConnection, entries: Sequence[SealedSubmission], lead_of: Callable[[Row[Any]], SealedLead]
) -> _Found:
    keys = {
        name: [getattr(entry, name) for entry in entries]
        for name in ("id", "created_by", "request_id", "phone_index", "nid_index")
    }
    leads = (await connection.execute(_LOOK_UP, keys)).all()
    conflicts = (await connection.execute(_CONFLICTS, keys)).all()
    aliases: frozenset[UUID] = frozenset()
    if any(entry.accepted_at for entry in entries):
        aliases = frozenset((await connection.execute(_ALIASES, keys)).scalars())
    return _Found(leads, conflicts, aliases, lead_of)


async def _settle(
    connection: AsyncConnection, entry: SealedSubmission, columns: dict[str, Any], found: _Found
) -> Outcome | None:
    """What became of a submission that was not inserted; None when nothing stands in its way any more."""
    if (own := found.leads.get(entry.id)) is not None:
        return Created(found.lead_of(own))
    if entry.id in found.aliases:
        return Aliased()
    if entry.id in found.conflicts:
        return InConflict()
    by_request = None if entry.request_id is None else (entry.created_by, entry.request_id)
    request = None if by_request is None else found.requests.get(by_request)
    same = request is not None and request.content_digest == entry.content_digest
    met = found.met(entry.phone_index, entry.nid_index)
    conflict = None if by_request is None else found.conflicts_of.get(by_request)
    if entry.accepted_at is not None:
        return await _settle_late(connection, entry, columns, request, conflict, same=same, met=met)
    if request is not None:
        return Created(found.lead_of(request)) if same else RequestIdReused()
    if conflict is not None:
        same = conflict.content_digest == entry.content_digest
        decided = conflict.resolution is not None
        return Waiting(conflict.id, conflict.accepted_at, decided) if same else RequestIdReused()
    return met


async def _settle_late(
    connection: AsyncConnection,
    entry: SealedSubmission,
    columns: dict[str, Any],
    request: Row[Any] | None,
    earlier: Row[Any] | None,
    *,
    same: bool,
    met: Met | None,
) -> Outcome | None:
    if request is not None and same:
        await _alias(connection, entry, request.id)
        return Aliased()
    if entry.refused and met is not None:
        return met
    if request is None and met is None:
        return None
    if earlier is not None and earlier.content_digest != entry.content_digest:
        earlier = None
    if earlier is not None and earlier.resolution is not None:
        # Decided meanwhile: this id leads where that one leads.
        decided = func.coalesce(_alias_of(earlier.id), earlier.id)
        await _alias(connection, entry, decided)
        return Aliased()
    conflict = columns | {
        "id": entry.id,
        "created_by": entry.created_by,
        "accepted_at": entry.accepted_at,
        "phone_lead_id": met.phone.id if met and met.phone else None,
        "nid_lead_id": met.nid.id if met and met.nid else None,
        "request_lead_id": request.id if request is not None else None,
        "repeats": earlier.id if earlier is not None else None,
    }
    await connection.execute(insert(models.LeadConflict).values(conflict).on_conflict_do_nothing())
    return InConflict()


async def _alias(connection: AsyncConnection, entry: SealedSubmission, lead_id: Any) -> None:
    alias = {"id": entry.id, "lead_id": lead_id, "created_by": entry.created_by}
    await connection.execute(insert(models.LeadAlias).values(alias).on_conflict_do_nothing())


def _alias_of(conflict_id: UUID) -> Any:
    table = models.LeadAlias
    return select(table.lead_id).where(table.id == conflict_id).scalar_subquery()


async def look_up(
    connection: AsyncConnection, phone_index: bytes | None, nid_index: bytes | None, *, other_than: UUID
) -> Met | None:
    """Which leads other than one have this phone or this nid; locks them."""
    keys: dict[str, list[Any]] = {
        "id": [],
        "created_by": [],
        "request_id": [],
        "phone_index": [phone_index],
        "nid_index": [nid_index],
    }
    rows = (await connection.execute(_LOOK_UP, keys)).all()
    others = _Found([row for row in rows if row.id != other_than], [], frozenset(), lead_of=_not_asked)
    return others.met(phone_index, nid_index)


def _not_asked(_row: Row[Any]) -> SealedLead:
    raise AssertionError("a look-up answers ids only")
