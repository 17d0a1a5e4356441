"""Certificate authorities of a test's own, and TLS connections that show what a server and a client agreed on."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, each a PEM file."""

    certificate: Path
    key: Path

    @property
    def serial_number(self) -> int:
        """What tells it from every other."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


class Authority:
    """A certificate authority of a test's own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=0)
        own = self._builder(self._name, self._key.public_key()).add_extension(basic, critical=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> Certificate:
        """Issue a certificate for this machine, for a server or a client."""
        key = ec.generate_private_key(curve())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        signed = (
            self._builder(subject, key.public_key())
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = Certificate(self._folder / f"{name}-cert.pem", self._folder / f"{name}-key.pem")
        files.certificate.write_bytes(signed.public_bytes(Encoding.PEM))
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
        )


class TlsClient:
    """A client that opens TLS connections at either endpoint, with or without a certificate of its own.

    It checks no server, so that a test sees which certificate a server shows. `server_name` None sends no SNI.
    """

    def __init__(
        self,
        certificate: Certificate | None = None,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        server_name: str | None = "localhost",
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.minimum_version = self._context.maximum_version = version
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._server_name = server_name
        self._session: ssl.SSLSession | None = None
        if certificate is not None:
            self._context.load_cert_chain(certificate.certificate, certificate.key)

    def connect(self, port: int, *, resume: bool = False) -> Connected:
        """Open a connection, exchange some bytes and close it. With `resume`, offer the session of the one before.

        Raises OSError when the server refuses. A TLS 1.3 server refuses a client only after its own handshake.
        """
        session = self._session if resume else None
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            self._context.wrap_socket(plain, server_hostname=self._server_name, session=session) as connection,
        ):
            is_http2 = connection.selected_alpn_protocol() == "h2"
            connection.sendall(_HTTP2_PREFACE if is_http2 else b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            if not connection.recv(100):
                raise ConnectionAbortedError("the server closed the connection")
            self._session = connection.session
            shown = connection.getpeercert(binary_form=True)
            assert shown is not None
            return Connected(x509.load_der_x509_certificate(shown).serial_number, bool(connection.session_reused))


@dataclass(frozen=True)
class Connected:
    """What a connection showed: the server certificate's serial number, and whether a session was resumed."""

    serial_number: int
    is_resumed: bool


_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""The client's first bytes and an empty SETTINGS frame (RFC 9113, 3.4)."""
