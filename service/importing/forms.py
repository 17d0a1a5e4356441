"""Forms of what a file of ours says, before it is believed: an id, a moment, a text as this service writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from service.errors import LeadValidationError
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
