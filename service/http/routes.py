"""The paths of the HTTP endpoint: how each reads its request, and how its answer is written.

What cannot be read becomes the call's `fault`, which is shown only to callers who may make the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.message import Message as Header

from google.protobuf import message_factory
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError, LeadValidationError, Violation
from service.http.json_codec import comma_separated, fill, parse_object, parse_query, to_json, with_plus
from service.http.paths import HttpHandler
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.lead import CUSTOMER_FIELDS, IDENTIFIERS
from service.rpc.call import SERVICE, Call, Handler, answer_by, joined
from service.rpc.server import LARGEST_REQUEST

OUTPUT_FIELDS = tuple(name for name in pb.Lead.DESCRIPTOR.fields_by_name if name not in CUSTOMER_FIELDS)
"""Fields of a lead that a request may carry, as a copy of an answer does, and that are ignored."""

_LOST_PLUS: dict[str, Callable[[str], str]] = {
    "phone": with_plus,
    # It holds no space.
    **dict.fromkeys(("conversation_id", "conversationId"), lambda value: value.replace(" ", "+")),
}
"""What undoes, in a query string, that a + was not percent-encoded and arrived as a space."""

STATUS_FIELDS = ("status", "reason", "expected_version")

ERASURE_FIELDS = ("reason",)

_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")

PROVEN = "leadkeep.proven"
"""In a request's state: whether a token was accepted."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of the contract at one path."""

    method: str
    path: str
    rpc: str
    body: tuple[str, ...] = ()
    """The request's fields that are members of the body. CreateLead's body is its lead."""
    query: tuple[str, ...] = ()
    """The request's fields that are query parameters. Those of the path are in the path."""

    def status_and_headers(self, response: Message) -> tuple[int, dict[str, str]]:
        """The status code and headers that express the response in HTTP."""
        if not isinstance(response, pb.CreateLeadResponse):
            return 200, {}
        delayed = response.state == pb.SAVE_STATE_DELAYED
        return 202 if delayed else 201, {"location": f"/api/leads/{response.id}"}


OPERATIONS = (
    Operation("POST", "/api/leads", "CreateLead", query=("phone_region",)),
    Operation("GET", "/api/leads", "ListLeads", query=tuple(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name)),
    # No id: those are UUIDs.
    Operation(
        "GET", "/api/leads/summary", "SummarizeLeads", query=tuple(pb.SummarizeLeadsRequest.DESCRIPTOR.fields_by_name)
    ),
    Operation("GET", "/api/leads/{id}", "GetLead", query=("view",)),
    # A client that can send no body with DELETE gives the reason in the query, which then counts.
    Operation("DELETE", "/api/leads/{id}", "EraseLead", body=ERASURE_FIELDS, query=ERASURE_FIELDS),
    Operation("POST", "/api/leads/{id}/status", "UpdateStatus", body=STATUS_FIELDS),
    Operation(
        "GET", "/api/leads/{lead_id}/resubmissions", "ListResubmissions", query=("page_size", "page_token", "view")
    ),
    # `path`: a conversation's id may hold a slash, as %2F.
    Operation("GET", "/api/conversations/{conversation_id:path}/lead", "GetLeadByConversation", query=("view",)),
    Operation("GET", "/api/accesses", "ListAccesses", query=tuple(pb.ListAccessesRequest.DESCRIPTOR.fields_by_name)),
)


def http_handler_of(operation: Operation, handle: Handler, required: Collection[str]) -> HttpHandler:
    """The operation as a function of the HTTP request. `required`: the fields without which there is no lead."""
    may_be_left_out = frozenset(CUSTOMER_FIELDS).difference(required, IDENTIFIERS)

    async def answer(request: Request) -> Response:
        seconds, fault = _timeout(request)
        # Counted from here: the caller waits while the body arrives, too.
        deadline = answer_by(seconds)
        body = await _body(request) if operation.method != "GET" else b""
        message = _message_class(operation)()
        try:
            if fault is None:
                message = _read(operation, request, body, may_be_left_out)
        except LeadValidationError as error:
            fault = error
        if isinstance(message, pb.CreateLeadRequest):
            # Also beside a fault: it is explained to the customer.
            message.locale = request.headers.get("accept-language", "")
        call = Call(
            rpc=operation.rpc,
            transport="http",
            peer=f"{request.client.host}:{request.client.port}" if request.client else "",
            metadata=joined(request.headers.items()),
            deadline=deadline,
            fault=fault,
        )
        try:
            response = await handle(call, message)
        except LeadkeepError as error:
            return failure_response(error, call.trailers())
        finally:
            request.scope["state"][PROVEN] = call.caller is not None
        status, headers = operation.status_and_headers(response)
        return json_response(to_json(response), status, {**call.trailers(), **headers})

    return answer


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(body, status, {**SAFE_HEADERS, **(headers or {})}, "application/json")


def _read(operation: Operation, request: Request, body: bytes, may_be_left_out: Collection[str]) -> Message:
    """The request in the contract's words. Raises LeadValidationError."""
    query = comma_separated(parse_query(request.scope["query_string"]), "statuses")
    query = [(name, _LOST_PLUS[name](value) if name in _LOST_PLUS else value) for name, value in query]
    message = _message_class(operation)(**request.path_params)
    if isinstance(message, pb.CreateLeadRequest):
        message.request_id = _unquoted(request.headers.get("idempotency-key", ""))
        lead = parse_object(body).items()
        fill(
            message.lead,
            lead,
            names=CUSTOMER_FIELDS,
            ignored=OUTPUT_FIELDS,
            may_be_left_out=may_be_left_out,
            path="lead.",
            whole="body",
        )
    elif body or operation.method == "POST":
        fill(message, parse_object(body).items(), names=operation.body, whole="body")
    fill(message, query, names=operation.query, whole="query")
    return message


def _message_class(operation: Operation) -> type[Message]:
    return message_factory.GetMessageClass(SERVICE.methods_by_name[operation.rpc].input_type)


async def _body(request: Request) -> bytes:
    """The body of a request in JSON, read no further than its limit."""
    if _codings(request.headers.get("content-encoding", "")) - {"identity"}:
        # RFC 9110, 12.5.3: the header names what would have been taken.
        raise HttpProblemError(415, "send the body as it is, without Content-Encoding", {"accept-encoding": "identity"})
    too_large = HttpProblemError(413, f"the body is longer than {LARGEST_REQUEST} bytes")
    announced = request.headers.get("content-length", "0")
    # h11 has checked that it is a number of at most 20 digits.
    if int(announced) > LARGEST_REQUEST:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_REQUEST:
            raise too_large
    if body:
        _require_json(request.headers.get("content-type", ""))
    return bytes(body)


def _codings(content_encoding: str) -> set[str]:
    return {coding.strip().lower() for coding in content_encoding.split(",")} - {""}


def _require_json(content_type: str) -> None:
    header = Header()
    header["content-type"] = content_type
    if header.get_content_type() != "application/json" or header.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        # Also keeps other sites' forms out: a browser sends this type across sites only after asking.
        raise HttpProblemError(
            415, "send the body as Content-Type: application/json, in UTF-8", {"accept": "application/json"}
        )


def _timeout(request: Request) -> tuple[float | None, LeadkeepError | None]:
    """How many seconds the caller waits, and the fault of a header that cannot be read."""
    sent = request.headers.get("request-timeout")
    if sent is None:
        return None, None
    if not _TIMEOUT.fullmatch(sent) or float(sent) == 0:
        wanted = "must be a number of seconds above 0 and below 1000000, such as 2.5"
        return None, LeadValidationError([Violation("Request-Timeout", wanted)])
    return float(sent), None


def _unquoted(key: str) -> str:
    """The Idempotency-Key draft of the IETF writes the key in quotes, most clients do not: both mean one key."""
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
