"""A line of a daily file as it goes back into the database: checked, opened to prove it, indexed afresh."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from service.encryption import EncryptionService
from service.file_storage import MEANINGS
from service.lead import SENSITIVE_FIELDS
from service.sealing import LeadSealer

LARGEST_NUMBER = 10**15
"""Of a history's row: moving the counter there must leave room behind it."""

_LISTS = ("conversations", "status_changes", "assignment_changes", "kept_resubmissions", "aliases")


class DailyRowError(Exception):
    """The line is JSON, but not a lead of the daily file's format."""


def prepared(lead: Any, encryption: EncryptionService, sealer: LeadSealer) -> dict[str, Any]:
    """The lead with its blind indexes, in base64.

    Every sealed field is opened, which proves that it belongs to this lead and this keyring. Raises DailyRowError and
    FieldUnreadableError, and what Python raises for a value of another type than this format has there.
    """
    if not isinstance(lead, dict) or list(lead) != list(MEANINGS) or not all(_is_list(lead[name]) for name in _LISTS):
        raise DailyRowError
    if not all(isinstance(lead[name], int) for name in ("version", "resubmissions")):
        raise DailyRowError
    opened = _opened(lead, UUID(lead["id"]), encryption)
    for kept in lead["kept_resubmissions"]:
        _opened(kept, UUID(kept["submission_id"]), encryption)
    for step in (*lead["status_changes"], *lead["assignment_changes"]):
        if not isinstance(step.get("id"), int) or not 0 < step["id"] <= LARGEST_NUMBER:
            raise DailyRowError
    indexes = sealer.indexes(opened["phone"], opened["nid"])
    return lead | {
        "phone_index": _base64(indexes.phone[0]),
        "nid_index": _base64(indexes.nid[0]),
        "phone_index_2": _base64(indexes.phone[1]),
        "nid_index_2": _base64(indexes.nid[1]),
        "index_epoch": indexes.epoch,
    }


def _base64(index: bytes | None) -> str | None:
    return None if index is None else base64.b64encode(index).decode()


def _opened(row: dict[str, Any], sealed_for: UUID, encryption: EncryptionService) -> dict[str, str]:
    tokens = {name: row[name] for name in SENSITIVE_FIELDS if row[name] is not None}
    return {name: encryption.open(sealed_for, name, token) for name, token in tokens.items()}


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)
