from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from service.rpc.call import Handler
from service.rpc.tls_files import TlsFiles
from tests.harness.certificates import Authority
from tests.http.conftest import serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def test_tls_shows_the_certificate(methods: Mapping[str, Handler], authority: Authority) -> None:
    own = authority.issue("server")
    context = ssl.create_default_context(cafile=str(authority.path))
    async with (
        serving(methods, tls=TlsFiles(own.certificate, own.key, None)) as endpoint,
        httpx.AsyncClient(verify=context) as client,
    ):
        assert (await client.get(f"https://127.0.0.1:{endpoint.port}/healthz")).status_code == 200


async def test_with_an_authority_a_client_needs_a_certificate(
    methods: Mapping[str, Handler], authority: Authority
) -> None:
    own, client_certificate = authority.issue("server"), authority.issue("client")
    context = ssl.create_default_context(cafile=str(authority.path))
    async with serving(methods, tls=TlsFiles(own.certificate, own.key, authority.path)) as endpoint:
        url = f"https://127.0.0.1:{endpoint.port}/healthz"
        async with httpx.AsyncClient(verify=context) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url)
        context.load_cert_chain(client_certificate.certificate, client_certificate.key)
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.get(url)).status_code == 200
