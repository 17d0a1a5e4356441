"""Errors as RFC 9457 problem details, and the headers that go with them.

A failed call has the reason, text and details of its gRPC status. A fault of the HTTP request itself (no such path,
body too long) has no reason of the contract and the type `about:blank`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from google.rpc import code_pb2
from starlette.responses import Response

from service.errors import LeadkeepError, LeadValidationError, LocalizedText, RetryableError
from service.http.json_codec import encoded
from service.rpc.status import CODES

MEDIA_TYPE = "application/problem+json"

PROBLEM_TYPE = "urn:leadkeep:problem:"
"""Precedes the reason in `type`."""

HTTP_STATUS: dict[int, int] = {
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}
"""The mapping that google/rpc/code.proto recommends."""

SAFE_HEADERS = {
    # Leads are personal data: no cache on the way may keep an answer.
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}
"""What every answer carries."""

_REALM = 'Bearer realm="leadkeep"'


class HttpProblemError(Exception):
    """The HTTP request itself is not one that this endpoint answers."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def response(self) -> Response:
        """The answer to the request: the problem details."""
        title = HTTPStatus(self.status).phrase
        body = encoded({"type": "about:blank", "title": title, "status": self.status, "detail": self.detail})
        return Response(body, self.status, {**SAFE_HEADERS, **self.headers}, MEDIA_TYPE)


def failure_response(error: LeadkeepError, headers: Mapping[str, str]) -> Response:
    """A failed call as problem details; `headers` go with every answer of the call."""
    status = HTTP_STATUS[CODES[error.reason]]
    problem: dict[str, Any] = {
        "type": PROBLEM_TYPE + error.reason,
        "title": error.reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": error.text,
        "reason": error.reason,
        **_localized(error.localized),
    }
    if error.metadata:
        problem["metadata"] = error.metadata
    if isinstance(error, LeadValidationError):
        problem["violations"] = [
            {"field": each.field, "description": each.description, "reason": each.reason, **_localized(each.localized)}
            for each in error.violations
        ]
    if "x-request-id" in headers:
        problem["request_id"] = headers["x-request-id"]
    return Response(encoded(problem), status, {**SAFE_HEADERS, **headers, **headers_of(error)}, MEDIA_TYPE)


def _localized(words: LocalizedText | None) -> dict[str, Any]:
    return {} if words is None else {"localized_message": {"locale": words.locale, "message": words.text}}


def headers_of(error: LeadkeepError) -> dict[str, str]:
    """The headers that say in HTTP what a failed call's caller should do."""
    headers = {}
    if isinstance(error, RetryableError):
        # The header takes whole seconds; a sooner retry would fail.
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.reason == "TOKEN_MISSING":
        # RFC 6750: no error code for a request without any token.
        headers["www-authenticate"] = _REALM
    elif CODES[error.reason] == code_pb2.UNAUTHENTICATED:
        headers["www-authenticate"] = f'{_REALM}, error="invalid_token"'
    elif error.reason == "SCOPE_MISSING":
        headers["www-authenticate"] = f'{_REALM}, error="insufficient_scope", scope="{error.metadata["scope"]}"'
    return headers
