"""The paths of the story: how each reads its request, and how its answer is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError, LeadValidationError, Violation
from service.http.calls import Submission, body_within, fill_from_json, http_handler
from service.http.json_codec import comma_separated, fill, is_utf8_json, parse_object, parse_query, to_json, with_plus
from service.http.paths import HttpHandler
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.rpc.call import SERVICE, Call, Handler
from service.rpc.server import LARGEST_REQUEST

_LOST_PLUS: dict[str, Callable[[str], str]] = {
    "phone": with_plus,
    # It holds no space.
    **dict.fromkeys(("conversation_id", "conversationId"), lambda value: value.replace(" ", "+")),
}
"""What undoes, in a query string, that a + was not percent-encoded and arrived as a space."""

_NOT_IN_A_URL = (
    "is customer data, and URLs are logged on the way: send it in the body of POST /leadkeep.v1.LeadService/ListLeads"
)
BARRED_IN_QUERY = {"ListLeads": {"email": _NOT_IN_A_URL, "name_prefix": _NOT_IN_A_URL}}
"""Fields of a request that are no query parameters, and why."""

STATUS_FIELDS = ("status", "reason", "expected_version")

ERASURE_FIELDS = ("reason",)

VIEW_FIELDS = ("view", "reveal")

_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of the contract at one path."""

    method: str
    path: str
    rpc: str
    body: tuple[str, ...] = ()
    """The request's fields that are members of the body. A request with a `lead` has that lead as its body."""
    query: tuple[str, ...] = ()
    """The request's fields that are query parameters. Those of the path are in the path."""

    def status_and_headers(self, response: Message) -> tuple[int, dict[str, str]]:
        """The status code and headers that express the response in HTTP."""
        if not isinstance(response, pb.CreateLeadResponse):
            return 200, {}
        delayed = response.state == pb.SAVE_STATE_DELAYED
        return 202 if delayed else 201, {"location": f"/api/leads/{response.id}"}


LIST_PARAMETERS = tuple(
    name for name in pb.ListLeadsRequest.DESCRIPTOR.fields_by_name if name not in BARRED_IN_QUERY["ListLeads"]
)

OPERATIONS = (
    Operation("POST", "/api/leads", "CreateLead", query=("phone_region",)),
    # No id holds a colon.
    Operation("POST", "/api/leads:validate", "ValidateLead", query=("phone_region",)),
    Operation("GET", "/api/leads", "ListLeads", query=LIST_PARAMETERS),
    # No id: those are UUIDs.
    Operation(
        "GET", "/api/leads/summary", "SummarizeLeads", query=tuple(pb.SummarizeLeadsRequest.DESCRIPTOR.fields_by_name)
    ),
    Operation("GET", "/api/leads/{id}", "GetLead", query=VIEW_FIELDS),
    # A client that can send no body with DELETE gives the reason in the query, which then counts.
    Operation("DELETE", "/api/leads/{id}", "EraseLead", body=ERASURE_FIELDS, query=ERASURE_FIELDS),
    Operation("POST", "/api/leads/{id}/status", "UpdateStatus", body=STATUS_FIELDS),
    Operation(
        "GET",
        "/api/leads/{lead_id}/resubmissions",
        "ListResubmissions",
        query=("page_size", "page_token", *VIEW_FIELDS),
    ),
    Operation(
        "GET",
        "/api/leads/{lead_id}/events",
        "ListLeadEvents",
        query=("page_size", "page_token", "newest_first", "include_accesses"),
    ),
    # `path`: a conversation's id may hold a slash, as %2F.
    Operation("GET", "/api/conversations/{conversation_id:path}/lead", "GetLeadByConversation", query=VIEW_FIELDS),
    Operation("GET", "/api/accesses", "ListAccesses", query=tuple(pb.ListAccessesRequest.DESCRIPTOR.fields_by_name)),
)


class Route:
    """A call at a path of the story: its body is the message's members or its lead, errors are problem details."""

    def __init__(self, operation: Operation, optional: Collection[str]) -> None:
        """`optional`: the fields of a submission, by path, that cost no lead when they cannot be read."""
        self._operation, self._optional = operation, optional

    def seconds(self, request: Request) -> float | None:
        """The time in Request-Timeout."""
        sent = request.headers.get("request-timeout")
        if sent is None:
            return None
        if not _TIMEOUT.fullmatch(sent) or float(sent) == 0:
            wanted = "must be a number of seconds above 0 and below 1000000, such as 2.5"
            raise LeadValidationError([Violation("Request-Timeout", wanted)])
        return float(sent)

    async def body(self, request: Request) -> bytes:
        """The JSON object of the body, where the method has one."""
        if self._operation.method == "GET":
            return b""
        if _codings(request.headers.get("content-encoding", "")) - {"identity"}:
            # RFC 9110, 12.5.3: the header names what would have been taken.
            detail = "send the body as it is, without Content-Encoding"
            raise HttpProblemError(415, detail, {"accept-encoding": "identity"})
        body = await body_within(request, LARGEST_REQUEST)
        if body and not is_utf8_json(request.headers.get("content-type", "")):
            # Also keeps other sites' forms out: a browser sends this type across sites only after asking.
            detail = "send the body as Content-Type: application/json, in UTF-8"
            raise HttpProblemError(415, detail, {"accept": "application/json"})
        return body

    def read(self, request: Request, body: bytes, kind: type[Message]) -> tuple[Message, LeadkeepError | None]:
        """The request in the contract's words."""
        message, fault = kind(**request.path_params), None
        try:
            self._fill(message, request, body)
        except LeadValidationError as error:
            fault = error
        if isinstance(message, Submission):
            # Also beside a fault: it is explained to the customer.
            message.locale = request.headers.get("accept-language", "")
        return message, fault

    def _fill(self, message: Message, request: Request, body: bytes) -> None:
        query = [
            (name, _LOST_PLUS[name](value) if name in _LOST_PLUS else value)
            for name, value in parse_query(request.scope["query_string"])
        ]
        if isinstance(message, pb.CreateLeadRequest):
            message.request_id = _unquoted(request.headers.get("idempotency-key", ""))
        if isinstance(message, Submission):
            fill_from_json(message, [("lead", parse_object(body))], ("lead",), self._optional)
        elif body or self._operation.method == "POST":
            fill_from_json(message, parse_object(body).items(), self._operation.body, self._optional)
        fill(
            message,
            comma_separated(query, "statuses"),
            names=self._operation.query,
            barred=BARRED_IN_QUERY.get(self._operation.rpc, {}),
            whole="query",
        )

    def answer(self, call: Call, response: Message) -> Response:
        """The answer in JSON."""
        status, headers = self._operation.status_and_headers(response)
        return json_response(to_json(response), status, {**call.trailers(), **headers})

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """Problem details."""
        return failure_response(error, call.trailers())

    def refusal(self, problem: HttpProblemError) -> Response:
        """Problem details."""
        return problem.response()


def route_handler(operation: Operation, handle: Handler, optional: Collection[str]) -> HttpHandler:
    """The operation as a function of the HTTP request."""
    route = Route(operation, optional)
    return http_handler(SERVICE.methods_by_name[operation.rpc], handle, lambda _request: route)


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(body, status, {**SAFE_HEADERS, **(headers or {})}, "application/json")


def _codings(content_encoding: str) -> set[str]:
    return {coding.strip().lower() for coding in content_encoding.split(",")} - {""}


def _unquoted(key: str) -> str:
    """The Idempotency-Key draft of the IETF writes the key in quotes, most clients do not: both mean one key."""
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
