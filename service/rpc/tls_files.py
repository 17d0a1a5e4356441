"""The TLS files: certificate, key and client authority, read and checked in one place for both endpoints.

Promise: both endpoints always use the same files, and files that cannot be used change nothing. An open connection
keeps what it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from service.errors import StartRefusedError

CHECK_SECONDS = 1.0
"""Seconds between two checks of the files. A change is taken when the next check finds the same content, so that no
half-written file is taken; new files are in use after two seconds."""

NOT_TAKEN = "the TLS files changed and cannot be used; the certificate before stays in use"

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

_Content = tuple[bytes | str, ...]
"""The bytes of each file, or why it cannot be read."""


@dataclass(frozen=True, slots=True)
class LoadedTls:
    """One state of the files, in the form that each endpoint needs."""

    http: ssl.SSLContext
    grpc: grpc.ServerCertificateConfiguration
    valid_until: datetime


class TlsFiles:
    """The TLS files in use, which follow the files on disk while `run` runs.

    With `client_authority` None no client certificate is asked for.
    """

    def __init__(
        self, certificate: Path, key: Path, client_authority: Path | None, *, check_seconds: float = CHECK_SECONDS
    ) -> None:
        """Raises StartRefusedError when the files cannot be used."""
        self._certificate, self._key, self.client_authority = certificate, key, client_authority
        self._check_seconds = check_seconds
        self._asked = asyncio.Event()
        self._log = structlog.get_logger("leadkeep.tls")
        self._seen = self._decided = self._read()
        self.current = self._load(self._decided)
        """What a new connection uses."""
        self.alarm: str | None = None
        """Why the files on disk are not in use; None while they are. Holds no path."""

    def reload_now(self) -> None:
        """Read the files at once and take them as they are: the operator says that they are complete."""
        self._asked.set()

    async def run(self) -> None:
        """Follow the files."""
        self._log_current()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._check_seconds)
            asked = self._asked.is_set()
            self._asked.clear()
            content = await asyncio.to_thread(self._read)
            is_settled, self._seen = content == self._seen, content
            if asked or (is_settled and content != self._decided):
                await self._decide(content)

    async def _decide(self, content: _Content) -> None:
        self._decided = content
        try:
            self.current = await asyncio.to_thread(self._load, content)
        except StartRefusedError as refused:
            self.alarm = NOT_TAKEN
            self._log.error("the TLS files were not taken, the certificate before stays in use", what=str(refused))
        except Exception:
            # The supervisor reports it; the same content is not decided again.
            self.alarm = NOT_TAKEN
            raise
        else:
            self.alarm = None
            self._log_current()

    def _log_current(self) -> None:
        self._log.info("TLS certificate taken", valid_until=self.current.valid_until.isoformat())

    def _read(self) -> _Content:
        paths = (self._certificate, self._key, self.client_authority)
        return tuple(_bytes_of(path) for path in paths if path is not None)

    def _load(self, content: _Content) -> LoadedTls:
        certificate, key, *authority = (_usable(part) for part in content)
        context = self._context()
        valid_until = self._fits_grpc(certificate)
        # OpenSSL read the files by itself: what gRPC gets must be the same.
        if self._read() != content:
            raise _refused("they changed while they were read")
        return LoadedTls(
            context, grpc.ssl_server_certificate_configuration([(key, certificate)], *authority), valid_until
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(self._certificate, self._key, password="")
        except OSError:
            raise _refused(
                f"LEADKEEP_TLS_CERT ({self._certificate}) and LEADKEEP_TLS_KEY ({self._key}) must be a PEM certificate "
                "chain and its own key without a password"
            ) from None
        if self.client_authority is not None:
            try:
                context.load_verify_locations(self.client_authority)
            except OSError:
                raise _refused(f"LEADKEEP_TLS_CLIENT_CA ({self.client_authority}) must hold PEM certificates") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _fits_grpc(self, certificate: bytes) -> datetime:
        """Refuse what OpenSSL takes and gRPC's TLS library does not, so that the endpoints never differ.

        Returns until when the certificate is valid.
        """
        try:
            leaf = x509.load_pem_x509_certificates(certificate)[0]
            key = leaf.public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise _refused(f"LEADKEEP_TLS_CERT ({self._certificate}) must be a PEM certificate chain") from None
        curve = key.curve if isinstance(key, ec.EllipticCurvePublicKey) else None
        if not isinstance(key, rsa.RSAPublicKey | ed25519.Ed25519PublicKey) and not isinstance(curve, _CURVES):
            raise _refused(
                f"the key of LEADKEEP_TLS_CERT ({self._certificate}) must be RSA, Ed25519, or ECDSA on P-256, P-384 or "
                "P-521"
            )
        return leaf.not_valid_after_utc


def certificate_to_trust(path: Path, host: str) -> tuple[bytes, str]:
    """The certificate of a service on this machine, PEM, and a name that it is valid for: `host` if it is one.

    Who trusts this one alone needs no authority: only the service has its key. Raises StartRefusedError.
    """
    try:
        leaf = x509.load_pem_x509_certificates(_usable(_bytes_of(path)))[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        valid = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        name = host if host in valid else valid[0]
    except (ValueError, IndexError, x509.ExtensionNotFound):
        raise _refused(f"LEADKEEP_TLS_CERT ({path}) must be a PEM certificate chain with host names") from None
    return leaf.public_bytes(Encoding.PEM), name.replace("*", "any")


def _bytes_of(path: Path) -> bytes | str:
    try:
        return path.read_bytes()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def _usable(part: bytes | str) -> bytes:
    if isinstance(part, str):
        raise _refused(f"{part}; see LEADKEEP_TLS_CERT, LEADKEEP_TLS_KEY and LEADKEEP_TLS_CLIENT_CA")
    return part


def _refused(why: str) -> StartRefusedError:
    return StartRefusedError(f"the TLS files cannot be used: {why}")
