"""Import pipeline: reads a file, works on rows in other processes, stores batch by batch, reports each row.

Promise: memory does not grow with the file; a row that cannot be imported costs only itself; what was reported as
saved is committed; stopped at any moment and run again, nothing is there twice. Rows are decided in the file's order,
so of those that share a phone or a nid the first becomes the lead.

The processes validate and seal rows, or open and index them, on as many cores as there are. They get the keyring
through a pipe, never through their command line, and leave Ctrl-C to their parent.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from service.errors import FieldUnreadableError, LeadValidationError
from service.executors import WorkerPool, worked_ahead
from service.foreign_text import parse_json
from service.importing.own_files import opened, require_form
from service.importing.reports import Report, Result, RowResult
from service.importing.source import Row
from service.keys.encryption import EncryptionService, IndexPlan
from service.keys.keyring import Keyring
from service.lead import BlindIndexes, is_sealed
from service.lead_sealer import LeadSealer
from service.storage.database.database import Database
from service.storage.database.failures import CONTENT_CLASSES, StorageFaultError
from service.storage.leads.decision import Created, Delayed, DuplicateMatch, Erased, Outcome
from service.storage.leads.import_export import Restored, import_leads, restore_leads
from service.storage.leads.queries import index_columns
from service.storage.leads.submissions import SubmissionStore
from service.validation import ValidationService

BATCH_ROWS = 500
"""Rows a transaction: one fsync for all of them, and at most this many are undone when it fails."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Brings rows into one database; `stopped` ends it early."""

    database: Database
    workers: WorkerPool
    new_id: Callable[[], UUID]
    dry_run: bool
    stopped: asyncio.Event

    async def import_rows(self, rows: Iterable[Row], report: Report, on_progress: Callable[[int], None]) -> None:
        """Import the rows of a foreign file. `on_progress` gets the number of rows reported so far.

        Raises StorageUnavailableError, and StorageFaultError like `_stored`.
        """

        def begin(batch: list[tuple[int, Row]]) -> Future[list[Ready | RowResult]]:
            given = [(number, dict(row.fields), row.fault, self.new_id()) for number, row in batch]
            return self.workers.submit(sealed_rows, given)

        async def store(ready: Sequence[Ready]) -> list[RowResult]:
            outcomes = await import_leads(self.database, [each.lead for each in ready], dry_run=self.dry_run)
            return [_result_of(each, outcomes[each.lead.id]) for each in ready]

        await self._pump(((row.number, row) for row in rows), begin, store, report, on_progress)

    async def import_lines(self, lines: Iterable[bytes], report: Report, on_progress: Callable[[int], None]) -> None:
        """Import the lines of a daily file; otherwise like `import_rows`."""

        def begin(batch: list[tuple[int, bytes]]) -> Future[list[Ready | RowResult]]:
            return self.workers.submit(opened_lines, batch)

        async def store(ready: Sequence[Ready]) -> list[RowResult]:
            found = await restore_leads(self.database, [each.lead for each in ready], dry_run=self.dry_run)
            return [_result_of_restored(each.number, each.lead, found[UUID(each.lead["id"])]) for each in ready]

        await self._pump(enumerate(lines, start=1), begin, store, report, on_progress)

    async def _pump(
        self,
        items: Iterable[tuple[int, T]],
        begin: Callable[[list[tuple[int, T]]], Future[list[Ready | RowResult]]],
        store: Callable[[Sequence[Ready]], Awaitable[list[RowResult]]],
        report: Report,
        on_progress: Callable[[int], None],
    ) -> None:
        async for batch, worked in worked_ahead(_batches(items), begin):
            if self.stopped.is_set():
                return
            stored = await self._stored([each for each in worked if isinstance(each, Ready)], store)
            results = {each.number: each for each in (*worked, *stored) if isinstance(each, RowResult)}
            for number, item in batch:
                report.add(results[number], item if isinstance(item, Row) else None)
            on_progress(report.rows)

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


async def _batches(items: Iterable[T]) -> AsyncIterator[list[T]]:
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


IMPORTER = "import"
"""The subject of imported leads. The request_id of a row is made of its content, so that a repeat finds its lead."""


_sealer: LeadSealer  # set by `_begin`, once in each process


def _begin(keyring: str, validation: ValidationService, plan: IndexPlan | None) -> None:
    global _sealer
    encryption = EncryptionService(Keyring.from_json(keyring))
    encryption.plan = plan
    _sealer = LeadSealer(encryption, validation, transcript_url=None)


def pool(encryption: EncryptionService, validation: ValidationService) -> WorkerPool:
    """The processes that work on rows."""
    return WorkerPool(_begin, encryption.keyring.to_json(), validation, encryption.plan)


@dataclass(frozen=True, slots=True)
class Ready:
    """A lead that can be stored: a SealedSubmission, or the object of a daily file with its blind indexes."""

    number: int
    lead: Any
    known_id: str = ""
    """Its id, when the file names it."""
    ignored: tuple[str, ...] = ()
    """The optional fields that could not be read and were left out."""


def sealed_rows(rows: Sequence[tuple[int, dict[str, str], str | None, UUID]]) -> list[Ready | RowResult]:
    """Each row as a submission that is ready to be stored, or why it cannot be."""
    return [_sealed(_sealer, *row) for row in rows]


def _sealed(
    sealer: LeadSealer, number: int, fields: dict[str, str], fault: str | None, lead_id: UUID
) -> Ready | RowResult:
    if fault is not None:
        return RowResult(number, Result.INVALID, detail=fault)
    try:
        entered, ignored, _ = sealer.validation.submission(fields)
    except LeadValidationError as invalid:
        faults = "; ".join(f"{each.field.removeprefix('lead.')} {each.description}" for each in invalid.violations)
        return RowResult(number, Result.INVALID, detail=faults)
    lead = sealer.seal(lead_id, entered, created_by=IMPORTER, request_id=None)
    # The last digest is the oldest key's: a file that is imported again finds its leads also after a rotation.
    oldest = (lead.content_digest, *lead.earlier_digests)[-1]
    return Ready(number, replace(lead, request_id=f"{IMPORTER}:{oldest.hex()}"), ignored=ignored)


def opened_lines(lines: Sequence[tuple[int, bytes]]) -> list[Ready | RowResult]:
    """Each line of a daily file with its blind indexes, or why it cannot be imported."""
    done: list[Ready | RowResult] = []
    for number, line in lines:
        try:
            lead = _indexed(parse_json(line), _sealer)
            done.append(Ready(number, lead, lead["id"]))
        except FieldUnreadableError as unreadable:
            done.append(RowResult(number, Result.INVALID, detail=f"cannot be opened: {unreadable.metadata['fields']}"))
        except ValueError as refused:
            done.append(RowResult(number, Result.INVALID, detail=str(refused)))
    return done


def _indexed(lead: dict[str, Any], sealer: LeadSealer) -> dict[str, Any]:
    """The lead of a line with its blind indexes, in base64. Raises LeadRefusedError and FieldUnreadableError."""
    require_form(lead)
    values, conversation_ids, of_kept = opened(lead, sealer.encryption)
    for link, conversation_id in zip(lead["conversations"], conversation_ids, strict=True):
        link["conversation_index"] = sealer.conversation_indexes(conversation_id)[0]
    _seal_conversations(lead, sealer.encryption)
    for kept, each in zip(lead["kept_resubmissions"], of_kept, strict=True):
        kept |= _indexes_of(each, sealer).texts
    columns = index_columns(_indexes_of(values, sealer))
    return lead | {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in columns.items()
    }


def _indexes_of(values: Mapping[str, str], sealer: LeadSealer) -> BlindIndexes:
    return sealer.indexes(values["phone"], values.get("nid"), email=values.get("email"))


def _seal_conversations(lead: dict[str, Any], encryption: EncryptionService) -> None:
    """Seal what a file of a database holds whose conversation ids were in clear yet."""
    for row in (lead, *lead["kept_resubmissions"], *lead["conversations"]):
        value = row["conversation_id"]
        if value is not None and not is_sealed(value):
            bound_to = UUID(row.get("submission_id") or row["id"])
            row["conversation_id"] = encryption.seal(bound_to, "conversation_id", value)
