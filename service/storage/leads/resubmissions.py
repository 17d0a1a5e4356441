"""Resubmissions: refused duplicates, kept sealed with the leads that they match, and limited by the hour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import DuplicateLimitError
from service.lead import LeadEventType, SealedResubmission, SealedSubmission
from service.storage import models
from service.storage.database.batcher import Entry, OnDemandBatcher
from service.storage.database.database import Database, Statement
from service.storage.database.failures import NotStoredError, is_driver_error, is_transient
from service.storage.leads.decision import DuplicateMatch
from service.storage.leads.queries import columns_of, fields_of

_DATED = "submitted_at"
_KEPT_COLUMNS = ", ".join(column.name for column in models.resubmission.c if column.name != _DATED)

# In the order of ids, as everything that locks leads does it.
_LOCK_MATCHED = Statement("SELECT FROM lead WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE")

# With the leads locked, a repeat of a submission is visible here, and is not kept twice.
_KEEP = Statement(f"""
    WITH given AS (
        SELECT kept.*, ARRAY(SELECT json_array_elements_text(entry -> 'earlier_digests')) AS earlier_digests,
            ARRAY(SELECT json_array_elements_text(entry -> 'conversation_indexes')) AS conversation_indexes
        FROM json_array_elements(CAST(:refused AS json)) AS list (entry),
            json_populate_record(CAST(NULL AS resubmission), entry) AS kept
        -- What was erased alone is not kept again by the rest of its call.
        WHERE NOT EXISTS (SELECT FROM tombstone t WHERE t.id = kept.submission_id)
    ), fresh AS MATERIALIZED (
        SELECT * FROM given WHERE NOT EXISTS (
            SELECT FROM resubmission kept
            WHERE (kept.lead_id, kept.submission_id) = (given.lead_id, given.submission_id))
        AND NOT EXISTS (
            SELECT FROM resubmission kept
            WHERE (kept.lead_id, kept.actor, kept.request_id) = (given.lead_id, given.actor, given.request_id)
                AND (kept.content_digest = given.content_digest
                     OR encode(kept.content_digest, 'hex') = ANY (given.earlier_digests)))
    ), linked AS (
        INSERT INTO lead_conversation (lead_id, submission_id, conversation_id, conversation_index)
        SELECT DISTINCT ON (lead_id, conversation_indexes[1])
            lead_id, submission_id, conversation_id, conversation_indexes[1]
        FROM given WHERE verified AND conversation_indexes <> '{{}}' AND NOT EXISTS (
            SELECT FROM lead_conversation known
            WHERE known.lead_id = given.lead_id AND known.conversation_index = ANY (given.conversation_indexes))
    ), added AS (
        INSERT INTO resubmission ({_DATED}, {_KEPT_COLUMNS})
        SELECT coalesce({_DATED}, now()), {_KEPT_COLUMNS} FROM fresh
        RETURNING lead_id, submission_id, actor, {_DATED}
    ), noted AS (
        INSERT INTO lead_event (type, lead_id, version, actor, at)
        SELECT {LeadEventType.RESUBMITTED:d}, lead.id, lead.version, added.actor, {_DATED}
        FROM added JOIN lead ON lead.id = added.lead_id ORDER BY {_DATED}, submission_id
        RETURNING id
    )
    SELECT (SELECT count(*) FROM fresh) AS fresh, (SELECT count(*) FROM added) AS added,
        (SELECT count(*) FROM noted) AS noted
""")  # noqa: S608 # our own names

COUNT_PATIENCE = 0.5
"""Seconds that a call waits for the count. Without one it goes on: a frozen database must not cost a lead."""

LARGEST_READ = 128
"""Subjects in a statement."""

# The duplicate that is the limit: while it is of this hour, so are all that came after it. A look at a lead without
# address, e-mail and notes by UpdateLead is recorded like a duplicate, and counts too.
_REFUSED_FOR = Statement("""
    SELECT asked.subject, CAST(extract(epoch FROM last.found_at + interval '1 hour' - now()) AS float8) AS seconds
    FROM unnest(CAST(:subjects AS text[])) AS asked (subject), LATERAL (
        SELECT found_at FROM (
            SELECT min(submitted_at) AS found_at FROM resubmission
            WHERE actor = asked.subject AND NOT verified AND submitted_at > now() - interval '1 hour'
            GROUP BY submission_id
            UNION ALL
            SELECT recorded_at FROM access_record a
            WHERE a.subject = asked.subject AND recorded_at > now() - interval '1 hour'
                AND operation = 'UpdateLead' AND fields <@ '{phone,nid}'
        ) AS found ORDER BY found_at DESC OFFSET CAST(:limit AS bigint) - 1 LIMIT 1) AS last
""")


async def keep_refused(refused: Sequence[tuple[SealedSubmission, DuplicateMatch]], connection: AsyncConnection) -> None:
    """Keep each submission with every lead that it matches; link its conversation if it is verified.

    Two statements, however many there are: a file that is imported may hold hundreds in one transaction.
    """
    rows: dict[tuple[UUID, object], dict[str, Any]] = {}
    for submission, match in refused:
        digest = submission.content_digest
        row = {
            **columns_of(submission),
            **submission.indexes.texts,
            "content_digest": f"\\x{digest.hex()}",
            "submission_id": str(submission.id),
            "actor": submission.created_by,
            # Of one that waited in a spool: an erasure takes what was submitted before it, whenever that was drained.
            "submitted_at": submission.accepted_at and submission.accepted_at.isoformat(),
            "verified": match.verified,
            "earlier_digests": [each.hex() for each in submission.earlier_digests],
            "conversation_indexes": submission.indexes.conversation,
        }
        same = (
            submission.id if submission.request_id is None else (submission.created_by, submission.request_id, digest)
        )
        for lead in match.leads:
            rows.setdefault((lead.id, same), row | {"lead_id": str(lead.id)})
    if rows:
        await _LOCK_MATCHED.rows(connection, {"ids": list({lead_id for lead_id, _ in rows})})
        (kept,) = await _KEEP.rows(connection, {"refused": to_json(list(rows.values())).decode()})
        if not kept.fresh == kept.added == kept.noted:
            raise NotStoredError


def resubmission_of(row: Any) -> SealedResubmission:
    """The resubmission of a row of the table."""
    return SealedResubmission(
        submission_id=row.submission_id,
        fields=fields_of(row),
        submitted_at=row.submitted_at,
        actor=row.actor,
        verified=row.verified,
    )


class DuplicateLimit:
    """Limit of the duplicates that a subject finds within an hour, by what the database keeps of them.

    Counted are resubmissions, except verified ones, and the accesses that duplicates of corrections leave: so the limit
    holds for all replicas and across restarts. Calls in flight when it is reached are still answered. While the
    database is away nobody is refused, because leads must be taken then; what is found in a spool counts when it is
    drained.
    """

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._counts = OnDemandBatcher[str, float | None](self._count, largest=LARGEST_READ)

    async def require_room(self, subject: str) -> None:
        """Raise DuplicateLimitError for a subject that has found as many duplicates within the hour as it may."""
        try:
            async with asyncio.timeout(COUNT_PATIENCE):
                seconds = await self._counts.submit(subject)
        except TimeoutError:
            return
        if seconds is not None:
            raise DuplicateLimitError(self._limit, max(1.0, seconds))

    async def _count(self, batch: list[Entry[str, float | None]]) -> None:
        wanted = {"subjects": list({entry.item for entry in batch}), "limit": self._limit}
        refused: dict[str, float] = {}
        try:
            refused = dict(await self._database.read_once(partial(_REFUSED_FOR.rows, parameters=wanted)))
        except Exception as error:
            if not (is_transient(error) or is_driver_error(error)):
                raise
        for entry in batch:
            entry.resolve(refused.get(entry.item))
