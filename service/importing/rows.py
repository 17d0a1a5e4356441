"""One row of a foreign file, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """What became of a row."""

    SAVED = "saved"
    SAVED_BEFORE = "saved before"
    DUPLICATE = "duplicate"
    OLDER_HERE = "older here"
    """The database has this lead in an earlier version than the file; it stays as it is."""
    ERASED = "erased"
    """The lead was erased, and is not brought back."""
    INVALID = "invalid"
    FAILED = "failed"
    """The database refused it for a reason that no value of the row can mend."""


NOT_IMPORTED = (Result.OLDER_HERE, Result.INVALID, Result.FAILED)


NOT_UNICODE = "it is not UTF-8 text"


def is_unicode(text: str) -> bool:
    """Whether the text can be stored: bytes that were no UTF-8 were read as lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: where it stands, its values by field, and itself for the file of rejects.

    `fault` is set, and `fields` is empty, when it could not even be read.
    """

    number: int
    fields: Mapping[str, str]
    original: Sequence[str] | Mapping[str, object]
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """The result of one row. `detail` says why, without any value of the row."""

    number: int
    result: Result
    lead_id: str = ""
    detail: str = ""


class ImportRefusedError(Exception):
    """The file cannot be imported as it is; the text says what to do. Nothing of it was imported."""
