"""Maps the columns of a foreign file to fields: by the header in any spelling, or by the operator's --map."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from service.importing.source import ImportRefusedError
from service.lead import CUSTOMER_FIELDS
from service.printable import printable

REASON_COLUMN = "leadkeep_reason"
"""The first column of a file of rejects; ignored when that is imported again."""

_SEPARATORS = re.compile(r"[\s_\-./]+")


def plain(header: str) -> str:
    """A header in the form in which headers are compared."""
    return _SEPARATORS.sub("", header.strip().casefold())


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
    """Parses `--map "Their header=field"` into the field by plain header. Raises ImportRefusedError."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        header, separator, field = pair.rpartition("=")
        if not separator or not header.strip() or field.strip() not in CUSTOMER_FIELDS:
            raise ImportRefusedError(
                f'--map is written "Their header=field", with one of the fields {", ".join(CUSTOMER_FIELDS)}'
            )
        mapping[plain(header)] = field.strip()
    return mapping


def resolve(headers: Sequence[str], mapping: Mapping[str, str]) -> list[str | None]:
    """The field of each header; None for a column that is not imported.

    A header that the mapping names wins over one that is only known by its name. Raises ImportRefusedError when two
    columns are the same field, or the mapping names a column that is not there.
    """
    compared = [plain(header) for header in headers]
    if missing := sorted(set(mapping) - set(compared)):
        raise ImportRefusedError(f"--map names columns that the file does not have: {', '.join(missing)}")
    mapped = set(mapping.values())
    fields: list[str | None] = []
    for header in compared:
        field = mapping.get(header)
        known = field_of(header)
        fields.append(field or (known if known not in mapped else None))
    for field in dict.fromkeys(fields):
        if field is not None and fields.count(field) > 1:
            names = ", ".join(printable(header) for header, each in zip(headers, fields, strict=True) if each == field)
            raise ImportRefusedError(f'several columns are {field} ({names}): choose one with --map "header={field}"')
    return fields


def require_all(required: Collection[str], fields: Sequence[str | None], headers: Sequence[str]) -> None:
    """Raise ImportRefusedError unless every required field has its column."""
    if missing := [field for field in CUSTOMER_FIELDS if field in required and field not in fields]:
        raise ImportRefusedError(
            f"the file has no column for {', '.join(missing)}; its columns are: {', '.join(map(printable, headers))}. "
            f'Name it with --map "Their header={missing[0]}"'
        )


def ignored(fields: Sequence[str | None], headers: Sequence[str]) -> list[str]:
    """The columns that are not imported, to be named once."""
    pairs = zip(headers, fields, strict=True)
    return [header for header, field in pairs if field is None and plain(header) != plain(REASON_COLUMN)]
