"""Spool: the local durable queue in which acknowledged leads wait while the database is unavailable.

Promises: what `put` answered Delayed for is on this machine's disk, sealed, until `remove`. A repeated request is
answered as the first one, and a submission that duplicates a waiting one is refused and kept, as the database would do.
One process owns a spool. A waiting lead lies on one disk only, see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

from service.errors import FieldUnreadableError
from service.keys.encryption import EncryptionService, KeyCanary
from service.lead import SealedSubmission
from service.storage.database.clock import ClockOffset, DatabaseClock
from service.storage.leads.decision import Delayed, DuplicateMatch, Outcome, Person, decide
from service.storage.leads.erasing import KnownTombstone, Reseal, request_digest
from service.storage.spool.file import SpoolError, SpoolFile
from service.storage.spool.rows import (
    SpoolRow,
    SpoolSize,
    become_owner,
    closed,
    row_of,
    submission_of,
)
from service.storage.spool.search import Alike

T = TypeVar("T")
P = ParamSpec("P")

UPKEEP_SECONDS = 5.0
"""How often it is maintained: how soon it takes leads again after its disk was freed."""

WORTH_COUNTING = 10_000
"""Waiting rows below which they are counted anew, in about 10 ms: an operator may have changed the file. Counting more
would hold up the leads of an outage."""

LOOKED_AT_ONCE = 50
"""Rows that are opened together: in about 10 ms, for which a lead of an outage may wait."""


@dataclass(frozen=True, slots=True)
class SpoolOverlap:
    """Those of some submissions that share a request, phone or nid with a spooled one."""

    repeats: set[UUID] = field(default_factory=set)
    """The same request waits here, or the same submission without a request_id: the spool answers it."""
    rivals: set[UUID] = field(default_factory=set)
    """One with the same phone or nid waits here: that one was first, so it must reach the database first."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """A person's submissions with what their tombstones will hold, and other people's that share something with it."""

    own: Mapping[UUID, KnownTombstone] = field(default_factory=dict)
    others: tuple[SealedSubmission, ...] = ()
    """Those that share only the phone or only the nid; not what was set aside, which is not drained either."""
    itself: SealedSubmission | None = None
    """The submission whose id was asked for."""
    sought: Person | None = None
    """The person as the database knew it; None: the spool was not searched, because it is empty."""


@dataclass(slots=True)
class Opened:
    """What came out of the spool to be drained."""

    submissions: list[SealedSubmission]
    damaged: list[UUID]
    fault: tuple[UUID, Exception] | None = None
    """The submission behind these, if it could not be prepared by a fault of ours."""


def _in_thread(
    work: Callable[Concatenate[Spool, SpoolFile, P], T],
) -> Callable[Concatenate[Spool, P], Coroutine[Any, Any, T]]:
    """Make a coroutine of a method that uses the file: it runs in the spool's thread, one at a time."""

    @wraps(work)
    async def method(spool: Spool, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await spool._call(lambda file: work(spool, file, *args, **kwargs))  # noqa: SLF001 # this module's own

    return method


class Spool:
    """The spool of one folder, in a thread of its own. Must be closed."""

    def __init__(
        self, folder: Path, encryption: EncryptionService, *, max_bytes: int, clock: DatabaseClock | None = None
    ) -> None:
        """Raises StartRefusedError when the folder cannot be used, or another process owns it."""
        self.folder = folder
        self.max_bytes = max_bytes
        self.size = SpoolSize(0, 0, None, 0)
        """What lay in it after the last change."""
        self.fault: str | None = None
        """Why it took nothing when it was last asked to; None: it did."""
        self.identified = False
        """Whether keyring and normaliser were confirmed: by the database, or by what the spool remembers of it."""
        self.clock = clock or DatabaseClock()
        """By which submissions are dated. Whoever asks the database for its time lets this know."""
        self._encryption = encryption
        self._lock = become_owner(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._file: SpoolFile | None = None
        try:
            self.size = self._thread.submit(lambda: self._opened_file().size()).result()
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

    async def put(self, submissions: Sequence[SealedSubmission]) -> dict[UUID, Outcome]:
        """Make submissions durable with one fsync; the outcome of each. Raises SpoolError: nothing is confirmed."""
        if not self.identified:
            raise SpoolError("it is not known yet which database these leads belong to")
        kept = await self._put(submissions, *self.clock.now())
        self.fault = None
        return kept

    @_in_thread
    def overlap(self, file: SpoolFile, submissions: Sequence[SealedSubmission]) -> SpoolOverlap:
        """Which of the submissions share something with one that waits here. Raises SpoolError."""
        overlap = SpoolOverlap()
        now, _ = self.clock.now()
        for entry in submissions:
            waiting = Alike.of(entry, self._request_indexes(entry), file)
            if waiting.request or isinstance(decide(entry, waiting.found(self._encryption, now)), Delayed):
                overlap.repeats.add(entry.id)
            elif waiting.phone or waiting.nid:
                overlap.rivals.add(entry.id)
        return overlap

    async def holds(self, lead_id: UUID, may_read: Callable[[str], bool]) -> bool:
        """Whether an acknowledged lead waits here whose creator's leads the caller may read. Raises SpoolError."""
        return not self.empty and await self._holds("id", [lead_id.bytes], may_read)

    async def holds_conversation(self, conversation_id: str, may_read: Callable[[str], bool]) -> bool:
        """Like `holds`, of a lead of this conversation."""
        indexes = self._encryption.spool_indexes("conversation", conversation_id)
        return not self.empty and await self._holds("conversation", indexes, may_read)

    async def holds_reference(self, reference: bytes, may_read: Callable[[str], bool]) -> bool:
        """Whether a submission whose id has this reference waits here. Raises SpoolError."""
        # An index of its own would cost every lead of an outage. This reads the index of the ids: 1 ms for 10,000.
        column = f"substr(id, {17 - len(reference)})"
        return not self.empty and await self._holds(column, [reference], may_read)

    @_in_thread
    def oldest(self, file: SpoolFile, limit: int, reseal: Reseal, held: Set[UUID] = frozenset()) -> Opened:
        """The first submissions, each passed through `reseal`, up to one that it fails for; what cannot be opened is
        set aside. Those held, and what came after them of the same person, are left out. Raises SpoolError."""
        opened = Opened([], [])
        for row in file.oldest(limit, held):
            try:
                opened.submissions.append(reseal(submission_of(row, self._encryption)))
            except FieldUnreadableError:
                file.set_aside(row.id, "cannot be opened")
                opened.damaged.append(row.id)
            except Exception as error:  # noqa: BLE001 # a fault of ours is no fault of the submission
                opened.fault = (row.id, error)
                break
        return opened

    @_in_thread
    def of_person(self, file: SpoolFile, lead_id: UUID, person: Person, reseal: Reseal) -> Spooled:
        """What waits here of the person that an id stands for, set aside or not.

        `person` is what the database knows of it. Raises SpoolError.
        """

        def opened(row: SpoolRow) -> SealedSubmission | None:
            try:
                return reseal(submission_of(row, self._encryption))
            except Exception:  # noqa: BLE001 # whatever it is, the closed row suffices here, and the drain reports it
                return None

        sought, itself = person, None
        for row in file.find("id", [lead_id.bytes]):
            itself = opened(row)
            # Both: as it lies there, by which others are looked for, and as it is compared.
            person = person.extended_by(closed(row)).extended_by(itself or closed(row))
        requests = [
            index for request in person.requests for index in self._encryption.spool_indexes("request", *request)
        ]
        values = {"id": [each.bytes for each in person.ids], "request": requests}
        values |= {"phone": list(person.phones), "nid": list(person.nids)}
        condition = " OR ".join(f"{column} IN ({', '.join('?' * len(found))})" for column, found in values.items())
        own: dict[UUID, KnownTombstone] = {}
        others: list[SealedSubmission] = []
        for row in file.rows(f"WHERE {condition} ORDER BY seq", *(each for found in values.values() for each in found)):
            entry = opened(row)
            if row.request in requests or person.owns(entry or closed(row)):
                digest = request_digest(entry) if entry is not None else None
                own[row.id] = KnownTombstone(created_at=row.accepted_at, request_digest=digest)
            elif entry is not None and row.damage is None:
                others.append(entry)
        return Spooled(own, tuple(others), itself, sought)

    async def look_through(
        self,
        look: Callable[[SpoolRow, SealedSubmission | None], T | None],
        *,
        keep: Callable[[list[T]], list[T]] = list,
        ids: Collection[UUID] | None = None,
    ) -> list[T]:
        """What `look` makes of the submissions, set aside or not, in the order of ids; None is no result.

        A submission that does not open is None. It takes long when many wait, and lets others use the spool meanwhile.
        Raises SpoolError.

        Args:
            keep: which of the results found so far are kept.
            ids: looked at are only these submissions; None: all.
        """
        found: list[T] = []
        last: bytes | None = b""
        while last is not None and not self.empty:
            more, last = await self._look_through(look, last, ids)
            found = keep(found + more)
        return found

    @_in_thread
    def ids_set_aside(self, file: SpoolFile) -> list[UUID]:
        """The submissions that are drained no more. Raises SpoolError."""
        return [row.id for row in file.rows("WHERE damage IS NOT NULL")]

    @_in_thread
    def remove(self, file: SpoolFile, ids: Sequence[UUID]) -> None:
        """Forget submissions that are durable elsewhere or were erased; no byte of them stays. Raises SpoolError."""
        file.remove(ids)

    @_in_thread
    def set_aside(self, file: SpoolFile, lead_id: UUID, damage: str) -> None:
        """Keep a submission that can never be drained as it is. Raises SpoolError."""
        file.set_aside(lead_id, damage)

    @_in_thread
    def identity(self, file: SpoolFile) -> tuple[KeyCanary, str] | None:
        """The keyring's canary and the normaliser that the spool remembers. Raises SpoolError."""
        return file.identity()

    @_in_thread
    def remember(self, file: SpoolFile, canary: KeyCanary, normaliser: str) -> None:
        """Note the keyring and the normaliser that the database has confirmed. Raises SpoolError."""
        file.remember(canary, normaliser)

    async def key_ids(self) -> set[str]:
        """The ids of the keys without which something in it would not open. Raises SpoolError."""
        return set() if self.empty else await self._call(SpoolFile.key_ids)

    async def run_upkeep(self) -> None:
        """Maintain it every few seconds, also during an outage: a disk may be freed."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            await self.maintain()

    async def maintain(self) -> None:
        """Check whether it works, repair what can be repaired, give room back. A spool that fails raises nothing."""
        with suppress(SpoolError):
            await self._maintain()
            self.fault = None

    def close(self) -> None:
        """Release the folder."""
        if self._file is not None:
            self._thread.submit(self._file.close).result()
        self._thread.shutdown()
        os.close(self._lock)

    async def _call(self, work: Callable[[SpoolFile], T]) -> T:
        def run() -> T:
            file = self._opened_file()
            result = work(file)
            self.size = file.size()
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except SpoolError as error:
            self.fault = str(error)
            raise

    def _opened_file(self) -> SpoolFile:
        if self._file is None:
            self._file = SpoolFile(self.folder, max_bytes=self.max_bytes)
        return self._file

    @_in_thread
    def _put(
        self, file: SpoolFile, submissions: Sequence[SealedSubmission], now: datetime, clock: ClockOffset | None
    ) -> dict[UUID, Outcome]:
        try:
            with file.transaction():
                kept = {entry.id: self._keep(entry, now, clock, file) for entry in submissions}
        except SpoolError as error:
            if error.full:
                file.regain_room()  # so that fewer may still fit
            raise
        file.check_place()
        return kept

    def _keep(self, entry: SealedSubmission, now: datetime, clock: ClockOffset | None, file: SpoolFile) -> Outcome:
        requests = self._request_indexes(entry)
        waiting = Alike.of(entry, requests, file)
        outcome = decide(entry, waiting.found(self._encryption, now))
        if outcome is None and waiting.request is not None:
            # What it duplicated is in the database by now: this time it waits like any other, in place of itself.
            file.delete(waiting.request.id)
        is_refused = isinstance(outcome, DuplicateMatch)
        if outcome is None or (is_refused and not waiting.keeps_refused()):
            entry = replace(entry, accepted_at=now, refused=is_refused)
            file.insert(row_of(entry, self._encryption, request=next(iter(requests), None), clock=clock))
        return outcome or Delayed(entry.id, now)

    @_in_thread
    def _holds(self, file: SpoolFile, column: str, values: Sequence[bytes], may_read: Callable[[str], bool]) -> bool:
        for row in file.find(column, values):
            try:
                if may_read(submission_of(row, self._encryption).created_by):
                    return True
            except FieldUnreadableError:
                # Whose it is cannot be known, and no acknowledged lead is called missing to its own creator.
                return True
        return False

    @_in_thread
    def _look_through(
        self,
        file: SpoolFile,
        look: Callable[[SpoolRow, SealedSubmission | None], T | None],
        after: bytes,
        ids: Collection[UUID] | None,
    ) -> tuple[list[T], bytes | None]:
        """What `look` makes of some rows, and the id behind which there may be more."""
        found = list[T]()
        among = "" if ids is None else f"AND id IN ({', '.join('?' * len(ids))})"
        condition = f"WHERE id > ? {among} ORDER BY id LIMIT {LOOKED_AT_ONCE}"
        rows = file.rows(condition, after, *(each.bytes for each in ids or ()))
        for row in rows:
            try:
                result = look(row, submission_of(row, self._encryption))
            except FieldUnreadableError:
                result = look(row, None)
            if result is not None:
                found.append(result)
        return found, rows[-1].id.bytes if len(rows) == LOOKED_AT_ONCE else None

    @_in_thread
    def _maintain(self, file: SpoolFile) -> None:
        file.check_place()
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
