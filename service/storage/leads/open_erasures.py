"""Open erasures: what each replica has yet to erase from its spool, one row for each replica and erasure.

Promises: the row of an erased lead is noted in the transaction of the erasure, for each other replica in whose spool
something may wait, and removed when nothing of the person is left there. A replica stores nothing from its spool as
long as there is a row of it, so that an erased person never becomes a lead in between.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.keys.encryption import EncryptionService
from service.storage.database.database import Database, Statement
from service.storage.spool.search import SearchKeys, Sought

RUNS = "(r.state = 'running' AND r.seen_at > clock_timestamp() - interval '30 s')"
"""Whether a replica has sent a heartbeat lately, so that its answer is worth waiting for."""

MAY_HOLD = "(r.state = 'running' OR r.spool_keys <> '{}')"
"""Whether something may wait in a replica's spool. One that stopped with an empty spool is often gone for good."""

# Whoever asks again for the same adds nothing.
_NOTE = f"""
    INSERT INTO spool_erasure (replica, erased_id, sought)
    SELECT r.name, erased.id, CAST(:sought AS jsonb) FROM replica r, %s AS erased (id)
    WHERE {MAY_HOLD} AND r.name <> ALL (CAST(:but AS text[])) AND NOT EXISTS (
        SELECT FROM spool_erasure e
        WHERE e.replica = r.name AND e.erased_id = erased.id AND e.sought @> CAST(:sought AS jsonb))
"""  # noqa: S608 # our own text
_NOTE_LEAD = Statement(
    _NOTE % "(SELECT coalesce((SELECT with_it.id FROM tombstone with_it WHERE with_it.id = t.lead_id), t.id)"
    " FROM tombstone t WHERE t.id = :lead_id)"
)
_NOTE_ALONE = Statement(_NOTE % "(SELECT t.id FROM tombstone t WHERE t.id = ANY(CAST(:ids AS uuid[])))")
IS_OPEN = "SELECT 1 FROM spool_erasure e JOIN tombstone t ON t.id = e.erased_id WHERE e.replica = :replica LIMIT 1"
"""A row if a replica has erasures to apply."""

WAITING = """
    SELECT replica, count(*) AS erasures,
        CAST(extract(epoch FROM clock_timestamp() - min(opened_at)) AS double precision) AS seconds
    FROM spool_erasure GROUP BY replica ORDER BY replica
"""
"""The columns of WaitingErasures."""

_IS_OPEN = Statement(IS_OPEN)
_OPEN = Statement("""
    SELECT e.id, e.erased_id, e.sought, stone.erased_at, stone.erased_by, stone.reason,
        stone.lead_id <> e.erased_id AS alone,
        ARRAY(SELECT t.id FROM tombstone t WHERE t.lead_id = e.erased_id) AS ids,
        ARRAY(SELECT t.request_digest FROM tombstone t
              WHERE e.erased_id IN (t.lead_id, t.id) AND t.request_digest IS NOT NULL) AS requests
    FROM spool_erasure e JOIN tombstone stone ON stone.id = e.erased_id
    WHERE e.replica = :replica ORDER BY e.id
""")
_CLOSE = Statement("DELETE FROM spool_erasure WHERE id = :id")
_LEFT = text(f"""
    SELECT DISTINCT e.replica, {RUNS} IS TRUE AS runs
    FROM spool_erasure e LEFT JOIN replica r ON r.name = e.replica
    WHERE e.erased_id = ANY(CAST(:ids AS uuid[]))
       OR e.erased_id IN (SELECT t.lead_id FROM tombstone t WHERE t.id = ANY(CAST(:ids AS uuid[])))
    ORDER BY 1
""")  # noqa: S608 # our own text
_WITH_KEY = text("""
    SELECT replica, count(*) AS erasures FROM spool_erasure WHERE sought @> CAST(:scheme AS jsonb)
    GROUP BY replica ORDER BY replica
""")


class OpenErasuresError(Exception):
    """Nothing may be stored from this replica's spool before its open erasures are applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenErasure:
    """One erasure that this replica has yet to apply to its spool."""

    id: int
    erased_id: UUID
    """The lead, or the submission alone, that was erased."""
    alone: bool
    """Whether nothing else of the person was."""
    sought: Sought = field(repr=False)
    erased_at: datetime
    erased_by: str
    reason: str | None
    ids: frozenset[UUID]
    """Of everything that was erased with it."""
    requests: frozenset[bytes] = field(repr=False)
    """The digests of the requests of that, see erasing.py."""

    def is_same_person(self, keys: SearchKeys) -> bool:
        """Whether a submission has both the phone and the nid of the erased person."""
        return not self.sought.phones.isdisjoint(keys.phones) and not self.sought.nids.isdisjoint(keys.nids)


@dataclass(frozen=True, slots=True)
class WaitingErasures:
    """The erasures that wait for one replica, and for how many seconds the oldest one has."""

    replica: str
    erasures: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OpenErasures:
    """The open erasures of one database, as one replica notes and applies them."""

    replica: str
    encryption: EncryptionService

    async def note_lead(
        self, connection: AsyncConnection, lead_id: UUID, *, phones: Collection[bytes], nids: Collection[bytes]
    ) -> None:
        """Ask every other replica to erase a lead's person, in the transaction that added the lead's tombstone.

        The person's ids and requests are not passed on: a replica reads them from the tombstones.
        """
        plan = self.encryption.plan
        sought = Sought(schemes=plan.schemes if plan else (), phones=frozenset(phones), nids=frozenset(nids))
        given = {"sought": sought.to_json(), "lead_id": lead_id, "but": [self.replica]}
        await _NOTE_LEAD.rows(connection, given)

    async def note_alone(self, connection: AsyncConnection, ids: Collection[UUID]) -> None:
        """Ask every replica, this one too, to erase those of these submissions that have a tombstone of their own."""
        await _NOTE_ALONE.rows(connection, {"sought": Sought().to_json(), "ids": list(ids), "but": list[str]()})

    async def require_none(self, connection: AsyncConnection) -> None:
        """Raise OpenErasuresError if this replica has erasures to apply."""
        if await _IS_OPEN.rows(connection, {"replica": self.replica}):
            raise OpenErasuresError

    async def all(self, connection: AsyncConnection) -> list[OpenErasure]:
        """Those that this replica has to apply, oldest first."""
        return [
            OpenErasure(
                id=row.id,
                erased_id=row.erased_id,
                alone=row.alone,
                sought=Sought.of(row.sought),
                erased_at=row.erased_at,
                erased_by=row.erased_by,
                reason=row.reason,
                ids=frozenset((row.erased_id, *row.ids)),
                requests=frozenset(row.requests),
            )
            for row in await _OPEN.rows(connection, {"replica": self.replica})
        ]


async def close(connection: AsyncConnection, erasure: OpenErasure) -> None:
    """Note that nothing of the person is left in the replica's spool."""
    await _CLOSE.rows(connection, {"id": erasure.id})


async def replicas_left(database: Database, ids: Collection[UUID]) -> dict[str, bool]:
    """The replicas that have yet to apply the erasures of some ids, and whether each runs."""
    return {row.replica: row.runs for row in await database.rows(_LEFT, {"ids": list(ids)})}


async def waiting_erasures(database: Database) -> list[WaitingErasures]:
    """The erasures that wait, by replica."""
    return [WaitingErasures(row.replica, row.erasures, row.seconds) for row in await database.rows(text(WAITING))]


async def erasures_with_key(database: Database, key_id: str) -> list[str]:
    """The erasures that wait and whose digests were made with an index key: a line for each replica."""
    scheme = json.dumps({"schemes": [{"key_id": key_id}]})
    return [
        f"{row.erasures} erasures that wait for the replica {row.replica}: start it, or, if it is gone for good"
        for row in await database.rows(_WITH_KEY, {"scheme": scheme})
    ]
