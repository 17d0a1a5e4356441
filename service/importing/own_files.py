"""What our own files say, before it is believed: each member has the type, form and range that this service writes.

The lead of a line of a daily file, and a list of tombstones, as `leadkeep erase --list --json` writes it.

Promise: what passes can be stored, listed, shown and erased like anything else. What nobody can tell from a file is
believed: who assigned a lead, say, or when. Nothing proves a list of tombstones: who writes it decides which leads are
erased.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from service.errors import LeadValidationError, StartRefusedError
from service.files.daily_file import MEANINGS
from service.foreign_text import parse_json
from service.keys.encryption import EncryptionService
from service.lead import (
    CORRECTABLE_FIELDS,
    CUSTOMER_FIELDS,
    FIELD_RULES,
    SENSITIVE_FIELDS,
    LeadStatus,
    digested,
    is_sealed,
)
from service.scopes import is_subject
from service.storage.leads.erasing import Tombstone
from service.validation import ValidationService

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
CLOCKS_DIFFER = timedelta(days=1)
"""How far ahead of this machine's clock a time may be."""

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?[+-]\d\d:\d\d")
_VALIDATION = ValidationService()

Check = Callable[[Any], bool]
"""Whether a value has a form; a ValueError, TypeError or LeadValidationError means that it has not."""


def is_id(value: Any) -> bool:
    """Whether it is a UUID, in the one spelling that is written."""
    return isinstance(value, str) and str(UUID(value)) == value


def is_moment(value: Any) -> bool:
    """Nothing that PostgreSQL alone understands, such as infinity, and nothing that a calendar ends before."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        return False
    return EARLIEST <= datetime.fromisoformat(value) <= datetime.now(UTC) + CLOCKS_DIFFER


def optional(check: Check) -> Check:
    """The form, or nothing."""
    return lambda value: value is None or check(value)


def is_kept(name: str) -> Check:
    """Whether a text is in the form in which one of this name is kept."""
    return lambda value: isinstance(value, str) and value != "" and _VALIDATION.text(name, value) == value


def misformed(row: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    """The first member that is not in its form."""
    for name, check in checks.items():
        try:
            passes = check(row[name])
        except (ValueError, TypeError, LeadValidationError):
            passes = False
        if not passes:
            return name
    return None


LARGEST_NUMBER = 10**15
"""Of a version, a count and a history's row: moving the counter there must leave room behind it."""

_DIGEST_BYTES = 32


class LeadRefusedError(ValueError):
    """The lead cannot be imported; the text names the member at fault and holds no value."""


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_NUMBER


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _is_a(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _status(value: Any) -> bool:
    return value in tuple(LeadStatus)


def _digest(value: Any) -> bool:
    return isinstance(value, str) and len(base64.b64decode(value, validate=True)) == _DIGEST_BYTES


def _sealed(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _conversation(value: Any) -> bool:
    """Sealed, or in clear as the database held it before `keys reseal`."""
    return _sealed(value) and (is_sealed(value) or is_kept("conversation_id")(value))


def _field(name: str) -> Check:
    rule = FIELD_RULES[name]
    check: Check = _conversation if name == "conversation_id" else _sealed
    if not rule.sensitive:
        check = is_kept(name)
    return check if rule.required and not rule.optional_by_setting else optional(check)


_REASON, _ASSIGNEE, _REQUEST_ID = (optional(is_kept(name)) for name in ("reason", "assignee", "request_id"))
_FIELDS: dict[str, Check] = {name: _field(name) for name in CUSTOMER_FIELDS}

_LEAD: dict[str, Check] = {
    "id": is_id,
    **_FIELDS,
    "status": _status,
    "created_at": is_moment,
    "updated_at": is_moment,
    "version": _positive,
    "assignee": _ASSIGNEE,
    "resubmissions": _number,
    "phone_shared": _is_a(bool),
    "nid_shared": _is_a(bool),
    "created_by": is_subject,
    "request_id": _REQUEST_ID,
    "content_digest": _digest,
    **dict.fromkeys(("conversations", "events", "kept_resubmissions", "aliases"), _is_a(list)),
}
_EVENT_TYPES = {"corrected", "status_changed", "assigned", "resubmitted", "conflict_decided"}
_DETAIL_OF = {
    "fields": "corrected",
    **dict.fromkeys(("from_status", "to_status"), "status_changed"),
    **dict.fromkeys(("from_assignee", "to_assignee"), "assigned"),
}
"""The type of the events that may hold a member. They make a version each."""

_MEMBERS: dict[str, dict[str, Check]] = {
    "conversations": {"submission_id": is_id, "conversation_id": _conversation, "linked_at": is_moment},
    "events": {
        "type": lambda value: value in _EVENT_TYPES,
        "version": _positive,
        "fields": optional(lambda value: isinstance(value, list) and set(value) <= set(CORRECTABLE_FIELDS)),
        "from_status": optional(_status),
        "to_status": optional(_status),
        "from_assignee": _ASSIGNEE,
        "to_assignee": _ASSIGNEE,
        "actor": is_subject,
        "reason": _REASON,
        "at": is_moment,
    },
    "kept_resubmissions": {
        "submission_id": is_id,
        **_FIELDS,
        "actor": is_subject,
        "request_id": _REQUEST_ID,
        "content_digest": _digest,
        "verified": _is_a(bool),
        "submitted_at": is_moment,
    },
    "aliases": {"id": is_id, "created_by": is_subject, "created_at": is_moment},
}


def require_form(lead: Any) -> None:
    """Raise LeadRefusedError unless an object is a lead as this service writes it."""
    if not isinstance(lead, dict) or list(lead) != list(MEANINGS):
        raise LeadRefusedError("it is not a lead of this format")
    _require(lead, _LEAD, "")
    for name, checks in _MEMBERS.items():
        for each in lead[name]:
            if not isinstance(each, dict) or each.keys() != checks.keys():
                raise LeadRefusedError(f"its {name} are not of this format")
            _require(each, checks, f"{name}: ")
    if len(lead["kept_resubmissions"]) > lead["resubmissions"]:
        raise LeadRefusedError("its resubmissions are more than it counts")
    _require_history(lead["events"], lead["version"])


def _require_history(events: list[dict[str, Any]], version: int) -> None:
    versions = [event["version"] for event in events]
    made = [event["version"] for event in events if event["type"] in _DETAIL_OF.values()]
    if (
        versions != sorted(versions)
        or len(set(made)) < len(made)
        or 1 in made
        or any(each > version for each in versions)
    ):
        raise LeadRefusedError("its events do not fit its version")
    for event in events:
        if any(event[name] is not None and event["type"] != owner for name, owner in _DETAIL_OF.items()):
            raise LeadRefusedError("its events hold more than belongs to their types")
        statuses = {event["from_status"], event["to_status"]}
        is_known = {"corrected": bool(event["fields"]), "status_changed": len(statuses - {None}) == 2}
        if not is_known.get(event["type"], True):
            raise LeadRefusedError("its events do not name what changed")


def _require(row: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> None:
    if (name := misformed(row, checks)) is not None:
        raise LeadRefusedError(f"{where}{name} is not in the form in which it is kept")


def opened(
    lead: Mapping[str, Any], encryption: EncryptionService
) -> tuple[dict[str, str], list[str], list[dict[str, str]]]:
    """The sensitive values of a lead, by field, the conversation ids that are linked to it, and the values of each
    resubmission, in their order.

    Each sealed field is opened, which proves that it belongs to this lead and this keyring, and what was not changed
    since it was submitted is compared with its keyed digest. Raises FieldUnreadableError and LeadRefusedError.
    """
    of_kept = [_open(kept, UUID(kept["submission_id"]), encryption) for kept in lead["kept_resubmissions"]]
    for kept, values in zip(lead["kept_resubmissions"], of_kept, strict=True):
        _require_digest(kept, values, "a resubmission of it", encryption)
    values = _open(lead, UUID(lead["id"]), encryption)
    # Each version has its event, but those that an earlier release's correction made.
    if sum(event["type"] in ("status_changed", "assigned") for event in lead["events"]) == lead["version"] - 1:
        _require_digest(lead, values, "it", encryption)
    linked = [
        encryption.open(UUID(link["submission_id"]), "conversation_id", link["conversation_id"])
        for link in lead["conversations"]
    ]
    return values, linked, of_kept


def _open(row: Mapping[str, Any], sealed_for: UUID, encryption: EncryptionService) -> dict[str, str]:
    return {name: encryption.open(sealed_for, name, row[name]) for name in SENSITIVE_FIELDS if row[name] is not None}


def _require_digest(
    row: Mapping[str, Any], values: Mapping[str, str], what: str, encryption: EncryptionService
) -> None:
    submitted = {name: values.get(name) if name in SENSITIVE_FIELDS else row[name] for name in CUSTOMER_FIELDS}
    if base64.b64decode(row["content_digest"]) not in encryption.content_digests(digested(submitted)):
        raise LeadRefusedError(
            f"{what} is not what was submitted: it was altered, or the index key of that time is not in the keyring"
        )


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
