"""The access record: who looked at what, as digest chains; begins, extends, ends, counts and lists their entries.

Promise: an entry that was changed, moved to another place or chain, or made without the audit key does not fit. Each
entry covers the digest of the one before it, the first one that of its chain's registration, each registration that of
the registration before it, and the first registration what was recorded before there were chains. The record never
holds a value, and the application's role may add to it and read it, nothing else.

Form: HMAC-SHA256 with a key of the keyring's audit root over framed values. A value is framed as 00 when it is absent,
else as 01, its length (4 bytes, big-endian) and its bytes: texts in UTF-8, ids as 16 bytes, numbers as 8 bytes
big-endian, times as microseconds since 1970, lists as their framed items. The first value names what is digested.

Heads state how far a chain reaches. They are in the database, and in the log, where whoever can change the database
cannot change them: a line when a chain begins and ends, and every minute; `leadkeep audit verify --heads` compares such
lines with the record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from operator import eq, ge, lt
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.keys.encryption import EncryptionService
from service.storage import models
from service.storage.database.database import Database, page_of
from service.storage.database.failures import NotStoredError

NOTHING_BEFORE = bytes(32)
"""Stands for the digest before the first one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Value = bytes | str | int | UUID | datetime | bool | Sequence[str] | None

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
        RETURNING number
    ), sealed AS (
        INSERT INTO access_head (chain_id, number, digest, ended, key_id, seal)
        VALUES (%(chain_id)s, %(last)s, %(last_digest)s, false, %(key_id)s, %(seal)s)
        RETURNING number
    )
    SELECT count(*) FROM added JOIN sealed ON added.number <= sealed.number
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
class Access:
    """Who looks at which fields in clear, by which rpc or command. `lead_id` is None when the look found no lead."""

    subject: str
    operation: str
    fields: Sequence[str]
    lead_id: UUID | None = None
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedAccess:
    """An entry of the record. Entries from before there were chains have neither chain nor number."""

    id: int
    recorded_at: datetime
    access: Access
    chain_id: UUID | None
    number: int | None


def recorded_access(row: Mapping[Any, Any]) -> RecordedAccess:
    """The entry of a row of the table `access_record`."""
    return RecordedAccess(
        id=row["id"],
        recorded_at=row["recorded_at"],
        access=Access(
            subject=row["subject"],
            operation=row["operation"],
            lead_id=row["lead_id"],
            fields=row["fields"],
            reason=row["reason"],
            request_id=row["request_id"],
        ),
        chain_id=row["chain_id"],
        number=row["number"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The beginning of a chain, as it is registered."""

    number: int
    id: UUID
    writer: str
    began_at: datetime
    earlier_entries: int | None
    earlier_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a chain reaches: the number and digest of its last entry; 0 and the registration's when it has none."""

    chain_id: UUID
    number: int
    digest: bytes
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain by its number among the chains, and how far it reaches."""

    number: int
    head: Head


def entry_payload(chain_id: UUID, number: int, before: bytes, recorded_at: datetime, access: Access) -> bytes:
    """The bytes that the digest of a chain's entry covers; `before` is the digest before it."""
    return _framed(
        (
            *("entry", chain_id, number, before, recorded_at, access.subject, access.operation),
            *(access.lead_id, access.fields, access.reason, access.request_id),
        )
    )


def registration_payload(before: bytes, registration: Registration) -> bytes:
    """The bytes that the digest of a registration covers; `before` is the digest of the registration before it."""
    return _framed(
        (
            *("chain", registration.number, registration.id, before, registration.writer, registration.began_at),
            *(registration.earlier_entries, registration.earlier_digest),
        )
    )


def head_payload(head: Head) -> bytes:
    """The bytes that the seal of a head covers, the proof that it was written by a holder of the audit key."""
    return _framed(("head", head.chain_id, head.number, head.digest, head.ended))


def earlier_digest(encryption: EncryptionService, key_id: str, entries: Iterable[RecordedAccess]) -> tuple[int, bytes]:
    """How many entries there were before the first chain, by their ids, and the digest over all of them."""
    count, digest = 0, NOTHING_BEFORE
    for each in entries:
        access = each.access
        payload = _framed(
            (
                *("earlier", each.id, digest, each.recorded_at, access.subject, access.operation),
                *(access.lead_id, access.fields, access.reason),
            )
        )
        count, digest = count + 1, encryption.audit_digest(key_id, payload)
    return count, digest


def _framed(values: Iterable[_Value]) -> bytes:
    return b"".join(
        b"\x00" if value is None else b"\x01" + struct.pack(">I", len(raw := _bytes(value))) + raw for value in values
    )


def _bytes(value: bytes | str | int | UUID | datetime | Sequence[str]) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case int():  # a bool too
            return struct.pack(">q", value)
        case UUID():
            return value.bytes
        case datetime():
            return struct.pack(">q", (value - _EPOCH) // timedelta(microseconds=1))
        case _:
            return _framed(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessFilter:
    """Which entries are wanted; None means any. The span is half-open."""

    lead_id: UUID | None = None
    subject: str | None = None
    recorded_after: datetime | None = None
    recorded_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccessRecords:
    """The access record of one database."""

    database: Database
    encryption: EncryptionService

    async def begin_chain(self, connection: AsyncConnection, chain_id: UUID, writer: str, now: datetime) -> Chain:
        """Register a chain. Registrations of one database wait for each other."""
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _REGISTRY_LOCK})
        registered = models.access_chain
        before = (
            await connection.execute(
                select(registered.c.number, registered.c.digest).order_by(registered.c.number.desc()).limit(1)
            )
        ).one_or_none()
        key_id = self.encryption.audit_key_id
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
        digest = self.encryption.audit_digest(key_id, payload)
        await connection.execute(insert(registered).values(**asdict(registration), key_id=key_id, digest=digest))
        return Chain(registration.number, Head(chain_id=chain_id, number=0, digest=digest))

    async def extend_chain(
        self, connection: AsyncConnection, chain: Chain, accesses: Sequence[Access], now: datetime
    ) -> Chain:
        """Add entries to a chain; the chain as it is then."""
        key_id, chain_id = self.encryption.audit_key_id, chain.head.chain_id
        digest, digests = chain.head.digest, []
        numbers = range(chain.head.number + 1, chain.head.number + 1 + len(accesses))
        for number, access in zip(numbers, accesses, strict=True):
            digest = self.encryption.audit_digest(key_id, entry_payload(chain_id, number, digest, now, access))
            digests.append(digest)
        head = Head(chain_id=chain_id, number=numbers[-1], digest=digest)
        added = await connection.exec_driver_sql(
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
                "seal": self.encryption.audit_digest(key_id, head_payload(head)),
            },
        )
        if added.scalar_one() != len(accesses):
            raise NotStoredError
        return replace(chain, head=head)

    async def end_chain(self, chain: Chain) -> Chain:
        """Write a head that ends a chain. Tries once: raises the driver's error, see failures.py."""
        head, key_id = replace(chain.head, ended=True), self.encryption.audit_key_id
        seal = self.encryption.audit_digest(key_id, head_payload(head))

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(insert(models.access_head).values(**asdict(head), key_id=key_id, seal=seal))

        await self.database.write_once(work)
        return replace(chain, head=head)

    async def count_in_hour(
        self, connection: AsyncConnection, subjects: Set[str], now: datetime, *, alone: bool = False
    ) -> dict[str, int]:
        """How many entries these subjects have in the hour before `now`; `alone`: these subjects are locked first."""
        if alone:
            keys = sorted(_lock_key(subject) for subject in subjects)
            await connection.execute(_COUNT_ALONE, {"keys": keys})
        counted = await connection.execute(_COUNT, {"subjects": list(subjects), "since": now - HOUR})
        return dict.fromkeys(subjects, 0) | {row.subject: row.used for row in counted}

    async def leaves_hour_at(
        self, connection: AsyncConnection, subject: str, now: datetime, *, behind: int
    ) -> datetime | None:
        """When the entry at a place of the subject's last hour, 0 for the oldest, will be an hour old."""
        recorded_at: datetime | None = (
            await connection.execute(_LEAVES_NEXT, {"subject": subject, "since": now - HOUR, "behind": behind})
        ).scalar_one_or_none()
        return recorded_at + HOUR if recorded_at else None

    async def newest_heads(self) -> list[Chain]:
        """How far the chains reach that were written to lately; heads that were not sealed by us are left out."""
        found = []
        for row in await self.database.rows(_HEADS, {"looked_back": HEADS_LOOKED_BACK}):
            head = Head(chain_id=row.chain_id, number=row.number, digest=row.digest, ended=row.ended)
            known = self.encryption.has_audit_key(row.key_id)
            if known and self.encryption.audit_digest(row.key_id, head_payload(head)) == row.seal:
                found.append(Chain(row.chain_number, head))
        return found

    async def find(
        self, wanted: AccessFilter, *, after: tuple[datetime, int] | None, limit: int
    ) -> list[RecordedAccess]:
        """At most `limit` entries behind the position `after`, newest first."""
        record = models.access_record.c
        keys = (record.recorded_at, record.id)
        query = page_of(select(models.access_record), keys, after, limit=limit, newest_first=True)
        for condition, column, value in (
            (eq, record.lead_id, wanted.lead_id),
            (eq, record.subject, wanted.subject),
            (ge, record.recorded_at, wanted.recorded_after),
            (lt, record.recorded_at, wanted.recorded_before),
        ):
            if value is not None:
                query = query.where(condition(column, value))
        return [recorded_access(row._asdict()) for row in await self.database.rows(query)]

    async def _earlier(self, connection: AsyncConnection, key_id: str) -> tuple[int, bytes]:
        record = models.access_record.c
        query = select(models.access_record).where(record.chain_id.is_(None)).order_by(record.id)
        rows = (await connection.execute(query)).mappings()
        return earlier_digest(self.encryption, key_id, map(recorded_access, rows))


def _lock_key(subject: str) -> int:
    return int.from_bytes(sha256(f"leadkeep unmask limit {subject}".encode()).digest()[:8], "big", signed=True)
