"""Rows of a spool's file and the submissions that they hold; its size and its owner.

Read by its owner, or by an operator while a service owns it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from service.errors import FieldUnreadableError, StartRefusedError
from service.keys.encryption import NOT_CONFIRMED, EncryptionService, key_id_of
from service.keys.secret_file import make_private_folder, takes_lock
from service.lead import CUSTOMER_FIELDS, BlindIndexes, SealedSubmission
from service.storage.database.clock import ClockOffset

OWNER_WAIT_SECONDS = 3.0
"""How long a start waits for the process that owns the spool: one that is stopping releases it last."""

FILE_NAME = "spool.sqlite"
PAGE_BYTES = 4096
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """One submission as it lies in the file."""

    id: UUID
    accepted_at: datetime
    request: bytes | None
    content: bytes
    phone: bytes
    nid: bytes | None
    conversation: bytes | None
    refused: bool
    payload: str
    key_ids: str
    """The ids of the keys that it is sealed with, the spool's own and those of the fields inside, spaces between."""
    clock: ClockOffset | None = None
    """The offset of the database's clock when it was accepted; None: it was not known."""
    damage: str | None = None
    """Why it was set aside; None: it is to be drained."""


@dataclass(frozen=True, slots=True)
class SpoolSize:
    """What lies in the file."""

    waiting: int
    damaged: int
    oldest: datetime | None
    bytes: int

    @property
    def age(self) -> float:
        """Seconds since the oldest entry was accepted; 0 when there is none."""
        return 0.0 if self.oldest is None else max(0.0, (datetime.now(UTC) - self.oldest).total_seconds())


class SpoolOwnedError(StartRefusedError):
    """Another process uses the spool."""


def size_of(connection: sqlite3.Connection) -> SpoolSize:
    """What lies in the file, counted."""
    total, damaged = connection.execute("SELECT count(*), count(damage) FROM entry").fetchone()
    return SpoolSize(total - damaged, damaged, oldest_of(connection), bytes_of(connection))


def oldest_of(connection: sqlite3.Connection) -> datetime | None:
    """When the first row of the file was accepted."""
    first = connection.execute("SELECT accepted_at FROM entry ORDER BY seq LIMIT 1").fetchone()
    return None if first is None else EPOCH + first[0] * MICROSECOND


def bytes_of(connection: sqlite3.Connection) -> int:
    """How much of the file is in use."""
    pages, free = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    return int((pages - free) * PAGE_BYTES)


def key_ids_of(connection: sqlite3.Connection) -> set[str]:
    """The ids of the keys that some row is sealed with."""
    kinds = connection.execute("SELECT DISTINCT key_ids FROM entry")
    found = {key_id for (key_ids,) in kinds for key_id in key_ids.split()}
    if found:
        # The canary is what proves, without the database, that what lies here belongs to this keyring.
        found.update(sealed.partition(".")[0] for (sealed,) in connection.execute("SELECT sealed FROM identity"))
    return found


def rows_of(connection: sqlite3.Connection, condition: str, *parameters: object) -> Generator[SpoolRow, None, None]:
    """The rows that match an SQL condition."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    # An operator may look before this release's first start.
    clock = "clock_ahead, clock_error" if version > 2 else "NULL, NULL"
    columns = f"id, accepted_at, request, content, phone, nid, conversation, refused, payload, key_ids, damage, {clock}"
    found = connection.execute(f"SELECT {columns} FROM entry {condition}", parameters)  # noqa: S608 # our own names
    for (
        row_id,
        accepted_at,
        request,
        content,
        phone,
        nid,
        conversation,
        refused,
        payload,
        key_ids,
        damage,
        *of,
    ) in found:
        yield SpoolRow(
            id=UUID(bytes=row_id),
            accepted_at=EPOCH + accepted_at * MICROSECOND,
            request=request,
            content=content,
            phone=phone,
            nid=nid,
            conversation=conversation,
            refused=bool(refused),
            payload=payload,
            key_ids=key_ids,
            clock=None if None in of else ClockOffset(*(each * MICROSECOND for each in of)),
            damage=damage,
        )


def row_of(
    entry: SealedSubmission, encryption: EncryptionService, *, request: bytes | None, clock: ClockOffset | None
) -> SpoolRow:
    """The row of a submission, which has the time of its acceptance, with the digest of its request."""
    assert entry.accepted_at is not None  # noqa: S101 # what is not accepted is not kept
    sealed = entry.sealed
    clear = {name: value for name, value in entry.fields.items() if name not in sealed}
    about = {"created_by": entry.created_by, "request_id": entry.request_id, "refused": entry.refused}
    held = {**clear, **about, "sealed": sealed, "accepted_at": entry.accepted_at.isoformat()}
    payload = encryption.seal_spooled(entry.id, json.dumps(held).encode())
    conversation = entry.fields.get("conversation_id")
    if conversation is not None:
        conversation = encryption.open(entry.id, "conversation_id", conversation)
    return SpoolRow(
        id=entry.id,
        accepted_at=entry.accepted_at,
        request=request,
        content=entry.content_digest,
        phone=entry.indexes.phones[0],
        nid=next(iter(entry.indexes.nids), None),
        conversation=encryption.spool_indexes("conversation", conversation)[0] if conversation else None,
        refused=entry.refused,
        payload=payload,
        key_ids=" ".join(sorted({key_id_of(token) for token in (payload, *sealed.values())})),
        clock=clock,
    )


def submission_of(row: SpoolRow, encryption: EncryptionService) -> SealedSubmission:
    """The submission of a row, with the blind indexes of the time at which it was put. Raises FieldUnreadableError."""
    try:
        held: dict[str, Any] = json.loads(encryption.open_spooled(row.id, row.payload))
        clear = {name: value for name in CUSTOMER_FIELDS if (value := held.get(name)) is not None}
        return SealedSubmission(
            id=row.id,
            fields={**clear, **held["sealed"]},
            created_by=held["created_by"],
            request_id=held["request_id"],
            refused=held["refused"],
            accepted_at=(accepted_at := datetime.fromisoformat(held["accepted_at"])),
            accepted_between=row.clock.bounds(accepted_at) if row.clock else None,
            content_digest=row.content,
            indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(row.phone, None), nid=(row.nid, None)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FieldUnreadableError(["spooled"]) from None


def closed(row: SpoolRow) -> SealedSubmission:
    """The submission of a row that is not opened: its id, its blind indexes and its time."""
    return SealedSubmission(
        id=row.id,
        fields={},
        created_by="",
        request_id=None,
        content_digest=row.content,
        indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(row.phone, None), nid=(row.nid, None)),
        accepted_at=row.accepted_at,
    )


def peek(folder: Path) -> tuple[SpoolSize, list[SpoolRow]]:
    """What lies in a spool, whoever owns it; nothing when there is none. Raises StartRefusedError."""
    if not (folder / FILE_NAME).exists():
        return SpoolSize(0, 0, None, 0), []
    with as_operator(folder, "ro") as connection:
        return size_of(connection), list(rows_of(connection, "ORDER BY seq"))


def peek_key_ids(folder: Path) -> set[str]:
    """The ids of the keys that something in a spool is sealed with, whoever owns it. Raises StartRefusedError."""
    if not (folder / FILE_NAME).exists():
        return set()
    with as_operator(folder, "ro") as connection:
        return key_ids_of(connection)


def take_back(folder: Path) -> None:
    """Let everything that was set aside be drained again, by whoever owns the spool. Raises StartRefusedError."""
    if (folder / FILE_NAME).exists():
        with as_operator(folder, "rw") as connection:
            connection.execute("UPDATE entry SET damage = NULL")


@contextmanager
def as_operator(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """The file of a spool, whoever owns it; `mode` is ro or rw. Raises StartRefusedError."""
    try:
        with closing(
            sqlite3.connect(f"{(folder / FILE_NAME).absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
        ) as connection:
            yield connection
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", type(error).__name__)
        raise StartRefusedError(f"the spool {folder} cannot be read ({code})") from None


def has_owner(folder: Path) -> bool:
    """Whether a process owns the spool of a folder now."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        return not takes_lock(lock)
    finally:
        os.close(lock)


def become_owner(folder: Path) -> int:
    """The descriptor that makes this process the owner of a spool until it is closed. Raises StartRefusedError."""
    try:
        make_private_folder(folder)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StartRefusedError(
            f"the spool's folder {folder} cannot be used: {error.strerror}; see LEADKEEP_SPOOL_DIR"
        ) from None
    deadline = time.monotonic() + OWNER_WAIT_SECONDS
    while not takes_lock(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise SpoolOwnedError(
                f"another process uses the spool {folder}; each service needs its own LEADKEEP_SPOOL_DIR"
            )
        time.sleep(0.05)
    return lock
