"""A file to import: its kind, by its content and not by its name, and a row of it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

_DAILY = re.compile(rb'\s*\{\s*"format"\s*:\s*"leadkeep-daily-file"')
_SURROGATE = re.compile("[\ud800-\udfff]")


class ImportRefusedError(Exception):
    """The file cannot be imported as it is; the text says what to do. Nothing of it was imported."""


NOT_UNICODE = "it is not UTF-8 text"


def is_unicode(text: str) -> bool:
    """Whether the text can be stored: bytes that were no UTF-8 were read as lone surrogates."""
    return _SURROGATE.search(text) is None


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: its number, its values by field, and itself for the file of rejects.

    `fault` is set, and `fields` is empty, when it could not even be read.
    """

    number: int
    fields: Mapping[str, str]
    original: Sequence[str] | Mapping[str, object]
    fault: str | None = None


class Kind(Enum):
    """The formats that can be imported."""

    DAILY = "daily file"
    JSON = "JSON"
    CSV = "CSV"


def kind_of(path: Path) -> Kind:
    """The kind of a file. Raises ImportRefusedError."""
    if path.exists() and not path.is_file():
        raise ImportRefusedError(f"{path} is no file: it is read more than once, so a pipe will not do")
    try:
        with path.open("rb") as file:
            begin = file.read(4096)
    except OSError as error:
        raise ImportRefusedError(f"{path} cannot be read: {error.strerror}") from None
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in begin:
        raise ImportRefusedError(f"{path} is not UTF-8 text: save it as CSV (UTF-8) or JSON")
    begin = begin.removeprefix(codecs.BOM_UTF8)
    if not begin.strip():
        raise ImportRefusedError(f"{path} is empty")
    if _DAILY.match(begin):
        return Kind.DAILY
    return Kind.JSON if begin.lstrip()[:1] in (b"{", b"[") else Kind.CSV
