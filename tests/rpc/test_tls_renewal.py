"""Renewed TLS files in a running service: what new connections see at both endpoints, and what goes on meanwhile."""

from __future__ import annotations

import shutil
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness.certificates import Authority, Certificate, TlsClient
from tests.harness.postgres import TestServer
from tests.harness.processes import eventually
from tests.harness.running_service import RunningService

ENDPOINTS = ("gRPC", "HTTP")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Renewed:
    """A running service whose TLS files a test exchanges. `begin` gives each test an authority of its own."""

    authority: Authority

    def __init__(self, folder: Path, postgres_server: TestServer) -> None:
        self._served = Certificate(folder / "served-cert.pem", folder / "served-key.pem")
        self._trusted = folder / "served-ca.pem"
        self._begin_with(Authority(folder, "authority"))
        settings = {
            "LEADKEEP_TLS_CERT": str(self._served.certificate),
            "LEADKEEP_TLS_KEY": str(self._served.key),
            "LEADKEEP_TLS_CLIENT_CA": str(self._trusted),
        }
        database_url = postgres_server.fresh_database().serve_url
        self.service = RunningService(folder / "leadkeep", database_url=database_url, settings=settings).start()

    def begin(self, folder: Path) -> Renewed:
        """Show a certificate of a new authority, trust that one only, and wait until it is so."""
        self._begin_with(Authority(folder, "authority"))
        client = TlsClient(self.authority.issue("first-client"))
        assert eventually(lambda: all(self.takes(client, endpoint) for endpoint in ENDPOINTS), within=30)
        return self

    def _begin_with(self, authority: Authority) -> None:
        self.authority = authority
        self.show(authority.issue("first"))
        self.trust(authority)

    def show(self, certificate: Certificate) -> None:
        """Write another certificate and key."""
        shutil.copy(certificate.certificate, self._served.certificate)
        shutil.copy(certificate.key, self._served.key)

    def trust(self, *authorities: Authority) -> None:
        """Write other client authorities."""
        self._trusted.write_bytes(b"".join(authority.path.read_bytes() for authority in authorities))

    def port(self, endpoint: str) -> int:
        """Where an endpoint listens."""
        address = self.service.grpc_address if endpoint == "gRPC" else self.service.http_address
        return int(address.rpartition(":")[2])

    def shows(self, certificate: Certificate, client: TlsClient, endpoint: str) -> bool:
        """Whether a new connection of this client shows the certificate."""
        return client.connect(self.port(endpoint)).serial_number == certificate.serial_number

    def takes(self, client: TlsClient, endpoint: str, *, resume: bool = False) -> bool:
        """Whether a new connection of this client is taken."""
        try:
            client.connect(self.port(endpoint), resume=resume)
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, postgres_server: TestServer) -> Iterator[Renewed]:
    renewed = Renewed(tmp_path_factory.mktemp("renewed"), postgres_server)
    yield renewed
    renewed.service.stop()


@pytest.fixture
def renewed(running: Renewed, tmp_path: Path) -> Renewed:
    return running.begin(tmp_path)


class Load:
    """Callers at both endpoints, on connections that stay open and on new ones, until the block ends."""

    def __init__(self, renewed: Renewed, client: Certificate) -> None:
        self.calls, self.failures, self.slowest = 0, list[str](), 0.0
        self._renewed, self._client, self._over = renewed, client, threading.Event()
        callers = (self._grpc_open, self._grpc_new, self._http_open, self._http_new)
        self._threads = [threading.Thread(target=caller) for caller in callers for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _repeat(self, call: Callable[[], object]) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                call()
            except (grpc.RpcError, httpx.HTTPError) as error:
                self.failures.append(repr(error))
            self.calls += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _grpc_open(self) -> None:
        with self._channel() as channel:
            self._repeat(lambda: self._check(channel))

    def _grpc_new(self) -> None:
        def call() -> None:
            with self._channel() as channel:
                self._check(channel)

        self._repeat(call)

    def _http_open(self) -> None:
        with httpx.Client(verify=self._context()) as client:
            self._repeat(lambda: self._get(client))

    def _http_new(self) -> None:
        def call() -> None:
            with httpx.Client(verify=self._context()) as client:
                self._get(client)

        self._repeat(call)

    def _check(self, channel: grpc.Channel) -> None:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)

    def _get(self, client: httpx.Client) -> None:
        client.get(f"{self._renewed.service.http_url}/healthz", timeout=10).raise_for_status()

    def _channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            self._renewed.authority.path.read_bytes(),
            self._client.key.read_bytes(),
            self._client.certificate.read_bytes(),
        )
        options = [("grpc.use_local_subchannel_pool", 1)]  # else channels share one connection
        return grpc.secure_channel(self._renewed.service.grpc_address, credentials, options=options)

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._renewed.authority.path)
        context.load_cert_chain(self._client.certificate, self._client.key)
        return context


def test_certificates_are_exchanged_under_load_and_no_call_fails(renewed: Renewed) -> None:
    client = renewed.authority.issue("client")
    new_client = TlsClient(client)
    with Load(renewed, client) as load:
        for name in ("second", "third"):
            certificate = renewed.authority.issue(name)
            renewed.show(certificate)
            for endpoint in ENDPOINTS:
                assert eventually(partial(renewed.shows, certificate, new_client, endpoint), within=30)
    assert load.calls > 100
    assert load.failures == []


@pytest.mark.parametrize("server_name", ["localhost", None], ids=["server name", "no server name"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_clients_of_a_removed_authority_are_refused_at_new_connections(
    renewed: Renewed, tmp_path: Path, endpoint: str, server_name: str | None
) -> None:
    other = Authority(tmp_path, "other")
    stays = TlsClient(other.issue("stays"), server_name=server_name)
    leaves = TlsClient(renewed.authority.issue("leaves"), server_name=server_name)
    assert (renewed.takes(leaves, endpoint), renewed.takes(stays, endpoint)) == (True, False)
    renewed.trust(other)
    assert eventually(lambda: renewed.takes(stays, endpoint), within=30)
    assert not renewed.takes(leaves, endpoint)
    assert not renewed.takes(TlsClient(server_name=server_name), endpoint)


@pytest.mark.parametrize("version", VERSIONS, ids=[version.name for version in VERSIONS])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_resumed_session_does_not_outlive_its_authority(
    renewed: Renewed, tmp_path: Path, endpoint: str, version: ssl.TLSVersion
) -> None:
    other = Authority(tmp_path, "other")
    stays, leaves = (TlsClient(authority.issue("client"), version=version) for authority in (other, renewed.authority))
    leaves.connect(renewed.port(endpoint))
    assert leaves.connect(renewed.port(endpoint), resume=True).is_resumed
    renewed.trust(other)
    assert eventually(lambda: renewed.takes(stays, endpoint), within=30)
    assert not renewed.takes(leaves, endpoint, resume=True)


def test_an_open_connection_outlives_a_renewal(renewed: Renewed) -> None:
    client, second = renewed.authority.issue("client"), renewed.authority.issue("second")
    credentials = grpc.ssl_channel_credentials(
        renewed.authority.path.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()
    )
    with grpc.secure_channel(renewed.service.grpc_address, credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watch)
        renewed.show(second)
        new = TlsClient(client)
        assert eventually(lambda: renewed.shows(second, new, "gRPC"), within=30)
        assert watch.is_active()


def test_sighup_is_answered_with_keyring_and_certificate(renewed: Renewed) -> None:
    assert renewed.service.process is not None
    before = renewed.service.log().count("TLS certificate taken")
    renewed.service.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "keyring taken" in renewed.service.log(), within=30)
    assert eventually(lambda: renewed.service.log().count("TLS certificate taken") == before + 1, within=30)
