"""`leadkeep serve`: run the service, and print its addresses and first calls when it is ready."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

import structlog
import typer

from service import serving
from service.config import Settings, load_settings
from service.errors import StartRefusedError
from service.log import configure_logging
from service.rpc.tls_files import certificate_to_trust
from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import ROLES

FIRST_TOKEN_LIFE = timedelta(hours=1)

EXAMPLE = {
    "name": "John Doe",
    "phone": "+1234567890",
    "nid": "123456789",
    "address": "123 Main St, City, Country",
    "interested_policy": "Term Life 20-Year",
    "email": "john@example.com",
}
"""The story's own example (US-013)."""


def serve() -> None:
    """Run the service until it is stopped (Ctrl-C, SIGTERM)."""
    settings = load_settings()
    # A crash must not write the memory, which holds keys and values in clear, to the disk. Child processes inherit it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    configure_logging(settings.log_level)
    first = settings.auth_jwks is None and not settings.signing_key_path.exists()

    def on_ready(grpc_port: int, http_port: int, ops_port: int | None) -> None:
        _print(_welcome(settings, grpc_port, http_port, ops_port, first=first))

    serving.serve(settings, on_ready=on_ready)


def _print(lines: str) -> None:
    """Print lines if standard output takes them: the service runs without."""
    try:
        typer.echo(lines)
        sys.stdout.flush()
    except OSError as error:
        structlog.get_logger("leadkeep").warning("standard output cannot be written", error=type(error).__qualname__)
        # What is left unwritten must not fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _welcome(settings: Settings, grpc_port: int, http_port: int, ops_port: int | None, *, first: bool) -> str:
    """The addresses of the endpoints; on the first start, calls that can be pasted, with a token."""
    grpc = settings.grpc_address.reachable(grpc_port)
    http = settings.http_address.reachable(http_port)
    scheme = "https" if settings.tls_cert is not None else "http"
    lines = [f"Leadkeep is ready: gRPC on {grpc}, JSON on {scheme}://{http}"]
    if settings.ops_address is not None and ops_port is not None:
        lines.append(
            f"Health and metrics, apart from callers, on {scheme}://{settings.ops_address.reachable(ops_port)}"
        )
    if not first:
        return "\n".join(lines)
    key = LocalSigningKey.load_or_create(settings.signing_key_path)
    token = key.issue("chatbot", ROLES["chatbot"], FIRST_TOKEN_LIFE, now=time.time())
    header = f"authorization: Bearer {token}"
    lead = json.dumps(EXAMPLE)
    request = json.dumps({"lead": {**EXAMPLE, "phone": "+1234567891", "nid": "123456790"}})
    grpcurl = [*_grpcurl(settings, grpc), "-H", header, "-d", request, grpc, "leadkeep.v1.LeadService/CreateLead"]
    curl, url = _curl(settings, http)
    curl += ["-H", header, "-H", "content-type: application/json", "-d", lead, f"{url}/api/leads/"]
    lines += [
        "",
        "Create a lead as a chatbot (this token is valid for an hour):",
        "",
        shlex.join(grpcurl),
        "",
        shlex.join(curl),
        "",
        f"More tokens, in another terminal: {_command()} token --role agent (or admin, chatbot)",
    ]
    return "\n".join(lines)


def _grpcurl(settings: Settings, address: str) -> list[str]:
    """grpcurl with what it needs to reach this endpoint."""
    if settings.tls_cert is None:
        return ["grpcurl", "-plaintext"]
    host, name = _names(settings.tls_cert, address)
    return ["grpcurl", *_tls_files(settings, "-"), *(["-authority", name] if name != host else [])]


def _curl(settings: Settings, address: str) -> tuple[list[str], str]:
    """curl with what it needs to reach this endpoint, and the base of its URL."""
    if settings.tls_cert is None:
        return ["curl"], f"http://{address}"
    host, name = _names(settings.tls_cert, address)
    curl = ["curl", *_tls_files(settings, "--")]
    if name == host:
        return curl, f"https://{address}"
    return [*curl, "--connect-to", f"::{address}"], f"https://{name}:{address.rpartition(':')[2]}"


def _tls_files(settings: Settings, dashes: str) -> list[str]:
    """Trust the service's own certificate, and show the one that operators' commands show where one is required."""
    files = {"cacert": settings.tls_cert}
    if settings.tls_client_ca is not None:
        own = settings.tls_client_cert
        files |= {"cert": own or settings.tls_cert, "key": own or settings.tls_key}
    return [word for name, path in files.items() for word in (dashes + name, str(Path(path or "").absolute()))]


def _names(certificate: Path, address: str) -> tuple[str, str]:
    """The host of an address, and a name that the certificate is valid for: the host if it is one, or if none is."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host, certificate_to_trust(certificate, host)[1]
    except StartRefusedError:
        return host, host


def _command() -> str:
    """The command as it can be pasted: in a clone it is not on the PATH."""
    installed = Path(sys.executable).with_name("leadkeep")
    return shlex.quote(str(installed)) if installed.exists() and shutil.which("leadkeep") is None else "leadkeep"
