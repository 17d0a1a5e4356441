"""The application: what answers a request, by the path and method of its target (RFC 9112, 3.2) and its origin (CORS).

A path is split before it is decoded, so that `%2F` is a slash inside an id. A slash at its end means nothing. No other
path is taken for one that it resembles (two slashes, dots): a rule of a proxy for a path holds here, too.

A token is the only credential, and a page of another origin has to have it: cookies and client certificates are never
asked for, so that `Access-Control-Allow-Credentials` is never sent.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from urllib.parse import quote, unquote
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineTooShortError
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.rpc.call import Call
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
