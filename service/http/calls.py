"""A call over HTTP: the one way from a request to the chain and back, however the call is written.

A path of the story, Connect and gRPC-Web are forms of it. A form decides nothing: what it cannot read becomes the
call's `fault`, which is shown only to callers who may make the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from leadkeep.v1 import lead_service_pb2 as pb
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError, LeadValidationError, Violation
from service.http.json_codec import fill
from service.http.paths import HttpHandler
from service.http.problems import HttpProblemError
from service.lead import CUSTOMER_FIELDS, IDENTIFIERS
from service.rpc.call import Call, Handler, answer_by, joined

_OUTPUT_FIELDS = frozenset(f"lead.{name}" for name in pb.Lead.DESCRIPTOR.fields_by_name if name not in CUSTOMER_FIELDS)
"""Fields of a lead that a submission may carry, as a copy of an answer does, and that are ignored."""


Submission = pb.CreateLeadRequest | pb.ValidateLeadRequest
"""The requests whose lead is read as a new one, or as a part of it."""


class Form(Protocol):
    """How a call is written over HTTP."""

    def seconds(self, request: Request) -> float | None:
        """How long the caller waits, None where it did not say. Must raise LeadValidationError for what is no time."""

    async def body(self, request: Request) -> bytes:
        """The body. Must read no further than its limit, and raise HttpProblemError for what is not taken."""

    def read(self, request: Request, body: bytes, message: Message) -> None:
        """Fill the message of a request, as far as it can be read. Must raise LeadValidationError for what cannot."""

    def answer(self, call: Call, response: Message) -> Response:
        """The answer to a call that succeeded."""

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """The answer to a call that failed."""

    def refusal(self, problem: HttpProblemError) -> Response:
        """The answer to a request that is none of this form."""


def http_handler(method: MethodDescriptor, handle: Handler, form_of: Callable[[Request], Form]) -> HttpHandler:
    """A method of the contract as a function of the HTTP request."""
    kind = message_factory.GetMessageClass(method.input_type)

    async def answer(request: Request) -> Response:
        form = form_of(request)
        message, seconds = kind(), None
        fault: LeadkeepError | None = None
        try:
            seconds = form.seconds(request)
        except LeadValidationError as error:
            fault = error
        # Counted from here: the caller waits while the body arrives, too.
        deadline = answer_by(seconds)
        try:
            form.read(request, await form.body(request), message)
        except HttpProblemError as problem:
            return form.refusal(problem)
        except LeadValidationError as error:
            fault = fault or error
        call = Call(
            rpc=method.name,
            transport="http",
            peer=f"{request.client.host}:{request.client.port}" if request.client else "",
            metadata=joined(request.headers.items()),
            deadline=deadline,
            fault=fault,
        )
        try:
            response = await handle(call, message)
        except LeadkeepError as error:
            return form.failure(call, error)
        except HttpProblemError as problem:
            return form.refusal(problem)
        finally:
            request.state.connection.is_proven |= call.caller is not None
        return form.answer(call, response)

    return answer


def given_time(request: Request, header: str, pattern: re.Pattern[str], wanted: str) -> re.Match[str] | None:
    """How long the caller waits, by a header; None without it. Raises LeadValidationError, which says `wanted`."""
    sent = request.headers.get(header)
    if sent is None:
        return None
    found = pattern.fullmatch(sent)
    if found is None:
        raise LeadValidationError([Violation(header, wanted)])
    return found


async def body_within(request: Request, limit: int) -> bytes:
    """The body of a request, read no further than `limit` bytes. Raises HttpProblemError."""
    too_large = HttpProblemError(413, f"the body is longer than {limit} bytes")
    # The parser has checked that it is a number of at most 20 digits.
    if int(request.headers.get("content-length", "0")) > limit:
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
