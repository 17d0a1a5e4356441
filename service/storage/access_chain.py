"""What ties the access record together: keyed digests over each entry and the one before it, and heads in the log.

Promise: an entry that was changed, moved to another place or chain, or made without the audit key does not fit. Each
entry covers the digest of the one before it, the first one that of its chain's registration, each registration that of
the registration before it, and the first registration what was recorded before there were chains.

Form: HMAC-SHA256 with a key of the keyring's audit root over framed values. A value is framed as 00 when it is absent,
else as 01, its length (4 bytes, big-endian) and its bytes: texts in UTF-8, ids as 16 bytes, numbers as 8 bytes
big-endian, times as microseconds since 1970, lists as their framed items. The first value names what is digested.

Heads say how far a chain reaches. They are in the database, and in the log, where whoever can change the database
cannot change them: a line when a chain begins and ends, and every minute; `leadkeep audit verify --heads` compares such
lines with the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from service.encryption import EncryptionService
from service.errors import LeadkeepError
from service.log import log_whatever_the_level
from service.storage.failures import StorageFaultError

if TYPE_CHECKING:
    from service.storage.access_records import AccessRecords, Chain

EVENT = "access head"

HEAD_SECONDS = 60.0
"""Seconds between two heads in the log: so much of a tail can be cut unnoticed, when the tables of the database are cut
alike."""

NOTHING_BEFORE = bytes(32)
"""Stands for the digest before the first one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Value = bytes | str | int | UUID | datetime | bool | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is recorded of one look: who looked at which fields of which lead, by which rpc or command, and why."""

    recorded_at: datetime
    subject: str
    operation: str
    lead_id: UUID | None
    fields: Sequence[str]
    reason: str | None
    request_id: str | None


def entry_of(row: Mapping[Any, Any]) -> Entry:
    """The entry of a row of the record."""
    return Entry(
        recorded_at=row["recorded_at"],
        subject=row["subject"],
        operation=row["operation"],
        lead_id=row["lead_id"],
        fields=row["fields"],
        reason=row["reason"],
        request_id=row["request_id"],
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


def entry_digest(
    encryption: EncryptionService, key_id: str, chain_id: UUID, number: int, before: bytes, entry: Entry
) -> bytes:
    """The digest of the entry with this number of a chain, behind an entry with the digest `before`."""
    values: tuple[_Value, ...] = (
        *("entry", chain_id, number, before, entry.recorded_at, entry.subject, entry.operation),
        *(entry.lead_id, entry.fields, entry.reason, entry.request_id),
    )
    return encryption.audit_digest(key_id, _framed(values))


def registration_digest(encryption: EncryptionService, key_id: str, before: bytes, registration: Registration) -> bytes:
    """The digest of a registration behind the one with the digest `before`."""
    values: tuple[_Value, ...] = (
        *("chain", registration.number, registration.id, before, registration.writer, registration.began_at),
        *(registration.earlier_entries, registration.earlier_digest),
    )
    return encryption.audit_digest(key_id, _framed(values))


def head_seal(encryption: EncryptionService, key_id: str, head: Head) -> bytes:
    """The proof that a head was written by who holds the audit key."""
    return encryption.audit_digest(key_id, _framed(("head", head.chain_id, head.number, head.digest, head.ended)))


def earlier_digest(
    encryption: EncryptionService, key_id: str, entries: Iterable[tuple[int, Entry]]
) -> tuple[int, bytes]:
    """How many entries there were before the first chain, by their ids, and the digest over all of them."""
    count, digest = 0, NOTHING_BEFORE
    for entry_id, entry in entries:
        values: tuple[_Value, ...] = (
            *("earlier", entry_id, digest, entry.recorded_at, entry.subject, entry.operation),
            *(entry.lead_id, entry.fields, entry.reason),
        )
        count, digest = count + 1, encryption.audit_digest(key_id, _framed(values))
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


class AccessHeads:
    """Logs heads: those of this process's own chain, and of what other writers (replicas, commands) added meanwhile."""

    def __init__(self, records: AccessRecords, own: Callable[[], Chain | None]) -> None:
        self._records = records
        self._own = own
        self._logged: dict[UUID, Chain] = {}

    async def run(self) -> None:
        """Log the heads every minute."""
        while True:
            await asyncio.sleep(HEAD_SECONDS)
            await self.log_own()
            await self.log_others()

    async def log_own(self) -> None:
        """Log how far this process's chain reaches."""
        if (own := self._own()) is not None:
            self.tell(own)

    def tell(self, chain: Chain) -> None:
        """Log how far a chain reaches."""
        self._logged[chain.head.chain_id] = chain
        log_whatever_the_level(
            EVENT,
            chain=str(chain.head.chain_id),
            chain_number=chain.number,
            number=chain.head.number,
            digest=chain.head.digest.hex(),
            ended=chain.head.ended,
        )

    async def log_others(self) -> None:
        """Log the chains of other writers that are not logged yet."""
        own = self._own()
        # While the database is away there is nothing new in it.
        with contextlib.suppress(LeadkeepError, StorageFaultError):
            newest = await self._records.newest_heads()
            for chain in newest:
                mine = own is not None and chain.head.chain_id == own.head.chain_id
                if not mine and self._logged.get(chain.head.chain_id) != chain:
                    self.tell(chain)
            self._logged = {chain.head.chain_id: chain for chain in newest}
