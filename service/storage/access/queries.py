"""The access record: begins, extends and ends its chains, counts a subject's entries, and lists entries.

It never holds a value. The application's role may add to it and read it, nothing else. See access_chain.py for
its digests, and access_writer.py for the one writer of a process.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID

from sqlalchemy import insert, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from service.keys.encryption import EncryptionService
from service.storage import models
from service.storage.access.chain import (
    NOTHING_BEFORE,
    Access,
    Chain,
    Head,
    RecordedAccess,
    Registration,
    earlier_digest,
    entry_payload,
    head_payload,
    recorded_access,
    registration_payload,
)
from service.storage.database.database import Database

HOUR = timedelta(hours=1)
"""Span over which a subject's entries are counted."""

HEADS_LOOKED_BACK = 1000
"""Newest heads that are read each time: one that was numbered earlier may be committed later."""

_REGISTRY_LOCK = 0x4C4B_4143  # "LKAC": registrations follow each other, so that each covers the one before it

# Given to the driver as it is: a statement that is compiled and bound by SQLAlchemy takes a third longer.
_ADD = """
    WITH added AS (
        INSERT INTO access_record (recorded_at, subject, operation, lead_id, fields, reason, request_id,
                                   chain_id, number, key_id, digest)
        SELECT %(recorded_at)s, subject, operation, lead_id, string_to_array(fields, ','), reason, request_id,
               %(chain_id)s, number, %(key_id)s, digest
        FROM unnest(%(numbers)s::bigint[], %(subjects)s::text[], %(operations)s::text[], %(lead_ids)s::uuid[],
                    %(fields)s::text[], %(reasons)s::text[], %(request_ids)s::text[], %(digests)s::bytea[])
             AS entry (number, subject, operation, lead_id, fields, reason, request_id, digest)
    )
    INSERT INTO access_head (chain_id, number, digest, ended, key_id, seal)
    VALUES (%(chain_id)s, %(last)s, %(last_digest)s, false, %(key_id)s, %(seal)s)
"""

# Ordered, so that two writers with the same subjects take turns instead of waiting for each other.
_COUNT_ALONE = text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key")
_COUNT = text("""
    SELECT subject, count(*) AS used FROM access_record
    WHERE subject = ANY(CAST(:subjects AS text[])) AND recorded_at > :since GROUP BY subject
""")
_LEAVES_NEXT = text("""
    SELECT recorded_at FROM access_record WHERE subject = :subject AND recorded_at > :since
    ORDER BY recorded_at, id OFFSET :behind LIMIT 1
""")

_HEADS = text("""
    SELECT DISTINCT ON (head.chain_id) chain.number AS chain_number,
           head.chain_id, head.number, head.digest, head.ended, head.key_id, head.seal
    FROM access_head head JOIN access_chain chain ON chain.id = head.chain_id
    WHERE head.id > (SELECT coalesce(max(id), 0) FROM access_head) - :looked_back
    ORDER BY head.chain_id, head.number DESC, head.ended DESC
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessFilter:
    """Which entries are wanted; None means any. The span is half-open."""

    lead_id: UUID | None = None
    subject: str | None = None
    recorded_after: datetime | None = None
    recorded_before: datetime | None = None


class AccessRecords:
    """The access record of one database."""

    def __init__(self, database: Database, encryption: EncryptionService) -> None:
        self._database = database
        self._encryption = encryption

    async def begin_chain(self, connection: AsyncConnection, chain_id: UUID, writer: str, now: datetime) -> Chain:
        """Register a chain. Registrations of one database wait for each other."""
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _REGISTRY_LOCK})
        registered = models.access_chain
        before = (
            await connection.execute(
                select(registered.c.number, registered.c.digest).order_by(registered.c.number.desc()).limit(1)
            )
        ).one_or_none()
        key_id = self._encryption.audit_key_id
        earlier = await self._earlier(connection, key_id) if before is None else (None, None)
        registration = Registration(
            number=before.number + 1 if before else 1,
            id=chain_id,
            writer=writer,
            began_at=now,
            earlier_entries=earlier[0],
            earlier_digest=earlier[1],
        )
        payload = registration_payload(before.digest if before else NOTHING_BEFORE, registration)
        digest = self._encryption.audit_digest(key_id, payload)
        await connection.execute(insert(registered).values(**asdict(registration), key_id=key_id, digest=digest))
        return Chain(registration.number, Head(chain_id=chain_id, number=0, digest=digest))

    async def extend_chain(
        self, connection: AsyncConnection, chain: Chain, accesses: Sequence[Access], now: datetime
    ) -> Chain:
        """Add entries to a chain; the chain as it is then."""
        key_id, chain_id = self._encryption.audit_key_id, chain.head.chain_id
        digest, digests = chain.head.digest, []
        numbers = range(chain.head.number + 1, chain.head.number + 1 + len(accesses))
        for number, access in zip(numbers, accesses, strict=True):
            digest = self._encryption.audit_digest(key_id, entry_payload(chain_id, number, digest, now, access))
            digests.append(digest)
        head = Head(chain_id=chain_id, number=numbers[-1], digest=digest)
        await connection.exec_driver_sql(
            _ADD,
            {
                "recorded_at": now,
                "chain_id": chain_id,
                "key_id": key_id,
                "numbers": list(numbers),
                "subjects": [access.subject for access in accesses],
                "operations": [access.operation for access in accesses],
                "lead_ids": [access.lead_id for access in accesses],
                "fields": [",".join(access.fields) for access in accesses],
                "reasons": [access.reason for access in accesses],
                "request_ids": [access.request_id for access in accesses],
                "digests": digests,
                "last": head.number,
                "last_digest": digest,
                "seal": self._encryption.audit_digest(key_id, head_payload(head)),
            },
        )
        return replace(chain, head=head)

    async def end_chain(self, chain: Chain) -> Chain:
        """Write a head that ends a chain. Tries once: raises the driver's error, see failures.py."""
        head, key_id = replace(chain.head, ended=True), self._encryption.audit_key_id
        seal = self._encryption.audit_digest(key_id, head_payload(head))

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(models.access_head).values(**asdict(head), key_id=key_id, seal=seal))

        await self._database.write_once(work)
        return replace(chain, head=head)

    async def count_in_hour(
        self, connection: AsyncConnection, subjects: Set[str], now: datetime, *, alone: bool = False
    ) -> dict[str, int]:
        """How many entries these subjects have in the hour before `now`; `alone`: nobody else counts them meanwhile."""
        if alone:
            keys = sorted(_lock_key(subject) for subject in subjects)
            await connection.execute(_COUNT_ALONE, {"keys": keys})
        counted = await connection.execute(_COUNT, {"subjects": list(subjects), "since": now - HOUR})
        return dict.fromkeys(subjects, 0) | {row.subject: row.used for row in counted}

    async def leaves_hour_at(
        self, connection: AsyncConnection, subject: str, now: datetime, *, behind: int
    ) -> datetime | None:
        """When the oldest entry but `behind` of a subject's hour leaves it."""
        recorded_at: datetime | None = (
            await connection.execute(_LEAVES_NEXT, {"subject": subject, "since": now - HOUR, "behind": behind})
        ).scalar_one_or_none()
        return recorded_at + HOUR if recorded_at else None

    async def newest_heads(self) -> list[Chain]:
        """How far the chains reach that were written to lately; heads that were not sealed by us are left out."""
        found = []
        for row in await self._database.rows(_HEADS, {"looked_back": HEADS_LOOKED_BACK}):
            head = Head(chain_id=row.chain_id, number=row.number, digest=row.digest, ended=row.ended)
            known = self._encryption.has_audit_key(row.key_id)
            if known and self._encryption.audit_digest(row.key_id, head_payload(head)) == row.seal:
                found.append(Chain(row.chain_number, head))
        return found

    async def find(
        self, wanted: AccessFilter, *, after: tuple[datetime, int] | None, limit: int
    ) -> list[RecordedAccess]:
        """At most `limit` entries behind the position `after`, newest first."""
        record = models.access_record.c
        query = select(models.access_record).order_by(record.recorded_at.desc(), record.id.desc()).limit(limit)
        if after is not None:
            query = query.where(tuple_(record.recorded_at, record.id) < tuple_(*after))
        if wanted.lead_id is not None:
            query = query.where(record.lead_id == wanted.lead_id)
        if wanted.subject is not None:
            query = query.where(record.subject == wanted.subject)
        if wanted.recorded_after is not None:
            query = query.where(record.recorded_at >= wanted.recorded_after)
        if wanted.recorded_before is not None:
            query = query.where(record.recorded_at < wanted.recorded_before)
        return [recorded_access(row._asdict()) for row in await self._database.rows(query)]

    async def _earlier(self, connection: AsyncConnection, key_id: str) -> tuple[int, bytes]:
        record = models.access_record.c
        query = select(models.access_record).where(record.chain_id.is_(None)).order_by(record.id)
        rows = (await connection.execute(query)).mappings()
        return earlier_digest(self._encryption, key_id, map(recorded_access, rows))


def _lock_key(subject: str) -> int:
    return int.from_bytes(sha256(f"leadkeep unmask limit {subject}".encode()).digest()[:8], "big", signed=True)
