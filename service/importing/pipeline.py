"""From the file into the database: read, work on rows in other processes, store batch by batch, tell each row.

Promise: memory does not grow with the file; a row that cannot be imported costs only itself; what was told as saved is
committed; stopped at any moment and run again, nothing is there twice. Rows are stored in the file's order, so of two
equal ones the first is the lead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from service.importing.reports import Report
from service.importing.rows import Result, Row, Told
from service.importing.workers import opened_lines, sealed_rows
from service.lead import SealedSubmission
from service.storage.daily_import import Restored, restore_leads
from service.storage.database import Database
from service.storage.failures import StorageFaultError
from service.storage.lead_import import import_leads
from service.storage.outcomes import Created, Met, Outcome, Waiting
from service.storage.repository import LeadRepository

BATCH_ROWS = 500
"""Rows a transaction: one fsync for all of them, and at most this many are undone when it fails."""

BATCHES_AHEAD = 4
"""Batches that are worked on while one is stored: two for each of two processes."""

T = TypeVar("T")


class Pipeline:
    """Brings rows into one database. `on_progress` hears how many rows were told of; `stopped` ends it early."""

    def __init__(
        self,
        database: Database,
        repository: LeadRepository,
        workers: ProcessPoolExecutor,
        *,
        new_id: Callable[[], UUID],
        dry_run: bool,
        stopped: asyncio.Event,
        on_progress: Callable[[int], None],
    ) -> None:
        self._database = database
        self._repository = repository
        self._workers = workers
        self._new_id = new_id
        self._dry_run = dry_run
        self._stopped = stopped
        self._on_progress = on_progress

    async def import_rows(self, rows: Iterable[Row], report: Report) -> None:
        """Import the rows of a foreign file. Raises StorageUnavailableError."""

        def begin(batch: list[Row]) -> Future[list[SealedSubmission | Told]]:
            readable = [(row.number, dict(row.fields), self._new_id()) for row in batch if row.fault is None]
            return self._workers.submit(sealed_rows, readable)

        async def finish(batch: list[Row], worked: list[SealedSubmission | Told]) -> None:
            results = iter(worked)
            ready: list[tuple[Row, SealedSubmission]] = []
            told: dict[int, Told] = {}
            for row in batch:
                done = Told(row.number, Result.INVALID, detail=row.fault) if row.fault else next(results)
                if isinstance(done, Told):
                    told[row.number] = done
                else:
                    ready.append((row, done))
            told |= await self._store(ready)
            for row in batch:
                report.tell(told[row.number], row)

        await self._pump(rows, begin, finish, report)

    async def import_lines(self, lines: Iterable[bytes], report: Report) -> None:
        """Import the lines of a daily file. Raises StorageUnavailableError."""

        def begin(batch: list[tuple[int, bytes]]) -> Future[list[dict[str, Any] | Told]]:
            return self._workers.submit(opened_lines, batch)

        async def finish(batch: list[tuple[int, bytes]], worked: list[dict[str, Any] | Told]) -> None:
            numbers = [number for number, _ in batch]
            ready = [(n, done) for n, done in zip(numbers, worked, strict=True) if not isinstance(done, Told)]
            told = {done.number: done for done in worked if isinstance(done, Told)} | await self._restore(ready)
            for number in numbers:
                report.tell(told[number])

        await self._pump(enumerate(lines, start=1), begin, finish, report)

    async def _pump(
        self,
        items: Iterable[T],
        begin: Callable[[list[T]], Future[list[Any]]],
        finish: Callable[[list[T], list[Any]], Awaitable[None]],
        report: Report,
    ) -> None:
        under_way: deque[tuple[list[T], Future[list[Any]]]] = deque()

        async def finish_oldest() -> None:
            batch, worked = under_way.popleft()
            await finish(batch, await asyncio.wrap_future(worked))
            self._on_progress(report.rows)

        for batch in _batches(items):
            if self._stopped.is_set():
                return
            under_way.append((batch, begin(batch)))
            if len(under_way) > BATCHES_AHEAD:
                await finish_oldest()
        while under_way and not self._stopped.is_set():
            await finish_oldest()

    async def _store(self, ready: Sequence[tuple[Row, SealedSubmission]]) -> dict[int, Told]:
        if not ready:
            return {}
        batch = [submission for _, submission in ready]
        try:
            outcomes = await import_leads(self._database, self._repository, batch, dry_run=self._dry_run)
        except StorageFaultError as fault:
            if len(ready) == 1:
                row = ready[0][0]
                return {row.number: Told(row.number, Result.FAILED, detail=_refused(fault))}
            half = len(ready) // 2
            return await self._store(ready[:half]) | await self._store(ready[half:])
        return {row.number: _told(row.number, entry, outcomes[entry.id]) for row, entry in ready}

    async def _restore(self, ready: Sequence[tuple[int, dict[str, Any]]]) -> dict[int, Told]:
        if not ready:
            return {}
        try:
            found = await restore_leads(self._database, [lead for _, lead in ready], dry_run=self._dry_run)
        except StorageFaultError as fault:
            if len(ready) == 1:
                number, lead = ready[0]
                return {number: Told(number, Result.FAILED, lead["id"], _refused(fault))}
            half = len(ready) // 2
            return await self._restore(ready[:half]) | await self._restore(ready[half:])
        return {number: _told_restored(number, lead, found[UUID(lead["id"])]) for number, lead in ready}


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_ROWS)):
        yield batch


def _refused(fault: StorageFaultError) -> str:
    return f"the database refused it (SQLSTATE {fault.cause})"


def _told(number: int, entry: SealedSubmission, outcome: Outcome) -> Told:
    match outcome:
        case Created(lead):
            return Told(number, Result.SAVED if lead.id == entry.id else Result.SAVED_BEFORE, str(lead.id))
        case Met(phone, nid) if phone and nid and phone != nid:
            return Told(number, Result.DUPLICATE, str(phone.id), f"phone of {phone.id}, nid of {nid.id}")
        case Met() as met:
            return Told(number, Result.DUPLICATE, str(met.leads[0].id), _fields_met(met.phone, met.nid))
        case Waiting(lead_id):
            return Told(number, Result.SAVED_BEFORE, str(lead_id), "waits for a person: leadkeep conflicts list")
        case _:
            return Told(number, Result.FAILED, detail="its request was used for something else")


def _told_restored(number: int, lead: dict[str, Any], restored: Restored) -> Told:
    if restored.inserted:
        return Told(number, Result.SAVED, lead["id"])
    if restored.present_version is not None:
        here, in_file = restored.present_version, lead["version"]
        if 0 < here == in_file and restored.present_resubmissions < lead["resubmissions"]:
            detail = "the file has resubmissions that are not here; it stays as it is"
            return Told(number, Result.OLDER_HERE, lead["id"], detail)
        if 0 < here < in_file:
            detail = f"version {here} is here, {in_file} in the file; it stays as it is"
            return Told(number, Result.OLDER_HERE, lead["id"], detail)
        return Told(number, Result.SAVED_BEFORE, lead["id"])
    met = restored.phone_of or restored.nid_of or restored.request_of
    if met is None:
        return Told(number, Result.FAILED, lead["id"], "what stood in its way has gone: import it again")
    return Told(number, Result.DUPLICATE, str(met), _fields_met(restored.phone_of, restored.nid_of) or "request_id")


def _fields_met(phone: object, nid: object) -> str:
    return " and ".join(name for name, met in (("phone", phone), ("nid", nid)) if met)
