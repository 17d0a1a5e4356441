"""Moves the histories of the first edition into the table `lead_event`, in transactions of the caller's.

A batch goes on where the table ends: it holds all that belongs to its leads, so a kill between two transactions or
within one loses nothing and doubles nothing. A lead of before gets its first event from its own row.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

BATCH_LEADS = 1000
"""Leads a transaction: tens of milliseconds, so that no snapshot is held for long, however many leads there are."""

# The numbers are those of the contract's LeadEventType.
_MOVE = text(f"""
    WITH batch AS (
        SELECT id, created_at, created_by FROM lead
        WHERE id > coalesce((SELECT lead_id FROM lead_event ORDER BY lead_id DESC LIMIT 1), CAST(:lowest AS uuid))
        ORDER BY id LIMIT {BATCH_LEADS}
    )
    INSERT INTO lead_event (lead_id, version, type, actor, reason, at, from_status, to_status, from_assignee,
        to_assignee)
    SELECT * FROM (
        SELECT id, 1 AS version, 1, created_by, NULL, created_at, NULL, NULL, NULL, NULL FROM batch
        UNION ALL
        SELECT lead_id, version, 3, actor, reason, changed_at, from_status, to_status, NULL, NULL
        FROM batch JOIN status_change ON lead_id = batch.id
        UNION ALL
        SELECT lead_id, version, 4, actor, reason, changed_at, NULL, NULL, from_assignee, to_assignee
        FROM batch JOIN assignment_change ON lead_id = batch.id
    ) AS moved ORDER BY id, version
""")  # noqa: S608 # our own number


def move_histories(connection: Connection) -> bool:
    """Move the histories of the next leads; whether there were any."""
    return connection.execute(_MOVE, {"lowest": "00000000-0000-0000-0000-000000000000"}).rowcount > 0
