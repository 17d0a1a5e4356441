"""A call over HTTP: the one way from a request to the chain and back, however the call is written.

A path of the story, Connect and gRPC-Web are forms of it. A form decides nothing: what it cannot read becomes the
call's `fault`, which is shown only to callers who may make the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError, LeadValidationError, invalid
from service.http.json_codec import fill
from service.http.paths import HttpHandler
from service.http.problems import HttpProblemError
from service.lead import CUSTOMER_FIELDS, IDENTIFIERS
from service.rpc.call import Call, Handler, answer_by, joined

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

    async def called(request: Request, headers: Mapping[str, str], form: Form) -> Response:
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
        finally:
            request.state.connection.is_proven |= call.caller is not None

    async def answer(request: Request) -> Response:
        headers = joined(request.headers.items())
        form = form_of(headers.get("content-type", ""))
        try:
            return await called(request, headers, form)
        except HttpProblemError as problem:
            return form.refusal(problem)

    return answer


async def body_within(request: Request, headers: Mapping[str, str], limit: int) -> bytes:
    """The body of a request, read no further than `limit` bytes. Raises HttpProblemError."""
    too_large = HttpProblemError(413, f"the body is longer than {limit} bytes")
    # The parser has checked that it is a number of at most 20 digits.
    if int(headers.get("content-length", "0")) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
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
