from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from service.rpc.call import Handler
from service.rpc.limits import Limits, Refusals
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


async def test_connections_that_begin_no_handshake_are_bounded_and_a_newcomer_gets_in(
    methods: Mapping[str, Handler], authority: Authority
) -> None:
    own, refused = authority.issue("server"), Counter[str]()
    context = ssl.create_default_context(cafile=str(authority.path))
    async with serving(
        methods,
        tls=TlsFiles(own.certificate, own.key, None),
        limits=Limits(connections=20, connections_of_peer=20),
        refusals=Refusals(lambda _door, reason: refused.update([reason])),
    ) as endpoint:
        mute = [await asyncio.open_connection("127.0.0.1", endpoint.port) for _ in range(60)]
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.get(f"https://127.0.0.1:{endpoint.port}/healthz")).status_code == 200
        # The oldest make room.
        async with asyncio.timeout(5):
            assert [await reader.read() for reader, _ in mute[:40]] == [b""] * 40
        assert refused["connections"] >= 40
        assert not mute[-1][0].at_eof()
        for _, writer in mute:
            writer.close()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_does_not_end_in_time_ends_its_connection(
    methods: Mapping[str, Handler], authority: Authority, sent: bytes
) -> None:
    own = authority.issue("server")
    tls = TlsFiles(own.certificate, own.key, None)
    async with serving(methods, tls=tls, limits=Limits(arrival_seconds=0.3)) as endpoint:
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(sent)
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()


async def test_a_stop_waits_for_no_handshake(methods: Mapping[str, Handler], authority: Authority) -> None:
    own = authority.issue("server")
    async with asyncio.timeout(5):
        async with serving(methods, tls=TlsFiles(own.certificate, own.key, None)) as endpoint:
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            await asyncio.sleep(0.1)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", endpoint.port)
        await reader.read()
        writer.close()
