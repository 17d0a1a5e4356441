"""Maps the columns of a foreign file to fields: by the header in any spelling, or by the operator's --map."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

from service.foreign_text import printable
from service.importing.source import ImportRefusedError
from service.lead import CUSTOMER_FIELDS

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
            f"--map names columns that the file does not have: {', '.join(map(printable, missing))}; its columns are: "
            f"{', '.join(map(printable, headers))}"
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
        numbers = [_counted(headers).index(position) + 1 for position in positions]
        names = ", ".join(f"#{n} {printable(headers[each])}" for n, each in zip(numbers, positions, strict=True))
        raise ImportRefusedError(
            f'several columns are {field} ({names}): choose one by its number, --map "#{numbers[0]}={field}"'
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
            f"the file has no column for {', '.join(missing)}; its columns are: {', '.join(map(printable, headers))}. "
            f'Name it with --map "Their header={missing[0]}"; two columns are joined by +, as in '
            f'--map "First Name+Last Name=name"'
        )


def ignored(columns: Columns, headers: Sequence[str]) -> list[str]:
    """The columns that are not imported, to be named once."""
    used = {position for positions in columns.values() for position in positions}
    return [
        header
        for position, header in enumerate(headers)
        if position not in used and plain(header) != plain(REASON_COLUMN)
    ]
