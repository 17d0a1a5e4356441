from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import CollectorRegistry

from service.errors import StartRefusedError
from service.http.door import HttpDoor
from service.rpc.call import Handler
from service.rpc.server import Tls
from tests.http.conftest import Readiness


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """A certificate that vouches for itself, as server and as client."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leadkeep test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return Tls(tmp_path / "cert.pem", tmp_path / "key.pem", None)


async def test_tls_shows_the_certificate(methods: Mapping[str, Handler], tls: Tls) -> None:
    door = _door(methods, tls)
    await door.start()
    context = ssl.create_default_context(cafile=str(tls.certificate))
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(f"https://127.0.0.1:{door.port}/healthz")).status_code == 200
    await door.stop(1)


async def test_with_an_authority_a_client_needs_a_certificate(methods: Mapping[str, Handler], tls: Tls) -> None:
    door = _door(methods, Tls(tls.certificate, tls.key, tls.certificate))
    await door.start()
    url = f"https://127.0.0.1:{door.port}/healthz"
    context = ssl.create_default_context(cafile=str(tls.certificate))
    async with httpx.AsyncClient(verify=context) as client:
        with pytest.raises(httpx.TransportError):
            await client.get(url)
    context = ssl.create_default_context(cafile=str(tls.certificate))
    context.load_cert_chain(tls.certificate, tls.key)
    async with httpx.AsyncClient(verify=context) as client:
        assert (await client.get(url)).status_code == 200
    await door.stop(1)


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_certificate_that_cannot_be_used_stops_the_start(
    methods: Mapping[str, Handler], tls: Tls, content: str | None
) -> None:
    if content is None:
        tls.certificate.unlink()
    else:
        tls.certificate.write_text(content)
    with pytest.raises(StartRefusedError, match="LEADKEEP_TLS_CERT"):
        _door(methods, tls)


def _door(methods: Mapping[str, Handler], tls: Tls) -> HttpDoor:
    registry = CollectorRegistry()
    return HttpDoor(methods, host="127.0.0.1", port=0, tls=tls, readiness=Readiness(), registry=registry)
