"""Import pipeline: reads a file, works on rows in other processes, stores batch by batch, reports each row.

Promise: memory does not grow with the file; a row that cannot be imported costs only itself; what was reported as
saved is committed; stopped at any moment and run again, nothing is there twice. Rows are decided in the file's order,
so of those that share a phone or a nid the first becomes the lead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from service.importing.reports import Report, Result, RowResult
from service.importing.source import Row
from service.importing.workers import Ready, opened_lines, sealed_rows
from service.lead import SealedSubmission
from service.storage.database.database import Database
from service.storage.database.failures import CONTENT_CLASSES, StorageFaultError
from service.storage.leads.decision import Created, Delayed, DuplicateMatch, Erased, Outcome
from service.storage.leads.import_export import Restored, import_leads, restore_leads
from service.storage.leads.submissions import SubmissionStore

BATCH_ROWS = 500
"""Rows a transaction: one fsync for all of them, and at most this many are undone when it fails."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Brings rows into one database. `on_progress` gets the number of rows reported so far; `stopped` ends it early."""

    database: Database
    workers: ProcessPoolExecutor
    new_id: Callable[[], UUID]
    dry_run: bool
    stopped: asyncio.Event
    on_progress: Callable[[int], None]

    async def import_rows(self, rows: Iterable[Row], report: Report) -> None:
        """Import the rows of a foreign file. Raises StorageUnavailableError, and StorageFaultError like `_stored`."""

        def begin(batch: list[tuple[int, Row]]) -> Future[list[Ready | RowResult]]:
            given = [(number, dict(row.fields), row.fault, self.new_id()) for number, row in batch]
            return self.workers.submit(sealed_rows, given)

        async def store(ready: Sequence[Ready]) -> list[RowResult]:
            entries: list[SealedSubmission] = [each.lead for each in ready]
            outcomes = await import_leads(self.database, entries, dry_run=self.dry_run)
            return [_result_of(each, outcomes[each.lead.id]) for each in ready]

        await self._pump(((row.number, row) for row in rows), begin, store, report)

    async def import_lines(self, lines: Iterable[bytes], report: Report) -> None:
        """Import the lines of a daily file. Raises like `import_rows`."""

        async def store(ready: Sequence[Ready]) -> list[RowResult]:
            found = await restore_leads(self.database, [each.lead for each in ready], dry_run=self.dry_run)
            return [_result_of_restored(each.number, each.lead, found[UUID(each.lead["id"])]) for each in ready]

        await self._pump(
            enumerate(lines, start=1), lambda batch: self.workers.submit(opened_lines, batch), store, report
        )

    async def _pump(
        self,
        items: Iterable[tuple[int, T]],
        begin: Callable[[list[tuple[int, T]]], Future[list[Ready | RowResult]]],
        store: Callable[[Sequence[Ready]], Awaitable[list[RowResult]]],
        report: Report,
    ) -> None:
        in_flight: deque[tuple[list[tuple[int, T]], Future[list[Ready | RowResult]]]] = deque()

        async def finish_oldest() -> None:
            batch, future = in_flight.popleft()
            worked = await asyncio.wrap_future(future)
            stored = await self._stored([each for each in worked if isinstance(each, Ready)], store)
            results = {each.number: each for each in (*worked, *stored) if isinstance(each, RowResult)}
            for number, item in batch:
                report.add(results[number], item if isinstance(item, Row) else None)
            self.on_progress(report.rows)

        for batch in _batches(items):
            if self.stopped.is_set():
                return
            in_flight.append((batch, begin(batch)))
            if len(in_flight) > BATCHES_AHEAD:
                await finish_oldest()
        while in_flight and not self.stopped.is_set():
            await finish_oldest()

    async def _stored(
        self, ready: Sequence[Ready], store: Callable[[Sequence[Ready]], Awaitable[list[RowResult]]]
    ) -> list[RowResult]:
        """Store leads together; by halves where the database refuses one for its content, which costs only itself.

        A database that refuses made-up leads too refuses every row: that is raised.
        """
        if not ready:
            return []
        try:
            return await store(ready)
        except StorageFaultError as fault:
            is_content = fault.cause[:2] in CONTENT_CLASSES
            if not is_content or await SubmissionStore(self.database).trial() is not None:
                raise
            if len(ready) == 1:
                detail = f"the database refused it (SQLSTATE {fault.cause})"
                return [RowResult(ready[0].number, Result.FAILED, ready[0].known_id, detail)]
        half = len(ready) // 2
        return await self._stored(ready[:half], store) + await self._stored(ready[half:], store)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def _result_of(ready: Ready, outcome: Outcome) -> RowResult:
    number = ready.number
    match outcome:
        case Created(lead):
            left_out = f"left out, because it cannot be read: {', '.join(ready.ignored)}" if ready.ignored else ""
            result = Result.SAVED if lead.id == ready.lead.id else Result.SAVED_BEFORE
            return RowResult(number, result, str(lead.id), left_out)
        case DuplicateMatch(phone, nid) if phone and nid and phone != nid:
            both = (str(phone.id), str(nid.id))
            return RowResult(number, Result.DUPLICATE, both[0], f"phone of {both[0]}, nid of {both[1]}", both)
        case DuplicateMatch() as match:
            matched = str(match.leads[0].id)
            sharing = () if match.verified else (matched,)
            return RowResult(number, Result.DUPLICATE, matched, _shared_fields(match.phone, match.nid), sharing)
        case Delayed(lead_id):
            return RowResult(number, Result.SAVED_BEFORE, str(lead_id), "waits for a person: leadkeep conflicts list")
        case Erased():
            return RowResult(number, Result.ERASED)
        case _:
            return RowResult(number, Result.FAILED, detail="its request was used for something else")


def _result_of_restored(number: int, lead: dict[str, Any], restored: Restored) -> RowResult:
    if restored.inserted:
        return RowResult(number, Result.SAVED, lead["id"])
    if restored.erased:
        return RowResult(number, Result.ERASED, lead["id"])
    if restored.taken or restored.present_version == 0:
        return RowResult(number, Result.FAILED, lead["id"], "an id of it belongs to another lead: it was altered")
    if restored.present_version is not None:
        here, in_file = restored.present_version, lead["version"]
        if here == in_file and restored.lacks_resubmissions:
            detail = "the file has resubmissions that are not here; it stays as it is"
        elif here < in_file:
            detail = f"version {here} is here, {in_file} in the file; it stays as it is"
        else:
            return RowResult(number, Result.SAVED_BEFORE, lead["id"])
        return RowResult(number, Result.OLDER_HERE, lead["id"], detail)
    matched = restored.phone_of or restored.nid_of or restored.request_of
    if matched is None:
        return RowResult(number, Result.FAILED, lead["id"], "what stood in its way has gone: import it again")
    return RowResult(
        number, Result.DUPLICATE, str(matched), _shared_fields(restored.phone_of, restored.nid_of) or "request_id"
    )


def _shared_fields(phone: object, nid: object) -> str:
    return " and ".join(name for name, matched in (("phone", phone), ("nid", nid)) if matched)
