"""The OpenAPI 3.1 document of the JSON endpoint, made from the contract's descriptors and the list of paths."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version
from typing import Any, get_args

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from service.access import UNMASK_SCOPES
from service.errors import Reason, ViolationReason
from service.http import openapi_texts as texts
from service.http.json_codec import short_enum_names
from service.http.problems import MEDIA_TYPE
from service.http.routes import ROUTES, Route
from service.lead import CUSTOMER_FIELDS, FIELD_RULES, REQUIRED_FIELDS
from service.rpc.call import SERVICE
from service.rpc.masking import can_show_values
from service.rpc.readiness import ReadinessReason
from service.rpc.reasons import REASON, REASON_BIN

_Json = dict[str, Any]

_MESSAGES = SERVICE.file.message_types_by_name

_SUBMITTED = "SubmittedLead"

_FORMATS: dict[str, _Json] = {name: {"format": "uuid"} for name in ("id", "lead_id")}
"""Of parameters, by name."""

_SCALARS: dict[int, _Json] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    # protobuf's JSON writes them as strings.
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64"},
}


def document(required: Collection[str] = REQUIRED_FIELDS) -> _Json:
    """The document, ready for JSON. `required`: the fields without which there is no lead."""
    paths: _Json = {}
    for route in ROUTES:
        paths.setdefault(route.path.replace(":path}", "}"), {})[route.verb.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Leadkeep",
            "version": version("leadkeep"),
            "description": texts.ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {**paths, **_open_paths()},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": _schemas() | {"LeadSubmission": _submission(required), "LeadFields": _submission(())},
            "headers": _HEADERS,
            "responses": {f"Error{status}": _error(status) for status in texts.ERRORS},
        },
    }


def _operation(route: Route) -> _Json:
    summary, description, more_errors = texts.OPERATIONS[route.rpc]
    answer: _Json = {"schema": _ref("schemas", route.method.output_type.name)}
    described: _Json = {
        "operationId": route.rpc,
        "summary": summary,
        "description": description,
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_PARAMETERS],
        "responses": {
            "200": _success("Done.", answer),
            **{
                str(status): _ref("responses", f"Error{status}")
                for status in sorted((*texts.GENERAL_ERRORS, *more_errors))
            },
        },
    }
    if can_show_values(route.method.output_type):
        described["parameters"] += _REASONS
    if route.rpc == "CreateLead":
        saved, delayed = (
            answer | {"examples": {"story": {"value": texts.EXAMPLE_CREATED | {"state": state}}}}
            for state in ("SAVE_STATE_SAVED", "SAVE_STATE_DELAYED")
        )
        described["parameters"] += _CREATE_PARAMETERS
        described["requestBody"] = _body("LeadSubmission", texts.EXAMPLE_SUBMISSION)
        del described["responses"]["200"]
        described["responses"] |= {
            "201": _success("The database has the lead.", saved, "Location"),
            "202": _success(
                "The lead lies in the service's durable queue and reaches the database later.", delayed, "Location"
            ),
        }
    elif route.rpc == "ValidateLead":
        described["parameters"].append(_LANGUAGE)
        described["requestBody"] = _body("LeadFields", {"phone": texts.EXAMPLE_SUBMISSION["phone"]})
    elif route.rpc == "UpdateStatus":
        described["requestBody"] = _body("StatusUpdate", {"status": "contacted", "expected_version": 1})
    elif route.rpc == "EraseLead":
        described["requestBody"] = _body("Erasure", {"reason": "the customer asked for it"}) | {"required": False}
    return described


def _path_parameters(route: Route) -> list[_Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"} | _FORMATS.get(name, {})}
        for name in route.in_path
    ]


def _query_parameters(route: Route) -> list[_Json]:
    request = route.method.input_type
    # One text serves every `view`.
    words = texts.FIELDS["ListLeadsRequest"] | texts.FIELDS.get(request.name, {})
    return [
        {
            "name": name,
            "in": "query",
            "description": words[name],
            # Empty, it counts as not given.
            "allowEmptyValue": True,
            "schema": _request_schema(request.fields_by_name[name]) | _FORMATS.get(name, {}),
        }
        for name in route.query
    ]


def _schemas() -> _Json:
    answers = [route.method.output_type for route in ROUTES]
    lead = _message(_MESSAGES["Lead"])
    return {
        **{answer.name: _message(answer) for answer in answers},
        "Lead": lead | {"examples": [texts.EXAMPLE_LEAD]},
        # What was submitted has not become a lead: it has no times.
        _SUBMITTED: lead | {"required": [name for name in lead["required"] if not name.endswith("_at")]},
        "Confirmation": _message(_MESSAGES["Confirmation"]),
        "Violation": _message(_MESSAGES["Violation"]),
        "Access": _message(_MESSAGES["Access"]),
        "Resubmission": _message(_MESSAGES["Resubmission"]),
        "LeadCount": _message(_MESSAGES["LeadCount"]),
        "LeadEvent": _message(_MESSAGES["LeadEvent"]),
        "StatusUpdate": _body_schema("UpdateStatus") | {"required": ["status"]},
        "Erasure": _body_schema("EraseLead"),
        "Problem": _PROBLEM,
        "Readiness": _READINESS,
    }


def _message(descriptor: Descriptor) -> _Json:
    words = texts.FIELDS[descriptor.name]
    properties = {field.name: _answer_schema(field) | {"description": words[field.name]} for field in descriptor.fields}
    return {"type": "object", "properties": properties, **({"required": list(properties)} if properties else {})}


def _answer_schema(field: FieldDescriptor) -> _Json:
    if field.enum_type is not None:
        schema = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    elif field.message_type is None:
        schema = _SCALARS[field.type]
    elif field.message_type.full_name == "google.protobuf.Timestamp":
        schema = {"type": "string", "format": "date-time"}
    elif field.message_type.full_name == "google.protobuf.FieldMask":
        name = "|".join(UNMASK_SCOPES)
        schema = {"type": "string", "pattern": f"^({name})(,({name}))*$"}
    else:
        is_submitted = field.containing_type is _MESSAGES["Resubmission"]
        schema = _ref("schemas", _SUBMITTED if is_submitted else field.message_type.name)
    return {"type": "array", "items": schema} if field.is_repeated else schema


def _request_schema(field: FieldDescriptor) -> _Json:
    if field.enum_type is None:
        return _answer_schema(field)
    # The full names are taken, too. Offered here, they would be further constants of generated clients.
    schema: _Json = {"type": "string", "enum": short_enum_names(field.enum_type)}
    return {"type": "array", "items": schema} if field.is_repeated else schema


def _submission(required: Collection[str]) -> _Json:
    return {
        "type": "object",
        "description": "What the customer told.",
        "properties": {
            name: {
                "type": "string",
                "description": rule.description,
                **({"minLength": 1} if name in required else {}),
                **({"maxLength": rule.limit} if rule.limit is not None else {}),
            }
            for name, rule in FIELD_RULES.items()
        },
        "required": [name for name in CUSTOMER_FIELDS if name in required],
        "examples": [texts.EXAMPLE_SUBMISSION],
    }


def _body_schema(rpc: str) -> _Json:
    route = next(route for route in ROUTES if route.rpc == rpc)
    request = route.method.input_type
    fields, words = request.fields_by_name, texts.FIELDS[request.name]
    limits: dict[str, _Json] = {
        "reason": {"maxLength": texts.LONGEST_REASON},
        "expected_version": {"type": ["integer", "string"]},
    }
    properties = {
        name: _request_schema(fields[name]) | {"description": words[name]} | limits.get(name, {})
        for name in route.members
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _success(description: str, content: _Json, *headers: str) -> _Json:
    names = ("x-request-id", "leadkeep-retries", *headers)
    return {
        "description": description,
        "headers": {name: _ref("headers", name) for name in names},
        "content": {"application/json": content},
    }


def _error(status: int) -> _Json:
    headers = ["x-request-id", "leadkeep-retries"] if status not in (413, 415, 431) else []
    headers += {401: ["WWW-Authenticate"], 403: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(
        status, []
    )
    return {
        "description": texts.ERRORS[status],
        "headers": {name: _ref("headers", name) for name in headers},
        "content": {MEDIA_TYPE: {"schema": _ref("schemas", "Problem")}},
    }


def _body(schema: str, example: object) -> _Json:
    return {"required": True, "content": {"application/json": {"schema": _ref("schemas", schema), "example": example}}}


def _ref(kind: str, name: str) -> _Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _open_paths() -> _Json:
    def path(operation_id: str, summary: str, **answers: str) -> _Json:
        responses = {status.removeprefix("http"): {"description": text} for status, text in answers.items()}
        return {"get": {"operationId": operation_id, "summary": summary, "security": [], "responses": responses}}

    ready = path(
        "CheckReadiness",
        "Whether calls should be sent here",
        http200="Yes; `degraded` and `reasons` say whether all is well.",
        http503="No: `reasons` says why not.",
    )
    for response in ready["get"]["responses"].values():
        response["content"] = {"application/json": {"schema": _ref("schemas", "Readiness")}}
    return {
        "/healthz": path("CheckLiveness", "Whether the process lives", http200="It does."),
        "/readyz": ready,
        "/metrics": path("GetMetrics", "Metrics in Prometheus' text format", http200="The metrics."),
        "/openapi.json": path("GetDocument", "This document", http200="The document."),
    }


def _header(name: str, description: str, schema: _Json) -> _Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


_HEADERS: _Json = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "x-request-id": "Names the call in the service's log: the caller's own, or made by the service.",
        "leadkeep-retries": "How many attempts went before this answer, the client's and the service's on its storage.",
        "Location": "The path of the lead.",
        "Retry-After": "Seconds after which to try again.",
        "WWW-Authenticate": "What is wrong with the token (RFC 6750).",
    }.items()
}

_PARAMETERS = [
    _header(
        "Request-Timeout",
        "How many seconds the caller waits, such as 2.5; when not given, 10 or what the operator has set.",
        {"type": "string", "pattern": r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,9})?$"},
    ),
    _header(
        "x-request-id",
        "Names the call in the service's log: at most 128 visible ASCII characters. Any other one is replaced.",
        {"type": "string"},
    ),
]

_REASONS = [
    _header(
        REASON,
        "Why values are looked at unmasked, for the access record; the operator may make it mandatory, or accept only "
        "certain words, alone or as in `WORD: text`. Write no customer data into it.",
        {"type": "string", "maxLength": texts.LONGEST_REASON},
    ),
    _header(
        REASON_BIN,
        f"The same, as base64 of UTF-8 text; not together with `{REASON}`.",
        {"type": "string", "contentEncoding": "base64"},
    ),
]

_LANGUAGE = _header("Accept-Language", "The customer's language, for the words to the customer.", {"type": "string"})

_CREATE_PARAMETERS = [
    _header(
        "Idempotency-Key",
        "The request_id: unique per subject, so that the same again answers the same lead. A "
        "UUID is a good choice. Recommended: without it a repeat is recognised only by its content, for a day.",
        {"type": "string", "maxLength": texts.LONGEST_REQUEST_ID},
    ),
    _LANGUAGE,
]

_READINESS: _Json = {
    "type": "object",
    "properties": {
        "ready": {"type": "boolean", "description": "Whether calls should be sent here."},
        "degraded": {"type": "boolean", "description": "Whether all is not well, though calls are answered."},
        "reasons": {
            "type": "array",
            "description": "Why not ready, or why degraded. Details: the service's log, `leadkeep doctor`.\n"
            + "\n".join(f"- `{reason}`: {reason.meaning}" for reason in ReadinessReason),
            "items": {"type": "string", "enum": list(ReadinessReason)},
        },
    },
    "required": ["ready", "degraded", "reasons"],
    "additionalProperties": False,
}

_LOCALIZED: _Json = {
    "type": "object",
    "description": "The text for the customer, in the language of Accept-Language; only when a lead is created.",
    "properties": {"locale": {"type": "string"}, "message": {"type": "string"}},
    "required": ["locale", "message"],
}

_PROBLEM: _Json = {
    "type": "object",
    "description": "RFC 9457 problem details. What is wrong with the HTTP request itself has no reason.",
    "properties": {
        "type": {"type": "string", "description": "`urn:leadkeep:problem:REASON`, or `about:blank`."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people; holds no value of a field."},
        "reason": {"type": "string", "enum": list(get_args(Reason))},
        "localized_message": _LOCALIZED,
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "violations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string"},
                    "description": {"type": "string"},
                    "reason": {"type": "string", "enum": list(get_args(ViolationReason))},
                    "localized_message": _LOCALIZED,
                },
                "required": ["field", "description", "reason"],
            },
        },
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
