"""Digest chain of the access record: keyed digests over each entry and the one before it, and heads in the log.

Promise: an entry that was changed, moved to another place or chain, or made without the audit key does not fit. Each
entry covers the digest of the one before it, the first one that of its chain's registration, each registration that of
the registration before it, and the first registration what was recorded before there were chains.

Form: HMAC-SHA256 with a key of the keyring's audit root over framed values. A value is framed as 00 when it is absent,
else as 01, its length (4 bytes, big-endian) and its bytes: texts in UTF-8, ids as 16 bytes, numbers as 8 bytes
big-endian, times as microseconds since 1970, lists as their framed items. The first value names what is digested.

Heads state how far a chain reaches. They are in the database, and in the log, where whoever can change the database
cannot change them: a line when a chain begins and ends, and every minute; `leadkeep audit verify --heads` compares such
lines with the record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from service import strict_json
from service.keys.encryption import EncryptionService
from service.log import log_whatever_the_level

_EVENT = "access head"

NOTHING_BEFORE = bytes(32)
"""Stands for the digest before the first one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Value = bytes | str | int | UUID | datetime | bool | Sequence[str] | None


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


def log_head(chain: Chain) -> None:
    """Log how far a chain reaches."""
    log_whatever_the_level(
        _EVENT,
        chain=str(chain.head.chain_id),
        chain_number=chain.number,
        number=chain.head.number,
        digest=chain.head.digest.hex(),
        ended=chain.head.ended,
    )


def logged_heads(lines: Iterable[str]) -> Iterator[Chain]:
    """The chains whose heads are among the lines of a log, which may hold other lines and prefixes of lines.

    Raises ValueError for a head that is damaged.
    """
    for number, line in enumerate(lines, start=1):
        if _EVENT not in line:
            continue
        try:
            logged = strict_json.parse(line[line.index("{") :])
        except ValueError:
            continue  # a line of somebody else, or one that was cut by the end of the file
        if not isinstance(logged, dict) or logged.get("event") != _EVENT:
            continue
        try:
            head = Head(
                chain_id=UUID(logged["chain"]),
                number=int(logged["number"]),
                digest=bytes.fromhex(logged["digest"]),
                ended=bool(logged["ended"]),
            )
            yield Chain(int(logged["chain_number"]), head)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"line {number} is a damaged head") from None
