"""Spool: the local durable queue in which acknowledged leads wait while the database is unavailable.

Promises: what `put` answered Delayed for is on this machine's disk, sealed, until `remove`. A repeated request is
answered as the first one, and a submission that duplicates a waiting one is refused and kept, as the database would do.
One process owns a spool. A waiting lead lies on one disk only, see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from service.errors import FieldUnreadableError
from service.keys.encryption import NOT_CONFIRMED, EncryptionService, KeyCanary, key_id_of
from service.lead import CUSTOMER_FIELDS, BlindIndexes, SealedSubmission
from service.storage.database.clock import ClockOffset, DatabaseClock
from service.storage.leads.decision import Delayed, DuplicateMatch, Earlier, Found, MatchedLead, Outcome, decide
from service.storage.leads.erasing import KnownTombstone, Person, Reseal
from service.storage.leads.tombstones import request_digest
from service.storage.spool.file import SpoolError, SpoolFile
from service.storage.spool.rows import SpoolRow, SpoolSize, become_owner

T = TypeVar("T")

UPKEEP_SECONDS = 5.0
"""How often it is maintained: how soon it takes leads again after its disk was freed."""

WORTH_COUNTING = 10_000
"""Waiting rows below which they are counted anew, in about 10 ms: an operator may have changed the file. Counting more
would hold up the leads of an outage."""


LOOKED_AT_ONCE = 50
"""Rows that are opened together: in about 10 ms, for which a lead of an outage may wait."""


@dataclass(frozen=True, slots=True)
class SpoolOverlap:
    """Of some submissions, those that share something with one that waits here."""

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


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The rows that share something with a submission, oldest first."""

    own: SpoolRow | None
    request: SpoolRow | None
    phone: Sequence[SpoolRow]
    nid: Sequence[SpoolRow]

    @classmethod
    def of(cls, entry: SealedSubmission, requests: Sequence[bytes], file: SpoolFile) -> _Waiting:
        """Those of a submission with these digests of its request."""
        return cls(
            own=next(iter(file.find("id", [entry.id.bytes])), None),
            request=next(iter(file.find("request", requests)), None),
            phone=file.find("phone", entry.indexes.phones),
            nid=file.find("nid", entry.indexes.nids),
        )

    def keeps_refused(self, entry: SealedSubmission) -> bool:
        """Whether the submission was refused and kept before."""
        return self.request is not None or any(row.refused and entry.has_content(row.content) for row in self.phone)


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
        kept = await self._call(partial(self._put, submissions, *self.clock.now()))
        self.fault = None
        return kept

    async def overlap(self, submissions: Sequence[SealedSubmission]) -> SpoolOverlap:
        """Which of the submissions share something with one that waits here. Raises SpoolError."""
        if self.empty:
            return SpoolOverlap()
        return await self._call(partial(self._overlap, submissions, self.clock.now()[0]))

    async def holds(self, lead_id: UUID, may_read: Callable[[str], bool]) -> bool:
        """Whether an acknowledged lead waits here whose creator's leads the caller may read. Raises SpoolError."""
        return not self.empty and await self._call(partial(self._holds, "id", [lead_id.bytes], may_read))

    async def holds_conversation(self, conversation_id: str, may_read: Callable[[str], bool]) -> bool:
        """Whether an acknowledged lead of this conversation waits here whose creator's leads the caller may read.

        Raises SpoolError.
        """
        indexes = self._encryption.spool_indexes("conversation", conversation_id)
        return not self.empty and await self._call(partial(self._holds, "conversation", indexes, may_read))

    async def holds_reference(self, reference: bytes, may_read: Callable[[str], bool]) -> bool:
        """Whether a submission whose id has this reference waits here. Raises SpoolError."""
        # An index of its own would cost every lead of an outage. This reads the index of the ids: 1 ms for 10,000.
        column = f"substr(id, {17 - len(reference)})"
        return not self.empty and await self._call(partial(self._holds, column, [reference], may_read))

    async def oldest(
        self,
        limit: int,
        reseal: Reseal,
        held: Set[UUID] = frozenset(),
    ) -> Opened:
        """The first submissions, each passed through `reseal`, up to one that it fails for; what cannot be opened is
        set aside. Those held, and what came after them of the same person, are left out. Raises SpoolError."""
        return await self._call(partial(self._oldest, limit, reseal, held))

    async def of_person(self, lead_id: UUID, person: Person, reseal: Reseal) -> Spooled:
        """What waits here of the person that an id stands for, set aside or not.

        `person` is what the database knows of it. Raises SpoolError.
        """
        return await self._call(partial(self._of_person, lead_id, person, reseal))

    async def look_through(
        self,
        look: Callable[[SpoolRow, SealedSubmission | None], T | None],
        *,
        limit: int | None = None,
    ) -> list[T]:
        """What `look` makes of the submissions, set aside or not, up to a number of results; None is no result.

        In the order of ids. A submission that does not open is None. Raises SpoolError.
        """
        found: list[T] = []
        last: bytes | None = b""
        while last is not None and not self.empty and (limit is None or len(found) < limit):
            more, last = await self._call(partial(self._look_through, look, last))
            found += more
        return found[:limit]

    async def ids_set_aside(self) -> list[UUID]:
        """The submissions that are drained no more. Raises SpoolError."""
        return await self._call(lambda file: [row.id for row in file.rows("WHERE damage IS NOT NULL")])

    async def remove(self, ids: Sequence[UUID]) -> None:
        """Forget submissions that are durable elsewhere or were erased; no byte of them stays. Raises SpoolError."""
        await self._call(lambda file: file.remove(ids))

    async def set_aside(self, lead_id: UUID, damage: str) -> None:
        """Keep a submission that can never be drained as it is. Raises SpoolError."""
        await self._call(lambda file: file.set_aside(lead_id, damage))

    async def identity(self) -> tuple[KeyCanary, str] | None:
        """The keyring's canary and the normaliser that the spool remembers. Raises SpoolError."""
        return await self._call(lambda file: file.identity())

    async def remember(self, canary: KeyCanary, normaliser: str) -> None:
        """Note the keyring and the normaliser that the database has confirmed. Raises SpoolError."""
        await self._call(lambda file: file.remember(canary, normaliser))

    async def key_ids(self) -> set[str]:
        """The ids of the keys without which something in it would not open. Raises SpoolError."""
        return set() if self.empty else await self._call(self._key_ids)

    async def run_upkeep(self) -> None:
        """Maintain it every few seconds, also during an outage: a disk may be freed."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            await self.maintain()

    async def maintain(self) -> None:
        """Check whether it works, repair what can be repaired, give room back. A spool that fails raises nothing."""
        try:
            await self._call(self._maintain)
        except SpoolError:
            return
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

    def _put(
        self, submissions: Sequence[SealedSubmission], now: datetime, clock: ClockOffset | None, file: SpoolFile
    ) -> dict[UUID, Outcome]:
        try:
            with file.transaction():
                return {entry.id: self._keep(entry, now, clock, file) for entry in submissions}
        except SpoolError as error:
            if error.full:
                file.regain_room()  # so that fewer may still fit
            raise

    def _keep(self, entry: SealedSubmission, now: datetime, clock: ClockOffset | None, file: SpoolFile) -> Outcome:
        requests = self._request_indexes(entry)
        waiting = _Waiting.of(entry, requests, file)
        outcome = decide(entry, self._found(entry, waiting, now))
        if outcome is None and waiting.request is not None:
            # What it duplicated is in the database by now: this time it waits like any other, in place of itself.
            file.delete(waiting.request.id)
        is_refused = isinstance(outcome, DuplicateMatch)
        if outcome is None or (is_refused and not waiting.keeps_refused(entry)):
            entry = replace(entry, accepted_at=now, refused=is_refused)
            file.insert(replace(self._row(entry, requests[0] if requests else None, now), clock=clock))
        return outcome or Delayed(entry.id, now)

    def _found(self, entry: SealedSubmission, waiting: _Waiting, now: datetime) -> Found:
        phone, nid = (next((row for row in rows if not row.refused), None) for rows in (waiting.phone, waiting.nid))
        matched = self._matched(phone)
        has_both = phone is not None and (phone == nid if entry.indexes.nids else phone.nid is None)
        is_own = has_both and matched is not None and matched.created_by == entry.created_by
        return Found(
            own=_earlier(waiting.own),
            request=_earlier(waiting.request),
            person=_earlier(phone) if is_own else None,
            now=now,
            phone=matched,
            nid=matched if phone == nid else self._matched(nid),
        )

    def _matched(self, row: SpoolRow | None) -> MatchedLead | None:
        if row is None:
            return None
        try:
            return MatchedLead(row.id, submission_of(row, self._encryption).created_by)
        except FieldUnreadableError:
            return MatchedLead(row.id, "")

    def _overlap(self, submissions: Sequence[SealedSubmission], now: datetime, file: SpoolFile) -> SpoolOverlap:
        overlap = SpoolOverlap()
        for entry in submissions:
            waiting = _Waiting.of(entry, self._request_indexes(entry), file)
            if waiting.request or isinstance(decide(entry, self._found(entry, waiting, now)), Delayed):
                overlap.repeats.add(entry.id)
            elif waiting.phone or waiting.nid:
                overlap.rivals.add(entry.id)
        return overlap

    def _oldest(self, limit: int, reseal: Reseal, held: Set[UUID], file: SpoolFile) -> Opened:
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

    def _holds(self, column: str, values: Sequence[bytes], may_read: Callable[[str], bool], file: SpoolFile) -> bool:
        for row in file.find(column, values):
            try:
                if may_read(submission_of(row, self._encryption).created_by):
                    return True
            except FieldUnreadableError:
                # Whose it is cannot be known, and no acknowledged lead is called missing to its own creator.
                return True
        return False

    def _of_person(self, wanted: UUID, person: Person, reseal: Reseal, file: SpoolFile) -> Spooled:
        def opened(row: SpoolRow) -> SealedSubmission | None:
            try:
                return reseal(submission_of(row, self._encryption))
            except Exception:  # noqa: BLE001 # whatever it is, the closed row suffices here, and the drain reports it
                return None

        sought, itself = person, None
        for row in file.find("id", [wanted.bytes]):
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

    def _look_through(
        self, look: Callable[[SpoolRow, SealedSubmission | None], T | None], after: bytes, file: SpoolFile
    ) -> tuple[list[T], bytes | None]:
        """What `look` makes of some rows, and the id behind which there may be more."""
        found = list[T]()
        rows = file.rows("WHERE id > ? ORDER BY id LIMIT ?", after, LOOKED_AT_ONCE)
        for row in rows:
            try:
                result = look(row, submission_of(row, self._encryption))
            except FieldUnreadableError:
                result = look(row, None)
            if result is not None:
                found.append(result)
        return found, rows[-1].id.bytes if len(rows) == LOOKED_AT_ONCE else None

    def _key_ids(self, file: SpoolFile) -> set[str]:
        for row in file.rows("WHERE key_ids IS NULL ORDER BY seq"):
            # Written by a release that did not note them. What cannot be opened now is no reason to keep a key.
            try:
                tokens = (row.payload, *submission_of(row, self._encryption).sealed.values())
            except FieldUnreadableError:
                tokens = (row.payload,)
            file.note_key_ids(row.id, " ".join(sorted({key_id_of(token) for token in tokens})))
        return file.key_ids()

    def _maintain(self, file: SpoolFile) -> None:
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

    def _row(self, entry: SealedSubmission, request: bytes | None, now: datetime) -> SpoolRow:
        conversation = entry.fields.get("conversation_id")
        if conversation is not None:
            conversation = self._encryption.open(entry.id, "conversation_id", conversation)
        return SpoolRow(
            id=entry.id,
            accepted_at=now,
            request=request,
            content=entry.content_digest,
            phone=entry.indexes.phones[0],
            nid=next(iter(entry.indexes.nids), None),
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


def _earlier(row: SpoolRow | None) -> Earlier | None:
    if row is None:
        return None
    return Earlier(id=row.id, accepted_at=row.accepted_at, content_digest=row.content, refused=row.refused)


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
