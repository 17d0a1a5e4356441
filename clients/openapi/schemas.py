"""JSON schemas of the contract's messages, made from their descriptors and comments.

What a comment says decides, too: `Required`, `a UUID`, `at most 200 characters`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1 import options_pb2

from service.lead import CORRECTABLE_FIELDS, CUSTOMER_FIELDS
from service.scopes import UNMASK_SCOPES

Json = dict[str, Any]

_SENSITIVE: Any = options_pb2.sensitive
_LEAD: Descriptor = pb.DESCRIPTOR.message_types_by_name["Lead"]

_LEADS: dict[str, tuple[str, Collection[str]]] = {
    "leadkeep.v1.CreateLeadRequest.lead": ("LeadSubmission", CUSTOMER_FIELDS),
    "leadkeep.v1.ValidateLeadRequest.lead": ("LeadFields", CUSTOMER_FIELDS),
    "leadkeep.v1.UpdateLeadRequest.lead": ("LeadCorrection", ("id", *CORRECTABLE_FIELDS)),
}
"""The leads of requests, which hold less than a Lead: their schemas, and the fields in them."""

_MAY_BE_ABSENT = frozenset(
    {
        "leadkeep.v1.Conflict.resolved_at",
        "leadkeep.v1.ResolveConflictResponse.lead",
        "leadkeep.v1.PersonMatch.lead",
        *(f"leadkeep.v1.PersonRecord.{part}" for part in ("lead", "resubmission", "conflict", "event")),
    }
)
"""The messages that an answer may lack; every other field of an answer is there, also when it is empty or zero."""

_PARTIAL_LEADS = frozenset(
    {
        "leadkeep.v1.Resubmission.lead",
        "leadkeep.v1.Conflict.submission",
        "leadkeep.v1.Conflict.leads",
        "leadkeep.v1.PersonRecord.lead",
    }
)
"""The leads of answers whose output fields may be absent."""

_MASKS = {"reveal": UNMASK_SCOPES, "update_mask": ("*", *CORRECTABLE_FIELDS)}
"""What a field mask may name, by its field."""

_SCALARS: dict[int, Json] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    # protobuf's JSON writes them as strings. It takes numbers, too, but generators of Go know no union of two types.
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"},
}

_PATTERNS = {"phone_region": "^([A-Za-z]{2}|001)?$"}

_LONGEST = re.compile(r"(?:at most|1 to) ([\d,]+) (?:visible )?characters")
_SHORTEST = re.compile(r"at least (\d+) characters")


def ref(kind: str, name: str) -> Json:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


class Schemas:
    """Schemas of messages. Those that were asked for, with all that they hold, are in `components`."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self.components: dict[str, Json] = {}

    def response(self, message: Descriptor) -> Json:
        """The schema of an answer."""
        properties = {field.name: self.field(field, is_request=False) for field in message.fields}
        required = [field.name for field in message.fields if field.full_name not in _MAY_BE_ABSENT]
        self._add(message.name, self._object(message, properties, required))
        if message.name == "Lead":
            self._add("PartialLead", self._partial())
        return ref("schemas", message.name)

    def request(self, message: Descriptor) -> Json:
        """The schema of a request."""
        return self._add(message.name, self.members(message, message.fields_by_name))

    def members(self, message: Descriptor, names: Collection[str], required: Collection[str] | None = None) -> Json:
        """The schema of a request's fields of these names; any other name is refused.

        `required`: which of them are; None: those that their comments call so.
        """
        fields = [field for field in message.fields if field.name in names]
        properties = {field.name: self.field(field, is_request=True) for field in fields}
        if required is None:
            required = [field.name for field in fields if self.is_required(field)]
        for name in required:
            if properties[name].get("type") == "string":
                properties[name]["minLength"] = 1
        return self._object(message, properties, required) | {"additionalProperties": False}

    def is_required(self, field: FieldDescriptor) -> bool:
        """Whether a request is refused without a field."""
        return "Required" in self._comment_of(field)

    def field(self, field: FieldDescriptor, *, is_request: bool) -> Json:
        """The schema of a field, with its description."""
        schema = self._lead(field) if field.full_name in _LEADS else self._type(field, is_request=is_request)
        if field.is_repeated:
            fewest = {"minItems": 1} if is_request and self.is_required(field) else {}
            schema = {"type": "array", "items": schema, **fewest}
        marked = {"x-sensitive": True} if field.GetOptions().Extensions[_SENSITIVE] else {}
        return schema | {"description": self._comment_of(field)} | marked

    def _type(self, field: FieldDescriptor, *, is_request: bool) -> Json:
        comment = self._comment_of(field)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        if field.message_type is not None:
            return self._inner(field, field.message_type)
        schema = _SCALARS[field.type]
        if not is_request:
            return schema | _format(comment)
        if field.type == FieldDescriptor.TYPE_INT32:
            return schema | {"minimum": 0}
        return schema | _format(comment) | _limits(field, comment)

    def _inner(self, field: FieldDescriptor, message: Descriptor) -> Json:
        match message.full_name:
            case "google.protobuf.Timestamp":
                return {"type": "string", "format": "date-time"}
            case "google.protobuf.FieldMask":
                names = "|".join(map(re.escape, _MASKS[field.name]))
                return {"type": "string", "pattern": f"^(({names})(,({names}))*)?$"}
        # One schema for requests and answers: what a caller was given can be sent back.
        answer = self.response(message)
        return ref("schemas", "PartialLead") if field.full_name in _PARTIAL_LEADS else answer

    def _lead(self, field: FieldDescriptor) -> Json:
        name, names = _LEADS[field.full_name]
        required = None if name == "LeadSubmission" else [each for each in ("id",) if each in names]
        schema = self.members(_LEAD, names, required)
        return self._add(name, schema | {"description": self._comment_of(field)})

    def _partial(self) -> Json:
        lead = self.components["Lead"]
        without_format = {name: value for name, value in lead["properties"]["id"].items() if name != "format"}
        return lead | {
            "description": "A Lead of which output fields are not set, such as a submission that has become none.",
            "properties": lead["properties"] | {"id": without_format},
            "required": [name for name in lead["required"] if not name.endswith("_at")],
        }

    def _enum(self, enum: EnumDescriptor) -> Json:
        values = [value.name for value in enum.values]
        meanings = "\n".join(f"- `{name}`: {self._comments[f'{enum.full_name}.{name}']}" for name in values)
        description = f"{self._comments[enum.full_name]}\n\n{meanings}"
        return self._add(enum.name, {"type": "string", "enum": values, "description": description})

    def _object(self, message: Descriptor, properties: Json, required: Collection[str]) -> Json:
        return {
            "type": "object",
            "description": self._comments[message.full_name],
            "properties": properties,
            "required": list(required),
        }

    def _comment_of(self, field: FieldDescriptor) -> str:
        return self._comments[field.full_name]

    def _add(self, name: str, schema: Json) -> Json:
        if self.components.setdefault(name, schema) != schema:
            raise ValueError(f"there are two schemas called {name}")
        return ref("schemas", name)


def _format(comment: str) -> Json:
    return {"format": "uuid"} if re.search(r"\ba UUID", comment) else {}


def _limits(field: FieldDescriptor, comment: str) -> Json:
    longest, shortest = _LONGEST.search(comment), _SHORTEST.search(comment)
    return {
        **({"maxLength": int(longest[1].replace(",", ""))} if longest else {}),
        **({"minLength": int(shortest[1])} if shortest else {}),
        **({"pattern": _PATTERNS[field.name]} if field.name in _PATTERNS else {}),
    }
