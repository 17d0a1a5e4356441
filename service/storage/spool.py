"""The local durable queue: where an acknowledged lead waits while the database cannot be had.

Promises: what `put` answered Waiting for is on this machine's disk, sealed, until `remove`. A repeated request is
answered as the first one, and a submission that meets a waiting one is refused and kept, as the database would do.
One process owns a spool. A waiting lead lies on one disk only, see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from service.encryption import NOT_CONFIRMED, EncryptionService, KeyCanary, key_id_of
from service.errors import FieldUnreadableError, StartRefusedError
from service.lead import CUSTOMER_FIELDS, BlindIndexes, SealedSubmission
from service.secret_file import make_private_folder
from service.storage.erasing import Person, Refreshed
from service.storage.outcomes import Met, MetLead, RequestIdReused, Waiting
from service.storage.spool_file import SpoolError, SpoolFile
from service.storage.spool_rows import Row, Size
from service.storage.spooled_person import Spooled, spooled_of

T = TypeVar("T")

OWNER_WAIT_SECONDS = 3.0
"""How long a start waits for the process that owns the spool: one that is stopping lets go of it last."""

TEND_SECONDS = 5.0
"""How often it is looked after: how soon it takes leads again after its disk was freed."""

WORTH_COUNTING = 10_000
"""Waiting rows below which they are counted anew, in about 10 ms: an operator may have changed the file. Counting more
would hold up the leads of an outage."""

Kept = Waiting | Met | RequestIdReused


@dataclass(frozen=True, slots=True)
class Meeting:
    """Of some submissions, those that have to do with the spool."""

    repeats: set[UUID]
    """The same request waits here: the spool answers it."""
    rivals: set[UUID]
    """One with the same phone or nid waits here: that one was first, so it must reach the database first."""


class SpoolOwnedError(StartRefusedError):
    """Another process uses the spool."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A submission that could not be prepared for the database by a fault of ours."""

    id: UUID
    error: Exception


@dataclass(slots=True)
class Opened:
    """What came out of the spool to be drained."""

    submissions: list[SealedSubmission]
    damaged: list[UUID]
    fault: Fault | None = None
    """Of the submission behind these."""


class Spool:
    """The spool of one folder, in a thread of its own. Must be closed."""

    def __init__(self, folder: Path, encryption: EncryptionService, *, max_bytes: int) -> None:
        """Raises StartRefusedError when the folder cannot be had, or another process owns it."""
        self.folder = folder
        self.max_bytes = max_bytes
        self.size = Size(0, 0, None, 0)
        """What lay in it after the last change."""
        self.fault: str | None = None
        """Why it took nothing when it was last asked to; None: it did."""
        self.identified = False
        """Whether keyring and normaliser were confirmed: by the database, or by what the spool remembers of it."""
        self._encryption = encryption
        self._lock = _owned(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._file: SpoolFile | None = None
        try:
            self.size = self._thread.submit(lambda: self._usable_file().size()).result()
        except SpoolError as error:
            # The database may do without a spool; until it can, nothing is confirmed.
            self.fault = str(error)

    @property
    def usable(self) -> bool:
        """Whether a lead can be made durable here, as far as is known."""
        return self.identified and self.fault is None

    @property
    def empty(self) -> bool:
        """Whether nothing waits in it, damaged or not, and this is known."""
        return self._file is not None and self.size.waiting + self.size.damaged == 0

    async def put(self, submissions: Sequence[SealedSubmission]) -> dict[UUID, Kept]:
        """Make submissions durable with one fsync; the outcome of each. Raises SpoolError: nothing is confirmed."""
        if not self.identified:
            raise SpoolError("it is not known yet which database these leads belong to")
        kept = await self._call(partial(self._put, submissions, datetime.now(UTC)))
        self.fault = None
        return kept

    async def meeting(self, submissions: Sequence[SealedSubmission]) -> Meeting:
        """Which of the submissions have to do with one that waits here. Raises SpoolError."""
        return Meeting(set(), set()) if self.empty else await self._call(partial(self._meeting, submissions))

    async def holds(self, lead_id: UUID) -> bool:
        """Whether an acknowledged lead waits here. Raises SpoolError."""
        return not self.empty and await self._call(lambda: self._usable_file().holds("id", [lead_id.bytes]))

    async def holds_conversation(self, conversation_id: str) -> bool:
        """Whether an acknowledged lead of this conversation waits here. Raises SpoolError."""
        indexes = self._encryption.spool_indexes("conversation", conversation_id)
        return not self.empty and await self._call(lambda: self._usable_file().holds("conversation", indexes))

    async def oldest(
        self,
        limit: int,
        refreshed: Refreshed,
        held: Set[UUID] = frozenset(),
    ) -> Opened:
        """The first submissions, each passed through `refreshed`, up to one that it fails for; what cannot be opened is
        set aside. Those held, and what came after them of the same person, are left out. Raises SpoolError."""
        return await self._call(partial(self._oldest, limit, refreshed, held))

    async def of_person(self, lead_id: UUID, person: Person, refreshed: Refreshed) -> Spooled:
        """What waits here of the person that an id stands for, set aside or not; see spooled_person.py.

        `person` is what the database knows of it. Raises SpoolError.
        """
        look = partial(
            spooled_of,
            wanted=lead_id,
            person=person,
            encryption=self._encryption,
            opened=lambda row: refreshed(submission_of(row, self._encryption)),
        )
        return await self._call(lambda: self._usable_file().read(look))

    async def ids_set_aside(self) -> list[UUID]:
        """The submissions that are drained no more. Raises SpoolError."""
        return await self._call(lambda: self._usable_file().ids_set_aside())

    async def remove(self, ids: Sequence[UUID]) -> None:
        """Forget submissions that are durable elsewhere or were erased; no byte of them stays. Raises SpoolError."""
        await self._call(lambda: self._usable_file().remove(ids))

    async def set_aside(self, lead_id: UUID, damage: str) -> None:
        """Keep a submission that can never be drained as it is. Raises SpoolError."""
        await self._call(lambda: self._usable_file().set_aside(lead_id, damage))

    async def identity(self) -> tuple[KeyCanary, str] | None:
        """The keyring's canary and the normaliser that the spool remembers. Raises SpoolError."""
        return await self._call(lambda: self._usable_file().identity())

    async def remember(self, canary: KeyCanary, normaliser: str) -> None:
        """Note the keyring and the normaliser that the database has confirmed. Raises SpoolError."""
        await self._call(lambda: self._usable_file().remember(canary, normaliser))

    async def key_ids(self) -> set[str]:
        """The ids of the keys without which something in it would not open. Raises SpoolError."""
        return set() if self.empty else await self._call(self._key_ids)

    async def run_upkeep(self) -> None:
        """Look after it every few seconds, whatever else happens: in an outage too a disk may be freed."""
        while True:
            await asyncio.sleep(TEND_SECONDS)
            await self.tend()

    async def tend(self) -> None:
        """Look whether it works, mend what can be mended, give room back. Raises nothing for a spool that fails."""
        try:
            await self._call(self._tend)
        except SpoolError:
            return
        self.fault = None

    def close(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._thread.submit(self._file.close).result()
        self._thread.shutdown()
        os.close(self._lock)

    async def _call(self, work: Callable[[], T]) -> T:
        def run() -> T:
            result = work()
            self.size = self._usable_file().size()
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except SpoolError as error:
            self.fault = str(error)
            raise

    def _usable_file(self) -> SpoolFile:
        if self._file is None:
            self._file = SpoolFile(self.folder, max_bytes=self.max_bytes)
        return self._file

    def _put(self, submissions: Sequence[SealedSubmission], now: datetime) -> dict[UUID, Kept]:
        file = self._usable_file()
        try:
            with file.transaction():
                return {entry.id: self._keep(file, entry, now) for entry in submissions}
        except SpoolError as error:
            if error.full:
                file.regain_room()  # so that fewer may still fit
            raise

    def _keep(self, file: SpoolFile, entry: SealedSubmission, now: datetime) -> Kept:
        requests = self._request_indexes(entry)
        if own := file.find("id", [entry.id.bytes]):
            return Waiting(own[0].id, own[0].accepted_at)
        repeated = next(iter(file.find("request", requests)), None)
        if repeated is not None and not entry.has_content(repeated.content):
            return RequestIdReused()
        if repeated is not None and not repeated.refused:
            return Waiting(repeated.id, repeated.accepted_at)
        phone, nid = (
            next((row for row in file.find(column, indexes) if not row.refused), None)
            for column, indexes in (("phone", entry.indexes.phones), ("nid", entry.indexes.nids))
        )
        met = Met(self._met(phone), self._met(nid)) if phone or nid else None
        known = repeated or any(
            row.refused and entry.has_content(row.content) for row in file.find("phone", entry.indexes.phones)
        )
        if repeated is not None and met is None:
            # What it had met is in the database by now: this time it waits like any other, in place of itself.
            file.delete(repeated.id)
        if met is None or not known:
            entry = replace(entry, accepted_at=now, refused=met is not None)
            file.insert(self._row(entry, requests[0] if requests else None, now))
        return met or Waiting(entry.id, now)

    def _met(self, row: Row | None) -> MetLead | None:
        if row is None:
            return None
        try:
            return MetLead(row.id, submission_of(row, self._encryption).created_by)
        except FieldUnreadableError:
            return MetLead(row.id, "")

    def _meeting(self, submissions: Sequence[SealedSubmission]) -> Meeting:
        file = self._usable_file()
        meeting = Meeting(set(), set())
        for entry in submissions:
            if file.holds("request", self._request_indexes(entry)):
                meeting.repeats.add(entry.id)
            elif file.holds("phone", entry.indexes.phones) or file.holds("nid", entry.indexes.nids):
                meeting.rivals.add(entry.id)
        return meeting

    def _oldest(self, limit: int, refreshed: Refreshed, held: Set[UUID]) -> Opened:
        file = self._usable_file()
        opened = Opened([], [])
        for row in file.oldest(limit, held):
            try:
                opened.submissions.append(refreshed(submission_of(row, self._encryption)))
            except FieldUnreadableError:
                file.set_aside(row.id, "cannot be opened")
                opened.damaged.append(row.id)
            except Exception as error:  # noqa: BLE001 # a fault of ours is no fault of the submission
                opened.fault = Fault(row.id, error)
                break
        return opened

    def _key_ids(self) -> set[str]:
        file = self._usable_file()
        for row in file.without_key_ids():
            # Written by a release that did not note them. What cannot be opened now is no reason to keep a key.
            try:
                tokens = (row.payload, *submission_of(row, self._encryption).sealed.values())
            except FieldUnreadableError:
                tokens = (row.payload,)
            file.note_key_ids(row.id, " ".join(sorted({key_id_of(token) for token in tokens})))
        return file.key_ids()

    def _tend(self) -> None:
        file = self._usable_file()
        if file.size().waiting < WORTH_COUNTING:
            file.count()
        if file.size().waiting + file.size().damaged == 0:
            file.shrink()
        if self.fault is None:
            return
        try:
            file.probe()
        except SpoolError as error:
            if error.full:
                file.regain_room()
            raise

    def _request_indexes(self, entry: SealedSubmission) -> tuple[bytes, ...]:
        if entry.request_id is None:
            return ()
        return self._encryption.spool_indexes("request", entry.created_by, entry.request_id)

    def _row(self, entry: SealedSubmission, request: bytes | None, now: datetime) -> Row:
        conversation = entry.fields.get("conversation_id")
        return Row(
            id=entry.id,
            accepted_at=now,
            request=request,
            content=entry.content_digest,
            phone=entry.indexes.phones[0],
            nid=entry.indexes.nids[0],
            conversation=self._encryption.spool_indexes("conversation", conversation)[0] if conversation else None,
            refused=entry.refused,
            payload=(payload := self._encryption.seal_spooled(entry.id, _payload(entry, now))),
            key_ids=" ".join(sorted({key_id_of(token) for token in (payload, *entry.sealed.values())})),
        )


def _payload(entry: SealedSubmission, accepted_at: datetime) -> bytes:
    sealed = entry.sealed
    clear = {name: value for name, value in entry.fields.items() if name not in sealed}
    about = {"created_by": entry.created_by, "request_id": entry.request_id, "refused": entry.refused}
    return json.dumps({**clear, **about, "sealed": sealed, "accepted_at": accepted_at.isoformat()}).encode()


def submission_of(row: Row, encryption: EncryptionService) -> SealedSubmission:
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
            accepted_at=datetime.fromisoformat(held["accepted_at"]),
            content_digest=row.content,
            indexes=BlindIndexes(epoch=NOT_CONFIRMED, phone=(row.phone, None), nid=(row.nid, None)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FieldUnreadableError(["spooled"]) from None


def has_owner(folder: Path) -> bool:
    """Whether a process owns the spool of a folder now."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _owned(folder: Path) -> int:
    try:
        make_private_folder(folder)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StartRefusedError(
            f"the spool's folder {folder} cannot be used: {error.strerror}; see LEADKEEP_SPOOL_DIR"
        ) from None
    deadline = time.monotonic() + OWNER_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise SpoolOwnedError(
                    f"another process uses the spool {folder}; each service needs its own LEADKEEP_SPOOL_DIR"
                ) from None
            time.sleep(0.05)
        else:
            return lock
