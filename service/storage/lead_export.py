"""All leads of a span of time, one after the other, as one snapshot of the database shows them.

Promise: memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg
from psycopg.rows import namedtuple_row

from service.lead import SealedLead
from service.storage.failures import StorageFaultError, cause_of
from service.storage.lead_queries import COLUMNS, lead_of_row

ROWS_AHEAD = 500
"""Rows that are fetched, and held in memory, at once."""

_CONNECT_SECONDS = 5
_SPAN = "FROM lead WHERE created_at >= %(start)s AND created_at < %(end)s"


def exported_leads(url: str, start: datetime, end: datetime) -> Iterator[SealedLead]:
    """The leads that were created from `start` on and before `end`, oldest first. Raises StorageFaultError."""
    columns = ", ".join(column.name for column in COLUMNS)
    query = f"SELECT {columns} {_SPAN} ORDER BY created_at, id"  # our own names
    with _snapshot(url) as connection, connection.cursor("exported", row_factory=namedtuple_row) as cursor:
        cursor.itersize = ROWS_AHEAD
        for row in cursor.execute(query.encode(), {"start": start, "end": end}):
            yield lead_of_row(row)


def count_leads(url: str, start: datetime, end: datetime) -> int:
    """How many leads were created from `start` on and before `end`. Raises StorageFaultError."""
    with _snapshot(url) as connection:
        row = connection.execute(f"SELECT count(*) {_SPAN}".encode(), {"start": start, "end": end}).fetchone()
        return int(row[0]) if row else 0


@contextmanager
def _snapshot(url: str) -> Iterator[psycopg.Connection]:
    try:
        with psycopg.connect(
            url, connect_timeout=_CONNECT_SECONDS, application_name="leadkeep-export", options="-c timezone=UTC"
        ) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            yield connection
    except psycopg.Error as error:
        # A driver's text may hold values, so that it does not leave this module.
        raise StorageFaultError(cause_of(error)) from None
