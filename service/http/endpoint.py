"""The HTTP endpoint: a socket, TLS, the paths, and uvicorn in the loop of the process.

uvicorn is kept from logging what callers send, from waiting for a caller without end, and from handling signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import h11
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import DeadlineTooShortError, LeadkeepError, StartRefusedError
from service.http.json_codec import encoded
from service.http.openapi import document
from service.http.problems import MEDIA_TYPE, SAFE_HEADERS, HttpProblemError, failure_response
from service.http.routes import OPERATIONS, HttpHandler, Resource, http_handler_of, json_response
from service.rpc.call import Call, Handler
from service.rpc.interceptors import errors
from service.rpc.readiness import Readiness
from service.rpc.tls_files import TlsFiles

LARGEST_HEAD = 16 * 1024
"""Bytes of a request's line and headers. A token is at most 8 kB."""

ARRIVAL_PATIENCE = 10.0
"""Seconds between two checks of a connection: a request that has not arrived in full at the second check is given up. A
caller on a poor line sends the largest request in half of that."""

# uvicorn prints the exceptions that reach it, and their texts may hold values. What can fail is caught and logged
# before, without texts.
_SILENT = logging.Logger("leadkeep.http.silent", logging.CRITICAL + 1)

BACKLOG = 1024
"""Connections that the kernel keeps while the loop is busy."""

MOST_CONNECTIONS = 1000
"""Beyond it requests are refused with 503, so that slow bodies cannot take more than 256 MB of memory."""

CUT_SECONDS = 1.0
"""For requests whose connection was cut to end."""

KEEP_ALIVE = 30
"""Seconds for which a quiet connection stays open: chatbots keep a pool of them."""


class HttpEndpoint:
    """The HTTP endpoint of the chain's methods. Bound from the start, it answers after `start()`."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        *,
        host: str,
        port: int,
        tls: TlsFiles | None,
        readiness: Readiness,
        registry: CollectorRegistry,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        """Raises StartRefusedError when the address cannot be used."""
        context = _RenewedContext(ssl.PROTOCOL_TLS_SERVER, tls) if tls else None
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._config = Config(
            _Guard(_paths(methods, readiness, registry), new_id),
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # A header must not say where a call comes from: callers write headers, too.
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEAD,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            backlog=BACKLOG,
            ssl_context_factory=(lambda _config, _default: context) if context else None,
        )
        self._server = UvicornServer(self._config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110 # uvicorn has no event for it
            await asyncio.sleep(0.01)
        if self._serving.done():
            await self._serving

    async def run(self) -> None:
        """Wait for the end of the serving. What ended it by a fault is raised, again each time this is called."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def stop(self, grace: float) -> None:
        """Take no new requests and wait at most `grace` seconds for those that run."""
        if self._serving is None:
            self._socket.close()
            return
        self._config.timeout_graceful_shutdown = grace  # type: ignore[assignment] # asyncio takes fractions
        self._server.should_exit = True
        await asyncio.wait({self._serving})
        # uvicorn has cancelled what still ran, and waits in it for callers that do not read.
        left = self._server.server_state
        for connection in list(left.connections):
            connection.transport.abort()
        if left.tasks:
            await asyncio.wait(left.tasks, timeout=CUT_SECONDS)


class UvicornServer(Server):
    """uvicorn's server inside a process that handles its signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals to the process."""
        yield


class _Connection(H11Protocol):
    """One connection; a request that does not arrive in time ends it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _SILENT
        self._arriving: object = None
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to check whether its requests arrive."""
        super().connection_made(transport)
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the checks."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 # uvicorn's text is for people only
        """Refuse what is no HTTP, in the form of every other error."""
        # Once an answer has begun, another would raise, and asyncio would print what h11 could not read.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            detail = f"this is not a valid HTTP request, or its head is longer than {LARGEST_HEAD} bytes"
            body = HttpProblemError(400, detail).body
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            # A request that broke off half-way has its answer now; what reads it must not send a second one.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _check(self) -> None:
        # Between two requests uvicorn's keep-alive timer has the watch.
        waiting = self.timeout_keep_alive_task is None and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        arriving = (self.cycle, self.conn.their_state) if waiting else None
        if arriving is not None and arriving == self._arriving:
            self.transport.close()
            return
        self._arriving = arriving
        self._watch = self.loop.call_later(ARRIVAL_PATIENCE, self._check)


class _Guard:
    """Outermost: no exception leaves it, so that no text of one reaches a caller or uvicorn's log."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], UUID]) -> None:
        self._app = app
        self._errors = errors(new_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def serve(_call: Call, request: Message) -> Message:
            await self._app(scope, receive, send)
            return request

        # h11 bounds only what it waits for: a longer head that arrives at once passes it.
        if _head_size(scope) > LARGEST_HEAD:
            response = HttpProblemError(431, f"the head is longer than {LARGEST_HEAD} bytes").response()
            await response(scope, receive, send)
            return
        call = Call(rpc="(outside of a call)", transport="http", peer="", metadata={}, deadline=math.inf)
        try:
            # The chain's own interceptor: an incident is logged and answered in one way only.
            await self._errors(call, Empty(), serve)
        except LeadkeepError as error:
            await failure_response(error, {})(scope, receive, send)
        except asyncio.CancelledError:
            # Only the end of the grace at a stop cancels a request, and its work goes on: the outcome is not known.
            await failure_response(DeadlineTooShortError(), {})(scope, receive, send)


def _head_size(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope["raw_path"]) + len(scope["query_string"])


def _paths(methods: Mapping[str, Handler], readiness: Readiness, registry: CollectorRegistry) -> Router:
    paths: dict[str, dict[str, HttpHandler]] = {}
    for operation in OPERATIONS:
        # The story's path ends with a slash. No path means something else with or without one.
        for path in (operation.path, f"{operation.path}/"):
            paths.setdefault(path, {})[operation.method] = http_handler_of(operation, methods[operation.rpc])
    described = encoded(document())

    async def alive(_request: Request) -> Response:
        return json_response(encoded({"alive": True}))

    async def ready(_request: Request) -> Response:
        state = {"ready": readiness.ready, "degraded": readiness.degraded, "reasons": list(readiness.reasons)}
        return json_response(encoded(state), 200 if readiness.ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), headers={**SAFE_HEADERS, "content-type": CONTENT_TYPE_LATEST})

    async def openapi(_request: Request) -> Response:
        return json_response(described)

    open_to_all = {"/healthz": alive, "/readyz": ready, "/metrics": metrics, "/openapi.json": openapi}
    for path, answer in open_to_all.items():
        paths[path] = {"GET": answer}
    return Router(
        [Route(path, Resource(by_method)) for path, by_method in paths.items()],
        redirect_slashes=False,
        default=_not_found,
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await HttpProblemError(404, "there is nothing at this path; see /openapi.json").response()(scope, receive, send)


def _bound(host: str, port: int) -> socket.socket:
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = resolved[0]
        # Only a listening socket keeps a second service from the port.
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6)
    except (OSError, ValueError):  # ValueError: this machine has no IPv6
        raise StartRefusedError(
            f"{host} port {port} cannot be used for HTTP: another program has it, or it is not an address of this "
            "machine. Set LEADKEEP_HTTP_ADDRESS"
        ) from None


class _RenewedContext(ssl.SSLContext):
    """Makes each new connection from the TLS files in use.

    Exchanging the context in the SNI callback is not enough: a session that the old context began would be resumed,
    whatever authority the new one trusts.
    """

    def __init__(self, _protocol: int, tls: TlsFiles) -> None:
        self._tls = tls

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection; asyncio and uvloop call it for each."""
        return self._tls.current.http.wrap_bio(*arguments, **options)
