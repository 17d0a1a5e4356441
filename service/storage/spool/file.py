"""The file of the spool: SQLite with a write-ahead log, one row a submission, and one fsync for a whole batch.

Promises: what `put` returned for is on disk; what `put` raised for may be there or not, and hurts nothing that was put
before or is put later. Every value of a customer is sealed twice, the rows' own keys are keyed digests. What was
removed has left no bytes in the folder: they are overwritten in the file, and the log, which holds them as they were
put, is emptied. Not safe for two threads.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from service.keys.encryption import KeyCanary
from service.keys.secret_file import sync_folder
from service.storage.spool.rows import (
    EPOCH,
    FILE_NAME,
    MICROSECOND,
    PAGE_BYTES,
    SpoolRow,
    SpoolSize,
    bytes_of,
    key_ids_of,
    oldest_of,
    rows_of,
    size_of,
)

SCHEMA = 4

SYNCHRONOUS = "FULL"
"""An fsync of the log with each commit: the promise of this module."""

CHECKPOINT_PAGES = 32
"""Pages of log from which they are moved into the file. Few, because what is not moved yet needs ballast."""

LONGEST_PAGES = 15
"""In which the longest row lies."""

FEW_ROWS = 2
"""Rows whose removal changes fewer pages than the smallest ballast has, for each of their pages is overwritten."""

INDEX_ROWS = 8
"""For how many rows the indexes grow by a page, at least; a page holds about 90 keys of each of five."""

WORTH_SHRINKING = 16
"""Free pages from which an emptied file is made small again."""

_TABLES = """
    CREATE TABLE entry (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        accepted_at INTEGER NOT NULL,
        request BLOB UNIQUE,
        content BLOB NOT NULL,
        phone BLOB NOT NULL,
        nid BLOB,
        conversation BLOB,
        refused INTEGER NOT NULL,
        damage TEXT,
        payload TEXT NOT NULL,
        key_ids TEXT,
        clock_ahead INTEGER,
        clock_error INTEGER
    );
    CREATE INDEX entry_phone ON entry (phone);
    CREATE INDEX entry_nid ON entry (nid);
    CREATE INDEX entry_conversation ON entry (conversation);
    CREATE INDEX entry_key_ids ON entry (key_ids);
    CREATE TABLE identity (
        id INTEGER PRIMARY KEY CHECK (id = 1), sealed TEXT NOT NULL, digest BLOB NOT NULL, normaliser TEXT NOT NULL
    );
"""

# Microseconds; see ClockOffset.
_CLOCK = """
    ALTER TABLE entry ADD COLUMN clock_ahead INTEGER;
    ALTER TABLE entry ADD COLUMN clock_error INTEGER;
"""
# A table cannot be altered in this way, and a full disk has no room for a copy of it. SQLite's documentation has this
# procedure for the removal of a NOT NULL, which changes nothing of what is stored.
_NO_NID = """
    PRAGMA writable_schema = ON;
    UPDATE sqlite_schema SET sql = replace(sql, 'nid BLOB NOT NULL', 'nid BLOB') WHERE name = 'entry';
    PRAGMA writable_schema = RESET;
"""
_UPGRADES = {0: _TABLES, 2: _CLOCK + _NO_NID, 3: _NO_NID}
"""What makes this release's format of an older one; 0 is an empty file. Format 1 was never released."""

_TRIAL = SpoolRow(
    id=UUID(int=0),
    accepted_at=EPOCH,
    request=None,
    content=b"",
    phone=b"",
    nid=b"",
    conversation=None,
    refused=False,
    payload="x" * LONGEST_PAGES * PAGE_BYTES,
    key_ids="",
)
"""What `probe` writes."""


class SpoolError(Exception):
    """The spool cannot do it now; `full`: for want of room, not by a fault of the disk or the file."""

    def __init__(self, what: str, *, full: bool = False) -> None:
        super().__init__(what)
        self.full = full


class SpoolFile:
    """The rows of one spool folder, which must exist. Raises SpoolError from everything it does."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._path = folder / FILE_NAME
        self._log = folder / f"{FILE_NAME}-wal"
        self._ballast = folder / "ballast"
        self._loaded = 0
        self._growth = 0
        self._unsettled = True
        with _translated_errors(self), ExitStack() as undo:
            self._create(folder)
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=1)
            undo.callback(self._connection.close)
            for setting in (
                "journal_mode = WAL",
                f"synchronous = {SYNCHRONOUS}",
                "wal_autocheckpoint = 0",  # done by us, because its failure matters
                f"max_page_count = {max_bytes // PAGE_BYTES}",
                "secure_delete = ON",
                "temp_store = MEMORY",
            ):
                self._connection.execute(f"PRAGMA {setting}")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version in _UPGRADES:
                self._connection.executescript(f"BEGIN; {_UPGRADES[version]} PRAGMA user_version = {SCHEMA}; COMMIT")
            elif version != SCHEMA:
                raise SpoolError(f"the spool's file was written by another release (format {version})")
            self._counted = size_of(self._connection)
            self._place = self._found_place()
            undo.pop_all()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is on disk together when it ends, or nothing is."""
        with _translated_errors(self):
            self._settle()
            self._growth = 0
            before = self._counted
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._counted = before
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                raise
        self._keep_log_short()

    def check_place(self) -> None:
        """Raise SpoolError when file or log is not what lies in the folder: no restart would find what is put there."""
        with _translated_errors(self):
            if self._found_place() != self._place:
                raise SpoolError(
                    "the spool's file was replaced while the service runs: put it back, or restart the service once "
                    "nothing waits in it"
                )

    def insert(self, row: SpoolRow) -> None:
        """Add a row, inside a transaction."""
        self._count_change(waiting=1)
        self._growth += len(row.payload) // PAGE_BYTES + 2
        self._load_ballast(CHECKPOINT_PAGES + self._growth + self._growth // INDEX_ROWS + INDEX_ROWS)
        self._connection.execute(
            "INSERT INTO entry (id, accepted_at, request, content, phone, nid, conversation, refused, payload, key_ids,"
            " clock_ahead, clock_error) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.id.bytes,
                (row.accepted_at - EPOCH) // MICROSECOND,
                row.request,
                row.content,
                row.phone,
                row.nid,
                row.conversation,
                row.refused,
                row.payload,
                row.key_ids,
                row.clock and row.clock.ahead // MICROSECOND,
                # One more for what the division cut off.
                row.clock and row.clock.error // MICROSECOND + 1,
            ),
        )

    def delete(self, row_id: UUID) -> None:
        """Take a row out, inside a transaction."""
        found = self._connection.execute("SELECT damage IS NULL FROM entry WHERE id = ?", (row_id.bytes,)).fetchone()
        if found is not None:
            self._connection.execute("DELETE FROM entry WHERE id = ?", (row_id.bytes,))
            self._count_change(waiting=-found[0], damaged=found[0] - 1)

    def find(self, column: str, values: Sequence[bytes]) -> list[SpoolRow]:
        """The rows with one of these values in a column, oldest first."""
        return self.rows(f"WHERE {column} IN ({', '.join('?' * len(values))}) ORDER BY seq", *values)

    def oldest(self, limit: int, held: Set[UUID] = frozenset()) -> list[SpoolRow]:
        """The first rows that are to be drained, without those held and what came after them of the same person.

        Such a row shares a phone or nid with one that is left out, and must not reach the database before it. (Two
        rows of one request never lie here.)
        """
        rows: list[SpoolRow] = []
        left_out: set[tuple[str, bytes]] = set()
        waiting = rows_of(self._connection, "WHERE damage IS NULL ORDER BY seq")
        with _translated_errors(self), closing(waiting):  # open, it would keep the log from being moved
            for row in waiting:
                person = {("phone", row.phone)} | ({("nid", row.nid)} if row.nid is not None else set())
                if row.id in held or person & left_out:
                    left_out |= person
                elif len(rows) < limit:
                    rows.append(row)
                else:
                    break
        return rows

    def remove(self, ids: Sequence[UUID]) -> None:
        """Forget these rows, to the last byte: they are durable elsewhere, or were erased."""
        try:
            self._delete(ids)
        except SpoolError as error:
            if not error.full:
                raise
            for start in range(0, len(ids), FEW_ROWS):
                self.regain_room(ballast=False)
                self._delete(ids[start : start + FEW_ROWS])
            self.regain_room()

    def set_aside(self, row_id: UUID, damage: str) -> None:
        """Keep a row, and drain it no more."""
        with self.transaction():
            statement = "UPDATE entry SET damage = ? WHERE id = ? AND damage IS NULL"
            moved = self._connection.execute(statement, (damage, row_id.bytes)).rowcount
            self._count_change(waiting=-moved, damaged=moved)

    def key_ids(self) -> set[str]:
        """The ids of the keys that the rows are sealed with."""
        with _translated_errors(self):
            return key_ids_of(self._connection)

    def identity(self) -> tuple[KeyCanary, str] | None:
        """The canary of the keyring and the normaliser that the rows belong to."""
        with _translated_errors(self):
            row = self._connection.execute("SELECT sealed, digest, normaliser FROM identity").fetchone()
        return None if row is None else (KeyCanary(row[0], row[1]), row[2])

    def remember(self, canary: KeyCanary, normaliser: str) -> None:
        """Note whom the rows belong to."""
        with self.transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO identity VALUES (1, ?, ?, ?)", (canary.sealed, canary.index, normaliser)
            )

    def size(self) -> SpoolSize:
        """What lies in the file. Counted once and kept up, because counting takes the longer the more waits."""
        with _translated_errors(self):
            return replace(self._counted, oldest=oldest_of(self._connection), bytes=bytes_of(self._connection))

    def _count_change(self, *, waiting: int = 0, damaged: int = 0) -> None:
        counted = self._counted
        self._counted = replace(counted, waiting=counted.waiting + waiting, damaged=counted.damaged + damaged)

    def count(self) -> None:
        """Count anew: an operator may have changed the file."""
        with _translated_errors(self):
            self._counted = size_of(self._connection)

    def probe(self) -> None:
        """Write a row as long as the longest submission, and take it out again: there is room for any."""
        with self.transaction():
            self.insert(_TRIAL)
            self.delete(_TRIAL.id)

    def shrink(self) -> None:
        """Give the room of an emptied file back. For quiet moments."""
        with _translated_errors(self):
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if free > WORTH_SHRINKING:
                self._connection.execute("VACUUM")
                self._checkpoint()

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def _found_place(self) -> list[tuple[int, int]]:
        """What lies in the folder as file and log, by the disk's own numbers."""
        return [(found.st_dev, found.st_ino) for found in map(os.stat, (self._path, self._log))]

    def _create(self, folder: Path) -> None:
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            for each in (folder, folder.parent):
                sync_folder(each)

    def _load_ballast(self, pages: int) -> None:
        """Keep at least so much of the disk for ourselves: what the file grows by when the log is moved into it.

        A disk that is full would else never be free again: SQLite needs room even to delete.
        """
        wanted = pages * PAGE_BYTES
        if wanted > self._loaded:
            ballast = os.open(self._ballast, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(ballast, 0, wanted)
                self._loaded = wanted
            except OSError as error:
                raise SpoolError("the spool's disk is full", full=error.errno == errno.ENOSPC) from None
            finally:
                os.close(ballast)

    def rows(self, condition: str, *parameters: object) -> list[SpoolRow]:
        """The rows that match an SQL condition."""
        with _translated_errors(self):
            return list(rows_of(self._connection, condition, *parameters))

    def _delete(self, ids: Sequence[UUID]) -> None:
        with self.transaction():
            for each in ids:
                self.delete(each)
        if self._log.exists() and self._log.stat().st_size:
            with _translated_errors(self):
                self._checkpoint()

    def regain_room(self, *, ballast: bool = True) -> None:
        """After the disk was full: move the log into the file with the ballast's room, which gives the log's back."""
        with _translated_errors(self):
            self._ballast.unlink(missing_ok=True)
            self._loaded = 0
            self._checkpoint()
            self._unsettled = False
        if ballast:
            with suppress(SpoolError):
                self._load_ballast(CHECKPOINT_PAGES + INDEX_ROWS)

    def _keep_log_short(self) -> None:
        with suppress(SpoolError), _translated_errors(self):
            if self._log.stat().st_size > CHECKPOINT_PAGES * PAGE_BYTES:
                self._checkpoint()

    def _settle(self) -> None:
        """After a fault, and at first: move the log into the file.

        The system forgets what it could not write once it has reported that. A commit whose fsync failed, ours or that
        of a process before us, may stand in the log and never reach the disk, and what is appended behind it would be
        lost with it. Moving the log writes everything anew.
        """
        if self._unsettled:
            self._checkpoint()
            self._unsettled = False

    def _checkpoint(self) -> None:
        (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise SpoolError("another program reads the spool and does not end")


@contextmanager
def _translated_errors(file: SpoolFile) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        file._unsettled = True  # noqa: SLF001 # this module's own
        code = getattr(error, "sqlite_errorname", type(error).__name__)
        raise SpoolError(f"the spool's file cannot be used ({code})", full=code == "SQLITE_FULL") from None
    except OSError as error:
        raise SpoolError(f"the spool's folder cannot be used ({error.strerror})") from None
