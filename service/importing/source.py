"""A file to import: its encoding and its kind, by its content and not by its name, and a row of it."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TextIO

from service.errors import StartRefusedError

_DAILY = re.compile(r'\s*\{\s*"format"\s*:\s*"leadkeep-daily-file"')
_BRACKETED_HEADER = re.compile(r"\s*\[[^\[\]{}\"]+\][,;|\t]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_BEGIN = 4096  # bytes by which encoding and kind are known
_SAVE_AS = "save it as CSV (UTF-8) or JSON"
_NO_TEXT = {
    b"PK\x03\x04": f"a workbook of a spreadsheet, or a zip archive: {_SAVE_AS}",
    b"\xd0\xcf\x11\xe0": f"a workbook of an old spreadsheet: {_SAVE_AS}",
    b"\x1f\x8b": "compressed by gzip: unpack it first, gunzip FILE",
    b"%PDF": f"a PDF: {_SAVE_AS}",
}
"""What files without text begin with, and what they are."""
_CHUNK = 1 << 20


class ImportRefusedError(StartRefusedError):
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


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file, its encoding, and the byte at which its text begins, behind its byte order marks."""

    path: Path
    encoding: str
    start: int
    errors: str = "strict"

    def open(self, newline: str | None = None) -> TextIO:
        """The text, from its beginning; `newline` as for `open`."""
        file = self.path.open("rb")
        file.seek(self.start)
        return io.TextIOWrapper(file, encoding=self.encoding, errors=self.errors, newline=newline)


def kind_of(path: Path, encoding: str | None = None) -> Kind:
    """The kind of a file. Raises ImportRefusedError."""
    _, begin = _looked_at(path, encoding)
    if _DAILY.match(begin):
        return Kind.DAILY
    is_json = begin.lstrip().startswith(("{", "[")) and _BRACKETED_HEADER.match(begin) is None
    return Kind.JSON if is_json else Kind.CSV


def text_file(path: Path, encoding: str | None = None) -> TextFile:
    """The text of a file, in the encoding that its byte order mark or else `encoding` names, or UTF-8.

    A file with bytes that are no text is refused whole; where UTF-8 was asked for, they cost only their rows. Raises
    ImportRefusedError.
    """
    text, _ = _looked_at(path, encoding)
    if text.errors == "strict":
        _require_text(text)
    return text


def _looked_at(path: Path, encoding: str | None) -> tuple[TextFile, str]:
    """A file and the text that it begins with."""
    if path.exists() and not path.is_file():
        raise ImportRefusedError(f"{path} is no file: it is read more than once, so a pipe will not do")
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
    except OSError as error:
        raise ImportRefusedError(f"{path} cannot be read: {error.strerror}") from None
    if kind := next((kind for signature, kind in _NO_TEXT.items() if begin.startswith(signature)), None):
        raise ImportRefusedError(f"{path} is {kind}")
    text = TextFile(path, *_encoding_of(begin, encoding))
    readable = begin[text.start :].decode(text.encoding, "ignore")
    if "\0" in readable and encoding is None:
        raise ImportRefusedError(f"{path} is not {text.encoding.upper()} text: {_advice_about_nul(begin)}")
    if not readable.strip() and len(begin) < _BEGIN:
        raise ImportRefusedError(f"{path} is empty")
    return text, readable


def _advice_about_nul(begin: bytes) -> str:
    """What to do about a file that begins with these bytes, NUL among them. In UTF-16 one is beside each delimiter."""
    first, second = begin[::2].count(0), begin[1::2].count(0)
    if max(first, second) > 8 * min(first, second) and max(first, second) * 16 > len(begin):
        name = "utf-16-be" if first > second else "utf-16-le"
        return f"it may be UTF-16 without a byte order mark, --encoding {name}; else {_SAVE_AS}"
    return f"it holds NUL bytes: {_SAVE_AS}; with --encoding utf-8 only the rows with such bytes are refused"


def _encoding_of(begin: bytes, named: str | None) -> tuple[str, int, str]:
    """The encoding, where the text begins, and what is done with bytes that are no text."""
    start, marked = 0, None
    # Some programs write one mark before what begins with one.
    while found := next((each for each in _MARKS if begin.startswith(each[0], start)), None):
        start, marked = start + len(found[0]), found[1]
    if named is None:
        return marked or "utf-8", start, "strict"
    try:
        name = codecs.lookup(named).name
        b"a,b".decode(name, "ignore")
    except (LookupError, ValueError):
        raise ImportRefusedError(
            "--encoding names no encoding of text: it is one of Python's, such as cp1252, iso-8859-15, utf-16-le"
        ) from None
    if name in {"utf-16", "utf-32"} and marked is None:
        raise ImportRefusedError(
            f"--encoding {name}: the file has no byte order mark, so name the order, {name}-le or {name}-be"
        )
    return marked or name, start, "surrogateescape" if name == "utf-8" and marked in (None, name) else "strict"


def _require_text(text: TextFile) -> None:
    """Raise ImportRefusedError unless every byte of the file belongs to its text."""
    decoder = codecs.getincrementaldecoder(text.encoding)()
    line = 1
    with text.path.open("rb") as file:
        file.seek(text.start)
        while True:
            chunk = file.read(_CHUNK)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
            if not chunk:
                return
            line += chunk.count(b"\n")
    advice = (
        "name its encoding, such as --encoding cp1252 (Excel in Western Europe); with --encoding utf-8 only the rows "
        "with such bytes are refused"
        if text.encoding == "utf-8"
        else "name another --encoding, or save it as UTF-8"
    )
    raise ImportRefusedError(f"{text.path} is not {text.encoding.upper()} text, first in line {line}: {advice}")
