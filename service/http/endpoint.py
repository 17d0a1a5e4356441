"""The HTTP endpoint: a socket, TLS, the paths, and uvicorn in the loop of the process.

uvicorn is kept from logging what callers send, from waiting for a caller without end, and from handling signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn import Config, Server

from service.errors import DeadlineTooShortError, LeadkeepError, StartRefusedError
from service.http.calls import may_be_left_out
from service.http.connections import LARGEST_HEAD, HttpConnection, HttpConnections
from service.http.cors import Cors
from service.http.json_codec import encoded
from service.http.openapi import described
from service.http.paths import HttpHandler, Paths
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.http.protocols import rpc_paths
from service.http.routes import ROUTES, json_response, route_handler
from service.lead import REQUIRED_FIELDS
from service.rpc.call import SERVICE, Call, Handler
from service.rpc.interceptors import errors
from service.rpc.limits import DEFAULT, Limits, Refusals
from service.rpc.readiness import Readiness
from service.rpc.tls_files import TlsFiles

BACKLOG = 1024
"""Connections that the kernel keeps while the loop is busy."""

OPS_LIMITS = Limits(connections=64, connections_of_peer=64)
"""Probes and scrapers: one or two connections each."""

CUT_SECONDS = 1.0
"""For requests whose connection was cut to end."""

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

KEEP_ALIVE = 30
"""Seconds for which a quiet connection stays open: chatbots keep a pool of them."""


class HttpEndpoint:
    """An HTTP endpoint: of the chain's methods, health and metrics, or without `methods` of the last two alone.

    Bound from the start, it answers after `start()`.
    """

    def __init__(
        self,
        methods: Mapping[str, Handler] | None,
        *,
        host: str,
        port: int,
        tls: TlsFiles | None,
        readiness: Readiness,
        registry: CollectorRegistry,
        required: Collection[str] = REQUIRED_FIELDS,
        allowed_origins: Collection[str] = (),
        setting: str = "LEADKEEP_HTTP_ADDRESS",
        limits: Limits = DEFAULT,
        refusals: Refusals | None = None,
    ) -> None:
        """`required`: the fields without which there is no lead; `allowed_origins`: whose pages may call it.

        Raises StartRefusedError, which names `setting`, when the address cannot be used.
        """
        context = _RenewedContext(ssl.PROTOCOL_TLS_SERVER, tls) if tls else None
        self._socket = _bound(host, port, setting)
        self.port: int = self._socket.getsockname()[1]
        self._config = Config(
            _Guard(_paths(methods, readiness, registry, required), Cors(allowed_origins)),
            http=partial(HttpConnection, HttpConnections(limits, refusals or Refusals())),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # A header must not say where a call comes from: callers write headers, too.
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEAD,
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


class _Guard:
    """Outermost: no exception leaves it, so that no text of one reaches a caller or uvicorn's log."""

    def __init__(self, paths: Paths, cors: Cors) -> None:
        self._paths, self._cors = paths, cors
        self._errors = errors(uuid4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)

        async def respond(response: Response) -> None:
            self._cors.add_to(response, request)
            await response(scope, receive, send)

        async def serve(_call: Call, message: Message) -> Message:
            try:
                _check_head(scope)
                response = await self._paths.answer(request)
            except HttpProblemError as problem:
                response = problem.response()
            except ClientDisconnect:
                # Gone before the body was there: nothing was begun, and nobody receives an answer.
                return message
            await respond(response)
            return message

        call = Call(rpc="(outside of a call)", transport="http", peer="", metadata={}, deadline=math.inf)
        try:
            # The chain's own interceptor: an incident is logged and answered in one way only.
            await self._errors(call, Empty(), serve)
        except LeadkeepError as error:
            await respond(failure_response(error, {}))
        except asyncio.CancelledError:
            # Only the end of the grace at a stop cancels a request, and its work goes on: the outcome is not known.
            await respond(failure_response(DeadlineTooShortError(), {}))


def _check_head(scope: Scope) -> None:
    """Refuse a head that h11 lets pass. Raises HttpProblemError."""
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    # h11 bounds only what it waits for: a longer head that arrives at once passes it.
    if fields + len(scope["raw_path"]) + len(scope["query_string"]) > LARGEST_HEAD:
        raise HttpProblemError(431, f"the head is longer than {LARGEST_HEAD} bytes")
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        # What stands between caller and service may have read another length (RFC 9112, 6.1).
        raise HttpProblemError(400, "send Content-Length or Transfer-Encoding, not both", {"connection": "close"})


def _paths(
    methods: Mapping[str, Handler] | None, readiness: Readiness, registry: CollectorRegistry, required: Collection[str]
) -> Paths:
    paths = _operators_paths(readiness, registry)
    if methods is not None:
        document = described(required)

        async def openapi(_request: Request) -> Response:
            return json_response(document)

        paths["/openapi.json"] = {"GET": openapi}
        optional = may_be_left_out(required)
        for route in ROUTES:
            paths.setdefault(route.path, {})[route.verb] = route_handler(route, methods[route.rpc], optional)
        paths |= rpc_paths(SERVICE, methods, optional)
        paths |= rpc_paths(_HEALTH, {"Check": _health(readiness)})  # type: ignore[arg-type] # as its stubs have it
    return Paths(paths)


def _health(readiness: Readiness) -> Handler:
    """Health.Check without a token, as the gRPC endpoint answers it."""

    async def check(_call: Call, request: Message) -> Message:
        if request.service not in ("", SERVICE.full_name):  # type: ignore[attr-defined] # it is a HealthCheckRequest
            raise HttpProblemError(404, "there is no service of this name")
        answers = health_pb2.HealthCheckResponse
        return answers(status=answers.SERVING if readiness.ready else answers.NOT_SERVING)

    return check


def _operators_paths(readiness: Readiness, registry: CollectorRegistry) -> dict[str, dict[str, HttpHandler]]:
    async def alive(_request: Request) -> Response:
        return json_response(encoded({"alive": True}))

    async def ready(_request: Request) -> Response:
        state = {"ready": readiness.ready, "degraded": readiness.degraded, "reasons": list(readiness.reasons)}
        return json_response(encoded(state), 200 if readiness.ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), headers={**SAFE_HEADERS, "content-type": CONTENT_TYPE_LATEST})

    return {"/healthz": {"GET": alive}, "/readyz": {"GET": ready}, "/metrics": {"GET": metrics}}


def _bound(host: str, port: int, setting: str) -> socket.socket:
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = resolved[0]
        # Only a listening socket keeps a second service from the port.
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6)
    except (OSError, ValueError):  # ValueError: this machine has no IPv6
        raise StartRefusedError(
            f"{host} port {port} cannot be used for HTTP: another program has it, or it is not an address of this "
            f"machine. Set {setting}"
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
