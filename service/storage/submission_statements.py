"""The statements by which submissions are stored, and those that find what stands in their way.

Each takes a whole batch. What their answers mean is decided in submissions.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from service.lead import CUSTOMER_FIELDS, BlindIndexes, SealedSubmission
from service.storage.database import Statement

_COLUMN_TYPES = {
    "id": "uuid",
    **dict.fromkeys(CUSTOMER_FIELDS, "text"),
    "phone_index": "bytea",
    "nid_index": "bytea",
    "phone_index_2": "bytea",
    "nid_index_2": "bytea",
    "index_epoch": "bigint",
    "created_by": "text",
    "request_id": "text",
    "content_digest": "bytea",
}
_COLUMNS = ", ".join(_COLUMN_TYPES)
_DIGESTS = tuple(name for name, kind in _COLUMN_TYPES.items() if kind == "bytea")
_GIVEN = ", ".join(f"{name} {'text' if name in _DIGESTS else kind}" for name, kind in _COLUMN_TYPES.items())
_VALUES = ", ".join(f"decode({name}, 'hex')" if name in _DIGESTS else name for name in _COLUMN_TYPES)

INSERT = Statement(
    text(f"""
    WITH inserted AS (
        INSERT INTO lead ({_COLUMNS}, created_at)
        SELECT {_VALUES}, coalesce(accepted_at, now())
        FROM ROWS FROM (json_to_recordset(CAST(:entries AS json)) AS ({_GIVEN}, accepted_at timestamptz))
            WITH ORDINALITY AS entry ({_COLUMNS}, accepted_at, place)
        WHERE NOT EXISTS (SELECT FROM lead_conflict c WHERE c.id = entry.id)
          AND NOT EXISTS (SELECT FROM lead_alias a WHERE a.id = entry.id)
          AND NOT EXISTS (SELECT FROM tombstone t WHERE t.id = entry.id)
          AND (accepted_at IS NULL OR entry.request_id IS NULL OR NOT EXISTS (
              SELECT FROM tombstone t WHERE t.erased_at >= entry.accepted_at
                 AND t.request_digest = sha256(convert_to(entry.created_by || E'\\n' || entry.request_id, 'UTF8'))))
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
)
"""One parameter, `entries`, so that the statement is the same for every size of a batch: it is prepared once a
connection. JSON is written by compiled code; psycopg builds arrays of text in Python, which took a third of a large
batch's time."""

# Locked in the order of ids, so that two batches which meet the same leads lock them in the same order.
LOOK_UP = Statement(
    text("""
    SELECT * FROM lead WHERE id IN (
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
CONFLICTS = Statement(
    text("""
    SELECT * FROM lead_conflict WHERE id IN (
        SELECT unnest(CAST(:id AS uuid[]))
        UNION
        SELECT c.id FROM lead_conflict c JOIN unnest(CAST(:created_by AS text[]), CAST(:request_id AS text[]))
            AS request (created_by, request_id) USING (created_by, request_id)
    ) ORDER BY accepted_at, id FOR KEY SHARE
""")
)
ALIASES = Statement(
    text("""
    SELECT a.id FROM lead_alias a JOIN lead l ON l.id = a.lead_id WHERE a.id = ANY(CAST(:id AS uuid[]))
    ORDER BY l.id FOR KEY SHARE OF l
""")
)


def index_columns(indexes: BlindIndexes) -> dict[str, Any]:
    """The blind indexes as columns of the table of leads."""
    return {
        "phone_index": indexes.phone[0],
        "nid_index": indexes.nid[0],
        "phone_index_2": indexes.phone[1],
        "nid_index_2": indexes.nid[1],
        "index_epoch": indexes.epoch,
    }


def entries_json(entries: Sequence[SealedSubmission]) -> str:
    """The parameter of INSERT. What meets another one of the same batch makes way to the one before it."""
    return json.dumps([_entry(entry) for entry in entries])


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
        "created_by": entry.created_by,
        "request_id": entry.request_id,
        "content_digest": entry.content_digest.hex(),
        "accepted_at": entry.accepted_at and entry.accepted_at.isoformat(),
        **entry.fields,
    }
