"""What waits in a spool of one person, and of others who share a phone or a nid with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from service.encryption import NOT_CONFIRMED, EncryptionService
from service.lead import BlindIndexes, SealedSubmission
from service.storage.erasing import KnownTombstone, Person, request_digest
from service.storage.spool_rows import Row, rows_of


@dataclass(frozen=True, slots=True)
class Spooled:
    """A person's submissions with what their tombstones will hold, and other people's that share something with it."""

    own: Mapping[UUID, KnownTombstone] = field(default_factory=dict)
    others: tuple[SealedSubmission, ...] = ()
    """Those that share only the phone or only the nid; not what was set aside, which is not drained either."""
    itself: SealedSubmission | None = None
    """The submission whose id was asked for."""


def spooled_of(
    connection: sqlite3.Connection,
    wanted: UUID,
    person: Person,
    encryption: EncryptionService,
    opened: Callable[[Row], SealedSubmission],
) -> Spooled:
    """What waits of the person that `wanted` stands for; `person` is what the database knows of it.

    `opened` answers a row as it would be drained, or raises. Raises sqlite3.Error.
    """
    itself = None
    for row in rows_of(connection, "WHERE id = ?", wanted.bytes):
        itself = _opened_or_none(row, opened)
        # Both: as it lies there, by which others are looked for, and as it is compared.
        person = person.extended_by(_closed(row)).extended_by(itself or _closed(row))
    requests = [index for request in person.requests for index in encryption.spool_indexes("request", *request)]
    values = {"id": [each.bytes for each in person.ids], "request": requests}
    values |= {"phone": list(person.phones), "nid": list(person.nids)}
    condition = " OR ".join(f"{column} IN ({', '.join('?' * len(found))})" for column, found in values.items())
    parameters = [value for found in values.values() for value in found]
    own: dict[UUID, KnownTombstone] = {}
    others: list[SealedSubmission] = []
    for row in rows_of(connection, f"WHERE {condition} ORDER BY seq", *parameters):
        entry = _opened_or_none(row, opened)
        if row.request in requests or person.owns(entry or _closed(row)):
            digest = request_digest(entry) if entry is not None else None
            own[row.id] = KnownTombstone(created_at=row.accepted_at, request_digest=digest)
        elif entry is not None and row.damage is None:
            others.append(entry)
    return Spooled(own, tuple(others), itself)


def _opened_or_none(row: Row, opened: Callable[[Row], SealedSubmission]) -> SealedSubmission | None:
    try:
        return opened(row)
    except Exception:  # noqa: BLE001 # whatever it is, the row itself tells enough for an erasure, and the drain reports it
        return None


def _closed(row: Row) -> SealedSubmission:
    """What a row tells without being opened."""
    return SealedSubmission(
        id=row.id,
        fields={},
        created_by="",
        request_id=None,
        content_digest=row.content,
        indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(row.phone, None), nid=(row.nid, None)),
        accepted_at=row.accepted_at,
    )
