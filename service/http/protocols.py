"""Connect and gRPC-Web: every rpc at `/package.Service/Rpc`, in binary protobuf and in JSON.

connectrpc.com/docs/protocol and PROTOCOL-WEB.md of gRPC define both. Here: one message each way, no GET, requests as
they are or in gzip, answers as they are. A method that streams is at no path, which clients of both report as
`unimplemented`.
"""

from __future__ import annotations

import binascii
import re
import struct
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from functools import partial
from urllib.parse import quote

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from starlette.requests import Request
from starlette.responses import Response

from service.errors import LeadkeepError, invalid
from service.http.calls import Form, HttpHandler, Timeout, body_within, fill_from_json, http_handler
from service.http.json_codec import encoded, is_utf8, media_type, parse_object, to_json
from service.http.problems import HTTP_STATUS, SAFE_HEADERS, HttpProblemError, headers_of
from service.rpc.call import LARGEST_REQUEST, Call, Handler, decode
from service.rpc.status import pushback, status_of

STATUS_DETAILS = "grpc-status-details-bin"

ENVELOPE = struct.Struct(">BI")
"""Before each message of gRPC-Web: its flags and its length."""

COMPRESSED, TRAILERS = 0x01, 0x80
"""Flags of an envelope."""

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""Of each unit in grpc-timeout."""

_GZIP = 16 + zlib.MAX_WBITS

_CODE_OF = {404: code_pb2.NOT_FOUND, 413: code_pb2.RESOURCE_EXHAUSTED, 415: code_pb2.UNIMPLEMENTED}
"""What both protocols call an error that is none of the contract."""

CONNECT_CODE = {number: name.lower() for name, number in code_pb2.Code.items()} | {code_pb2.CANCELLED: "canceled"}

_MESSAGE_CHARACTERS = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What grpc-message holds as it is."""


_Codec = tuple[Callable[[bytes, Message], None], Callable[[Message], bytes]]
"""What reads a message, and what writes one."""


def rpc_paths(
    service: ServiceDescriptor, methods: Mapping[str, Handler], optional: Collection[str] = ()
) -> dict[str, dict[str, HttpHandler]]:
    """The path of each of the methods of a service, unless it streams.

    `optional`: the fields of a submission, by path, that cost no lead when they cannot be read.
    """
    forms = _forms(optional)

    def form_of(sent: str) -> Form:
        form = forms.get(kind := media_type(sent))
        if form is None or (kind.endswith("json") and not is_utf8(sent)):
            # Browsers send none of these across sites without asking, which keeps other sites' forms out.
            taken = ", ".join(forms)
            raise HttpProblemError(415, f"the Content-Type must be one of: {taken}", {"accept-post": taken})
        return form

    return {
        f"/{service.full_name}/{method.name}": {"POST": http_handler(method, methods[method.name], form_of)}
        for method in service.methods
        if method.name in methods and not method.client_streaming and not method.server_streaming
    }


def _forms(optional: Collection[str]) -> dict[str, Form]:
    proto: _Codec = (decode, lambda message: message.SerializeToString())
    json: _Codec = (partial(_read_json, optional), to_json)
    return {
        "application/proto": Connect("application/proto", proto),
        "application/json": Connect("application/json", json),
        "application/grpc-web": GrpcWeb("application/grpc-web+proto", proto),
        "application/grpc-web+proto": GrpcWeb("application/grpc-web+proto", proto),
        "application/grpc-web+json": GrpcWeb("application/grpc-web+json", json),
        "application/grpc-web-text": GrpcWeb("application/grpc-web-text+proto", proto, is_text=True),
        "application/grpc-web-text+proto": GrpcWeb("application/grpc-web-text+proto", proto, is_text=True),
    }


def _read_json(optional: Collection[str], body: bytes, message: Message) -> None:
    fill_from_json(message, parse_object(body).items(), message.DESCRIPTOR.fields_by_name, optional)


class _RpcForm:
    """What the forms of both protocols have in common."""

    coding, accepted_codings = "content-encoding", "accept-encoding"
    """The headers that name a request's compression, and which ones are taken."""

    def __init__(self, content_type: str, codec: _Codec) -> None:
        self._content_type, (self._read, self._write) = content_type, codec
        self._longest = LARGEST_REQUEST

    async def body(self, request: Request, headers: Mapping[str, str]) -> bytes:
        """The body, perhaps in gzip."""
        if self.coding_of(headers) not in ("identity", "gzip", ""):
            detail = "the request's compression is not known; send it as it is or in gzip"
            raise HttpProblemError(415, detail, {self.accepted_codings: "gzip"})
        return await body_within(request, headers, self._longest)

    def coding_of(self, headers: Mapping[str, str]) -> str:
        """The compression of a request."""
        return headers.get(self.coding, "identity").strip().lower()


class Connect(_RpcForm):
    """A unary call in Connect: the body is the message, trailing metadata are headers called `trailer-…`."""

    timeout = Timeout(
        "Connect-Timeout-Ms",
        re.compile("[0-9]{1,10}"),
        "must be a whole number of milliseconds of at most 10 digits",
        lambda sent: int(sent) / 1000,
    )

    def read(self, _request: Request, headers: Mapping[str, str], body: bytes, message: Message) -> None:
        """The message."""
        if headers.get("connect-protocol-version", "1") != "1":
            raise invalid("Connect-Protocol-Version", "must be 1")
        self._read(inflated(body) if self.coding_of(headers) == "gzip" else body, message)

    def answer(self, call: Call, response: Message) -> Response:
        """The message of the answer."""
        return Response(self._write(response), 200, {**SAFE_HEADERS, **_trailing(call.trailers())}, self._content_type)

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """The error with its details."""
        return self._error(status_of(error), headers_of(error) | _trailing(_error_trailers(call, error)))

    def refusal(self, problem: HttpProblemError) -> Response:
        """An error without details: it is none of the contract."""
        return self._error(_status_of_problem(problem), problem.headers)

    def _error(self, status: status_pb2.Status, headers: Mapping[str, str]) -> Response:
        content = {
            "code": CONNECT_CODE[status.code],
            "message": status.message,
            "details": [{"type": detail.TypeName(), "value": _base64(detail.value)} for detail in status.details],
        }
        return Response(encoded(content), HTTP_STATUS[status.code], {**SAFE_HEADERS, **headers}, "application/json")


class GrpcWeb(_RpcForm):
    """A unary call in gRPC-Web: an envelope with the message, and in the answer one with status and trailers.

    The answer's HTTP status is 200, whatever the call's. `is_text`: the bodies are the base64 of it.
    """

    coding, accepted_codings = "grpc-encoding", "grpc-accept-encoding"
    timeout = Timeout(
        "grpc-timeout",
        re.compile("[0-9]{1,8}[HMSmun]"),
        "must be at most 8 digits and a unit: one of H, M, S, m, u, n",
        lambda sent: int(sent[:-1]) * _SECONDS[sent[-1]],
    )

    def __init__(self, content_type: str, codec: _Codec, *, is_text: bool = False) -> None:
        super().__init__(content_type, codec)
        longest = LARGEST_REQUEST + ENVELOPE.size
        self._is_text, self._longest = is_text, (longest + 2) // 3 * 4 if is_text else longest

    def read(self, _request: Request, headers: Mapping[str, str], body: bytes, message: Message) -> None:
        """The message in its envelope."""
        body = _from_base64(body) if self._is_text else body
        self._read(_only_message(body, self.coding_of(headers)), message)

    def answer(self, call: Call, response: Message) -> Response:
        """The message of the answer, and its status."""
        return self._response(self._write(response), status_pb2.Status(), call.trailers())

    def failure(self, call: Call, error: LeadkeepError) -> Response:
        """The error with its details."""
        return self._response(None, status_of(error), _error_trailers(call, error))

    def refusal(self, problem: HttpProblemError) -> Response:
        """An error without details: it is none of the contract."""
        return self._response(None, _status_of_problem(problem), problem.headers)

    def _response(self, message: bytes | None, status: status_pb2.Status, trailers: Mapping[str, str]) -> Response:
        said = {"grpc-status": str(status.code), **trailers}
        if status.code:
            said["grpc-message"] = quote(status.message, safe=_MESSAGE_CHARACTERS)
        if status.details:
            said[STATUS_DETAILS] = _base64(status.SerializeToString())
        block = "".join(f"{name}: {value}\r\n" for name, value in said.items()).encode("ascii")
        body = (b"" if message is None else enveloped(message)) + enveloped(block, TRAILERS)
        return Response(b64encode(body) if self._is_text else body, 200, SAFE_HEADERS, self._content_type)


def enveloped(message: bytes, flags: int = 0) -> bytes:
    """A message, or the trailers, as gRPC-Web sends it. Any number of them may follow each other."""
    return ENVELOPE.pack(flags, len(message)) + message


def _only_message(body: bytes, coding: str) -> bytes:
    """The message of a unary request. Raises LeadValidationError, and HttpProblemError for none or several messages."""
    flags, length = ENVELOPE.unpack_from(body.ljust(ENVELOPE.size, b"\0"))
    message = body[ENVELOPE.size :]
    if not body or len(message) > length:
        # gRPC's own word for it is UNIMPLEMENTED.
        raise HttpProblemError(415, "send one envelope: each rpc takes one message")
    if len(body) < ENVELOPE.size or len(message) < length:
        raise invalid("request", "must be one envelope, whose length is that of the message behind it")
    if flags == COMPRESSED and coding == "gzip":
        return inflated(message)
    if flags:
        raise invalid("request", "has flags on its envelope that mean nothing here")
    return message


def inflated(body: bytes) -> bytes:
    """What a body in gzip holds. Raises LeadValidationError, and HttpProblemError for more than a request may be."""
    if not body:
        # Clients may announce gzip and leave an empty message as it is; Connect forbids to decompress it.
        return b""
    inflater = zlib.decompressobj(_GZIP)
    try:
        # No further than one byte beyond the limit, whatever the body would become.
        content = inflater.decompress(body, LARGEST_REQUEST + 1)
    except zlib.error:
        raise invalid("request", "is not gzip, as its headers have it") from None
    if len(content) > LARGEST_REQUEST:
        raise HttpProblemError(413, f"the body is longer than {LARGEST_REQUEST} bytes when it is decompressed")
    if not inflater.eof or inflater.unused_data:
        raise invalid("request", "must be one whole member of gzip")
    return content


def _from_base64(body: bytes) -> bytes:
    try:
        return binascii.a2b_base64(body, strict_mode=True)
    except binascii.Error:
        raise invalid("request", "must be base64 without line breaks") from None


def _base64(content: bytes) -> str:
    """Without padding, as both protocols prefer it."""
    return b64encode(content).rstrip(b"=").decode()


def _status_of_problem(problem: HttpProblemError) -> status_pb2.Status:
    return status_pb2.Status(code=_CODE_OF[problem.status], message=problem.detail)


def _error_trailers(call: Call, error: LeadkeepError) -> dict[str, str]:
    return call.trailers() | pushback(error, call.deadline - time.monotonic())


def _trailing(trailers: Mapping[str, str]) -> dict[str, str]:
    return {f"trailer-{name}": value for name, value in trailers.items()}
