"""Errors in the OpenAPI document: which statuses an rpc may answer, and what their bodies are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from google.rpc import code_pb2

from clients.openapi.schemas import Json, ref
from service.errors import Reason, ViolationReason
from service.http.problems import HTTP_STATUS, MEDIA_TYPE
from service.http.protocols import CONNECT_CODE
from service.rpc.status import CODES, REASONS

REFUSALS = {
    413: "The body is longer than 256 KiB.",
    415: "The body is of another Content-Type, or encoded: `Accept`, `Accept-Post` or `Accept-Encoding` says what is "
    "taken.",
    431: "The request's line and headers are longer than 16 KiB.",
}
"""Of requests that are none of the contract: problems without a reason, whatever the form of the call."""

_NO_REASON = {
    404: "there is no service of this name",
    429: "the body is longer than 256 KiB",
    501: "the compression is unknown",
}
"""What errors in Connect that are none of the contract mean."""

_HEADERS = {401: ["WWW-Authenticate"], 403: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


_CODES = dict(code_pb2.Code.items()) | CODES
"""Codes by the words that stand for one in a comment."""


def statuses(comment: str) -> set[int]:
    """The HTTP statuses of the codes and reasons that a comment names."""
    return {HTTP_STATUS[_CODES[word]] for word in re.findall(r"\b[A-Z][A-Z_]+\b", comment) if _CODES.get(word)}


def responses(comments: Iterable[str], *, has_body: bool, is_connect: bool) -> Json:
    """The errors of an rpc whose comments name their reasons."""
    of_contract = set[int]().union(*map(statuses, comments))
    kind = "ConnectError" if is_connect else "Error"
    refused = {431, *({415} if has_body else ()), *({413} if has_body and not is_connect else ())}
    found = {status: ref("responses", f"{kind}{status}") for status in of_contract | ({501} if is_connect else set())}
    found |= {status: ref("responses", f"Error{status}") for status in refused}
    return {str(status): found[status] for status in sorted(found)}


def components() -> Json:
    """The responses that `responses` refers to."""
    by_status: dict[int, list[str]] = {}
    for reason, rule in REASONS.items():
        names = f" (metadata {', '.join(f'`{name}`' for name in rule.metadata)})" if rule.metadata else ""
        by_status.setdefault(HTTP_STATUS[rule.code], []).append(f"`{reason}`{names}")
    made: Json = {}
    for status, reasons in by_status.items():
        described = f"One of these reasons, explained in the operation's description: {', '.join(reasons)}."
        made[f"Error{status}"] = _response(status, described, MEDIA_TYPE, "Problem", "x-request-id", "leadkeep-retries")
    for status in sorted({*by_status, *_NO_REASON}):
        described = made.get(f"Error{status}", {}).get("description", "")
        if status in _NO_REASON:
            described = f"{described} Or without details: {_NO_REASON[status]}.".strip()
        made[f"ConnectError{status}"] = _response(
            status, described, "application/json", "ConnectError", "trailer-x-request-id", "trailer-leadkeep-retries"
        )
    return made | {
        f"Error{status}": _response(status, text, MEDIA_TYPE, "Problem") for status, text in REFUSALS.items()
    }


def _response(status: int, description: str, media_type: str, schema: str, *headers: str) -> Json:
    return {
        "description": description,
        "headers": {name: ref("headers", name) for name in (*headers, *_HEADERS.get(status, []))},
        "content": {media_type: {"schema": ref("schemas", schema)}},
    }


_LOCALIZED: Json = {
    "type": "object",
    "description": "The text for the customer, in the language of the request; only where a lead is created.",
    "properties": {"locale": {"type": "string"}, "message": {"type": "string"}},
    "required": ["locale", "message"],
}

_VIOLATION: Json = {
    "type": "object",
    "properties": {
        "field": {"type": "string", "description": "The field's path, such as `lead.phone`."},
        "description": {"type": "string", "description": "What is wrong, for people; holds no value."},
        "reason": {"type": "string", "enum": list(get_args(ViolationReason))},
        "localized_message": ref("schemas", "LocalizedMessage"),
    },
    "required": ["field", "description", "reason"],
}

SCHEMAS: Json = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457 problem details. What is wrong with the HTTP request itself has no reason.",
        "properties": {
            "type": {"type": "string", "description": "`urn:leadkeep:problem:REASON`, or `about:blank`."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "For people; holds no value of a field."},
            "reason": {"type": "string", "enum": list(get_args(Reason))},
            "localized_message": ref("schemas", "LocalizedMessage"),
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "violations": {"type": "array", "items": ref("schemas", "ProblemViolation")},
            "request_id": {"type": "string", "description": "The call's `x-request-id`."},
        },
        "required": ["type", "title", "status", "detail"],
    },
    "ProblemViolation": _VIOLATION,
    "LocalizedMessage": _LOCALIZED,
    "ConnectError": {
        "type": "object",
        "description": "An error as the Connect protocol writes it.",
        "properties": {
            "code": {"type": "string", "enum": [CONNECT_CODE[code] for code in code_pb2.Code.values() if code]},
            "message": {"type": "string", "description": "For people; holds no value of a field."},
            "details": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "type": {
                            "type": "string",
                            "description": "`google.rpc.ErrorInfo` with the reason, `google.rpc.BadRequest` with the "
                            "violations, `google.rpc.RetryInfo`, or `google.rpc.LocalizedMessage`.",
                        },
                        "value": {
                            "type": "string",
                            "contentEncoding": "base64",
                            "description": "The message in binary, without padding.",
                        },
                    },
                    "required": ["type", "value"],
                },
            },
        },
        "required": ["code", "message", "details"],
    },
}
