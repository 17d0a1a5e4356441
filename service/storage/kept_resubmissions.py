"""Refused duplicates, kept sealed with the leads that they met: the newest few of each lead, and a count of all.

Two statements, however many duplicates there are: a file that is imported may hold hundreds in one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.lead import SealedSubmission
from service.storage import models
from service.storage.database import Statement
from service.storage.outcomes import Met

_COUNTED = ("lead_id", "slot", "submitted_at")
_COLUMNS = tuple(column.name for column in models.table(models.Resubmission).c if column.name not in _COUNTED)
_LISTED = ", ".join(_COLUMNS)

# In the order of ids, as everything that locks leads does it.
_LOCK = Statement(text("SELECT id FROM lead WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE"))

# With the leads locked, a repeat of a submission is visible here, and is neither kept nor counted twice.
_KEEP = Statement(
    text(f"""
    WITH given AS (
        SELECT kept.*, ordinality, ARRAY(SELECT json_array_elements_text(entry -> 'earlier_digests')) AS earlier_digests
        FROM json_array_elements(CAST(:refused AS json)) WITH ORDINALITY AS list (entry, ordinality),
            json_populate_record(CAST(NULL AS resubmission), entry) AS kept
    ), linked AS (
        INSERT INTO lead_conversation (conversation_id, lead_id)
        SELECT DISTINCT conversation_id, lead_id FROM given WHERE verified AND conversation_id IS NOT NULL
        ON CONFLICT DO NOTHING
    ), fresh AS (
        SELECT given.*, row_number() OVER (PARTITION BY lead_id ORDER BY ordinality) AS nth,
               count(*) OVER (PARTITION BY lead_id) AS added
        FROM given WHERE NOT EXISTS (
            SELECT FROM resubmission kept WHERE kept.lead_id = given.lead_id AND (
                kept.submission_id = given.submission_id
                OR (kept.actor, kept.request_id) = (given.actor, given.request_id)
                    AND (kept.content_digest = given.content_digest
                         OR encode(kept.content_digest, 'hex') = ANY (given.earlier_digests))))
    ), counted AS (
        UPDATE lead SET resubmissions = resubmissions + fresh.added FROM fresh WHERE lead.id = lead_id AND nth = 1
        RETURNING lead.id, resubmissions - added AS before
    )
    INSERT INTO resubmission (lead_id, slot, submitted_at, {_LISTED})
    SELECT lead_id, (before + nth - 1) % {models.RESUBMISSIONS_KEPT}, coalesce(submitted_at, now()), {_LISTED}
    FROM fresh JOIN counted ON counted.id = lead_id WHERE added - nth < {models.RESUBMISSIONS_KEPT}
    ON CONFLICT (lead_id, slot) DO UPDATE SET submitted_at = excluded.submitted_at,
        {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
""")  # noqa: S608 # our own names
)


async def keep(connection: AsyncConnection, refused: Sequence[tuple[SealedSubmission, Mapping[str, Any], Met]]) -> None:
    """Keep each submission, with its columns, at every lead that it met; link its conversation if it is verified."""
    rows: dict[tuple[UUID, object], dict[str, Any]] = {}
    for submission, columns, met in refused:
        digest = submission.content_digest
        row = dict(columns) | {
            "content_digest": f"\\x{digest.hex()}",
            "submission_id": str(submission.id),
            "actor": submission.created_by,
            # Of one that waited in a spool: an erasure takes what was submitted before it, whenever that was drained.
            "submitted_at": submission.accepted_at and submission.accepted_at.isoformat(),
            "verified": met.verified,
            "earlier_digests": [each.hex() for each in submission.earlier_digests],
        }
        same = (
            submission.id if submission.request_id is None else (submission.created_by, submission.request_id, digest)
        )
        for lead in met.leads:
            rows.setdefault((lead.id, same), row | {"lead_id": str(lead.id)})
    if rows:
        await _LOCK.rows(connection, {"ids": list({lead_id for lead_id, _ in rows})})
        await _KEEP.rows(connection, {"refused": json.dumps(list(rows.values()))})
