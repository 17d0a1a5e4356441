"""A list of tombstones, as `leadkeep erase --list --json` writes it, before it is believed.

Promise: what passes can be stored and listed like any other tombstone. Nothing proves the list itself: who writes it
decides which leads are erased.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from service.errors import StartRefusedError
from service.foreign_text import parse_json
from service.importing.forms import Check, is_id, is_kept, is_moment, misformed, optional
from service.scopes import is_subject
from service.storage.leads.erasing import Tombstone

_DIGEST_BYTES = 32

_FORMS: dict[str, Check] = {
    "id": is_id,
    "lead_id": is_id,
    "created_at": optional(is_moment),
    "erased_at": is_moment,
    "erased_by": is_subject,
    "reason": lambda value: value in (None, "") or is_kept("reason")(value),
    "request_digest": optional(lambda value: len(bytes.fromhex(value)) == _DIGEST_BYTES),
}


def read_tombstones(path: Path) -> list[Tombstone]:
    """The tombstones of a list. Raises StartRefusedError, whose text holds no value of it, unless all are in form."""
    fault = "leadkeep erase --list --json writes one"
    try:
        rows = parse_json(path.read_bytes())
        if isinstance(rows, list):
            return [_tombstone(number, row) for number, row in enumerate(rows, start=1)]
    except OSError as error:
        raise StartRefusedError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as refused:
        fault = str(refused)
    raise StartRefusedError(f"{path} is not a list of tombstones: {fault}. Nothing was changed")


def _tombstone(number: int, row: Any) -> Tombstone:
    if not isinstance(row, dict) or not _FORMS.keys() <= row.keys():
        raise ValueError(f"entry {number} is none")
    if (name := misformed(row, _FORMS)) is not None:
        raise ValueError(f"{name} of entry {number} is not in the form in which it is kept")
    created_at, digest = row["created_at"], row["request_digest"]
    return Tombstone(
        id=UUID(row["id"]),
        lead_id=UUID(row["lead_id"]),
        created_at=None if created_at is None else datetime.fromisoformat(created_at),
        erased_at=datetime.fromisoformat(row["erased_at"]),
        erased_by=row["erased_by"],
        reason=row["reason"],
        request_digest=None if digest is None else bytes.fromhex(digest),
    )
