"""CORS: pages of which other origins a browser lets call the HTTP endpoint.

A token is the only credential, and a page has to have it: cookies and client certificates are never asked for, so that
`Access-Control-Allow-Credentials` is never sent.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request
from starlette.responses import Response

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


class Cors:
    """Adds what lets pages of the listed origins read an answer, and send a request."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def add_to(self, response: Response, request: Request) -> None:
        """Add it where origins are listed; what depends on the Origin says so to caches."""
        if not self._origins:
            return
        response.headers.add_vary_header("Origin")
        sent = request.headers.getlist("origin")
        if len(sent) != 1 or sent[0] not in self._origins:
            return
        response.headers["access-control-allow-origin"] = sent[0]
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            response.headers.update(
                {
                    "access-control-allow-methods": response.headers.get("allow", ""),
                    "access-control-allow-headers": _REQUEST_HEADERS,
                    "access-control-max-age": str(PREFLIGHT_SECONDS),
                }
            )
        else:
            response.headers["access-control-expose-headers"] = _ANSWER_HEADERS
