"""Counts of leads within a span of time, by one of five groups.

Promise: a summary names no column but these five, so that nobody can count guesses of a value that is masked. One runs
at a time, for SUMMARY_SECONDS at most, and on one of the server's processors: leads that come in meanwhile go first.

Each statement reads the span of one index, in which every lead has these values, and of the table only pages that were
changed since they were vacuumed: as its leads lie there in the order of that index, each such page is read once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from service.errors import QueueFullError
from service.lead import LeadGroup
from service.storage.database.database import Database, Statement

MOST_GROUPS = 1000
"""More are no overview, and an answer must not grow with what callers enter."""

SUMMARY_SECONDS = 5.0
"""How long the server works on a summary: more than twice what 400 days of a million leads take."""

TURN_SECONDS = 2.0
"""How long a summary waits for the ones before it: those of a page that shows all five groups take no longer. One that
waits occupies a place that a new lead may need."""

_SPAN = """
    created_at >= CAST(:after AS timestamptz) AND created_at < CAST(:before AS timestamptz)
    AND (CAST(:created_by AS text) IS NULL OR created_by = CAST(:created_by AS text))
"""


def _leads(group: LeadGroup) -> str:
    """The values of the leads of a span, in the order of the index by creation, which OFFSET keeps.

    PostgreSQL would take the index of the group, in whose order it looks at the changed pages again and again.
    """
    return f"(SELECT {group} AS key FROM lead WHERE {_SPAN} ORDER BY created_at, id OFFSET 0) in_order"  # noqa: S608


_BY_VALUE: Mapping[LeadGroup, Statement] = {
    group: Statement(f"""
        SELECT key, count, CAST(sum(count) OVER () AS bigint) AS total,
            CAST(sum(count) FILTER (WHERE key IS NOT NULL) OVER () AS bigint) AS with_value
        FROM (SELECT key, count(*) AS count FROM {_leads(group)} GROUP BY 1) counted
        ORDER BY count DESC, key COLLATE "C" LIMIT {MOST_GROUPS + 1}
    """)  # noqa: S608 # our own names
    for group in (LeadGroup.STATUS, LeadGroup.POLICY, LeadGroup.SOURCE, LeadGroup.ASSIGNEE)
}

_BY_DAY = Statement(f"""
    SELECT width_bucket(created_at, CAST(:starts AS timestamptz[])) AS number, count(*) AS count FROM lead
    WHERE {_SPAN} GROUP BY 1
""")  # noqa: S608 # our own names


@dataclass(frozen=True, slots=True)
class Counted:
    """The largest groups, and all leads of the span."""

    groups: dict[str, int]
    """By value, the largest first; at least MOST_GROUPS, if there are so many."""
    with_value: int
    """Leads that have a value, those of further groups included."""
    total: int


class LeadSummaries:
    """The counts of one replica."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()

    async def by_value(self, group: LeadGroup, after: datetime, before: datetime, created_by: str | None) -> Counted:
        """How many leads have each value. Raises QueueFullError, QueryTimeoutError, StorageUnavailableError."""
        found = await self._rows(_BY_VALUE[group], {"after": after, "before": before, "created_by": created_by})
        groups = {row.key: row.count for row in found if row.key is not None}
        return Counted(groups, (found[0].with_value or 0) if found else 0, found[0].total if found else 0)

    async def by_day(self, starts: Sequence[datetime], before: datetime, created_by: str | None) -> list[int]:
        """How many leads were created from each of `starts` to before the next one. Raises like `by_value`."""
        parameters = {"starts": list(starts), "after": starts[0], "before": before, "created_by": created_by}
        counts = {row.number: row.count for row in await self._rows(_BY_DAY, parameters)}
        return [counts.get(number + 1, 0) for number in range(len(starts))]

    async def _rows(self, statement: Statement, parameters: dict[str, Any]) -> list[Any]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise QueueFullError from None
        try:
            return await self._database.read_within(SUMMARY_SECONDS, partial(statement.rows, parameters=parameters))
        finally:
            self._turn.release()
