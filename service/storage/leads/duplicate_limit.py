"""Limit on the duplicates that a subject finds within an hour, by what the database keeps of them.

Counted are resubmissions, except verified ones, and the accesses that duplicates of corrections leave: so the limit
holds for all replicas and across restarts. Calls in flight when it is reached are still answered. While the database
is away nobody is refused, because leads must be taken then; what is found in a spool counts when it is drained.
"""

from __future__ import annotations

import asyncio
from functools import partial

from sqlalchemy import text

from service.errors import DuplicateLimitError
from service.storage.database.batcher import Entry, OnDemandBatcher
from service.storage.database.database import Database, Statement
from service.storage.database.failures import is_driver_error, is_transient

PATIENCE = 0.5
"""Seconds that a call waits for the count. Without one it goes on: a frozen database must not cost a lead."""

LARGEST_READ = 128
"""Subjects in a statement."""

# The duplicate that is the limit: while it is of this hour, so are all that came after it. A look at a lead without
# address, e-mail and notes by UpdateLead cannot be told from a duplicate, and counts too.
_REFUSED_FOR = Statement(
    text("""
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
)


class DuplicateLimit:
    """At most `limit` duplicates a subject and hour."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._counts = OnDemandBatcher[str, float | None](self._count, largest=LARGEST_READ)

    async def require_room(self, subject: str) -> None:
        """Raise DuplicateLimitError for a subject that has found as many duplicates within the hour as it may."""
        try:
            async with asyncio.timeout(PATIENCE):
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
