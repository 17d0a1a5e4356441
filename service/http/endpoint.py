"""The HTTP endpoint: a socket, TLS, what is at which path, and uvicorn's connections in the loop of the process.

uvicorn is kept from logging what callers send, and from waiting for a caller without end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from uvicorn import Config
from uvicorn.server import ServerState

from service.errors import StartRefusedError
from service.http.calls import HttpHandler, Paths, may_be_left_out
from service.http.connections import Handshake, HttpConnection, HttpConnections
from service.http.json_codec import encoded
from service.http.problems import SAFE_HEADERS, HttpProblemError
from service.http.protocols import rpc_paths
from service.http.routes import ROUTES, json_response, route_handler
from service.lead import REQUIRED_FIELDS
from service.rpc.call import SERVICE, Call, Handler
from service.rpc.limits import DEFAULT, Limits, Refusals
from service.rpc.readiness import Readiness
from service.rpc.tls_files import TlsFiles

DOCUMENT = Path(__file__).with_name("openapi.json")
"""The OpenAPI document, which `make generate` makes of the contract, its comments and the table of routes."""

BACKLOG = 1024
"""Connections that the kernel keeps while the loop is busy."""

OPS_LIMITS = Limits(connections=64, connections_of_peer=64)
"""Probes and scrapers: one or two connections each."""

POLL_SECONDS = 0.01
"""Between two looks at what still runs at a stop."""

ACCEPT_AGAIN_SECONDS = 0.1
"""After a connection could not be accepted."""

CUT_SECONDS = 1.0
"""For handshakes, or requests, whose connection was cut to end."""

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
        self._tls = _RenewedContext(ssl.PROTOCOL_TLS_SERVER, tls) if tls else None
        self._socket = _bound(host, port, setting)
        self.port: int = self._socket.getsockname()[1]
        self._state = ServerState()
        config = Config(
            Paths(_handlers(methods, readiness, registry, required), allowed_origins),
            interface="asgi3",
            http=HttpConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            # Its lines hold query strings; the chain logs calls.
            access_log=False,
            # A header must not say where a call comes from: callers write headers, too.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._connections = HttpConnections(limits, refusals or Refusals())
        self._connect = partial(HttpConnection, self._connections, config, self._state)
        self._server: asyncio.Server | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: dict[asyncio.Task[None], Handshake] = {}

    async def start(self) -> None:
        """Begin to answer."""
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            self._accepting = loop.create_task(self._accept(self._tls))
        else:
            self._server = await loop.create_server(self._connect, sock=self._socket, backlog=BACKLOG)

    async def _accept(self, tls: ssl.SSLContext) -> None:
        """Accept TLS connections one by one: asyncio's own server shows none before its handshake is over, so callers
        who begin none would hold as many files as the process may open."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        while True:
            try:
                accepted, address = await loop.sock_accept(self._socket)
            except OSError:  # no file or memory is left for it: it waits
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            handshake = Handshake(accepted, address[0])
            self._connections.add(handshake)
            task = loop.create_task(self._shake_hands(handshake, tls))
            self._handshakes[task] = handshake
            task.add_done_callback(self._handshakes.pop)

    async def _shake_hands(self, handshake: Handshake, tls: ssl.SSLContext) -> None:
        seconds = self._connections.limits.arrival_seconds
        try:
            handshake.accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._connect, handshake.accepted, ssl=tls, ssl_handshake_timeout=seconds
            )
        except OSError:  # of TLS, too
            handshake.accepted.close()
        finally:
            self._connections.remove(handshake)

    async def stop(self, grace: float) -> None:
        """Take no new requests and wait at most `grace` seconds for those that run."""
        if self._server is not None:
            self._server.close()
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait({self._accepting})
        self._socket.close()
        for handshake in self._handshakes.values():
            handshake.abort()
        if self._handshakes:
            await asyncio.wait(list(self._handshakes), timeout=CUT_SECONDS)
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait(grace)
        for task in list(self._state.tasks):
            # It answers that the outcome is not known.
            task.cancel()
        await self._wait(POLL_SECONDS)
        for connection in list(self._state.connections):
            # Not close(), which waits for callers that do not read.
            connection.transport.abort()
        await self._wait(CUT_SECONDS)

    async def _wait(self, seconds: float) -> None:
        """Wait until every request has its answer, and every caller has taken it, for so long at most."""
        end = time.monotonic() + seconds
        while (self._state.connections or self._state.tasks) and time.monotonic() < end:  # noqa: ASYNC110 # no event
            await asyncio.sleep(POLL_SECONDS)


def described(required: Collection[str] = REQUIRED_FIELDS) -> bytes:
    """The OpenAPI document in JSON. `required`: the fields without which there is no lead, of REQUIRED_FIELDS."""
    document = json.loads(DOCUMENT.read_bytes())
    submission = document["components"]["schemas"]["LeadSubmission"]
    for name in REQUIRED_FIELDS.difference(required):
        submission["required"].remove(name)
        del submission["properties"][name]["minLength"]
    return encoded(document)


def _handlers(
    methods: Mapping[str, Handler] | None, readiness: Readiness, registry: CollectorRegistry, required: Collection[str]
) -> dict[str, dict[str, HttpHandler]]:
    """What is at each path, by method."""

    async def alive(_request: Request) -> Response:
        return json_response(encoded({"alive": True}))

    async def ready(_request: Request) -> Response:
        state = {"ready": readiness.ready, "degraded": readiness.degraded, "reasons": list(readiness.reasons)}
        return json_response(encoded(state), 200 if readiness.ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), headers={**SAFE_HEADERS, "content-type": CONTENT_TYPE_LATEST})

    handlers: dict[str, dict[str, HttpHandler]] = {
        "/healthz": {"GET": alive},
        "/readyz": {"GET": ready},
        "/metrics": {"GET": metrics},
    }
    if methods is None:
        return handlers
    document, optional = described(required), may_be_left_out(required)

    async def openapi(_request: Request) -> Response:
        return json_response(document)

    handlers["/openapi.json"] = {"GET": openapi}
    for route in ROUTES:
        handlers.setdefault(route.path, {})[route.verb] = route_handler(route, methods[route.rpc], optional)
    health = rpc_paths(_HEALTH, {"Check": _health(readiness)})  # type: ignore[arg-type] # as its stubs have it
    return handlers | rpc_paths(SERVICE, methods, optional) | health


def _health(readiness: Readiness) -> Handler:
    """Health.Check without a token, as the gRPC endpoint answers it."""

    async def check(call: Call, request: Message) -> Message:
        if call.fault is not None:
            raise call.fault
        if request.service not in ("", SERVICE.full_name):  # type: ignore[attr-defined] # it is a HealthCheckRequest
            raise HttpProblemError(404, "there is no service of this name")
        answers = health_pb2.HealthCheckResponse
        return answers(status=answers.SERVING if readiness.ready else answers.NOT_SERVING)

    return check


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
