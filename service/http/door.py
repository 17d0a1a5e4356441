"""The JSON door: a socket, TLS, and the paths, in the loop of the process."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID, uuid4

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config

from service.errors import DeadlineTooShortError, StartRefusedError
from service.http.json_codec import encoded
from service.http.openapi import document
from service.http.problems import SAFE_HEADERS, HttpProblemError, failure_response
from service.http.protocol import LARGEST_HEAD, DoorProtocol, DoorServer
from service.http.routes import OPERATIONS, Endpoint, Resource, endpoint_of, json_response
from service.rpc.call import Call, Handler
from service.rpc.interceptors import errors
from service.rpc.status import CallFailedError, failure_of
from service.rpc.tls_files import TlsFiles
from service.storage.condition import ReadinessReason

BACKLOG = 1024
"""Connections that the kernel keeps while the loop is busy."""

MOST_CONNECTIONS = 1000
"""Beyond it requests are refused with 503, so that slow bodies cannot take more than 256 MB of memory."""

KEEP_ALIVE = 30
"""Seconds for which a quiet connection stays open: chatbots keep a pool of them."""


class Readiness(Protocol):
    """Whether the service can be used."""

    @property
    def ready(self) -> bool:
        """Whether calls should be sent here."""

    @property
    def degraded(self) -> bool:
        """Whether all is not well, though calls are answered."""

    @property
    def reasons(self) -> Sequence[ReadinessReason]:
        """Why not, or why degraded: anybody may read these words."""


class HttpDoor:
    """The JSON door on the chain's methods. Bound from the start, it answers after `start()`."""

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
            http=DoorProtocol,
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
        self._server: DoorServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._server = DoorServer(self._config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait({up, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            up.cancel()
            await self._serving

    async def run(self) -> None:
        """Wait for the end of the serving. What ended it by a fault is raised, again each time this is called."""
        if self._serving is not None:
            await asyncio.shield(self._serving)

    async def stop(self, grace: float) -> None:
        """Take no new requests and wait at most `grace` seconds for those that run."""
        if self._server is None or self._serving is None:
            self._socket.close()
            return
        self._config.timeout_graceful_shutdown = math.ceil(grace)
        self._server.should_exit = True
        await asyncio.wait({self._serving})


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
        call = Call(rpc="(outside of a call)", door="http", peer="", metadata={}, deadline=math.inf)
        try:
            # The chain's own interceptor: an incident is logged and answered in one way only.
            await self._errors(call, Empty(), serve)
        except CallFailedError as failed:
            await failure_response(failed, {})(scope, receive, send)
        except asyncio.CancelledError:
            # Only the end of the grace at a stop cancels a request, and its work goes on: the outcome is not known.
            await failure_response(failure_of(DeadlineTooShortError()), {})(scope, receive, send)


def _head_size(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope["raw_path"]) + len(scope["query_string"])


def _paths(methods: Mapping[str, Handler], readiness: Readiness, registry: CollectorRegistry) -> Router:
    paths: dict[str, dict[str, Endpoint]] = {}
    for operation in OPERATIONS:
        # The story's path ends with a slash. No path means something else with or without one.
        for path in (operation.path, f"{operation.path}/"):
            paths.setdefault(path, {})[operation.method] = endpoint_of(operation, methods[operation.rpc])
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
    for path, endpoint in open_to_all.items():
        paths[path] = {"GET": endpoint}
    return Router(
        [Route(path, Resource(by_method)) for path, by_method in paths.items()],
        redirect_slashes=False,
        default=_not_found,
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await HttpProblemError(404, "there is nothing at this path; see /openapi.json").response()(scope, receive, send)


def _bound(host: str, port: int) -> socket.socket:
    refused = StartRefusedError(
        f"{host} port {port} cannot be used for HTTP: another program has it, or it is not an address of this machine. "
        "Set LEADKEEP_HTTP_ADDRESS"
    )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise refused from None
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart need not wait for the old connections' end; two listeners still clash.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Only a listening socket keeps a second service from the port.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise refused from None
    listener.setblocking(False)
    return listener


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
