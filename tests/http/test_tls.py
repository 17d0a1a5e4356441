from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.http.endpoint import HttpEndpoint
from service.rpc.call import Handler
from service.rpc.tls_files import TlsFiles
from tests.harness.certificates import Authority
from tests.http.conftest import FixedReadiness


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def test_tls_shows_the_certificate(methods: Mapping[str, Handler], authority: Authority) -> None:
    own = authority.issue("server")
    endpoint = _endpoint(methods, TlsFiles(own.certificate, own.key, None))
    await endpoint.start()
    context = ssl.create_default_context(cafile=str(authority.path))
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(f"https://127.0.0.1:{endpoint.port}/healthz")).status_code == 200
    await endpoint.stop(1)


async def test_with_an_authority_a_client_needs_a_certificate(
    methods: Mapping[str, Handler], authority: Authority
) -> None:
    own, client_certificate = authority.issue("server"), authority.issue("client")
    endpoint = _endpoint(methods, TlsFiles(own.certificate, own.key, authority.path))
    await endpoint.start()
    url = f"https://127.0.0.1:{endpoint.port}/healthz"
    context = ssl.create_default_context(cafile=str(authority.path))
    async with httpx.AsyncClient(verify=context) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(url)
    context = ssl.create_default_context(cafile=str(authority.path))
    context.load_cert_chain(client_certificate.certificate, client_certificate.key)
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(url)).status_code == 200
    await endpoint.stop(1)


def _endpoint(methods: Mapping[str, Handler], tls: TlsFiles) -> HttpEndpoint:
    registry = CollectorRegistry()
    return HttpEndpoint(methods, host="127.0.0.1", port=0, tls=tls, readiness=FixedReadiness(), registry=registry)
