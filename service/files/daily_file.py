"""Daily files: renders, reads and checks them.

`leads_YYYY-MM-DD.json` shows the leads of one day. Promise: at every instant it is whole, valid JSON and equal to one
snapshot of the database, whose time its header names; a crash at any moment leaves the file before or the file after.
It is rendered whole to a temporary file, synced, renamed, and the folder is synced. Sensitive fields are in it as
sealed tokens; it is readable by its owner only (mode 0600).

The format is described in docs/daily-file.schema.json. Beyond being JSON it has one lead a line, so that tools which
read lines, and a reader that must not hold it all in memory, can use it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from service.foreign_text import parse_json
from service.keys.secret_file import make_private_folder, open_regular, sync_folder
from service.lead import FIELD_RULES, SENSITIVE_FIELDS
from service.storage.daily.daily_leads import DailyLeads, Days, Snapshot

FORMAT = "leadkeep-daily-file"
VERSION = 1

MEANINGS = {
    "id": "the lead's id, a UUID of version 7",
    **{name: rule.meaning for name, rule in FIELD_RULES.items()},
    "status": "new, contacted, converted or not_interested",
    "created_at": "when the lead was accepted; its day is the file's",
    "updated_at": "when it was last changed",
    "version": "1 for a new lead, one more with each change",
    "assignee": "who looks after it",
    "resubmissions": "how often the person came back",
    "phone_shared": "whether a person decided that another lead may have the same phone",
    "nid_shared": "whether a person decided that another lead may have the same national ID",
    "created_by": "the subject that created it",
    "request_id": "the request that created it",
    "content_digest": "keyed digest of what was submitted, base64",
    "conversations": "all conversations that are linked to it; their tokens are bound to submission_id",
    "events": "what happened to it since it was created, oldest first",
    "kept_resubmissions": "its resubmissions, oldest first; their tokens are bound to submission_id",
    "aliases": "other ids that lead to it",
}
"""Every member of a lead in the file, in its order."""

_NAME = re.compile(r"leads_(\d{4}-\d{2}-\d{2})\.json")
_CHUNK_BYTES = 1 << 18
_SYNC_BYTES = 8 << 20  # one sync of 160 MB at the end would hold up every commit on the same disk
_OPENING, _CLOSING = b'"leads":[\n', b"]}\n"


class DailyFileError(Exception):
    """The file is not a daily file of this format; the text says in what way, without any value of it."""


class RenderingStoppedError(Exception):
    """The render was asked to stop; the previous file is still there."""


Identity = tuple[int, int, int]
"""Inode, time of change in ns and size: another one means that somebody else wrote the file."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content of a daily file: the number of leads, and the SHA-256 of their lines."""

    lead_count: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Render(Content):
    """One finished render."""

    identity: Identity
    """Of the file as it was written, whatever became of it since."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.identity[2]


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a daily file."""

    day: date
    timezone: str
    snapshot_at: datetime
    lead_count: int
    key_ids: tuple[str, ...]


@dataclass
class FileStorageService:
    """The daily files of one folder."""

    folder: Path
    days: Days
    leads: DailyLeads

    def path(self, day: date) -> Path:
        """Where the file of a day is."""
        return self.folder / f"leads_{day.isoformat()}.json"

    def make_folder(self) -> None:
        """Make the folder, for its owner only. Raises OSError."""
        make_private_folder(self.folder)

    def render(
        self,
        day: date,
        *,
        settles: bool,
        stopped: Callable[[], bool] = lambda: False,
        nap: Callable[[], None] = lambda: None,
    ) -> Render:
        """Render a day's file from one snapshot. With `settles`, its touches are settled.

        `nap` is called now and then to let others work. Raises OSError, DailyLeadsError, and RenderingStoppedError
        when `stopped` returns true.
        """
        # The lock is taken before the snapshot: whoever renders later has the later snapshot, and its file stays.
        with open(self.folder / ".rendering.lock", "ab", opener=_open_lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self.folder.glob(".leads_*.json.tmp"):
                with contextlib.suppress(OSError):  # what stays in the way of this day is an error below
                    leftover.unlink()  # of a render that was killed
            temporary = self.folder / f".{self.path(day).name}.tmp"
            with self.leads.snapshot(day, settles=settles) as snapshot:
                try:
                    render = self._write(snapshot, temporary, stopped, nap)
                    temporary.replace(self.path(day))
                    sync_folder(self.folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        temporary.unlink(missing_ok=True)
                    raise
                if settles:
                    snapshot.note_rendered(render.digest)
            return render

    def _write(
        self, snapshot: Snapshot, temporary: Path, stopped: Callable[[], bool], nap: Callable[[], None]
    ) -> Render:
        digest = hashlib.sha256()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb", buffering=_CHUNK_BYTES) as file:
            os.fchmod(descriptor, 0o600)  # a umask of 0277 would leave it unreadable to us
            file.write(self._header(snapshot) + _OPENING)
            separator, written, synced = b"", 0, 0
            for line in snapshot.lines():
                content = line.encode()
                digest.update(content + b"\n")
                written += file.write(separator + content)
                separator = b",\n"
                if written >= _CHUNK_BYTES:
                    if stopped():
                        raise RenderingStoppedError
                    nap()
                    synced, written = synced + written, 0
                    if synced >= _SYNC_BYTES:
                        file.flush()
                        os.fdatasync(descriptor)
                        synced = 0
            file.write((b"\n" if separator else b"") + _CLOSING)
            file.flush()
            os.fsync(descriptor)
            identity = _identity(os.fstat(descriptor))
        return Render(snapshot.lead_count, digest.digest(), identity)

    def _header(self, snapshot: Snapshot) -> bytes:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "date": snapshot.day.isoformat(),
            "timezone": self.days.zone,
            "snapshot_at": snapshot.snapshot_at.isoformat(),
            "lead_count": snapshot.lead_count,
            "key_ids": snapshot.key_ids,
            "fields": {name: {"meaning": text, "sealed": name in SENSITIVE_FIELDS} for name, text in MEANINGS.items()},
        }
        return json.dumps(header, separators=(",", ":")).encode()[:-1] + b",\n"

    def content_in_database(self, day: date) -> Content:
        """What the file of a day would hold now. Raises DailyLeadsError."""
        with self.leads.snapshot(day, settles=False) as snapshot:
            return _content(line.encode() for line in snapshot.lines())

    def identity(self, day: date) -> Identity | None:
        """Identity of what is in the place of a day's file, be it a link; None for nothing. Raises OSError."""
        try:
            return _identity(self.path(day).lstat())
        except FileNotFoundError:
            return None

    def days_on_disk(self) -> list[date]:
        """The days that have a file, oldest first. Raises OSError."""
        found: list[date] = []
        for entry in os.scandir(self.folder):
            if name := _NAME.fullmatch(entry.name):
                with contextlib.suppress(ValueError):  # there is no such day
                    found.append(date.fromisoformat(name[1]))
        return sorted(found)


def read_header(path: Path) -> Header:
    """The header of a daily file. Raises DailyFileError, and OSError when it cannot be read."""
    with open_regular(path) as file:
        return _header_of(file.readline(_CHUNK_BYTES), file.readline(_CHUNK_BYTES))


def read_lines(path: Path) -> Iterator[bytes]:
    """Each lead's line, without separator and line end. Raises DailyFileError when the file is not whole."""
    with open_regular(path) as file:
        _header_of(file.readline(_CHUNK_BYTES), file.readline(_CHUNK_BYTES))
        held: bytes | None = None
        for line in file:
            if line == _CLOSING:
                if held is not None:
                    yield held
                if file.read(1):
                    raise DailyFileError("something follows its end")
                return
            if held is not None:
                if not held.endswith(b","):
                    raise DailyFileError("a line of it does not end with a comma")
                yield held[:-1]
            held = line.removesuffix(b"\n")
    raise DailyFileError("it has no end")


def content_of(path: Path) -> Content:
    """How many leads a file has, and the digest of its lines. Raises like `read_lines`."""
    return _content(read_lines(path))


def _content(lines: Iterable[bytes]) -> Content:
    digest, count = hashlib.sha256(), 0
    for line in lines:
        digest.update(line + b"\n")
        count += 1
    return Content(count, digest.digest())


def _header_of(first: bytes, second: bytes) -> Header:
    if second != _OPENING or not first.endswith(b",\n"):
        raise DailyFileError("it does not begin like one")
    try:
        header: dict[str, Any] = parse_json(first.removesuffix(b",\n") + b"}")
        if header["format"] != FORMAT:
            raise DailyFileError("its format has another name")
        if header["version"] != VERSION:
            raise DailyFileError(f"its version is not {VERSION}, the one that this release reads")
        return Header(
            day=date.fromisoformat(header["date"]),
            timezone=str(header["timezone"]),
            snapshot_at=datetime.fromisoformat(header["snapshot_at"]),
            lead_count=int(header["lead_count"]),
            key_ids=tuple(str(key_id) for key_id in header["key_ids"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):  # the last one for a count of 1e999
        raise DailyFileError("its header is damaged") from None


def _open_lock(path: str, flags: int) -> int:
    """Open the lock, not what a link or a pipe in its place would lead to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _identity(found: os.stat_result) -> Identity:
    return found.st_ino, found.st_mtime_ns, found.st_size
