"""A call over HTTP: the one way from a request to the chain and back, whatever its path and however it is written.

A path is split before it is decoded, so that `%2F` is a slash inside an id. A slash at its end means nothing. No other
path is taken for one that it resembles (two slashes, dots): a rule of a proxy for a path holds here, too.

A path of the story, Connect and gRPC-Web are forms of a call. A form decides nothing: what it cannot read becomes the
call's `fault`, which is shown only to callers who may make the call.

A token is the only credential, and a page of another origin (CORS) has to have it: cookies and client certificates are
never asked for, so that `Access-Control-Allow-Credentials` is never sent.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote
from uuid import uuid4

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineTooShortError, LeadkeepError, LeadValidationError, invalid
from service.http.json_codec import fill
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.lead import CUSTOMER_FIELDS, IDENTIFIERS
from service.rpc.call import Call, Handler, answer_by, joined
from service.rpc.interceptors import domain_error

HttpHandler = Callable[[Request], Awaitable[Response]]

ByMethod = Mapping[str, HttpHandler]

PREFLIGHT_SECONDS = 7200
"""For which a browser remembers what it may send; none remembers it longer."""

# A browser sends what a client library or an instrumentation adds only if it is allowed. `*` stands for all names but
# `authorization`; the others are named for browsers that do not know it.
_REQUEST_HEADERS = (
    "authorization, content-type, content-encoding, connect-protocol-version, connect-timeout-ms, grpc-timeout, "
    "grpc-encoding, grpc-accept-encoding, x-grpc-web, x-user-agent, x-request-id, leadkeep-reason, "
    "leadkeep-reason-bin, idempotency-key, request-timeout, *"
)

_ANSWER_HEADERS = (
    "x-request-id, leadkeep-retries, location, retry-after, www-authenticate, grpc-status, grpc-message, "
    "grpc-status-details-bin, trailer-x-request-id, trailer-leadkeep-retries, trailer-grpc-retry-pushback-ms"
)

# A host and a path. The host is not looked at: the service does not know by which names it is reached.
_ABSOLUTE = re.compile(r"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[^/@:\[\]]+)(?::[0-9]*)?(/.*)?")

_WHOLE_ENDPOINT = "*"

_OUTPUT_FIELDS = frozenset(f"lead.{name}" for name in pb.Lead.DESCRIPTOR.fields_by_name if name not in CUSTOMER_FIELDS)
"""Fields of a lead that a submission may carry, as a copy of an answer does, and that are ignored."""


Submission = pb.CreateLeadRequest | pb.ValidateLeadRequest
"""The requests whose lead is read as a new one, or as a part of it."""


@dataclass(frozen=True)
class Timeout:
    """The header that says how long a caller waits."""

    header: str
    pattern: re.Pattern[str]
    wanted: str
    """What a fault says about it."""
    read: Callable[[str], float]
    """The seconds of a value that fits the pattern."""

    def seconds(self, headers: Mapping[str, str]) -> float | None:
        """How long the caller waits; None without the header. Raises LeadValidationError for what is no time."""
        sent = headers.get(self.header.lower())
        if sent is None:
            return None
        if not self.pattern.fullmatch(sent):
            raise invalid(self.header, self.wanted)
        return self.read(sent)


class Form(Protocol):
    """How a call is written over HTTP. `headers` are those of a request by name, in lower case."""

    timeout: Timeout

    async def body(self, request: Request, headers: Mapping[str, str]) -> bytes:
        """The body. Must read no further than its limit, and raise HttpProblemError for what is not taken."""

    def read(self, request: Request, headers: Mapping[str, str], body: bytes, message: Message) -> None:
        """Fill the message of a request, as far as it can be read. Must raise LeadValidationError for what cannot."""

    def answer(self, call: Call, response: Message) -> Response:
        """The answer to a call that succeeded."""

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """The answer to a call that failed."""

    def refusal(self, problem: HttpProblemError) -> Response:
        """The answer to a request that is none of this form."""


def http_handler(method: MethodDescriptor, handle: Handler, form_of: Callable[[str], Form]) -> HttpHandler:
    """A method of the contract as a function of the HTTP request. `form_of`: the form of a Content-Type."""
    kind = message_factory.GetMessageClass(method.input_type)

    async def answer(request: Request) -> Response:
        headers = joined(request.headers.items())
        form = form_of(headers.get("content-type", ""))
        message, seconds = kind(), None
        fault: LeadkeepError | None = None
        try:
            seconds = form.timeout.seconds(headers)
        except LeadValidationError as error:
            fault = error
        # Counted from here: the caller waits while the body arrives, too.
        deadline = answer_by(seconds)
        try:
            form.read(request, headers, await form.body(request, headers), message)
        except LeadValidationError as error:
            fault = fault or error
        except HttpProblemError as problem:
            return form.refusal(problem)
        call = Call(
            rpc=method.name,
            transport="http",
            peer=":".join(map(str, request.scope["client"] or ())),
            metadata=headers,
            deadline=deadline,
            fault=fault,
        )
        try:
            return form.answer(call, await handle(call, message))
        except LeadkeepError as error:
            return form.failure(call, error)
        except HttpProblemError as problem:
            return form.refusal(problem)
        finally:
            request.state.connection.is_proven |= call.caller is not None

    return answer


async def body_within(request: Request, headers: Mapping[str, str], limit: int) -> bytes:
    """The body of a request, read no further than `limit` bytes. Raises HttpProblemError."""
    too_large = HttpProblemError(413, f"the body is longer than {limit} bytes")
    # The parser has checked that it is a number of at most 20 digits.
    if int(headers.get("content-length", "0")) > limit:
        raise too_large
    body, stream = bytearray(), request.stream()
    async for chunk in stream:
        body += chunk
        if len(body) > limit:
            # Else the collector closes it, in a task of its own that the end of the loop may be too early for.
            await stream.aclose()
            raise too_large
    return bytes(body)


def may_be_left_out(required: Collection[str]) -> Collection[str]:
    """The fields of a submission, by path, that cost no lead when they cannot be read.

    `required`: the fields without which there is no lead.
    """
    return frozenset(f"lead.{name}" for name in CUSTOMER_FIELDS if name not in {*required, *IDENTIFIERS})


def fill_from_json(
    message: Message, given: Iterable[tuple[str, object]], names: Collection[str], optional: Collection[str]
) -> None:
    """Set the fields of a request that a JSON body gives. Raises LeadValidationError.

    `optional`: what `may_be_left_out` of a submission.
    """
    if isinstance(message, Submission):
        fill(message, given, names=names, ignored=_OUTPUT_FIELDS, may_be_left_out=optional, whole="body")
    else:
        fill(message, given, names=names, whole="body")


class Paths:
    """Answers each request by its path and method."""

    def __init__(self, handlers: Mapping[str, ByMethod], allowed_origins: Collection[str] = ()) -> None:
        """`handlers` by path. One part of a path may be a parameter: `{id}`, or `{id:path}`, which may hold slashes.

        `allowed_origins`: pages of which origins a browser lets send requests and read the answers.
        """
        self._whole = handlers
        self._patterns = [(compile_path(path)[0], by_method) for path, by_method in handlers.items()]
        self._origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. No exception leaves it, so that no text of one reaches a caller or uvicorn's log."""
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except HttpProblemError as problem:
            response = problem.response()
        except ClientDisconnect:
            # Gone before the body was there: nothing was begun, and nobody receives an answer.
            return
        except asyncio.CancelledError:
            # Only the end of the grace at a stop cancels a request, and its work goes on: the outcome is not known.
            response = failure_response(DeadlineTooShortError(), {})
        except Exception as error:  # noqa: BLE001 # a fault of what reads the request and writes the answer
            call = Call(rpc="(outside of a call)", transport="http", peer="", metadata={}, deadline=math.inf)
            response = failure_response(domain_error(error, call, uuid4), {})
        if self._origins:
            self._add_cors(response, request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method == "CONNECT":
            raise HttpProblemError(501, "this is no proxy: it opens no tunnel", {"connection": "close"})
        path = _path(request.method, request.scope["raw_path"].decode("ascii"))
        by_method = self._of_endpoint() if path == _WHOLE_ENDPOINT else self._at(path, request)
        # uvicorn sends the head of a GET's answer to HEAD.
        handler = by_method.get("GET" if request.method == "HEAD" else request.method)
        if handler is not None:
            return await handler(request)
        allowed = ", ".join([*by_method, *(["HEAD"] if "GET" in by_method else []), "OPTIONS"])
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={**SAFE_HEADERS, "allow": allowed})
        raise HttpProblemError(405, f"this path answers only: {allowed}", {"allow": allowed})

    def _at(self, path: str, request: Request) -> ByMethod:
        path = path.removesuffix("/")
        # Paths without parameters are found at once.
        if "{" not in path and (by_method := self._whole.get(path)) is not None:
            return by_method
        path = _normal(path)
        for pattern, by_method in self._patterns:
            if (found := pattern.fullmatch(path)) and all(found.groups()):
                request.scope["path_params"] = {name: unquote(value) for name, value in found.groupdict().items()}
                return by_method
        raise HttpProblemError(404, "there is nothing at this path; see /openapi.json")

    def _of_endpoint(self) -> ByMethod:
        return {method: by_method[method] for by_method in self._whole.values() for method in by_method}

    def _add_cors(self, response: Response, request: Request) -> None:
        response.headers.add_vary_header("Origin")
        sent = request.headers.getlist("origin")
        if len(sent) != 1 or sent[0] not in self._origins:
            return
        response.headers["access-control-allow-origin"] = sent[0]
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            response.headers["access-control-allow-methods"] = response.headers.get("allow", "")
            response.headers["access-control-allow-headers"] = _REQUEST_HEADERS
            response.headers["access-control-max-age"] = str(PREFLIGHT_SECONDS)
        else:
            response.headers["access-control-expose-headers"] = _ANSWER_HEADERS


def _path(method: str, target: str) -> str:
    """The path of a target in any form, not decoded; `*` for the endpoint as a whole. Raises HttpProblemError."""
    if target.startswith("/"):
        return target
    if absolute := _ABSOLUTE.fullmatch(target):
        return absolute[1] or (_WHOLE_ENDPOINT if method == "OPTIONS" else "/")
    if target == _WHOLE_ENDPOINT and method == "OPTIONS":
        return target
    raise HttpProblemError(400, "the request's target must be a path, or an http:// or https:// URL without a user")


def _normal(path: str) -> str:
    """The path with nothing percent-encoded that need not be."""
    try:
        return "/".join(quote(unquote(part, errors="strict"), safe=":") for part in path.split("/"))
    except UnicodeDecodeError:
        raise HttpProblemError(400, "the path must be percent-encoded UTF-8") from None
