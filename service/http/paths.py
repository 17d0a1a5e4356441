"""Paths: which handler answers the target of a request (RFC 9112, 3.2).

A path is split before it is decoded, so that `%2F` is a slash inside an id. A slash at its end means nothing. No other
path is taken for one that it resembles (two slashes, dots): a rule of a proxy for a path holds here, too.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from service.http.problems import SAFE_HEADERS, HttpProblemError

HttpHandler = Callable[[Request], Awaitable[Response]]

ByMethod = Mapping[str, HttpHandler]

# A host and a path. The host is not looked at: the service does not know by which names it is reached.
_ABSOLUTE = re.compile(r"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[^/@:\[\]]+)(?::[0-9]*)?(/.*)?")

_WHOLE_ENDPOINT = "*"


class Paths:
    """Answers each request by its path and method."""

    def __init__(self, handlers: Mapping[str, ByMethod]) -> None:
        """`handlers` by path. One part of a path may be a parameter: `{id}`, or `{id:path}`, which may hold slashes."""
        self._whole = handlers
        self._handlers = [(path[1:].split("/"), by_method) for path, by_method in handlers.items()]

    async def answer(self, request: Request) -> Response:
        """The answer to a request. Raises HttpProblemError when nothing answers it."""
        if request.method == "CONNECT":
            raise HttpProblemError(501, "this is no proxy: it opens no tunnel", {"connection": "close"})
        path = _path(request.method, request.scope["raw_path"].decode("ascii"))
        by_method = self._of_endpoint() if path == _WHOLE_ENDPOINT else self._at(path, request)
        allowed = ", ".join([*by_method, *(["HEAD"] if "GET" in by_method else []), "OPTIONS"])
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={**SAFE_HEADERS, "allow": allowed})
        # uvicorn sends the head of a GET's answer to HEAD.
        handler = by_method.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise HttpProblemError(405, f"this path answers only: {allowed}", {"allow": allowed})
        return await handler(request)

    def _at(self, path: str, request: Request) -> ByMethod:
        # The path of a call in Connect is found at once.
        if (by_method := self._whole.get(path)) is not None and "{" not in path:
            return by_method
        given = _decoded(path.removesuffix("/")[1:].split("/"))
        for parts, by_method in self._handlers:
            parameters = _parameters(parts, given)
            if parameters is not None:
                request.scope["path_params"] = parameters
                return by_method
        raise HttpProblemError(404, "there is nothing at this path; see /openapi.json")

    def _of_endpoint(self) -> ByMethod:
        return {method: by_method[method] for _, by_method in self._handlers for method in by_method}


def _path(method: str, target: str) -> str:
    """The path of a target in any form, not decoded; `*` for the endpoint as a whole. Raises HttpProblemError."""
    if target.startswith("/"):
        return target
    if absolute := _ABSOLUTE.fullmatch(target):
        return absolute[1] or (_WHOLE_ENDPOINT if method == "OPTIONS" else "/")
    if target == _WHOLE_ENDPOINT and method == "OPTIONS":
        return target
    raise HttpProblemError(400, "the request's target must be a path, or an http:// or https:// URL without a user")


def _decoded(parts: Iterable[str]) -> list[str]:
    try:
        return [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        raise HttpProblemError(400, "the path must be percent-encoded UTF-8") from None


def _parameters(wanted: Sequence[str], given: Sequence[str]) -> dict[str, str] | None:
    """The parameter of a path, or none, by name; None when the path is another one."""
    at = next((index for index, part in enumerate(wanted) if part.startswith("{")), None)
    if at is None:
        return {} if wanted == given else None
    behind = len(given) - (len(wanted) - at - 1)
    if given[:at] != wanted[:at] or given[behind:] != wanted[at + 1 :]:
        return None
    name, _, kind = wanted[at].strip("{}").partition(":")
    value = "/".join(given[at:behind])
    return {name: value} if value and (kind == "path" or behind == at + 1) else None
