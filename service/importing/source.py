"""A file to import: its encoding and its kind, by its content and not by its name, a row of it, and which column holds
which field: by the header in any spelling, or by the operator's --map."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TextIO

from service.errors import StartRefusedError
from service.foreign_text import printable
from service.lead import CUSTOMER_FIELDS

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
_NAMED = 30
"""Columns that a message names: a file may have tens of thousands."""
_NAMED_LENGTH = 60  # characters of each


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


REASON_COLUMN = "leadkeep_reason"
"""The first column of a file of rejects; ignored when that is imported again."""

_IGNORED = re.compile(r"[\s_\-./*:\[\]\u200b-\u200f\u202a-\u202e\ufeff]+")
"""Separators, the brackets of SQL Server, the marks of a required field, and marks without width."""

_JOINED_BY = {"address": ", "}
"""What stands between the parts of a field that several columns hold; else a blank."""

_PREFIXES = {
    # Meta marks phones, ids and post codes in its exports; an apostrophe keeps digits text in a spreadsheet.
    "phone": re.compile(r"\A\s*'?(?:p:)?", re.IGNORECASE),
    "nid": re.compile(r"\A\s*'?"),
    "email": re.compile(r"\A\s*'?"),
    "conversation_id": re.compile(r"\Al:(?=[0-9])"),
    "address": re.compile(r"\Az:(?=[0-9])"),
}

Columns = dict[str, tuple[int, ...]]
"""Where each field stands: one column, or several that are joined in this order."""


def plain(header: str) -> str:
    """A header in the form in which headers are compared."""
    return _IGNORED.sub("", unicodedata.normalize("NFKC", header).casefold())


_ALIASES = {
    "name": ("fullname", "customer", "customername", "contact", "contactname", "leadname"),
    "phone": (
        "phonenumber",
        "mobile",
        "mobilephone",
        "mobilenumber",
        "cell",
        "cellphone",
        "telephone",
        "tel",
        "msisdn",
    ),
    "nid": (
        "nationalid",
        "nationalidnumber",
        "nationalidentitynumber",
        "nidnumber",
        "idnumber",
        "nationalidno",
        "nidno",
    ),
    "address": ("postaladdress", "streetaddress", "homeaddress", "fulladdress"),
    "interested_policy": ("policy", "product", "interestedin", "policyname", "interest"),
    "email": ("emailaddress", "mail"),
    "preferred_contact_time": ("contacttime", "preferredtime", "besttimetocall", "calltime"),
    "notes": ("note", "comment", "comments", "remarks", "remark"),
    "conversation_id": ("conversation", "chatid", "sessionid"),
    "source": ("leadsource", "originalsource", "utmsource"),
}
"""Other names by which a field is known, in the form of `plain`."""

_KNOWN = {plain(field): field for field in CUSTOMER_FIELDS} | {
    alias: field for field, aliases in _ALIASES.items() for alias in aliases
}


def field_of(header: str) -> str | None:
    """The field that a header is known as."""
    return _KNOWN.get(plain(header))


def explicit_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Parses `--map "Their header=field"` into the field by what was written. Raises ImportRefusedError."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        header, separator, field = pair.rpartition("=")
        if not separator or not header.strip() or field.strip() not in CUSTOMER_FIELDS:
            raise ImportRefusedError(
                f'--map is written "Their header=field", with one of the fields {", ".join(CUSTOMER_FIELDS)}'
            )
        if field.strip() in mapping.values():
            raise ImportRefusedError(
                f'several --map are {field.strip()}: name one column, or join two, --map "A+B={field.strip()}"'
            )
        mapping[header.strip()] = field.strip()
    return mapping


def resolve(headers: Sequence[str], mapping: Mapping[str, str], *, partly: bool = False) -> Columns:
    """Where the fields stand among the headers.

    The mapping names a header, `#2` for the second column, or several joined by `+`; it wins over what is only known by
    its name. Raises ImportRefusedError when two columns are the same field, or the mapping names a column that is not
    there; `partly` passes over such a one.
    """
    columns: Columns = {}
    missing: list[str] = []
    for written, field in mapping.items():
        parts = [written] if _positions(written, headers, field) else written.split("+")
        found = [_positions(part, headers, field) for part in parts]
        missing += [part for part, positions in zip(parts, found, strict=True) if not positions]
        if any(found):
            columns[field] = tuple(chain.from_iterable(found))
    if missing and not partly:
        raise ImportRefusedError(
            f"--map names columns that the file does not have: {names_of(missing)}; its columns are: "
            f"{names_of(headers)}"
        )
    mapped = {position for positions in columns.values() for position in positions}
    known: dict[str, list[int]] = {}
    for position, header in enumerate(headers):
        if position not in mapped and (field_known := field_of(header)) and field_known not in columns:
            known.setdefault(field_known, []).append(position)
    for field, positions_known in known.items():
        _require_one(positions_known, headers, field)
    return columns | {field: tuple(positions) for field, positions in known.items()}


def _positions(name: str, headers: Sequence[str], field: str) -> list[int]:
    """The column with this header, or of this number behind a `#`; none if there is no such one."""
    compared = plain(name)
    found = [position for position, header in enumerate(headers) if compared and plain(header) == compared]
    _require_one(found, headers, field)
    number = re.fullmatch(r"\s*#([1-9][0-9]{0,3})\s*", name)
    return found if found or number is None else _counted(headers)[int(number[1]) - 1 : int(number[1])]


def _counted(headers: Sequence[str]) -> list[int]:
    """The columns that have a number: all but the reason of a reject, which was put in front of them."""
    return [position for position, header in enumerate(headers) if plain(header) != plain(REASON_COLUMN)]


def _require_one(positions: Sequence[int], headers: Sequence[str], field: str) -> None:
    if len(positions) > 1:
        numbers = {position: number for number, position in enumerate(_counted(headers), start=1)}
        names = names_of([f"#{numbers[each]} {headers[each]}" for each in positions])
        raise ImportRefusedError(
            f'several columns are {field} ({names}): choose one by its number, --map "#{numbers[positions[0]]}={field}"'
        )


def recognised(headers: Sequence[str], mapping: Mapping[str, str]) -> int:
    """How many headers are known, by their names or by the mapping."""
    mapped = {plain(part) for written in mapping for part in (written, *written.split("+"))}
    return sum(field_of(header) is not None or plain(header) in mapped for header in headers)


def value_of(field: str, parts: Sequence[str]) -> str:
    """The value of a field as it was entered: its parts joined, without what exports put in front of it."""
    prefix = _PREFIXES.get(field)
    bare = parts if prefix is None else [prefix.sub("", part) for part in parts]
    return bare[0] if len(bare) == 1 else _JOINED_BY.get(field, " ").join(filter(None, map(str.strip, bare)))


def require_all(required: Collection[str], columns: Columns, headers: Sequence[str]) -> None:
    """Raise ImportRefusedError unless every required field has its column."""
    if missing := [field for field in CUSTOMER_FIELDS if field in required and field not in columns]:
        raise ImportRefusedError(
            f"the file has no column for {', '.join(missing)}; its columns are: {names_of(headers)}. "
            f'Name it with --map "Their header={missing[0]}"; two columns are joined by +, as in '
            f'--map "First Name+Last Name=name"'
        )


def names_of(headers: Sequence[str]) -> str:
    """Headers as a message lists them: the first ones, in one line."""
    names = [printable(each if len(each) <= _NAMED_LENGTH else each[:_NAMED_LENGTH] + "…") for each in headers[:_NAMED]]
    more = [f"and {len(headers) - _NAMED} more"] if len(headers) > _NAMED else []
    return ", ".join(names + more)


def ignored(columns: Columns, headers: Sequence[str]) -> list[str]:
    """The columns that are not imported, to be named once."""
    used = {position for positions in columns.values() for position in positions}
    return [
        header
        for position, header in enumerate(headers)
        if position not in used and plain(header) != plain(REASON_COLUMN)
    ]
