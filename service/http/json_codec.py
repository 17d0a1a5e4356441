"""Conversion between JSON, query strings and the contract's messages, by the messages' descriptors.

protobuf's own JSON reader stops at the first fault and quotes the value in its text. This one collects all faults of a
request and never repeats a value; a name is repeated only when it looks like the name of a field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message as Header
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import parse_qsl

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from service.errors import LeadValidationError, Violation, invalid
from service.foreign_text import parse_json
from service.validation.text import UNREADABLE, ValueRefusedError, text_of

UNKNOWN_NAMED = 20
"""How many unknown fields are named. A body holds thousands, and the answer must not grow with it."""

MOST_PARAMETERS = 100
"""Parameters in a query string; the longest list of filters that makes sense has 20."""

_FIELD_NAME = re.compile("[A-Za-z_]{1,40}")
"""What is repeated when it names no field. Without digits: a NID in the place of a name must not be repeated."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

_CAPITAL = re.compile("[A-Z]")

# protobuf's reader also takes offsets of days, months of one digit and digits of any script, and guesses a moment.
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)

_INTEGER = re.compile("-?[0-9]{1,19}")
_BITS = {FieldDescriptor.TYPE_INT32: 32, FieldDescriptor.TYPE_INT64: 64}


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises LeadValidationError."""
    if not raw.strip():
        raise invalid("body", "is required: a JSON object")
    try:
        parsed = parse_json(raw)
    except ValueError as fault:
        raise invalid("body", str(fault).removeprefix("it ")) from None
    if not isinstance(parsed, dict):
        raise invalid("body", "must be a JSON object")
    return parsed


def media_type(content_type: str) -> str:
    """The media type of a Content-Type, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_utf8(content_type: str) -> bool:
    """Whether a Content-Type names UTF-8, or no character set."""
    if ";" not in content_type:
        return True
    header = Header()
    header["content-type"] = content_type
    return header.get_content_charset("utf-8") in ("utf-8", "utf8")


def parse_query(raw: bytes) -> list[tuple[str, str]]:
    """The parameters of a query string; one that is empty counts as not given. Raises LeadValidationError."""
    try:
        return parse_qsl(raw.decode("ascii"), errors="strict", max_num_fields=MOST_PARAMETERS)
    except ValueError:
        raise invalid("query", f"must be percent-encoded UTF-8 with at most {MOST_PARAMETERS} parameters") from None


def fill(
    message: Message,
    given: Iterable[tuple[str, object]],
    *,
    names: Collection[str],
    ignored: Collection[str] = (),
    may_be_left_out: Collection[str] = (),
    barred: Mapping[str, str] = MappingProxyType({}),
    whole: str,
) -> None:
    """Set the fields of a message that are given; null counts as not given.

    Names are the contract's or their lowerCamelCase, as in protobuf's JSON. `names` may be given, and every other name
    is a fault; of the messages inside, every field may be given. Fields at the paths in `ignored` (`lead.id`) are
    passed over whatever they hold. A field at a path in `may_be_left_out` that cannot be read is set to what validation
    leaves out and names. `barred` holds the paths of fields that cannot be given here, and why. `whole` is what holds
    the fields, for faults that belong to no field. Raises LeadValidationError with all faults.
    """
    filling = _Filling(ignored, may_be_left_out, barred)
    filling.fill(message, given, names, "")
    violations = [*filling.violations, *_unknown_fields(filling.unknown, whole)]
    if len(violations) > filling.left_out:
        raise LeadValidationError(list(dict.fromkeys(violations)))


@dataclass(slots=True)
class _Filling:
    """What is known while one request is read."""

    ignored: Collection[str]
    may_be_left_out: Collection[str]
    barred: Mapping[str, str]
    violations: list[Violation] = field(default_factory=list)
    left_out: int = 0
    """How many of the violations cost no request."""
    unknown: set[tuple[str, str]] = field(default_factory=set)
    """Names that are no fields, each with its path."""

    def fill(self, message: Message, given: Iterable[tuple[str, object]], names: Collection[str], path: str) -> None:
        """Set the fields that are given; `path` precedes their names."""
        seen: set[str] = set()
        for key, value in given:
            found = _field_called(message, key)
            at = path + (found.name if found is not None else "")
            if at in self.barred:
                self.violations.append(Violation(at, self.barred[at]))
                continue
            if found is None or found.name not in names:
                self.unknown.add((path, key))
                continue
            if at in self.ignored or value is None:
                continue
            if found.name in seen and not found.is_repeated:
                self.violations.append(Violation(at, "is given twice"))
                continue
            seen.add(found.name)
            try:
                self._set(message, found, value, at)
            except ValueRefusedError as refused:
                self.violations.append(refused.at(at))
                if at in self.may_be_left_out:
                    setattr(message, found.name, UNREADABLE)
                    self.left_out += 1

    def _set(self, message: Message, field: FieldDescriptor, value: object, at: str) -> None:
        if field.is_repeated:
            if not isinstance(value, list):
                raise ValueRefusedError("must be a list")
            getattr(message, field.name).extend(self._read(field, each, at) for each in value)
        elif isinstance(read := self._read(field, value, at), Message):
            getattr(message, field.name).CopyFrom(read)
        else:
            setattr(message, field.name, read)

    def _read(self, field: FieldDescriptor, value: object, at: str) -> str | int | Message:
        if not _is_message_of_fields(field):
            return _read(field, value)
        if not isinstance(value, dict):
            raise ValueRefusedError("must be a JSON object")
        kind = cast(Descriptor, field.message_type)
        inner = message_factory.GetMessageClass(kind)()
        self.fill(inner, value.items(), kind.fields_by_name, f"{at}.")
        return inner


def to_json(message: Message) -> bytes:
    """protobuf's JSON with the contract's field names. Every field is there, also when it is empty or zero.

    64-bit integers are strings, as protobuf's JSON has them: other readers of JSON would round them.
    """
    return encoded(MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))


def encoded(content: object) -> bytes:
    """Compact JSON in UTF-8, without escapes that nobody needs."""
    return _ENCODER.encode(content).encode()


def short_enum_names(enum: EnumDescriptor) -> list[str]:
    """The values of an enum as people write them: `not_interested` for LEAD_STATUS_NOT_INTERESTED."""
    return [value.name.removeprefix(_enum_prefix(enum)).lower() for value in enum.values if value.number != 0]


def _field_called(message: Message, key: str) -> FieldDescriptor | None:
    # Asked for a lone surrogate, protobuf raises SystemError; no field has such a name.
    if not key.isascii():
        return None
    # The stubs know two kinds of descriptor, which differ in nothing.
    descriptor = cast(Descriptor, message.DESCRIPTOR)
    return descriptor.fields_by_name.get(key) or descriptor.fields_by_camelcase_name.get(key)


def _unknown_fields(unknown: Collection[tuple[str, str]], whole: str) -> list[Violation]:
    # A value sent in the place of a name must not be repeated either.
    named = sorted(path + key for path, key in unknown if _FIELD_NAME.fullmatch(key))[:UNKNOWN_NAMED]
    violations = [Violation(name, "is not a field of this request") for name in named]
    if len(named) < len(unknown):
        violations.append(Violation(whole, "holds more names that are not fields of this request"))
    return violations


def _is_message_of_fields(field: FieldDescriptor) -> bool:
    """Whether it holds a message that JSON writes as an object."""
    return field.message_type is not None and field.message_type.full_name not in (
        Timestamp.DESCRIPTOR.full_name,
        FieldMask.DESCRIPTOR.full_name,
    )


def _read(field: FieldDescriptor, value: object) -> str | int | Message:
    if isinstance(value, str):
        # Before anything else: protobuf raises SystemError where it looks such a text up.
        _refuse_half_surrogates(value)
    if field.enum_type is not None:
        return _enum_number(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _truth(value)
    if field.type in _BITS:
        return _integer(value, _BITS[field.type])
    text = text_of(field.name, value)
    if field.message_type is not None:
        is_mask = field.message_type.full_name == FieldMask.DESCRIPTOR.full_name
        return _field_mask(text) if is_mask else _moment(text)
    return text


def _refuse_half_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueRefusedError(
            "is not valid Unicode: it contains half of a surrogate pair", "INVALID_CHARACTERS"
        ) from None


def _truth(value: object) -> bool:
    if value in ("true", "false"):
        return value == "true"
    if not isinstance(value, bool):
        raise ValueRefusedError("must be true or false")
    return value


def _field_mask(text: str) -> FieldMask:
    """protobuf's JSON of it, whose names are lowerCamelCase; the contract's are taken, too."""
    if not text.isascii():
        raise ValueRefusedError("must be names of fields, separated by commas")
    return FieldMask(
        paths=[_CAPITAL.sub(lambda found: f"_{found[0].lower()}", each) for each in text.split(",") if each]
    )


def _integer(value: object, bits: int) -> int:
    match value:
        case str() if _INTEGER.fullmatch(value):
            value = int(value)
        # 5.0 is a whole number, as in protobuf's JSON; beyond 2^53 the reader of JSON may have rounded it.
        case float() if value.is_integer() and abs(value) < 1 << 53:
            value = int(value)
    # True is an int to Python and none to JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueRefusedError(f"must be a whole number of {bits} bits")
    return value


def _enum_number(enum: EnumDescriptor, value: object) -> int:
    if isinstance(value, str):
        name = value.upper()
        found = enum.values_by_name.get(name) or enum.values_by_name.get(_enum_prefix(enum) + name)
    else:
        found = enum.values_by_number.get(value) if type(value) is int else None
    if found is None:
        raise ValueRefusedError(f"must be one of: {', '.join(short_enum_names(enum))}")
    return int(found.number)


def _enum_prefix(enum: EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name.removesuffix("UNSPECIFIED"))


def _moment(text: str) -> Timestamp:
    moment = Timestamp()
    # A `+` that is not percent-encoded arrives as a space; an RFC 3339 time has no other place for one.
    written = text.replace(" ", "+")
    if _RFC_3339.fullmatch(written) is not None:
        with suppress(ValueError, OverflowError):
            moment.FromJsonString(written)
            return moment
    raise ValueRefusedError("must be an RFC 3339 time, such as 2026-01-31T09:00:00Z")
