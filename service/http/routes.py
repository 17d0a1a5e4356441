"""The story's routes: a table of verb, path, rpc and parameters, and the one way in which all of them are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError
from service.http.calls import HttpHandler, Timeout, body_within, fill_from_json, http_handler
from service.http.json_codec import fill, is_utf8, media_type, parse_object, parse_query, to_json
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.rpc.call import LARGEST_REQUEST, SERVICE, Call, Handler

WHOLE = "*"
"""As a body: every field of the request that is not in the path."""

TIMEOUT = Timeout(
    "Request-Timeout",
    re.compile(r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,9})?"),
    "must be a number of seconds above 0 and below 1000000, such as 2.5",
    float,
)

# A + that was not percent-encoded arrives as a space. No country code begins with 0, so a space before a 0 is a space.
_LOST_PLUS = re.compile(r"^(\(?) +(?=[1-9])")

_IN_QUERY: dict[str, Callable[[str], object]] = {
    "statuses": lambda value: [part for part in value.split(",") if part],
    "phone": lambda value: _LOST_PLUS.sub(r"\1+", value),
    # It holds no space.
    **dict.fromkeys(("conversation_id", "conversationId"), lambda value: value.replace(" ", "+")),
}
"""Parameters of the query that are read as more than their text."""


@dataclass(frozen=True)
class Route:
    """One method of the contract at one path. Each field of its request has one place, as in `google.api.http`.

    What is neither in the path nor in a header nor in the body is a parameter of the query.
    """

    verb: str
    path: str
    rpc: str
    body: str = ""
    """The field that is the body, or WHOLE; empty: there is no body."""
    headers: tuple[tuple[str, str], ...] = ()
    """Fields that are headers, each with its header."""
    barred: tuple[str, ...] = ()
    """Fields that hold customer data and have no other place than the query: URLs are logged on the way."""
    success: tuple[int, int] = (200, 200)
    """The status code of an answer, and that of one which says that the lead is DELAYED. 201: Location is sent, too."""

    @property
    def method(self) -> MethodDescriptor:
        """The method of the contract."""
        return SERVICE.methods_by_name[self.rpc]

    @cached_property
    def in_path(self) -> tuple[str, ...]:
        """The fields in the path."""
        return tuple(re.findall(r"{(\w+)", self.path))

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The fields that are the body, or members of it."""
        return tuple(name for name in self._unplaced if self.body in (name, WHOLE))

    @cached_property
    def query(self) -> tuple[str, ...]:
        """The fields that are parameters of the query."""
        # A client that can send no body with DELETE gives its fields in the query, which then count.
        in_body = self.members if self.verb != "DELETE" else ()
        return tuple(name for name in self._unplaced if name not in {*in_body, *self.barred})

    @property
    def _unplaced(self) -> list[str]:
        placed = {*self.in_path, *(name for name, _ in self.headers)}
        return [name for name in self.method.input_type.fields_by_name if name not in placed]


_LOCALE = ("locale", "Accept-Language")

ROUTES = (
    Route(
        "POST",
        "/api/leads",
        "CreateLead",
        body="lead",
        headers=(("request_id", "Idempotency-Key"), _LOCALE),
        success=(201, 202),
    ),
    # No id holds a colon.
    Route("POST", "/api/leads:validate", "ValidateLead", body="lead", headers=(_LOCALE,)),
    Route("GET", "/api/leads", "ListLeads", barred=("email", "name_prefix")),
    # No id: those are UUIDs.
    Route("GET", "/api/leads/summary", "SummarizeLeads"),
    Route("GET", "/api/leads/{id}", "GetLead"),
    Route("DELETE", "/api/leads/{id}", "EraseLead", body=WHOLE),
    Route("POST", "/api/leads/{id}/status", "UpdateStatus", body=WHOLE),
    Route("GET", "/api/leads/{lead_id}/resubmissions", "ListResubmissions"),
    Route("GET", "/api/leads/{lead_id}/events", "ListLeadEvents"),
    # `path`: a conversation's id may hold a slash, as %2F.
    Route("GET", "/api/conversations/{conversation_id:path}/lead", "GetLeadByConversation"),
    # Identifiers are in the body: URLs are logged on the way.
    Route("POST", "/api/persons:find", "FindPerson", body=WHOLE),
    Route("POST", "/api/persons:export", "ExportPerson", body=WHOLE),
    Route("POST", "/api/persons:erase", "ErasePerson", body=WHOLE),
    Route("GET", "/api/accesses", "ListAccesses"),
)


class RouteForm:
    """A call at a route: JSON in and out, errors are problem details."""

    timeout = TIMEOUT

    def __init__(self, route: Route, optional: Collection[str]) -> None:
        """`optional`: the fields of a submission, by path, that cost no lead when they cannot be read."""
        self._route, self._optional = route, optional
        why = (
            "is customer data, and URLs are logged on the way: send it in the body of "
            f"POST /{SERVICE.full_name}/{route.rpc}"
        )
        self._barred = dict.fromkeys(route.barred, why)

    async def body(self, request: Request, headers: Mapping[str, str]) -> bytes:
        """The JSON object of the body, where the route has one."""
        if not self._route.body:
            return b""
        codings = headers.get("content-encoding", "").lower().split(",")
        if not {"", "identity"}.issuperset(map(str.strip, codings)):
            # RFC 9110, 12.5.3: the header names what would have been taken.
            detail = "send the body as it is, without Content-Encoding"
            raise HttpProblemError(415, detail, {"accept-encoding": "identity"})
        body = await body_within(request, headers, LARGEST_REQUEST)
        sent = headers.get("content-type", "")
        if body and (media_type(sent) != "application/json" or not is_utf8(sent)):
            # Also keeps other sites' forms out: a browser sends this type across sites only after asking.
            detail = "send the body as Content-Type: application/json, in UTF-8"
            raise HttpProblemError(415, detail, {"accept": "application/json"})
        return body

    def read(self, request: Request, headers: Mapping[str, str], body: bytes, message: Message) -> None:
        """The request in the contract's words."""
        message.MergeFrom(type(message)(**request.path_params))
        # Also beside a fault: it is explained to the customer in the language of the request.
        for name, header in self._route.headers:
            setattr(message, name, _unquoted(headers.get(header.lower(), "")))
        parameters = parse_query(request.scope["query_string"])
        query = [(name, _IN_QUERY.get(name, str)(value)) for name, value in parameters]
        # Only DELETE may go without a body.
        if body or self._route.verb == "POST":
            given = parse_object(body)
            inside = given.items() if self._route.body == WHOLE else [(self._route.body, given)]
            fill_from_json(message, inside, self._route.members, self._optional)
        fill(message, query, names=self._route.query, barred=self._barred, whole="query")

    def answer(self, call: Call, response: Message) -> Response:
        """The answer in JSON."""
        is_delayed = getattr(response, "state", pb.SAVE_STATE_SAVED) == pb.SAVE_STATE_DELAYED
        headers = call.trailers()
        if self._route.success[0] == 201:
            headers["location"] = f"{self._route.path}/{response.id}"  # type: ignore[attr-defined] # it made a thing
        return json_response(to_json(response), self._route.success[is_delayed], headers)

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """Problem details."""
        return failure_response(error, call.trailers())

    def refusal(self, problem: HttpProblemError) -> Response:
        """Problem details."""
        return problem.response()


def route_handler(route: Route, handle: Handler, optional: Collection[str]) -> HttpHandler:
    """The route as a function of the HTTP request."""
    form = RouteForm(route, optional)
    return http_handler(route.method, handle, lambda _content_type: form)


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(body, status, {**SAFE_HEADERS, **(headers or {})}, "application/json")


def _unquoted(value: str) -> str:
    """The Idempotency-Key draft of the IETF writes the key in quotes, most clients do not: both mean one key."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
