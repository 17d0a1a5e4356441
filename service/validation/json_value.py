"""Reads the text of a field out of a JSON value: one rule for the HTTP endpoint and for files."""

from __future__ import annotations

from service.validation.text import ValueRefusedError

UNREADABLE = "\ufffe"
"""Stands for an optional value that is no text: a noncharacter, which no field accepts."""

_NUMBERS_IN_NAME_ONLY = {"phone", "nid"}
"""Fields whose values are digits, and not quantities."""
_EXACT = 2**53
"""Integers below it survive every reader and writer of JSON (RFC 8259)."""


def text_of(field: str, value: object) -> str:
    """The text that a JSON value stands for. Raises ValueRefusedError."""
    if isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and field in _NUMBERS_IN_NAME_ONLY:
        raise ValueRefusedError(
            "must be a string, in quotes: a number loses leading zeros and digits beyond 2^53 before it arrives"
        )
    if is_number and isinstance(value, int) and abs(value) < _EXACT:
        return str(value)
    raise ValueRefusedError("must be a string")
