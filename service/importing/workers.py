"""Worker processes of an import: they validate and seal rows, or open and index them, on as many cores as there are.

The processes get the keyring through a pipe, never through their command line, and leave Ctrl-C to their parent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from service import strict_json
from service.errors import FieldUnreadableError, LeadValidationError
from service.importing.daily_lead import opened, require_form
from service.importing.reports import Result, RowResult
from service.keys.encryption import EncryptionService, IndexPlan
from service.keys.keyring import Keyring
from service.lead import BlindIndexes, digested, is_sealed
from service.lead_sealer import LeadSealer
from service.storage.leads.queries import index_columns
from service.validation import ValidationService
from service.worker_processes import WorkerPool

IMPORTER = "import"
"""The subject of imported leads. The request_id of a row is made of its content, so that a repeat finds its lead."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """What one process keeps."""

    encryption: EncryptionService
    validation: ValidationService
    sealer: LeadSealer


_worker: _Worker  # set by `_begin`, once in each process


def _begin(keyring: str, validation: ValidationService, plan: IndexPlan | None) -> None:
    global _worker
    encryption = EncryptionService(Keyring.from_json(keyring))
    encryption.plan = plan
    _worker = _Worker(encryption, validation, LeadSealer(encryption, validation, transcript_url=None))


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
    return [_sealed(_worker, *row) for row in rows]


def _sealed(
    worker: _Worker, number: int, fields: dict[str, str], fault: str | None, lead_id: UUID
) -> Ready | RowResult:
    if fault is not None:
        return RowResult(number, Result.INVALID, detail=fault)
    try:
        entered, ignored = worker.validation.submission(fields)
    except LeadValidationError as invalid:
        faults = "; ".join(f"{each.field.removeprefix('lead.')} {each.description}" for each in invalid.violations)
        return RowResult(number, Result.INVALID, detail=faults)
    # The last one is the oldest key's: a file that is imported again finds its leads also after a rotation.
    *_, digest = worker.encryption.content_digests(digested(entered.values()))
    lead = worker.sealer.seal(lead_id, entered, created_by=IMPORTER, request_id=f"{IMPORTER}:{digest.hex()}")
    return Ready(number, lead, ignored=ignored)


def opened_lines(lines: Sequence[tuple[int, bytes]]) -> list[Ready | RowResult]:
    """Each line of a daily file with its blind indexes, or why it cannot be imported."""
    done: list[Ready | RowResult] = []
    for number, line in lines:
        try:
            lead = _indexed(strict_json.parse(line), _worker)
            done.append(Ready(number, lead, lead["id"]))
        except FieldUnreadableError as unreadable:
            done.append(RowResult(number, Result.INVALID, detail=f"cannot be opened: {unreadable.metadata['fields']}"))
        except ValueError as refused:
            done.append(RowResult(number, Result.INVALID, detail=str(refused)))
    return done


def _indexed(lead: dict[str, Any], worker: _Worker) -> dict[str, Any]:
    """The lead of a line with its blind indexes, in base64. Raises LeadRefusedError and FieldUnreadableError."""
    require_form(lead)
    values, conversation_ids, of_kept = opened(lead, worker.encryption)
    for link, conversation_id in zip(lead["conversations"], conversation_ids, strict=True):
        link["conversation_index"] = worker.sealer.conversation_indexes(conversation_id)[0]
    _seal_conversations(lead, worker.encryption)
    for kept, each in zip(lead["kept_resubmissions"], of_kept, strict=True):
        kept |= _indexes_of(each, worker.sealer).texts
    columns = index_columns(_indexes_of(values, worker.sealer))
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
