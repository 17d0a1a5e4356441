"""The endpoints as a load balancer, an operator and a stranger meet them: health, TLS, start, stop."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import StartRefusedError
from service.rpc.call import LARGEST_REQUEST, SERVICE
from service.rpc.server import LARGEST_METADATA, GrpcServer
from service.rpc.tls_files import TlsFiles
from tests.conftest import StartService
from tests.harness import faults
from tests.harness.answers import fails, health_of
from tests.harness.certificates import Authority, Certificate
from tests.harness.leads import somebody
from tests.harness.postgres import TestDatabase, TestServer, own_postgres
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# Health


def a_server(tls: TlsFiles | None = None, *, address: str = "127.0.0.1:0") -> GrpcServer:
    """The gRPC endpoint alone, in the test's loop."""

    async def nothing(*_: object) -> pb.GetLeadResponse:
        return pb.GetLeadResponse()

    return GrpcServer({method.name: nothing for method in SERVICE.methods}, address=address, tls=tls)


async def test_health_says_not_serving_until_the_service_is_ready() -> None:
    server = a_server()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        before = await stub.Check(health_pb2.HealthCheckRequest())
        await server.set_serving(True)
        after = await stub.Check(health_pb2.HealthCheckRequest())
    await server.stop(0)
    assert (before.status, after.status) == (NOT_SERVING, SERVING)


async def test_a_watch_gets_each_change_of_health_and_the_end() -> None:
    server = a_server()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE.full_name), timeout=10)
        seen = [(await watch.read()).status]
        for serving in (True, True, False, True):
            await server.set_serving(serving)
            if serving != (seen[-1] == SERVING):
                seen.append((await watch.read()).status)
        stopping = asyncio.create_task(server.stop(5))
        seen.append((await watch.read()).status)
        assert await watch.read() is grpc.aio.EOF
        await stopping
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_every_watch_is_told_of_the_end_also_while_a_change_is_being_sent_to_it() -> None:
    server = a_server()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(50)]
        for watch in watches:
            await watch.read()
        await server.set_serving(True)
        stopping = asyncio.create_task(server.stop(5))
        assert {await _last_of(watch) for watch in watches} == {NOT_SERVING}
        await stopping


async def _last_of(watch: Any) -> Any:
    last = None
    while (answer := await watch.read()) is not grpc.aio.EOF:
        last = answer.status
    return last


async def test_a_watch_of_an_unknown_service_gets_no_health_of_another() -> None:
    server = a_server()
    await server.start()
    await server.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody.v1.Nothing"), timeout=10)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await server.stop(0)


def test_health_of_a_running_service_needs_no_token(service: RunningService) -> None:
    with service.channel() as channel:
        for name in ("", "leadkeep.v1.LeadService"):
            assert health_of(channel, name) == SERVING
    assert service.is_well
    assert httpx.get(f"{service.http_url}/healthz").status_code == 200


def test_health_of_an_unknown_service_is_not_found(service: RunningService) -> None:
    with service.channel() as channel:
        assert fails(lambda: health_of(channel, "nobody.v1.Nothing")).code == grpc.StatusCode.NOT_FOUND


def test_without_a_database_the_service_is_degraded_and_takes_leads(tmp_path: Path) -> None:
    with own_postgres() as server:
        running = RunningService(tmp_path / "leadkeep", database_url=server.fresh_database().serve_url).start()
        readyz = f"{running.http_url}/readyz"
        with running.channel() as channel:
            assert (health_of(channel), httpx.get(readyz).status_code) == (SERVING, 200)
            server.stop()
            assert eventually(lambda: bool(httpx.get(readyz).json()["degraded"]), within=20)
            away = httpx.get(readyz)
            assert health_of(channel) == SERVING
            assert httpx.get(f"{running.http_url}/healthz").status_code == 200
            server.postgres.start()
            assert eventually(lambda: not httpx.get(readyz).json()["degraded"], within=20)
            assert health_of(channel, "leadkeep.v1.LeadService") == SERVING
            created = running.stub(channel).CreateLead(
                pb.CreateLeadRequest(lead=somebody()), metadata=running.metadata(), timeout=10
            )
        assert running.stop() == 0
    assert away.status_code == 200
    assert away.json() == {"ready": True, "degraded": True, "reasons": ["database_away"]}
    assert created.state == pb.SAVE_STATE_SAVED


# TLS


@pytest.fixture(scope="module")
def mutual_service(authority: Authority, postgres_server: TestServer, start_shared: StartService) -> RunningService:
    """A service that asks for client certificates."""
    own = authority.issue("server")
    settings = {
        "LEADKEEP_TLS_CERT": str(own.certificate),
        "LEADKEEP_TLS_KEY": str(own.key),
        "LEADKEEP_TLS_CLIENT_CA": str(authority.path),
    }
    return start_shared("mutual", database_url=postgres_server.fresh_database().serve_url, settings=settings)


def secure_channel(service: RunningService, authority: Authority, client: Certificate | None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.path.read_bytes(),
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )
    return grpc.secure_channel(service.grpc_address, credentials)


def tls_context(authority: Authority, client: Certificate | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.path)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


async def test_tls_asks_for_no_client_certificate_unless_told(authority: Authority) -> None:
    own = authority.issue("plain-server")
    server = a_server(TlsFiles(own.certificate, own.key, None))
    await server.start()
    request = health_pb2.HealthCheckRequest()
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
    async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(request, timeout=5)).status == NOT_SERVING
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(request, timeout=5)
    await server.stop(0)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_client_with_a_certificate_is_served_at_both_endpoints(
    mutual_service: RunningService, authority: Authority
) -> None:
    client = authority.issue("client")
    with secure_channel(mutual_service, authority, client) as channel:
        assert health_of(channel) == SERVING
    answer = httpx.get(f"{mutual_service.http_url}/readyz", verify=tls_context(authority, client))
    assert answer.status_code == 200


def test_client_without_a_certificate_is_refused_at_both_endpoints(
    mutual_service: RunningService, authority: Authority
) -> None:
    with secure_channel(mutual_service, authority, None) as channel:
        assert fails(lambda: health_of(channel)).code == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{mutual_service.http_url}/readyz", verify=tls_context(authority, None))


def test_client_with_a_strangers_certificate_is_refused_at_both_endpoints(
    mutual_service: RunningService, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("client")
    with secure_channel(mutual_service, authority, stranger) as channel:
        assert fails(lambda: health_of(channel)).code == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{mutual_service.http_url}/readyz", verify=tls_context(authority, stranger))


# Start and stop


def refusal(service: RunningService) -> str:
    """What a start that must fail says."""
    assert service.process is not None
    assert service.process.wait(timeout=60) == 1
    assert "Traceback" not in service.log()
    return service.log()


@pytest.mark.parametrize("variable", ["LEADKEEP_GRPC_ADDRESS", "LEADKEEP_HTTP_ADDRESS"])
def test_plaintext_beyond_loopback_is_refused(tmp_path: Path, variable: str) -> None:
    running = RunningService(tmp_path / "leadkeep", settings={variable: "0.0.0.0:0"})
    said = refusal(running.start(wait=False))
    assert variable in said
    assert "LEADKEEP_ALLOW_PLAINTEXT=1" in said


@pytest.mark.parametrize("variable", ["LEADKEEP_GRPC_ADDRESS", "LEADKEEP_HTTP_ADDRESS"])
def test_port_in_use_is_refused(database: TestDatabase, start_service: StartService, variable: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        running = start_service(database_url=database.serve_url, settings={variable: address}, wait=False)
        said = refusal(running)
    assert "another program has it" in said
    assert variable in said
    assert not RAW_LINE.search(said)


@pytest.mark.parametrize("variable", ["LEADKEEP_GRPC_ADDRESS", "LEADKEEP_HTTP_ADDRESS"])
@pytest.mark.parametrize("address", ["192.0.2.1:0", "nobody.invalid:0"], ids=["address", "host name"])
def test_address_of_another_machine_is_refused(
    database: TestDatabase, start_service: StartService, variable: str, address: str
) -> None:
    settings = {variable: address, "LEADKEEP_ALLOW_PLAINTEXT": "1"}
    said = refusal(start_service(database_url=database.serve_url, settings=settings, wait=False))
    assert "not an address of this machine" in said
    assert variable in said
    assert not RAW_LINE.search(said)


@pytest.mark.parametrize(
    ("taken", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::1", "[::]"),
        ("127.0.0.1", "[::]"),
        ("::", "0.0.0.0"),
    ],
)
async def test_port_in_use_at_any_address_of_the_host_is_refused(
    taken: str, asked: str, capfd: pytest.CaptureFixture[str]
) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    try:
        other = socket.create_server((taken, 0), family=family, dualstack_ipv6=taken == "::")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with other, pytest.raises(StartRefusedError, match="another program has it"):
        a_server(address=f"{asked}:{other.getsockname()[1]}")
    assert capfd.readouterr().err == ""


async def test_port_in_use_at_one_of_several_addresses_of_a_host_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def localhost(_host: str, port: str, **_options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"127.0.0.{last}", int(port))) for last in (2, 1)]

    monkeypatch.setattr(socket, "getaddrinfo", localhost)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartRefusedError, match="another program has it"):
            a_server(address=f"localhost:{other.getsockname()[1]}")


async def test_port_that_a_server_left_can_be_used_at_once() -> None:
    """A connection that the server has closed keeps the port for a minute."""
    first = a_server()
    await first.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
    await reader.readexactly(9)  # the head of its first frame: the connection is accepted, and closed in order
    await first.stop(0)
    await reader.read()
    second = a_server(address=f"127.0.0.1:{first.port}")
    assert second.port == first.port
    writer.close()
    await second.stop(0)


RAW_LINE = re.compile(r"^[IWEF][0-9]{4} ", re.MULTILINE)
"""What gRPC's core prints by itself."""


def test_sigterm_lets_a_running_call_finish(database: TestDatabase, start_service: StartService) -> None:
    faults.gated_inserts(database.admin_url)
    running = start_service(database_url=database.serve_url)
    assert running.process is not None
    seen: list[int] = []
    with running.channel() as channel, running.channel() as other:
        health: Any = health_pb2_grpc.HealthStub(other)
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=30)

        def follow() -> None:
            try:
                seen.extend(answer.status for answer in watch)
            except grpc.RpcError:
                return

        watching = threading.Thread(target=follow)
        watching.start()
        request = pb.CreateLeadRequest(lead=somebody(name=faults.SLOW), request_id=str(uuid4()))
        with faults.closed_gate(database.admin_url):
            call = running.stub(channel).CreateLead.future(request, metadata=running.metadata(), timeout=20)
            assert eventually(lambda: faults.waits_at_gate(database.admin_url), within=20)
            running.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: NOT_SERVING in seen, within=20)
        assert call.result().id
        finished = time.monotonic()
        assert running.process.wait(timeout=30) == 0
        took = time.monotonic() - finished
        watching.join(timeout=10)
    # Neither the watcher of the health, nor a channel that stays open, holds the stop up.
    assert took < 8
    assert (seen[0], seen[-1]) == (SERVING, NOT_SERVING)


# Limits


def test_oversize_message_is_refused_and_the_connection_goes_on(service: RunningService) -> None:
    with service.channel() as channel:
        large = pb.CreateLeadRequest(lead=somebody(notes="n" * (LARGEST_REQUEST + 1)))
        failure = fails(lambda: service.stub(channel).CreateLead(large, metadata=service.metadata(), timeout=10))
        assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert health_of(channel) == SERVING


def test_message_below_the_limit_hears_which_text_is_too_long(service: RunningService) -> None:
    with service.channel() as channel:
        large = pb.CreateLeadRequest(lead=somebody(address="n" * (LARGEST_REQUEST - 10_000)))
        failure = fails(lambda: service.stub(channel).CreateLead(large, metadata=service.metadata(), timeout=10))
    assert failure.violations.keys() == {"lead.address"}


def test_oversize_metadata_is_refused(service: RunningService) -> None:
    with service.channel() as channel:
        metadata = [*service.metadata(), ("x-much", "m" * (LARGEST_METADATA + 1))]
        request = pb.GetLeadRequest(id=str(uuid4()))
        failure = fails(lambda: service.stub(channel).GetLead(request, metadata=metadata, timeout=10))
        assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert health_of(channel) == SERVING
