"""All leads of a span of time, one after the other, as one snapshot of the database shows them.

Promise: memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from service.lead import SENSITIVE_FIELDS, LeadStatus, SealedLead
from service.storage.failures import StorageFaultError, cause_of

ROWS_AHEAD = 500
"""Rows that are fetched, and held in memory, at once."""

_CONNECT_SECONDS = 5

_LEADS = """
    SELECT id, name, phone, nid, address, interested_policy, email, preferred_contact_time, notes, conversation_id,
           status, created_at, updated_at, version, assignee, resubmissions, created_by
    FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s ORDER BY created_at, id
"""

_COUNT = "SELECT count(*) FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s"


def exported_leads(url: str, start: datetime, end: datetime) -> Iterator[SealedLead]:
    """The leads that were created from `start` on and before `end`, oldest first. Raises StorageFaultError."""
    try:
        with psycopg.connect(
            url, connect_timeout=_CONNECT_SECONDS, application_name="leadkeep-export", options="-c timezone=UTC"
        ) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.cursor("exported", row_factory=dict_row) as cursor:
                cursor.itersize = ROWS_AHEAD
                for row in cursor.execute(_LEADS, {"start": start, "end": end}):
                    yield _lead(row)
    except psycopg.Error as error:
        # A driver's text may hold values, so that it does not leave this module.
        raise StorageFaultError(cause_of(error)) from None


def count_leads(url: str, start: datetime, end: datetime) -> int:
    """How many leads were created from `start` on and before `end`. Raises StorageFaultError."""
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT_SECONDS, application_name="leadkeep-export") as connection:
            row = connection.execute(_COUNT, {"start": start, "end": end}).fetchone()
    except psycopg.Error as error:
        raise StorageFaultError(cause_of(error)) from None
    return int(row[0]) if row else 0


def _lead(row: dict[str, Any]) -> SealedLead:
    sealed = {name: token for name in SENSITIVE_FIELDS if (token := row.pop(name)) is not None}
    return SealedLead(**row | {"status": LeadStatus(row["status"])}, sealed=sealed)
