"""The gRPC endpoint: the contract's methods, health and reflection on one port.

Requests arrive as bytes: a message that cannot be decoded gets an answer like any other fault, after the caller has
been identified, instead of grpc's bare INTERNAL.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.errors import InternalError, LeadkeepError, LeadValidationError, StartRefusedError
from service.rpc.call import LARGEST_REQUEST, SERVICE, Call, Handler, QueueWait, answer_by, decode, joined
from service.rpc.connections import GrpcConnections, HeldCalls
from service.rpc.limits import DEFAULT, HEADROOM, Limits, Refusals
from service.rpc.tls_files import TlsFiles

LARGEST_RESPONSE = 4 * 1024 * 1024
"""Bytes: the default limit of clients; a page of the longest valid leads is half of it."""

LARGEST_METADATA = 16 * 1024
"""Bytes. A token is at most 8 kB."""

MOST_PENDING = 4000
"""Calls that Python has not taken yet: all that 40 busy connections may send, and 128 MB of half a message each."""

OPTIONS = (
    # Two servers on one port would share it silently; a clash must raise.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", LARGEST_REQUEST),
    ("grpc.max_send_message_length", LARGEST_RESPONSE),
    ("grpc.max_metadata_size", LARGEST_METADATA),
    ("grpc.absolute_max_metadata_size", LARGEST_METADATA),
    # A chatbot may keep a quiet connection alive with a ping every 10 seconds.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Calls at once on a connection: clients queue the others themselves. No less is advised (RFC 9113, 6.5.2).
    ("grpc.max_concurrent_streams", 100),
    # gRPC would count a stream until Python has let go of its call, and reset calls of clients that keep to the limit.
    ("grpc.http.overload_protection", 0),
    # gRPC would reset some of more than 1,000 at random, and their callers get CANCELLED, which no policy retries.
    ("grpc.server.max_pending_requests", MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
    # Bytes of a message that are taken before anybody asks for it: the longest valid lead. By itself gRPC would take
    # 4 MB and more.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 32 * 1024),
    # For TLS and the preface of HTTP/2, in place of two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A peer that is gone without a word is noticed.
    ("grpc.keepalive_time_ms", 60_000),
)

V1ALPHA: str = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")
"""Both services of reflection."""

_TAKES_CALLS = "_server_main_loop"
"""grpc.aio's coroutine that takes all calls. It decodes nothing of a caller's but the names of methods."""

CUT_SECONDS = 1.0
"""For calls that were cancelled to end."""

RENEWAL_SECONDS = 0.1
"""Seconds that the first connection after a renewal waits before it makes gRPC free the old certificate. A connection
that was accepted just before may be about to use that one, and gRPC would crash (github.com/grpc/grpc/issues/36693;
`tests/faults/tls_renewal_trial.py` shows it). It needs microseconds; later connections wait behind the first one."""


class GrpcServer:
    """The gRPC endpoint. Health is SERVING only after `set_serving(True)`."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        *,
        address: str,
        tls: TlsFiles | None,
        limits: Limits = DEFAULT,
        refusals: Refusals | None = None,
    ) -> None:
        """Raises StartRefusedError when the address is in use or is not of this machine."""
        most = (
            ("grpc.max_allowed_incoming_connections", int(limits.connections * HEADROOM)),
            ("grpc.max_connection_age_ms", int(limits.connection_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", int(limits.connection_grace_seconds * 1000)),
        )
        self._server = grpc.aio.server(options=(*OPTIONS, *most))
        self._health = _Health()
        try:
            _probe(address)
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, _credentials(tls))
        except (OSError, RuntimeError):
            raise StartRefusedError(
                f"{address} cannot be used for gRPC: another program has it, or it is not an address of this machine. "
                "Set LEADKEEP_GRPC_ADDRESS"
            ) from None
        self.connections = GrpcConnections(self.port, limits, refusals or Refusals())
        self._held = HeldCalls(self.connections, limits)
        self._add_services(methods)

    def _add_services(self, methods: Mapping[str, Handler]) -> None:
        wait = QueueWait()
        handlers: dict[str, Any] = {
            method.name: grpc.unary_unary_rpc_method_handler(self._adapted(method, methods[method.name], wait))
            for method in SERVICE.methods
        }
        services = {SERVICE.full_name: handlers, "grpc.health.v1.Health": self._health.handlers}
        described: tuple[Any, ...] = (SERVICE.file, health_pb2.DESCRIPTOR)
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    service, {name: self._held.bounded(method) for name, method in handlers.items()}
                )
                for service, handlers in (services | _reflection_handlers(described)).items()
            )
        )

    def _adapted(self, method: MethodDescriptor, handle: Handler, wait: QueueWait) -> Callable[[bytes, Any], Any]:
        request_class = message_factory.GetMessageClass(method.input_type)

        async def answer(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            request, fault = request_class(), None
            try:
                decode(raw, request)
            except LeadValidationError as unread:
                fault = unread
            seconds = context.time_remaining()
            call = Call(
                rpc=method.name,
                transport="grpc",
                peer=context.peer(),
                metadata=joined(map(_as_text, context.invocation_metadata() or ())),
                deadline=answer_by(seconds),
                waited=0.0 if seconds is None else wait.seconds(seconds),
                fault=fault,
            )
            try:
                response = await handle(call, request)
                answered = response.SerializeToString()
            except LeadkeepError as failed:
                error = failed
            except Exception:  # noqa: BLE001 # grpc would send its text to the caller
                # The chain answers for everything behind it, so this is a fault of the chain itself.
                error = InternalError(call.id)
            else:
                context.set_trailing_metadata(tuple(call.trailers().items()))
                self._held.hold_answer(context, call, len(answered))
                return answered
            finally:
                if call.caller is not None:
                    self.connections.proven[call.peer] = time.monotonic()
            await self._held.abort(context, error, call)
            raise AssertionError("abort returned")

        return answer

    async def run(self) -> None:
        """Hold callers to the limits."""
        async with asyncio.TaskGroup() as limits:
            limits.create_task(self.connections.run())
            limits.create_task(self._held.run())

    async def start(self) -> None:
        """Begin to answer; health is NOT_SERVING."""
        codecs.register_error("strict", _replaced_in_names)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Set the health of the whole server and of LeadService."""
        self._health.set(serving)

    async def stop(self, grace: float) -> None:
        """Take no new calls and wait at most `grace` seconds for those that run."""
        self.connections.stopping = True
        self._health.stop()
        stopping = asyncio.ensure_future(self._server.stop(grace))
        # After the grace gRPC cancels the calls, and waits for their end without a bound.
        await asyncio.wait({stopping}, timeout=grace + CUT_SECONDS)


def _as_text(entry: tuple[str, str | bytes]) -> tuple[str, str]:
    """Metadata as headers have it: binary values in base64."""
    key, value = entry
    return key, value if isinstance(value, str) else base64.b64encode(value).decode()


def _probe(address: str) -> None:
    """Raise OSError when the address is in use, also at one of several addresses of a host name, or cannot be bound.

    grpc prints a line of its own about it, and it starts at `localhost` when another program has the port at 127.0.0.1,
    which most clients would then reach.
    """
    host, _, port = address.rpartition(":")
    bound = False
    for family, _, _, _, resolved in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            # With SO_REUSEADDR, as grpc binds it.
            socket.create_server(resolved, family=family, dualstack_ipv6=family == socket.AF_INET6).close()
            bound = True
        except (OSError, ValueError) as error:
            # localhost names ::1 also on a machine without IPv6.
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise
    if not bound:
        raise OSError(errno.EADDRNOTAVAIL, "no address of the host can be bound")


_HAVE_HEALTH = frozenset({"", SERVICE.full_name})
"""The services whose health is known; the empty name stands for the whole server."""


class _Health:
    """Health of the server and of LeadService, without a token.

    In place of grpcio-health-checking's, which holds a lock while it writes: one watcher that does not read would keep
    the health from being set. Watchers are let go when the service stops, because their streams never end by
    themselves.
    """

    def __init__(self) -> None:
        self._status: Any = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()
        self._stopping = False

    @property
    def handlers(self) -> dict[str, Any]:
        """The methods, by name."""
        kinds = (health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString)
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self.Check, *kinds),
            "Watch": grpc.unary_stream_rpc_method_handler(self.Watch, *kinds),
        }

    def set(self, serving: bool) -> None:
        """Set the health of both."""
        answers = health_pb2.HealthCheckResponse
        self._status = answers.SERVING if serving else answers.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def stop(self) -> None:
        """End every stream with NOT_SERVING."""
        self._stopping = True
        self.set(serving=False)

    async def Check(  # noqa: N802 # the contract's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The health of one service."""
        if request.service not in _HAVE_HEALTH:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no service of this name")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(  # noqa: N802 # the contract's name
        self, request: health_pb2.HealthCheckRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send every change until the watcher hangs up or the service stops."""
        answers, last = health_pb2.HealthCheckResponse, None
        while True:
            # Both before it is sent: what changes meanwhile is sent next, also the last change.
            changed, stopping = self._changed, self._stopping
            status = self._status if request.service in _HAVE_HEALTH else answers.SERVICE_UNKNOWN
            if status != last:
                yield answers(status=status)
                last = status
            if stopping:
                return
            await changed.wait()


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    given = tls.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if tls.current is given:
            return None
        time.sleep(RENEWAL_SECONDS)
        given = tls.current
        return given.grpc

    return grpc.dynamic_ssl_server_credentials(
        given.grpc,
        renewed,  # type: ignore[arg-type] # None means unchanged, which the stubs leave out
        require_client_authentication=tls.client_authority is not None,
    )


def _reflection_handlers(files: Iterable[FileDescriptor]) -> dict[str, dict[str, Any]]:
    """Reflection, as grpcurl, ghz, buf and Postman read the contract from the running service; the method, by service.

    grpcio-reflection serves `grpc.reflection.v1alpha`. `grpc.reflection.v1`, which clients ask for first, has the same
    messages in another package, so one servicer answers for both.
    """
    files = tuple(files)
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    servicer = reflection.aio.ReflectionServicer((*names, V1ALPHA, V1), _Pool(files))
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {name: {"ServerReflectionInfo": answer} for name in (V1ALPHA, V1)}


class _Pool:
    """A descriptor pool with some files, those of the status details and those of reflection, and nothing else.

    protobuf's own does not find the file of a method or of an enum's value (github.com/grpc/grpc/issues/34743).
    """

    def __init__(self, files: Iterable[FileDescriptor]) -> None:
        self._pool = DescriptorPool()
        # grpcurl and ghz read the details of an error with the service's own description of them.
        for file in (*files, status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            self._add(file)
        self._pool.AddSerializedFile(_v1_file().SerializeToString())

    def _add(self, file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            self._add(dependency)
        self._pool.AddSerializedFile(file.serialized_pb)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 # protobuf's name
        with suppress(KeyError):
            return self._pool.FindFileContainingSymbol(symbol)
        parent, _, name = symbol.rpartition(".")
        with suppress(KeyError):
            service = self._pool.FindServiceByName(parent)
            if name in service.methods_by_name:
                return service.file
        # protobuf names a value beside its enum; grpcurl and ghz name it inside.
        enum = self._pool.FindEnumTypeByName(parent)
        if name in enum.values_by_name:
            return enum.file
        raise KeyError(symbol)


def _v1_file() -> FileDescriptorProto:
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    alpha.options.ClearField("deprecated")
    return text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto())


def _replaced_in_names(error: UnicodeError) -> tuple[str | bytes, int]:
    """The handler of all texts of the process that cannot be decoded or encoded: an error, but where calls are taken.

    grpc.aio (grpcio 1.85) decodes the name of each called method in the one task that takes all calls. A name that is
    not UTF-8 ends that task, and with it the server: one caller without a token would be enough. So in that task, and
    nowhere else, such bytes are replaced. No method has a name like that: the call is answered UNIMPLEMENTED.
    """
    if isinstance(error, UnicodeDecodeError) and _is_taking_calls():
        return codecs.replace_errors(error)
    return codecs.strict_errors(error)


def _is_taking_calls() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return False
    return task is not None and getattr(task.get_coro(), "__name__", "") == _TAKES_CALLS
